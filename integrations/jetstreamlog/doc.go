// Package jetstreamlog is a log of transactions in a replicated stream of NATS JetStream:
// the Log of a lifecycle.Host that must survive its machine. A transaction is durable
// when a quorum of the stream's servers has acknowledged it. Another process can then open
// the log and go on, and from then on the first one, however it comes back, is refused:
// it is fenced.
//
//	log, err := jetstreamlog.Open(ctx, js, "orders", jetstreamlog.Options{Fence: takeover})
//	...
//	for entry, err := range log.Read(ctx, log.First()) { ... }
//	host := lifecycle.New(log, lifecycle.Options{Name: "orders"})
//
// # What it assumes
//
//   - NATS servers from 2.12 on, which have atomic batches, and as many as Options.Replicas
//     or more.
//   - That what a quorum has acknowledged stays. How sure that is, is decided by the
//     servers' jetstream.sync_interval: with "always" each server syncs a write to its disk
//     before it votes for it; with the default, 2m, a power failure that hits several at
//     once, or one at a bad moment, can take back what was acknowledged. A client can't
//     see what the servers do.
//   - That nobody but Logs writes to the stream, and nobody changes, restores or makes anew
//     what they have written. Open refuses a configuration that drops messages, and Read
//     notices what is missing or foreign; a stream that was deleted is gone.
//
// # What it promises
//
//   - Offset = stream sequence - 1, always: one message per transaction, and nothing else in
//     the stream. A stream that was truncated, or is empty, goes on where it stood. In one
//     whose first sequence was configured, offsets begin there.
//   - After Sync has returned nil, what was appended is in the stream once, in order, at its
//     offsets. What was not synced may be there, from the next offset on and without gaps,
//     or not.
//   - No fork. Each batch is taken by the stream's leader only if the last sequence is the
//     one that this Log has seen. So of several Logs on a stream the first to append fences
//     the others: the next append of each of them fails with ErrFenced, and nothing of it is
//     written. With Options.Fence, that first append is Open's own.
//   - No doubles. An answer that does not come is ambiguous, so the same batch is published
//     again, with the same expected sequence: of all its copies, in whatever order and
//     however late they arrive, at most one is taken. A copy that is refused makes the Log
//     read what stands in its place: its own session's message, and the batch is
//     acknowledged; another's, and it is fenced; nothing yet, and it tries again.
//   - An election, a killed server, a lost connection or an absent quorum within
//     Options.Timeout costs time and nothing else. After that, the outcome is unknown: the
//     Log fails, and the host with it.
//   - Each call ends: within Options.Timeout for each batch, part of a long transaction, or step of
//     reading, and what a write to a connection that takes no bytes may take on top of it
//     (nats.FlusherTimeout).
//
// # What it does not promise
//
//   - Without Options.Fence, a Log that was opened earlier may still append until this one
//     does; then it is this one that is fenced. Its state was old, but nothing forked.
//   - A fenced process does not know it before it writes. What it answers to reads may be old
//     until then. Who can't have that commits something first: an empty transaction will do.
//   - Who should open the log, and when, is not decided here. Any lease will do, such as the
//     example's: for what is written, the fence makes up for its errors.
//   - TruncateBefore of any Log takes from all.
//
// # Atomic batches, one after another
//
// What Sync has to publish goes in atomic batches of up to 1000 transactions and about
// 4 MiB: all or nothing, with the expected sequence at its beginning and one answer at its
// end. The next one is published when that answer is there.
//
// The obvious faster way is wrong: to publish every message at once, each with the sequence
// that the one before it will have. If another writer's message takes the place of the k-th,
// the k-th is refused, but the one after it is not, for the last sequence is the one that it
// expects: the log has a hole, of which nobody who reads it can know. The same goes for
// batches, if that writer's has the same length.
//
// # Transactions that are too long for a message
//
// A server's file store takes no message over 32 MiB, and its max_payload is 1 MiB unless
// set otherwise; a Log has to take 64 MiB. So a transaction over 1 MiB, or over max_payload,
// is cut: its parts go to a second stream, named STREAM-parts, each acknowledged, and the
// message in the log refers to them, with their length and checksum. Parts that nothing
// refers to mean nothing, so there a publish that got no answer is just repeated.
// TruncateBefore removes parts with the transactions that had them; those of the stream's
// last transaction it may leave to the next call.
//
// # Format, version 1
//
// The log's stream has the subject lifecycle.STREAM.tx, the parts' lifecycle.STREAM.part. A
// message of the log has, beside NATS's own headers,
//
//	Lifecycle-Log: 1 KIND SESSION FLOOR
//
// KIND is whole, and the body is the transaction; or parts, and the body is JSON: bytes,
// crc32c, and parts, the sequences. SESSION is random and of one Open. FLOOR is a sequence of
// the second stream: no transaction from this one on has a part below it.
package jetstreamlog
