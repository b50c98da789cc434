package commitlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/seed080d9131/lifecycle/internal/fsys"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
	"github.com/stretchr/testify/require"
)

// A log of three small segments, as one that was closed in order and as one whose process was killed.
func makeLog(t testing.TB, closed bool) (fs *faultfs.FS, want []string) {
	fs = faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	commit(t, l, 20, 600)
	commit(t, l, 3, 20)
	want = mustContents(t, l)
	if closed {
		require.NoError(t, l.Close())
	}
	fs.Restart()
	return fs, want
}

func TestATornTailIsCutOffAtEveryByte(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	commit(t, l, 3, 50)
	from := l.position
	require.NoError(t, l.Append([][]byte{tx(3, 50), tx(4, 70)})) // one frame, not synced
	to := l.position
	fs.Restart()
	whole, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	want := []string{string(tx(0, 50)), string(tx(1, 50)), string(tx(2, 50))}
	for _, rest := range []string{"zeros", "noise", "end of file"} {
		for cut := from; cut < to; cut++ {
			torn := bytes.Clone(whole)
			switch rest {
			case "zeros":
				clear(torn[cut:])
			case "noise":
				for i := cut; i < int64(len(torn)); i++ {
					torn[i] ^= byte(cut*7+i*13) | 1
				}
			case "end of file": // only a file that grew may end there
				binary.LittleEndian.PutUint64(torn[48:], segmentHeaderBytes)
				s := segment{base: 0, capacity: minSegmentBytes, allocated: segmentHeaderBytes}
				copy(torn, s.encodeHeader(l.identity))
				torn = rechain(torn[:cut], s.sum)
			}
			fs.WriteFile(segmentPath(0), torn)
			l := mustOpen(t, testDir, small(fs))
			got := mustContents(t, l)
			if len(got) > 3 { // only padding is missing
				require.GreaterOrEqual(t, cut, to-7)
				got = got[:3]
			}
			require.Equal(t, want, got, "cut at %d", cut)
			commit(t, l, 2, 30)
			fs.Restart()
			l = mustOpen(t, testDir, small(fs))
			require.NotEmpty(t, mustContents(t, l)[4])
			require.NoError(t, l.Close())
			for _, name := range fs.Names() { // of the segments that came after it
				if name != segmentPath(0) {
					require.NoError(t, fs.Remove(name))
				}
			}
		}
	}
}

// rechain gives every frame of a segment's content the links and sums that the header's new sum asks for.
func rechain(data []byte, link uint32) []byte {
	seed := crc32.Checksum(data[16:40], castagnoli)
	for p := int64(segmentHeaderBytes); p+frameHeaderBytes <= int64(len(data)); {
		var h frameHeader
		start := sumStart(seed, p)
		if !h.open(data[p:], start) {
			break
		}
		h.link = link
		h.seal(data[p:], start)
		if h.kind == kindData {
			link = h.sum
		}
		p = align(h.end(p))
	}
	return data
}

func TestAfterACleanCloseAFlippedBitIsFoundOrHarmless(t *testing.T) {
	fs, want := makeLog(t, true)
	found := 0
	for _, path := range fs.Names() {
		if !strings.HasSuffix(path, segmentSuffix) {
			continue
		}
		whole, err := fs.ReadFile(path)
		require.NoError(t, err)
		for i := range whole {
			damaged := bytes.Clone(whole)
			damaged[i] ^= 1 << (i % 8)
			fs.WriteFile(path, damaged)
			l, err := Open(testDir, small(fs))
			if err != nil {
				require.True(t, isDamage(err), "byte %d of %s: %v", i, path, err)
				found++
			} else {
				require.Equal(t, want, mustContents(t, l), "byte %d of %s", i, path)
			}
			fs.WriteFile(path, whole)
			fs.Restart()
		}
	}
	require.Greater(t, found, 3*segmentHeaderBytes+20*600, "every byte of headers and transactions")
}

