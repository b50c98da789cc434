package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	iofs "io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed080d9131/lifecycle/internal/fsys"
)

// load finds the segments, checks them and opens the last for appending, or makes the first.
func (l *Log) load() error {
	names, err := l.fs.ReadDir(l.dir)
	if err != nil {
		return failed(l.dir, "read the directory", err)
	}
	var bases []uint64
	var spares []string
	for _, name := range names {
		if base, ok := parseSegmentName(name); ok {
			bases = append(bases, base)
		} else if isSpareName(name) {
			spares = append(spares, name)
		} else if isTemporaryName(name) {
			if err := l.removeOld(name); err != nil {
				return err
			}
		}
	}
	for _, name := range spares { // when no other temporary name is in use
		if !l.adopt(name) {
			if err := l.removeOld(name); err != nil {
				return err
			}
		}
	}
	if len(bases) == 0 {
		return l.create()
	}
	slices.Sort(bases)

	checks := l.checkAll(bases)
	last := &checks[len(checks)-1]
	l.file = last.file
	for i, c := range checks {
		if i > 0 && c.err == nil && c.identity != l.identity {
			c.err = &DamageError{Segment: c.walk.segment.path, Offset: bases[i], Why: "the segment belongs to another log than those before it"}
		}
		if c.err != nil {
			return c.err
		}
		l.identity = c.identity
		l.segments = append(l.segments, c.walk.segment)
	}
	switch {
	case last.cached:
		err = l.renew(last.walk, last.found)
	case last.found == metInvalid:
		err = last.walk.rewrite()
	}
	if err != nil {
		return err
	}
	// The name of the last segment may be as new as what it holds.
	if err := l.fs.SyncDir(l.dir); err != nil {
		return failed(l.dir, "sync the directory", err)
	}
	w := last.walk
	l.active, l.position, l.link = w.segment, w.position, w.link
	l.flushed, l.synced = w.position, w.position
	l.next.Store(w.next)
	l.durable.Store(w.next)
	return nil
}

// removeOld removes what an earlier Log has left behind.
func (l *Log) removeOld(name string) error {
	path := filepath.Join(l.dir, name)
	if err := l.fs.Remove(path); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return failed(path, "remove", err)
	}
	return nil
}

// check is one segment's part in the recovery. It changes nothing.
type check struct {
	file     fsys.File // only of the last
	identity identity
	walk     *walk
	found    verdict
	cached   bool // what was read may not be on the medium, and may not get there by being written again
	err      error
}

// checkAll checks every segment, as many at a time as there are processors, up to the first that is not
// as it should be; those after it may have no result.
func (l *Log) checkAll(bases []uint64) []check {
	checks := make([]check, len(bases))
	var taken atomic.Int64
	var bad atomic.Bool
	worker := func() {
		var buffer []byte
		for !bad.Load() {
			i := int(taken.Add(1)) - 1
			if i >= len(bases) {
				return
			}
			// Segments are taken in order, so when one is bad those before it are under way.
			c := &checks[i]
			if c.err = l.check(c, bases[i:], buffer); c.err != nil {
				bad.Store(true)
				return
			}
			buffer, c.walk.window.bytes = c.walk.window.bytes, nil
		}
	}
	var workers sync.WaitGroup
	for range min(len(bases), runtime.GOMAXPROCS(0)) - 1 {
		workers.Go(worker)
	}
	worker()
	workers.Wait()
	return checks
}

// check checks the segment that begins at bases[0], which the other bases follow.
func (l *Log) check(c *check, bases []uint64, buffer []byte) error {
	path := filepath.Join(l.dir, segmentName(bases[0]))
	last := len(bases) == 1
	file, err := l.fs.Open(path, last)
	if err != nil {
		return failed(path, "open", err)
	}
	if last {
		c.file = file
		// What an earlier process failed to write, the mark of its Close included, may be readable and not be there.
		c.cached = errors.Is(file.Reload(), fsys.ErrCached)
	} else {
		defer file.Close()
	}
	s, id, err := readHeader(file, path, bases[0])
	if err != nil {
		return err
	}
	size, err := file.Size()
	if err != nil {
		return failed(path, "ask for its size", err)
	}
	if size < s.allocated {
		return &DamageError{Segment: path, Offset: bases[0], Why: fmt.Sprintf("the file was made with %d bytes and has only %d", s.allocated, size)}
	}
	c.identity, c.walk = id, newWalk(s, file, size, buffer)
	if last {
		c.found, err = c.walk.last()
	} else {
		err = c.walk.inner(bases[1])
	}
	return err
}

