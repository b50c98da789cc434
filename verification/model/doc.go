// Package model breaks the protocol of the exit itself, apart from its code: exit.pml is
// a model of Host, tasks, gate, durability actor and runner for spin, which walks every
// interleaving of a small world and checks the promises as assertions (P1 to P7), that
// nobody waits for ever (no invalid end state) and that under weak fairness everyone
// returns who is not stuck by the world's choice (an LTL formula).
//
// That the assertions can fail is checked too: exit.pml compiled with -DBUG=n has a
// seeded mistake, and spin must find each. Bug 1 is the order of SpacetimeDB pull
// request 4581, durability closed before the tasks are down.
//
// All checks are exhaustive within their world: no bitstate hashing. They need spin (6.5)
// and gcc. The default size is the quick worlds and bugs; -ci checks them all. The way into
// a bug, step by step, as spin found it:
//
//	go test ./model -run '/bugs/^17' -v -trail
package model
