package pebblelog

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/seed080d9131/lifecycle"
)

// MaxTransactionBytes is the size of the largest transaction that a Log takes.
const MaxTransactionBytes = lifecycle.MaxTransactionBytes

// commitBytes is how much Append buffers before it commits without a sync. A batch
// of Pebble's can't be larger than 4 GiB.
const commitBytes = 64 << 20

// Options of a Log.
type Options struct {
	// Prefix is what the log's keys begin with. It must not be empty, and no other log
	// in the engine may have a prefix that begins with it, or with which it begins: with
	// names of any length, end each with a byte that is in none, as "tenant1/".
	Prefix string

	// CloseDB makes Close close the engine as well. The Log then owns it from the Open
	// that returned nil on.
	CloseDB bool

	commitBytes int // for tests; 0 is commitBytes
}

// Log is a log of transactions in a part of a Pebble engine's keyspace. See the
// package documentation for what it promises.
//
// Append, Sync and Close are for one goroutine, one after another, as
// a Host calls them. Any number of others may Read and TruncateBefore meanwhile.
type Log struct {
	db          *pebble.DB
	keys        keyspace
	hold        *hold
	closeDB     bool
	commitBytes int

	first   atomic.Uint64
	next    atomic.Uint64
	durable atomic.Uint64 // stored after a commit that was synced

	// The appender's own.
	batch   *pebble.Batch // nil: empty
	failure error         // the first; everything is refused after it

	turn chan struct{} // holds the one token while nobody truncates

	mu     sync.Mutex // guards what follows
	closed bool
	users  sync.WaitGroup // readers and truncations; added to under mu, while not closed
}

// Entry is one transaction as Read yields it.
type Entry struct {
	Offset uint64
	Data   []byte // valid until the next iteration
}

// Open opens the log under a prefix, or begins one where no key has it. It reads
// three keys and looks at both ends of the log, and commits one key with a sync:
// everything that an opened log shows is durable.
//
// It fails with ErrLocked if the prefix is open already, or overlaps one that is;
// with a *DamageError if transactions are missing or other keys are there; with an
// error that names the other log if a new one would lie in its part of the keyspace,
// open or not; and with the engine's error, pebble.ErrClosed among them.
func Open(db *pebble.DB, opts Options) (*Log, error) {
	if db == nil {
		return nil, errors.New("pebblelog: open: no engine")
	}
	if opts.Prefix == "" {
		return nil, errors.New("pebblelog: open: Options.Prefix is empty: the log needs a part of the keyspace of its own")
	}
	hold, err := take(db, opts.Prefix)
	if err != nil {
		return nil, fmt.Errorf("pebblelog: %q: open: %w", opts.Prefix, err)
	}
	l := &Log{
		db: db, keys: newKeyspace(opts.Prefix), hold: hold, closeDB: opts.CloseDB,
		commitBytes: cmp.Or(opts.commitBytes, commitBytes),
		turn:        make(chan struct{}, 1),
	}
	l.turn <- struct{}{}
	opened := false
	defer func() { // also where Pebble panics
		if !opened {
			hold.release()
		}
	}()
	var failure error
	if err := guarded(func() error { failure = l.load(); return nil }); err != nil {
		return nil, l.failed("open", err)
	}
	if failure != nil {
		return nil, failure
	}
	opened = true
	return l, nil
}

// load finds the log's ends.
func (l *Log) load() error {
	first, next, found, err := l.bounds()
	if err != nil {
		return err
	}
	if err := l.checkEnds(first, next, found); err != nil {
		return err
	}
	b := l.db.NewBatch()
	if err := errors.Join(b.Set(l.keys.header, header, nil), b.Set(l.keys.first, number(first), nil), b.Set(l.keys.next, number(next), nil)); err != nil {
		return l.failed("open", err)
	}
	if err := l.hold.commit(l.db, b, pebble.Sync); err != nil {
		return l.failed("open", err)
	}
	l.first.Store(first)
	l.next.Store(next)
	l.durable.Store(next)
	return nil
}

