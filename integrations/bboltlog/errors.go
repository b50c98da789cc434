package bboltlog

import (
	"errors"
	"fmt"
)

// What the package's functions refuse with; errors.Is finds them in what is returned.
var (
	// ErrLocked: another Log has the bucket open.
	ErrLocked = errors.New("the bucket is open in another log")

	// ErrClosed: the Log was closed.
	ErrClosed = errors.New("the log is closed")

	// ErrTruncated: the offset lies before what the log holds, since TruncateBefore deleted it.
	ErrTruncated = errors.New("the offset was truncated")

	// ErrTooLarge: a transaction is over MaxTransactionBytes.
	ErrTooLarge = errors.New("too large")
)

// DamageError reports that a transaction which the log had acknowledged is not in
// the database, or that something else is in its place. Nothing was changed when it
// is returned.
type DamageError struct {
	Bucket string // of the log
	Offset uint64 // of the first transaction that is missing, as far as is known
	Why    string // what was found
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("bboltlog: %q: damage at offset %d: %s; nothing was changed", e.Bucket, e.Offset, e.Why)
}
