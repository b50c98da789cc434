package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

// What tired or hostile users do: each of these once broke a promise.

func TestAPanicErrorThatIsReturnedIsAnErrorLikeAnyOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		typedNil := func(context.Context) error { var e *lifecycle.PanicError; return e }
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Every("tick", time.Second, typedNil))
		time.Sleep(1500 * time.Millisecond)
		require.EqualValues(t, 1, h.Status().Tasks[0].Failed)
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "hook", typedNil))
		require.Error(t, h.Exit(background), "no false success")
		require.NotEmpty(t, h.Report().Phases[6].Hooks[0].Error)

		h = lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("task", typedNil))
		require.Error(t, h.Exit(background))
	})
}

func TestAKeyThatIsNoneIsRefusedAndLocksNothingUp(t *testing.T) {
	c := lifecycle.NewController[any](lifecycle.ControllerOptions{})
	for _, key := range []any{[]int{1}, math.NaN()} {
		_, err := c.Host(key)
		require.ErrorIs(t, err, lifecycle.ErrInvalid)
		_, err = c.Launch(background, key, opener("x"))
		require.ErrorIs(t, err, lifecycle.ErrInvalid)
		require.ErrorIs(t, c.ExitHost(background, key), lifecycle.ErrInvalid)
	}
	require.Empty(t, c.Keys())
	require.NoError(t, c.Exit(background))
}

func TestALaunchUnderABrokenContextLeavesItsKeyFree(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		require.Panics(t, func() {
			_, _ = c.Launch(brokenContext{background, func() <-chan struct{} { panic("Done") }}, "orders", opener("orders"))
		})
		_, err := c.Launch(within(t, time.Second), "orders", opener("orders"))
		require.NoError(t, err)
		require.NoError(t, c.Exit(background))
	})
}

func TestALaunchFromInsideTheHostThatItWouldWaitForIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		h, err := c.Launch(background, "orders", opener("orders"))
		require.NoError(t, err)
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "relaunch", func(ctx context.Context) error {
			_, err := c.Launch(ctx, "orders", opener("orders"))
			require.ErrorIs(t, err, lifecycle.ErrSelfExit)
			return nil
		}))
		require.NoError(t, c.ExitHost(background, "orders"))
	})
}

func TestASlowLoggerAndObserverDoNotMakeAForcedExitLong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		slow := func() { time.Sleep(60 * time.Millisecond) }
		h := lifecycle.New(nil, lifecycle.Options{
			Logger:   slog.New(handler(slow)),
			Observer: lifecycle.Observer{HookEnd: func(lifecycle.HookEvent) { slow() }, PhaseStart: func(lifecycle.PhaseEvent) { slow() }},
		})
		release := make(chan struct{})
		defer time.Sleep(time.Second) // those that were left behind end
		defer close(release)
		for range 50 {
			require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "skipped", stubborn(release)))
		}
		for _, name := range strings.Fields("a b c d e f g h i j k l m n o p") {
			require.NoError(t, h.Go(name, stubborn(release)))
		}
		begin := time.Now()
		require.ErrorIs(t, h.ForceExit(expired()), lifecycle.ErrForced)
		require.LessOrEqual(t, time.Since(begin), 4*lifecycle.ForceGrace, "100 ms for the tasks, the observers and the logger each")
	})
}

func TestAnOutcomeThatIsKnownNeverChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{onSync: func(int) error { <-gate; return nil }, onClose: func() error { return errors.New("close failed") }}
		h := lifecycle.New(s, lifecycle.Options{})
		p, err := h.Durability().Append(background, []byte("x"))
		require.NoError(t, err)
		synctest.Wait()
		result := h.ForceExit(expired())
		before, _, status := p.Wait(background), result.Error(), h.Status()
		require.ErrorIs(t, before, lifecycle.ErrForced)
		close(gate)
		synctest.Wait()
		require.Equal(t, before.Error(), p.Wait(background).Error())
		require.Equal(t, status, h.Status())
		require.Equal(t, result, h.Exit(background))
	})
}

