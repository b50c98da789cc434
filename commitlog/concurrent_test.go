package commitlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/internal/fsys"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

func TestReadersSeeAPrefixWhileOthersAppendTruncateAndClose(t *testing.T) {
	for name, l := range map[string]*Log{
		"disk":   mustOpen(t, t.TempDir(), Options{SegmentBytes: minSegmentBytes}),
		"memory": mustOpen(t, testDir, small(faultfs.New())),
	} {
		var done atomic.Bool
		var others sync.WaitGroup
		var yielded, truncated atomic.Int64
		for range 3 {
			others.Go(func() {
				for !done.Load() {
					from := l.First()
					next := from
					for e, err := range l.Read(from) {
						if errors.Is(err, ErrTruncated) {
							truncated.Add(1)
							break
						}
						if errors.Is(err, ErrClosed) {
							return
						}
						if err != nil || e.Offset != next || string(e.Data) != string(tx(next, 100)) {
							t.Errorf("%s: offset %d: entry %d %q, %v", name, next, e.Offset, e.Data, err)
							return
						}
						next++
						yielded.Add(1)
					}
				}
			})
		}
		others.Go(func() {
			for !done.Load() {
				if next := l.Next(); next > 100 {
					if err := l.TruncateBefore(next - 100); err != nil && !errors.Is(err, ErrClosed) {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			}
		})
		for range 3000 {
			require.NoError(t, l.Append([][]byte{tx(l.Next(), 100), tx(l.Next()+1, 100)}))
			require.NoError(t, l.Sync())
		}
		for yielded.Load() == 0 { // readers had no chance before
		}
		require.NoError(t, l.Close())
		done.Store(true)
		others.Wait()
		t.Logf("%s: %d entries, truncated under a reader %d times", name, yielded.Load(), truncated.Load())
	}
}

func TestAReaderIsToldWhatHappenedUnderIt(t *testing.T) {
	setUp := func() (*faultfs.FS, *Log) {
		fs := faultfs.New()
		l := mustOpen(t, testDir, small(fs))
		commit(t, l, 20, 600)
		return fs, l
	}
	// read meets what happens after its third entry, inside the first segment.
	read := func(l *Log, happens func()) (n int, last error) {
		for _, err := range l.Read(0) {
			if n++; n == 3 {
				happens()
			}
			last = err
		}
		return n, last
	}

	_, l := setUp()
	n, err := read(l, func() { require.NoError(t, l.TruncateBefore(l.Next())) })
	require.ErrorIs(t, err, ErrTruncated)
	require.Less(t, n, 20)
	require.NoError(t, l.Close())

	_, l = setUp()
	n, err = read(l, func() { require.NoError(t, l.Close()) })
	require.ErrorIs(t, err, ErrClosed)
	require.Less(t, n, 6)

	fs, l := setUp()
	n, err = read(l, func() { fs.RemoveFile(segmentPath(6)) })
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrTruncated)
	require.Equal(t, 7, n)

	fs, l = setUp()
	n, err = read(l, func() {
		fs.Hook(func(op faultfs.Op) *faultfs.Fault {
			if op.Kind == faultfs.Read || op.Kind == faultfs.Size {
				return &faultfs.Fault{}
			}
			return nil
		})
	})
	require.ErrorIs(t, err, faultfs.ErrInjected)
	require.Equal(t, 7, n)

	// Damage under an open log, in a header, in a record and at the end.
	for _, at := range []int{segmentHeaderBytes + 3, segmentHeaderBytes + 100} {
		fs, l = setUp()
		data, err := fs.ReadFile(segmentPath(0))
		require.NoError(t, err)
		data[at] ^= 1
		fs.WriteFile(segmentPath(0), data)
		_, _, err = contents(l)
		require.True(t, isDamage(err), "%v", err)
		fs.WriteFile(segmentPath(0), data[:segmentHeaderBytes+10])
		_, _, err = contents(l)
		require.True(t, isDamage(err), "%v", err)
	}
}

func TestReadBeforeFirstIsTruncatedAndBeyondTheEndIsEmpty(t *testing.T) {
	l := mustOpen(t, testDir, small(faultfs.New()))
	commit(t, l, 20, 600)
	require.NoError(t, l.TruncateBefore(15))
	require.Greater(t, l.First(), uint64(0))
	require.LessOrEqual(t, l.First(), uint64(15))
	for _, err := range l.Read(0) {
		require.ErrorIs(t, err, ErrTruncated)
	}
	for range l.Read(20) {
		t.Fatal("nothing is there")
	}
	for range l.Read(1 << 60) {
		t.Fatal("nothing is there")
	}
	seq := l.Read(18)
	commit(t, l, 1, 10)
	for range 2 { // a sequence may be ranged over again, and ends where it ended when Read was called
		n := 0
		for range seq {
			n++
		}
		require.Equal(t, 2, n)
	}
	require.NoError(t, l.Close())
}

func TestTruncateBeforeNeverTakesTheActiveSegment(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	require.NoError(t, l.TruncateBefore(1<<60))
	commit(t, l, 40, 600)
	require.NoError(t, l.TruncateBefore(0))
	require.Zero(t, l.First())
	require.NoError(t, l.TruncateBefore(1<<60))
	require.Greater(t, l.First(), uint64(30))
	require.LessOrEqual(t, l.First(), uint64(40))
	want := mustContents(t, l)
	require.NoError(t, l.Close())
	l = mustOpen(t, testDir, small(fs))
	require.Equal(t, want, mustContents(t, l))
	require.NoError(t, l.Close())
}

func TestAFailedTruncationLeavesTheSegmentAndTheLogUsable(t *testing.T) {
	for _, kind := range []faultfs.Kind{faultfs.Rename, faultfs.Remove, faultfs.SyncDir, faultfs.Open, faultfs.Size} {
		fs := faultfs.New()
		l := mustOpen(t, testDir, small(fs))
		commit(t, l, 30, 600)
		first := l.First()
		fs.Hook(func(op faultfs.Op) *faultfs.Fault {
			if op.Kind == kind {
				return &faultfs.Fault{}
			}
			return nil
		})
		err := l.TruncateBefore(l.Next())
		fs.Hook(nil)
		switch kind {
		case faultfs.Rename, faultfs.Remove:
			require.ErrorIs(t, err, faultfs.ErrInjected, kind)
		case faultfs.SyncDir:
			require.ErrorIs(t, err, faultfs.ErrInjected)
			require.ErrorIs(t, l.TruncateBefore(l.Next()), faultfs.ErrInjected, "no second sync")
		default: // it is removed, not recycled
			require.NoError(t, err)
		}
		if kind == faultfs.Rename {
			require.Equal(t, first, l.First())
			require.NoError(t, l.TruncateBefore(l.Next()))
		}
		mustContents(t, l)
		commit(t, l, 3, 600)
		want := mustContents(t, l)
		require.NoError(t, l.Close())
		fs.PowerFail(faultfs.KeepNone)
		l = mustOpen(t, testDir, small(fs))
		got := mustContents(t, l)
		require.Equal(t, want, got[len(got)-len(want):], kind)
	}
}

// A server that is out of file descriptors for a moment must be able to give up segments later.
func TestATruncationWhoseSyncWasNotTriedIsGoneOnWith(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	commit(t, l, 30, 600)
	full := &faultfs.Fault{Err: fmt.Errorf("%w: %w", fsys.ErrNotTried, syscall.EMFILE)}
	from := fs.Count()
	fs.Hook(func(op faultfs.Op) *faultfs.Fault {
		if op.Kind == faultfs.SyncDir {
			return full
		}
		return nil
	})
	for range 2 {
		require.ErrorIs(t, l.TruncateBefore(l.Next()), syscall.EMFILE)
	}
	fs.Hook(nil)
	gone := 0
	for _, op := range fs.Trace()[from:] {
		if (op.Kind == faultfs.Rename || op.Kind == faultfs.Remove) && !isTemporaryName(filepath.Base(op.Name)) {
			gone++
		}
	}
	require.Equal(t, 1, gone, "no second segment goes before it is durable that the first has")
	require.NoError(t, l.TruncateBefore(l.Next()))
	require.Len(t, l.segments, 1)
	want := mustContents(t, l)
	require.NoError(t, l.Close())
	fs.PowerFail(faultfs.KeepNone)
	l = mustOpen(t, testDir, small(fs))
	require.Equal(t, want, mustContents(t, l))
	require.NoError(t, l.Close())
}

func TestOpenReportsEveryOperationThatFails(t *testing.T) {
	fs, want := makeLog(t, false)
	for index := 0; ; index++ {
		c := fs.Clone()
		c.Hook(faultfs.FailAt(index, faultfs.Fault{}))
		_, err := Open(testDir, small(c))
		if c.Count() <= index {
			require.NoError(t, err)
			break
		}
		failed := c.Trace()[index]
		// Of a file that was only read nothing can be lost, and a spare one can be done without.
		if failed.Kind == faultfs.Close || failed.Kind != faultfs.Remove && (isTemporaryName(filepath.Base(failed.Name)) || isSpareName(filepath.Base(failed.Name))) {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, faultfs.ErrInjected, "%+v", c.Trace()[index])
		c.Hook(nil)
		l := mustOpen(t, testDir, small(c)) // nothing is left locked
		require.Equal(t, want, mustContents(t, l))
	}
	for index := 0; ; index++ { // and of a new log
		c := faultfs.New()
		c.Hook(faultfs.FailAt(index, faultfs.Fault{}))
		_, err := Open("/a/b", small(c))
		if c.Count() <= index {
			require.NoError(t, err)
			break
		}
		c.Hook(nil)
		c.Restart()
		l := mustOpen(t, "/a/b", small(c))
		require.NoError(t, l.Close())
	}
}

func TestCloseReportsEveryOperationThatFailsAndGivesUpEverything(t *testing.T) {
	for index := range 100 {
		fs := faultfs.New()
		l := mustOpen(t, testDir, small(fs))
		commit(t, l, 1, 10)
		want := mustContents(t, l)
		require.NoError(t, l.Append([][]byte{{1}})) // nobody was told that it is durable
		from := fs.Count()
		fs.Hook(faultfs.FailAt(from+index, faultfs.Fault{}))
		err := l.Close()
		if fs.Count() <= from+index {
			require.NoError(t, err)
			require.Greater(t, index, 4)
			trace := fs.Trace()
			require.Equal(t, faultfs.Unlock, trace[len(trace)-1].Kind, "the lock last")
			return
		}
		require.ErrorIs(t, err, faultfs.ErrInjected, "%+v", fs.Trace()[from+index])
		found := mustContents(t, mustOpen(t, testDir, small(fs)))
		require.Contains(t, [][]string{want, append(want, string([]byte{1}))}, found)
	}
	t.Fatal("Close does not end")
}

func TestReadingKeepsNoFileOpen(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("needs /proc")
	}
	open := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(names)
	}
	before := open()
	l := mustOpen(t, t.TempDir(), Options{})
	commit(t, l, 10, 10)
	for range l.Read(0) {
		break
	}
	require.NoError(t, l.Close())
	require.Equal(t, before, open())
}
