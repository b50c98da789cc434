package lifecycle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

// bubble runs a test in virtual time. At its end every goroutine must have
// ended: that is the test of P10.
func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

// journal is a list of events in the order in which they happened.
type journal struct {
	mu     sync.Mutex
	events []string
}

func (j *journal) add(event string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, event)
}

func (j *journal) addf(format string, args ...any) { j.add(fmt.Sprintf(format, args...)) }

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.events)
}

// before fails the test unless each event happened, and in this order.
func (j *journal) before(t *testing.T, events ...string) {
	t.Helper()
	all := j.all()
	at := -1
	for _, event := range events {
		i := slices.Index(all, event)
		require.GreaterOrEqual(t, i, 0, "%q never happened: %q", event, all)
		require.Greater(t, i, at, "%q happened too early: %q", event, all)
		at = i
	}
}

// script is a Log that does as it is told and remembers what it was told.
type script struct {
	journal
	next     lifecycle.Offset
	onNext   func()
	onAppend func(n int) error // called with the number of the call, from 1
	onSync   func(n int) error
	onClose  func() error

	mu      sync.Mutex
	written []string // by Append
	durable int      // how many of written a Sync has covered
	appends int
	syncs   int
	closes  int
	busy    bool
	overlap bool
}

func (s *script) enter() (leave func()) {
	s.mu.Lock()
	s.overlap = s.overlap || s.busy
	s.busy = true
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.busy = false
		s.mu.Unlock()
	}
}

func (s *script) Next() lifecycle.Offset {
	if s.onNext != nil {
		s.onNext()
	}
	return s.next
}

func (s *script) Append(txs [][]byte) error {
	defer s.enter()()
	s.mu.Lock()
	s.appends++
	n := s.appends
	s.mu.Unlock()
	s.addf("append %d", n)
	if s.onAppend != nil {
		if err := s.onAppend(n); err != nil {
			return err
		}
	}
	s.mu.Lock()
	for _, tx := range txs {
		s.written = append(s.written, string(tx))
	}
	s.mu.Unlock()
	return nil
}

func (s *script) Sync() error {
	defer s.enter()()
	s.mu.Lock()
	s.syncs++
	n := s.syncs
	s.mu.Unlock()
	s.addf("sync %d", n)
	if s.onSync != nil {
		if err := s.onSync(n); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.durable = len(s.written)
	s.mu.Unlock()
	s.addf("synced %d", n)
	return nil
}

func (s *script) Close() error {
	defer s.enter()()
	s.mu.Lock()
	s.closes++
	s.mu.Unlock()
	s.add("close")
	if s.onClose != nil {
		return s.onClose()
	}
	return nil
}

func (s *script) synced() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.written[:s.durable])
}

func (s *script) counts() (appends, syncs, closes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.appends, s.syncs, s.closes
}

// within returns a context that ends after d.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func expired() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// stubborn is a task or hook that ignores its context until release closes.
//
//go:noinline
func stubborn(release <-chan struct{}) func(context.Context) error {
	return func(context.Context) error { <-release; return nil }
}

func untilCancelled(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

var background = context.Background()

// Phases

func TestTheExitRunsItsPhasesInTheOrderOfTheirNumbers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		h := lifecycle.New(&script{}, lifecycle.Options{Observer: lifecycle.Observer{
			PhaseStart: func(e lifecycle.PhaseEvent) { j.addf("start %d", e.Phase) },
			PhaseEnd:   func(e lifecycle.PhaseEvent) { j.addf("end %d", e.Phase) },
		}})
		require.NoError(t, h.Exit(background))
		var want []string
		for p := lifecycle.PhaseExitModule; p <= lifecycle.PhaseRelease; p++ {
			want = append(want, fmt.Sprint("start ", int(p)), fmt.Sprint("end ", int(p)))
		}
		require.Equal(t, want, j.all())
		for i, p := range h.Report().Phases {
			require.Equal(t, lifecycle.Phase(i+1), p.Phase)
			require.True(t, p.Ended)
		}
	})
}

// What each phase does, in a world where everything is there. A swap of any two rows
// of the table but checkpoint and close durability moves one of these events.
func TestEachPhaseDoesItsWorkBetweenThatOfItsNeighbours(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{}
		j := &s.journal
		h := lifecycle.New(s, lifecycle.Options{})
		hook := func(p lifecycle.Phase, name string) {
			require.NoError(t, h.OnExit(p, name, func(context.Context) error { j.add(name); return nil }))
		}
		hook(lifecycle.PhaseExitModule, "exit module hook")
		hook(lifecycle.PhaseCheckpoint, "checkpoint hook")
		hook(lifecycle.PhaseRelease, "release hook")
		require.NoError(t, h.Go("task", func(ctx context.Context) error {
			<-ctx.Done()
			j.add("task cancelled")
			time.Sleep(time.Second)
			_, err := h.Durability().Append(background, []byte("cleanup")) // nobody waits for it
			j.add("task returns")
			return err
		}))
		call, err := h.Enter()
		require.NoError(t, err)
		go func() {
			<-h.Exiting()
			time.Sleep(time.Second)
			_, err := h.Durability().Append(background, []byte("call"))
			j.addf("call leaves %v", err)
			call.Leave()
		}()
		require.NoError(t, h.Exit(background))
		j.before(t, "exit module hook", "call leaves <nil>", "task cancelled", "task returns", "checkpoint hook", "close", "release hook")
		j.before(t, "task cancelled", "synced 2", "close")
		require.Equal(t, []string{"call", "cleanup"}, s.synced())
	})
}

func TestHooksOfAPhaseRunOneAfterAnotherLastRegisteredFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, phase := range []lifecycle.Phase{lifecycle.PhaseExitModule, lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease} {
			var j journal
			h := lifecycle.New(nil, lifecycle.Options{})
			for i := range 3 {
				require.NoError(t, h.OnExit(phase, "hook", func(ctx context.Context) error {
					require.NoError(t, ctx.Err())
					j.addf("begin %d", i)
					time.Sleep(time.Second)
					j.addf("end %d", i)
					return nil
				}))
			}
			require.NoError(t, h.Exit(background))
			require.Equal(t, []string{"begin 2", "end 2", "begin 1", "end 1", "begin 0", "end 0"}, j.all())
		}
	})
}

func TestAHooksErrorPanicOrGoexitIsKeptAndSkipsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		s := &script{}
		h := lifecycle.New(s, lifecycle.Options{Name: "orders", Observer: lifecycle.Observer{
			HookEnd: func(e lifecycle.HookEvent) { j.addf("%s: %v", e.Hook, e.Err != nil) },
		}})
		boom := errors.New("boom")
		add := func(p lifecycle.Phase, name string, f func(context.Context) error) {
			require.NoError(t, h.OnExit(p, name, f))
		}
		add(lifecycle.PhaseRelease, "release", func(context.Context) error { return nil })
		add(lifecycle.PhaseCheckpoint, "goexit", func(context.Context) error { runtime.Goexit(); return nil })
		add(lifecycle.PhaseExitModule, "panic", func(context.Context) error { panic(boom) })
		add(lifecycle.PhaseExitModule, "error", func(context.Context) error { return boom })
		err := h.Exit(background)
		require.Equal(t, []string{"error: true", "panic: true", "goexit: true", "release: false"}, j.all())
		require.ErrorIs(t, err, boom)
		require.ErrorIs(t, err, lifecycle.ErrGoexit)
		require.Equal(t, "failed", h.Report().Outcome)
		for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
			var hook *lifecycle.HookError
			require.ErrorAs(t, e, &hook)
			require.Contains(t, hook.Error(), `host "orders"`)
			require.Contains(t, hook.Error(), hook.Phase.String())
			require.Contains(t, hook.Error(), hook.Hook)
			switch hook.Hook {
			case "error":
				require.Nil(t, hook.Stack)
			default:
				require.Contains(t, string(hook.Stack), "TestAHooksErrorPanicOrGoexit")
			}
		}
		_, _, closes := s.counts()
		require.Equal(t, 1, closes)
	})
}

func TestCheckpointHooksMayWriteTheLastRecords(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{}
		h := lifecycle.New(s, lifecycle.Options{})
		require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(ctx context.Context) error {
			_, err := h.Durability().Commit(ctx, []byte("last"))
			return err
		}))
		require.NoError(t, h.Exit(background))
		require.Equal(t, []string{"last"}, s.synced())
	})
}

func TestReleaseHooksRunWhenTheLogIsClosedAndAppendRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{}
		h := lifecycle.New(s, lifecycle.Options{})
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "gauges", func(ctx context.Context) error {
			_, _, closes := s.counts()
			require.Equal(t, 1, closes)
			_, err := h.Durability().Append(ctx, nil)
			require.ErrorIs(t, err, lifecycle.ErrClosed)
			return nil
		}))
		require.NoError(t, h.Exit(background))
	})
}

// P1: order

func TestNoDeadlineSealsTheChannelWhileATaskACallOrAHookIsAlive(t *testing.T) {
	alive := map[string]func(h *lifecycle.Host, release chan struct{}){
		"task": func(h *lifecycle.Host, release chan struct{}) {
			_ = h.Go("cleanup", stubborn(release))
		},
		"call": func(h *lifecycle.Host, release chan struct{}) {
			call, _ := h.Enter()
			go func() { <-release; call.Leave() }()
		},
		"exit module hook": func(h *lifecycle.Host, release chan struct{}) {
			_ = h.OnExit(lifecycle.PhaseExitModule, "hook", stubborn(release))
		},
		"checkpoint hook": func(h *lifecycle.Host, release chan struct{}) {
			_ = h.OnExit(lifecycle.PhaseCheckpoint, "hook", stubborn(release))
		},
	}
	for name, start := range alive {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := &script{}
				h := lifecycle.New(s, lifecycle.Options{})
				release := make(chan struct{})
				start(h, release)
				for range 3 {
					require.ErrorIs(t, h.Exit(within(t, time.Minute)), context.DeadlineExceeded)
					_, err := h.Durability().Commit(background, []byte("late"))
					require.NoError(t, err)
				}
				close(release)
				require.NoError(t, h.Exit(background))
				require.Len(t, s.synced(), 3)
			})
		})
	}
}

