package commitlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/internal/fsys"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

func TestWhatWasSyncedIsReadAndFoundAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	l := mustOpen(t, dir, Options{})
	require.Zero(t, l.Next())
	require.Zero(t, l.First())
	require.NoError(t, l.Append([][]byte{[]byte("one"), nil, []byte("three")}))
	require.Equal(t, uint64(3), l.Next())
	require.Empty(t, func() (all []string) {
		for e := range l.Read(0) {
			all = append(all, string(e.Data))
		}
		return all
	}(), "nothing is durable before Sync")
	require.NoError(t, l.Sync())
	require.NoError(t, l.Sync(), "nothing to do")
	require.NoError(t, l.AppendBatch(batch([]byte("four"), []byte("")), 2))
	require.NoError(t, l.Close(), "Close syncs")

	l = mustOpen(t, dir, Options{})
	require.Equal(t, uint64(5), l.Next())
	require.Equal(t, []string{"one", "", "three", "four", ""}, mustContents(t, l))
	for e, err := range l.Read(3) {
		require.NoError(t, err)
		require.Equal(t, Entry{Offset: 3, Data: []byte("four")}, e)
		break
	}
	require.NoError(t, l.Close())
}

func TestTheDirectoriesThatOpenMakesAreDurable(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, "/a/b/c", Options{FS: fs})
	commit(t, l, 1, 10)
	fs.PowerFail(faultfs.KeepNone)
	l = mustOpen(t, "/a/b/c", Options{FS: fs})
	require.Len(t, mustContents(t, l), 1)
	require.NoError(t, l.Close())
}

func TestNothingIsANoOp(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, Options{FS: fs})
	before := fs.Count()
	require.NoError(t, l.Append(nil))
	require.NoError(t, l.AppendBatch(nil, 0))
	require.NoError(t, l.AppendBatch(make([]byte, l.BatchHeader()), 0))
	require.NoError(t, l.Sync())
	require.Equal(t, before, fs.Count())
	require.Zero(t, l.Next())
}

func TestSegmentsFollowOneAnotherAndDoubleInSize(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{SegmentBytes: 256 << 10})
	var want []string
	for i := range 200 {
		want = append(want, string(tx(uint64(i), 5000)))
	}
	commit(t, l, 200, 5000)
	require.Equal(t, want, mustContents(t, l))
	l.mu.Lock()
	var sizes []int64
	for _, s := range l.segments {
		sizes = append(sizes, s.capacity>>10)
	}
	l.mu.Unlock()
	require.Equal(t, []int64{64, 128, 256, 256, 256, 256}, sizes)
	for from := range 200 {
		for e, err := range l.Read(uint64(from)) {
			require.NoError(t, err)
			require.Equal(t, want[from], string(e.Data))
			break
		}
	}
	require.NoError(t, l.Close())
	l = mustOpen(t, dir, Options{SegmentBytes: 256 << 10})
	require.Equal(t, want, mustContents(t, l))
	require.NoError(t, l.Close())
	leftovers, err := filepath.Glob(filepath.Join(dir, temporaryPrefix+"*"))
	require.NoError(t, err)
	require.Empty(t, leftovers, "Close removes what was prepared")
}

func TestAFrameLargerThanASegmentGetsOneOfItsOwn(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	var want []string
	for _, size := range []int{100_000, 10, 400_000, 4000, 10} { // the first in an empty log
		tx := tx(l.Next(), size)
		want = append(want, string(tx))
		require.NoError(t, l.AppendBatch(batch(tx), 1))
	}
	require.NoError(t, l.Append([][]byte{[]byte(want[2]), []byte(want[0])}), "each larger than a packed frame")
	want = append(want, want[2], want[0])
	require.NoError(t, l.Sync())
	require.Equal(t, want, mustContents(t, l))
	require.NoError(t, l.Close())
	l = mustOpen(t, testDir, small(fs))
	require.Equal(t, want, mustContents(t, l))
	require.NoError(t, l.TruncateBefore(l.Next()))
	require.NoError(t, l.Close())
}