// bounds reads first and next. found is whether there is a log.
func (l *Log) bounds() (first, next uint64, found bool, err error) {
	value, found, err := l.get(l.keys.header)
	if err != nil || !found {
		return 0, 0, false, err
	}
	if !bytes.Equal(value, header) {
		return 0, 0, false, fmt.Errorf("pebblelog: %q: open: the log's header is %.40q: it is another version's, or something else's", l.keys.prefix, value)
	}
	for _, n := range []struct {
		name string
		key  []byte
		to   *uint64
	}{{"first", l.keys.first, &first}, {"next", l.keys.next, &next}} {
		value, there, err := l.get(n.key)
		if err != nil {
			return 0, 0, false, err
		}
		if !there || len(value) != 8 {
			return 0, 0, false, l.damage(0, fmt.Sprintf("the key %q is missing, or is no number", n.name))
		}
		*n.to = binary.BigEndian.Uint64(value)
	}
	if first > next {
		return 0, 0, false, l.damage(next, fmt.Sprintf("the log begins at %d and ends before %d", first, next))
	}
	return first, next, true, nil
}

// checkEnds checks that the transactions begin and end where the log says.
func (l *Log) checkEnds(first, next uint64, found bool) error {
	it, err := l.db.NewIter(&pebble.IterOptions{LowerBound: []byte(l.keys.prefix), UpperBound: l.keys.end})
	if err != nil {
		return l.failed("open", err)
	}
	defer it.Close()
	if !found {
		if err := l.checkOuter(); err != nil {
			return err
		}
		if it.First() {
			return fmt.Errorf("pebblelog: %q: open: there is no log, but the key %.60q begins with its prefix: the prefix is somebody else's", l.keys.prefix, it.Key())
		}
		return l.failedIf("open", it.Error())
	}
	at := func(there bool) (uint64, bool) {
		if !there {
			return 0, false
		}
		return l.keys.offset(it.Key())
	}
	if first == next {
		if it.SeekGE(l.keys.tx(0)) {
			return l.damage(next, fmt.Sprintf("the log is empty, but the key %.60q is there", it.Key()))
		}
		return l.failedIf("open", it.Error())
	}
	switch offset, ok := at(it.SeekGE(l.keys.tx(0))); {
	case it.Error() != nil:
		return l.failed("open", it.Error())
	case !ok || offset != first:
		return l.damage(first, fmt.Sprintf("the log begins at %d and ends before %d, but the first transaction in the engine is another one", first, next))
	}
	switch offset, ok := at(it.Last()); {
	case it.Error() != nil:
		return l.failed("open", it.Error())
	case !ok || offset != next-1:
		return l.damage(next-1, fmt.Sprintf("the log begins at %d and ends before %d, but the last transaction in the engine is another one", first, next))
	}
	return nil
}

// checkOuter checks that a new log would lie in no other's part of the keyspace: that
// one would take its keys for damage.
func (l *Log) checkOuter() error {
	for i := 1; i < len(l.keys.prefix); i++ {
		outer := newKeyspace(l.keys.prefix[:i])
		switch value, _, err := l.get(outer.header); {
		case err != nil:
			return err
		case bytes.Equal(value, header):
			return fmt.Errorf("pebblelog: %q: open: the prefix begins with %q, in which there is a log: end each with the same byte, as %q", l.keys.prefix, outer.prefix, outer.prefix+"/")
		}
	}
	return nil
}

func (l *Log) get(key []byte) (value []byte, found bool, err error) {
	value, closer, err := l.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, l.failed("open", err)
	}
	defer closer.Close()
	return bytes.Clone(value), true, nil
}

// Next returns the offset that the next transaction gets.
func (l *Log) Next() uint64 { return l.next.Load() }

// First returns the offset of the oldest transaction that the log holds; it is Next
// if there is none.
func (l *Log) First() uint64 { return l.first.Load() }

// Append buffers txs, in order. They are visible in the engine, and durable, when
// Sync has returned nil. It returns ErrTooLarge, with nothing buffered and the log
// usable, if one of them is over MaxTransactionBytes, and ErrClosed after Close. Any
// other error means that the log failed.
//
// Append keeps neither txs nor their bytes. It blocks only when 64 MiB are
// buffered: these it commits without waiting for a sync.
func (l *Log) Append(txs [][]byte) error {
	if err := l.refusal("append"); err != nil {
		return err
	}
	for i, tx := range txs {
		if len(tx) > MaxTransactionBytes {
			return l.failed("append", fmt.Errorf("transaction %d of %d has %d bytes: %w", i+1, len(txs), len(tx), ErrTooLarge))
		}
	}
	for _, tx := range txs {
		if err := l.put(tx); err != nil {
			return err
		}
	}
	return nil
}

