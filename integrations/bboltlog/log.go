package bboltlog

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"github.com/seed080d9131/lifecycle"
)

// MaxTransactionBytes is the size of the largest transaction that a Log takes.
const MaxTransactionBytes = lifecycle.MaxTransactionBytes

const (
	commitBytes = 64 << 20  // how much Append buffers before it commits by itself
	readBytes   = 256 << 10 // how much Read copies at a time, and one transaction more
	truncateTxs = 10_000    // how many TruncateBefore deletes in one Update
)

// Options of a Log.
type Options struct {
	// Bucket is the name of the log's bucket, of the database's own. It must not be
	// empty.
	Bucket string

	// CloseDB makes Close close the database as well. The Log then owns it from the
	// Open that returned nil on.
	CloseDB bool

	commitBytes int // for tests; 0 is commitBytes
}

// Log is a log of transactions in a bucket of a bbolt database. See the package
// documentation for what it promises.
//
// Append, AppendBatch, Sync and Close are for one goroutine, one after another, as
// a Host calls them. Any number of others may Read and TruncateBefore meanwhile.
type Log struct {
	db          *bbolt.DB
	bucket      string
	hold        *hold
	closeDB     bool
	commitBytes int

	first   atomic.Uint64 // stored before a truncation is done
	next    atomic.Uint64
	durable atomic.Uint64 // stored after an Update that returned nil

	// The appender's own.
	buffer  []byte // the records from durable on: each a length in four bytes, and so many bytes
	failure error  // the first; everything is refused after it

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

var (
	versionKey   = []byte("version")
	version      = []byte{1}
	firstKey     = []byte("first")
	transactions = []byte("transactions")
)

// Open opens the log in a bucket, or makes both if the bucket is not there. It looks
// at both ends of the log, and does an Update: everything that an opened log shows
// is durable. It waits for the server's own Update, if one runs.
//
// It fails with ErrLocked if the bucket is open already; with a *DamageError if
// transactions are missing; and with bbolt's error, also for a database that is
// closed or read-only.
func Open(db *bbolt.DB, opts Options) (*Log, error) {
	if db == nil {
		return nil, errors.New("bboltlog: open: no database")
	}
	if opts.Bucket == "" {
		return nil, errors.New("bboltlog: open: Options.Bucket is empty: the log needs a bucket of its own")
	}
	if db.NoSync {
		return nil, fmt.Errorf("bboltlog: %q: open: the database has NoSync set: nothing would be durable", opts.Bucket)
	}
	hold, err := take(db, opts.Bucket)
	if err != nil {
		return nil, fmt.Errorf("bboltlog: %q: open: %w", opts.Bucket, err)
	}
	l := &Log{
		db: db, bucket: opts.Bucket, hold: hold, closeDB: opts.CloseDB,
		commitBytes: cmp.Or(opts.commitBytes, commitBytes),
		turn:        make(chan struct{}, 1),
	}
	l.turn <- struct{}{}
	opened := false
	defer func() { // also if bbolt panics
		if !opened {
			hold.release()
		}
	}()
	if err := l.load(); err != nil {
		return nil, err
	}
	opened = true
	return l, nil
}

// load finds the log's ends. What it checks it checks before it changes anything.
func (l *Log) load() error {
	var first, next uint64
	var wrong error
	err := l.hold.update(l.db, func(tx *bbolt.Tx) error {
		first, next, wrong = l.ends(tx)
		if wrong != nil {
			return wrong
		}
		root, err := tx.CreateBucketIfNotExists([]byte(l.bucket))
		if err != nil {
			return err
		}
		txs, err := root.CreateBucketIfNotExists(transactions)
		if err != nil {
			return err
		}
		return errors.Join(root.Put(versionKey, version), root.Put(firstKey, number(first)), txs.SetSequence(next))
	})
	if wrong != nil {
		return wrong
	}
	if err != nil {
		return l.failed("open", err)
	}
	l.first.Store(first)
	l.next.Store(next)
	l.durable.Store(next)
	return nil
}

// ends reads first and next, and checks that the transactions begin and end there.
func (l *Log) ends(tx *bbolt.Tx) (first, next uint64, err error) {
	root := tx.Bucket([]byte(l.bucket))
	if root == nil {
		return 0, 0, nil
	}
	txs := root.Bucket(transactions)
	switch found := root.Get(versionKey); {
	case found == nil && txs == nil && empty(root):
		return 0, 0, nil
	case found == nil:
		return 0, 0, fmt.Errorf("bboltlog: %q: open: the bucket is there, but no log: it is somebody else's", l.bucket)
	case !bytes.Equal(found, version):
		return 0, 0, fmt.Errorf("bboltlog: %q: open: the log's version is %x: this package knows %x", l.bucket, found, version)
	}
	at := root.Get(firstKey)
	if txs == nil || len(at) != 8 {
		return 0, 0, l.damage(0, `the bucket "transactions" is missing, or the key "first", or it is no number`)
	}
	first, next = binary.BigEndian.Uint64(at), txs.Sequence()
	head, _ := txs.Cursor().First()
	tail, _ := txs.Cursor().Last()
	ends := fmt.Sprintf("the log begins at %d and ends before %d", first, next)
	switch {
	case first > next:
		return 0, 0, l.damage(next, ends)
	case first == next && head != nil:
		return 0, 0, l.damage(next, fmt.Sprintf("the log is empty, but the key %x is there", head))
	case first < next && !bytes.Equal(head, number(first)):
		return 0, 0, l.damage(first, fmt.Sprintf("%s, but the first transaction in the database has the key %x", ends, head))
	case first < next && !bytes.Equal(tail, number(next-1)):
		return 0, 0, l.damage(next-1, fmt.Sprintf("%s, but the last transaction in the database has the key %x", ends, tail))
	}
	return first, next, nil
}

func empty(b *bbolt.Bucket) bool {
	key, _ := b.Cursor().First()
	return key == nil
}

// Next returns the offset that the next transaction gets.
func (l *Log) Next() uint64 { return l.next.Load() }

// First returns the offset of the oldest transaction that the log holds; it is Next
// if there is none.
func (l *Log) First() uint64 { return l.first.Load() }

// Append buffers txs, in order. They are in the database, and durable, when Sync has
// returned nil. It returns ErrTooLarge, with nothing buffered and the log usable, if
// one of them is over MaxTransactionBytes, and ErrClosed after Close. Any other
// error means that the log failed.
//
// Append keeps neither txs nor their bytes. It blocks only when 64 MiB are
// buffered: these it commits, as Sync does.
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
		if err := l.room(len(tx)); err != nil {
			return err
		}
		l.buffer = binary.LittleEndian.AppendUint32(l.buffer, uint32(len(tx)))
		l.buffer = append(l.buffer, tx...)
		l.next.Add(1)
	}
	return nil
}

