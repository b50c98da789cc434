package commitlog

import (
	"errors"
	"fmt"
)

// What the package's functions refuse with; errors.Is finds them in what is returned.
var (
	// ErrLocked: another Log, of this process or another, has the directory open.
	ErrLocked = errors.New("the directory is locked by another log")

	// ErrClosed: the Log was closed.
	ErrClosed = errors.New("the log is closed")

	// ErrTruncated: the offset lies before what the log holds, since TruncateBefore removed it.
	ErrTruncated = errors.New("the offset was truncated")

	// ErrTooLarge: a transaction is over MaxTransactionBytes, or a batch over MaxBatchBytes.
	ErrTooLarge = errors.New("too large")
)

// DamageError reports that data which the log had acknowledged, or might have, can't be read back.
// No segment was changed when it is returned.
type DamageError struct {
	Segment  string // path of the file
	Position int64  // of the first byte that could not be read as it was written
	Offset   uint64 // of the transaction that belongs there: all before it is intact
	Why      string // what was found, and what proves it to be no torn tail
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("commitlog: %s: damage at byte %d, where offset %d belongs: %s; no segment was changed: "+
		"restore the file from a copy, or, to give up offset %d and everything after it, "+
		"overwrite the file from that byte to its end with zeros (remove it, if the byte is 0) and remove the segments after it",
		e.Segment, e.Position, e.Offset, e.Why, e.Offset)
}

// failed is the form of every other error: the file or directory, what was done to it, and why it failed.
func failed(path, doing string, err error) error {
	return fmt.Errorf("commitlog: %s: %s: %w", path, doing, err)
}
