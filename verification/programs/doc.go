// Package programs runs random programs of API calls against a Host and against a small model of it.
//
// A program is a script: a Log with delays, a failure or a call that hangs, and steps, each at a moment of its own and in
// a goroutine of its own, that start tasks and tickers, enter and leave, register hooks, append, commit, wait, exit, force,
// fail and look. It runs in a bubble of testing/synctest, where time is virtual: a delay is exact, and no two
// delays of a program add up to the same moment, so that a program has one outcome. The model (model_test.go)
// computes it from nothing but what the user's own code did and when, by the rules of the package's
// documentation: who is admitted and who refused with which error, when each phase begins and ends, to the nanosecond,
// which hooks run in which order, who is cancelled when and with which cause, who is left behind, what is accepted and
// durable and lost, what every caller is told and when. Anything else fails the test, and rapid shrinks the program to the
// few steps that matter.
package programs