// BatchHeader returns 0: AppendBatch needs nothing in front of a batch.
func (l *Log) BatchHeader() int { return 0 }

// AppendBatch does what Append does for n records, each a length in four bytes,
// little-endian, and that many bytes. A batch that is not so made is refused with
// nothing buffered and the log usable.
func (l *Log) AppendBatch(batch []byte, n int) error {
	if err := l.refusal("append"); err != nil {
		return err
	}
	rest := batch
	for i := range n {
		if len(rest) < 4 || uint64(len(rest)-4) < uint64(binary.LittleEndian.Uint32(rest)) {
			return l.failed("append", fmt.Errorf("the batch ends in record %d of %d", i+1, n))
		}
		length := int(binary.LittleEndian.Uint32(rest))
		if length > MaxTransactionBytes {
			return l.failed("append", fmt.Errorf("record %d of %d has %d bytes: %w", i+1, n, length, ErrTooLarge))
		}
		rest = rest[4+length:]
	}
	if len(rest) > 0 {
		return l.failed("append", fmt.Errorf("%d bytes follow the batch's %d records", len(rest), n))
	}
	if err := l.room(len(batch)); err != nil {
		return err
	}
	l.buffer = append(l.buffer, batch...)
	l.next.Add(uint64(n))
	return nil
}

