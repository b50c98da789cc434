// Package bboltlog keeps the transactions of a lifecycle.Host in a bbolt database
// that the server has open anyway: a [lifecycle.Log] in a bucket of its own.
//
//	db, err := bbolt.Open(path, 0o600, nil)
//	log, err := bboltlog.Open(db, bboltlog.Options{Bucket: "log"})
//	host := lifecycle.New(log, lifecycle.Options{Name: "orders"})
//	err = host.OnExit(lifecycle.PhaseRelease, "bbolt", func(context.Context) error { return db.Close() })
//
// Append buffers, and Sync puts what was appended into the bucket in one Update,
// which bbolt syncs twice. Who has no database yet is better served by commitlog,
// which syncs once, and writes no pages of a tree.
//
// # One writer
//
// bbolt has one writer at a time, and the log is one of them: Sync waits while the
// server's own Update runs, and the other way round. So a server must not wait
// inside an Update for what its Host has to make durable (a Commit, or a Pending's
// Wait): the Host would wait for the Update. Nor may a read transaction be kept open
// for long: bbolt can't grow the file meanwhile.
//
// # Whose database it is
//
// The server's: it opened it, and it closes it, when nobody uses it any more. Close
// gives up the log and leaves the database open, so that hooks of PhaseRelease can
// still write; the last of them, the one that was registered first, closes it.
// Options.CloseDB lets Close do that, for a server that keeps nothing else in it.
//
// # What it assumes
//
//   - Nobody else touches the bucket.
//   - The database syncs: with NoSync, Open fails.
//   - bbolt's own: an Update that returned nil is there after a crash, as a whole; one
//     that did not is there as a whole or not at all.
//
// # What it promises
//
//   - What was appended before a Sync, or a Close, that returned nil is there when the
//     database is opened again, in order, once, at its offset. What was not may be
//     there, from the next offset on and without gaps, or not.
//   - After a log's first failed Update (its own, a truncation's, or that of an Open
//     whose commit failed) Append, Sync, TruncateBefore and Open are refused, also of
//     other Logs in the same *bbolt.DB, until the database is opened again. A Close
//     that has something left to sync, and has not been told so before, returns an
//     error. Read goes on: what was durable still is. Of an Update of the server's
//     that failed the logs know nothing.
//   - One Log at a time in a bucket. Others are refused with ErrLocked. (Other
//     processes are kept out by bbolt's own lock.)
//   - A transaction that is missing, at the ends or between them, is a *DamageError,
//     never a gap that nobody notices: Open looks at the ends, Read at what it reads.
//   - A slow reader delays nobody: Read copies up to 256 KiB at a time, and holds no
//     transaction of bbolt's while the loop's body runs.
//   - When Close has returned, the log makes no call of the database any more.
//
// It does not promise what bbolt doesn't. After a failed sync the system's cache may
// go on to show pages that are not on the disk, and whoever opens the file reads
// those: what it shows before the machine was restarted may be gone afterwards. And
// bbolt has checksums of its two meta pages, of no other.
//
// # Buckets
//
// Numbers are 8 bytes, big-endian.
//
//	Options.Bucket           a bucket of the database
//	    "version"            01
//	    "first"              every offset below it was truncated
//	    "transactions"       a bucket; its sequence is one past the last offset
//	        offset           a transaction
package bboltlog
