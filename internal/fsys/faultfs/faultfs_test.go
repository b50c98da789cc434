package faultfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/internal/fsys"
)

func create(t *testing.T, f *FS, name, data string) fsys.File {
	t.Helper()
	file, err := f.Create(name)
	require.NoError(t, err)
	_, err = file.WriteAt([]byte(data), 0)
	require.NoError(t, err)
	return file
}

func content(f *FS, name string) string {
	data, err := f.ReadFile(name)
	if err != nil {
		return "none"
	}
	return string(data)
}

func TestUnsyncedContentAndNamesAreForgottenApart(t *testing.T) {
	f := New()
	require.NoError(t, create(t, f, "/synced", "a").Sync())
	create(t, f, "/named", "b")
	require.NoError(t, f.SyncDir("/"))
	require.NoError(t, create(t, f, "/nameless", "c").Sync())
	all, some := f.Clone(), f.Clone()
	f.PowerFail(KeepNone)
	require.Equal(t, []string{"/named", "/synced"}, f.Names())
	require.Equal(t, "a", content(f, "/synced"))
	require.Empty(t, content(f, "/named"))
	all.PowerFail(KeepAll)
	require.Equal(t, "b", content(all, "/named"))
	require.Equal(t, "c", content(all, "/nameless"))
	some.PowerFail(KeepRandom(1))
	require.Equal(t, "a", content(some, "/synced"))
}

func TestSectorsSurviveOneByOne(t *testing.T) {
	f := New()
	file := create(t, f, "/x", string(make([]byte, 4*SectorBytes)))
	require.NoError(t, file.Sync())
	require.NoError(t, f.SyncDir("/"))
	for i := range 4 {
		_, err := file.WriteAt([]byte{1}, int64(i*SectorBytes))
		require.NoError(t, err)
	}
	n := 0
	f.PowerFail(func() bool { n++; return n%2 == 0 })
	require.Equal(t, 4, n)
	data := content(f, "/x")
	require.Equal(t, []byte{0, 1, 0, 1}, []byte{data[0], data[SectorBytes], data[2*SectorBytes], data[3*SectorBytes]})
}

func TestAFailedSyncForgetsWhatWasDirty(t *testing.T) {
	f := New()
	file := create(t, f, "/x", "old")
	require.NoError(t, file.Sync())
	require.NoError(t, f.SyncDir("/"))
	_, err := file.WriteAt([]byte("new"), 0)
	require.NoError(t, err)
	f.Hook(FailAt(f.Count(), Fault{Err: syscall.EIO}))
	require.ErrorIs(t, file.Sync(), syscall.EIO)
	require.NoError(t, file.Sync(), "the second says that all is well")
	require.Equal(t, "new", content(f, "/x"))
	c := f.Clone()
	c.DropCaches()
	require.Equal(t, "old", content(c, "/x"))
	f.PowerFail(KeepAll)
	require.Equal(t, "old", content(f, "/x"))
}

func TestAKilledProcessLeavesTheCacheAndDoesNothingMore(t *testing.T) {
	f := New()
	file := create(t, f, "/x", "old")
	lock, err := f.Lock("/lock")
	require.NoError(t, err)
	_, err = f.Lock("/lock")
	require.ErrorIs(t, err, fsys.ErrLocked)
	f.Hook(FailAt(f.Count(), Fault{Kill: true, Partial: 2}))
	n, err := file.WriteAt([]byte("new"), 0)
	require.ErrorIs(t, err, ErrKilled)
	require.Equal(t, 2, n)
	_, err = file.WriteAt([]byte("more"), 0)
	require.ErrorIs(t, err, ErrKilled)
	require.ErrorIs(t, file.Sync(), ErrKilled)
	require.ErrorIs(t, f.Remove("/x"), ErrKilled)
	require.ErrorIs(t, lock.Close(), ErrKilled)
	f.Restart()
	require.ErrorIs(t, file.Close(), ErrKilled, "a handle of another life")
	require.Equal(t, "ned", content(f, "/x")[:2]+"d")
	again, err := f.Lock("/lock")
	require.NoError(t, err, "locks end with their process")
	require.ErrorIs(t, lock.Close(), ErrKilled)
	_, err = f.Lock("/lock")
	require.ErrorIs(t, err, fsys.ErrLocked, "the old owner can't free it")
	require.NoError(t, again.Close())
	file, err = f.Open("/x", true)
	require.NoError(t, err)
	require.NoError(t, file.Sync())
	require.NoError(t, f.SyncDir("/"))
	f.PowerFail(KeepNone)
	require.Equal(t, "ned", content(f, "/x")[:2]+"d", "what the dead one wrote could still be synced")
}