// The seed's bug: the cleanup commits after it was cancelled, on a path that no
// cancellation reaches.
func TestACleanupThatCommitsAfterItsCancellationIsAwaited(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{onSync: func(int) error { time.Sleep(10 * time.Millisecond); return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		require.NoError(t, h.Go("view cleanup", func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Minute)
			_, err := h.Durability().Commit(background, []byte("expired views"))
			return err
		}))
		require.NoError(t, h.Exit(background))
		require.Equal(t, []string{"expired views"}, s.synced())
	})
}

// P2: admission

func TestOnceTheExitHasBegunEverythingNewIsRefusedWithATypedError(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
		release := make(chan struct{})
		require.NoError(t, h.Go("task", stubborn(release)))
		require.ErrorIs(t, h.Exit(expired()), context.Canceled)
		never := func(context.Context) error { t.Error("a refused func was called"); return nil }
		refusals := map[string]error{
			"Go":     h.Go("late", never),
			"Every":  h.Every("late", time.Second, never),
			"OnExit": h.OnExit(lifecycle.PhaseRelease, "late", never),
		}
		_, refusals["Enter"] = h.Enter()
		for op, err := range refusals {
			require.ErrorIs(t, err, lifecycle.ErrExiting, op)
			require.NotErrorIs(t, err, lifecycle.ErrClosed, op)
			require.ErrorContains(t, err, op)
			require.ErrorContains(t, err, `host "orders"`)
		}
		time.Sleep(time.Minute)
		close(release)
		require.NoError(t, h.Exit(background))
		_, err := h.Durability().Append(background, nil)
		require.ErrorIs(t, err, lifecycle.ErrClosed)
		require.ErrorContains(t, err, `host "orders"`)
		for _, err := range []error{h.Go("late", never), h.OnExit(lifecycle.PhaseRelease, "late", never)} {
			require.ErrorIs(t, err, lifecycle.ErrExiting)
		}
	})
}

func TestATaskMayStartTasksUntilTheExitBegins(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		var j journal
		require.NoError(t, h.Go("parent", func(ctx context.Context) error {
			require.NoError(t, h.Go("child", func(ctx context.Context) error { <-ctx.Done(); j.add("child"); return nil }))
			<-ctx.Done()
			return h.Go("late", untilCancelled) // its refusal is no failure
		}))
		synctest.Wait()
		require.NoError(t, h.Exit(background))
		require.Equal(t, []string{"child"}, j.all())
	})
}

func TestAppendWaitsForRoomInTheOrderOfArrivalAndIsRefusedAtTheSeal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{onAppend: func(int) error { <-gate; return nil }}
		h := lifecycle.New(s, lifecycle.Options{QueueBytes: 100})
		d := h.Durability()
		_, err := d.Append(background, make([]byte, 500)) // over the limit, but the queue is empty
		require.NoError(t, err)
		var j journal
		for i := range 4 {
			go func() {
				p, err := d.Append(background, []byte{byte('a' + i)})
				j.addf("%d: %d %v", i, p.Offset(), err)
			}()
			synctest.Wait()
		}
		require.Empty(t, j.all())
		require.Equal(t, 532, h.Status().QueuedBytes)
		_, err = d.Append(within(t, time.Second), nil)
		require.Equal(t, context.DeadlineExceeded, err, "bare: nothing was accepted")
		gate <- struct{}{}
		synctest.Wait()
		require.Len(t, j.all(), 3, "33 bytes each")
		require.ErrorIs(t, h.Exit(within(t, time.Second)), context.DeadlineExceeded)
		synctest.Wait()
		require.Equal(t, "3: 0 "+"lifecycle", j.all()[3][:14])
		require.Contains(t, j.all()[3], lifecycle.ErrClosed.Error())
		close(gate)
		require.NoError(t, h.Exit(background))
		require.Equal(t, []string{"a", "b", "c"}, s.synced()[1:])
		got := j.all()[:3]
		slices.Sort(got)
		require.Equal(t, []string{"0: 1 <nil>", "1: 2 <nil>", "2: 3 <nil>"}, got)
		require.Zero(t, h.Status().QueuedBytes)
	})
}

func TestAnAppendThatGivesUpWaitingForRoomHoldsUpNobodyBehindIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{onAppend: func(int) error { <-gate; return nil }}
		h := lifecycle.New(s, lifecycle.Options{QueueBytes: 100})
		d := h.Durability()
		first, err := d.Append(background, []byte("first"))
		require.NoError(t, err)
		var large error
		go func() { _, large = d.Append(within(t, time.Second), make([]byte, 1000)) }()
		synctest.Wait()
		go func() { _, err = d.Commit(background, []byte("small")) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, context.DeadlineExceeded, large)
		close(gate)
		require.NoError(t, first.Wait(background))
		require.NoError(t, h.Exit(background))
		synctest.Wait()
		require.NoError(t, err)
		require.Equal(t, []string{"first", "small"}, s.synced())
	})
}

func TestBadArgumentsGetAClearErrorAtTheCall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		some := func(context.Context) error { return nil }
		var noContext context.Context
		_, noAppend := h.Durability().Append(noContext, nil)
		_, noCommit := h.Durability().Commit(noContext, nil)
		for want, err := range map[string]error{
			"Go: invalid argument: an empty name":                                     h.Go("", some),
			`Go "x": invalid argument: a nil func`:                                    h.Go("x", nil),
			"Every: invalid argument: an empty name":                                  h.Every("", time.Second, some),
			`Every "x": invalid argument: a nil func`:                                 h.Every("x", time.Second, nil),
			`Every "x": invalid argument: an interval of 0s`:                          h.Every("x", 0, some),
			`Every "x": invalid argument: an interval of -1s`:                         h.Every("x", -time.Second, some),
			"OnExit: invalid argument: an empty name":                                 h.OnExit(lifecycle.PhaseRelease, "", some),
			`OnExit "x": invalid argument: a nil func`:                                h.OnExit(lifecycle.PhaseRelease, "x", nil),
			`OnExit "x": invalid argument: the phase "await tasks" takes no hooks`:    h.OnExit(lifecycle.PhaseAwaitTasks, "x", some),
			`OnExit "x": invalid argument: the phase "none" takes no hooks`:           h.OnExit(0, "x", some),
			`OnExit "x": invalid argument: the phase "phase(99)" takes no hooks`:      h.OnExit(99, "x", some),
			`OnExit "x": invalid argument: the phase "phase(-1)" takes no hooks`:      h.OnExit(-1, "x", some),
			`OnExit "x": invalid argument: the phase "cancel tasks" takes no hooks`:   h.OnExit(lifecycle.PhaseCancelTasks, "x", some),
			`OnExit "x": invalid argument: the phase "close log" takes no hooks`:      h.OnExit(lifecycle.PhaseCloseLog, "x", some),
			`OnExit "x": invalid argument: the phase "close durability" takes no hoo`: h.OnExit(lifecycle.PhaseCloseDurability, "x", some),
			"Append: invalid argument: a nil context":                                 noAppend,
			"Append: invalid argument: a nil  context":                                noCommit,
			"Wait: invalid argument: a nil context":                                   h.Durability().Wait(noContext, 0),
			"Exit: invalid argument: a nil context":                                   h.Exit(noContext),
			"ForceExit: invalid argument: a nil context":                              h.ForceExit(noContext),
			"Wait: invalid argument: the zero Pending":                                lifecycle.Pending{}.Wait(background),
		} {
			require.ErrorIs(t, err, lifecycle.ErrInvalid, want)
			require.ErrorContains(t, err, strings.ReplaceAll(want, "  ", " "))
		}
		<-lifecycle.Pending{}.Done()
		require.Equal(t, lifecycle.Running, h.Status().State, "none of these began the exit")
		require.NoError(t, h.Go("same", some))
		require.NoError(t, h.Go("same", some), "equal names are allowed")
		require.NoError(t, h.Exit(background))
	})
}

func TestALeaveTooManyIsRepairedAndFailsTheHost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		lifecycle.Call{}.Leave()
		require.Equal(t, background, lifecycle.Call{}.Context(background))
		call, err := h.Enter()
		require.NoError(t, err)
		call.Leave()
		call.Leave()
		<-h.Exiting()
		require.ErrorIs(t, h.Exit(background), lifecycle.ErrInvalid)
		require.Zero(t, h.Status().Calls)
	})
}

// P3, P4: durability

func TestACommitIsDurableWhenItReturnsAndOffsetsHaveNoGaps(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{next: 7}
		h := lifecycle.New(s, lifecycle.Options{})
		d := h.Durability()
		require.EqualValues(t, 7, d.Accepted())
		require.EqualValues(t, 7, d.Durable())
		require.NoError(t, d.Wait(expired(), 6), "known, even under a context that is done")
		for i := range 10 {
			offset, err := d.Commit(background, []byte{byte(i)})
			require.NoError(t, err)
			require.EqualValues(t, 7+i, offset)
			require.Len(t, s.synced(), i+1)
			require.EqualValues(t, offset+1, d.Durable())
		}
		_, err := d.Commit(background, nil)
		require.NoError(t, err, "an empty transaction is legal")
		require.NoError(t, h.Exit(background))
		r := h.Report()
		require.EqualValues(t, 7, r.First)
		require.EqualValues(t, 18, r.Accepted)
		require.EqualValues(t, 18, r.Durable)
		require.Zero(t, r.Lost)
	})
}

