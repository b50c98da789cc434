package commitlog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	iofs "io/fs"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed080d9131/lifecycle/internal/fsys"
)

const (
	// MaxTransactionBytes is the size of the largest transaction that a Log takes.
	MaxTransactionBytes = 64 << 20

	// MaxBatchBytes is the size of the largest batch that AppendBatch takes, header included.
	MaxBatchBytes = 1 << 30

	// DefaultSegmentBytes is the size that segments grow to unless Options say otherwise.
	DefaultSegmentBytes = 64 << 20

	// DefaultSpareSegments is how many freed files are kept unless Options say otherwise.
	DefaultSpareSegments = 2

	firstSegmentBytes = 64 << 10 // of a new log: doubled from segment to segment
	minSegmentBytes   = 8 << 10
	packBytes         = 256 << 10 // of the frames that Append makes, unless one transaction is larger
	pieceBytes        = 256 << 10 // of a batch that are checked, summed and written at once
	flushBytes        = 1 << 20
)

// Options of a Log. The zero value is good.
type Options struct {
	// SegmentBytes is the size that segment files grow to: a log starts with one of 64 KiB, and each
	// further one is twice as large as the last until this is reached. TruncateBefore frees whole
	// segments. 0 is DefaultSegmentBytes; less than 8 KiB is taken as 8 KiB.
	SegmentBytes int64

	// SpareSegments is how many of the files that TruncateBefore frees are kept at most, to become segments
	// again: written over, they take a burst faster than new files do, and a small commit too. They stay in
	// the directory when the log is closed. 0 is DefaultSpareSegments.
	SpareSegments int

	// FS is the file system, for the library's own suites. Nil is the operating system's.
	FS fsys.FS
}

// Log is a log of transactions in a directory of its own. See the package documentation for what it
// promises.
//
// Who owns what:
//
//	the actor       the goroutine that calls Append, AppendBatch, Sync and Close, one after another. It alone
//	                writes to the active segment and owns the fields named so; they need no lock.
//	the preparer    a goroutine that Sync starts when syncs are frequent, no blank file waits, and the active
//	                segment is a quarter full or grows. It fills a file with zeros, hands it over through blanks, and ends. Close
//	                stops it and waits for it.
//	truncation      whoever holds the one token in turn; it gives up the oldest segments. Close takes the token
//	                before it gives up the lock, so nothing moves in the directory after that.
//	readers         any number. They look at a snapshot of segments, open files of their own and check every
//	                frame they read. A segment leaves the list before its file is touched, so a reader that
//	                finds it unreadable asks the list why.
//
// mu is held for a few assignments, never while waiting and never across I/O. durable and next only grow;
// durable is set by the actor after a sync that succeeded, never before, so whoever reads it may read the
// frames below it from the file.
type Log struct {
	dir          string
	fs           fsys.FS
	segmentBytes int64
	spares       int
	lock         fsys.Lock
	identity     identity
	session      uint64

	next    atomic.Uint64
	durable atomic.Uint64
	reached atomic.Int64 // position, for the preparer
	closed  atomic.Bool
	turn    chan struct{} // holds the one token while nobody truncates

	// The token holder's own.
	removed     bool  // a segment's name, and the directory is not synced yet
	truncateErr error // a failed sync of the directory

	// The actor's own.
	active   *segment
	file     fsys.File // of the active segment
	position int64     // where the next frame goes
	link     uint32    // sum of the frame before it
	flushed  int64     // position before which there is nothing to sync, or the disk is at it
	synced   int64     // position before which everything was synced
	perSync  int64     // bytes from one sync to the next, smoothed
	asked    bool      // for a successor of the active segment
	unsynced bool      // something was written since the last sync
	failure  error     // the first failed write or sync; everything is refused after it
	buffer   []byte    // in which Append packs

	mu        sync.Mutex
	segments  []*segment    // in order, the active one last; the slice is replaced, never changed
	blanks    []blank       // prepared or recycled files, to become segments
	preparing chan struct{} // closed when the preparer ends; nil when there is none
	stopped   atomic.Bool   // no new preparer, no new blanks; set under mu, and looked at without by the preparer
	names     int           // of temporary files, so far
}