func TestALargeBatchIsWrittenInPiecesAndMayHaveRecordsAcrossThem(t *testing.T) {
	l := mustOpen(t, t.TempDir(), Options{})
	for _, size := range []int{pieceBytes/3 + 1, 997, 4, 1, 0, 3*pieceBytes - 7} {
		var txs [][]byte
		var want []string
		for total := 0; total < 3*pieceBytes; total += size + recordHeader {
			txs = append(txs, tx(0, size)[:size])
			want = append(want, string(txs[len(txs)-1]))
		}
		from := l.Next()
		require.NoError(t, l.AppendBatch(batch(txs...), len(txs)))
		require.NoError(t, l.Sync())
		var got []string
		for e, err := range l.Read(from) {
			require.NoError(t, err)
			got = append(got, string(e.Data))
		}
		require.True(t, len(want) == len(got))
		for i := range got {
			require.True(t, want[i] == got[i], "record %d of size %d", i, size)
		}
	}
	require.NoError(t, l.Close())
}

func TestATransactionTooLargeIsRefusedAndTheLogGoesOn(t *testing.T) {
	l := mustOpen(t, t.TempDir(), Options{})
	most := make([]byte, MaxTransactionBytes)
	require.ErrorIs(t, l.Append([][]byte{{1}, make([]byte, MaxTransactionBytes+1)}), ErrTooLarge)
	require.ErrorIs(t, l.AppendBatch(batch(make([]byte, MaxTransactionBytes+1)), 1), ErrTooLarge)
	require.Zero(t, l.Next())
	require.NoError(t, l.Append([][]byte{most}))
	require.NoError(t, l.Sync())
	for e, err := range l.Read(0) {
		require.NoError(t, err)
		require.True(t, bytes.Equal(most, e.Data))
	}
	require.NoError(t, l.Close())
}

func TestAMalformedBatchIsRefusedAndTheLogGoesOn(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, Options{FS: fs})
	good := batch([]byte("ab"), []byte("cd"))
	large := batch(tx(0, pieceBytes), tx(0, pieceBytes), nil)
	for name, c := range map[string]struct {
		batch []byte
		n     int
	}{
		"no header":             {make([]byte, frameHeaderBytes-1), 1},
		"negative":              {good, -1},
		"none, with bytes":      {good, 0},
		"fewer records":         {good, 3},
		"more records":          {good, 1},
		"cut in a record":       {good[:len(good)-1], 2},
		"cut in a length":       {good[:len(good)-3-recordHeader], 2},
		"no records":            {good[:frameHeaderBytes], 1},
		"byte behind":           {append(bytes.Clone(good), 0), 2},
		"large, fewer records":  {large, 2},
		"large, cut":            {large[:len(large)-recordHeader-1], 2},
		"large, cut in length":  {large[:len(large)-1], 3},
		"large, length too big": {append(bytes.Clone(large), 0xff, 0xff, 0, 0), 4},
	} {
		err := l.AppendBatch(c.batch, c.n)
		require.ErrorIs(t, err, errMalformed, name)
	}
	require.Zero(t, l.Next())
	require.NoError(t, l.AppendBatch(good, 2))
	require.NoError(t, l.Close())
	l = mustOpen(t, testDir, Options{FS: fs})
	require.Equal(t, []string{"ab", "cd"}, mustContents(t, l))
}

func TestASecondOpenIsRefusedUntilClose(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	_, err := Open(dir, Options{})
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, l.Close())
	l = mustOpen(t, dir, Options{})
	require.NoError(t, l.Close())
}

func TestTheLockHoldsAgainstOtherProcessesAndEndsWithThem(t *testing.T) {
	if dir := os.Getenv("COMMITLOG_TEST_DIR"); dir != "" {
		l, err := Open(dir, Options{})
		fmt.Println(errors.Is(err, ErrLocked), err == nil)
		if err == nil {
			l.Append([][]byte{[]byte("from the child")})
			l.Sync()
		}
		os.Exit(0) // without Close
	}
	dir := t.TempDir()
	child := func() string {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "COMMITLOG_TEST_DIR="+dir)
		out, err := cmd.Output()
		require.NoError(t, err)
		return string(out)
	}
	l := mustOpen(t, dir, Options{})
	require.Equal(t, "true false\n", child())
	require.NoError(t, l.Close())
	require.Equal(t, "false true\n", child())
	l = mustOpen(t, dir, Options{})
	require.Equal(t, []string{"from the child"}, mustContents(t, l))
	require.NoError(t, l.Close())
}