func TestAppendCopiesTheTransaction(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{onAppend: func(n int) error { <-gate; return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		tx := []byte("before")
		for range 3 {
			_, err := h.Durability().Append(background, tx)
			require.NoError(t, err)
		}
		copy(tx, "after!")
		close(gate)
		require.NoError(t, h.Exit(background))
		require.Equal(t, []string{"before", "before", "before"}, s.synced())
	})
}

func TestWhatWasAcceptedIsDrainedThoughNobodyWaitsForIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{onSync: func(int) error { time.Sleep(time.Second); return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		var want []string
		for i := range 1000 {
			want = append(want, fmt.Sprint("tx ", i))
			_, err := h.Durability().Append(background, []byte(want[i]))
			require.NoError(t, err)
		}
		require.NoError(t, h.Exit(background))
		require.Equal(t, want, s.synced())
		require.False(t, s.overlap)
	})
}

func TestNothingIsDurableBeforeItsSyncHasReturned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{onSync: func(int) error { <-gate; return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		p, err := h.Durability().Append(background, []byte("x"))
		require.NoError(t, err)
		synctest.Wait()
		require.Zero(t, h.Durability().Durable())
		err = p.Wait(within(t, time.Second))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, lifecycle.ErrUnknown)
		select {
		case <-p.Done():
			t.Fatal("an outcome before the sync")
		default:
		}
		close(gate)
		<-p.Done()
		require.NoError(t, p.Wait(expired()))
		require.NoError(t, h.Exit(background))
	})
}

func TestThoseWhoWaitTogetherShareASync(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{onSync: func(int) error { time.Sleep(time.Millisecond); return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				_, err := h.Durability().Commit(background, []byte("x"))
				require.NoError(t, err)
			})
		}
		group.Wait()
		_, syncs, _ := s.counts()
		require.LessOrEqual(t, syncs, 2)
		require.NoError(t, h.Exit(background))
		_, after, _ := s.counts()
		require.Equal(t, syncs, after, "no sync when nothing was appended since the last")
	})
}

func TestTheFirstErrorOfTheLogPoisonsForGoodAndBeginsTheExit(t *testing.T) {
	eio := errors.New("input/output error")
	for op, fail := range map[string]func(*script){
		"append": func(s *script) {
			s.onAppend = func(n int) error {
				if n == 2 {
					return eio
				}
				return nil
			}
		},
		"sync": func(s *script) {
			s.onSync = func(n int) error {
				if n == 2 {
					return eio
				}
				return nil
			}
		},
	} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := &script{}
				fail(s)
				h := lifecycle.New(s, lifecycle.Options{Name: "orders"})
				d := h.Durability()
				require.NoError(t, h.Go("task", func(ctx context.Context) error {
					<-ctx.Done()
					return fmt.Errorf("stopped: %w", context.Cause(ctx)) // an echo
				}))
				_, err := d.Commit(background, []byte("good"))
				require.NoError(t, err)
				offset, err := d.Commit(background, []byte("bad"))
				require.EqualValues(t, 1, offset, "returned beside the error")
				var failed *lifecycle.LogError
				require.ErrorAs(t, err, &failed)
				require.Equal(t, op, failed.Op)
				require.ErrorIs(t, err, eio)
				require.ErrorIs(t, err, lifecycle.ErrUnknown)
				<-h.Exiting()
				_, err = d.Append(background, []byte("late"))
				require.ErrorIs(t, err, lifecycle.ErrClosed)
				require.IsType(t, failed, err)
				require.ErrorContains(t, err, `host "orders": log: `+op)
				require.ErrorIs(t, d.Wait(background, 99), lifecycle.ErrClosed)
				require.ErrorIs(t, d.Wait(background, 1), lifecycle.ErrUnknown)
				require.NoError(t, d.Wait(background, 0))
				require.Contains(t, h.Status().LogError, "input/output error")

				err = h.Exit(background)
				require.ErrorIs(t, err, eio)
				require.Len(t, err.(interface{ Unwrap() []error }).Unwrap(), 1, "once, though the task echoed it")
				r := h.Report()
				require.Equal(t, "failed", r.Outcome)
				require.Contains(t, r.Cause, "input/output error")
				require.EqualValues(t, 1, r.Lost)
				require.EqualValues(t, 1, r.Durable)
				appends, syncs, closes := s.counts()
				require.Equal(t, 2, appends)
				require.Equal(t, map[string]int{"append": 1, "sync": 2}[op], syncs, "no retry")
				require.Equal(t, 1, closes)
				require.Equal(t, []string{"good"}, s.synced())
			})
		})
	}
}

func TestAFailureOfTheLogSettlesEverybodyWhoWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan error)
		s := &script{onSync: func(int) error { return <-gate }}
		h := lifecycle.New(s, lifecycle.Options{QueueBytes: 100})
		d := h.Durability()
		var j journal
		start := func(name string, f func() error) {
			go func() { j.addf("%s %v", name, errors.Is(f(), lifecycle.ErrClosed)) }()
			synctest.Wait()
		}
		commit := func(n int) func() error {
			return func() error { _, err := d.Commit(background, make([]byte, n)); return err }
		}
		start("flight", commit(1))
		start("queue", commit(60))
		start("room", commit(60))
		start("future", func() error { return d.Wait(background, 1000) })
		require.Empty(t, j.all())
		gate <- errors.New("disk gone")
		synctest.Wait()
		got := j.all()
		slices.Sort(got)
		require.Equal(t, []string{"flight true", "future true", "queue true", "room true"}, got)
		require.Zero(t, h.Status().QueuedBytes)
		require.Error(t, h.Exit(background))
	})
}

func TestAPanicOrGoexitInTheLogIsItsFailure(t *testing.T) {
	for op, set := range map[string]func(*script, func()){
		"next":   func(s *script, f func()) { s.onNext = f },
		"append": func(s *script, f func()) { s.onAppend = func(int) error { f(); return nil } },
		"sync":   func(s *script, f func()) { s.onSync = func(int) error { f(); return nil } },
		"close":  func(s *script, f func()) { s.onClose = func() error { f(); return nil } },
	} {
		for how, f := range map[string]func(){"panics": func() { panic("corrupt page") }, "exits": runtime.Goexit} {
			t.Run(op+" "+how, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := &script{}
					set(s, f)
					h := lifecycle.New(s, lifecycle.Options{})
					_, err := h.Durability().Commit(background, []byte("x"))
					require.Equal(t, op != "close", err != nil)
					err = h.Exit(background)
					var failed *lifecycle.LogError
					require.ErrorAs(t, err, &failed)
					require.Equal(t, op, failed.Op)
					var caught *lifecycle.PanicError
					require.ErrorAs(t, err, &caught)
					require.Contains(t, string(caught.Stack), "(*script)")
					require.Equal(t, how == "exits", errors.Is(err, lifecycle.ErrGoexit))
					if how == "panics" {
						require.ErrorContains(t, err, "corrupt page")
					}
					_, _, closes := s.counts()
					require.Equal(t, 1, closes)
				})
			})
		}
	}
}

func TestAnErrorOfCloseFailsTheExit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{onClose: func() error { return io.ErrShortWrite }}
		h := lifecycle.New(s, lifecycle.Options{})
		err := h.Exit(background)
		require.ErrorIs(t, err, io.ErrShortWrite)
		require.Equal(t, "failed", h.Report().Outcome)
		require.Len(t, h.Report().Phases[5].Errors, 1)
	})
}

func TestWaitReachesIntoTheFutureUntilTheSeal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{onSync: func(int) error { time.Sleep(time.Second); return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		d := h.Durability()
		var reached, never error
		var at time.Time
		go func() { reached = d.Wait(background, 2) }()
		go func() { never = d.Wait(background, 3); at = time.Now() }()
		synctest.Wait()
		err := d.Wait(within(t, time.Second), 0)
		require.Equal(t, context.DeadlineExceeded, err, "bare: it was never accepted")
		for range 3 {
			_, err := d.Append(background, nil)
			require.NoError(t, err)
		}
		begin := time.Now()
		require.NoError(t, h.Exit(background))
		synctest.Wait()
		require.NoError(t, reached)
		require.ErrorIs(t, never, lifecycle.ErrClosed)
		require.Equal(t, begin, at, "at the seal, not after the drain")
		require.ErrorContains(t, d.Wait(background, 3), "never accepted")
		require.NoError(t, d.Wait(expired(), 2))
	})
}

func TestAContextThatIsDoneGetsItsBareErrorAndNothingIsAccepted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(&script{}, lifecycle.Options{})
		_, err := h.Durability().Append(expired(), []byte("x"))
		require.Equal(t, context.Canceled, err)
		_, err = h.Durability().Commit(expired(), []byte("x"))
		require.Equal(t, context.Canceled, err)
		require.Zero(t, h.Durability().Accepted())
		require.NoError(t, h.Exit(background))
	})
}

func TestACommitWhoseContextEndsIsUnknownNotFailed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{onSync: func(int) error { time.Sleep(time.Hour); return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		_, err := h.Durability().Commit(within(t, 2*time.Hour), []byte("a"))
		require.NoError(t, err)
		offset, err := h.Durability().Commit(within(t, time.Second), []byte("b"))
		require.EqualValues(t, 1, offset)
		require.ErrorIs(t, err, lifecycle.ErrUnknown)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, h.Exit(background))
		require.Equal(t, []string{"a", "b"}, s.synced())
	})
}

func TestATransactionOverTheMaximumIsRefusedAndPoisonsNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, log := range []lifecycle.Log{nil, &script{}} {
			h := lifecycle.New(log, lifecycle.Options{})
			most := make([]byte, lifecycle.MaxTransactionBytes+1)
			_, err := h.Durability().Append(background, most)
			require.ErrorIs(t, err, lifecycle.ErrTooLarge)
			_, err = h.Durability().Commit(background, most[1:])
			require.NoError(t, err)
			require.NoError(t, h.Exit(background))
		}
	})
}