// Open opens the log in a directory, which it makes if need be, and locks it until Close. It reads and
// checks everything, cuts off what a crash left half written at the end, and makes sure that what remains
// is on the medium: everything in an open log is durable.
//
// It fails with ErrLocked, at once, if the directory is open already; with a *DamageError if data that was
// acknowledged can't be read; and with the system's error if an operation fails. It does not need new disk
// space for a log that exists.
func Open(dir string, opts Options) (*Log, error) {
	if opts.SegmentBytes < 0 {
		return nil, failed(dir, "open", fmt.Errorf("SegmentBytes is %d", opts.SegmentBytes))
	}
	if opts.SegmentBytes == 0 {
		opts.SegmentBytes = DefaultSegmentBytes
	}
	if opts.SpareSegments < 0 {
		return nil, failed(dir, "open", fmt.Errorf("SpareSegments is %d", opts.SpareSegments))
	}
	if opts.SpareSegments == 0 {
		opts.SpareSegments = DefaultSpareSegments
	}
	l := &Log{
		dir:          dir,
		fs:           opts.FS,
		segmentBytes: align(min(max(opts.SegmentBytes, minSegmentBytes), math.MaxInt64-frameAlign)),
		spares:       opts.SpareSegments,
		turn:         make(chan struct{}, 1),
	}
	if l.fs == nil {
		// Absolute, so that neither a change of the working directory nor ".." behind a symbolic link makes one
		// operation mean another directory than the next.
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, failed(dir, "open", err)
		}
		dir, l.dir, l.fs = abs, abs, fsys.OS
	}
	l.turn <- struct{}{}
	var session [8]byte
	rand.Read(session[:])
	l.session = binary.LittleEndian.Uint64(session[:])

	if err := makeDir(l.fs, dir); err != nil {
		return nil, err
	}
	if opts.FS == nil {
		if real, err := filepath.EvalSymlinks(dir); err == nil { // a link may come to mean another directory
			dir, l.dir = real, real
		}
	}
	lock, err := l.fs.Lock(filepath.Join(dir, lockName))
	if errors.Is(err, fsys.ErrLocked) {
		return nil, failed(dir, "open", ErrLocked)
	}
	if err != nil {
		return nil, failed(dir, "lock", err)
	}
	l.lock = lock
	if err := l.load(); err != nil {
		if l.file != nil {
			l.file.Close()
		}
		for _, b := range l.blanks {
			b.file.Close()
		}
		lock.Close()
		return nil, err
	}
	return l, nil
}

// makeDir makes a directory and the missing ones above it, durably. What it can't make durable it takes away again,
// since the next Open would not know that it is not.
func makeDir(fs fsys.FS, dir string) error {
	err := fs.Mkdir(dir)
	parent := filepath.Dir(dir)
	if errors.Is(err, iofs.ErrNotExist) && parent != dir {
		if err := makeDir(fs, parent); err != nil {
			return err
		}
		err = fs.Mkdir(dir)
	}
	if errors.Is(err, iofs.ErrExist) {
		return nil
	}
	if err != nil {
		return failed(dir, "make the directory", err)
	}
	if err := fs.SyncDir(parent); err != nil {
		_ = fs.Remove(dir)
		return failed(parent, "sync the directory", err)
	}
	return nil
}

