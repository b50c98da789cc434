//go:build !windows

package commitlog_test

import (
	"os/exec"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/commitlog"
)

// A child process inherits every descriptor between its fork and its exec, and with
// them a flock, which belongs to the open file and not to the descriptor.
func TestALogReopensAtOnceWhileTheProcessStartsChildren(t *testing.T) {
	var children sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		children.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("true").Run()
				}
			}
		})
	}
	defer children.Wait()
	defer close(stop)
	dir := t.TempDir()
	for range 300 {
		log, err := commitlog.Open(dir, commitlog.Options{})
		require.NoError(t, err)
		require.NoError(t, log.Close())
	}
}