func TestAForcedExitThatLostSomethingIsUnknownWhateverLostIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		eio := errors.New("input/output error")
		s := &script{onSync: func(int) error { time.Sleep(time.Second); return eio }}
		h := lifecycle.New(s, lifecycle.Options{})
		_, err := h.Durability().Append(background, []byte("x"))
		require.NoError(t, err)
		err = h.ForceExit(background)
		require.Equal(t, "forced", h.Report().Outcome)
		for _, want := range []error{lifecycle.ErrForced, lifecycle.ErrUnknown, eio} {
			require.ErrorIs(t, err, want)
		}
	})
}

// brokenContext is whatever a test makes of it.
type brokenContext struct {
	context.Context
	done func() <-chan struct{}
}

func (c brokenContext) Done() <-chan struct{} { return c.done() }
func (c brokenContext) Err() error            { return nil }

func TestABrokenContextAcceptsNothingBehindItsCallersBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{onAppend: func(int) error { <-gate; return nil }}
		h := lifecycle.New(s, lifecycle.Options{QueueBytes: 1})
		d := h.Durability()
		_, err := d.Append(background, []byte("first"))
		require.NoError(t, err)
		panics := brokenContext{background, func() <-chan struct{} { panic("Done") }}
		require.Panics(t, func() { _, _ = d.Append(panics, []byte("ghost")) })
		lies := brokenContext{background, func() <-chan struct{} { return expired().Done() }}
		_, err = d.Append(lies, []byte("ghost"))
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, d.Wait(lies, 77), context.Canceled)
		close(gate)
		require.NoError(t, h.Exit(background))
		require.Equal(t, []string{"first"}, s.synced())
	})
}

func TestAnExitUnderABrokenContextSaysThatItHasEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		lies := brokenContext{background, func() <-chan struct{} { return expired().Done() }}
		c := lifecycle.NewController[string](lifecycle.ControllerOptions{})
		opening, opens := make(chan struct{}), make(chan struct{})
		go func() {
			_, _ = c.Launch(background, "slow", func(context.Context) (*lifecycle.Host, error) {
				close(opening)
				<-opens
				return nil, errors.New("in vain")
			})
		}()
		<-opening
		h, err := c.Launch(background, "key", func(context.Context) (*lifecycle.Host, error) {
			return lifecycle.New(nil, lifecycle.Options{}), nil
		})
		require.NoError(t, err)
		call, err := h.Enter()
		require.NoError(t, err)
		require.ErrorIs(t, h.Exit(lies), context.Canceled)
		require.ErrorIs(t, c.ExitHost(lies, "slow"), context.Canceled)
		require.ErrorIs(t, c.Exit(lies), context.Canceled)
		call.Leave()
		close(opens)
		require.NoError(t, c.Exit(background))
	})
}

// selfWrapping is an error tree without an end.
type selfWrapping struct{}

func (selfWrapping) Error() string     { return "for ever" }
func (e selfWrapping) Unwrap() []error { return []error{e, e} }

func TestAnErrorThatWrapsItselfIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("task", func(ctx context.Context) error { <-ctx.Done(); return selfWrapping{} }))
		require.ErrorContains(t, h.Exit(background), "for ever")
	})
}

type contextHandler struct {
	handler
	f func(context.Context)
}

func (c contextHandler) Handle(ctx context.Context, _ slog.Record) error { c.f(ctx); return nil }

func TestAnExitFromALogHandlerIsASelfWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var h *lifecycle.Host
		var results journal
		h = lifecycle.New(nil, lifecycle.Options{Logger: slog.New(contextHandler{f: func(ctx context.Context) {
			results.addf("%v", errors.Is(h.Exit(ctx), lifecycle.ErrSelfExit))
		}})})
		require.NoError(t, h.Every("tick", time.Second, func(context.Context) error { return errors.New("failed") }))
		time.Sleep(1500 * time.Millisecond)
		require.NoError(t, h.Exit(background))
		require.NotContains(t, results.all(), "false")
	})
}

