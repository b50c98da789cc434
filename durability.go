package lifecycle

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed080d9131/lifecycle/internal/seam"
)

// Offset is the position of a transaction in the log: from 0, without gaps, in
// the order of acceptance.
type Offset = uint64

// MaxTransactionBytes is the longest transaction that Append takes: 64 MiB. Any
// Log must take what is up to it.
const MaxTransactionBytes = 64 << 20

// Each transaction in the queue counts its length and this.
const queueOverhead = 32

// The most that BatchLog.BatchHeader may ask for.
const maxBatchHeader = 4096

// Log is where the durability actor writes. The actor is its only caller after
// New, and its calls never overlap.
type Log interface {
	// Next is the offset that the first transaction of the next Append gets. The
	// host asks once, in New.
	Next() Offset
	// Append writes txs after what the log holds. It must not keep txs or their
	// bytes after it returns. After an error the host calls nothing but Close.
	Append(txs [][]byte) error
	// Sync returns nil once all that was appended is durable. After an error the
	// host calls nothing but Close: a second fsync after a failed one may say yes
	// to what is gone (the fsyncgate of PostgreSQL, 2018).
	Sync() error
	// Close gives up what the log holds. It is called once.
	Close() error
}

// BatchLog is a Log that takes transactions as the queue holds them, so that
// between a committer's bytes and the disk there is one copy: the one that Append
// makes. The actor uses it where a log has it; commitlog has.
type BatchLog interface {
	Log
	// BatchHeader is how many bytes the log wants free in front of each batch, at
	// most 4096. The host asks once, in New.
	BatchHeader() int
	// AppendBatch is Append for the n transactions in batch. Its first
	// BatchHeader bytes are the log's to write; n records follow, each a
	// little-endian uint32, the length, and so many bytes. A batch of more than
	// about 256 KiB is handed over in several calls before one Sync. The bytes
	// between len(batch) and cap(batch) are the log's to write as well; it must
	// not keep batch after it returns.
	AppendBatch(batch []byte, n int) error
}

// Durability is a host's durability channel: the queue into which Append puts
// transactions, and the actor, the one goroutine that writes them to the log as a
// batch, syncs once, and publishes the durable offset.
//
// The order of a transaction's life:
//
//  1. Append, under mu: checks sealed and failed, gives the offset, copies the
//     bytes behind those of the queue. The transaction is accepted.
//  2. The actor, under mu: takes the whole queue as its flight.
//  3. The actor, no lock: log.Append, then, under mu, gives room to those who
//     wait for it, in the order in which they came; log.Sync.
//  4. The actor, under mu: moves durable to the flight's end. Then it closes the
//     flight's channel, if somebody waits: one wake-up for all of them.
//
// The first error in 3 poisons: the host fails, then, under mu, failed is set and
// flight and queue are settled with it, and nothing is written ever after. In this
// order whoever sees the error finds the exit begun.
//
// Seal and drain are two events. seal, under mu, makes Append refuse, and refuses
// those who wait for room. drained closes when the actor finds the queue empty
// and sealed, or at the seal if the actor sleeps, which it then goes on to do. When
// closing closes, it closes the log and ends: every call into the log is the actor's.
//
// A forced exit can give up on the drain: under mu, gaveUp freezes durable and
// settles everything as unknown. The actor, when the log's call returns, finds it
// and goes straight to closing the log.
//
// The lock is held for a copy and for bookkeeping, nothing else; channels are
// closed after it is released. A Durability comes with its Host; the zero value
// can't be used.
type Durability struct {
	host     *Host
	log      Log      // nil: in memory
	batchLog BatchLog // log, if it is one
	header   int      // batchLog's
	limit    int      // of bytes
	first    Offset
	labels   context.Context
	label    label

	durable atomic.Uint64 // stored under mu
	givenUp atomic.Bool   // stored under mu
	quiet   atomic.Bool   // no observer any more: the exit is forced

	call  atomic.Pointer[string] // what the actor is doing in the log; nil: nothing
	since atomic.Int64           // when that began, or the last call ended: the host's age

	wake    chan struct{} // capacity 1; sent to by whoever clears parked
	drained chan struct{}
	closing chan struct{} // the exit lets the log be closed
	closed  chan struct{} // the log is closed

	mu         sync.Mutex // guards what follows
	accepted   Offset     // the next transaction's
	queue      batch      // accepted, not taken
	flight     batch      // the actor's
	bytes      int        // as Options.QueueBytes counts, until log.Append has returned
	room       roomQueue  // who waits for room
	future     chan struct{}
	sealed     bool
	failed     *LogError
	parked     bool          // the actor waits for wake
	over       bool          // the actor has taken its last flight
	generation int           // of the actor's goroutine: an older one stops
	released   int           // how many waited for the last flight
	syncTime   time.Duration // of a flight, smoothed
	usual      int           // about as many bytes as a batch has lately had
	spares     [2]*chunk     // to be used again; full ones are fullChunks'

	// The actor's own.
	txs     [][]byte      // scratch for log.Append
	takeoff time.Duration // when the flight's write began: the host's age
}

