package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Zeroed is a file whose every block has been written and synced, so that a write into it and its sync change no
// metadata of the file system: the fastest file there is to commit to.
type Zeroed struct {
	plain, dsync *os.File // the same file; dsync was opened with O_DSYNC
	bytes        int64
	at           int64
}

// NewZeroed makes such a file in dir.
func NewZeroed(dir string, bytes int64) (*Zeroed, error) {
	name := filepath.Join(dir, "zeroed")
	plain, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, 1<<20)
	for p := int64(0); p < bytes; p += int64(len(zeros)) {
		if _, err := plain.WriteAt(zeros[:min(int64(len(zeros)), bytes-p)], p); err != nil {
			return nil, err
		}
	}
	if err := plain.Sync(); err != nil {
		return nil, err
	}
	dsync, err := os.OpenFile(name, os.O_WRONLY|syscall.O_DSYNC, 0)
	if err != nil {
		return nil, err
	}
	return &Zeroed{plain: plain, dsync: dsync, bytes: bytes}, nil
}

// Close gives the file up. Its name stays.
func (z *Zeroed) Close() error {
	_ = z.dsync.Close()
	return z.plain.Close()
}

// Stream writes n bytes from the file's beginning in pieces of 1 MiB, syncs once, and returns how long that took:
// the limit of whatever has to bring as many bytes to the disk. The file must be at least that long.
func (z *Zeroed) Stream(n int64) (time.Duration, error) {
	if n > z.bytes {
		return 0, fmt.Errorf("%d bytes into a file of %d", n, z.bytes)
	}
	piece := make([]byte, 1<<20)
	for i := range piece {
		piece[i] = byte(i)
	}
	start := time.Now()
	for p := int64(0); p < n; p += int64(len(piece)) {
		if _, err := z.plain.WriteAt(piece[:min(int64(len(piece)), n-p)], p); err != nil {
			return 0, err
		}
	}
	if err := z.sync(); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

func (z *Zeroed) sync() error {
	for {
		if err := syscall.Fdatasync(int(z.plain.Fd())); err != syscall.EINTR {
			return err
		}
	}
}

// next returns where the next n bytes go: behind the last ones, around the end.
func (z *Zeroed) next(n int) int64 {
	if z.at+int64(n) > z.bytes {
		z.at = 0
	}
	at := z.at
	z.at += int64(n)
	return at
}

// Pages is the disk's limit: how many 4 KiB pages a second one goroutine can write with O_DSYNC. P committers that
// wait can't commit more than p times as often, however well they are grouped.
func (z *Zeroed) Pages(warmup, measure time.Duration) (Result, error) {
	page := make([]byte, 4096)
	z.at = (z.at + 4095) &^ 4095
	return Loop{Workers: 1, Warmup: warmup, Measure: measure, Op: func(int) error {
		_, err := z.dsync.WriteAt(page, z.next(len(page)))
		return err
	}}.Run()
}

// Records is the bare loop of one goroutine: it writes n bytes behind the last ones, calls fdatasync, and repeats.
func (z *Zeroed) Records(n int, warmup, measure time.Duration) (Result, error) {
	record := make([]byte, n)
	for i := range record {
		record[i] = byte(i)
	}
	return Loop{Workers: 1, Warmup: warmup, Measure: measure, Op: func(int) error { return z.WriteAndSync(record) }}.Run()
}

// WriteAndSync writes b behind what was written last and calls fdatasync.
func (z *Zeroed) WriteAndSync(b []byte) error {
	if _, err := z.plain.WriteAt(b, z.next(len(b))); err != nil {
		return err
	}
	return z.sync()
}

// Flushes returns how many cache flushes the block device under dir has completed since the machine started, for whatever
// program; ok is false where that can't be told. A commit that is durable on a device with a volatile cache takes
// one, or shares one, so fewer flushes than batches during a measure prove that somebody cheats. More prove nothing.
func Flushes(dir string) (n uint64, ok bool) {
	var stat syscall.Stat_t
	if syscall.Stat(dir, &stat) != nil {
		return 0, false
	}
	dev := uint64(stat.Dev)
	major := (dev>>8)&0xfff | (dev>>32)&^0xfff
	minor := dev&0xff | (dev>>12)&^0xff
	base := fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)
	cache, err := os.ReadFile(filepath.Join(base, "queue", "write_cache"))
	if err != nil || strings.TrimSpace(string(cache)) != "write back" {
		return 0, false
	}
	// A volatile cache may also be passed by writes with the FUA bit, which this count does not show.
	if fua, err := os.ReadFile(filepath.Join(base, "queue", "fua")); err != nil || strings.TrimSpace(string(fua)) != "0" {
		return 0, false
	}
	raw, err := os.ReadFile(filepath.Join(base, "stat"))
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(raw))
	const flushes = 15 // Documentation/block/stat.rst: the 16th value, since Linux 5.5
	if len(fields) <= flushes {
		return 0, false
	}
	n, err = strconv.ParseUint(fields[flushes], 10, 64)
	return n, err == nil
}