func TestWithoutACleanCloseDamageBeforeALaterSyncIsFound(t *testing.T) {
	fs, want := makeLog(t, false)
	for _, path := range fs.Names() {
		if !strings.HasSuffix(path, segmentSuffix) {
			continue
		}
		whole, err := fs.ReadFile(path)
		require.NoError(t, err)
		for i := range whole {
			damaged := bytes.Clone(whole)
			damaged[i] ^= 1 << (i % 8)
			fs.WriteFile(path, damaged)
			l, err := Open(testDir, small(fs))
			if err != nil {
				require.True(t, isDamage(err), "byte %d of %s: %v", i, path, err)
			} else {
				// The last frame can't be told from one that was never synced.
				got := mustContents(t, l)
				require.GreaterOrEqual(t, len(got), len(want)-1, "byte %d of %s", i, path)
				require.Equal(t, want[:len(got)], got, "byte %d of %s", i, path)
			}
			fs.WriteFile(path, whole)
			fs.Restart()
		}
	}
}

func TestAHeaderProvesDamageBeforeItEvenIfItsOwnRecordsAreTorn(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	commit(t, l, 1, 50)
	second := l.position
	commit(t, l, 1, 50)
	third := l.position
	require.NoError(t, l.Append([][]byte{tx(2, 50)})) // not synced
	fs.Restart()
	data, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	data[second+60] ^= 1
	data[third+60] ^= 1
	fs.WriteFile(segmentPath(0), data)
	_, err = Open(testDir, small(fs))
	var damage *DamageError
	require.ErrorAs(t, err, &damage)
	require.Equal(t, filepath.FromSlash(segmentPath(0)), damage.Segment)
	require.Equal(t, second, damage.Position)
	require.Equal(t, uint64(1), damage.Offset)
	require.ErrorContains(t, err, fmt.Sprintf("commitlog: %s: damage at byte %d, where offset 1 belongs", damage.Segment, second))
	after, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	require.Equal(t, data, after, "nothing was changed")

	// What the message advises: zeros from that byte on.
	clear(data[damage.Position:])
	fs.WriteFile(segmentPath(0), data)
	l = mustOpen(t, testDir, small(fs))
	require.Equal(t, []string{string(tx(0, 50))}, mustContents(t, l))
}

func TestProofIsFoundWhereverReadingHappensToEnd(t *testing.T) {
	for k := range 8 {
		fs := faultfs.New()
		l := mustOpen(t, testDir, Options{FS: fs})
		roomy := *l.active
		roomy.capacity = 1 << 20 // or the second frame would go to another segment
		l.active = &roomy
		require.NoError(t, l.AppendBatch(batch(tx(0, windowBytes-8*k-frameHeaderBytes-recordHeader)), 1))
		require.NoError(t, l.Sync())
		require.Equal(t, int64(segmentHeaderBytes+windowBytes-8*k), l.position)
		commit(t, l, 1, 10)
		fs.Restart()
		data, err := fs.ReadFile(segmentPath(0))
		require.NoError(t, err)
		data[segmentHeaderBytes+100] ^= 1
		fs.WriteFile(segmentPath(0), data)
		_, err = Open(testDir, Options{FS: fs})
		require.True(t, isDamage(err), "%d bytes of the header in the first window: %v", 8*k, err)
		require.ErrorContains(t, err, fmt.Sprintf("byte %d holds", segmentHeaderBytes+windowBytes-8*k))
	}
}

func TestAMissingSegmentIsDamage(t *testing.T) {
	for missing, position := range []string{"first", "middle", "last"} {
		fs, want := makeLog(t, true)
		var segments []string
		for _, path := range fs.Names() {
			if strings.HasSuffix(path, segmentSuffix) {
				segments = append(segments, path)
			}
		}
		require.Greater(t, len(segments), 3)
		gone := segments[[]int{0, 1, len(segments) - 1}[missing]]
		fs.RemoveFile(gone)
		l, err := Open(testDir, small(fs))
		if position == "first" { // as after a truncation
			require.NoError(t, err)
			require.Equal(t, want[l.First():], mustContents(t, l))
			continue
		}
		require.True(t, isDamage(err), "%s: %v", position, err)
		require.ErrorContains(t, err, "missing")
	}
}