// batch is transactions that share their write, their sync and their wake-up.
//
// A flight's chunks are the actor's, which reads them without the lock; the rest
// is guarded by Durability.mu.
type batch struct {
	chunks  []*chunk      // none: the batch is empty
	end     Offset        // of a flight: one past the last
	waiters int           // how many have asked for settled
	settled chan struct{} // made for the first who waits; closed with the outcome
}

func (b *batch) watch() <-chan struct{} {
	if b.settled == nil {
		b.settled = make(chan struct{})
	}
	b.waiters++
	return b.settled
}

var (
	callNext   = "next"
	callAppend = "append"
	callSync   = "sync"
	callClose  = "close"
)

func (d *Durability) init(h *Host, log Log, limit int) {
	d.host, d.log, d.limit = h, log, limit
	if d.limit <= 0 {
		d.limit = DefaultQueueBytes
	}
	d.wake = make(chan struct{}, 1)
	d.drained = make(chan struct{})
	d.closing = make(chan struct{})
	d.closed = make(chan struct{})
	if log == nil {
		return
	}
	d.label = label{h.label, labelLog, "durability"}
	d.labels = d.label.on(context.Background())
	failed := d.ask()
	d.failed = failed
	d.accepted = d.first
	d.durable.Store(d.first)
	go d.main(0)
	if failed != nil {
		h.fail(failed)
	}
}

// ask asks the log where it stands, in a goroutine of its own since the log might
// call Goexit.
func (d *Durability) ask() (failed *LogError) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fail := func(err error, stack []byte) {
			d.first, failed = 0, newLogError(d.host.name, callNext, err, stack)
		}
		stack, err := protect(func() error {
			d.first = d.log.Next()
			if b, ok := d.log.(BatchLog); ok {
				header := b.BatchHeader()
				if header < 0 || header > maxBatchHeader {
					return fmt.Errorf("a BatchHeader of %d, the most is %d", header, maxBatchHeader)
				}
				d.batchLog, d.header = b, header
			}
			return nil
		}, fail)
		if err != nil {
			fail(err, stack)
		}
	}()
	<-done
	return failed
}

// Append accepts tx for the log and copies it; an empty one is legal. It blocks
// only while the queue is full (Options.QueueBytes), in the order of arrival. It
// does not wait until tx is durable: that is the Pending's Wait.
//
// Offsets are given in the order of acceptance. A state machine that applies
// transactions in the log's order holds a lock of its own across Append.
//
// If err is nil the transaction is accepted: it has its offset, and exactly one
// outcome will follow, whatever happens to ctx. Otherwise nothing was accepted:
// ctx's own error if it was done or ended while Append waited for room;
// ErrTooLarge over MaxTransactionBytes; ErrInvalid for a nil ctx; an error that is
// ErrClosed from the moment PhaseCloseDurability seals the channel; after the
// log's first failure that *LogError, which is ErrClosed as well.
func (d *Durability) Append(ctx context.Context, tx []byte) (Pending, error) {
	offset, _, err := d.accept(ctx, tx, false)
	if err != nil {
		return Pending{}, err
	}
	return Pending{d, offset}, nil
}

// Commit appends tx and waits until it is durable. Without an error it is, at the
// offset returned. An error that is ErrUnknown came after tx was accepted: the
// offset is valid, and the outcome unknown to this caller. Any other error is
// Append's: nothing was accepted.
func (d *Durability) Commit(ctx context.Context, tx []byte) (Offset, error) {
	offset, settled, err := d.accept(ctx, tx, true)
	if err != nil {
		return 0, err
	}
	return offset, d.await(ctx, offset, settled)
}

