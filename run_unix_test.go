//go:build unix

package lifecycle_test

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

// raise sends the signal to this process, again and again until done closes: the
// first may come before Run catches it. The test itself catches it too, so that it
// ends nobody.
func raise(t *testing.T, s syscall.Signal, done <-chan struct{}) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, s)
	t.Cleanup(func() { signal.Stop(caught) })
	go func() {
		for {
			select {
			case <-done:
				return
			default:
				_ = syscall.Kill(os.Getpid(), s)
				<-caught
			}
		}
	}()
}

func TestASignalBeginsTheExit(t *testing.T) {
	h := lifecycle.New(nil, lifecycle.Options{})
	raise(t, syscall.SIGUSR1, h.Exiting())
	require.NoError(t, lifecycle.Run(background, h, lifecycle.RunOptions{Signals: []os.Signal{syscall.SIGUSR1}}))
}

func TestASecondSignalForcesTheExitAtOnce(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	h := lifecycle.New(nil, lifecycle.Options{})
	require.NoError(t, h.Go("stuck", stubborn(release)))
	raise(t, syscall.SIGUSR2, h.Done())
	err := lifecycle.Run(background, h, lifecycle.RunOptions{Grace: time.Hour, Signals: []os.Signal{syscall.SIGUSR2}})
	require.ErrorIs(t, err, lifecycle.ErrForced)
	require.ErrorContains(t, err, "a second signal, user defined signal 2, came")
}
