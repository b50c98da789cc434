package fsys

import (
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheOperatingSystemDoesWhatTheInterfaceSays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	x, y := filepath.Join(dir, "x"), filepath.Join(dir, "y")
	require.NoError(t, OS.Mkdir(dir))
	require.ErrorIs(t, OS.Mkdir(dir), fs.ErrExist)
	require.NoError(t, OS.SyncDir(dir))

	f, err := OS.Create(x)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("content"), 3)
	require.NoError(t, err)
	f.Flush(0, 10)
	require.NoError(t, f.Sync())
	size, err := f.Size()
	require.NoError(t, err)
	require.Equal(t, int64(10), size)
	require.NoError(t, OS.Rename(x, y), "while it is open")
	require.NoError(t, f.Close())
	require.Error(t, f.Sync())
	_, err = f.Size()
	require.Error(t, err)

	_, err = OS.Open(x, false)
	require.ErrorIs(t, err, fs.ErrNotExist)
	f, err = OS.Open(y, false)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{1}, 0)
	require.Error(t, err)
	require.NoError(t, f.Close())
	f, err = OS.Open(y, true)
	require.NoError(t, err)
	require.NoError(t, OS.Remove(y), "while it is open")
	require.NoError(t, f.Close())

	lock, err := OS.Lock(filepath.Join(dir, "lock"))
	require.NoError(t, err)
	_, err = OS.Lock(filepath.Join(dir, "lock"))
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, lock.Close())
	lock, err = OS.Lock(filepath.Join(dir, "lock"))
	require.NoError(t, err)
	require.NoError(t, lock.Close())
	names, err := OS.ReadDir(dir)
	require.NoError(t, err)
	require.Equal(t, []string{"lock"}, names)

	for _, err := range []error{OS.Remove(x), OS.Rename(x, y)} {
		require.True(t, errors.Is(err, fs.ErrNotExist))
	}
	if runtime.GOOS == "windows" {
		require.NoError(t, OS.SyncDir(x), "it does nothing there")
	} else {
		require.ErrorIs(t, OS.SyncDir(x), fs.ErrNotExist)
		require.ErrorIs(t, OS.SyncDir(x), ErrNotTried)
	}
	_, err = OS.ReadDir(x)
	require.Error(t, err)
	_, err = OS.Lock(filepath.Join(x, "lock"))
	require.Error(t, err)
}
