package peers

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/record"
)

type pebbleDB struct {
	db   *pebble.DB
	next atomic.Uint64
}

type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
func (silent) Fatalf(format string, args ...any) {
	panic("pebble: " + format)
}

// openPebble: pebble.Sync on every Set; MemTableSize 64 MiB, as CockroachDB sets it, so that flushes are rare and
// their WALs recycled; FormatNewest; WALMinSyncInterval unset, since it trades latency for batch size.
func openPebble(dir string) (Committer, error) {
	db, err := pebble.Open(dir, &pebble.Options{
		MemTableSize:       64 << 20,
		FormatMajorVersion: pebble.FormatNewest,
		Logger:             silent{},
	})
	if err != nil {
		return nil, err
	}
	return &pebbleDB{db: db}, nil
}

func (p *pebbleDB) Commit(b []byte) error {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], p.next.Add(1))
	return p.db.Set(key[:], b, pebble.Sync)
}

func (p *pebbleDB) Close() error { return p.db.Close() }

func readPebble(dir string, yield func([]byte)) (err error) {
	db, err := pebble.Open(dir, &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: silent{}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	it, err := db.NewIter(nil)
	if err != nil {
		return err
	}
	for valid := it.First(); valid; valid = it.Next() {
		yield(it.Value())
	}
	return it.Close()
}

// logWriter is the WAL of pebble without the database: record.LogWriter, which groups the syncs of concurrent
// callers by itself.
type logWriter struct {
	mu   sync.Mutex // SyncRecord wants its callers one at a time
	w    *record.LogWriter
	room chan struct{} // no more than record.SyncConcurrency may wait
}

// zeroedBytes is how far the LogWriter's file is filled with zeros ahead for commits. Beyond it the file grows.
const zeroedBytes = 128 << 20

// zeroedFile is what pebble makes of a recycled WAL: bytes that were written before, so that a sync changes no
// metadata, and fdatasync.
type zeroedFile struct{ *os.File }

func (z zeroedFile) Sync() error {
	for {
		if err := syscall.Fdatasync(int(z.Fd())); err != syscall.EINTR {
			return err
		}
	}
}

func openLogWriter(dir string) (Committer, error) { return OpenLogWriter(dir, zeroedBytes) }

// OpenLogWriter opens the LogWriter on a file with so many zeros ahead: a zeroed file, the best case of WAL recycling; the recyclable chunk format, which such a file
// needs; QueueSemChan as every caller must set it; no WALMinSyncInterval.
func OpenLogWriter(dir string, zeroed int64) (Submitter, error) {
	file, err := os.Create(filepath.Join(dir, "000001.log"))
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, 1<<20)
	for range zeroed / int64(len(zeros)) {
		if _, err := file.Write(zeros); err != nil {
			return nil, err
		}
	}
	if err := file.Sync(); err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	l := &logWriter{room: make(chan struct{}, record.SyncConcurrency)}
	l.w = record.NewLogWriter(zeroedFile{file}, 1, record.LogWriterConfig{
		QueueSemChan:        l.room,
		WriteWALSyncOffsets: func() bool { return false },
	})
	return l, nil
}

type syncWait struct {
	group sync.WaitGroup
	err   error
}

var syncWaits = sync.Pool{New: func() any { return new(syncWait) }}

func (l *logWriter) Commit(b []byte) error {
	wait := syncWaits.Get().(*syncWait)
	defer syncWaits.Put(wait)
	wait.err = nil
	wait.group.Add(1)
	l.room <- struct{}{} // the LogWriter takes it out again when the sync is done
	l.mu.Lock()
	_, err := l.w.SyncRecord(b, &wait.group, &wait.err)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	wait.group.Wait()
	return wait.err
}

// Submit is WriteRecord.
func (l *logWriter) Submit(b []byte) error {
	l.mu.Lock()
	_, err := l.w.WriteRecord(b)
	l.mu.Unlock()
	return err
}

// Drain is an empty record with a sync, which covers all before it.
func (l *logWriter) Drain() error { return l.Commit(nil) }

func (l *logWriter) Close() error { return l.w.Close() }

func readLogWriter(dir string, yield func([]byte)) error {
	file, err := os.Open(filepath.Join(dir, "000001.log"))
	if err != nil {
		return err
	}
	defer file.Close()
	r := record.NewReader(file, 1)
	for {
		one, err := r.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, record.ErrInvalidChunk) || errors.Is(err, record.ErrZeroedChunk) {
			return nil // the zeros behind the last record
		}
		if err != nil {
			return err
		}
		b, err := io.ReadAll(one)
		if err != nil {
			return err
		}
		yield(b)
	}
}