func TestAfterCloseEverythingIsRefused(t *testing.T) {
	l := mustOpen(t, t.TempDir(), Options{})
	commit(t, l, 3, 10)
	require.NoError(t, l.Close())
	require.ErrorIs(t, l.Append([][]byte{{1}}), ErrClosed)
	require.ErrorIs(t, l.AppendBatch(batch([]byte{1}), 1), ErrClosed)
	require.ErrorIs(t, l.Sync(), ErrClosed)
	require.ErrorIs(t, l.Close(), ErrClosed)
	require.ErrorIs(t, l.TruncateBefore(1), ErrClosed)
	for _, err := range l.Read(0) {
		require.ErrorIs(t, err, ErrClosed)
	}
	require.Equal(t, uint64(3), l.Next())
	require.Zero(t, l.First())
}

func TestAFailedWriteOrSyncPoisonsTheLogAndItReopens(t *testing.T) {
	for _, kind := range []faultfs.Kind{faultfs.Write, faultfs.Sync} {
		fs := faultfs.New()
		l := mustOpen(t, testDir, small(fs))
		commit(t, l, 2, 10)
		fs.Hook(func(op faultfs.Op) *faultfs.Fault {
			if op.Kind == kind {
				return &faultfs.Fault{Err: syscall.EIO, Partial: 30}
			}
			return nil
		})
		first := l.Append([][]byte{tx(2, 10)})
		if first == nil {
			first = l.Sync()
		}
		require.ErrorIs(t, first, syscall.EIO)
		require.ErrorContains(t, first, segmentName(0))
		fs.Hook(nil)
		for _, err := range []error{l.Append([][]byte{{1}}), l.AppendBatch(batch([]byte{1}), 1), l.Sync(), l.Append(nil)} {
			require.ErrorIs(t, err, first)
		}
		before := fs.Count()
		require.NoError(t, l.Close(), "the failure is known already")
		for _, op := range fs.Trace()[before:] {
			require.NotContains(t, []faultfs.Kind{faultfs.Write, faultfs.Sync}, op.Kind, "no retry")
		}
		l = mustOpen(t, testDir, small(fs))
		require.Equal(t, string(tx(1, 10)), mustContents(t, l)[1])
		commit(t, l, 2, 10)
		require.NoError(t, l.Close())
	}
}

func TestAFullDiskIsAnErrorAndTheLogReopensOnIt(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	fs.SetQuota(fs.Used() + 20_000) // for two segments more, with or without zeros
	var err error
	for err == nil {
		if err = l.Append([][]byte{tx(l.Next(), 300)}); err == nil {
			err = l.Sync()
		}
		l.waitPrepared()
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	durable := l.durable.Load()
	require.Greater(t, durable, uint64(20))
	require.NoError(t, l.Close())
	for range 3 {
		l = mustOpen(t, testDir, small(fs))
		require.GreaterOrEqual(t, l.Next(), durable)
		mustContents(t, l)
		l.Close() // there may be no room for the mark
		fs.PowerFail(faultfs.KeepNone)
	}
	l = mustOpen(t, testDir, small(fs))
	require.NoError(t, l.TruncateBefore(l.Next()))
	require.NoError(t, l.Append([][]byte{tx(l.Next(), 300)}), "truncation makes room")
	require.NoError(t, l.Close())
}

func TestAFullDiskIsAnErrorForANewLog(t *testing.T) {
	fs := faultfs.New()
	fs.SetQuota(6000)
	l := mustOpen(t, testDir, Options{FS: fs}) // too little for zeros, enough for a header
	commit(t, l, 1, 10)
	require.NoError(t, l.Close())
	fs.SetQuota(1000)
	_, err := Open("/other", Options{FS: fs})
	require.ErrorIs(t, err, syscall.ENOSPC)
	fs.SetQuota(-1)
	l = mustOpen(t, "/other", Options{FS: fs})
	require.NoError(t, l.Close())
}

func TestBadOptionsAreRefused(t *testing.T) {
	_, err := Open(t.TempDir(), Options{SegmentBytes: -1})
	require.ErrorContains(t, err, "SegmentBytes is -1")
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Open(file, Options{})
	require.Error(t, err)
}

func TestThePreparerEndsWithTheLogAndLeavesNothingHalfMade(t *testing.T) {
	for _, end := range []string{"close", "poison"} {
		fs := faultfs.New()
		l := mustOpen(t, testDir, small(fs))
		reached, release := make(chan struct{}), make(chan struct{})
		fs.Hook(func(op faultfs.Op) *faultfs.Fault {
			if op.Kind == faultfs.Create {
				close(reached)
				<-release
			}
			return nil
		})
		for range 8 {
			require.NoError(t, l.Append([][]byte{tx(l.Next(), 200)}))
			require.NoError(t, l.Sync())
		}
		<-reached
		if end == "poison" {
			l.fail(syscall.EIO)
		}
		closed := make(chan error)
		go func() { closed <- l.Close() }()
		select {
		case <-closed:
			t.Fatal("Close did not wait for the preparer")
		default:
		}
		close(release)
		require.NoError(t, <-closed)
		for _, name := range fs.Names() {
			if isTemporaryName(filepath.Base(name)) { // made whole before it heard
				content, err := fs.ReadFile(name)
				require.NoError(t, err)
				require.Len(t, content, minSegmentBytes)
			}
		}
	}
}

func TestAnIdleLogPreparesNothing(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, Options{FS: fs})
	commit(t, l, 1, 1000)
	require.Len(t, fs.Names(), 2)
	require.NoError(t, l.Close())
}