// create makes the first segment of a new log.
func (l *Log) create() error {
	rand.Read(l.identity[:])
	// The directory itself may be new, and the crash that left it empty may have come before it was
	// synced. There may be no permission, or no way, to do so, but then it is not this package that made it.
	parent := filepath.Dir(filepath.Clean(l.dir))
	if err := l.fs.SyncDir(parent); err != nil && !errors.Is(err, iofs.ErrPermission) && !errors.Is(err, errors.ErrUnsupported) {
		return failed(parent, "sync the directory", err)
	}
	// The same for those above, as far as they can be synced: some may be of file systems that have nothing to do
	// with the log.
	for dir := parent; filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		_ = l.fs.SyncDir(filepath.Dir(dir))
	}
	capacity := min(firstSegmentBytes, l.segmentBytes)
	b, err := l.zeroed(l.temporaryPath(), capacity, func(int64) bool { return true })
	if err != nil { // perhaps the disk is nearly full
		if b, err = l.growing(); err != nil {
			return err
		}
	}
	s, err := l.install(b, 0, capacity)
	if err != nil {
		return err
	}
	l.activate(s, b.file)
	return nil
}

// activate makes a new segment the one that is written to.
func (l *Log) activate(s *segment, file fsys.File) {
	l.active, l.file = s, file
	l.position, l.link = segmentHeaderBytes, s.sum
	l.flushed, l.synced, l.asked = segmentHeaderBytes, segmentHeaderBytes, false
	l.mu.Lock()
	l.segments = append(slices.Clip(l.segments), s)
	l.mu.Unlock()
}

// Next returns the offset that the next transaction gets.
func (l *Log) Next() uint64 { return l.next.Load() }

// First returns the offset of the oldest transaction that the log holds; it is Next if there is none.
func (l *Log) First() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.segments[0].base
}

// Append writes txs at the end of the log, in order. They are not durable before Sync has returned nil.
// It returns ErrTooLarge, with nothing written and the log usable, if one of them is over
// MaxTransactionBytes, and ErrClosed after Close. Any other error means that the log failed: some of txs
// may be found when it is opened again, and until then everything is refused with an error that wraps the first.
//
// Append keeps neither txs nor their bytes. It blocks for the write, and when a segment is full also for
// syncing it.
func (l *Log) Append(txs [][]byte) error {
	if err := l.refusal(); err != nil {
		return err
	}
	for i, tx := range txs {
		if len(tx) > MaxTransactionBytes {
			return failed(l.dir, "append", fmt.Errorf("transaction %d of %d has %d bytes: %w", i+1, len(txs), len(tx), ErrTooLarge))
		}
	}
	n, frame := 0, append(l.buffer[:0], make([]byte, frameHeaderBytes)...)
	for _, tx := range txs {
		if n > 0 && len(frame)+recordHeader+len(tx) > packBytes {
			if err := l.write(frame, n); err != nil {
				return err
			}
			n, frame = 0, frame[:frameHeaderBytes]
		}
		frame = binary.LittleEndian.AppendUint32(frame, uint32(len(tx)))
		frame = append(frame, tx...)
		n++
	}
	if cap(frame) <= 2*packBytes {
		l.buffer = frame
	}
	if n == 0 {
		return nil
	}
	return l.write(frame, n)
}

// BatchHeader returns how many bytes AppendBatch wants free in front of a batch.
func (l *Log) BatchHeader() int { return frameHeaderBytes }

// AppendBatch does what Append does, for a caller that has the transactions in one buffer as the log
// stores them, and copies nothing. The first BatchHeader bytes of batch are the log's to overwrite. Then
// follow n records and nothing else: each is a length in four bytes, little-endian, and that many bytes.
// A batch that is not so made, or too large, is refused with nothing written and the log usable.
//
// The batch becomes one frame, so after a crash it is there as a whole or not at all, and a reader needs
// as much memory.
func (l *Log) AppendBatch(batch []byte, n int) error {
	if err := l.refusal(); err != nil {
		return err
	}
	if n == 0 && len(batch) <= frameHeaderBytes {
		return nil
	}
	if int64(len(batch)) > MaxBatchBytes {
		return failed(l.dir, "append", fmt.Errorf("a batch of %d bytes: %w", len(batch), ErrTooLarge))
	}
	if n <= 0 || len(batch) <= frameHeaderBytes {
		return failed(l.dir, "append", fmt.Errorf("%w: %d records in %d bytes", errMalformed, n, len(batch)))
	}
	return l.write(batch, n)
}

