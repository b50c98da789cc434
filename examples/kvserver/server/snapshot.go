package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/seed080d9131/lifecycle/commitlog"
)

// A data directory holds
//
//	log/         the commit log
//	snapshots/   NNNNNNNNNNNNNNNNNNNN.snapshot, the state before the record at that offset
//
// and whoever has the log open owns both.
func logDir(dir string) string      { return filepath.Join(dir, "log") }
func snapshotDir(dir string) string { return filepath.Join(dir, "snapshots") }

// reader is the part of the log that a recovery needs.
type reader interface {
	First() uint64
	Next() uint64
	Read(from uint64) iter.Seq2[commitlog.Entry, error]
}

// opened is a data directory that is open and recovered.
type opened struct {
	log      *commitlog.Log
	table    *table
	snapshot uint64 // offset of the newest; 0: none
}

// openState opens the log and rebuilds the state from the newest snapshot and what
// the log holds after it. On error nothing stays open.
func openState(dir string, segmentBytes int64) (opened, error) {
	log, err := commitlog.Open(logDir(dir), commitlog.Options{SegmentBytes: segmentBytes})
	if errors.Is(err, commitlog.ErrLocked) {
		return opened{}, fmt.Errorf("%s is in use by another server: %w", dir, err)
	}
	if err != nil {
		return opened{}, err
	}
	t, snapshot, err := recoverState(dir, log)
	if err != nil {
		return opened{}, errors.Join(err, log.Close())
	}
	return opened{log, t, snapshot}, nil
}

func recoverState(dir string, log reader) (_ *table, snapshot uint64, err error) {
	if err := prepareSnapshots(snapshotDir(dir)); err != nil {
		return nil, 0, err
	}
	offsets, err := listSnapshots(snapshotDir(dir))
	if err != nil {
		return nil, 0, err
	}
	t := newTable()
	from := "there is none"
	if len(offsets) > 0 {
		snapshot = offsets[len(offsets)-1]
		from = snapshotPath(snapshotDir(dir), snapshot)
		if t, err = readSnapshot(from, snapshot); err != nil {
			return nil, 0, fmt.Errorf("read the newest snapshot: %w; %s", err, advice(from, offsets, log.First()))
		}
	}
	switch {
	case t.next < log.First():
		return nil, 0, fmt.Errorf("%s: the log begins at offset %d, and the newest snapshot (%s) does not reach it: "+
			"what lies between is missing, so restore the directory from a copy", dir, log.First(), from)
	case t.next > log.Next():
		return nil, 0, fmt.Errorf("%s: the newest snapshot (%s) was taken at offset %d, but the log goes only to %d: "+
			"it has lost its end, or is another one, so restore the directory from a copy", dir, from, t.next, log.Next())
	}
	if err := t.replay(log); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", logDir(dir), err)
	}
	return t, snapshot, nil
}

// advice says what can be done about a newest snapshot that can't be read.
func advice(path string, offsets []uint64, first uint64) string {
	switch {
	case len(offsets) > 1 && offsets[len(offsets)-2] >= first:
		return fmt.Sprintf("the snapshot before it, at offset %d, and the log hold everything: move %s away and start again", offsets[len(offsets)-2], path)
	case first == 0:
		return fmt.Sprintf("the log still holds everything from its beginning: move %s away and start again", path)
	}
	return fmt.Sprintf("the log begins at offset %d, so what was before is in this file only: restore it from a copy", first)
}

// snapshotter writes snapshots and gives up the part of the log that they make
// superfluous. The task that calls it has ended when the checkpoint hook does, so
// it needs no lock.
type snapshotter struct {
	dir      string
	store    *store
	truncate func(before uint64) error
	last     uint64 // offset of the newest snapshot
}

// take writes a snapshot of the state as it is now, unless there is one already.
//
// The order is what makes it safe: the new file is whole and synced before it gets
// its name, the name is synced before anything older goes, and the log goes last.
// A crash anywhere leaves a snapshot and all of the log after it.
func (s *snapshotter) take(ctx context.Context) error {
	im := s.store.freeze()
	if im.next > s.last {
		if err := writeSnapshot(ctx, s.dir, im); err != nil {
			return fmt.Errorf("snapshot at offset %d: %w", im.next, err)
		}
		s.last = im.next
	}
	if err := removeBefore(s.dir, s.last); err != nil {
		return err
	}
	return s.truncate(s.last)
}

// The format of a snapshot, integers little-endian:
//
//	8   magic
//	8   offset: of the first record that is not in it
//	8   how many items follow
//	    each: version 8, expires 8, length of the key 2, of the value 4, key, value
//	4   CRC32C of everything before
var snapshotMagic = [8]byte{'K', 'V', 'S', 'N', 'A', 'P', 0, 1}