func TestAppendingDoesNotAllocate(t *testing.T) {
	l := mustOpen(t, t.TempDir(), Options{})
	b := batch([]byte("some transaction"))
	txs := [][]byte{[]byte("another")}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if l.AppendBatch(b, 1) != nil || l.Append(txs) != nil || l.Sync() != nil {
			panic("failed")
		}
	}))
	require.NoError(t, l.Close())
}

// commitUnsynced is commit without the sync.
func commitUnsynced(t *testing.T, l *Log, n, size int) {
	t.Helper()
	for range n {
		require.NoError(t, l.Append([][]byte{tx(l.Next(), size)}))
	}
}

func TestASegmentThatGrewIsRecycled(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, Options{SegmentBytes: minSegmentBytes, SpareSegments: 2, FS: fs})
	for len(l.segments) < 4 { // in a burst, without a sync of its own: no blank is made
		commitUnsynced(t, l, 1, 1000)
	}
	require.NoError(t, l.Sync())
	l.waitPrepared() // now one may be
	require.False(t, l.segments[1].recyclable())
	require.False(t, l.segments[2].recyclable())
	require.NoError(t, l.TruncateBefore(l.active.base))
	require.Len(t, l.blanks, 2, "as many are kept as the options say")
	for _, b := range l.blanks {
		content, err := fs.ReadFile(b.path)
		require.NoError(t, err)
		require.Len(t, content, minSegmentBytes, "filled up")
	}
	for len(l.blanks) > 0 {
		commitUnsynced(t, l, 1, 1000)
	}
	require.True(t, l.active.recyclable())
	require.NoError(t, l.Sync())
	want := mustContents(t, l)
	require.NoError(t, l.Close())
	require.Equal(t, want, mustContents(t, mustOpen(t, testDir, small(fs))))
}

func TestASegmentThatGrowsIsLeftWhenSyncsAreFrequentAgain(t *testing.T) {
	fs := faultfs.New()
	opts := Options{SegmentBytes: 4 << 20, FS: fs}
	l := mustOpen(t, testDir, opts)
	for l.active.capacity < opts.SegmentBytes {
		commitUnsynced(t, l, 4, 30<<10)
	}
	commitUnsynced(t, l, 16, 64<<10)
	require.NoError(t, l.Sync())
	require.False(t, l.active.recyclable())
	require.False(t, l.syncsOften(), "not after one sync of a burst")
	base := l.active.base
	synced := 0
	for l.active.base == base {
		commit(t, l, 1, 100)
		l.waitPrepared()
		synced++
		require.Less(t, synced, 100)
	}
	require.True(t, l.active.recyclable())
	require.Less(t, l.segments[len(l.segments)-2].base, l.active.base)
	want := mustContents(t, l)
	require.NoError(t, l.Close())
	require.Equal(t, want, mustContents(t, mustOpen(t, testDir, opts)))
}

