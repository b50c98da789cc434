package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/seed080d9131/lifecycle/internal/fsys"
)

const (
	segmentHeaderBytes = 4096
	segmentVersion     = 1
	segmentMagic       = "LCLOGSEG"

	segmentSuffix = ".log"
	baseDigits    = 20

	temporaryPrefix = "prepare-"
	sparePrefix     = "spare-"
	temporarySuffix = ".tmp"

	lockName = "lock"
)

type identity [16]byte

// segment describes a segment file under its final name. It never changes.
type segment struct {
	path      string
	base      uint64 // offset of its first transaction
	capacity  int64  // position that no frame passes; the file may be shorter
	allocated int64  // size of the file when it got its name
	seed      uint32 // where its frames' sums start
	sum       uint32 // of its header
}

// recyclable reports whether the file's blocks are all in place, so that writing over them needs none.
func (s *segment) recyclable() bool { return s.allocated == s.capacity }

func segmentName(base uint64) string {
	return fmt.Sprintf("%0*d%s", baseDigits, base, segmentSuffix)
}

// parseSegmentName returns the base offset in a segment's file name.
func parseSegmentName(name string) (base uint64, ok bool) {
	digits, found := strings.CutSuffix(name, segmentSuffix)
	if !found || len(digits) != baseDigits {
		return 0, false
	}
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	base, err := strconv.ParseUint(digits, 10, 64)
	return base, err == nil
}

// temporaryName is one that no other session gives: not even in a directory that has taken the place of this one's can it
// mean another log's file.
func temporaryName(session uint64, number int) string {
	return fmt.Sprintf("%s%016x-%06d%s", temporaryPrefix, session, number, temporarySuffix)
}

func isSpareName(name string) bool {
	return strings.HasPrefix(name, sparePrefix) && strings.HasSuffix(name, temporarySuffix)
}

func isTemporaryName(name string) bool {
	return strings.HasPrefix(name, temporaryPrefix) && strings.HasSuffix(name, temporarySuffix)
}

// encodeHeader fills in a segment's header, and sets the segment's seed and sum.
func (s *segment) encodeHeader(id identity) []byte {
	header := make([]byte, segmentHeaderBytes)
	le := binary.LittleEndian
	copy(header, segmentMagic)
	le.PutUint32(header[8:], segmentVersion)
	le.PutUint32(header[12:], segmentHeaderBytes)
	copy(header[16:], id[:])
	le.PutUint64(header[32:], s.base)
	le.PutUint64(header[40:], uint64(s.capacity))
	le.PutUint64(header[48:], uint64(s.allocated))
	s.seed = crc32.Checksum(header[16:40], castagnoli)
	s.sum = crc32.Checksum(header[:segmentHeaderBytes-4], castagnoli)
	le.PutUint32(header[segmentHeaderBytes-4:], s.sum)
	return header
}

// readHeader reads and checks the header of the segment file at path, whose name says base.
func readHeader(file fsys.File, path string, base uint64) (*segment, identity, error) {
	header := make([]byte, segmentHeaderBytes)
	if _, err := file.ReadAt(header, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, identity{}, failed(path, "read its header", err)
	}
	le := binary.LittleEndian
	damaged := func(why string) (*segment, identity, error) {
		return nil, identity{}, &DamageError{Segment: path, Offset: base, Why: why}
	}
	if string(header[:8]) != segmentMagic {
		return damaged("the segment header is not one of this format")
	}
	sum := le.Uint32(header[segmentHeaderBytes-4:])
	if crc32.Checksum(header[:segmentHeaderBytes-4], castagnoli) != sum {
		return damaged("the segment header fails its checksum")
	}
	if v := le.Uint32(header[8:]); v != segmentVersion {
		return nil, identity{}, failed(path, "read its header",
			fmt.Errorf("format version %d, but this package knows only version %d", v, segmentVersion))
	}
	s := &segment{
		path:      path,
		base:      le.Uint64(header[32:]),
		capacity:  int64(min(le.Uint64(header[40:]), math.MaxInt64)),
		allocated: int64(min(le.Uint64(header[48:]), math.MaxInt64)),
		seed:      crc32.Checksum(header[16:40], castagnoli),
		sum:       sum,
	}
	if s.base != base {
		return damaged(fmt.Sprintf("the segment header says offset %d, not the file's name", s.base))
	}
	return s, identity(header[16:32]), nil
}

// blank is a file without a final name, to become a segment. The zero value stands for none.
type blank struct {
	path string
	file fsys.File
	size int64 // of the file, all of it on the medium
}

// discard closes and removes b. What is not removed, the next Open removes.
func (b blank) discard(fs fsys.FS) {
	b.file.Close()
	fs.Remove(b.path)
}

// install makes b the segment of the log that begins at offset base. The header is on the medium before
// the name is given, and the name before install returns: a segment under its final name has a whole
// header, or is damaged. When install fails, b is gone, or under the name of an empty segment.
func (l *Log) install(b blank, base uint64, capacity int64) (*segment, error) {
	s := &segment{
		path:      filepath.Join(l.dir, segmentName(base)),
		base:      base,
		capacity:  capacity,
		allocated: max(b.size, segmentHeaderBytes),
	}
	if err := writeAt(b.file, b.path, s.encodeHeader(l.identity), 0); err != nil {
		b.discard(l.fs)
		return nil, err
	}
	if err := b.file.Sync(); err != nil {
		b.discard(l.fs)
		return nil, failed(b.path, "sync the segment header", err)
	}
	err := l.held()
	if err == nil {
		if err = l.fs.Rename(b.path, s.path); err != nil {
			err = failed(b.path, "rename it to "+filepath.Base(s.path), err)
		}
	}
	if err != nil {
		b.discard(l.fs)
		return nil, err
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		b.file.Close()
		return nil, failed(l.dir, "sync the directory", err)
	}
	return s, nil
}

// held fails if the directory at the log's path is another one, or has been taken for another Log, since the log was opened: what
// would be given a name, or removed, there is none of the log's. (An operator who restores a copy under a server that runs, or
// removes a lock file, does that.)
func (l *Log) held() error {
	if err := l.lock.Held(); err != nil {
		return failed(filepath.Join(l.dir, lockName), "look whether it is still the log's", err)
	}
	return nil
}

// writeAt is file.WriteAt with an error that says what was done, also for a short write without one.
func writeAt(file fsys.File, path string, p []byte, position int64) error {
	n, err := file.WriteAt(p, position)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return failed(path, fmt.Sprintf("write %d bytes at %d", len(p), position), err)
	}
	return nil
}