// Wait blocks until every offset up to and including through is durable; through
// may be of the future. A known outcome is told even if ctx is done. The error is
// ErrUnknown if through was accepted and its outcome can't be known: it wraps the
// *LogError, ErrForced, or ctx's error beside it. For an offset that has not been
// accepted it is ctx's own, or ErrClosed once it never will be.
func (d *Durability) Wait(ctx context.Context, through Offset) error {
	if ctx == nil {
		return d.host.invalid("Wait", "a nil context")
	}
	return d.await(ctx, through, nil)
}

// Accepted returns the offset that the next transaction gets: every one below it
// was accepted.
func (d *Durability) Accepted() Offset {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.accepted
}

// Durable returns the durable offset: every transaction below it is durable.
func (d *Durability) Durable() Offset { return d.durable.Load() }

// Pending is an accepted transaction whose outcome may not be known yet. It is a
// small value; copies stand for the same transaction.
type Pending struct {
	d      *Durability
	offset Offset
}

// Offset returns the transaction's position in the log.
func (p Pending) Offset() Offset { return p.offset }

// Wait blocks until the transaction is durable and returns nil, or an error that
// is ErrUnknown: it wraps the *LogError if the log failed, ErrForced if a forced
// exit ran out of time, or ctx's error if that ended first. A known outcome is
// told even if ctx is done. The zero Pending's error is ErrInvalid.
func (p Pending) Wait(ctx context.Context) error {
	if p.d == nil {
		return fmt.Errorf("lifecycle: Wait: %w: the zero Pending", ErrInvalid)
	}
	return p.d.Wait(ctx, p.offset)
}

// Done returns a channel that is closed when the outcome is known: then Wait does
// not block. The zero Pending's is closed.
func (p Pending) Done() <-chan struct{} {
	if p.d != nil {
		if settled, _ := p.d.outcome(p.offset); settled != nil {
			return settled
		}
	}
	return closedChannel
}

var closedChannel = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// accept is step 1. If watch is set it also returns the channel to wait on.
func (d *Durability) accept(ctx context.Context, tx []byte, watch bool) (Offset, <-chan struct{}, error) {
	if ctx == nil {
		return 0, nil, d.host.invalid("Append", "a nil context")
	}
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	if len(tx) > MaxTransactionBytes {
		return 0, nil, fmt.Errorf("lifecycle: host %q: Append: %w: %d bytes, the most is %d", d.host.name, ErrTooLarge, len(tx), MaxTransactionBytes)
	}
	d.host.at(seam.Append, "")
	d.mu.Lock()
	if d.sealed || d.failed != nil {
		d.mu.Unlock()
		d.host.at(seam.Refused, "Append")
		return 0, nil, d.refuse("Append")
	}
	if d.room.first != nil || !d.hasRoom(len(tx)) {
		d.mu.Unlock()
		return d.acceptLater(ctx, tx, watch)
	}
	offset, settled := d.admit(tx, watch)
	return offset, settled, nil
}

// admit ends accept and acceptLater: it is called with mu held and room for tx, and
// releases mu.
func (d *Durability) admit(tx []byte, watch bool) (Offset, <-chan struct{}) {
	var settled <-chan struct{}
	offset := d.push(tx)
	if watch && d.log != nil {
		settled = d.queue.watch()
	}
	wake := d.parked
	d.parked = false
	var future chan struct{}
	if d.log == nil {
		future, d.future = d.future, nil
	}
	d.mu.Unlock()
	if wake {
		d.wake <- struct{}{}
	}
	closeAll(future)
	return offset, settled
}

// acceptLater is accept where there was no room.
func (d *Durability) acceptLater(ctx context.Context, tx []byte, watch bool) (Offset, <-chan struct{}, error) {
	done := ctx.Done() // before tx is listed: it is user code, and may panic
	d.mu.Lock()
	switch {
	case d.sealed || d.failed != nil:
		d.mu.Unlock()
		d.host.at(seam.Refused, "Append")
		return 0, nil, d.refuse("Append")
	case d.room.first == nil && d.hasRoom(len(tx)):
		offset, settled := d.admit(tx, watch)
		return offset, settled, nil
	}
	w := d.room.add(tx, watch)
	d.mu.Unlock()
	return d.awaitRoom(ctx, done, w)
}

