package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"sort"
)

// Entry is one transaction as Read yields it.
type Entry struct {
	Offset uint64
	Data   []byte // valid until the next iteration
}

// Read yields the durable transactions from an offset on, in order, to the last one that was durable when
// Read was called. From there on, or beyond, it yields nothing: what is not durable yet can't be read yet.
//
// An error is yielded last, with a zero Entry: ErrTruncated if the offset lies before First, or if the
// segment that comes next was truncated meanwhile; ErrClosed once the log is closed; a *DamageError if
// something that was synced can't be read back as it was written; or the system's error.
//
// Every range over the sequence opens files of its own and closes them when it ends. It never blocks an
// append or a sync, nor waits for one. To find its beginning inside a segment it goes over the frame
// headers before it.
func (l *Log) Read(from uint64) iter.Seq2[Entry, error] {
	end := l.durable.Load()
	return func(yield func(Entry, error) bool) {
		r := reader{log: l, next: from, end: end}
		if err := r.run(yield); err != nil {
			yield(Entry{}, err)
		}
	}
}

// reader is one pass over the log.
type reader struct {
	log    *Log
	next   uint64 // the offset to yield next
	end    uint64
	window window
}

// run yields entries until the end, or until yield has had enough: then it returns nil too.
func (r *reader) run(yield func(Entry, error) bool) error {
	r.log.mu.Lock()
	segments := r.log.segments
	r.log.mu.Unlock()
	if r.log.closed.Load() {
		return failed(r.log.dir, "read", ErrClosed)
	}
	if r.next < segments[0].base {
		return r.truncated()
	}
	if r.next >= r.end {
		return nil
	}
	i := sort.Search(len(segments), func(i int) bool { return segments[i].base > r.next }) - 1
	for ; r.next < r.end; i++ {
		limit := r.end
		if i+1 < len(segments) {
			limit = min(limit, segments[i+1].base)
		}
		more, err := r.segment(segments[i], limit, yield)
		if err != nil {
			return r.reason(segments[i], err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// reason returns what an error in reading a segment comes from. A segment leaves the log's list before
// anything happens to its file, and the log is marked as closed before it gives up anything.
func (r *reader) reason(s *segment, err error) error {
	switch {
	case r.log.closed.Load():
		return failed(r.log.dir, "read", ErrClosed)
	case r.log.First() > s.base:
		return r.truncated()
	default:
		return err
	}
}

func (r *reader) truncated() error {
	return failed(r.log.dir, fmt.Sprintf("read from offset %d", r.next), ErrTruncated)
}

// segment yields the entries of one segment from r.next to limit, and reports whether more are wanted.
func (r *reader) segment(s *segment, limit uint64, yield func(Entry, error) bool) (more bool, err error) {
	file, err := r.log.fs.Open(s.path, false)
	if err != nil {
		return false, failed(s.path, "open", err)
	}
	defer file.Close()
	if err := r.log.held(); err != nil {
		return false, err
	}
	size, err := file.Size()
	if err != nil {
		return false, failed(s.path, "ask for its size", err)
	}
	r.window = window{file: file, size: size, bytes: r.window.bytes[:0]}

	var h frameHeader
	position, first := int64(segmentHeaderBytes), s.base
	for first < limit {
		if r.log.closed.Load() {
			return false, ErrClosed
		}
		damage := func(why string) error {
			return &DamageError{Segment: s.path, Position: position, Offset: first, Why: why}
		}
		b, err := r.window.at(position, frameHeaderBytes)
		if err != nil {
			return false, r.failed(s, position, first, err)
		}
		start := sumStart(s.seed, position)
		if !h.open(b, start) || h.kind != kindData || h.first != first || h.end(position) > size {
			return false, damage("no frame is there, but this part of the log was synced")
		}
		if last := first + uint64(h.count); last > r.next {
			payload, err := r.window.at(position+frameHeaderBytes, int(h.length))
			if err != nil {
				return false, r.failed(s, position, first, err)
			}
			if crc32.Update(start, castagnoli, payload) != h.payloadSum {
				return false, damage("the frame's records fail their checksum, but this part of the log was synced")
			}
			for offset := first; offset < last; offset++ {
				if len(payload) < recordHeader {
					return false, damage("the frame ends before its last record")
				}
				n := binary.LittleEndian.Uint32(payload)
				payload = payload[recordHeader:]
				if uint64(n) > uint64(len(payload)) {
					return false, damage("a record ends outside its frame")
				}
				if offset == r.next {
					if !yield(Entry{Offset: offset, Data: payload[:n:n]}, nil) {
						return false, nil
					}
					r.next++
				}
				payload = payload[n:]
			}
		}
		position, first = align(h.end(position)), first+uint64(h.count)
	}
	return true, nil
}

func (r *reader) failed(s *segment, position int64, offset uint64, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &DamageError{Segment: s.path, Position: position, Offset: offset, Why: "the file ends there, but this part of the log was synced"}
	}
	return failed(s.path, fmt.Sprintf("read at %d", position), err)
}
