package commitlog

import (
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/internal/fsys"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

// The tests of this file stand for faults that the ledger of seeded faults
// (verification/mutants) found to need a test of their own: none failed, or only one
// that takes seconds to try everything.

// keeps is what a power failure may let survive: nothing, all, and the changes that
// come first, or last, of those that it asks for; and halves by chance.
func keeps() map[string]func() bool {
	all := map[string]func() bool{"none": faultfs.KeepNone, "all": faultfs.KeepAll}
	for n := range 6 {
		first, last := 0, 0
		all[fmt.Sprint("the first ", n+1)] = func() bool { first++; return first <= n+1 }
		all[fmt.Sprint("all but the first ", n+1)] = func() bool { last++; return last > n+1 }
		all[fmt.Sprint("by chance ", n)] = faultfs.KeepRandom(uint64(n))
	}
	return all
}

// P3: the power may fail after each step of a log's life, and whatever of the rest
// survives, what was acknowledged is there.
func TestWhatWasAcknowledgedSurvivesAPowerFailureAfterEachStep(t *testing.T) {
	fs := faultfs.New()
	var h history
	var l *Log
	steps := []struct {
		name string
		do   func() error
	}{
		{"open", func() (err error) { l, err = Open(testDir, small(fs)); return err }},
		{"append", func() error { return h.append(l, 1500) }},
		{"sync", func() error { return h.sync(l) }},
		{"append two", func() error { return h.append(l, 1000, 20) }},
		{"rotate without a sync", func() error { return h.append(l, 2000) }},
		{"append", func() error { return h.append(l, 30) }},
		{"sync", func() error { return h.sync(l) }},
		{"rotate", func() error { return h.append(l, 3000) }},
		{"sync", func() error { return h.sync(l) }},
		{"truncate", func() error { h.truncated = h.acknowledged - 1; return l.TruncateBefore(h.truncated) }},
		{"rotate into a recycled file", func() error { return h.append(l, 3000) }},
		{"sync", func() error { return h.sync(l) }},
		{"append", func() error { return h.append(l, 10) }},
		{"close", func() error { h.acknowledged = uint64(len(h.txs)); return l.Close() }},
		{"open again", func() (err error) { l, err = Open(testDir, small(fs)); return err }},
		{"append", func() error { return h.append(l, 40) }},
		{"sync", func() error { return h.sync(l) }},
	}
	runs := 0
	for i, step := range steps {
		require.NoError(t, step.do(), "step %d, %s", i, step.name)
		for survives, keep := range keeps() {
			after := fs.Clone()
			after.PowerFail(keep)
			known := h
			reopened, err := Open(testDir, small(after))
			require.NoError(t, err, "after step %d, %s, what survives: %s", i, step.name, survives)
			require.NoError(t, known.verify(reopened), "after step %d, %s, what survives: %s", i, step.name, survives)
			require.NoError(t, reopened.Close())
			runs++
		}
	}
	t.Logf("counts: power failures %d, lost 0", runs)
}

// P4: what a log shows when it is opened is durable from then on, also what nobody had
// synced when the process was killed.
func TestWhatOpenRecoveredIsDurable(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	require.NoError(t, l.Append([][]byte{tx(0, 700), tx(1, 700)}))
	fs.Restart()
	l = mustOpen(t, testDir, small(fs))
	found := mustContents(t, l)
	require.Len(t, found, 2)
	fs.PowerFail(faultfs.KeepNone)
	l = mustOpen(t, testDir, small(fs))
	require.Equal(t, found, mustContents(t, l))
	require.NoError(t, l.Close())
}

// P3: after a clean close damage is damage, also if the power failed right after it.
func TestTheEndMarkOfACloseSurvivesAPowerFailure(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	commit(t, l, 2, 100)
	require.NoError(t, l.Append([][]byte{tx(2, 100)})) // for Close to sync
	last := l.position - 8
	require.NoError(t, l.Close())
	fs.PowerFail(faultfs.KeepNone)
	content, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	content[last-16] ^= 1
	fs.WriteFile(segmentPath(0), content)
	_, err = Open(testDir, small(fs))
	require.True(t, isDamage(err), "%v", err)
}

// P4: a sync that failed is not asked a second time: the answer would be yes, and
// mean nothing.
func TestASyncThatFailedOnceIsNotTriedAgain(t *testing.T) {
	for _, stage := range []string{"sync", "rotation", "close"} {
		fs := faultfs.New()
		l := mustOpen(t, testDir, small(fs))
		require.NoError(t, l.Append([][]byte{tx(0, 3000)}))
		failed := false
		fs.Hook(func(op faultfs.Op) *faultfs.Fault {
			if op.Kind == faultfs.Sync && !failed {
				failed = true
				return &faultfs.Fault{Err: syscall.EIO}
			}
			return nil
		})
		var err error
		switch stage {
		case "sync":
			err = l.Sync()
		case "rotation":
			err = l.Append([][]byte{tx(1, 3000)})
		case "close":
			err = l.Close()
		}
		require.True(t, failed, stage)
		require.ErrorIs(t, err, syscall.EIO, stage)
		require.Zero(t, l.durable.Load(), stage)
		if stage != "close" {
			require.ErrorIs(t, l.Sync(), syscall.EIO, stage)
		}
	}
}

// P1: the lock is the last that a log gives up.
func TestNothingIsDoneInTheDirectoryOnceTheLockIsGivenUp(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	commit(t, l, 4, 1500) // with blanks and more than one segment
	require.NoError(t, l.Append([][]byte{tx(l.Next(), 10)}))
	before := fs.Count()
	require.NoError(t, l.Close())
	trace := fs.Trace()[before:]
	unlocked := 0
	for _, op := range trace {
		if op.Kind == faultfs.Unlock {
			unlocked++
		}
	}
	require.Equal(t, 1, unlocked)
	require.Equal(t, faultfs.Unlock, trace[len(trace)-1].Kind, "%v", trace)
}

// P10: Close waits for the preparer, however long that hangs in the disk.
func TestCloseReturnsWhenThePreparerHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := faultfs.New()
		l := mustOpen(t, testDir, small(fs))
		hold := make(chan struct{})
		fs.Hook(func(op faultfs.Op) *faultfs.Fault {
			if op.Kind == faultfs.Create { // the preparer's
				<-hold
			}
			return nil
		})
		require.NoError(t, l.Append([][]byte{tx(0, 1500)}))
		require.NoError(t, l.Sync())
		closed := make(chan error, 1)
		go func() { closed <- l.Close() }()
		synctest.Wait()
		require.Empty(t, closed, "the preparer is in mid-operation")
		close(hold)
		require.NoError(t, <-closed)
		require.Equal(t, []string{segmentPath(0), testDir + "/" + lockName}, fs.Names())
	})
}

// shortFS is a file system whose next write of a frame writes less than it is given
// and says so only by the count.
type shortFS struct {
	fsys.FS
	short bool
}

type shortFile struct {
	fsys.File
	fs *shortFS
}

func (f *shortFS) Create(name string) (fsys.File, error) {
	file, err := f.FS.Create(name)
	return shortFile{file, f}, err
}

func (f shortFile) WriteAt(p []byte, position int64) (int, error) {
	if f.fs.short {
		f.fs.short = false
		p = p[:len(p)/2]
	}
	return f.File.WriteAt(p, position)
}

// P4: a write that wrote less than it was given is an error.
func TestAShortWriteWithoutAnErrorPoisonsTheLog(t *testing.T) {
	fs := &shortFS{FS: faultfs.New()}
	l := mustOpen(t, testDir, Options{SegmentBytes: minSegmentBytes, FS: fs})
	fs.short = true
	require.ErrorContains(t, l.Append([][]byte{tx(0, 100)}), "short write")
	require.ErrorContains(t, l.Sync(), "short write")
	require.NoError(t, l.Close())
	l = mustOpen(t, testDir, Options{SegmentBytes: minSegmentBytes, FS: fs})
	require.Zero(t, l.Next())
	require.NoError(t, l.Close())
}