// endOf is the error of a context whose Done is closed.
func endOf(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return context.Canceled // a context that does not know itself
}

// refuse makes the error of an Append, or a Wait, that comes too late.
func (d *Durability) refuse(what string) error {
	d.mu.Lock()
	failed := d.failed
	d.mu.Unlock()
	if failed != nil {
		return failed
	}
	return d.host.refuse(what, ErrClosed)
}

// hasRoom is called with mu held.
func (d *Durability) hasRoom(length int) bool {
	return d.bytes == 0 || d.bytes <= d.limit-length-queueOverhead
}

// push puts tx into the queue and gives it its offset. It is called with mu held.
func (d *Durability) push(tx []byte) Offset {
	offset := d.accepted
	d.accepted = offset + 1
	if d.log == nil {
		d.durable.Store(offset + 1)
		return offset
	}
	q := &d.queue
	var c *chunk
	if n := len(q.chunks); n > 0 {
		c = q.chunks[n-1]
	}
	if c == nil || !c.takes(len(tx)) {
		c = d.newChunk(len(tx))
		q.chunks = append(q.chunks, c)
	}
	c.put(tx)
	d.bytes += len(tx) + queueOverhead
	return offset
}

// outcome returns what is known of an offset. If nothing is, settled is not nil,
// and closes when that changes.
func (d *Durability) outcome(offset Offset) (settled <-chan struct{}, err error) {
	if offset < d.durable.Load() {
		return nil, nil
	}
	d.mu.Lock()
	failed, over := d.failed, d.sealed
	switch {
	case offset < d.durable.Load():
		d.mu.Unlock()
		return nil, nil
	case offset < d.accepted:
		switch {
		case d.givenUp.Load():
			err = &unknown{d.host.name, offset, ErrForced}
		case failed != nil:
			err = &unknown{d.host.name, offset, failed}
		case offset < d.flight.end:
			settled = d.flight.watch()
		default:
			settled = d.queue.watch()
		}
		d.mu.Unlock()
		return settled, err
	case failed == nil && !over:
		if d.future == nil {
			d.future = make(chan struct{})
		}
		settled = d.future
		d.mu.Unlock()
		return settled, nil
	}
	d.mu.Unlock()
	return nil, d.refuse(fmt.Sprintf("Wait for %d, which was never accepted,", offset))
}

// await waits for the outcome of an offset. settled is a channel to begin with,
// or nil.
func (d *Durability) await(ctx context.Context, offset Offset, settled <-chan struct{}) (err error) {
	for {
		if settled == nil {
			if settled, err = d.outcome(offset); settled == nil {
				return err
			}
		}
		d.host.at(seam.Wait, "")
		done := ctx.Done()
		if done == nil { // a plain receive takes less than a select
			<-settled
			settled = nil
			continue
		}
		select {
		case <-settled:
			settled = nil
		case <-done:
			if settled, err = d.outcome(offset); settled == nil {
				return err
			}
			if offset < d.Accepted() {
				return &unknown{d.host.name, offset, endOf(ctx)}
			}
			return endOf(ctx)
		}
	}
}

// main is the actor's goroutine. A Goexit in the log or an observer unwinds it
// (after the log's call has been settled as failed): it goes on in a new one.
func (d *Durability) main(generation int) {
	pprof.SetGoroutineLabels(d.labels)
	ended := false
	defer func() {
		if !ended {
			go d.main(generation)
		}
	}()
	for {
		took, superseded := d.take(generation)
		if superseded {
			ended = true
			return
		}
		if !took {
			break
		}
		d.fly()
	}
	<-d.closing
	ended = true // whatever Close does
	d.close()
}