// put copies one transaction into the batch.
func (l *Log) put(tx []byte) error {
	if l.batch != nil && l.batch.Len()+len(tx) > l.commitBytes {
		if err := l.commit(pebble.NoSync); err != nil {
			return err
		}
	}
	if l.batch == nil {
		l.batch = l.db.NewBatch()
	}
	next := l.next.Load()
	op := l.batch.SetDeferred(len(l.keys.txPrefix)+8, len(tx))
	l.keys.putTx(op.Key, next)
	copy(op.Value, tx)
	if err := op.Finish(); err != nil {
		return l.fail("append", err)
	}
	l.next.Store(next + 1)
	return nil
}

// Sync commits what was appended and returns when Pebble has synced it; then Read
// yields it. It does nothing if nothing was appended since the last one. After an
// error, as after Append's, everything is refused.
func (l *Log) Sync() error {
	if err := l.refusal("sync"); err != nil {
		return err
	}
	return l.sync()
}

func (l *Log) sync() error {
	next := l.next.Load()
	if l.durable.Load() == next {
		return nil
	}
	if err := l.commit(pebble.Sync); err != nil {
		return err
	}
	l.durable.Store(next)
	return nil
}

// commit applies the batch, with next in it. If Pebble does not return, the log has
// failed too.
func (l *Log) commit(o *pebble.WriteOptions) error {
	b, next := l.batch, l.next.Load()
	if b == nil {
		b = l.db.NewBatch()
	}
	l.batch = nil
	l.failure = l.failed("commit", errors.New("it has not ended"))
	if err := b.Set(l.keys.next, number(next), nil); err != nil {
		return l.fail("commit", err)
	}
	if err := l.hold.commit(l.db, b, o); err != nil {
		l.failure = l.failed("commit", err)
		return l.failure
	}
	l.failure = nil
	return nil
}

// commit applies b and waits for the sync, if o says so.
//
// Apply would wait as well, but what a failed write or sync of the write-ahead log
// does there is up to the engine's Logger: its Fatalf ends the process, or Apply
// returns nil. Here it is an error.
func commit(db *pebble.DB, b *pebble.Batch, o *pebble.WriteOptions) error {
	return guarded(func() error {
		if o.Sync {
			if err := db.ApplyNoSyncWait(b, o); err != nil {
				return err
			}
			if err := b.SyncWait(); err != nil {
				return err
			}
		} else if err := db.Apply(b, o); err != nil {
			return err
		}
		return b.Close()
	})
}

// guarded makes an error of the panic with which Pebble tells that the engine is
// closed.
func guarded(call func() error) (err error) {
	defer func() {
		v := recover()
		if closed, ok := v.(error); ok && errors.Is(closed, pebble.ErrClosed) {
			err = closed
		} else if v != nil {
			panic(v)
		}
	}()
	return call()
}

// fail poisons the log, and the engine for other logs.
func (l *Log) fail(doing string, err error) error {
	l.failure = l.failed(doing, err)
	l.hold.poison(err)
	return l.failure
}

func (l *Log) refusal(doing string) error {
	if l.isClosed() {
		return l.failed(doing, ErrClosed)
	}
	if l.failure != nil {
		return fmt.Errorf("pebblelog: %q: %s: refused, since the log has failed before: %w", l.keys.prefix, doing, l.failure)
	}
	if err := l.hold.poisoned(); err != nil { // by a truncation, or by another log
		l.failure = l.failed(doing, err)
		return l.failure
	}
	return nil
}

// Read yields the durable transactions from an offset on, in order, to the last one
// that was durable when Read was called. From there on, or beyond, it yields
// nothing.
//
// An error is yielded last, with a zero Entry: ErrTruncated if the offset lies
// before First; ErrClosed once the log is closed; a *DamageError if a transaction
// is missing; or the engine's error.
//
// Every range over the sequence holds an iterator of the engine, and with it the
// tables that it reads, until it ends. It delays no append or truncation, but Close
// waits for it: the body of the loop must not wait for Close.
func (l *Log) Read(from uint64) iter.Seq2[Entry, error] {
	end := l.durable.Load()
	return func(yield func(Entry, error) bool) {
		if err := l.read(from, end, yield); err != nil {
			yield(Entry{}, err)
		}
	}
}