func TestAnInMemoryHostsAppendsAreDoneAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		d := h.Durability()
		var waited error
		go func() { waited = d.Wait(within(t, time.Hour), 1) }()
		synctest.Wait()
		p, err := d.Append(background, []byte("x"))
		require.NoError(t, err)
		<-p.Done()
		require.NoError(t, p.Wait(expired()))
		require.EqualValues(t, 1, d.Durable())
		_, err = d.Commit(background, nil)
		require.NoError(t, err)
		synctest.Wait()
		require.NoError(t, waited)
		require.NoError(t, h.Exit(background))
		_, err = d.Append(background, nil)
		require.ErrorIs(t, err, lifecycle.ErrClosed)
		require.ErrorIs(t, d.Wait(background, 2), lifecycle.ErrClosed)
		require.EqualValues(t, 2, h.Report().Durable)
	})
}

// P5, P6: results

func TestAllCallersShareOneRunAndOneResult(t *testing.T) {
	bubble(t, func(t *testing.T) {
		boom := errors.New("boom")
		runs := 0
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "once", func(context.Context) error {
			runs++
			time.Sleep(time.Minute)
			return boom
		}))
		results := make(chan error, 100)
		for range cap(results) {
			go func() { results <- h.Exit(background) }()
		}
		first := <-results
		require.ErrorIs(t, first, boom)
		for range cap(results) - 1 {
			require.Equal(t, first, <-results)
		}
		require.Equal(t, first, h.Exit(expired()), "a known result is told even under a context that is done")
		require.Equal(t, first, h.ForceExit(expired()))
		require.Equal(t, 1, runs)
	})
}

func TestACallersContextBoundsOnlyItsOwnWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
		release := make(chan struct{})
		require.NoError(t, h.Go("cleanup", stubborn(release)))
		patient := make(chan error, 1)
		go func() { patient <- h.Exit(background) }()
		begin := time.Now()
		err := h.Exit(within(t, 3*time.Second))
		require.Equal(t, 3*time.Second, time.Since(begin))
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, "orders", exit.Host)
		require.Equal(t, lifecycle.PhaseAwaitTasks, exit.Phase)
		require.NoError(t, exit.Cause)
		require.Equal(t, context.DeadlineExceeded, exit.Err)
		require.Len(t, exit.Stragglers, 1)
		require.Equal(t, "task", exit.Stragglers[0].Kind)
		require.Equal(t, "cleanup", exit.Stragglers[0].Name)
		require.Equal(t, 1, exit.Stragglers[0].Count)
		require.Equal(t, 3*time.Second, exit.Stragglers[0].Age)
		require.Contains(t, exit.Stragglers[0].Stack, "lifecycle_test.stubborn")
		require.EqualError(t, err, `lifecycle: host "orders": await tasks: 1 straggler: task "cleanup" (3s); context deadline exceeded`)
		require.Empty(t, patient)
		close(release)
		require.NoError(t, <-patient)
	})
}

func TestAContextThatIsDoneStillBeginsTheExit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		call, err := h.Enter()
		require.NoError(t, err)
		err = h.Exit(expired())
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, lifecycle.PhaseExitModule, exit.Phase)
		require.Equal(t, "call", exit.Stragglers[0].Kind)
		<-h.Exiting()
		require.Equal(t, lifecycle.Exiting, h.Status().State)
		call.Leave()
		<-h.Done()
		require.NoError(t, h.Exit(background))
	})
}

func TestATasksErrorPanicOrGoexitFailsTheHost(t *testing.T) {
	boom := errors.New("boom")
	for name, run := range map[string]func(context.Context) error{
		"error":  func(context.Context) error { return boom },
		"panic":  func(context.Context) error { panic(boom) },
		"goexit": func(context.Context) error { runtime.Goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				events := make(chan lifecycle.TaskEvent, 2)
				h := lifecycle.New(nil, lifecycle.Options{Name: "orders", Observer: lifecycle.Observer{
					TaskEnd: func(e lifecycle.TaskEvent) { events <- e },
				}})
				var cause error
				require.NoError(t, h.Go("other", func(ctx context.Context) error {
					<-ctx.Done()
					cause = context.Cause(ctx)
					return cause
				}))
				require.NoError(t, h.Go("cleanup", func(ctx context.Context) error {
					time.Sleep(time.Second)
					return run(ctx)
				}))
				<-h.Done()
				err := h.Exit(background)
				var task *lifecycle.TaskError
				require.ErrorAs(t, err, &task)
				require.Equal(t, "cleanup", task.Task)
				require.ErrorContains(t, err, `lifecycle: host "orders": task "cleanup": `)
				require.Equal(t, error(task), cause)
				require.Len(t, err.(interface{ Unwrap() []error }).Unwrap(), 1, "an echo of the cause is not counted")
				if name == "goexit" {
					require.ErrorIs(t, err, lifecycle.ErrGoexit)
					require.Equal(t, lifecycle.ErrGoexit, task.Err)
				} else {
					require.ErrorIs(t, err, boom)
				}
				if name == "error" {
					require.Nil(t, task.Stack)
				} else {
					require.Contains(t, string(task.Stack), "TestATasksErrorPanicOrGoexit")
				}
				require.Equal(t, "failed", h.Report().Outcome)
				require.Contains(t, h.Report().Cause, "cleanup")
				for range 2 {
					want := lifecycle.TaskEvent{Host: "orders", Task: "other", Duration: time.Second}
					got := <-events
					if got.Task == "cleanup" {
						want.Task, want.Err = "cleanup", task
					}
					require.Equal(t, want, got)
				}
			})
		})
	}
}

func TestAnErrorThatOnlyTellsOfTheCancellationIsNoFailure(t *testing.T) {
	real := errors.New("flush failed")
	h2 := lifecycle.New(nil, lifecycle.Options{Name: "another"})
	require.NoError(t, h2.Exit(background))
	for name, c := range map[string]struct {
		err     func(ctx context.Context, h *lifecycle.Host) error
		failure bool
	}{
		"Canceled": {func(ctx context.Context, _ *lifecycle.Host) error { return ctx.Err() }, false},
		"wrapped":  {func(ctx context.Context, _ *lifecycle.Host) error { return fmt.Errorf("cleanup: %w", ctx.Err()) }, false},
		"cause":    {func(ctx context.Context, _ *lifecycle.Host) error { return context.Cause(ctx) }, false},
		"both":     {func(ctx context.Context, _ *lifecycle.Host) error { return errors.Join(ctx.Err(), context.Cause(ctx)) }, false},
		"own refusal": {func(_ context.Context, h *lifecycle.Host) error {
			return fmt.Errorf("x: %w", h.Go("late", untilCancelled))
		}, false},
		"another's refusal": {func(context.Context, *lifecycle.Host) error {
			return fmt.Errorf("x: %w", h2.OnExit(lifecycle.PhaseRelease, "y", untilCancelled))
		}, false},
		"another cause":           {func(context.Context, *lifecycle.Host) error { return lifecycle.ErrClosed }, true},
		"a failure behind it":     {func(ctx context.Context, _ *lifecycle.Host) error { return errors.Join(ctx.Err(), real) }, true},
		"a failure that wraps it": {func(ctx context.Context, _ *lifecycle.Host) error { return fmt.Errorf("%w after %w", real, ctx.Err()) }, true},
		"own refusal and failure": {func(_ context.Context, h *lifecycle.Host) error {
			return errors.Join(h.Go("late", untilCancelled), real)
		}, true},
		"deadline":        {func(context.Context, *lifecycle.Host) error { return context.DeadlineExceeded }, true},
		"panicking error": {func(context.Context, *lifecycle.Host) error { return panickingError{} }, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := lifecycle.New(nil, lifecycle.Options{})
				require.NoError(t, h.Go("task", func(ctx context.Context) error {
					<-ctx.Done()
					return c.err(ctx, h)
				}))
				require.Equal(t, c.failure, h.Exit(background) != nil)
			})
		})
	}
}

type panickingError struct{ _ []int } // and it can't be compared

func (panickingError) Error() string   { panic("in Error") }
func (panickingError) Is(error) bool   { panic("in Is") }
func (panickingError) Unwrap() []error { panic("in Unwrap") }

func TestCanceledBeforeTheCancellationIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("task", func(context.Context) error { return context.Canceled }))
		<-h.Done()
		require.ErrorIs(t, h.Exit(background), context.Canceled)
	})
}

func TestManyFailuresAreJoinedUpToAHundredThenCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		for i := range 150 {
			require.NoError(t, h.Go("task", func(ctx context.Context) error {
				<-ctx.Done()
				return fmt.Errorf("failure %d", i)
			}))
		}
		err := h.Exit(background)
		require.Len(t, err.(interface{ Unwrap() []error }).Unwrap(), 101)
		require.ErrorContains(t, err, "and 50 more failures")
	})
}

func TestFailBeginsTheExitAndWaitsForNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		lost := errors.New("lease lost")
		h := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
		release := make(chan struct{})
		var cause error
		require.NoError(t, h.Go("task", func(ctx context.Context) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			<-release
			return nil
		}))
		h.Fail(lost)
		h.Fail(lost) // says nothing new
		h.Fail(fmt.Errorf("again: %w", lost))
		h.Fail(errors.New("disk full"))
		h.Fail(nil)
		<-h.Exiting()
		err := h.Exit(within(t, time.Second))
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, lost, exit.Cause)
		require.ErrorIs(t, err, lost)
		require.ErrorContains(t, h.Go("late", untilCancelled), "lease lost")
		close(release)
		err = h.Exit(background)
		require.Equal(t, lost, cause)
		require.EqualError(t, err, "lifecycle: host \"orders\": failed: lease lost\nlifecycle: host \"orders\": failed: disk full")
		require.Equal(t, "lease lost", h.Report().Cause)
		h.Fail(errors.New("too late"))
		require.Equal(t, err, h.Exit(background))
	})
}