// take makes the queue the actor's flight. It waits until there is something in
// it, and returns false when there never will be again, with drained closed.
func (d *Durability) take(generation int) (took, superseded bool) {
	d.host.at(seam.Take, "")
	d.mu.Lock()
	released := d.released
	d.released = 0
	if released > 0 && d.generation == generation {
		patience := d.syncTime / 4
		d.mu.Unlock()
		d.gather(released, patience)
		d.mu.Lock()
	}
	for {
		if d.generation != generation {
			d.mu.Unlock()
			return false, true
		}
		if len(d.queue.chunks) > 0 && !d.givenUp.Load() {
			break
		}
		if d.sealed {
			drained := d.over // seal found nothing to drain
			d.over = true
			d.mu.Unlock()
			if !drained {
				close(d.drained)
			}
			return false, false
		}
		d.parked = true
		d.mu.Unlock()
		d.host.at(seam.Park, "")
		<-d.wake
		d.host.at(seam.Take, "")
		d.mu.Lock()
	}
	d.flight, d.queue = d.queue, batch{chunks: d.flight.chunks[:0]}
	d.flight.end = d.accepted
	d.mu.Unlock()
	return true, false
}

// fly writes and syncs the flight, and lands it.
func (d *Durability) fly() {
	d.takeoff = d.host.age()
	d.host.at(seam.Write, "")
	err := d.enter(&callAppend, d.append)
	if err == nil && !d.givenUp.Load() {
		d.host.at(seam.Sync, "")
		err = d.enter(&callSync, d.log.Sync)
	}
	d.land(err)
}

// enter calls into the log. If the log calls Goexit, it lands the flight and does
// not return.
func (d *Durability) enter(name *string, f func() error) *LogError {
	d.since.Store(int64(d.host.age()))
	d.call.Store(name)
	stack, err := protect(f, func(err error, stack []byte) {
		failed := newLogError(d.host.name, *name, err, stack)
		d.left()
		d.land(failed)
	})
	var failed *LogError
	if err != nil {
		failed = newLogError(d.host.name, *name, err, stack) // calls the error's methods
	}
	d.left()
	return failed
}

// left says that the actor has left the log's call.
func (d *Durability) left() {
	d.call.Store(nil)
	d.since.Store(int64(d.host.age()))
}

// land settles the flight and tells the observer.
func (d *Durability) land(err *LogError) {
	took := d.host.age() - d.takeoff
	txs, bytes := 0, 0
	for _, c := range d.flight.chunks {
		txs += c.txs
		bytes += c.payload(d.header)
	}
	event := SyncEvent{Host: d.host.name, Txs: txs, Bytes: bytes, Duration: took}
	if err == nil {
		d.host.at(seam.Settle, "")
		d.settle(took, bytes+txs*lengthBytes)
	} else {
		event.Err = err
		d.host.at(seam.Poison, "")
		d.poison(err)
	}
	if f := d.host.observer.Synced; f != nil {
		event.Durable = d.Durable()
		d.host.callouts.here(inSynced, PhaseCloseDurability, d.labels, func() {
			if !d.quiet.Load() {
				f(event)
			}
		})
	}
}

// append hands the flight to the log.
func (d *Durability) append() error {
	if d.batchLog != nil {
		counted := 0
		for i, c := range d.flight.chunks {
			if d.givenUp.Load() {
				break
			}
			if err := d.batchLog.AppendBatch(c.bytes, c.txs); err != nil {
				return err
			}
			counted += c.counted(d.header)
			if counted >= d.limit/roomShare || i == len(d.flight.chunks)-1 {
				d.written(counted)
				counted = 0
			}
		}
		return nil
	}
	d.txs = d.txs[:0]
	counted := 0
	for _, c := range d.flight.chunks {
		d.txs = c.appendTo(d.txs, d.header)
		counted += c.counted(d.header)
	}
	err := d.log.Append(d.txs)
	clear(d.txs)
	if err == nil {
		d.written(counted)
	}
	return err
}

// written takes bytes off the queue's count and lets in who waits for room, in
// the order in which they came.
func (d *Durability) written(bytes int) {
	var admitted []*roomWaiter
	d.host.at(seam.Written, "")
	d.mu.Lock()
	d.bytes -= bytes
	if d.givenUp.Load() {
		d.bytes = 0
	}
	for w := d.room.first; w != nil && d.hasRoom(len(w.tx)); w = d.room.first {
		d.room.remove(w)
		w.offset = d.push(w.tx)
		if w.watch {
			w.settled = d.queue.watch()
		}
		admitted = append(admitted, w)
	}
	d.mu.Unlock()
	wakeAll(admitted)
}

