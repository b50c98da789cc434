//go:build !386 && !arm

package disks

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys"
	"github.com/seed080d9131/lifecycle/verification/disks/workload"
)

// operations are what a log asked of the file system, in order.
type operations struct {
	mu   sync.Mutex
	list []operation
}

type operation struct {
	what, name string
	err        error
}

func (o *operations) after(what, name string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, operation{what, name, err})
}

// requireGaveUp demands that nothing was written or synced after the first failure but what
// the preparer of blank segments, which nobody waits for, had begun: no sync was tried again.
func (o *operations) requireGaveUp(t *testing.T) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	failed := -1
	for i, op := range o.list {
		segment := strings.HasSuffix(op.name, ".log")
		if failed >= 0 && segment && (op.what == "write" || op.what == "sync") {
			require.Fail(t, "not given up", "%s of %s after %v", op.what, op.name, o.list[failed])
		}
		if failed < 0 && segment && op.err != nil {
			failed = i
		}
	}
}

// probe shows what the kernel does: the error of a sync of what can't be written, and that of the
// next sync of the same file.
func probe(t *testing.T, dir string) (first, second error) {
	t.Helper()
	file, err := os.Create(filepath.Join(dir, "probe"))
	require.NoError(t, err)
	defer os.Remove(file.Name())
	defer file.Close()
	content := bytes.Repeat([]byte("CLF1"), 256<<10) // what a faulty disk refuses
	_, err = file.Write(content)
	require.NoError(t, err)
	first = file.Sync()
	return first, file.Sync()
}

// A device under a file system loses its ability to write. The first sync says so, and the next
// one says OK although the data is gone: who tried again would acknowledge it.
func TestAHostNeverBelievesTheSyncThatSaysOKAfterAFailedOne(t *testing.T) {
	needs(t, "mount", "mkfs.ext4")
	for name, device := range map[string]func(t *testing.T) failing{
		"full tmpfs":   onFullTmpfs,
		"failing FUSE": onFailingFUSE,
	} {
		for kind, shape := range map[string]workload.Shape{
			"small": {Seed: 21, Small: 300, Large: 5000},
			"large": {Seed: 22, Small: 100000, Large: 1000000}, // segments grow instead of being prepared
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				f := device(t)
				f.volume.singlePages()
				d := newDatabase(t, filepath.Join(f.volume.dir, "log"), shape, 1<<20)
				d.live(30)
				ops := &operations{}
				require.NoError(t, d.open(&workload.Tap{FS: fsys.OS, After: ops.after}))
				d.start(30)
				d.await(d.reached)
				f.fail()
				d.awaitFailure()
				failure := d.requireFailed(d.exit(), syscall.EIO, syscall.ENOSPC)
				ops.requireGaveUp(t)
				first, second := probe(t, f.volume.dir)
				require.Error(t, first)
				require.NoError(t, second, "this kernel tells twice")

				// With the device as it is, the log opens or says why not; it does not call durable
				// what only the cache holds.
				early := "refused"
				if err := d.open(nil); err == nil {
					early = "opened"
					_ = d.log.Close()
				} else {
					require.NotEmpty(t, reason(err), "%v", err)
				}

				// The device can write again. The cache still shows what was lost to the medium:
				// what the log shows now has to be there without the cache as well.
				f.repair()
				require.NoError(t, d.open(nil))
				shown := d.judge.Held
				require.NoError(t, d.log.Close())
				f.volume.unmount()
				f.volume.mount()
				f.volume.singlePages()
				require.NoError(t, d.open(nil))
				require.Equal(t, shown, d.judge.Held)
				require.NoError(t, d.log.Close())
				d.live(30)
				require.NoError(t, d.open(nil))
				require.NoError(t, d.log.Close())
				t.Logf("counts: %s failed with %q; a raw sync: %q, the next one OK; acknowledged %d, recovered beside %d; reopened before the repair: %s",
					failure.Op, reason(failure), reason(first), d.judge.Acknowledged, d.judge.Recovered, early)
			})
		}
	}
}