func TestASyncCutShortByAKillForgetsNothing(t *testing.T) {
	f := New()
	file := create(t, f, "/x", "old")
	require.NoError(t, f.SyncDir("/"))
	f.Hook(FailAt(f.Count(), Fault{Kill: true}))
	require.ErrorIs(t, file.Sync(), ErrKilled)
	f.Restart()
	file, err := f.Open("/x", true)
	require.NoError(t, err)
	require.NoError(t, file.Sync())
	f.PowerFail(KeepNone)
	require.Equal(t, "old", content(f, "/x"))
}

func TestAQuotaCountsNewSectorsOnly(t *testing.T) {
	f := New()
	file := create(t, f, "/x", "0123456789")
	f.SetQuota(2 * SectorBytes)
	n, err := file.WriteAt(make([]byte, 3*SectorBytes), 0)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Equal(t, 2*SectorBytes, n)
	_, err = file.WriteAt(make([]byte, 2*SectorBytes), 0)
	require.NoError(t, err, "in place")
	require.Equal(t, int64(2*SectorBytes), f.Used())
	other, err := f.Create("/y")
	require.NoError(t, err)
	_, err = other.WriteAt([]byte{1}, 0)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.NoError(t, f.Remove("/x"))
	_, err = other.WriteAt([]byte{1}, 0)
	require.NoError(t, err)
}

func TestADirectoryThatIsLostTakesItsFilesAlong(t *testing.T) {
	f := New()
	require.ErrorIs(t, f.Mkdir("/a/b"), fs.ErrNotExist)
	require.NoError(t, f.Mkdir("/a"))
	require.ErrorIs(t, f.Mkdir("/a"), fs.ErrExist)
	require.NoError(t, f.Mkdir("/a/b"))
	require.NoError(t, create(t, f, "/a/b/x", "x").Sync())
	require.NoError(t, f.SyncDir("/a/b"))
	require.NoError(t, f.SyncDir("/a"))
	c := f.Clone()
	f.PowerFail(KeepNone)
	require.Empty(t, f.Names())
	require.NoError(t, c.SyncDir("/"))
	c.PowerFail(KeepNone)
	require.Equal(t, "x", content(c, "/a/b/x"))
}

func TestARenameSurvivesAsAWholeOrNotAtAll(t *testing.T) {
	f := New()
	require.NoError(t, create(t, f, "/x", "x").Sync())
	require.NoError(t, f.SyncDir("/"))
	require.NoError(t, f.Rename("/x", "/y"))
	names, err := f.ReadDir("/")
	require.NoError(t, err)
	require.Equal(t, []string{"y"}, names)
	c := f.Clone()
	f.PowerFail(KeepNone)
	require.Equal(t, []string{"/x"}, f.Names())
	c.PowerFail(KeepAll)
	require.Equal(t, []string{"/y"}, c.Names())
}

func TestOperationsAreCountedAndTold(t *testing.T) {
	f := New()
	file := create(t, f, "/x", "abc")
	b := make([]byte, 4)
	n, err := file.ReadAt(b, 1)
	require.Equal(t, 2, n)
	require.ErrorIs(t, err, io.EOF)
	_, err = file.ReadAt(b, 3)
	require.ErrorIs(t, err, io.EOF)
	size, err := file.Size()
	require.NoError(t, err)
	require.Equal(t, int64(3), size)
	file.Flush(0, 3)
	require.NoError(t, file.Close())
	_, err = file.ReadAt(b, 0)
	require.ErrorIs(t, err, fs.ErrClosed)
	require.Equal(t, []Op{
		{0, Create, "/x", 0, 0}, {1, Write, "/x", 0, 3}, {2, Read, "/x", 1, 4}, {3, Read, "/x", 3, 4},
		{4, Size, "/x", 0, 0}, {5, Close, "/x", 0, 0}, {6, Read, "/x", 0, 4},
	}, f.Trace())
	reader, err := f.Open("/x", false)
	require.NoError(t, err)
	_, err = reader.WriteAt(b, 0)
	require.ErrorIs(t, err, fs.ErrPermission)
	f.Hook(func(Op) *Fault { return &Fault{} })
	_, sizeErr := reader.Size()
	_, lockErr := f.Lock("/l")
	_, dirErr := f.ReadDir("/")
	for _, err := range []error{
		sizeErr, lockErr, dirErr, reader.Sync(), reader.Close(), f.Rename("/x", "/y"), f.Remove("/x"), f.SyncDir("/"), f.Mkdir("/d"),
	} {
		require.ErrorIs(t, err, ErrInjected)
	}
	f.Hook(nil)
	require.Equal(t, []string{"/x"}, f.Names())
	for _, err := range []error{f.Rename("/n", "/y"), f.Remove("/n"), f.SyncDir("/n")} {
		require.ErrorIs(t, err, fs.ErrNotExist)
		var path *fs.PathError
		require.True(t, errors.As(err, &path))
	}
}