// settle publishes that the flight, of so many bytes in its chunks, is durable.
func (d *Durability) settle(took time.Duration, bytes int) {
	d.mu.Lock()
	f := &d.flight
	if d.givenUp.Load() { // settled already
		*f = batch{}
		d.mu.Unlock()
		return
	}
	d.durable.Store(f.end)
	settled, future := f.settled, d.future
	d.released = f.waiters
	d.syncTime += (took - d.syncTime) / 8
	d.usual = max(bytes, d.usual-d.usual/16)
	d.recycle(f.chunks)
	*f = batch{chunks: f.chunks[:0]}
	d.future = nil
	d.mu.Unlock()
	closeAll(settled, future)
}

// poison ends the actor's writing for good.
func (d *Durability) poison(err *LogError) {
	d.host.fail(err)
	d.mu.Lock()
	if d.givenUp.Load() { // settled already
		d.flight = batch{}
		d.mu.Unlock()
		return
	}
	d.failed = err
	refused, settled := d.settleAll()
	d.flight = batch{}
	d.mu.Unlock()
	wakeAll(refused)
	closeAll(settled...)
}

// settleAll drops the queue and returns whom to wake, when failed or givenUp has
// become everybody's outcome. The flight's transactions are left alone: the actor
// may be reading them. It is called with mu held.
func (d *Durability) settleAll() (refused []*roomWaiter, settled []chan struct{}) {
	settled = []chan struct{}{d.flight.settled, d.queue.settled, d.future}
	d.flight.settled, d.flight.end, d.flight.waiters = nil, 0, 0
	d.queue, d.future = batch{}, nil
	d.bytes = 0
	return d.room.refuse(), settled
}

// seal makes Append refuse from now on. It returns at once; drained closes when
// all that was accepted has its outcome.
func (d *Durability) seal() {
	d.mu.Lock()
	d.sealed = true
	refused, future := d.room.refuse(), d.future
	d.future = nil
	drained := d.log == nil || d.parked // then the actor sleeps on until the log is to be closed
	d.over = drained
	d.mu.Unlock()
	wakeAll(refused)
	closeAll(future)
	if drained {
		close(d.drained)
	}
}

// isBusy reports whether the log is what its phase p waits for: it is in a call, or
// has something to write.
func (d *Durability) isBusy(p Phase) bool {
	if d.call.Load() != nil {
		return true
	}
	if p == PhaseCloseLog {
		return !isClosed(d.closed)
	}
	return d.queuedBytes() > 0
}

// checkDrained says what is wrong if the drain has ended and something that was
// accepted is not durable, though no error of the log explains it.
func (d *Durability) checkDrained() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	accepted, durable := d.accepted, d.durable.Load()
	if d.failed != nil || d.givenUp.Load() || accepted == durable {
		return nil
	}
	return fmt.Errorf("lifecycle: host %q: %v: %d accepted, but %d durable", d.host.name, PhaseCloseDurability, accepted, durable)
}

// giveUp settles everything as unknown, for good. It does nothing and returns
// false if there is nothing left to write and the log is not busy.
func (d *Durability) giveUp() bool {
	d.mu.Lock()
	if len(d.queue.chunks) == 0 && len(d.flight.chunks) == 0 && d.call.Load() == nil {
		d.mu.Unlock()
		return false
	}
	d.givenUp.Store(true)
	refused, settled := d.settleAll()
	d.mu.Unlock()
	wakeAll(refused)
	closeAll(settled...)
	return true
}

// takeOver starts a new goroutine for the actor in place of one that hangs in an
// observer. It does nothing and returns false if that one has a flight, or has
// taken its last: then it is not in an observer, and will be in none, for quiet
// is set. The old one, when the observer returns, finds itself superseded and
// ends.
func (d *Durability) takeOver() bool {
	d.mu.Lock()
	over := d.over || len(d.flight.chunks) > 0
	if !over {
		d.generation++
	}
	generation := d.generation
	d.mu.Unlock()
	if !over {
		go d.main(generation)
	}
	return !over
}

// closeLog lets the actor close the log.
func (d *Durability) closeLog() {
	close(d.closing)
	if d.log == nil {
		close(d.closed)
		return
	}
	d.mu.Lock()
	wake := d.parked
	d.parked = false
	d.mu.Unlock()
	if wake {
		d.wake <- struct{}{}
	}
}

