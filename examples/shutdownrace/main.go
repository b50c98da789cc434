// Command shutdownrace runs one workload under three orders of shutdown, some
// thousand times each, and counts what each order breaks.
//
// The bug is that of SpacetimeDB, fixed by clockworklabs/SpacetimeDB pull request
// 4581. A database closed its durability channel while its background tasks were
// alive. View cleanup runs where no abort reaches it, committed once more, and
// panicked with "durability actor vanished". In Go the same mistake is a send on
// a closed channel, which ends the whole process. (The fix upstream aborts the
// tasks first. It does not await them; the second order shows what that leaves.)
//
// The workload is made of tasks that all write: a view cleanup that, cancelled or
// not, commits one last record; recorders of disk and of transaction metrics; and
// a few appenders. The orders:
//
//   - close, then abort: exit the module, close the channel, await the writer and
//     close the log, then cancel the tasks and await them. The tasks write all the
//     while: most rounds end in a send on the closed channel.
//   - abort, no await: cancel the tasks, close the channel and the log, and wait
//     for nothing. A task that obeys too late sends on the closed channel. A
//     writer that is late finds its log closed: what it held is lost, though it
//     was accepted, and nobody answers those who wait for it.
//   - lifecycle.Host: Exit cancels the tasks, awaits them, and only then seals the
//     channel, drains it and closes the log.
//
// The first two run on a host as people write it by hand: a channel and a
// goroutine that writes what it receives in batches. Nothing in the outcome is
// staged. Every round begins its exit at a random moment and yields a random
// number of times between the steps, in all three orders alike.
//
// The command fails if the Host's counts are not 0.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/seed080d9131/lifecycle"
)

func main() {
	rounds := flag.Int("rounds", 10000, "rounds per order")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the random moments")
	flag.Parse()

	var all []counts
	for _, o := range orders {
		all = append(all, play(o, *rounds, *seed))
	}
	printTable(os.Stdout, all)
	if last := all[len(all)-1]; last.broken() {
		fmt.Fprintf(os.Stderr, "the Host broke its promise: %v (rerun with -seed %d)\n", errors.Join(last.failures...), *seed)
		os.Exit(1)
	}
}

// order is a way to shut down a database, with the host that does it.
type order struct {
	name string
	open func(log *memoryLog, jitter func()) database
}

var orders = []order{
	{"close, then abort", func(log *memoryLog, jitter func()) database {
		return newHandmade(log, jitter, (*handmade).closeThenAbort)
	}},
	{"abort, no await", func(log *memoryLog, jitter func()) database {
		return newHandmade(log, jitter, (*handmade).abortNoAwait)
	}},
	{"lifecycle.Host", newOrdered},
}

// database is what the workload sees of either host.
type database interface {
	start(name string, task func(ctx context.Context))
	append(tx []byte) (pending, error)
	shutdown() error
	settle() // waits until nothing of it runs any more; no part of the shutdown
}

// pending is an accepted transaction.
type pending interface {
	wait() error // errUnanswered if there will be no answer
}

var (
	errCrashed    = errors.New("send on closed channel")
	errUnanswered = errors.New("nobody answers")
)

// counts is what an order has come to.
type counts struct {
	order      string
	rounds     int
	crashed    int // rounds in which the process would have died
	crashes    int // sends on the closed channel in them
	accepted   int
	lost       int // accepted, and not in the log when it was closed
	unanswered int // commits
	failures   []error
}

func (c counts) broken() bool {
	return c.crashed+c.lost+c.unanswered+len(c.failures) > 0
}

