package commitlog

import (
	"errors"
	"io"

	"github.com/seed080d9131/lifecycle/internal/fsys"
)

// windowBytes is how much is read at once: enough that a read's cost vanishes, and little enough to
// stay in the processor's cache until it has been checked.
const windowBytes = 256 << 10

// window reads a file through one buffer.
type window struct {
	file  fsys.File
	size  int64  // nothing behind it is read
	start int64  // position of bytes[0]
	bytes []byte // what was read
}

// at returns n bytes at the position, valid until the next call. It fails with io.ErrUnexpectedEOF if
// the file ends before, which only happens when n reaches beyond size, or the file shrinks.
func (w *window) at(position int64, n int) ([]byte, error) {
	if b := w.have(position); len(b) >= n {
		return b[:n], nil
	}
	if err := w.fill(position, n); err != nil {
		return nil, err
	}
	if len(w.bytes) < n {
		return nil, io.ErrUnexpectedEOF
	}
	return w.bytes[:n], nil
}

// some returns between 1 and n bytes at the position, as many as one read gives.
func (w *window) some(position int64, n int64) ([]byte, error) {
	b := w.have(position)
	if len(b) == 0 {
		if err := w.fill(position, 1); err != nil {
			return nil, err
		}
		if b = w.bytes; len(b) == 0 {
			return nil, io.ErrUnexpectedEOF
		}
	}
	if int64(len(b)) > n {
		b = b[:n]
	}
	return b, nil
}

// have returns what the window holds from the position on, without reading: perhaps nothing.
func (w *window) have(position int64) []byte {
	if i := position - w.start; i >= 0 && i < int64(len(w.bytes)) {
		return w.bytes[i:]
	}
	return nil
}

// fill reads from the position on: a bufferful, at least n if the file has them.
func (w *window) fill(position int64, n int) error {
	want := max(n, windowBytes)
	if rest := w.size - position; int64(want) > rest {
		want = int(max(rest, 0))
	}
	if cap(w.bytes) < want {
		w.bytes = make([]byte, want)
	}
	w.start, w.bytes = position, w.bytes[:want]
	got, err := w.file.ReadAt(w.bytes, position)
	w.bytes = w.bytes[:got]
	if err != nil && !errors.Is(err, io.EOF) {
		w.bytes = w.bytes[:0]
		return err
	}
	return nil
}