func TestFailWithNilIsACleanExit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		var cause error
		require.NoError(t, h.Go("task", func(ctx context.Context) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return nil
		}))
		h.Fail(nil)
		<-h.Done()
		require.NoError(t, h.Exit(background))
		require.Equal(t, lifecycle.ErrExiting, cause, "the cause of a plain exit")
		require.Equal(t, "clean", h.Report().Outcome)
	})
}

// Every

func TestTicksAreAnIntervalApartFromEndToStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		begin := time.Now()
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Every("metrics", 10*time.Second, func(context.Context) error {
			j.addf("%v", time.Since(begin))
			time.Sleep(3 * time.Second)
			return nil
		}))
		time.Sleep(40 * time.Second)
		require.Equal(t, []string{"10s", "23s", "36s"}, j.all())
		status := h.Status().Tasks
		require.Len(t, status, 1)
		require.Equal(t, lifecycle.TaskStatus{Name: "metrics", Count: 1, Age: 40 * time.Second, Every: 10 * time.Second, Ticks: 3}, status[0])
		stop := time.Now()
		require.NoError(t, h.Exit(background))
		require.Equal(t, stop, time.Now(), "cancelled, it stops mid-interval")
	})
}

func TestAFailedTickIsLoggedCountedAndFollowedByTheNext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		var ended []lifecycle.TaskEvent
		h := lifecycle.New(nil, lifecycle.Options{
			Logger:   slog.New(slog.NewTextHandler(&log, nil)),
			Observer: lifecycle.Observer{TaskEnd: func(e lifecycle.TaskEvent) { ended = append(ended, e) }},
		})
		n := 0
		require.NoError(t, h.Every("cleanup", time.Second, func(ctx context.Context) error {
			n++
			switch n {
			case 1:
				return errors.New("view locked")
			case 2:
				panic("nil view")
			case 3:
				runtime.Goexit()
			case 5:
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}))
		time.Sleep(5500 * time.Millisecond)
		status := h.Status().Tasks[0]
		require.EqualValues(t, 4, status.Ticks)
		require.EqualValues(t, 3, status.Failed)
		require.Contains(t, status.LastError, "Goexit")
		require.NoError(t, h.Exit(background), "it never fails the exit")
		for _, want := range []string{"view locked", "panic: nil view", "Goexit"} {
			require.Contains(t, log.String(), want)
		}
		require.Equal(t, 3, strings.Count(log.String(), "tick failed"))
		require.Len(t, ended, 1)
		require.NoError(t, ended[0].Err)
	})
}

func TestNoTickFollowsTheOneInWhichTheTaskWasCancelled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		ticks := 0
		require.NoError(t, h.Every("tick", time.Second, func(ctx context.Context) error {
			ticks++
			<-ctx.Done()
			time.Sleep(time.Minute)
			return nil
		}))
		time.Sleep(90 * time.Second)
		require.NoError(t, h.Exit(background))
		require.Equal(t, 1, ticks)
	})
}

// P7: force

func TestForceExitOfThoseWhoObeyIsClean(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{}
		h := lifecycle.New(s, lifecycle.Options{})
		var cause error
		require.NoError(t, h.Go("obedient", func(ctx context.Context) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			time.Sleep(lifecycle.ForceGrace / 2)
			_, err := h.Durability().Append(background, []byte("last"))
			return err
		}))
		require.NoError(t, h.ForceExit(background))
		require.Equal(t, lifecycle.ErrForced, cause)
		require.Equal(t, "clean", h.Report().Outcome)
		require.Equal(t, []string{"last"}, s.synced())
	})
}

func TestForceExitLeavesBehindByNameAndDrainsWhatWasAccepted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{}
		h := lifecycle.New(s, lifecycle.Options{Name: "orders"})
		release := make(chan struct{})
		late := make(chan error, 2)
		for range 2 {
			require.NoError(t, h.Go("stuck", func(context.Context) error {
				<-release
				_, err := h.Durability().Append(background, []byte("too late"))
				late <- err
				return nil
			}))
		}
		call, err := h.Enter()
		require.NoError(t, err)
		_, err = h.Durability().Append(background, []byte("accepted"))
		require.NoError(t, err)
		require.ErrorIs(t, h.Exit(within(t, time.Minute)), context.DeadlineExceeded)

		begin := time.Now()
		err = h.ForceExit(background)
		require.Equal(t, lifecycle.ForceGrace, time.Since(begin), "once for all of them")
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, lifecycle.ErrForced, exit.Err)
		require.NotErrorIs(t, err, lifecycle.ErrUnknown)
		require.Equal(t, lifecycle.PhaseExitModule, exit.Phase)
		require.NoError(t, exit.Cause)
		require.Len(t, exit.Stragglers, 2)
		require.Equal(t, "call", exit.Stragglers[0].Kind)
		require.Equal(t, "stuck", exit.Stragglers[1].Name)
		require.Equal(t, 2, exit.Stragglers[1].Count)
		require.Contains(t, exit.Stragglers[1].Stack, "TestForceExitLeavesBehind")
		require.ErrorContains(t, err, `task "stuck" × 2`)
		require.Equal(t, err, h.Exit(background))
		r := h.Report()
		require.Equal(t, "forced", r.Outcome)
		require.Zero(t, r.Lost)
		require.Equal(t, "call", r.Phases[0].Abandoned[0].Kind)
		require.Equal(t, "stuck", r.Phases[2].Abandoned[0].Name)
		require.Equal(t, []string{"accepted"}, s.synced())
		close(release)
		call.Leave()
		require.ErrorIs(t, <-late, lifecycle.ErrClosed)
		require.ErrorIs(t, <-late, lifecycle.ErrClosed)
		require.Equal(t, []string{"accepted"}, s.synced())
	})
}

func TestForceExitSkipsHooksThatHaveNotBegunButRunsReleaseHooks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		var ends journal
		h := lifecycle.New(nil, lifecycle.Options{Observer: lifecycle.Observer{HookEnd: func(e lifecycle.HookEvent) {
			ends.addf("%s %t %t %t", e.Hook, e.Skipped, e.Abandoned, errors.Is(e.Err, lifecycle.ErrForced))
		}}})
		release := make(chan struct{})
		add := func(p lifecycle.Phase, name string, f func(context.Context) error) {
			require.NoError(t, h.OnExit(p, name, func(ctx context.Context) error { j.add(name); return f(ctx) }))
		}
		ok := func(context.Context) error { return nil }
		add(lifecycle.PhaseExitModule, "not begun", ok)
		add(lifecycle.PhaseExitModule, "stuck", stubborn(release))
		add(lifecycle.PhaseCheckpoint, "checkpoint", ok)
		add(lifecycle.PhaseRelease, "release", func(ctx context.Context) error {
			require.NoError(t, ctx.Err())
			return nil
		})
		add(lifecycle.PhaseRelease, "release that obeys", func(ctx context.Context) error {
			require.NoError(t, ctx.Err())
			begin := time.Now()
			<-ctx.Done()
			require.Equal(t, lifecycle.ForceGrace, time.Since(begin))
			return nil
		})
		add(lifecycle.PhaseRelease, "release that hangs", stubborn(release))
		require.Error(t, h.Exit(within(t, time.Second)))
		err := h.ForceExit(expired())
		require.ErrorIs(t, err, lifecycle.ErrForced)
		require.Equal(t, []string{"stuck", "release that hangs", "release that obeys", "release"}, j.all())
		require.Equal(t, []string{
			"stuck false true true", "not begun true false true", "checkpoint true false true",
			"release that hangs false true true", "release that obeys false false false", "release false false false",
		}, ends.all())
		r := h.Report()
		require.True(t, r.Phases[0].Hooks[0].Abandoned)
		require.True(t, r.Phases[0].Hooks[1].Skipped)
		require.True(t, r.Phases[3].Hooks[0].Skipped)
		require.True(t, r.Phases[6].Hooks[0].Abandoned)
		require.False(t, r.Phases[6].Hooks[1].Abandoned)
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Len(t, exit.Stragglers, 2)
		close(release)
	})
}

func TestForceExitCancelsAHookThatRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		var cause error
		require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "shutdown", func(ctx context.Context) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return nil
		}))
		require.Error(t, h.Exit(within(t, time.Hour)), "a deadline of Exit does not cancel it")
		require.NoError(t, h.ForceExit(background))
		require.Equal(t, lifecycle.ErrForced, cause)
	})
}

func TestASkippedHookMakesTheExitForced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(context.Context) error { return nil }))
		err := h.ForceExit(background)
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, lifecycle.ErrForced, exit.Err)
		require.Equal(t, lifecycle.PhaseCheckpoint, exit.Phase)
		require.Empty(t, exit.Stragglers)
	})
}

func TestAForcedExitThatOnlyHasAFailedTaskEndsAsExitWould(t *testing.T) {
	bubble(t, func(t *testing.T) {
		boom := errors.New("boom")
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("task", func(ctx context.Context) error { <-ctx.Done(); return boom }))
		err := h.ForceExit(background)
		require.ErrorIs(t, err, boom)
		require.NotErrorIs(t, err, lifecycle.ErrForced)
		require.Equal(t, "failed", h.Report().Outcome)
	})
}

func TestAForcedExitKeepsTheCauseAndTheOtherFailures(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cause, boom := errors.New("lease lost"), errors.New("boom")
		h := lifecycle.New(nil, lifecycle.Options{})
		release := make(chan struct{})
		require.NoError(t, h.Go("stuck", stubborn(release)))
		require.NoError(t, h.Go("failing", func(ctx context.Context) error { <-ctx.Done(); return boom }))
		h.Fail(cause)
		err := h.ForceExit(background)
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, cause, exit.Cause)
		for _, want := range []error{cause, boom, lifecycle.ErrForced} {
			require.ErrorIs(t, err, want)
		}
		close(release)
	})
}