// play runs an order's rounds.
func play(o order, rounds int, seed uint64) counts {
	total := counts{order: o.name, rounds: rounds}
	for i := range rounds {
		r := round{rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		r.play(o)
		if r.crashes > 0 {
			total.crashed++
		}
		total.crashes += r.crashes
		total.accepted += r.accepted
		total.lost += r.lost
		total.unanswered += r.unanswered
		if r.failure != nil {
			total.failures = append(total.failures, fmt.Errorf("round %d: %w", i, r.failure))
		}
	}
	return total
}

// round is one life of a database.
type round struct {
	rng     *rand.Rand // of the goroutine that plays it
	failure error

	accepted, lost, crashes, unanswered int // once it is over
}

func (r *round) play(o order) {
	jitter := jitterFrom(r.rng)
	log := &memoryLog{jitter: jitterFrom(fork(r.rng))}
	db := o.open(log, jitter)

	writers := []*writer{
		r.newWriter(db, (*writer).cleanViews, "view cleanup"),
		r.newWriter(db, (*writer).record, "disk metrics"),
		r.newWriter(db, (*writer).record, "tx metrics"),
	}
	for range 4 {
		writers = append(writers, r.newWriter(db, (*writer).appendAll, "appender"))
	}
	for i, w := range writers {
		w.id = uint64(i) << 32
		db.start(w.name, func(ctx context.Context) { w.run(w, ctx) })
	}

	for range r.rng.IntN(20) {
		jitter()
	}
	r.failure = db.shutdown()
	db.settle()

	logged := map[uint64]bool{}
	for _, tx := range log.records {
		logged[binary.LittleEndian.Uint64(tx)] = true
	}
	for _, w := range writers {
		r.accepted += len(w.accepted)
		r.crashes += w.crashes
		r.unanswered += w.unanswered
		for _, id := range w.accepted {
			if !logged[id] {
				r.lost++
			}
		}
	}
}

// writer is a task of the workload. Its fields are its goroutine's until the
// database has settled.
type writer struct {
	name   string
	run    func(w *writer, ctx context.Context)
	db     database
	jitter func()
	id     uint64 // of the next transaction

	accepted            []uint64
	crashes, unanswered int
}

func (r *round) newWriter(db database, run func(*writer, context.Context), name string) *writer {
	return &writer{name: name, run: run, db: db, jitter: jitterFrom(fork(r.rng))}
}

// cleanViews commits what it removes, and once more when it is cancelled: the
// last record must not be missing.
func (w *writer) cleanViews(ctx context.Context) {
	for ctx.Err() == nil {
		if !w.append(true) {
			return
		}
		w.jitter()
	}
	w.append(true)
}

// record appends a measurement now and then. Nobody waits for it.
func (w *writer) record(ctx context.Context) {
	for ctx.Err() == nil && w.append(false) {
		w.jitter()
	}
}

// appendAll appends, and waits for every fourth.
func (w *writer) appendAll(ctx context.Context) {
	for i := 0; ctx.Err() == nil && w.append(i%4 == 0); i++ {
		w.jitter()
	}
}

// append returns false when there is no point in going on.
func (w *writer) append(wait bool) bool {
	w.id++
	p, err := w.db.append(binary.LittleEndian.AppendUint64(nil, w.id))
	if err != nil {
		if errors.Is(err, errCrashed) {
			w.crashes++
		}
		return false
	}
	w.accepted = append(w.accepted, w.id)
	if !wait {
		return true
	}
	err = p.wait()
	if errors.Is(err, errUnanswered) {
		w.unanswered++
	}
	return err == nil
}

// handmade is a host as it is often written: tasks under one context, and a
// channel to the goroutine that writes.
type handmade struct {
	log      *memoryLog
	jitter   func()
	order    func(*handmade) error
	ctx      context.Context
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	requests chan request
	written  chan struct{} // closed when the writing goroutine has ended

	// For the race detector a close that races with a send is a data race, and
	// rightly so. Here it is what the program is about. Under this lock each is one
	// step, as it is under the channel's own, and the detector stays silent unless
	// there is something else. It is held for no wait: see append.
	mu sync.Mutex
}

type request struct {
	tx    []byte
	reply chan error // capacity 1
}

// queueLength is the channel's capacity.
const queueLength = 64

func newHandmade(log *memoryLog, jitter func(), order func(*handmade) error) *handmade {
	h := &handmade{
		log:      log,
		jitter:   jitter,
		order:    order,
		requests: make(chan request, queueLength),
		written:  make(chan struct{}),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	go h.write()
	return h
}

func (h *handmade) start(_ string, task func(ctx context.Context)) {
	h.tasks.Go(func() { task(h.ctx) })
}

// append sends, as h.requests <- r would. The panic of a closed channel is caught
// here, and counted, so that the program lives to tell.
func (h *handmade) append(tx []byte) (pending, error) {
	r := request{tx, make(chan error, 1)}
	for {
		sent, err := h.trySend(r)
		if err != nil {
			return nil, err
		}
		if sent {
			return handmadePending{h, r.reply}, nil
		}
		runtime.Gosched() // the channel is full
	}
}

func (h *handmade) trySend(r request) (sent bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() {
		if recover() != nil {
			err = errCrashed
		}
	}()
	select {
	case h.requests <- r:
		return true, nil
	default:
		return false, nil
	}
}

func (h *handmade) closeRequests() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.requests)
}