func TestAForeignOrMisnamedOrShortenedSegmentIsDamage(t *testing.T) {
	fs, _ := makeLog(t, true)
	other, _ := makeLog(t, true)
	segments := slices.DeleteFunc(fs.Names(), func(name string) bool { return !strings.HasSuffix(name, segmentSuffix) })
	last := segments[len(segments)-1]
	foreign, err := other.ReadFile(last)
	require.NoError(t, err)
	own, err := fs.ReadFile(last)
	require.NoError(t, err)

	fs.WriteFile(last, foreign)
	_, err = Open(testDir, small(fs))
	require.True(t, isDamage(err), err)
	require.ErrorContains(t, err, "another log")

	fs.WriteFile(last, own[:len(own)-1])
	_, err = Open(testDir, small(fs))
	require.ErrorContains(t, err, "has only")
	require.True(t, isDamage(err))

	fs.WriteFile(last, own[:100])
	_, err = Open(testDir, small(fs))
	require.True(t, isDamage(err))

	fs.WriteFile(last, own)
	fs.WriteFile(segmentPath(1000), own)
	_, err = Open(testDir, small(fs))
	require.True(t, isDamage(err))
	require.ErrorContains(t, err, "the log was closed here, but a segment that begins at offset 1000 follows")

	fs.RemoveFile(segmentPath(1000))
	first, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	fs.WriteFile(segmentPath(0), own)
	_, err = Open(testDir, small(fs))
	require.True(t, isDamage(err))
	require.ErrorContains(t, err, "not the file's name")
	fs.WriteFile(segmentPath(0), first)
	l := mustOpen(t, testDir, small(fs))
	require.NoError(t, l.Close())
}

func TestALaterFormatIsRefusedAndNotCalledDamage(t *testing.T) {
	fs, _ := makeLog(t, true)
	data, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	data[8]++
	binary.LittleEndian.PutUint32(data[segmentHeaderBytes-4:], crc32.Checksum(data[:segmentHeaderBytes-4], castagnoli))
	fs.WriteFile(segmentPath(0), data)
	_, err = Open(testDir, small(fs))
	require.ErrorContains(t, err, "format version 2")
	require.False(t, isDamage(err))
}

func TestAFrameFromElsewhereIsNoFrame(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	commit(t, l, 1, 60)
	size := l.position - segmentHeaderBytes
	commit(t, l, 2, 60)
	end := l.position
	fs.Restart()
	data, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	for from := int64(segmentHeaderBytes); from < end; from += size {
		copied := bytes.Clone(data)
		copy(copied[end:], data[from:from+size])
		fs.WriteFile(segmentPath(0), copied)
		l := mustOpen(t, testDir, small(fs))
		require.Len(t, mustContents(t, l), 3, "of the same segment")
		fs.Restart()
	}

	other := faultfs.New()
	l = mustOpen(t, testDir, small(other))
	commit(t, l, 4, 60)
	other.Restart()
	foreign, err := other.ReadFile(segmentPath(0))
	require.NoError(t, err)
	copied := bytes.Clone(data)
	copy(copied[end:], foreign[end:])
	fs.WriteFile(segmentPath(0), copied)
	l = mustOpen(t, testDir, small(fs))
	require.Len(t, mustContents(t, l), 3, "of another log, at the same position and offset")
}

func TestAHeaderCountsAtItsOwnPositionOfItsOwnSegmentOnly(t *testing.T) {
	own := segment{base: 10, capacity: minSegmentBytes}
	other := segment{base: 11, capacity: minSegmentBytes}
	own.encodeHeader(identity{1})
	other.encodeHeader(identity{1})
	b := make([]byte, frameHeaderBytes)
	h := frameHeader{kind: kindData, count: 1, length: 4, first: 10, synced: 10}
	h.seal(b, sumStart(own.seed, segmentHeaderBytes))
	require.True(t, h.open(b, sumStart(own.seed, segmentHeaderBytes)))
	require.False(t, h.open(b, sumStart(other.seed, segmentHeaderBytes)))
	for p := int64(0); p < 1<<20; p += frameAlign {
		require.Equal(t, p == segmentHeaderBytes, h.open(b, sumStart(own.seed, p)))
	}
	require.False(t, h.open(make([]byte, frameHeaderBytes), 0), "zeros")
}