func (d *Durability) close() {
	defer close(d.closed)
	d.host.at(seam.CloseLog, "")
	d.since.Store(int64(d.host.age()))
	d.call.Store(&callClose)
	defer d.call.Store(nil)
	fail := func(err error, stack []byte) {
		failed := newLogError(d.host.name, callClose, err, stack)
		d.mu.Lock()
		if d.failed == nil && !d.givenUp.Load() { // or else the outcome is known
			d.failed = failed
		}
		d.mu.Unlock()
		d.host.fail(failed)
	}
	if stack, err := protect(d.log.Close, fail); err != nil {
		fail(err, stack)
	}
}

// straggler is the log, by what it is doing.
func (d *Durability) straggler() found {
	f := found{Straggler: Straggler{Kind: "log", Name: "drain", Count: 1}, label: d.label}
	if name := d.call.Load(); name != nil {
		f.Name = *name
	}
	f.Age = d.host.age() - time.Duration(d.since.Load())
	return f
}

func (d *Durability) queuedBytes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bytes
}

// gather waits a moment before the next batch is cut, if the last one released
// waiters: they are about to come back, and who comes just too late waits for two
// syncs instead of one. It yields until as many wait as were released, for at
// most a quarter of what a sync takes. (Yields are counted too: where the clock is
// a test's, it stands still.)
func (d *Durability) gather(released int, patience time.Duration) {
	if patience == 0 { // the log takes no time
		return
	}
	deadline := d.host.age() + patience
	for range maxYields {
		d.mu.Lock()
		enough := d.queue.waiters >= released || d.sealed
		d.mu.Unlock()
		if enough || d.host.age() > deadline {
			return
		}
		runtime.Gosched()
	}
}

const maxYields = 1000

// Who waits for room is let in once the log has taken a 16th of the limit, or the
// whole flight: to wake a producer for each chunk costs more than the chunk.
const roomShare = 16

// chunk is a piece of the queue: header bytes for the log, then records, each a
// little-endian uint32, the length, and so many bytes.
type chunk struct {
	bytes []byte
	txs   int
}

const (
	lengthBytes   = 4
	chunkMinBytes = 1 << 10
	chunkMaxBytes = 256 << 10
	chunkSlack    = 16 // capacity that is left for the log behind the records
)

// fullChunks are those of chunkMaxBytes. All hosts share them, and the collector
// takes back what nobody needs.
var fullChunks = sync.Pool{New: func() any { return &chunk{bytes: make([]byte, 0, chunkMaxBytes)} }}

// newChunk makes the queue's next, which takes a transaction of that length. A
// batch of the usual size fits into its first, and each further one is as large as
// those before it together. It is called with mu held.
func (d *Durability) newChunk(length int) *chunk {
	least := d.header + lengthBytes + length + chunkSlack
	queued := 0
	for i := len(d.queue.chunks) - 1; i >= 0 && queued < chunkMaxBytes; i-- {
		queued += len(d.queue.chunks[i].bytes)
	}
	size := chunkMinBytes
	for size < chunkMaxBytes && size < max(least, d.header+d.usual, queued) {
		size *= 2
	}
	var c *chunk
	switch {
	case least > chunkMaxBytes:
		c = &chunk{bytes: make([]byte, 0, least)}
	case size == chunkMaxBytes:
		c = fullChunks.Get().(*chunk)
	default:
		for i, spare := range d.spares {
			if spare != nil && cap(spare.bytes) >= size {
				c, d.spares[i] = spare, nil
				break
			}
		}
		if c == nil {
			c = &chunk{bytes: make([]byte, 0, size)}
		}
	}
	c.bytes, c.txs = c.bytes[:d.header], 0
	return c
}

// recycle takes chunks that nobody reads any more. It is called with mu held.
func (d *Durability) recycle(chunks []*chunk) {
	for i, c := range chunks {
		chunks[i] = nil
		switch size := cap(c.bytes); {
		case size > chunkMaxBytes:
		case size == chunkMaxBytes:
			fullChunks.Put(c)
		case d.spares[0] == nil || cap(d.spares[0].bytes) < size:
			d.spares[0] = c
		default:
			d.spares[1] = c
		}
	}
}