const (
	snapshotHeaderBytes = 8 + 8 + 8
	snapshotItemBytes   = 8 + 8 + 2 + 4
	snapshotSumBytes    = 4

	snapshotSuffix  = ".snapshot"
	temporarySuffix = ".tmp"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func snapshotPath(dir string, offset uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", offset, snapshotSuffix))
}

// prepareSnapshots makes the directory if need be, and removes what snapshots that
// a crash interrupted have left in it.
func prepareSnapshots(dir string) error {
	switch err := os.Mkdir(dir, 0o750); {
	case err == nil:
		return syncDir(filepath.Dir(dir))
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"+temporarySuffix))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// listSnapshots returns the offsets of the snapshots, in order.
func listSnapshots(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir) // by name, so by offset: the numbers have one width
	if err != nil {
		return nil, err
	}
	var offsets []uint64
	for _, entry := range entries {
		if digits, ok := strings.CutSuffix(entry.Name(), snapshotSuffix); ok && len(digits) == 20 {
			if offset, err := strconv.ParseUint(digits, 10, 64); err == nil {
				offsets = append(offsets, offset)
			}
		}
	}
	return offsets, nil
}

// removeBefore removes the snapshots that are older than the one at offset.
func removeBefore(dir string, offset uint64) error {
	offsets, err := listSnapshots(dir)
	if err != nil {
		return err
	}
	for _, older := range offsets {
		if older < offset {
			if err := os.Remove(snapshotPath(dir, older)); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeSnapshot makes the file of an image: whole, synced and under its name, or
// not at all. It gives up when ctx ends, at the latest before the name is given.
func writeSnapshot(ctx context.Context, dir string, im image) (err error) {
	file, err := os.CreateTemp(dir, "*"+temporarySuffix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeTemporary(file))
		}
	}()
	out := &summingWriter{out: bufio.NewWriterSize(file, 256<<10), sum: crc32.New(castagnoli)}
	b := append(make([]byte, 0, 1<<10), snapshotMagic[:]...)
	b = binary.LittleEndian.AppendUint64(b, im.next)
	b = binary.LittleEndian.AppendUint64(b, uint64(im.keys))
	out.write(b)
	n := 0
	for it := range im.all {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b = binary.LittleEndian.AppendUint64(b[:0], it.version)
		b = binary.LittleEndian.AppendUint64(b, uint64(it.expires))
		b = binary.LittleEndian.AppendUint16(b, uint16(len(it.key)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(it.value)))
		b = append(b, it.key...)
		out.write(b)
		out.write(it.value)
	}
	out.write(binary.LittleEndian.AppendUint32(b[:0], out.sum.Sum32()))
	if err := out.flush(); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := os.Rename(file.Name(), snapshotPath(dir, im.next)); err != nil {
		return err
	}
	return syncDir(dir)
}

// summingWriter keeps the sum of what it writes, and its first error.
type summingWriter struct {
	out *bufio.Writer
	sum hash.Hash32
	err error
}

func (w *summingWriter) write(b []byte) {
	if w.err == nil {
		_, w.err = w.out.Write(b)
		w.sum.Write(b)
	}
}

func (w *summingWriter) flush() error {
	if w.err != nil {
		return w.err
	}
	return w.out.Flush()
}

func removeTemporary(file *os.File) error {
	_ = file.Close() // it may be closed already
	if err := os.Remove(file.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// readSnapshot makes a table of a snapshot. It checks the whole file before it
// believes any of it.
func readSnapshot(path string, offset uint64) (*table, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	damaged := func(why string) (*table, error) { return nil, fmt.Errorf("%s is damaged: %s", path, why) }
	size := info.Size() - snapshotSumBytes
	if size < snapshotHeaderBytes {
		return damaged(fmt.Sprintf("it has %d bytes", info.Size()))
	}
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(file, 0, size)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var b [snapshotHeaderBytes]byte
	if _, err := file.ReadAt(b[:snapshotSumBytes], size); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if binary.LittleEndian.Uint32(b[:]) != sum.Sum32() {
		return damaged("it fails its checksum")
	}

	in := bufio.NewReaderSize(io.NewSectionReader(file, 0, size), 256<<10)
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if [8]byte(b[:8]) != snapshotMagic {
		return damaged("it is no snapshot of this format")
	}
	if is := binary.LittleEndian.Uint64(b[8:]); is != offset {
		return damaged(fmt.Sprintf("it was taken at offset %d, not at the one in its name", is))
	}
	t := newTable()
	t.next = offset
	for range binary.LittleEndian.Uint64(b[16:]) {
		it, err := readItem(in)
		if err != nil {
			return damaged("an item can't be read: " + err.Error())
		}
		t.put(it)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return damaged("something follows its last item")
	}
	return t, nil
}

func readItem(in io.Reader) (*item, error) {
	var b [snapshotItemBytes]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return nil, err
	}
	it := &item{version: binary.LittleEndian.Uint64(b[:]), expires: int64(binary.LittleEndian.Uint64(b[8:]))}
	keyBytes, valueBytes := binary.LittleEndian.Uint16(b[16:]), binary.LittleEndian.Uint32(b[18:])
	if keyBytes > maxKeyBytes || valueBytes > maxValueBytes {
		return nil, fmt.Errorf("a key of %d bytes with a value of %d", keyBytes, valueBytes)
	}
	key := make([]byte, keyBytes)
	if _, err := io.ReadFull(in, key); err != nil {
		return nil, err
	}
	it.key, it.value = string(key), make([]byte, valueBytes)
	_, err := io.ReadFull(in, it.value)
	return it, err
}

// syncDir makes the names in a directory durable. Windows has no such call; there
// it is the file system's journal that does.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync the directory: %w", err)
	}
	return nil
}