func TestSpareFilesOutliveTheLog(t *testing.T) {
	fs := faultfs.New()
	opts := Options{SegmentBytes: minSegmentBytes, SpareSegments: 3, FS: fs}
	l := mustOpen(t, testDir, opts)
	for len(l.segments) < 6 {
		commitUnsynced(t, l, 1, 1000)
	}
	require.NoError(t, l.Sync())
	l.waitPrepared()
	require.NoError(t, l.TruncateBefore(l.Next()))
	require.Len(t, l.blanks, 3)
	want := mustContents(t, l)
	require.NoError(t, l.Close())

	l = mustOpen(t, testDir, opts)
	require.Len(t, l.blanks, 3)
	require.Equal(t, want, mustContents(t, l))
	names := map[string]bool{}
	for range 100 { // new names are nobody's
		names[l.temporaryPath()] = true
	}
	for _, b := range l.blanks {
		require.False(t, names[b.path], b.path)
		names[b.path] = true
	}
	require.NoError(t, l.Close())

	opts.SpareSegments = 1
	l = mustOpen(t, testDir, opts)
	require.Len(t, l.blanks, 1)
	require.NoError(t, l.Close())

	// What nobody has put by may have had a failed sync.
	fs.WriteFile(testDir+"/"+temporaryName(7, 77), make([]byte, minSegmentBytes))
	opts.SpareSegments = 3
	l = mustOpen(t, testDir, opts)
	require.Len(t, l.blanks, 1)
	require.NotContains(t, fs.Names(), testDir+"/"+temporaryName(7, 77))
	require.NoError(t, l.Close())

	opts.SegmentBytes *= 2
	l = mustOpen(t, testDir, opts)
	require.Empty(t, l.blanks, "too short now")
	require.NoError(t, l.Close())
	for _, name := range fs.Names() {
		require.False(t, isTemporaryName(filepath.Base(name)) || isSpareName(filepath.Base(name)), name)
	}
	_, err := Open(testDir, Options{SpareSegments: -1, FS: fs})
	require.ErrorContains(t, err, "SpareSegments is -1")
}

// What is in an adopted file doesn't matter: here it is frames of this very log, at their own places.
func TestASpareFileThatHoldsACopyOfTheLogIsHarmless(t *testing.T) {
	fs, want := makeLog(t, true)
	for i, name := range fs.Names() {
		content, err := fs.ReadFile(name)
		require.NoError(t, err)
		if len(content) == minSegmentBytes {
			fs.WriteFile(testDir+"/"+spareName(temporaryName(7, i+1)), content)
		}
	}
	l := mustOpen(t, testDir, Options{SegmentBytes: minSegmentBytes, SpareSegments: 10, FS: fs})
	require.NotEmpty(t, l.blanks)
	for range 200 { // more than fit into all of them
		commitUnsynced(t, l, 1, 500)
		require.NoError(t, l.Sync())
		more := mustContents(t, l)
		require.Equal(t, want, more[:len(want)])
		want = more
	}
	fs.PowerFail(faultfs.KeepNone)
	require.Equal(t, want, mustContents(t, mustOpen(t, testDir, small(fs))))
}

func TestALinkThatComesToMeanAnotherDirectoryDoesNotSplitTheLog(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("skipped: links are not always resolved there")
	}
	root := t.TempDir()
	first, second, link := filepath.Join(root, "first"), filepath.Join(root, "second"), filepath.Join(root, "link")
	require.NoError(t, os.Mkdir(first, 0o755))
	require.NoError(t, os.Mkdir(second, 0o755))
	if err := os.Symlink(first, link); err != nil {
		t.Skipf("skipped: no symbolic links here: %v", err)
	}
	l, err := Open(link, Options{SegmentBytes: 8 << 10})
	require.NoError(t, err)
	tx := make([]byte, 3<<10)
	put := func() {
		for range 10 {
			require.NoError(t, l.Append([][]byte{tx}))
			require.NoError(t, l.Sync())
		}
	}
	put()
	require.NoError(t, os.Remove(link))
	require.NoError(t, os.Symlink(second, link))
	put()
	require.NoError(t, l.Close())
	names, err := os.ReadDir(second)
	require.NoError(t, err)
	require.Empty(t, names)
	l, err = Open(first, Options{})
	require.NoError(t, err)
	require.Equal(t, uint64(0), l.First())
	require.Equal(t, uint64(20), l.Next())
	require.NoError(t, l.Close())
}

