package bboltlog

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

// disk is a directory with a database, whose file can be made to fail.
type disk struct {
	dir   string
	path  string
	lives int
	file  *os.File // of the database that is open
}

func (d *disk) open(commitBytes int) (lifecycle.Log, error) {
	var file *os.File
	db, err := bbolt.Open(d.path, 0o600, &bbolt.Options{
		Timeout: 10 * time.Millisecond,
		OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
			f, err = os.OpenFile(name, flag, mode)
			file = f
			return f, err
		},
	})
	if err != nil {
		return nil, err
	}
	log, err := Open(db, Options{Bucket: "log", CloseDB: true, commitBytes: commitBytes})
	if err != nil {
		return nil, err
	}
	d.file = file
	return &failing{Log: log}, nil
}

// crash is what a killed process leaves: the file as it is.
func (d *disk) crash(log lifecycle.Log) error {
	from, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer from.Close()
	d.lives++
	path := filepath.Join(d.dir, fmt.Sprintf("%d.db", d.lives))
	to, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	d.path = path
	_ = log.Close() // in a world that the copy has left
	return to.Close()
}

// fail puts another file under the database's descriptor until a call of the log
// has failed: one that is open for reading, which no write reaches, or the null
// device, which takes what is written, and has no sync.
func (d *disk) fail(log *failing, op lifecycletest.Op) error {
	name := d.path
	if op == lifecycletest.Sync {
		name = os.DevNull
	}
	flag := os.O_RDONLY
	if op == lifecycletest.Sync {
		flag = os.O_RDWR
	}
	other, err := os.OpenFile(name, flag, 0)
	if err != nil {
		return err
	}
	defer other.Close()
	fd := int(d.file.Fd())
	saved, err := syscall.Dup(fd)
	if err != nil {
		return err
	}
	if err := syscall.Dup3(int(other.Fd()), fd, syscall.O_CLOEXEC); err != nil {
		return err
	}
	log.repair = func() error {
		defer syscall.Close(saved)
		return syscall.Dup3(saved, fd, syscall.O_CLOEXEC)
	}
	return nil
}

// failing is a log whose medium works again as soon as a call has failed.
type failing struct {
	*Log
	repair func() error
}

func (f *failing) after(err error) error {
	if err != nil && f.repair != nil {
		if err := f.repair(); err != nil {
			panic(err)
		}
		f.repair = nil
	}
	return err
}

func (f *failing) Append(txs [][]byte) error { return f.after(f.Log.Append(txs)) }
func (f *failing) Sync() error               { return f.after(f.Log.Sync()) }
func (f *failing) AppendBatch(batch []byte, n int) error {
	return f.after(f.Log.AppendBatch(batch, n))
}

func place(commitBytes int) func(t testing.TB) lifecycletest.LogPlace {
	return func(t testing.TB) lifecycletest.LogPlace {
		dir := t.TempDir()
		d := &disk{dir: dir, path: filepath.Join(dir, "0.db")}
		return lifecycletest.LogPlace{
			Open: func() (lifecycle.Log, error) { return d.open(commitBytes) },
			Read: func(log lifecycle.Log, from lifecycle.Offset, visit func(lifecycle.Offset, []byte)) error {
				for entry, err := range log.(*failing).Read(from) {
					if err != nil {
						return err
					}
					visit(entry.Offset, entry.Data)
				}
				return nil
			},
			Exclusive:           true,
			ReadsWhileAppending: true,
			Crash:               func(log lifecycle.Log, _ uint64) error { return d.crash(log) },
			Fail: func(log lifecycle.Log, op lifecycletest.Op) error {
				return d.fail(log.(*failing), op)
			},
			LargestTransaction: largest(),
		}
	}
}

func TestTheLogIsWhatAHostTakesItFor(t *testing.T) {
	lifecycletest.CheckLog(t, place(0))
}

// More than fits into a commit is committed in parts before Sync.
func TestTheLogIsWhatAHostTakesItForWhereItCommitsEarly(t *testing.T) {
	lifecycletest.CheckLog(t, place(20_000))
}
