package commitlog

import (
	"errors"

	"github.com/seed080d9131/lifecycle/internal/fsys"
)

// TruncateBefore gives up the transactions before an offset, by whole segments: those that end at or
// before it, oldest first, but never the one that is written to. First tells what is left. Up to Options.SpareSegments of the
// files are kept for segments to come.
//
// Any goroutine may call it. It blocks for the file operations, with pauses where a kept file has to be filled up (a fifth
// of a second for one of 64 MiB at most), and for other calls of it, not for appends
// or readers; readers of what goes get ErrTruncated. A crash in between leaves a log that begins with some
// later segment. An error leaves the log usable, with the segment that it names perhaps still there. The next call tries
// again, but after a failed sync of the directory: then it refuses until the log is opened again.
func (l *Log) TruncateBefore(offset uint64) error {
	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	for l.truncateErr == nil {
		if l.closed.Load() {
			return failed(l.dir, "truncate", ErrClosed)
		}
		if err := l.held(); err != nil {
			return err
		}
		if l.removed {
			if err := l.syncRemoval(); err != nil {
				return err
			}
		}
		s := l.takeOldest(offset)
		if s == nil {
			return nil
		}
		if err := l.release(s); err != nil {
			return err
		}
	}
	return failed(l.dir, "refused to truncate, since it has failed before", l.truncateErr)
}

// takeOldest takes the oldest segment off the list, if all of it lies before the offset.
func (l *Log) takeOldest(offset uint64) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segments) < 2 || l.segments[1].base > offset {
		return nil
	}
	s := l.segments[0]
	l.segments = l.segments[1:]
	return s
}

// putBack undoes takeOldest.
func (l *Log) putBack(s *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = append([]*segment{s}, l.segments...)
}

// release takes a segment's name away, for good when it returns: the next one may not go before, or a
// power failure could leave a gap that looks like damage.
func (l *Log) release(s *segment) error {
	var b blank
	if s.capacity == l.segmentBytes && l.wantsBlank() {
		b = l.reopen(s)
	}
	var err error
	if b.file != nil {
		if err = l.fs.Rename(s.path, b.path); err != nil {
			b.file.Close()
			err = failed(s.path, "rename it to recycle it", err)
		}
	} else if err = l.fs.Remove(s.path); err != nil {
		err = failed(s.path, "remove", err)
	}
	if err != nil {
		l.putBack(s)
		return err
	}
	l.removed = true
	if err := l.syncRemoval(); err != nil {
		if b.file != nil {
			b.discard(l.fs)
		}
		return err
	}
	if b.file != nil && (b.size < s.capacity && l.fill(&b, s.capacity, func(int64) bool { return false }) != nil || !l.keepBlank(b)) {
		b.discard(l.fs)
	}
	return nil
}

// syncRemoval makes it durable that a segment's name is gone.
func (l *Log) syncRemoval() error {
	err := l.fs.SyncDir(l.dir)
	if err == nil {
		l.removed = false
		return nil
	}
	err = failed(l.dir, "sync the directory", err)
	if !errors.Is(err, fsys.ErrNotTried) {
		l.truncateErr = err
	}
	return err
}

// reopen opens a segment's file for its next life; without success, or if it is larger than a segment
// should be, or so much smaller that most of it would have to be filled up, the zero blank.
func (l *Log) reopen(s *segment) blank {
	file, err := l.fs.Open(s.path, true)
	if err != nil {
		return blank{}
	}
	size, err := file.Size()
	if err != nil || size > s.capacity || size < s.capacity/2 {
		file.Close()
		return blank{}
	}
	return blank{path: l.temporaryPath(), file: file, size: size}
}