// walk goes over a segment's frames in order, as far as they are whole and follow one another.
type walk struct {
	segment *segment
	window  window

	position int64  // behind the last frame that was accepted, aligned
	next     uint64 // offset after it
	link     uint32 // its sum
	synced   uint64 // the highest that a frame states: below it, everything reached the medium
	unsynced int64  // where the frames begin of which no later frame says that they were synced
}

func newWalk(s *segment, file fsys.File, size int64, buffer []byte) *walk {
	return &walk{
		segment:  s,
		window:   window{file: file, size: size, bytes: buffer[:0]},
		position: segmentHeaderBytes,
		next:     s.base,
		link:     s.sum,
		synced:   s.base, // a segment begins after a sync of all before it
		unsynced: segmentHeaderBytes,
	}
}

// verdict is what a walk met where it stopped.
type verdict int

const (
	reachedLimit verdict = iota // the given offset
	metEnd                      // the mark of a clean close
	metNext                     // the mark that says the log goes on in the next segment
	metInvalid                  // bytes that are no frame, or not one that belongs here
)

// run walks until the offset reaches limit or something other than a batch is met. An error is one of
// reading, not of what was read.
func (w *walk) run(limit uint64) (verdict, error) {
	var h frameHeader
	for w.next < limit {
		if w.window.size-w.position < frameHeaderBytes {
			return metInvalid, nil
		}
		b, err := w.window.at(w.position, frameHeaderBytes)
		if err != nil {
			return metInvalid, w.failed(err)
		}
		start := sumStart(w.segment.seed, w.position)
		if !h.open(b, start) || h.first != w.next || h.link != w.link {
			return metInvalid, nil
		}
		if h.kind != kindData {
			if h.synced != w.next || h.count != 0 || h.length != 0 {
				return metInvalid, nil
			}
			if h.kind == kindEnd {
				return metEnd, nil
			}
			return metNext, nil
		}
		end := h.end(w.position)
		if end > w.window.size || h.count == 0 || uint64(h.count) > limit-w.next ||
			(h.synced != h.first && h.synced != w.synced) {
			return metInvalid, nil
		}
		sum := start
		for p := w.position + frameHeaderBytes; p < end; {
			b, err := w.window.some(p, end-p)
			if err != nil {
				return metInvalid, w.failed(err)
			}
			sum = crc32.Update(sum, castagnoli, b)
			p += int64(len(b))
		}
		if sum != h.payloadSum {
			return metInvalid, nil
		}
		// A sync covers all that was written before it, so only the first frame after one states a new value: its own offset.
		if h.synced == h.first {
			w.synced, w.unsynced = h.synced, w.position
		}
		w.position, w.next, w.link = align(end), w.next+uint64(h.count), h.sum
	}
	return reachedLimit, nil
}

// proof looks behind the place where the walk stopped for a header that was written after the offset
// expected there had been synced, and returns its position. Then what stood there is damaged, and not
// torn. The header proves it alone: its own records may be missing.
func (w *walk) proof() (position int64, h frameHeader, found bool, err error) {
	for p := w.position; w.window.size-p >= frameHeaderBytes; {
		b, err := w.window.some(p, w.window.size-p)
		if err != nil {
			return 0, h, false, w.failed(err)
		}
		i := 0
		for ; i+frameHeaderBytes <= len(b); i += frameAlign {
			if !isKind(binary.LittleEndian.Uint32(b[i:])) {
				continue
			}
			if h.open(b[i:], sumStart(w.segment.seed, p+int64(i))) && h.first >= w.next && h.synced > w.next {
				return p + int64(i), h, true, nil
			}
		}
		if i == 0 { // the window ends inside the header: read on from here
			if err := w.window.fill(p, frameHeaderBytes); err != nil {
				return 0, h, false, w.failed(err)
			}
			if len(w.window.bytes) < frameHeaderBytes {
				break
			}
		}
		p += int64(i)
	}
	return 0, h, false, nil
}

