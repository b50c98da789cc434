//go:build unix

package lifecycle_test

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

// raise sends the signal to this process, again and again until done closes: the
// first may come before Run catches it. The test itself catches each, and ends when
// the last has come: a later one would be another test's.
func raise(t *testing.T, s syscall.Signal, done <-chan struct{}) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, s)
	over, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() {
		close(over)
		<-ended // it may have found done open and be about to send one more
		signal.Stop(caught)
	})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-over:
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

// A signal.NotifyContext ends with the signal that Run catches as well: it is the
// first, whichever Run sees first. And a supervisor's signal may come when the host
// has begun its exit by itself.
func TestTheFirstSignalForcesNothingWhoeverHasBegunTheExit(t *testing.T) {
	for who, begin := range map[string]func(h *lifecycle.Host, cancel func()){
		"the context": func(_ *lifecycle.Host, cancel func()) { cancel() },
		"the host":    func(h *lifecycle.Host, _ func()) { h.Fail(nil) },
	} {
		t.Run(who, func(t *testing.T) {
			release, begun, seen := make(chan struct{}), make(chan struct{}), make(chan struct{})
			h := lifecycle.New(nil, lifecycle.Options{})
			require.NoError(t, h.Go("stuck", stubborn(release)))
			ctx, cancel := context.WithCancel(background)
			defer cancel()
			begin(h, cancel)
			caught := make(chan os.Signal, 1)
			signal.Notify(caught, syscall.SIGUSR1)
			defer signal.Stop(caught)
			logger := slog.New(messages(func(message string) {
				switch message {
				case "exit": // Run is past the choice of what begins it
					close(begun) // and no more: a record that takes its time would keep the next from being logged
				case "a signal while the exit is under way; another one forces it":
					close(seen)
				}
			}))
			exited := make(chan error, 1)
			go func() {
				exited <- lifecycle.Run(ctx, h, lifecycle.RunOptions{Grace: time.Hour, Signals: []os.Signal{syscall.SIGUSR1}, Logger: logger})
			}()
			<-begun
			require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGUSR1))
			<-caught
			select {
			case <-seen:
			case err := <-exited:
				require.NoError(t, err, "it was forced")
			}
			close(release)
			require.NoError(t, <-exited)
			require.Equal(t, "clean", h.Report().Outcome)
		})
	}
}

// messages is a slog.Handler that passes each record's message on.
type messages func(message string)

func (f messages) Enabled(context.Context, slog.Level) bool { return true }
func (f messages) Handle(_ context.Context, r slog.Record) error {
	f(r.Message)
	return nil
}
func (f messages) WithAttrs([]slog.Attr) slog.Handler { return f }
func (f messages) WithGroup(string) slog.Handler      { return f }
