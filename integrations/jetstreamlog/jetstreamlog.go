package jetstreamlog

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/seed080d9131/lifecycle"
)

// What Options leave out.
const (
	DefaultReplicas = 3
	DefaultTimeout  = 30 * time.Second
	DefaultMaxBatch = 1000
)

// What the package's functions refuse with; errors.Is finds them in what is returned.
var (
	// ErrFenced: another Log has appended to the stream since this one was opened. What
	// this one would write next can never be written.
	ErrFenced = errors.New("fenced by another writer")

	// ErrTimeout: the quorum did not answer within Options.Timeout. Of what was being
	// written, all, a part from the beginning on, or nothing may be in the stream, or
	// may yet come into it.
	ErrTimeout = errors.New("no acknowledgement in time")

	// ErrTruncated: the offset lies before what the stream holds.
	ErrTruncated = errors.New("the offset was truncated")

	// ErrClosed: the Log was closed.
	ErrClosed = errors.New("the log is closed")

	// ErrInvalid: an argument, or the stream's configuration, is none that the log can
	// work with. The text says what is wrong.
	ErrInvalid = errors.New("invalid")

	// ErrForeign: the stream holds something that no Log wrote, or lacks something that
	// one did.
	ErrForeign = errors.New("the stream is not as a log wrote it")
)

var _ lifecycle.BatchLog = (*Log)(nil)

// Options of a Log. The zero value is good for a cluster of three servers or more.
type Options struct {
	// Replicas is on how many servers the stream lies: 1, 3 or 5; 0 is 3. A stream that
	// exists may have more; Open refuses one that has fewer.
	Replicas int

	// Timeout is how long Append, Sync, Close, TruncateBefore and each step of Read go
	// on trying while nobody answers. It should outlast an election, which takes several
	// seconds. 0 is 30 s.
	Timeout time.Duration

	// MaxBatch is how many transactions become one atomic batch at most. The servers have
	// a limit of their own (jetstream.limits.batch.max_msgs), 1000 unless set. 0 is 1000.
	MaxBatch int

	// Fence, if it is not nil, is a transaction that Open itself appends. It is read back
	// as any other, so its content is the state machine's to choose; empty is legal; 63
	// KiB is the most, so that it is one message. Once it is acknowledged, no Log that was
	// opened before can append any more, and what this one reads is the whole log. Without
	// it, that holds from this Log's first Sync on.
	Fence []byte
}

