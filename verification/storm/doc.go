// Package storm breaks the promises with chance, on 1, 2 and 4 processors and under the
// race detector: round after round of one host whose tasks, tickers, calls, hooks and
// clients append, commit, start tasks and call the host while it is told to exit by many at
// once, in every way, by callers that expire and by tasks that fail; its log fails, is slow
// or hangs. At every step of the host (internal/seam) chance gives way to others.
//
// A round's log is strict memory, commitlog on a file system that forgets what was not
// synced and may fail an operation, or commitlog on the machine's disk. Some rounds are
// played in a bubble, where time is virtual and a deadlock is found at once; the others with
// real time.
//
// Each round is checked for all of it: exactly one outcome for every append that was
// accepted, and the log's records as told; nil only if all is durable, in order; nobody alive
// at the seal and at the close, unless the exit was forced; calls into the log one at a time;
// no refused func run, none begun after Done; the same result for all; no goroutine left.
//
// A seed plays the same choices again. The schedule stays the machine's:
//
//	go test -race ./storm -seed 7 -rounds 1000
package storm