func (c *chunk) takes(length int) bool {
	return len(c.bytes)+lengthBytes+length+chunkSlack <= cap(c.bytes)
}

// put appends a transaction that the chunk takes.
func (c *chunk) put(tx []byte) {
	n := len(c.bytes)
	record := c.bytes[n : n+lengthBytes+len(tx)]
	binary.LittleEndian.PutUint32(record, uint32(len(tx)))
	copy(record[lengthBytes:], tx)
	c.bytes = c.bytes[:n+len(record)]
	c.txs++
}

// payload is the length of the chunk's transactions.
func (c *chunk) payload(header int) int { return len(c.bytes) - header - c.txs*lengthBytes }

// counted is what Options.QueueBytes counts.
func (c *chunk) counted(header int) int { return c.payload(header) + c.txs*queueOverhead }

// appendTo appends the chunk's transactions to txs.
func (c *chunk) appendTo(txs [][]byte, header int) [][]byte {
	for rest := c.bytes[header:]; len(rest) > 0; {
		n := lengthBytes + int(binary.LittleEndian.Uint32(rest))
		txs = append(txs, rest[lengthBytes:n:n])
		rest = rest[n:]
	}
	return txs
}

// roomWaiter is an Append that waits for room. Whoever takes it from the list,
// under Durability.mu, decides what becomes of it: the actor admits or refuses
// it, or its own caller takes it back.
type roomWaiter struct {
	tx         []byte
	watch      bool
	offset     Offset
	settled    <-chan struct{}
	refused    bool
	listed     bool
	prev, next *roomWaiter
	ready      chan struct{} // capacity 1; sent to once it is decided, but to no one who took it back
}

// awaitRoom waits until w is decided or ctx ends.
func (d *Durability) awaitRoom(ctx context.Context, done <-chan struct{}, w *roomWaiter) (Offset, <-chan struct{}, error) {
	d.host.at(seam.Room, "")
	select {
	case <-w.ready:
	case <-done:
		d.host.at(seam.TakeBack, "")
		d.mu.Lock()
		takenBack := w.listed
		if takenBack {
			d.room.remove(w)
			d.room.release(w)
		}
		d.mu.Unlock()
		if takenBack {
			return 0, nil, endOf(ctx)
		}
		<-w.ready
	}
	offset, settled, refused := w.offset, w.settled, w.refused
	d.mu.Lock()
	d.room.release(w)
	d.mu.Unlock()
	if refused {
		d.host.at(seam.Refused, "Append")
		return 0, nil, d.refuse("Append")
	}
	return offset, settled, nil
}

// roomQueue is who waits for room, in the order of arrival. Durability.mu guards
// it.
type roomQueue struct {
	first, last *roomWaiter
	free        *roomWaiter // to be used again, by next
	frees       int
}

const maxFreeWaiters = 64

func (q *roomQueue) add(tx []byte, watch bool) *roomWaiter {
	w := q.free
	if w == nil {
		w = &roomWaiter{ready: make(chan struct{}, 1)}
	} else {
		q.free, w.next = w.next, nil
		q.frees--
	}
	w.tx, w.watch, w.prev, w.listed = tx, watch, q.last, true
	if q.last == nil {
		q.first = w
	} else {
		q.last.next = w
	}
	q.last = w
	return w
}

func (q *roomQueue) release(w *roomWaiter) {
	if q.frees < maxFreeWaiters {
		*w = roomWaiter{ready: w.ready, next: q.free}
		q.free = w
		q.frees++
	}
}

func (q *roomQueue) remove(w *roomWaiter) {
	if w.prev == nil {
		q.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		q.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next, w.listed = nil, nil, false
}

// refuse empties the queue and returns who was in it.
func (q *roomQueue) refuse() []*roomWaiter {
	var all []*roomWaiter
	for w := q.first; w != nil; w = q.first {
		q.remove(w)
		w.refused = true
		all = append(all, w)
	}
	return all
}

func wakeAll(waiters []*roomWaiter) {
	for _, w := range waiters {
		w.ready <- struct{}{}
	}
}

func closeAll(channels ...chan struct{}) {
	for _, c := range channels {
		if c != nil {
			close(c)
		}
	}
}