// A frame that a failed process wrote, that never became durable and then does, behind frames that a
// later process wrote in front of it.
func TestAFrameOfAnEarlierLifeDoesNotComeBack(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	commit(t, l, 1, 60)
	at := l.position
	require.NoError(t, l.Append([][]byte{tx(1, 60)}))
	lost := l.position
	require.NoError(t, l.Append([][]byte{[]byte("never acknowledged")}))
	fs.Restart()
	stale, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	torn := bytes.Clone(stale)
	clear(torn[at:])
	fs.WriteFile(segmentPath(0), torn)

	l = mustOpen(t, testDir, small(fs))
	require.Equal(t, uint64(1), l.Next())
	commit(t, l, 1, 60) // the same bytes at the same place
	require.Equal(t, lost, l.position)
	fs.Restart()
	data, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	copy(data[lost:], stale[lost:])
	fs.WriteFile(segmentPath(0), data)
	l = mustOpen(t, testDir, small(fs))
	require.Equal(t, []string{string(tx(0, 60)), string(tx(1, 60))}, mustContents(t, l))
}

// The header of a torn frame stays on the medium; a later frame in its place, torn the other way round, has
// the same bytes where the first lacked them.
func TestATornFrameIsNotMadeWholeByTheNextOne(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	first, second := tx(1, 900), tx(2, 900)
	require.Equal(t, first[10:], second[10:])
	keepSector := func(which int) func() bool {
		n := -1
		return func() bool { n++; return n == which }
	}
	require.NoError(t, l.Append([][]byte{first}))
	fs.PowerFail(keepSector(0))
	l = mustOpen(t, testDir, small(fs))
	require.Zero(t, l.Next())
	require.NoError(t, l.Append([][]byte{second}))
	fs.PowerFail(keepSector(1))
	l = mustOpen(t, testDir, small(fs))
	require.Zero(t, l.Next())
}

func TestARecycledFileBringsNothingBack(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	var want []string
	recycled := false
	for range 30 {
		commit(t, l, 5, 300)
		require.NoError(t, l.TruncateBefore(l.Next()))
		l.mu.Lock()
		for _, b := range l.blanks {
			data, err := fs.ReadFile(b.path)
			require.NoError(t, err)
			recycled = recycled || bytes.Contains(data, []byte("tx "))
		}
		l.mu.Unlock()
		want = mustContents(t, l)
		fs.Restart()
		c := fs.Clone()
		l = mustOpen(t, testDir, small(c))
		require.Equal(t, want, mustContents(t, l))
		l = mustOpen(t, testDir, small(fs))
	}
	require.True(t, recycled)
	require.NotEmpty(t, want)
	require.Greater(t, l.First(), uint64(100))

	// Without leaving it in between, too.
	for range 30 {
		commit(t, l, 5, 300)
		require.NoError(t, l.TruncateBefore(l.Next()))
		c := fs.Clone()
		again := mustOpen(t, testDir, small(c))
		require.Equal(t, mustContents(t, l), mustContents(t, again))
	}
	require.NoError(t, l.Close())
}