func TestWhatTheDrainCantFinishInTimeIsUnknownForGood(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{}
		s.onSync = func(n int) error {
			if n > 1 {
				<-gate
			}
			return nil
		}
		h := lifecycle.New(s, lifecycle.Options{})
		d := h.Durability()
		_, err := d.Commit(background, []byte("durable"))
		require.NoError(t, err)
		flight, err := d.Append(background, []byte("in flight"))
		require.NoError(t, err)
		synctest.Wait()
		queued, err := d.Append(background, []byte("queued"))
		require.NoError(t, err)

		begin := time.Now()
		err = h.ForceExit(within(t, 3*time.Second))
		require.Equal(t, 3*time.Second+lifecycle.ForceGrace, time.Since(begin))
		require.ErrorIs(t, err, lifecycle.ErrForced)
		require.ErrorIs(t, err, lifecycle.ErrUnknown)
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, "log", exit.Stragglers[0].Kind)
		require.Equal(t, "sync", exit.Stragglers[0].Name)
		require.Contains(t, exit.Stragglers[0].Stack, "(*script).Sync")
		require.Equal(t, 3*time.Second, exit.Stragglers[0].Age)
		<-h.Done()
		for _, p := range []lifecycle.Pending{flight, queued} {
			<-p.Done()
			require.ErrorIs(t, p.Wait(background), lifecycle.ErrUnknown)
			require.ErrorIs(t, p.Wait(background), lifecycle.ErrForced)
		}
		require.EqualValues(t, 2, h.Report().Lost)
		require.Equal(t, "forced", h.Report().Outcome)
		_, err = d.Append(background, nil)
		require.ErrorIs(t, err, lifecycle.ErrClosed)
		_, _, closes := s.counts()
		require.Zero(t, closes, "calls into the log never overlap")

		close(gate)
		synctest.Wait()
		require.EqualValues(t, 1, d.Durable(), "it never moves again")
		require.ErrorIs(t, flight.Wait(background), lifecycle.ErrUnknown)
		appends, syncs, closes := s.counts()
		require.Equal(t, []int{2, 2, 1}, []int{appends, syncs, closes}, "the actor closes the log itself, and writes nothing more")
		require.False(t, s.overlap)
		require.Equal(t, err, err)
	})
}

func TestForceExitWithAContextThatIsDoneLosesNothingThatWasIdle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{onClose: func() error { time.Sleep(lifecycle.ForceGrace / 2); return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		_, err := h.Durability().Commit(background, []byte("x"))
		require.NoError(t, err)
		require.NoError(t, h.ForceExit(expired()))
		_, _, closes := s.counts()
		require.Equal(t, 1, closes)
	})
}

func TestForceExitLeavesBehindALogThatDoesNotClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		s := &script{onClose: func() error { <-release; return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		require.Error(t, h.Exit(within(t, time.Hour)))
		err := h.ForceExit(within(t, time.Second))
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, lifecycle.PhaseCloseLog, exit.Phase)
		require.Equal(t, "close", exit.Stragglers[0].Name)
		require.Zero(t, h.Report().Lost)
		close(release)
	})
}

// P8: no self-wait

func TestAnExitFromInsideTheHostIsRefusedAndStartsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		another := lifecycle.New(nil, lifecycle.Options{})
		type key struct{}
		check := func(ctx context.Context) {
			ctx = context.WithValue(context.WithoutCancel(ctx), key{}, 1)
			require.ErrorIs(t, h.Exit(ctx), lifecycle.ErrSelfExit)
			require.ErrorIs(t, h.ForceExit(ctx), lifecycle.ErrSelfExit)
		}
		done := make(chan struct{})
		require.NoError(t, h.Go("task", func(ctx context.Context) error { check(ctx); close(done); return nil }))
		<-done
		ticked := make(chan struct{})
		require.NoError(t, h.Every("ticker", time.Second, func(ctx context.Context) error {
			check(ctx)
			select {
			case <-ticked:
			default:
				close(ticked)
			}
			return nil
		}))
		<-ticked
		call, err := h.Enter()
		require.NoError(t, err)
		check(call.Context(background))
		require.Equal(t, lifecycle.Running, h.Status().State)
		require.NoError(t, another.Exit(call.Context(background)), "of another host it is no self-wait")
		call.Leave()
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "hook", func(ctx context.Context) error { check(ctx); return nil }))
		require.NoError(t, h.Exit(background))
		check(call.Context(background))
	})
}

func TestWhereAnUnrecognisedSelfWaitHangsIsInTheStragglersStack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		ctx, cancel := context.WithCancel(background)
		require.NoError(t, h.Go("self", func(context.Context) error { _ = h.Exit(ctx); return nil }))
		synctest.Wait()
		var exit *lifecycle.ExitError
		require.ErrorAs(t, h.Exit(within(t, time.Second)), &exit)
		require.Contains(t, exit.Stragglers[0].Stack, "it waits inside Exit")
		require.Contains(t, exit.Stragglers[0].Stack, "TestWhereAnUnrecognisedSelfWaitHangs")
		cancel()
		require.NoError(t, h.Exit(background))

		h = lifecycle.New(nil, lifecycle.Options{})
		ctx, cancel = context.WithCancel(background)
		call, err := h.Enter()
		require.NoError(t, err)
		go func() { selfWaitingCall(h, ctx); call.Leave() }()
		synctest.Wait()
		require.ErrorAs(t, h.Exit(within(t, time.Second)), &exit)
		require.Equal(t, "call", exit.Stragglers[0].Kind)
		require.Contains(t, exit.Stragglers[0].Stack, "selfWaitingCall")
		require.Contains(t, exit.Stragglers[0].Stack, "it waits inside Exit")
		cancel()
		require.NoError(t, h.Exit(background))
	})
}

//go:noinline
func selfWaitingCall(h *lifecycle.Host, ctx context.Context) { _ = h.Exit(ctx) }

// Stragglers and reports

func TestEveryoneThatAPhaseWaitsForIsNamedWithItsOwnStack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		var events []lifecycle.StuckEvent
		h := lifecycle.New(nil, lifecycle.Options{
			StuckAfter: 2 * time.Second,
			Logger:     slog.New(slog.NewJSONHandler(&log, nil)),
			Observer:   lifecycle.Observer{Stuck: func(e lifecycle.StuckEvent) { events = append(events, e) }},
		})
		release := make(chan struct{})
		time.Sleep(time.Second)
		for range 3 {
			require.NoError(t, h.Go("many", stuckInMany(release)))
			time.Sleep(time.Second)
		}
		require.NoError(t, h.Go(`quo"ted`, stuckInQuoted(release)))
		require.NoError(t, h.Go("well", untilCancelled))
		begin := time.Now()
		go func() {
			time.Sleep(5 * time.Second)
			close(release)
		}()
		require.NoError(t, h.Exit(background))
		require.Equal(t, 5*time.Second, time.Since(begin))
		require.Len(t, events, 2, "after 2 s and 4 s")
		e := events[0]
		require.Equal(t, lifecycle.PhaseAwaitTasks, e.Phase)
		require.Equal(t, 2*time.Second, e.Age)
		require.Len(t, e.Stragglers, 2)
		require.Equal(t, lifecycle.Straggler{Kind: "task", Name: "many", Count: 3, Age: 5 * time.Second, Stack: e.Stragglers[0].Stack}, e.Stragglers[0])
		require.Contains(t, e.Stragglers[0].Stack, "stuckInMany")
		require.NotContains(t, e.Stragglers[0].Stack, "childOfMany")
		require.Equal(t, `quo"ted`, e.Stragglers[1].Name)
		require.Contains(t, e.Stragglers[1].Stack, "stuckInQuoted")
		require.NotContains(t, e.Stragglers[1].Stack, "stuckInMany")
		require.LessOrEqual(t, strings.Count(e.Stragglers[0].Stack, "\n\t"), 4, "the top frames only")

		var records []map[string]any
		for line := range strings.Lines(log.String()) {
			record := map[string]any{}
			require.NoError(t, json.Unmarshal([]byte(line), &record))
			if record["msg"] == "exit waits" {
				records = append(records, record)
			}
		}
		require.Len(t, records, 4)
		require.Equal(t, "await tasks", records[0]["phase"])
		require.Equal(t, "task", records[0]["kind"])
		require.Equal(t, "many", records[0]["name"])
		require.EqualValues(t, 3, records[0]["count"])
		require.EqualValues(t, 5*time.Second, records[0]["age"])
		require.EqualValues(t, 2*time.Second, records[0]["phase_age"])
		require.Contains(t, records[0]["at"], "stuckInMany")
		require.Contains(t, records[0]["at"], "lifecycle_test.go:")
		require.Equal(t, "many", h.Report().Phases[2].Stragglers[0].Name, "kept in the report")
	})
}

//go:noinline
func stuckInMany(release chan struct{}) func(context.Context) error {
	return func(context.Context) error {
		go childOfMany(release) // inherits the label
		<-release
		return nil
	}
}

//go:noinline
func childOfMany(release chan struct{}) { <-release }

//go:noinline
func stuckInQuoted(release chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		pprof.Do(ctx, pprof.Labels("mine", "x"), func(context.Context) { <-release })
		return nil
	}
}

func TestWhileDrainingTheBytesThatRemainAreReported(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var events []lifecycle.StuckEvent
		gate := make(chan struct{})
		s := &script{onAppend: func(int) error { <-gate; return nil }}
		h := lifecycle.New(s, lifecycle.Options{Observer: lifecycle.Observer{Stuck: func(e lifecycle.StuckEvent) { events = append(events, e) }}})
		_, err := h.Durability().Append(background, make([]byte, 68))
		require.NoError(t, err)
		time.Sleep(time.Second)
		require.Error(t, h.Exit(within(t, 6*time.Second)))
		require.Len(t, events, 1)
		require.Equal(t, 100, events[0].QueuedBytes)
		require.Equal(t, lifecycle.PhaseCloseDurability, events[0].Phase)
		require.Equal(t, "log", events[0].Stragglers[0].Kind)
		require.Equal(t, "append", events[0].Stragglers[0].Name)
		require.Equal(t, 6*time.Second, events[0].Stragglers[0].Age)
		close(gate)
		require.NoError(t, h.Exit(background))
	})
}