func (l *Log) read(from, end uint64, yield func(Entry, error) bool) (err error) {
	if err := l.enter("read"); err != nil {
		return err
	}
	defer l.users.Done()
	if from >= end && from >= l.first.Load() {
		return nil
	}
	var it *pebble.Iterator
	if err := guarded(func() (err error) {
		it, err = l.db.NewIter(&pebble.IterOptions{LowerBound: l.keys.tx(from), UpperBound: l.keys.tx(end)})
		return err
	}); err != nil {
		return l.failed("read", err)
	}
	defer it.Close()
	// The iterator sees the engine as it is now. A truncation that it sees has moved
	// first before.
	if from < l.first.Load() {
		return l.failed(fmt.Sprintf("read from offset %d", from), ErrTruncated)
	}
	next := from
	for more := it.First(); more; more = it.Next() {
		offset, ok := l.keys.offset(it.Key())
		if !ok || offset != next {
			return l.damage(next, fmt.Sprintf("the key %.60q is there in its place", it.Key()))
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return l.failed(fmt.Sprintf("read offset %d", offset), err)
		}
		if !yield(Entry{offset, value[:len(value):len(value)]}, nil) {
			return nil
		}
		next++
		if l.isClosed() {
			return l.failed("read", ErrClosed)
		}
	}
	if err := it.Error(); err != nil {
		return l.failed(fmt.Sprintf("read offset %d", next), err)
	}
	if next != end {
		return l.damage(next, "it is missing")
	}
	return nil
}

// TruncateBefore deletes the transactions before an offset, but no more than are
// durable, with one range deletion that is synced. First tells what is left.
//
// Any goroutine may call it. It blocks for the sync and for other calls of it, not
// for appends; readers under way go on with what they began, later ones of what is
// deleted get ErrTruncated. After an error of the engine's the log has failed, also
// for appends and for offsets that were truncated before; First may then tell more
// than what is gone, never less.
func (l *Log) TruncateBefore(offset uint64) error {
	if err := l.enter("truncate"); err != nil {
		return err
	}
	defer l.users.Done()
	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	if err := l.hold.poisoned(); err != nil {
		return l.failed("truncate", err)
	}
	first := l.first.Load()
	offset = min(offset, l.durable.Load())
	if offset <= first {
		return nil
	}
	b := l.db.NewBatch()
	if err := errors.Join(b.DeleteRange(l.keys.tx(first), l.keys.tx(offset), nil), b.Set(l.keys.first, number(offset), nil)); err != nil {
		return l.failed("truncate", err)
	}
	// Before it is done, since a reader that misses something asks first; and it stays
	// if the commit fails, since a commit that failed is visible.
	l.first.Store(offset)
	if err := l.hold.commit(l.db, b, pebble.Sync); err != nil {
		return l.failed("truncate", err)
	}
	return nil
}

// Close syncs what was appended, waits for the readers and truncations under way,
// closes the engine if Options.CloseDB says so, and at last gives up the prefix. It
// returns the first error met; whatever it is, everything is given up. A failure that
// Append or Sync has returned is not returned again; one of another log in the
// engine, or of TruncateBefore, is if something was to be synced. A second Close
// returns ErrClosed.
func (l *Log) Close() error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return l.failed("close", ErrClosed)
	}
	defer l.hold.release()
	var err error
	if l.failure == nil {
		err = l.sync()
	}
	if l.batch != nil {
		_ = l.batch.Close()
	}
	l.users.Wait()
	if l.closeDB {
		if closeErr := l.db.Close(); err == nil && closeErr != nil && l.failure == nil {
			err = l.failed("close the engine", closeErr)
		}
	}
	return err
}

// enter counts a user of the engine beside the appender.
func (l *Log) enter(doing string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.failed(doing, ErrClosed)
	}
	l.users.Add(1)
	return nil
}

func (l *Log) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// failed is the form of every error: the log, what was done, and why it failed.
func (l *Log) failed(doing string, err error) error {
	return fmt.Errorf("pebblelog: %q: %s: %w", l.keys.prefix, doing, err)
}

func (l *Log) failedIf(doing string, err error) error {
	if err == nil {
		return nil
	}
	return l.failed(doing, err)
}

func (l *Log) damage(offset uint64, why string) error {
	return &DamageError{Prefix: l.keys.prefix, Offset: offset, Why: why}
}

// No lifecycle.BatchLog: each transaction is copied into Pebble's batch by itself, so
// it would save nothing.
var _ lifecycle.Log = (*Log)(nil)
