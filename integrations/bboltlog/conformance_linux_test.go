package bboltlog

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
	db, file, err := openDB(d.path)
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

// openDB opens a database, and tells its file.
func openDB(path string) (db *bbolt.DB, file *os.File, err error) {
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: 10 * time.Millisecond,
		OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
			f, err = os.OpenFile(name, flag, mode)
			file = f
			return f, err
		},
	})
	return db, file, err
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
func (d *disk) fail(log *failing, op lifecycletest.Op) (err error) {
	name := d.path
	if op == lifecycletest.Sync {
		name = os.DevNull
	}
	flag := os.O_RDONLY
	if op == lifecycletest.Sync {
		flag = os.O_RDWR
	}
	log.repair, err = replace(d.file, name, flag)
	return err
}

// replace puts another file under a descriptor, until repair.
func replace(file *os.File, name string, flag int) (repair func() error, err error) {
	other, err := os.OpenFile(name, flag, 0)
	if err != nil {
		return nil, err
	}
	defer other.Close()
	fd := int(file.Fd())
	saved, err := syscall.Dup(fd)
	if err != nil {
		return nil, err
	}
	if err := syscall.Dup3(int(other.Fd()), fd, syscall.O_CLOEXEC); err != nil {
		return nil, err
	}
	return func() error {
		defer syscall.Close(saved)
		return syscall.Dup3(saved, fd, syscall.O_CLOEXEC)
	}, nil
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
	t.Parallel() // most of its time is the disk's
	lifecycletest.CheckLog(t, place(0))
}

// More than fits into a commit is committed in parts before Sync.
func TestTheLogIsWhatAHostTakesItForWhereItCommitsEarly(t *testing.T) {
	t.Parallel() // most of its time is the disk's
	lifecycletest.CheckLog(t, place(20_000))
}

// unsynced calls one that must fail, with a file under the database that takes what is
// written and has no sync. Then the medium works again.
func unsynced(t *testing.T, file *os.File, call func() error) {
	t.Helper()
	repair, err := replace(file, os.DevNull, os.O_RDWR)
	require.NoError(t, err)
	failure := call()
	require.NoError(t, repair())
	require.Error(t, failure)
}

const refused = "refused, since an update of this database has failed"

func TestAfterAFailedUpdateOfOneLogTheOthersOfTheDatabaseAreRefused(t *testing.T) {
	path := newPath(t)
	db, file, err := openDB(path)
	require.NoError(t, err)
	logs := map[string]*Log{}
	for _, name := range []string{"failing", "appends", "batches", "syncs", "truncates", "closes", "closes with nothing to sync"} {
		logs[name], err = Open(db, Options{Bucket: name})
		require.NoError(t, err)
		commitAll(t, logs[name], "a", "b")
	}
	b := [][]byte{[]byte("c")}
	for _, name := range []string{"failing", "syncs", "closes"} {
		require.NoError(t, logs[name].Append(b))
	}
	unsynced(t, file, logs["failing"].Sync)

	require.ErrorContains(t, logs["appends"].Append(b), refused)
	require.ErrorContains(t, logs["appends"].Sync(), refused)
	require.ErrorContains(t, logs["batches"].AppendBatch([]byte{1, 0, 0, 0, 'c'}, 1), refused)
	require.ErrorContains(t, logs["syncs"].Sync(), refused)
	require.ErrorContains(t, logs["truncates"].TruncateBefore(0), refused)
	require.ErrorContains(t, logs["truncates"].TruncateBefore(1), refused)
	require.Zero(t, logs["truncates"].First(), "nothing was tried")
	require.ErrorContains(t, logs["closes"].Close(), refused)
	require.NoError(t, logs["closes with nothing to sync"].Close())
	_, err = Open(db, Options{Bucket: "another"})
	require.ErrorContains(t, err, "open the database again")
	delete(logs, "closes")
	delete(logs, "closes with nothing to sync")
	for name, log := range logs {
		requireContents(t, log, "0 a", "1 b")
		require.NoError(t, log.Close(), name) // its failure is known already
	}
	require.NoError(t, db.Close())

	db, _, err = openDB(path)
	require.NoError(t, err)
	log, err := Open(db, Options{Bucket: "syncs", CloseDB: true})
	require.NoError(t, err)
	requireContents(t, log, "0 a", "1 b")
	commitAll(t, log, "c2")
	require.NoError(t, log.Close())
}

