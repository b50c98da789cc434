//go:build !386 && !arm

package disks

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/verification/disks/workload"
)

// fill writes a file until the file system has no room for one more byte.
func fill(t *testing.T, name string) {
	t.Helper()
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer file.Close()
	piece := make([]byte, 1<<20)
	for n := len(piece); n > 0; {
		if _, err = file.Write(piece[:n]); err != nil {
			require.ErrorIs(t, err, syscall.ENOSPC)
			n /= 2
		}
	}
	if err = file.Sync(); err != nil {
		require.ErrorIs(t, err, syscall.ENOSPC)
	}
}

// The disk runs full under a host, again and again, sooner or later: each time the host
// fails with that reason, the log reopens on the full disk and shows all that was
// acknowledged; and with room it goes on.
func TestAFullDiskLosesNothingAndTheLogGoesOnWhenThereIsRoom(t *testing.T) {
	needs(t, "mount", "mkfs.ext4")
	const room = 24 << 20
	lefts := []int64{600 << 10, 0, 2 << 20, 100 << 10}
	for name, mount := range map[string]func(t *testing.T) (dir string){
		"tmpfs": func(t *testing.T) string { return mountTmpfs(t, room) },
		"ext4": func(t *testing.T) string {
			image := filepath.Join(mountTmpfs(t, 2*room), "image")
			format(t, image, room, "-N", "64", "-J", "size=4")
			return mountImage(t, image).dir
		},
	} {
		for kind, shape := range map[string]workload.Shape{
			"small": {Seed: 11, Small: 200, Large: 5000},
			"large": {Seed: 12, Small: 60000, Large: 1000000},
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				top := mount(t)
				d := newDatabase(t, filepath.Join(top, "log"), shape, 256<<10)
				ballast := filepath.Join(top, "ballast")
				full, total, unmarked := 0, 0, 0
				for _, left := range lefts[:size(0, 2, len(lefts))] {
					d.live(50) // with all the room in the world
					require.NoError(t, d.open(nil))
					fill(t, ballast)
					info, err := os.Stat(ballast)
					require.NoError(t, err)
					require.NoError(t, os.Truncate(ballast, max(info.Size()-left, 0)))

					d.start(1 << 30)
					d.awaitFailure()
					d.requireFailed(d.exit(), syscall.ENOSPC)
					full++
					total += len(d.acked)

					// Close gave up the files that were prepared: fill their place as well.
					fill(t, ballast)
					for range 2 {
						require.NoError(t, d.open(nil), "no new space is needed")
						if err := d.log.Close(); err != nil { // a log that has grown has no room for the end mark
							require.ErrorIs(t, err, syscall.ENOSPC)
							unmarked++
						}
					}
					require.NoError(t, os.Remove(ballast))
					d.live(50)
					require.NoError(t, d.open(nil))
					d.judge.Truncating(d.log.Next())
					require.NoError(t, d.log.TruncateBefore(d.log.Next()))
					require.NoError(t, d.log.Close())
				}
				t.Logf("counts: disk full %d times, acknowledged %d (%d until the disk was full), recovered beside %d, closed without room for the end mark %d",
					full, d.judge.Acknowledged, total, d.judge.Recovered, unmarked)
			})
		}
	}
}