// Linux may go on to show what a failed write-back has lost, and on ext4 even writing it anew and syncing it does
// not bring it to the medium while it is cached; other systems have no way to ask for the medium.
func TestWhatAnOpenedLogShowsAfterAFailedSyncIsDurable(t *testing.T) {
	for name, c := range map[string]struct {
		reload error
		shown  int
	}{
		"the cache can be dropped":      {nil, 0},
		"it can't, since it is in use":  {fsys.ErrCached, 1},
		"the system has no way to drop": {errors.ErrUnsupported, 1},
	} {
		t.Run(name, func(t *testing.T) {
			fs := faultfs.New()
			fs.Cache(c.reload)
			l := mustOpen(t, testDir, small(fs))
			fs.Hook(func(op faultfs.Op) *faultfs.Fault {
				if op.Kind == faultfs.Sync {
					return &faultfs.Fault{}
				}
				return nil
			})
			require.NoError(t, l.Append([][]byte{tx(0, 30_000)})) // the segment was filled with less
			require.ErrorIs(t, l.Sync(), faultfs.ErrInjected)
			require.NoError(t, l.Close())
			fs.Hook(nil)
			l = mustOpen(t, testDir, small(fs)) // the same boot: the cache shows what the medium has not
			found := mustContents(t, l)
			require.Len(t, found, c.shown)
			now := fs.Clone()
			now.PowerFail(faultfs.KeepNone)
			require.Equal(t, found, mustContents(t, mustOpen(t, testDir, small(now))))
			commit(t, l, 1, 10)
			found = mustContents(t, l)
			fs.PowerFail(faultfs.KeepNone)
			l = mustOpen(t, testDir, small(fs))
			require.Equal(t, found, mustContents(t, l))
		})
	}
}

func TestAClosedLogThatStaysCachedIsCopiedWithItsMark(t *testing.T) {
	fs, want := makeLog(t, true)
	before, err := fs.ReadFile(fs.Names()[len(fs.Names())-1])
	require.NoError(t, err)
	fs.Cache(fsys.ErrCached)
	l := mustOpen(t, testDir, small(fs))
	require.Equal(t, want, mustContents(t, l))
	require.NoError(t, l.Close())
	after, err := fs.ReadFile(fs.Names()[len(fs.Names())-1])
	require.NoError(t, err)
	require.Equal(t, before, after)
	fs.PowerFail(faultfs.KeepNone)
	l = mustOpen(t, testDir, small(fs))
	commit(t, l, 1, 10)
	require.Equal(t, append(want, string(tx(uint64(len(want)), 10))), mustContents(t, l))
}

func TestACopyForWhichThereIsNoRoomSaysWhyItIsMadeAndChangesNothing(t *testing.T) {
	fs, want := makeLog(t, false)
	for _, name := range fs.Names() {
		if strings.HasSuffix(name, ".tmp") { // Open would make room by removing them
			fs.RemoveFile(name)
		}
	}
	names := fs.Names()
	fs.Cache(fsys.ErrCached)
	fs.SetQuota(fs.Used())
	_, err := Open(testDir, small(fs))
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, "another process reads or maps it")
	require.Equal(t, names, fs.Names())
	fs.SetQuota(-1)
	require.Equal(t, want, mustContents(t, mustOpen(t, testDir, small(fs))))
}

func TestAnEndMarkThatShowsAgainHidesNothing(t *testing.T) {
	fs := faultfs.New()
	l := mustOpen(t, testDir, small(fs))
	commit(t, l, 2, 600)
	require.NoError(t, l.Close())
	closed, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	l = mustOpen(t, testDir, small(fs))
	commit(t, l, 2, 600)
	require.NoError(t, l.Close())
	now, err := fs.ReadFile(segmentPath(0))
	require.NoError(t, err)
	var at int // the first sector that the second life has changed
	for now[at] == closed[at] {
		at++
	}
	at -= at % faultfs.SectorBytes
	copy(now[at:at+faultfs.SectorBytes], closed[at:])
	fs.WriteFile(segmentPath(0), now)
	_, err = Open(testDir, small(fs))
	var damage *DamageError
	require.ErrorAs(t, err, &damage)
	require.Contains(t, damage.Why, "the log was closed here, but byte")
}