func TestALiveReportShowsThePhaseThatWaitsAndForWhom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
		require.Contains(t, h.Report().String(), "not begun")
		release := make(chan struct{})
		require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "listener", stubborn(release)))
		h.Fail(errors.New("lease lost"))
		time.Sleep(time.Minute)
		r := h.Report()
		require.Empty(t, r.Outcome)
		require.Equal(t, time.Minute, r.Duration)
		require.Len(t, r.Phases, 1)
		require.False(t, r.Phases[0].Ended)
		require.Equal(t, time.Minute, r.Phases[0].Duration)
		require.Equal(t, "hook", r.Phases[0].Stragglers[0].Kind)
		require.Equal(t, "listener", r.Phases[0].Stragglers[0].Name)
		require.Contains(t, r.Phases[0].Stragglers[0].Stack, "stubborn")
		require.Contains(t, r.String(), "waits for hook \"listener\"")
		close(release)
		require.Error(t, h.Exit(background))
		r = h.Report()
		text := r.String()
		for _, want := range []string{"exit of host orders: failed in 1m0s", "because of: lease lost", "1 exit module", "7 release", "hook listener (1m0s)", "accepted 0, durable 0, lost 0"} {
			require.Contains(t, text, want)
		}
		for line := range strings.Lines(text) {
			require.LessOrEqual(t, len([]rune(line)), 81, line)
		}
	})
}

func TestAReportOfTheLeastDurationHasAText(t *testing.T) {
	r := lifecycle.Report{Host: "db", Outcome: "clean", Duration: math.MinInt64, Phases: []lifecycle.PhaseReport{{Phase: lifecycle.PhaseExitModule, Duration: math.MinInt64}}}
	require.Contains(t, r.String(), "db")
}

func TestReportAndStatusGoThroughJSONUnchanged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(&script{}, lifecycle.Options{Name: "orders"})
		release := make(chan struct{})
		require.NoError(t, h.Go("stuck", stubborn(release)))
		require.NoError(t, h.Every("metrics", time.Second, untilCancelled))
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { return errors.New("busy") }))
		check := func() {
			status, report := h.Status(), h.Report()
			var gotStatus lifecycle.Status
			var gotReport lifecycle.Report
			data, err := json.Marshal(status)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(data, &gotStatus))
			require.Equal(t, status, gotStatus)
			data, err = json.Marshal(report)
			require.NoError(t, err)
			require.NotContains(t, string(data), "null")
			require.NoError(t, json.Unmarshal(data, &gotReport))
			again, err := json.Marshal(gotReport)
			require.NoError(t, err)
			require.Equal(t, string(data), string(again))
			require.Equal(t, report.String(), gotReport.String())
		}
		check()
		require.Error(t, h.Exit(within(t, time.Minute)))
		data, err := json.Marshal(h.Status())
		require.NoError(t, err)
		for _, want := range []string{`"state":"exiting"`, `"phase":"await tasks"`, `"queued_bytes":0`, `"last_error":""`} {
			require.Contains(t, string(data), want)
		}
		check()
		require.Error(t, h.ForceExit(background))
		check()
		close(release)
	})
}

func TestATraceHasEachPhaseHookAndStraggler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
		var before bytes.Buffer
		require.NoError(t, h.Report().WriteTrace(&before))
		require.Contains(t, before.String(), `"host orders"`)
		release := make(chan struct{})
		require.NoError(t, h.Go("stuck", stubborn(release)))
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { time.Sleep(time.Millisecond); return errors.New("busy") }))
		require.Error(t, h.Exit(within(t, 6*time.Second)))
		require.Error(t, h.ForceExit(background))
		close(release)
		var out bytes.Buffer
		require.NoError(t, h.Report().WriteTrace(&out))
		var got struct {
			TraceEvents []struct {
				Name, Ph string
				Ts, Dur  float64
				Args     map[string]any
			}
		}
		require.NoError(t, json.Unmarshal(out.Bytes(), &got))
		var names []string
		for _, e := range got.TraceEvents {
			names = append(names, e.Ph+" "+e.Name)
			if e.Name == "await tasks" {
				require.Equal(t, 6.1e6, e.Dur)
			}
			if e.Name == "hook gauges" {
				require.Equal(t, []any{6.1e6, 1e3, "busy"}, []any{e.Ts, e.Dur, e.Args["error"]})
			}
		}
		require.Equal(t, []string{
			"M process_name", "M thread_name", "X exit", "X exit module", "X cancel tasks", "X await tasks",
			"i waited for task stuck", "i left behind task stuck", "X checkpoint", "X close durability", "X close log", "X release", "X hook gauges",
		}, names)
	})
}

func TestTheExitIsATaskWithRegionsInAnExecutionTrace(t *testing.T) {
	var out bytes.Buffer
	if err := trace.Start(&out); err != nil {
		t.Skipf("skipped: somebody else is tracing: %v", err)
	}
	h := lifecycle.New(nil, lifecycle.Options{Name: "traced"})
	require.NoError(t, h.Exit(background))
	trace.Stop()
	for _, want := range []string{"exit of host traced", "exit module", "cancel tasks", "await tasks", "checkpoint", "close durability", "close log", "release"} {
		require.True(t, bytes.Contains(out.Bytes(), []byte(want)), want)
	}
}

func TestPhaseAndStateAreText(t *testing.T) {
	for p, want := range []string{"none", "exit module", "cancel tasks", "await tasks", "checkpoint", "close durability", "close log", "release"} {
		require.Equal(t, want, lifecycle.Phase(p).String())
		text, err := lifecycle.Phase(p).MarshalText()
		require.NoError(t, err)
		var back lifecycle.Phase
		require.NoError(t, back.UnmarshalText(text))
		require.Equal(t, lifecycle.Phase(p), back)
	}
	for s, want := range []string{"running", "exiting", "exited"} {
		require.Equal(t, want, lifecycle.State(s).String())
		text, err := lifecycle.State(s).MarshalText()
		require.NoError(t, err)
		var back lifecycle.State
		require.NoError(t, back.UnmarshalText(text))
		require.Equal(t, lifecycle.State(s), back)
	}
	_, err := lifecycle.Phase(8).MarshalText()
	require.ErrorIs(t, err, lifecycle.ErrInvalid)
	_, err = lifecycle.State(-1).MarshalText()
	require.ErrorIs(t, err, lifecycle.ErrInvalid)
	require.Equal(t, "state(3)", lifecycle.State(3).String())
	require.ErrorIs(t, new(lifecycle.Phase).UnmarshalText([]byte("tea")), lifecycle.ErrInvalid)
	require.ErrorIs(t, new(lifecycle.State).UnmarshalText([]byte("tea")), lifecycle.ErrInvalid)
}

func TestStatusAggregatesTasksByName(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(&script{}, lifecycle.Options{})
		require.NoError(t, h.Go("b", untilCancelled))
		time.Sleep(time.Second)
		require.NoError(t, h.Go("b", untilCancelled))
		require.NoError(t, h.Go("a", untilCancelled))
		call, err := h.Enter()
		require.NoError(t, err)
		s := h.Status()
		require.Equal(t, "host", s.Host)
		require.Equal(t, lifecycle.Running, s.State)
		require.Equal(t, lifecycle.Phase(0), s.Phase)
		require.Equal(t, 1, s.Calls)
		require.Equal(t, []lifecycle.TaskStatus{{Name: "a", Count: 1}, {Name: "b", Count: 2, Age: time.Second}}, s.Tasks)
		call.Leave()
		require.NoError(t, h.Exit(background))
		require.Empty(t, h.Status().Tasks)
		require.Equal(t, lifecycle.Exited, h.Status().State)
	})
}

func TestManyNamesOfFinishedTasksAreNotKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		for i := range 1000 {
			require.NoError(t, h.Go(fmt.Sprint("task ", i), func(context.Context) error { return nil }))
		}
		synctest.Wait()
		require.Empty(t, h.Status().Tasks)
		require.LessOrEqual(t, lifecycle.GroupsOf(h), 200)
		require.NoError(t, h.Exit(background))
	})
}

func TestNobodyIsToldThatAnExitWaitsForNobody(t *testing.T) {
	for range 100 { // the hook ends at the moment of the report: either may come first
		bubble(t, func(t *testing.T) {
			h := lifecycle.New(nil, lifecycle.Options{StuckAfter: time.Second, Observer: lifecycle.Observer{
				Stuck: func(e lifecycle.StuckEvent) { require.NotEmpty(t, e.Stragglers) },
			}})
			require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "hook", func(context.Context) error { time.Sleep(time.Second); return nil }))
			require.NoError(t, h.Exit(background))
			require.Empty(t, h.Report().Phases[lifecycle.PhaseCheckpoint-1].Errors)
		})
	}
}

func TestEachOfTwoHooksOfOneNameIsShownWithItsOwnStack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "hook", func(context.Context) error { hangInObserver(release); return nil }))
		require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "hook", func(context.Context) error { return stubborn(release)(background) }))
		require.Error(t, h.Exit(within(t, time.Second)))
		require.ErrorIs(t, h.ForceExit(background), lifecycle.ErrForced)
		phases := h.Report().Phases
		first, second := phases[0].Abandoned[0], phases[6].Abandoned[0]
		require.Equal(t, []string{"hook", "hook"}, []string{first.Name, second.Name})
		require.Contains(t, first.Stack, "stubborn")
		require.NotContains(t, first.Stack, "hangInObserver")
		require.Contains(t, second.Stack, "hangInObserver")
		close(release)
	})
}