// write is the goroutine that writes: whatever has come, as one batch. An error
// of the log ends it.
func (h *handmade) write() {
	defer close(h.written)
	for first := range h.requests {
		batch := []request{first}
		for len(h.requests) > 0 && len(batch) < queueLength {
			if r, ok := <-h.requests; ok {
				batch = append(batch, r)
			}
		}
		txs := make([][]byte, len(batch))
		for i, r := range batch {
			txs[i] = r.tx
		}
		if h.log.Append(txs) != nil || h.log.Sync() != nil {
			return
		}
		for _, r := range batch {
			r.reply <- nil
		}
	}
}

func (h *handmade) shutdown() error { return h.order(h) }

// closeThenAbort drains with care, and forgets who is still writing.
func (h *handmade) closeThenAbort() error {
	h.closeRequests()
	h.jitter()
	<-h.written
	err := h.log.Close()
	h.jitter()
	h.cancel()
	h.jitter()
	h.tasks.Wait()
	return err
}

// abortNoAwait tells everyone to stop, and believes that they have.
func (h *handmade) abortNoAwait() error {
	h.cancel()
	h.jitter()
	h.closeRequests()
	h.jitter()
	return h.log.Close()
}

func (h *handmade) settle() {
	<-h.written
	h.tasks.Wait()
}

type handmadePending struct {
	host  *handmade
	reply chan error
}

// wait would hang where it returns errUnanswered.
func (p handmadePending) wait() error {
	select {
	case err := <-p.reply:
		return err
	case <-p.host.written:
	}
	select {
	case err := <-p.reply:
		return err
	default:
		return errUnanswered
	}
}

// ordered is the same database on a lifecycle.Host.
type ordered struct{ *lifecycle.Host }

func newOrdered(log *memoryLog, jitter func()) database {
	return ordered{lifecycle.New(log, lifecycle.Options{
		Name:       "shutdownrace",
		QueueBytes: queueLength * (8 + 32),
		// The yields between the steps that the other orders have, too.
		Observer: lifecycle.Observer{PhaseStart: func(lifecycle.PhaseEvent) { jitter() }},
	})}
}

func (o ordered) start(name string, task func(ctx context.Context)) {
	err := o.Go(name, func(ctx context.Context) error { task(ctx); return nil })
	if err != nil {
		panic(err) // it can't: the exit has not begun
	}
}

func (o ordered) append(tx []byte) (pending, error) {
	p, err := o.Durability().Append(context.Background(), tx)
	return orderedPending{p}, err
}

func (o ordered) shutdown() error { return o.Exit(context.Background()) }

func (o ordered) settle() { <-o.Done() }

type orderedPending struct{ lifecycle.Pending }

func (p orderedPending) wait() error {
	err := p.Wait(context.Background())
	if errors.Is(err, lifecycle.ErrUnknown) {
		return errUnanswered
	}
	return err
}

// memoryLog keeps what is written to it until it is closed. The handmade host
// closes it while its writer writes, so it has a lock, as a file has.
type memoryLog struct {
	jitter  func()
	mu      sync.Mutex // guards what follows
	records [][]byte
	closed  bool
}

var errLogClosed = errors.New("the log is closed")

func (l *memoryLog) Next() uint64 { return 0 }

func (l *memoryLog) Append(txs [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errLogClosed
	}
	for _, tx := range txs {
		l.records = append(l.records, append([]byte(nil), tx...))
	}
	return nil
}

func (l *memoryLog) Sync() error {
	l.jitter() // a disk takes its time
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errLogClosed
	}
	return nil
}

func (l *memoryLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errLogClosed
	}
	l.closed = true
	return nil
}

// jitterFrom returns a func that yields a few times at random. It is for one
// goroutine at a time.
func jitterFrom(rng *rand.Rand) func() {
	return func() {
		for range rng.IntN(4) {
			runtime.Gosched()
		}
	}
}

func fork(rng *rand.Rand) *rand.Rand { return rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())) }

func printTable(w io.Writer, all []counts) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "order of the exit\trounds\tprocess dead\tsends on closed\taccepted\tlost\tunanswered\t")
	for _, c := range all {
		fmt.Fprintf(table, "%-17s\t%d\t%d\t%d\t%d\t%d\t%d\t\n", c.order, c.rounds, c.crashed, c.crashes, c.accepted, c.lost, c.unanswered)
	}
	table.Flush()
	fmt.Fprintln(w, "\nprocess dead: rounds that a send on the closed channel would have ended, had it not been caught;")
	fmt.Fprintln(w, "lost: accepted, but not in the log when it was closed; unanswered: commits that would wait for ever.")
}