func (o *Options) setDefaults() error {
	switch {
	case o.Replicas < 0:
		return fmt.Errorf("%w: Replicas is %d", ErrInvalid, o.Replicas)
	case o.Timeout < 0:
		return fmt.Errorf("%w: Timeout is %v", ErrInvalid, o.Timeout)
	case o.MaxBatch < 0:
		return fmt.Errorf("%w: MaxBatch is %d", ErrInvalid, o.MaxBatch)
	case len(o.Fence) > maxFenceBytes:
		return fmt.Errorf("%w: Fence has %d bytes, the most is %d", ErrInvalid, len(o.Fence), maxFenceBytes)
	}
	if o.Replicas == 0 {
		o.Replicas = DefaultReplicas
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.MaxBatch == 0 {
		o.MaxBatch = DefaultMaxBatch
	}
	return nil
}

// A batch is published when it has so many bytes, or Options.MaxBatch transactions, or
// at Sync. It stays below what a connection keeps while it reconnects (8 MiB unless set
// otherwise), so that a lost connection costs a try and not the batch.
const maxBatchBytes = 4 << 20

// A fence is never in parts: it may come in behind what others have written meanwhile, and
// the floors of that would not know of parts that were there before.
const maxFenceBytes = minPayload - headerBytes

// The servers take names of 255 bytes, and close a connection that asks for a longer one
// than they can read.
const maxNameBytes = 255 - len(partsSuffix)

// Log is a log of transactions in a replicated stream. See the package documentation
// for what it promises.
//
// Append, AppendBatch, Sync and Close are the durability actor's, one after another;
// what they alone use is not locked. Any goroutine may call the others at any time.
//
// What is appended is copied into the batch. A full batch, or Sync, publishes it and
// waits for its acknowledgement before anything follows: so there is one place only at
// which another writer can come in, and it is noticed there.
type Log struct {
	js      jetstream.JetStream
	name    string
	options Options
	session string
	txs     *store // the transactions' stream
	parts   *store // where the parts of large ones lie

	// The actor's.
	next   uint64   // offset of the next transaction
	batch  []record // appended, not acknowledged; the last ends at next
	buffer []byte   // their bytes

	failed atomic.Pointer[error] // the first failure; nothing is written after it
	closed atomic.Bool

	mu      sync.Mutex // guards what follows; never held across a call
	durable uint64     // every offset below is acknowledged
	floor   uint64     // no transaction from durable on has a part with a lower sequence
	edge    uint64     // the floor of the record that comes next
}

// record is what one message of the stream carries.
type record struct {
	start, end int    // in buffer
	kind       string // kindWhole or kindParts
	floor      uint64
}

// Open opens the log in a stream, which it makes if it does not exist, together with a
// second one, named STREAM-parts, for the parts of transactions that are too long for one
// message. Of a stream that exists it checks the configuration, and changes nothing.
//
// The connection is the caller's, before and after. One made with
// nats.MaxReconnects(-1) survives any outage; with a nats.FlusherTimeout, a
// call is held up by a server that takes no bytes at most so much longer than
// Options.Timeout.
//
// Open blocks until the stream's leader has answered, at most until ctx ends or
// Options.Timeout is over, whichever is first. Errors: ErrInvalid for an argument or a
// configuration that won't do, ErrForeign if the stream's last message is none of a log's,
// ErrTimeout, or what the servers said.
func Open(ctx context.Context, js jetstream.JetStream, stream string, options Options) (*Log, error) {
	l, err := open(ctx, js, stream, options)
	if err != nil {
		return nil, fmt.Errorf("jetstreamlog: open stream %q: %w", stream, err)
	}
	return l, nil
}

func open(ctx context.Context, js jetstream.JetStream, stream string, options Options) (*Log, error) {
	if js == nil {
		return nil, fmt.Errorf("%w: no JetStream", ErrInvalid)
	}
	if stream == "" || strings.ContainsAny(stream, " \t\r\n.*>/\\") {
		return nil, fmt.Errorf("%w: a stream's name can't be empty or have blanks, dots, stars, angles or slashes", ErrInvalid)
	}
	if len(stream) > maxNameBytes {
		return nil, fmt.Errorf("%w: the stream's name has %d bytes, the most is %d", ErrInvalid, len(stream), maxNameBytes)
	}
	if err := options.setDefaults(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()
	l := &Log{js: js, name: stream, options: options, session: rand.Text()}
	var err error
	if l.txs, err = openStore(ctx, js, stream, "lifecycle."+stream+".tx", options.Replicas); err != nil {
		return nil, err
	}
	if l.parts, err = openStore(ctx, js, stream+partsSuffix, "lifecycle."+stream+".part", options.Replicas); err != nil {
		return nil, err
	}
	if most := js.Conn().MaxPayload(); most < minPayload { // known once a server has answered
		return nil, fmt.Errorf("%w: the server takes messages of %d bytes, and the log needs %d (max_payload)", ErrInvalid, most, minPayload)
	}
	if err := l.locate(ctx); err != nil {
		return nil, err
	}
	if options.Fence != nil {
		if err := l.fence(ctx); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// locate finds the stream's end. The parts' end is asked for after it: so what this Log
// writes from here on has its parts behind that. Another Log may have published parts
// already of what it will write from here on, but the last message's floor knows of them.
func (l *Log) locate(ctx context.Context) error {
	state, err := l.txs.state(ctx)
	if err != nil {
		return err
	}
	var last header
	if state.Msgs > 0 && state.LastSeq >= state.FirstSeq {
		err := try(ctx, func(ctx context.Context) (bool, error) {
			m, err := l.txs.get(ctx, state.LastSeq)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return false, fmt.Errorf("%w: its last message, %d, is not there", ErrForeign, state.LastSeq)
			}
			if err != nil {
				return false, err
			}
			last, err = parseHeader(m.Header)
			return err != nil, err
		})
		if err != nil {
			return err
		}
	}
	parts, err := l.parts.state(ctx)
	if err != nil {
		return err
	}
	l.next = state.LastSeq
	l.mu.Lock()
	l.durable, l.floor, l.edge = state.LastSeq, last.floor, parts.LastSeq+1
	l.mu.Unlock()
	return nil
}

// fence appends Options.Fence, behind whatever others still append meanwhile. One that
// is busy moves the end on all the time. But the leader's refusal tells the end with what
// is not committed yet, and behind that the fence is taken at once.
func (l *Log) fence(ctx context.Context) error {
	if err := l.add(ctx, l.options.Fence); err != nil {
		return err
	}
	for {
		err := l.publish(ctx)
		if !errors.Is(err, ErrFenced) || errors.Is(err, ErrForeign) {
			return err
		}
		last, told := lastSequence(err)
		if !told {
			state, err := l.txs.state(ctx)
			if err != nil {
				return err
			}
			last = state.LastSeq
		}
		l.next = last + 1
	}
}

// First returns the offset of the oldest transaction that the stream holds, as of the
// last call that asked the servers (Open, or TruncateBefore); it is Next if there was
// none.
func (l *Log) First() uint64 { return l.txs.first() }

// Next returns the offset that the next transaction gets. It is for the goroutine that
// appends.
func (l *Log) Next() uint64 { return l.next }

// Append takes txs and keeps copies. It publishes them, and waits for the quorum, only
// when a batch is full or a transaction needs parts; the rest is for Sync. It blocks no
// longer than Sync does, for each batch and each part that it publishes, and has the same
// errors. A transaction over lifecycle.MaxTransactionBytes is refused with
// ErrInvalid before any of txs is taken, and the log stays usable.
func (l *Log) Append(txs [][]byte) error {
	return l.write("append", func() error {
		for i, tx := range txs {
			if len(tx) > lifecycle.MaxTransactionBytes {
				return &refusal{fmt.Errorf("%w: transaction %d of %d has %d bytes, the most is %d", ErrInvalid, i, len(txs), len(tx), lifecycle.MaxTransactionBytes)}
			}
		}
		for _, tx := range txs {
			if err := l.take(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// BatchHeader returns how many bytes AppendBatch wants free in front of a batch: none.
func (l *Log) BatchHeader() int { return 0 }

// AppendBatch does what Append does, for a caller that has the transactions in one
// buffer: n records, each a length in four bytes, little-endian, and that many bytes. A
// batch that is not so made is refused with ErrInvalid, and the log stays usable.
func (l *Log) AppendBatch(batch []byte, n int) error {
	return l.write("append", func() error {
		if err := checkBatch(batch, n); err != nil {
			return &refusal{err}
		}
		for len(batch) > 0 {
			length := int(binary.LittleEndian.Uint32(batch))
			if err := l.take(batch[4 : 4+length]); err != nil {
				return err
			}
			batch = batch[4+length:]
		}
		return nil
	})
}

func checkBatch(batch []byte, n int) error {
	rest, found := batch, 0
	for ; len(rest) > 0; found++ {
		if len(rest) < 4 {
			return fmt.Errorf("%w: %d bytes follow the last record of a batch", ErrInvalid, len(rest))
		}
		length := binary.LittleEndian.Uint32(rest)
		if length > lifecycle.MaxTransactionBytes || int(length) > len(rest)-4 {
			return fmt.Errorf("%w: record %d of a batch has %d bytes, and %d follow", ErrInvalid, found, length, len(rest)-4)
		}
		rest = rest[4+length:]
	}
	if found != n {
		return fmt.Errorf("%w: a batch of %d records, said to be %d", ErrInvalid, found, n)
	}
	return nil
}

// Sync publishes what was appended and waits until a quorum of the stream's servers has
// acknowledged all of it. It rides out an election or a lost connection, publishing
// again where that can't write anything twice, for Options.Timeout at most.
//
// Errors: ErrFenced if another Log has appended; ErrTimeout; or what the servers refused
// with. After an error everything is refused with one that wraps it, until the log is
// opened again; whether what was being written is in the stream is then to be read there.
func (l *Log) Sync() error {
	return l.write("sync", func() error {
		if len(l.batch) == 0 {
			return nil
		}
		ctx, cancel := l.limited()
		defer cancel()
		return l.publish(ctx)
	})
}

// Close publishes what was appended and not yet synced, as Sync does, unless the log has
// failed, and gives up what the Log holds. The connection stays open. It returns what
// Sync would; a second Close returns ErrClosed.
func (l *Log) Close() error {
	var err error
	if l.failed.Load() == nil {
		err = l.Sync()
	}
	if l.closed.Swap(true) {
		return fmt.Errorf("jetstreamlog: stream %q: close: %w", l.name, ErrClosed)
	}
	l.batch, l.buffer = nil, nil
	return err
}

// refusal is an error after which the log goes on.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// write runs one of the actor's calls: it refuses after the first failure, and keeps it.
func (l *Log) write(what string, f func() error) error {
	err := l.usable()
	if err == nil {
		err = f()
		var refused *refusal
		if err != nil && !errors.As(err, &refused) {
			first := err
			l.failed.Store(&first)
		}
	}
	if err != nil {
		return fmt.Errorf("jetstreamlog: stream %q: %s: %w", l.name, what, err)
	}
	return nil
}

func (l *Log) usable() error {
	if l.closed.Load() {
		return ErrClosed
	}
	if failed := l.failed.Load(); failed != nil {
		return fmt.Errorf("the log has failed: %w", *failed)
	}
	return nil
}

// limited returns the context of one batch.
func (l *Log) limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), l.options.Timeout)
}

// take adds one transaction, after it has published the batch if that is full.
func (l *Log) take(tx []byte) error {
	size := 0 // in the buffer; of one in parts that's little
	if len(tx) <= l.inline() {
		size = len(tx)
	}
	if len(l.batch) == l.options.MaxBatch || len(l.batch) > 0 && len(l.buffer)+size > maxBatchBytes {
		ctx, cancel := l.limited()
		defer cancel()
		if err := l.publish(ctx); err != nil {
			return err
		}
	}
	return l.add(context.Background(), tx)
}

// add puts one transaction into the batch, in parts if it is too long for a message.
func (l *Log) add(ctx context.Context, tx []byte) error {
	l.mu.Lock()
	r := record{start: len(l.buffer), kind: kindWhole, floor: l.edge}
	l.mu.Unlock()
	if len(tx) > l.inline() {
		reference, end, err := l.split(ctx, tx)
		if err != nil {
			return err
		}
		r.kind = kindParts
		l.mu.Lock()
		l.edge = end
		l.mu.Unlock()
		tx = reference
	}
	l.buffer = append(l.buffer, tx...)
	r.end = len(l.buffer)
	l.batch = append(l.batch, r)
	l.next++
	return nil
}

// inline is the length of the longest transaction that becomes one message. (The
// connection may have found a server since that takes too little for the log: then it
// says so when the message is published.)
func (l *Log) inline() int {
	return int(min(max(l.js.Conn().MaxPayload(), minPayload)-headerBytes, maxMessageBytes))
}

// acknowledged moves durable to the batch's end, and empties the batch.
func (l *Log) acknowledged() {
	l.mu.Lock()
	l.durable = l.next
	l.floor = l.edge
	l.mu.Unlock()
	l.batch = l.batch[:0]
	if cap(l.buffer) > 2*maxBatchBytes {
		l.buffer = nil
	}
	l.buffer = l.buffer[:0]
}

// TruncateBefore removes the transactions before an offset, for good, for every Log on
// the stream: whoever opens it next must be able to do without them. Offsets stay what
// they are; one that is Next leaves the stream empty.
//
// Any goroutine may call it. It blocks for the servers, at most until ctx ends or
// Options.Timeout is over. Errors: ErrInvalid for an offset that is not durable yet; the
// log's own failure, such as ErrFenced, if it has one; ErrClosed. After any other, the
// transactions may be gone or not, and the log stays usable.
func (l *Log) TruncateBefore(ctx context.Context, offset uint64) error {
	if err := l.truncate(ctx, offset); err != nil {
		return fmt.Errorf("jetstreamlog: stream %q: truncate before %d: %w", l.name, offset, err)
	}
	return nil
}

func (l *Log) truncate(ctx context.Context, offset uint64) error {
	if err := l.usable(); err != nil {
		return err
	}
	l.mu.Lock()
	durable, floor := l.durable, l.floor
	l.mu.Unlock()
	if offset > durable {
		return fmt.Errorf("%w: only what is below %d is durable", ErrInvalid, durable)
	}
	ctx, cancel := context.WithTimeout(ctx, l.options.Timeout)
	defer cancel()
	state, err := l.txs.state(ctx)
	if err != nil {
		return err
	}
	if offset <= firstOffset(state) {
		return nil
	}
	if offset < durable {
		header, err := l.headerAt(ctx, offset)
		if errors.Is(err, ErrTruncated) { // by another call since
			return nil
		}
		if err != nil {
			return err
		}
		floor = header.floor
	}
	if err := l.txs.purge(ctx, sequence(offset)); err != nil {
		return err
	}
	if floor > 1 {
		return l.parts.purge(ctx, floor)
	}
	return nil
}

// headerAt reads the header of the transaction at an offset.
func (l *Log) headerAt(ctx context.Context, offset uint64) (h header, err error) {
	err = try(ctx, func(ctx context.Context) (bool, error) {
		m, err := l.txs.get(ctx, sequence(offset))
		if err != nil {
			return l.ifTruncated(ctx, offset, err)
		}
		h, err = parseHeader(m.Header)
		return err != nil, err
	})
	return h, err
}

// Offsets count from 0, sequences from 1.
func sequence(offset uint64) uint64 {
	if offset == math.MaxUint64 {
		return offset // no stream gets there
	}
	return offset + 1
}