// reason is the system's error in err.
func reason(err error) string {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		if errors.Is(err, errno) {
			return errno.Error()
		}
	}
	return ""
}

// failing is a mounted volume on a device that can be made to fail, and repaired.
type failing struct {
	volume       *volume
	fail, repair func()
}

// onFullTmpfs is an image that promises more than the tmpfs under it can hold. Where the journal and the
// tables of inodes are, it holds: only data meets the limit.
func onFullTmpfs(t *testing.T) failing {
	const promised, reserved, held = 96 << 20, 8 << 20, 16 << 20
	top := mountTmpfs(t, held)
	image := filepath.Join(top, "image")
	format(t, image, promised, "-N", "64", "-J", "size=4,location=256")
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, syscall.Fallocate(int(file.Fd()), 0, 0, reserved))
	require.NoError(t, file.Close())
	return failing{
		volume: mountImage(t, image),
		fail:   func() { fill(t, filepath.Join(top, "ballast")) },
		repair: func() { resizeTmpfs(t, top, 2*promised) },
	}
}

// onFailingFUSE is a disk that refuses to write data of the log.
func onFailingFUSE(t *testing.T) failing {
	const size = 96 << 20
	d := newDisk(t, formatted(t, size, "-N", "64", "-J", "size=4"))
	return failing{
		volume: mountImage(t, d.path),
		fail: func() {
			d.setFault(func(data []byte, _ int64) syscall.Errno {
				if bytes.Contains(data, []byte("CLF1")) {
					return syscall.EIO
				}
				return 0
			})
		},
		repair: func() { d.setFault(nil) },
	}
}

// What remains of the cache after a failed sync is worse than it looks. Where the write went to new
// blocks of ext4, writing the same bytes over them again and syncing says OK, and after the next mount the blocks
// read as zeros: the pages take the blocks for written, the file system does not. So an opened log may not
// go by what the cache shows, not even after writing it again.
func TestWhatAnOpenedLogShowsAfterAFailedSyncIsThereWithoutTheCache(t *testing.T) {
	t.Run("nobody else has the file", func(t *testing.T) { showsWhatIsThere(t, func(*testing.T, string) {}) })
	t.Run("another has it mapped", func(t *testing.T) { showsWhatIsThere(t, keepCached) })
}

// keepCached maps a file, so that the system can't drop what it has cached of it.
func keepCached(t *testing.T, name string) {
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	mapped, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED|syscall.MAP_POPULATE)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Munmap(mapped) })
}

func showsWhatIsThere(t *testing.T, disturb func(t *testing.T, segment string)) {
	needs(t, "mount", "mkfs.ext4")
	f := onFailingFUSE(t)
	f.volume.singlePages()
	d := newDatabase(t, filepath.Join(f.volume.dir, "log"), workload.Shape{}, 1<<20)
	reopen := func() (next uint64) {
		log, err := commitlog.Open(d.dir, commitlog.Options{SegmentBytes: d.segment})
		require.NoError(t, err)
		d.log = log
		return log.Next()
	}
	require.Zero(t, reopen())
	f.fail()
	require.NoError(t, d.log.Append([][]byte{bytes.Repeat([]byte("CLF1"), 75000)}), "more than the blocks that were filled with zeros")
	require.ErrorIs(t, d.log.Sync(), syscall.EIO)
	require.NoError(t, d.log.Close())
	f.repair()

	t.Run("opened", func(t *testing.T) {
		disturb(t, filepath.Join(d.dir, "00000000000000000000.log"))
		shown := reopen()
		require.NoError(t, d.log.Append([][]byte{[]byte("one more")}))
		require.NoError(t, d.log.Sync(), "acknowledged")
		require.NoError(t, d.log.Close())
		t.Logf("counts: transactions shown %d", shown)
	})
	next := d.log.Next()
	f.volume.unmount()
	f.volume.mount()
	require.Equal(t, next, reopen())
}