// write makes batch, n > 0 records behind room for the header, a frame. What pads it to the next multiple
// of eight is left as it is: no sum covers it, and nobody reads it.
//
// A frame that doesn't fit goes to the next segment. In an empty one it always fits: the file grows.
func (l *Log) write(batch []byte, n int) error {
	end := align(l.position+int64(len(batch))) + frameHeaderBytes // a mark must fit behind it
	if l.position > segmentHeaderBytes && (end > l.active.capacity || l.outgrown()) {
		if err := l.rotate(); err != nil {
			return l.fail(err)
		}
	}
	next := l.next.Load()
	start := sumStart(l.active.seed, l.position)
	h := frameHeader{
		kind:       kindData,
		length:     uint32(len(batch) - frameHeaderBytes),
		count:      uint32(n),
		link:       l.link,
		first:      next,
		synced:     l.durable.Load(),
		session:    l.session,
		payloadSum: start,
	}
	// One pass over the memory does all there is to do with a piece while the cache has it (the sum comes
	// first, since it reads ahead). A batch of one piece is written in one go, header and all. The header of a larger one comes last, and without
	// it the rest is nothing: it may turn out malformed only after some of it was written.
	records := recordChecker{count: n}
	pieces := batch[frameHeaderBytes:]
	for done := 0; done < len(pieces); {
		piece := pieces[done:min(done+pieceBytes, len(pieces))]
		h.payloadSum = crc32.Update(h.payloadSum, castagnoli, piece)
		if err := records.check(piece, len(pieces)-done-len(piece)); err != nil {
			return failed(l.dir, "append", err)
		}
		if len(pieces) > pieceBytes {
			l.unsynced = true
			at := l.position + frameHeaderBytes + int64(done)
			if err := writeAt(l.file, l.active.path, piece, at); err != nil {
				return l.fail(err)
			}
			l.flush(at + int64(len(piece)))
		}
		done += len(piece)
	}
	h.seal(batch, start)
	rest := batch
	if len(pieces) > pieceBytes {
		rest = batch[:frameHeaderBytes]
	}
	l.unsynced = true
	if err := writeAt(l.file, l.active.path, rest, l.position); err != nil {
		return l.fail(err)
	}
	l.position, l.link = align(h.end(l.position)), h.sum
	l.reached.Store(l.position)
	l.next.Store(next + uint64(n))
	l.flush(l.position)
	return nil
}

// flush lets the disk begin with what was written up to a position, once it is worth it. A burst of
// appends is on the medium in two thirds of the time that way.
func (l *Log) flush(position int64) {
	if position-l.flushed >= flushBytes {
		l.file.Flush(l.flushed, position-l.flushed)
		l.flushed = position
	}
}

// rotate goes on to a new segment. The old one is synced first: only the last segment of a log ever
// holds anything that is not.
func (l *Log) rotate() error {
	if err := l.sync(); err != nil {
		return err
	}
	b, found := l.takeBlank()
	capacity := b.size
	if !found {
		var err error
		if b, err = l.growing(); err != nil {
			return err
		}
		capacity = l.nextCapacity()
	}
	s, err := l.install(b, l.next.Load(), capacity)
	if err != nil {
		return err
	}
	// Say in the old segment that there is another: should that be lost, it is missed.
	if err := l.mark(kindNext); err != nil {
		b.file.Close()
		return err
	}
	l.file.Close()
	l.activate(s, b.file)
	return nil
}

// mark writes and syncs a frame without records that says why the segment ends here. All before it is
// synced already. It is not part of the chain, since the next frame of an opened log takes its place.
func (l *Log) mark(kind uint32) error {
	h := frameHeader{kind: kind, link: l.link, first: l.next.Load(), synced: l.durable.Load(), session: l.session}
	b := make([]byte, frameHeaderBytes)
	h.seal(b, sumStart(l.active.seed, l.position))
	if err := writeAt(l.file, l.active.path, b, l.position); err != nil {
		return err
	}
	if err := l.file.Sync(); err != nil {
		return failed(l.active.path, "sync", err)
	}
	return nil
}