// An operator who restores a copy under a server that runs must not have two logs write, or remove, under the same names.
func TestALogWhoseDirectoryIsReplacedLeavesTheOtherAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("skipped: a directory whose files are open can't be moved there")
	}
	for _, truncated := range []bool{false, true} { // so that there is a file to be renamed
		dir := filepath.Join(t.TempDir(), "log")
		l := mustOpen(t, dir, Options{SegmentBytes: minSegmentBytes})
		commit(t, l, 60, 600)
		if truncated {
			require.NoError(t, l.TruncateBefore(40))
		}
		require.NoError(t, os.Rename(dir, dir+".old"))
		require.NoError(t, os.CopyFS(dir, os.DirFS(dir+".old")))
		other := mustOpen(t, dir, Options{SegmentBytes: minSegmentBytes})
		commit(t, other, 20, 600)
		want, there := mustContents(t, other), files(t, dir)
		names := map[string]bool{}
		for range 100 {
			names[l.temporaryPath()] = true
		}
		for range 100 {
			require.False(t, names[other.temporaryPath()], "a name of both")
		}

		first := l.First()
		_, _, err := contents(l)
		require.ErrorIs(t, err, fsys.ErrReplaced)
		require.ErrorIs(t, l.TruncateBefore(l.Next()), fsys.ErrReplaced)
		require.Equal(t, first, l.First())
		for err = nil; err == nil; {
			if err = l.Append([][]byte{make([]byte, 600)}); err == nil {
				err = l.Sync()
			}
		}
		require.ErrorIs(t, err, fsys.ErrReplaced)
		require.NoError(t, l.Close())
		require.Equal(t, there, files(t, dir))
		commit(t, other, 20, 600)
		require.Equal(t, want, mustContents(t, other)[:len(want)])
		require.NoError(t, other.Close())
		require.NoError(t, mustOpen(t, dir+".old", Options{}).Close())
	}
}

func TestALogWhoseLockFileIsRemovedNoticesTheNextOwner(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("skipped: an open lock file can't be removed there")
	}
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{SegmentBytes: minSegmentBytes})
	commit(t, l, 60, 600)
	require.NoError(t, os.Remove(filepath.Join(dir, lockName)))
	require.NoError(t, l.TruncateBefore(20), "nobody else has it")
	other := mustOpen(t, dir, Options{SegmentBytes: minSegmentBytes})
	require.ErrorIs(t, l.TruncateBefore(l.Next()), fsys.ErrReplaced)
	require.NoError(t, other.Close())
	require.NoError(t, l.Close())
}

// The copy need not have a lock file, and nobody need have opened it: a backup leaves that out, a disk mounted over the directory is empty.
func TestALogWhoseDirectoryIsReplacedByOneWithoutALockFileFails(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("skipped: a directory whose files are open can't be moved there")
	}
	for _, copied := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "log")
		l := mustOpen(t, dir, Options{SegmentBytes: minSegmentBytes})
		commit(t, l, 31, 600) // the last segment has just begun, so no file waits to become the next
		require.NoError(t, os.Rename(dir, dir+".old"))
		if copied {
			require.NoError(t, os.CopyFS(dir, os.DirFS(dir+".old")))
			require.NoError(t, os.Remove(filepath.Join(dir, lockName)))
		} else {
			require.NoError(t, os.Mkdir(dir, 0o750))
		}
		there := files(t, dir)

		require.ErrorIs(t, l.TruncateBefore(l.Next()), fsys.ErrReplaced)
		var err error
		for range 20 {
			if err = l.Append([][]byte{tx(l.Next(), 600)}); err == nil {
				err = l.Sync()
			}
			if err != nil {
				break
			}
		}
		require.ErrorIs(t, err, fsys.ErrReplaced)
		acknowledged := l.durable.Load()
		require.NoError(t, l.Close())
		require.Equal(t, there, files(t, dir))
		l = mustOpen(t, dir+".old", Options{SegmentBytes: minSegmentBytes})
		require.Equal(t, acknowledged, l.Next(), "all in one directory")
		require.Equal(t, uint64(0), l.First())
		require.NoError(t, l.Close())
	}
}

// files is the names in a directory and what the files hold.
func files(t *testing.T, dir string) map[string]string {
	all := map[string]string{}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		all[e.Name()] = string(content)
	}
	return all
}