// room commits what is buffered if more would be too much.
func (l *Log) room(more int) error {
	if len(l.buffer) > 0 && len(l.buffer)+more > l.commitBytes {
		return l.sync()
	}
	return nil
}

// Sync puts what was appended into the database, and returns when bbolt has synced
// it; then Read yields it. It does nothing if nothing was appended since the last
// one. After an error, as after Append's, everything is refused.
func (l *Log) Sync() error {
	if err := l.refusal("sync"); err != nil {
		return err
	}
	return l.sync()
}

// sync is one Update. If bbolt does not return from it, or can't begin it, the log
// has failed too.
func (l *Log) sync() error {
	offset, next := l.durable.Load(), l.next.Load()
	if offset == next {
		return nil
	}
	l.failure = l.failed("sync", errors.New("it has not ended"))
	err := l.hold.update(l.db, func(tx *bbolt.Tx) error {
		txs, err := l.transactions(tx)
		if err != nil {
			return err
		}
		txs.FillPercent = 1 // keys only grow: a page that is full stays so
		for rest := l.buffer; len(rest) > 0; offset++ {
			length := int(binary.LittleEndian.Uint32(rest))
			if err := txs.Put(number(offset), rest[4:4+length]); err != nil {
				return err
			}
			rest = rest[4+length:]
		}
		return txs.SetSequence(next)
	})
	if err != nil {
		l.failure = l.failed("sync", err)
		l.hold.poison(err)
		return l.failure
	}
	l.failure = nil
	l.durable.Store(next)
	if cap(l.buffer) > 4*readBytes {
		l.buffer = nil
	}
	l.buffer = l.buffer[:0]
	return nil
}

// transactions is the bucket of transactions.
func (l *Log) transactions(tx *bbolt.Tx) (*bbolt.Bucket, error) {
	if root := tx.Bucket([]byte(l.bucket)); root != nil {
		if txs := root.Bucket(transactions); txs != nil {
			return txs, nil
		}
	}
	return nil, l.damage(l.First(), "the log's bucket is gone")
}