func TestAfterAFailedTruncationEverythingIsRefused(t *testing.T) {
	path := newPath(t)
	db, file, err := openDB(path)
	require.NoError(t, err)
	log, err := Open(db, Options{Bucket: "log"})
	require.NoError(t, err)
	commitAll(t, log, "a", "b", "c")
	unsynced(t, file, func() error { return log.TruncateBefore(1) })

	for _, offset := range []uint64{0, 1, 2} {
		require.ErrorContains(t, log.TruncateBefore(offset), refused)
	}
	require.ErrorContains(t, log.Append([][]byte{[]byte("d")}), refused)
	require.ErrorContains(t, log.Sync(), "refused")
	require.Equal(t, uint64(1), log.First(), "offset 0 may be there or not")
	_, err = contents(log, 0)
	require.ErrorIs(t, err, ErrTruncated)
	requireContents(t, log, "1 b", "2 c")
	require.NoError(t, log.Close())
	require.NoError(t, db.Close())

	log = mustOpen(t, path)
	require.LessOrEqual(t, log.First(), uint64(1))
	txs, err := contents(log, 1)
	require.NoError(t, err)
	require.Equal(t, []string{"1 b", "2 c"}, txs)
	commitAll(t, log, "d2")
	require.NoError(t, log.Close())
}

func TestAfterAFailedTruncationCloseTellsWhatItCouldNotSync(t *testing.T) {
	db, file, err := openDB(newPath(t))
	require.NoError(t, err)
	log, err := Open(db, Options{Bucket: "log"})
	require.NoError(t, err)
	commitAll(t, log, "a", "b")
	require.NoError(t, log.Append([][]byte{[]byte("c")}))
	unsynced(t, file, func() error { return log.TruncateBefore(1) })
	require.ErrorContains(t, log.Close(), refused)
	require.NoError(t, db.Close())
}

func TestAfterAnOpenWhoseUpdateFailedTheLogsOfTheDatabaseAreRefused(t *testing.T) {
	db, file, err := openDB(newPath(t))
	require.NoError(t, err)
	log, err := Open(db, Options{Bucket: "log"})
	require.NoError(t, err)
	unsynced(t, file, func() error {
		_, err := Open(db, Options{Bucket: "other"})
		return err
	})
	_, err = Open(db, Options{Bucket: "other"})
	require.ErrorContains(t, err, refused)
	require.ErrorContains(t, log.Append([][]byte{[]byte("a")}), refused)
	require.NoError(t, log.Close())
	require.NoError(t, db.Close())
}

// bbolt lets the next writer in as soon as it has given up on an update, and before
// its error is returned.
func TestAnUpdateThatWaitsForOneThatFailsIsRefused(t *testing.T) {
	db, file, err := openDB(newPath(t))
	require.NoError(t, err)
	a, err := Open(db, Options{Bucket: "a"})
	require.NoError(t, err)
	b, err := Open(db, Options{Bucket: "b"})
	require.NoError(t, err)
	require.NoError(t, b.Append([][]byte{[]byte("b")}))
	waiting := make(chan error, 1)
	unsynced(t, file, func() error {
		return a.hold.update(db, func(tx *bbolt.Tx) error {
			if a.hold.database.updates.TryLock() {
				a.hold.database.updates.Unlock()
				t.Error("another log's update could begin before it is known how this one ends")
			}
			go func() { waiting <- b.Sync() }()
			return tx.Bucket([]byte("a")).Put(firstKey, number(0))
		})
	})
	require.ErrorContains(t, <-waiting, refused)
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
	require.NoError(t, db.Close())
}
