package commitlog

import (
	"errors"
	"path/filepath"
	"strings"
	"time"
)

// A write into blocks that were written before needs nothing from the file system but the data's way to
// the disk; a file that grows, or whose blocks are only reserved, needs its journal as well, and a sync
// takes about twice as long. So segments come from blanks: files filled with zeros beforehand, and old
// segments, stale content and all. They are only the fast way: without one, a segment grows.

const (
	zeroBytes = 256 << 10

	// Blanks pay by the sync and cost by the byte: a log that appends more than this from one sync to the
	// next, on the average of the last few, does without the preparer.
	preparePerSync = 256 << 10

	// The preparer's writes delay the actor's syncs, most of all when they reach the disk together. So it sends
	// each piece of zeroBytes on its way at once, and pauses.
	zeroPause = time.Millisecond
)

var zeros [zeroBytes]byte

var errStopped = errors.New("stopped")

// zeroed makes a blank of the given size, as fill does.
func (l *Log) zeroed(path string, size int64, hurry func(done int64) bool) (blank, error) {
	file, err := l.fs.Create(path)
	if err != nil {
		return blank{}, failed(path, "create", err)
	}
	b := blank{path: path, file: file}
	if err := l.fill(&b, size, hurry); err != nil {
		b.discard(l.fs)
		return blank{}, err
	}
	return b, nil
}

// fill makes a blank as long as size, with zeros. It gives up when the log stops preparing, and takes its
// time unless it is in a hurry.
func (l *Log) fill(b *blank, size int64, hurry func(done int64) bool) error {
	for p := b.size; p < size; p += zeroBytes {
		if l.stopped.Load() {
			return errStopped
		}
		if p > b.size && !hurry(p) {
			time.Sleep(zeroPause)
		}
		n := min(zeroBytes, size-p)
		if err := writeAt(b.file, b.path, zeros[:n], p); err != nil {
			return err
		}
		b.file.Flush(p, n)
	}
	if err := b.file.Sync(); err != nil {
		return failed(b.path, "sync", err)
	}
	b.size = size
	return nil
}

// growing makes a blank without content.
func (l *Log) growing() (blank, error) {
	path := l.temporaryPath()
	file, err := l.fs.Create(path)
	if err != nil {
		return blank{}, failed(path, "create", err)
	}
	return blank{path: path, file: file}, nil
}

func (l *Log) temporaryPath() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names++
	return filepath.Join(l.dir, temporaryName(l.session, l.names))
}

// spareName is the name under which Close leaves a blank for the next Log. Only what was synced without an error gets it:
// another temporary file may have had a failed sync, and what is cached of it would then be taken for what is on the medium.
func spareName(name string) string {
	return sparePrefix + strings.TrimPrefix(name, temporaryPrefix)
}

// putBy leaves a blank for the next Log.
func (l *Log) putBy(b blank) {
	b.file.Close()
	if l.fs.Rename(b.path, filepath.Join(l.dir, spareName(filepath.Base(b.path)))) != nil {
		l.fs.Remove(b.path)
	}
}

// adopt takes a blank that an earlier Log has put by, if it is one of full size and there is use for it. What is in it
// doesn't matter. From here on it is a temporary file as any other. It is called before the log is used.
func (l *Log) adopt(name string) bool {
	if !l.wantsBlank() {
		return false
	}
	b := blank{path: l.temporaryPath()}
	spare := filepath.Join(l.dir, name)
	if l.fs.Rename(spare, b.path) != nil {
		return false
	}
	var err error
	if b.file, err = l.fs.Open(b.path, true); err == nil {
		if b.size, err = b.file.Size(); err == nil && b.size == l.segmentBytes && l.keepBlank(b) {
			return true
		}
		b.file.Close()
	}
	l.fs.Remove(b.path) // or else the next Open does
	return true
}

// askForBlank starts the preparer, unless it runs already or a blank is there. It is in a hurry when less of the
// blank is done than has been used of what the active segment had left, up to its capacity.
func (l *Log) askForBlank(size, capacity int64) {
	path := l.temporaryPath()
	from := l.position
	hurry := func(done int64) bool {
		return float64(l.reached.Load()-from)*float64(size) > float64(done)*float64(capacity-from)
	}
	done := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped.Load() || l.preparing != nil || len(l.blanks) > 0 {
		return
	}
	l.preparing = done
	go l.prepare(path, size, hurry, done)
}

// prepare is the preparer: it makes one blank and ends. Its failure is nobody's error.
func (l *Log) prepare(path string, size int64, hurry func(done int64) bool, done chan struct{}) {
	defer close(done)
	b, err := l.zeroed(path, size, hurry)
	l.mu.Lock()
	stopped := l.stopped.Load()
	if !stopped { // or else Close waits for done
		l.preparing = nil
		if err == nil {
			l.blanks = append(l.blanks, b)
		}
	}
	l.mu.Unlock()
	if stopped && err == nil {
		b.discard(l.fs)
	}
}

// takeBlank returns a blank if there is one.
func (l *Log) takeBlank() (b blank, found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.blanks) == 0 {
		return blank{}, false
	}
	b = l.blanks[0]
	l.blanks = append(l.blanks[:0], l.blanks[1:]...)
	return b, true
}

// keepBlank takes b for a later segment, if it is wanted.
func (l *Log) keepBlank(b blank) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped.Load() || len(l.blanks) >= l.spares {
		return false
	}
	l.blanks = append(l.blanks, b)
	return true
}

// wantsBlank reports whether keepBlank would take one now.
func (l *Log) wantsBlank() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.stopped.Load() && len(l.blanks) < l.spares
}

func (l *Log) hasBlank() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.blanks) > 0
}

// stopPreparing keeps new blanks from being made, and returns what to wait for: nil, or a channel that is
// closed when the preparer has ended.
func (l *Log) stopPreparing() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped.Store(true)
	return l.preparing
}