// nextCapacity returns the size of the segment after the active one.
func (l *Log) nextCapacity() int64 {
	if l.active.capacity >= l.segmentBytes/2 {
		return l.segmentBytes
	}
	return max(2*l.active.capacity, min(firstSegmentBytes, l.segmentBytes))
}

// Sync makes everything appended so far durable; when it has returned nil, Read yields it. It does
// nothing if nothing was appended since the last one. After an error, as after Append's, everything is
// refused: a sync is never tried twice, since the system may forget what it failed to write.
func (l *Log) Sync() error {
	if err := l.refusal(); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return l.fail(err)
	}
	used := l.position - segmentHeaderBytes
	if !l.asked && l.syncsOften() && (!l.active.recyclable() || used > (l.active.capacity-segmentHeaderBytes)/4) {
		l.asked = true
		l.askForBlank(l.nextCapacity(), l.active.capacity)
	}
	return nil
}

// syncsOften reports whether a blank would pay.
func (l *Log) syncsOften() bool { return l.perSync < preparePerSync }

// outgrown reports whether to leave the active segment before it is full: it grows, since a burst came when no blank was there,
// and now that syncs are frequent again, there is one.
func (l *Log) outgrown() bool {
	return !l.active.recyclable() && l.syncsOften() && l.hasBlank()
}

func (l *Log) sync() error {
	if !l.unsynced {
		return nil
	}
	if err := l.file.Sync(); err != nil {
		return failed(l.active.path, "sync", err)
	}
	l.perSync += (l.position - l.synced - l.perSync) / 8
	l.unsynced, l.flushed, l.synced = false, l.position, l.position
	l.durable.Store(l.next.Load())
	return nil
}

// refusal returns why the log takes nothing, or nil.
func (l *Log) refusal() error {
	if l.closed.Load() {
		return failed(l.dir, "append or sync", ErrClosed)
	}
	if l.failure != nil {
		return failed(l.dir, "refused, since the log has failed before", l.failure)
	}
	return nil
}

// fail poisons the log with err, its first failure, and returns it. The preparer is told to stop, not
// waited for: it may hang in the same disk, and the news must not wait for that.
func (l *Log) fail(err error) error {
	l.failure = err
	l.stopPreparing()
	return err
}

// Close syncs what was appended, marks the log as closed in order, so that the next Open finds any damage,
// and gives up its files and at last its lock: the directory can be opened again when Close returns. It
// waits for the preparer and for a TruncateBefore under way. It returns the first error met; whatever it
// is, everything is given up. A log that failed gets no mark, and its failure, known already, is not
// returned again. A second Close returns ErrClosed.
func (l *Log) Close() error {
	if l.closed.Swap(true) {
		return failed(l.dir, "close", ErrClosed)
	}
	preparing := l.stopPreparing()
	var err error
	if l.failure == nil {
		if err = l.sync(); err == nil {
			err = l.mark(kindEnd)
		}
	}
	if preparing != nil {
		<-preparing
	}
	<-l.turn // whoever takes it from here on finds the log closed
	defer func() { l.turn <- struct{}{} }()
	for _, b := range l.blanks { // nobody else is left to touch them
		if l.failure == nil && err == nil && b.size == l.segmentBytes {
			l.putBy(b)
		} else {
			b.discard(l.fs)
		}
	}
	l.blanks = nil
	if closeErr := l.file.Close(); err == nil && closeErr != nil {
		err = failed(l.active.path, "close", closeErr)
	}
	if lockErr := l.lock.Close(); err == nil && lockErr != nil {
		err = failed(l.dir, "unlock", lockErr)
	}
	return err
}