// rewrite writes the frames from w.unsynced to w.position over themselves and syncs them. Reading them
// proves nothing about the medium: when a sync fails, the system may keep what it could not write readable,
// count it as written, and report success for the next sync.
//
// For the same reason it writes zeros over the header of a torn frame behind them, whether one can be seen
// or not: were it still there when the next frame is torn in turn, that one's bytes could make it whole.
func (w *walk) rewrite() error {
	for p := w.unsynced; p < w.position; {
		b, err := w.window.some(p, min(w.position, w.window.size)-p)
		if err != nil {
			return w.failed(err)
		}
		if err := writeAt(w.window.file, w.segment.path, b, p); err != nil {
			return err
		}
		p += int64(len(b))
		if p >= w.window.size { // no padding behind the last frame
			break
		}
	}
	if n := min(frameHeaderBytes, w.window.size-w.position); n > 0 {
		if err := writeAt(w.window.file, w.segment.path, zeros[:n], w.position); err != nil {
			return err
		}
	}
	if err := w.window.file.Sync(); err != nil {
		return failed(w.segment.path, "sync what was recovered", err)
	}
	return nil
}

// renew puts a copy of the segment, up to where the walk has found its end, in its place: what is cached of the old file
// and is not on the medium may not get there by being written over (see fsys.File.Reload).
func (l *Log) renew(w *walk, found verdict) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w (the segment is copied because another process reads or maps it: end that, or make room for the copy)", err)
		}
	}()
	path := l.temporaryPath()
	file, err := l.fs.Create(path)
	if err != nil {
		return failed(path, "create", err)
	}
	defer func() {
		if err != nil {
			file.Close()
			l.fs.Remove(path)
		}
	}()
	size, end := w.window.size, w.position
	if found == metEnd {
		end += frameHeaderBytes
	}
	end = min(end, size)
	for p := int64(0); p < size; {
		var b []byte
		if p < end {
			if b, err = w.window.some(p, end-p); err != nil {
				return w.failed(err)
			}
		} else {
			b = zeros[:min(size-p, zeroBytes)]
		}
		if err := writeAt(file, path, b, p); err != nil {
			return err
		}
		p += int64(len(b))
	}
	if err := file.Sync(); err != nil {
		return failed(path, "sync what was recovered", err)
	}
	if err := l.fs.Rename(path, w.segment.path); err != nil {
		return failed(path, "rename", err)
	}
	l.file.Close()
	l.file, w.window.file = file, file
	return nil
}

func (w *walk) failed(err error) error {
	return failed(w.segment.path, fmt.Sprintf("read at %d", w.position), err)
}

func (w *walk) damage(why string, args ...any) error {
	return &DamageError{Segment: w.segment.path, Position: w.position, Offset: w.next, Why: fmt.Sprintf(why, args...)}
}

// inner checks a segment that others follow, the next of which begins at offset limit. It was synced
// before that one came to be, so whatever is missing in it was acknowledged.
func (w *walk) inner(limit uint64) error {
	found, err := w.run(limit)
	switch {
	case err != nil:
		return err
	case found == reachedLimit:
		return nil
	case found == metNext:
		return w.damage("the segment that begins at this offset is missing, the next one there is begins at offset %d", limit)
	case found == metEnd:
		return w.damage("the log was closed here, but a segment that begins at offset %d follows", limit)
	default:
		return w.damage("no whole frame is there, but a segment that begins at offset %d follows", limit)
	}
}

// last checks the last segment. What it finds is metEnd, or metInvalid where the log ends without a mark.
func (w *walk) last() (verdict, error) {
	found, err := w.run(^uint64(0))
	if err != nil {
		return found, err
	}
	if found == metNext {
		return found, w.damage("the log goes on in a segment that begins at this offset, and it is missing")
	}
	// An end mark too is only the end if nothing proves otherwise: where the disk has lost the write of the next
	// session's first frame, the mark under it shows again.
	at, h, damaged, err := w.proof()
	if err != nil {
		return found, err
	}
	if damaged {
		what := "no whole frame is there"
		if found == metEnd {
			what = "the log was closed here"
		}
		return found, w.damage("%s, but byte %d holds a frame that was written after every offset below %d had been synced", what, at, h.synced)
	}
	return found, nil
}
