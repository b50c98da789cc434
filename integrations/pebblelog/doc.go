// Package pebblelog keeps the transactions of a lifecycle.Host in a Pebble engine
// that the server has open anyway: a [lifecycle.Log] in a part of its keyspace.
//
//	db, err := pebble.Open(dir, &pebble.Options{…})
//	log, err := pebblelog.Open(db, pebblelog.Options{Prefix: "log/"})
//	host := lifecycle.New(log, lifecycle.Options{Name: "orders"})
//	err = host.OnExit(lifecycle.PhaseRelease, "pebble", func(context.Context) error { return db.Close() })
//
// Append buffers, and Sync commits what was appended as one batch, which Pebble
// writes to its write-ahead log and syncs. Who has no engine yet is better served
// by commitlog: here each transaction is written twice, to the write-ahead log and
// to a table, and compacted.
//
// # Whose engine it is
//
// The server's: it opened it, and it closes it, when nobody writes any more. Close
// gives up the log and leaves the engine open, so that hooks of PhaseRelease can
// still write; the last of them, the one that was registered first, closes it.
// Options.CloseDB lets Close do that, for a server that keeps nothing else in it.
//
// Pebble panics where a closed engine is used; of the log's calls it is an error. A
// Host awaits its tasks, its calls and the log before PhaseRelease, so none of them
// can. Only after a ForceExit that has left somebody behind is the engine better left
// open: its write-ahead log has all that was acknowledged.
//
// # What it assumes
//
//   - The engine orders keys under the prefix by their bytes, as its default
//     Comparer does, and has a write-ahead log (with DisableWAL, Open fails).
//   - Nobody else writes keys that begin with the prefix.
//   - The engine's own: what a synced commit covers is there after a crash, and an
//     unsynced one is there or not as a whole, none without those before.
//
// # What it promises
//
//   - What was appended before a Sync, or a Close, that returned nil is there when the
//     engine is opened again, in order, once, at its offset. What was not may be
//     there, from the next offset on and without gaps, or not.
//   - After a log's first failed commit (its own, a truncation's, or an Open's) Append,
//     Sync, TruncateBefore and Open are refused, also of other Logs in the same
//     *pebble.DB, until the engine is opened again: a commit that failed is visible in
//     it, and durable or not. A Close that has something left to sync, and has not been
//     told so before, returns an error. Read goes on: what was durable still is. Of a
//     write of the server's that failed the logs know nothing.
//   - The error of a synced commit is returned, whatever the engine's Logger does about
//     fatal errors; Pebble's own way, Apply, calls its Fatalf, which ends the process,
//     and returns nil where that returns.
//   - One Log at a time in a part of the keyspace. Others are refused with ErrLocked,
//     and a new one in the part of one that is closed with an error that names that.
//     (Other processes are kept out by the engine's own lock.)
//   - A transaction that is missing, at the ends or between them, is a *DamageError,
//     never a gap that nobody notices: Open looks at the ends, Read at what it reads.
//   - When Close has returned, the log makes no call of the engine any more.
//
// # Keys
//
// Offsets and numbers are 8 bytes, big-endian.
//
//	prefix 00           "pebblelog", version 01
//	prefix 01           first: every offset below it was truncated
//	prefix 02           next: one past the last offset
//	prefix 03 offset    a transaction
//
// Each commit has the transactions and next in one batch, each truncation first
// and the range that it deletes.
package pebblelog
