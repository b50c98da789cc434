package main

import "context"

// rebuildIndex is the task of -stuck, a mistake of the kind that every server has
// somewhere: it waits for the answer of a worker that has died, and does not look
// at its context meanwhile. Nothing in Go can end it.
//
// The exit awaits it, since it might still write, and says every 5 s whom it waits
// for, for how long that has run, and at which line it stands. Only a forced exit
// leaves it behind.
func rebuildIndex(context.Context) error {
	answer := make(chan error)
	return <-answer
}
