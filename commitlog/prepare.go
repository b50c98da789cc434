package commitlog

import (
	"errors"
	"fmt"
	"path/filepath"
)

// A write into blocks that were written before needs nothing from the file system but the data's way to
// the disk; a file that grows, or whose blocks are only reserved, needs its journal as well, and a sync
// takes about twice as long. So segments come from blanks: files filled with zeros beforehand, and old
// segments, stale content and all. They are only the fast way: without one, a segment grows.

const (
	zeroBytes = 256 << 10
	maxBlanks = 2

	// Blanks pay by the sync and cost by the byte: a log that appends more than this from one sync to the
	// next, on the average, does without the preparer.
	preparePerSync = 256 << 10
)

var zeros [zeroBytes]byte

var errStopped = errors.New("stopped")

// zeroed makes a blank of the given size. It gives up when the log stops preparing.
func (l *Log) zeroed(path string, size int64) (blank, error) {
	file, err := l.fs.Create(path)
	if err != nil {
		return blank{}, failed(path, "create", err)
	}
	b := blank{path: path, file: file, size: size}
	for p := int64(0); p < size && err == nil; p += zeroBytes {
		if l.stopped.Load() {
			err = errStopped
			break
		}
		err = writeAt(file, path, zeros[:min(zeroBytes, size-p)], p)
	}
	if err == nil {
		if err = file.Sync(); err != nil {
			err = failed(path, "sync", err)
		}
	}
	if err != nil {
		b.discard(l.fs)
		return blank{}, err
	}
	return b, nil
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
	return filepath.Join(l.dir, fmt.Sprintf("%s%06d%s", temporaryPrefix, l.names, temporarySuffix))
}

// askForBlank starts the preparer, unless it runs already or a blank is there.
func (l *Log) askForBlank(size int64) {
	path := l.temporaryPath()
	done := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped.Load() || l.preparing != nil || len(l.blanks) > 0 {
		return
	}
	l.preparing = done
	go l.prepare(path, size, done)
}

// prepare is the preparer: it makes one blank and ends. Its failure is nobody's error.
func (l *Log) prepare(path string, size int64, done chan struct{}) {
	defer close(done)
	b, err := l.zeroed(path, size)
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
	if l.stopped.Load() || len(l.blanks) >= maxBlanks {
		return false
	}
	l.blanks = append(l.blanks, b)
	return true
}

// wantsBlank reports whether keepBlank would take one now.
func (l *Log) wantsBlank() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.stopped.Load() && len(l.blanks) < maxBlanks
}

// stopPreparing keeps new blanks from being made, and returns what to wait for: nil, or a channel that is
// closed when the preparer has ended.
func (l *Log) stopPreparing() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped.Store(true)
	return l.preparing
}