func TestOneDirectoryIsTheSameForEveryOperation(t *testing.T) {
	base := t.TempDir()
	for _, dir := range []string{"a", "b", filepath.Join("other", "deep")} {
		require.NoError(t, os.MkdirAll(filepath.Join(base, dir), 0o750))
	}
	opts := Options{SegmentBytes: minSegmentBytes}
	write := func(l *Log, n, size int) []string {
		commit(t, l, n, size)
		found := mustContents(t, l)
		require.NoError(t, l.Close())
		return found
	}
	read := func(dir string) []string {
		l := mustOpen(t, dir, opts)
		found := mustContents(t, l)
		require.NoError(t, l.Close())
		return found
	}
	other := filepath.Join(base, "b", "log")
	want := write(mustOpen(t, other, opts), 3, 10)

	t.Chdir(filepath.Join(base, "a"))
	l := mustOpen(t, "log", opts)
	t.Chdir(filepath.Join(base, "b"))
	wrote := write(l, 5, 3000) // into segments that are made from here on
	require.Equal(t, want, read(other))
	require.Equal(t, wrote, read(filepath.Join(base, "a", "log")))

	if err := os.Symlink(filepath.Join(base, "other", "deep"), filepath.Join(base, "link")); err != nil {
		t.Logf("not tried: symbolic links: %v", err)
		return
	}
	_ = write(mustOpen(t, filepath.Join(base, "c"), opts), 3, 10)
	wrote = write(mustOpen(t, base+"/link/../c", opts), 2, 10)
	require.Len(t, wrote, 5)
	require.Equal(t, wrote, read(filepath.Join(base, "c")))
}

func TestDirectoriesThatAFailedOpenMadeAreSyncedByTheNext(t *testing.T) {
	fs := faultfs.New()
	fs.Hook(func(op faultfs.Op) *faultfs.Fault {
		if op.Kind == faultfs.SyncDir && op.Name == "/" {
			return &faultfs.Fault{}
		}
		return nil
	})
	_, err := Open("/data/of/a/log", small(fs))
	require.ErrorIs(t, err, faultfs.ErrInjected)
	fs.Hook(nil)
	l := mustOpen(t, "/data/of/a/log", small(fs))
	commit(t, l, 2, 10)
	found := mustContents(t, l)
	fs.PowerFail(faultfs.KeepNone)
	require.Equal(t, found, mustContents(t, mustOpen(t, "/data/of/a/log", small(fs))))
}

// The root of a container, say, may be of a file system that is read-only or syncs no directories.
func TestANewLogNeedsASyncOfTheDirectoryAboveOnlyWhereItMadeItsOwn(t *testing.T) {
	for why, tolerated := range map[error]bool{errors.ErrUnsupported: true, iofs.ErrPermission: true, fsys.ErrNotTried: false} {
		for _, dir := range []string{"/", testDir} {
			for _, there := range []bool{false, true} {
				fs := faultfs.New()
				if there {
					require.NoError(t, fs.Mkdir(testDir))
				}
				fs.Hook(func(op faultfs.Op) *faultfs.Fault {
					if op.Kind == faultfs.SyncDir && op.Name == dir {
						return &faultfs.Fault{Err: why}
					}
					return nil
				})
				_, err := Open(testDir, small(fs))
				if tolerated && there && dir != testDir {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, why)
				}
			}
		}
	}
}

func TestOpenRemovesWhatPreparationLeftAndNothingElse(t *testing.T) {
	fs, want := makeLog(t, true)
	fs.WriteFile(testDir+"/prepare-000007.tmp", []byte("x"))
	fs.WriteFile(testDir+"/notes.tmp", []byte("x"))
	fs.WriteFile(segmentPath(3)+".bak", []byte("x"))
	fs.WriteFile(testDir+"/123.log", []byte("x"))
	fs.WriteFile(testDir+"/0000000000000000000x.log", []byte("x"))
	l := mustOpen(t, testDir, small(fs))
	require.Equal(t, want, mustContents(t, l))
	require.NotContains(t, fs.Names(), testDir+"/prepare-000007.tmp")
	require.Contains(t, fs.Names(), testDir+"/notes.tmp")
	require.Contains(t, fs.Names(), segmentPath(3)+".bak")
}