// Observers and the logger

func TestAnObserverOrLoggerThatPanicsOrCallsGoexitChangesNothing(t *testing.T) {
	for how, f := range map[string]func(){"panics": func() { panic("observer") }, "exits": runtime.Goexit} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var j journal
				s := &script{}
				note := func(name string) { j.add(name); f() }
				h := lifecycle.New(s, lifecycle.Options{
					StuckAfter: time.Second,
					Logger:     slog.New(handler(func() { note("log") })),
					Observer: lifecycle.Observer{
						PhaseStart: func(lifecycle.PhaseEvent) { note("PhaseStart") },
						PhaseEnd:   func(lifecycle.PhaseEvent) { note("PhaseEnd") },
						HookEnd:    func(lifecycle.HookEvent) { note("HookEnd") },
						TaskEnd:    func(lifecycle.TaskEvent) { note("TaskEnd") },
						Stuck:      func(lifecycle.StuckEvent) { note("Stuck") },
						Synced:     func(lifecycle.SyncEvent) { note("Synced") },
					},
				})
				require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "hook", func(context.Context) error { time.Sleep(1500 * time.Millisecond); return nil }))
				require.NoError(t, h.Go("task", untilCancelled))
				require.NoError(t, h.Every("ticker", time.Second, func(context.Context) error { return errors.New("failed") }))
				time.Sleep(3500 * time.Millisecond)
				for range 3 {
					_, err := h.Durability().Commit(background, []byte("x"))
					require.NoError(t, err)
				}
				require.EqualValues(t, 3, h.Status().Tasks[1].Ticks)
				require.NoError(t, h.Exit(background))
				require.Len(t, s.synced(), 3)
				for _, name := range []string{"log", "PhaseStart", "PhaseEnd", "HookEnd", "TaskEnd", "Stuck", "Synced"} {
					require.Contains(t, j.all(), name)
				}
			})
		})
	}
}

// handler is a slog.Handler that calls itself for every record.
type handler func()

func (f handler) Enabled(context.Context, slog.Level) bool  { return true }
func (f handler) Handle(context.Context, slog.Record) error { f(); return nil }
func (f handler) WithAttrs([]slog.Attr) slog.Handler        { return f }
func (f handler) WithGroup(string) slog.Handler             { return f }

func TestAnObserverThatHangsIsAStragglerAndForceExitLeavesItBehind(t *testing.T) {
	release := make(chan struct{})
	for name, set := range map[string]func(o *lifecycle.Observer, hang func()){
		"observer PhaseStart": func(o *lifecycle.Observer, hang func()) { o.PhaseStart = func(lifecycle.PhaseEvent) { hang() } },
		"observer PhaseEnd":   func(o *lifecycle.Observer, hang func()) { o.PhaseEnd = func(lifecycle.PhaseEvent) { hang() } },
		"observer HookEnd":    func(o *lifecycle.Observer, hang func()) { o.HookEnd = func(lifecycle.HookEvent) { hang() } },
		"observer TaskEnd":    func(o *lifecycle.Observer, hang func()) { o.TaskEnd = func(lifecycle.TaskEvent) { hang() } },
		"observer Synced":     func(o *lifecycle.Observer, hang func()) { o.Synced = func(lifecycle.SyncEvent) { hang() } },
		"observer Stuck":      func(o *lifecycle.Observer, hang func()) { o.Stuck = func(lifecycle.StuckEvent) { hang() } },
		"logger":              nil,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				release = make(chan struct{})
				options := lifecycle.Options{StuckAfter: time.Second}
				hang := func() { hangInObserver(release) }
				if set == nil {
					options.Logger = slog.New(handler(hang))
				} else {
					set(&options.Observer, hang)
				}
				s := &script{}
				h := lifecycle.New(s, options)
				require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "hook", func(context.Context) error {
					time.Sleep(1500 * time.Millisecond)
					return nil
				}))
				require.NoError(t, h.Go("task", untilCancelled))
				first, err := h.Durability().Append(background, []byte("first"))
				require.NoError(t, err)
				require.NoError(t, first.Wait(background), "an observer delays no acknowledgement of its own batch")
				_, err = h.Durability().Append(background, []byte("second"))
				require.NoError(t, err)

				err = h.Exit(within(t, time.Minute))
				var exit *lifecycle.ExitError
				require.ErrorAs(t, err, &exit, name)
				i := slices.IndexFunc(exit.Stragglers, func(s lifecycle.Straggler) bool { return s.Name == name })
				require.GreaterOrEqual(t, i, 0, "%v", exit)
				require.Equal(t, "hook", exit.Stragglers[i].Kind)
				require.Contains(t, exit.Stragglers[i].Stack, "hangInObserver")

				begin := time.Now()
				err = h.ForceExit(background)
				require.LessOrEqual(t, time.Since(begin), 3*lifecycle.ForceGrace)
				require.ErrorIs(t, err, lifecycle.ErrForced)
				require.ErrorAs(t, err, &exit)
				require.Equal(t, name, exit.Stragglers[0].Name)
				require.Len(t, exit.Stragglers, 1, "once: it is not called again")
				require.Equal(t, []string{"first", "second"}, s.synced(), "it takes nothing with it")
				require.Zero(t, h.Report().Lost)
				close(release)
			})
		})
	}
}

//go:noinline
func hangInObserver(release chan struct{}) { <-release }

func TestTheObserverIsToldOfEachBatch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var events []lifecycle.SyncEvent
		eio := errors.New("input/output error")
		s := &script{onSync: func(n int) error {
			time.Sleep(time.Second)
			if n == 2 {
				return eio
			}
			return nil
		}}
		h := lifecycle.New(s, lifecycle.Options{Name: "orders", Observer: lifecycle.Observer{Synced: func(e lifecycle.SyncEvent) { events = append(events, e) }}})
		_, err := h.Durability().Commit(background, []byte("four"))
		require.NoError(t, err)
		_, err = h.Durability().Commit(background, []byte("x"))
		require.Error(t, err)
		require.Error(t, h.Exit(background))
		require.Len(t, events, 2)
		require.Equal(t, lifecycle.SyncEvent{Host: "orders", Txs: 1, Bytes: 4, Durable: 1, Duration: time.Second}, events[0])
		require.EqualValues(t, 1, events[1].Durable)
		require.ErrorIs(t, events[1].Err, eio)
	})
}

func TestASlowObserverSlowsTheExitAndNoMore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{Observer: lifecycle.Observer{PhaseEnd: func(lifecycle.PhaseEvent) { time.Sleep(time.Minute) }}})
		begin := time.Now()
		require.NoError(t, h.Exit(background))
		require.Equal(t, 7*time.Minute, time.Since(begin))
	})
}

func TestAMultiObserverTellsEachInOrderWhateverOneDoes(t *testing.T) {
	for how, f := range map[string]func(){"returns": func() {}, "panics": func() { panic("observer") }, "exits": runtime.Goexit} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var j journal
				observer := func(who string, then func()) lifecycle.Observer {
					note := func(what string) { j.add(what + " " + who); then() }
					return lifecycle.Observer{
						PhaseStart: func(e lifecycle.PhaseEvent) { note("start " + e.Phase.String()) },
						PhaseEnd:   func(e lifecycle.PhaseEvent) { note("end " + e.Phase.String()) },
						HookEnd:    func(e lifecycle.HookEvent) { note("hook " + e.Hook) },
						TaskEnd:    func(e lifecycle.TaskEvent) { note("task " + e.Task) },
						Stuck:      func(e lifecycle.StuckEvent) { note("stuck in " + e.Phase.String()) },
						Synced:     func(e lifecycle.SyncEvent) { note("synced") },
					}
				}
				h := lifecycle.New(&script{}, lifecycle.Options{
					StuckAfter: time.Second,
					Observer:   lifecycle.MultiObserver(observer("a", f), lifecycle.Observer{}, observer("b", f), observer("c", func() {})),
				})
				require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "slow", func(context.Context) error { time.Sleep(1500 * time.Millisecond); return nil }))
				require.NoError(t, h.Go("task", untilCancelled))
				_, err := h.Durability().Commit(background, []byte("x"))
				require.NoError(t, err)
				require.NoError(t, h.Exit(background))

				who := map[string]string{} // in the order in which they were told; events may overlap
				for _, entry := range j.all() {
					what := entry[:len(entry)-2]
					who[what] += entry[len(entry)-1:]
				}
				require.Len(t, who, 2*7+4)
				for what, order := range who {
					require.Equal(t, "abc", order, what)
				}
			})
		})
	}
}

func TestAMultiObserverHasNoFuncThatNobodyHas(t *testing.T) {
	require.Equal(t, lifecycle.Observer{}, lifecycle.MultiObserver())
	o := lifecycle.MultiObserver(lifecycle.Observer{}, lifecycle.Observer{Synced: func(lifecycle.SyncEvent) {}})
	require.NotNil(t, o.Synced)
	o.Synced = nil
	require.Equal(t, lifecycle.Observer{}, o)
}

// A Host fits into another: a child's Exit as a hook of its parent.
func TestAChildsExitIsAHookOfItsParent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		parent := lifecycle.New(nil, lifecycle.Options{Name: "parent"})
		child := lifecycle.New(nil, lifecycle.Options{Name: "child"})
		release := make(chan struct{})
		require.NoError(t, child.Go("stuck", stubborn(release)))
		require.NoError(t, parent.OnExit(lifecycle.PhaseExitModule, "child", child.Exit))
		require.Error(t, parent.Exit(within(t, time.Minute)))
		require.Equal(t, lifecycle.PhaseAwaitTasks, child.Status().Phase)
		close(release)
		require.NoError(t, parent.Exit(background))
		<-child.Done()
	})
}