func TestALateErrorOfAHookThatWasLeftBehindIsNobodysElse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		release, late := make(chan struct{}), make(chan struct{})
		require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "late", func(context.Context) error { <-release; close(late); return errors.New("too late") }))
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "release", func(context.Context) error {
			close(release)
			<-late
			time.Sleep(time.Millisecond)
			return nil
		}))
		require.ErrorIs(t, h.Exit(within(t, time.Second)), context.DeadlineExceeded)
		require.ErrorIs(t, h.ForceExit(background), lifecycle.ErrForced)
		require.True(t, h.Report().Phases[0].Hooks[0].Abandoned)
		require.Empty(t, h.Report().Phases[6].Errors)
	})
}

func TestThePanicOfAnObserverIsKeptOnceWithItsStack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		h := lifecycle.New(nil, lifecycle.Options{
			Logger:   slog.New(slog.NewTextHandler(&log, nil)),
			Observer: lifecycle.Observer{PhaseStart: func(lifecycle.PhaseEvent) { panic("no such gauge") }},
		})
		require.NoError(t, h.Exit(background), "it changes nothing")
		require.Equal(t, []string{"observer PhaseStart: panic: no such gauge"}, h.Report().Phases[0].Errors)
		require.Equal(t, 1, strings.Count(log.String(), "panic caught"))
		require.Contains(t, log.String(), "misuse_test.go")
		require.Contains(t, h.Report().String(), "no such gauge")
	})
}

type greedyLog struct{ script }

func (*greedyLog) BatchHeader() int                      { return 1 << 30 }
func (*greedyLog) AppendBatch(batch []byte, n int) error { panic("never called") }

func TestABatchHeaderThatCantBeMeantFailsTheHostAtBirth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(&greedyLog{}, lifecycle.Options{})
		_, err := h.Durability().Append(background, nil)
		require.ErrorContains(t, err, "BatchHeader")
		require.ErrorContains(t, h.Exit(background), "log: next: a BatchHeader of 1073741824, the most is 4096")
	})
}

func TestWhoeverHasBeenRefusedOnceIsRefusedEverywhere(t *testing.T) {
	for range 200 {
		h := lifecycle.New(nil, lifecycle.Options{})
		begun := make(chan struct{})
		go func() { close(begun); h.Fail(nil) }()
		<-begun
		for h.Go("task", func(context.Context) error { return nil }) == nil {
		}
		_, err := h.Enter()
		require.ErrorIs(t, err, lifecycle.ErrExiting)
		require.ErrorIs(t, h.OnExit(lifecycle.PhaseRelease, "hook", untilCancelled), lifecycle.ErrExiting)
		require.NotEqual(t, lifecycle.Running, h.Status().State)
		<-h.Done()
	}
}

func TestALongTextIsCutInTheTimelineAndQuickToPrint(t *testing.T) {
	long := strings.Repeat("long ", 200_000)
	text := lifecycle.Report{Host: "orders", Outcome: "failed", Start: time.Unix(0, 0), Cause: long}.String()
	require.Less(t, len(text), 8<<10)
	require.Contains(t, text, "…")
}

func TestAnIdleLogIsNoStraggler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		h := lifecycle.New(&script{}, lifecycle.Options{Observer: lifecycle.Observer{Synced: func(lifecycle.SyncEvent) { <-release }}})
		_, err := h.Durability().Commit(background, nil)
		require.NoError(t, err)
		var exit *lifecycle.ExitError
		require.ErrorAs(t, h.Exit(within(t, time.Minute)), &exit)
		require.Len(t, exit.Stragglers, 1)
		require.Equal(t, "observer Synced", exit.Stragglers[0].Name)
		close(release)
		require.NoError(t, h.Exit(background))
	})
}
