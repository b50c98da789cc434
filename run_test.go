package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

// noSignals keeps Run from catching any: the process' signals don't come from
// inside a bubble.
var noSignals = []os.Signal{}

func TestRunExitsWhenItsContextEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("task", untilCancelled))
		ctx, cancel := context.WithCancelCause(background)
		time.AfterFunc(time.Hour, func() { cancel(errors.New("the test is over")) })
		begin := time.Now()
		require.NoError(t, lifecycle.Run(ctx, h, lifecycle.RunOptions{Signals: noSignals, Logger: slog.New(slog.NewTextHandler(&log, nil))}))
		require.Equal(t, time.Hour, time.Since(begin))
		require.Equal(t, "clean", h.Report().Outcome)
		require.Contains(t, log.String(), `why="the test is over" grace=25s flush=5s at_worst=30s`)
	})
}

func TestRunReturnsWhatAnExitThatTheHostBeganReturned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		lost := errors.New("lease lost")
		h := lifecycle.New(nil, lifecycle.Options{})
		time.AfterFunc(time.Hour, func() { h.Fail(lost) })
		require.ErrorIs(t, lifecycle.Run(background, h, lifecycle.RunOptions{Signals: noSignals}), lost)

		h = lifecycle.New(nil, lifecycle.Options{})
		time.AfterFunc(time.Hour, func() { h.Fail(nil) })
		require.NoError(t, lifecycle.Run(background, h, lifecycle.RunOptions{Signals: noSignals}))
		require.NoError(t, lifecycle.Run(background, h, lifecycle.RunOptions{Signals: noSignals}), "once more, of a host that has exited")
	})
}

func TestRunForcesTheExitAtTheEndOfGraceAndSaysWhy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		release := make(chan struct{})
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("stuck", stubborn(release)))
		begin := time.Now()
		err := lifecycle.Run(expired(), h, lifecycle.RunOptions{Grace: 10 * time.Second, Signals: noSignals, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		require.Equal(t, 10*time.Second+lifecycle.ForceGrace, time.Since(begin))
		require.ErrorIs(t, err, lifecycle.ErrForced)
		require.ErrorContains(t, err, "did not end within 10s")
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, "stuck", exit.Stragglers[0].Name)
		require.Contains(t, log.String(), "exit is forced")
		close(release)
	})
}

// endsLate is an exit that ends cleanly in the moment in which it is given up on.
type endsLate struct{ exiting, done chan struct{} }

func (e endsLate) Exit(ctx context.Context) error {
	if isClosed(e.done) {
		return nil
	}
	<-ctx.Done()
	close(e.done)
	return ctx.Err()
}
func (e endsLate) ForceExit(context.Context) error { return lifecycle.ErrForced }
func (e endsLate) Exiting() <-chan struct{}        { return e.exiting }
func (e endsLate) Done() <-chan struct{}           { return e.done }

func TestRunReturnsTheResultOfAnExitThatEndsAsGraceDoes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := endsLate{make(chan struct{}), make(chan struct{})}
		require.NoError(t, lifecycle.Run(expired(), e, lifecycle.RunOptions{Signals: noSignals}))
	})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestRunForcesAnExitThatARefusedExitHasCaused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("stuck", stubborn(release)))
		require.NoError(t, h.Go("mistaken", func(ctx context.Context) error { return h.Exit(ctx) }))
		err := lifecycle.Run(background, h, lifecycle.RunOptions{Signals: noSignals})
		require.ErrorIs(t, err, lifecycle.ErrSelfExit, "the cause")
		require.ErrorIs(t, err, lifecycle.ErrForced)
		require.Equal(t, lifecycle.Exited, h.Status().State)
		close(release)
	})
}

func TestRunGivesAForcedExitFlushToWriteWhatWasAccepted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{onSync: func(int) error { <-gate; return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		_, err := h.Durability().Append(background, nil)
		require.NoError(t, err)
		synctest.Wait()
		begin := time.Now()
		err = lifecycle.Run(expired(), h, lifecycle.RunOptions{Grace: time.Second, Flush: 2 * time.Second, Signals: noSignals})
		require.Equal(t, 3*time.Second+lifecycle.ForceGrace, time.Since(begin), "and a moment for the log to close")
		require.ErrorIs(t, err, lifecycle.ErrUnknown)
		close(gate)
	})
}

func TestRunRefusesBadArgumentsAndASelfWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		var noContext context.Context
		for _, err := range []error{
			lifecycle.Run(noContext, h, lifecycle.RunOptions{}),
			lifecycle.Run(background, nil, lifecycle.RunOptions{}),
			lifecycle.Run(background, h, lifecycle.RunOptions{Grace: -1}),
			lifecycle.Run(background, h, lifecycle.RunOptions{Flush: -1}),
		} {
			require.ErrorIs(t, err, lifecycle.ErrInvalid)
		}
		require.Equal(t, lifecycle.Running, h.Status().State)
		var inside error
		require.NoError(t, h.Go("task", func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			inside = lifecycle.Run(ctx, h, lifecycle.RunOptions{Signals: noSignals})
			return nil
		}))
		synctest.Wait()
		require.ErrorIs(t, inside, lifecycle.ErrSelfExit)
		require.NoError(t, h.Exit(background))
	})
}

func TestRunRunsAControllerToo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		h, err := c.Launch(background, "orders", opener("orders"))
		require.NoError(t, err)
		require.NoError(t, lifecycle.Run(expired(), c, lifecycle.RunOptions{Signals: noSignals}))
		<-h.Done()
	})
}