func (l *Log) refusal(doing string) error {
	if l.isClosed() {
		return l.failed(doing, ErrClosed)
	}
	if l.failure != nil {
		return fmt.Errorf("bboltlog: %q: %s: refused, since the log has failed before: %w", l.bucket, doing, l.failure)
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
// before First, or if what comes next was truncated meanwhile; ErrClosed once the
// log is closed; a *DamageError if a transaction is missing; or bbolt's error.
//
// It reads ahead, up to 256 KiB and one transaction, into memory of its own: while
// the loop's body runs, nothing of bbolt is held. Close waits for readers, as far
// as they are in the database.
func (l *Log) Read(from uint64) iter.Seq2[Entry, error] {
	end := l.durable.Load()
	return func(yield func(Entry, error) bool) {
		var ahead []Entry
		var bytes []byte
		for next := from; next < end || next < l.First(); {
			var err error
			if ahead, bytes, err = l.ahead(next, end, ahead[:0], bytes[:0]); err != nil {
				yield(Entry{}, err)
				return
			}
			for _, entry := range ahead {
				if l.isClosed() {
					yield(Entry{}, l.failed("read", ErrClosed))
					return
				}
				if !yield(entry, nil) {
					return
				}
			}
			next += uint64(len(ahead))
		}
		if l.isClosed() {
			yield(Entry{}, l.failed("read", ErrClosed))
		}
	}
}

// ahead copies entries from next on, one at least, into memory that may be used
// again.
func (l *Log) ahead(next, end uint64, entries []Entry, memory []byte) ([]Entry, []byte, error) {
	if err := l.enter("read"); err != nil {
		return nil, nil, err
	}
	defer l.users.Done()
	var lengths []int
	err := l.db.View(func(tx *bbolt.Tx) error {
		// The transaction sees the database as it is now. A truncation that it sees has
		// moved first before.
		if next < l.First() {
			return l.failed(fmt.Sprintf("read from offset %d", next), ErrTruncated)
		}
		txs, err := l.transactions(tx)
		if err != nil {
			return err
		}
		cursor := txs.Cursor()
		key, value := cursor.Seek(number(next))
		for offset := next; offset < end && (len(lengths) == 0 || len(memory) < readBytes); offset++ {
			if !bytes.Equal(key, number(offset)) {
				return l.damage(offset, fmt.Sprintf("the key %x is there in its place", key))
			}
			memory = append(memory, value...)
			lengths = append(lengths, len(value))
			key, value = cursor.Next()
		}
		return nil
	})
	var damage *DamageError
	switch {
	case errors.As(err, &damage), errors.Is(err, ErrTruncated):
		return nil, nil, err
	case err != nil:
		return nil, nil, l.failed(fmt.Sprintf("read offset %d", next), err)
	}
	rest := memory
	for i, length := range lengths {
		entries = append(entries, Entry{next + uint64(i), rest[:length:length]})
		rest = rest[length:]
	}
	return entries, memory, nil
}

// TruncateBefore deletes the transactions before an offset, but no more than are
// durable, in Updates of up to 10,000 each. First tells what is left. The file does
// not shrink: bbolt uses the pages again.
//
// Any goroutine may call it, but not inside an Update or View of its own. It blocks
// for the Updates and for other calls of it, and delays appends by one Update each.
// After an error of bbolt's the log has failed, also for appends and for offsets that
// were truncated before; First may then tell more than what is gone, never less.
func (l *Log) TruncateBefore(offset uint64) error {
	if err := l.enter("truncate"); err != nil {
		return err
	}
	defer l.users.Done()
	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	for offset = min(offset, l.durable.Load()); ; {
		if err := l.hold.poisoned(); err != nil {
			return l.failed("truncate", err)
		}
		first := l.First()
		if offset <= first {
			return nil
		}
		if l.isClosed() {
			return l.failed("truncate", ErrClosed)
		}
		until := min(offset, first+truncateTxs)
		err := l.hold.update(l.db, func(tx *bbolt.Tx) error {
			txs, err := l.transactions(tx)
			if err != nil {
				return err
			}
			for ; first < until; first++ {
				if err := txs.Delete(number(first)); err != nil {
					return err
				}
			}
			if err := tx.Bucket([]byte(l.bucket)).Put(firstKey, number(until)); err != nil {
				return err
			}
			// Before it is done, since a reader that misses something asks first; and it stays
			// if the commit fails, since a commit that failed may be visible.
			l.first.Store(until)
			return nil
		})
		if err != nil {
			l.hold.poison(err)
			return l.failed("truncate", err)
		}
	}
}

// Close syncs what was appended, waits for the readers and truncations that are in
// the database, closes it if Options.CloseDB says so, and at last gives up the
// bucket. It returns the first error met; whatever it is, everything is given up. A
// failure that Append or Sync has returned is not returned again; one of another log
// in the database, or of TruncateBefore, is if something was to be synced. A second
// Close returns ErrClosed.
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
	l.users.Wait()
	if l.closeDB {
		if closeErr := l.db.Close(); err == nil && closeErr != nil && l.failure == nil {
			err = l.failed("close the database", closeErr)
		}
	}
	return err
}

// enter counts a user of the database beside the appender.
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
	return fmt.Errorf("bboltlog: %q: %s: %w", l.bucket, doing, err)
}

func (l *Log) damage(offset uint64, why string) error {
	return &DamageError{Bucket: l.bucket, Offset: offset, Why: why}
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

var _ lifecycle.BatchLog = (*Log)(nil)
