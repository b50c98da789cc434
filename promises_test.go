package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/internal/seam"
)

// The tests of this file stand for faults that the other tests would have let pass:
// the ledger of seeded faults (verification/mutants) found that nothing failed when
// the library had them.

// watched makes hosts tell watch of each of their steps until the test ends.
func watched(t *testing.T, watch seam.Watch) {
	t.Cleanup(seam.Install(func(any) seam.Watch { return watch }))
}

// P2: whoever has been refused once is refused everywhere. The test stops the exit
// between its refusing of tasks and of calls.
func TestARefusalIsToldOnlyWhenEverythingIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var h *lifecycle.Host
		refused := make(chan error, 1)
		watched(t, func(step seam.Step, _ string) {
			if step != seam.EndCalls {
				return
			}
			go func() {
				if err := h.Go("late", untilCancelled); !errors.Is(err, lifecycle.ErrExiting) {
					refused <- fmt.Errorf("Go: %w", err)
					return
				}
				call, err := h.Enter()
				call.Leave()
				refused <- err
			}()
			time.Sleep(time.Second)
		})
		h = lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Exit(background))
		require.ErrorIs(t, <-refused, lifecycle.ErrExiting)
	})
}

// P1: the exit waits for the last task, not for the last but one.
func TestTheExitWaitsForTheLastOfItsTasks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		ended := false
		require.NoError(t, h.Go("quick", untilCancelled))
		require.NoError(t, h.Go("slow", func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			ended = true
			return nil
		}))
		require.NoError(t, h.Exit(background))
		require.True(t, ended)
	})
	bubble(t, func(t *testing.T) { // one after another, all of one name
		const tasks = 100
		h := lifecycle.New(nil, lifecycle.Options{})
		var ended atomic.Int64
		for i := range tasks {
			require.NoError(t, h.Go("slow", func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Duration(i*37%tasks) * time.Second)
				ended.Add(1)
				return nil
			}))
		}
		require.NoError(t, h.Exit(background))
		require.EqualValues(t, tasks, ended.Load())
	})
}

// P7: not only in the phase that does so anyway.
func TestForceExitCancelsTheTasksInTheMidstOfAHook(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		cancelled := make(chan struct{})
		require.NoError(t, h.Go("task", func(ctx context.Context) error {
			<-ctx.Done()
			close(cancelled)
			return nil
		}))
		require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "waits for the task", func(context.Context) error {
			<-cancelled
			return nil
		}))
		go h.Exit(background)
		synctest.Wait()
		require.NoError(t, h.ForceExit(background), "nobody is left behind")
	})
}

// P1: a swap of any two phases shows in what one of them finds.
func TestEachPhaseFindsTheWorldAsThePhasesBeforeItLeaveIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var left, cancelled, returned, closed atomic.Bool
		s := &script{onClose: func() error { time.Sleep(time.Second); closed.Store(true); return nil }}
		h := lifecycle.New(s, lifecycle.Options{})
		d := h.Durability()
		find := func(where string, ok bool) {
			if !ok {
				t.Errorf("%s: calls have left %v, tasks are cancelled %v, have returned %v, the log is closed %v, durable %d",
					where, left.Load(), cancelled.Load(), returned.Load(), closed.Load(), d.Durable())
			}
		}
		mustAppend := func(where string) {
			_, err := d.Append(background, []byte(where))
			require.NoError(t, err, where)
		}
		require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "hook", func(context.Context) error {
			find("exit module", !cancelled.Load() && !closed.Load())
			mustAppend("exit module")
			return nil
		}))
		call, err := h.Enter()
		require.NoError(t, err)
		go func() {
			<-h.Exiting()
			time.Sleep(time.Second)
			find("a call", !cancelled.Load())
			mustAppend("a call")
			left.Store(true)
			call.Leave()
		}()
		require.NoError(t, h.Go("task", func(ctx context.Context) error {
			<-ctx.Done()
			cancelled.Store(true)
			time.Sleep(time.Second)
			find("a task", left.Load())
			mustAppend("a task")
			returned.Store(true)
			return nil
		}))
		require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "hook", func(context.Context) error {
			find("checkpoint", left.Load() && returned.Load() && !closed.Load())
			mustAppend("checkpoint")
			return nil
		}))
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "hook", func(context.Context) error {
			find("release", closed.Load() && d.Durable() == 4)
			_, err := d.Append(background, nil)
			require.ErrorIs(t, err, lifecycle.ErrClosed)
			return nil
		}))
		require.NoError(t, inTime(t, "Exit", func() error { return h.Exit(background) }))
		require.Equal(t, []string{"exit module", "a call", "a task", "checkpoint"}, s.synced())
	})
}

// P1: the log is closed in the phase of that name and not before, though the actor
// has drained.
func TestTheLogIsClosedInItsOwnPhase(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{}
		h := lifecycle.New(s, lifecycle.Options{Observer: lifecycle.Observer{PhaseStart: func(e lifecycle.PhaseEvent) {
			time.Sleep(time.Second)
			s.add(e.Phase.String())
		}}})
		require.NoError(t, h.Exit(background))
		s.before(t, "close durability", "close log", "close", "release")
	})
}

// P1: a call is refused, or the phases that follow wait for it.
func TestACallThatWasAdmittedKeepsTheExitInItsFirstPhase(t *testing.T) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		h := lifecycle.New(nil, lifecycle.Options{})
		var over, overtaken atomic.Bool
		require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "flag", func(context.Context) error { over.Store(true); return nil }))
		var others crowd
		begin := make(chan struct{})
		for range 4 {
			others.Go(func() {
				<-begin
				for {
					call, err := h.Enter()
					if err != nil {
						return
					}
					if over.Load() {
						overtaken.Store(true)
					}
					call.Leave()
				}
			})
		}
		close(begin)
		dawdle(rng)
		require.NoError(t, h.Exit(patience(t)))
		others.await(t)
		require.False(t, overtaken.Load(), "a call was admitted and not awaited")
	})
}

// P1: whichever shard of the gate a call has entered by, it is waited for.
func TestACallKeepsTheExitInItsFirstPhaseByAnyShard(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for range 64 { // goroutines, whose stacks lie in as many places
			h := lifecycle.New(nil, lifecycle.Options{})
			leave, ended := make(chan struct{}), make(chan error, 1)
			go func() {
				call, err := h.Enter()
				if err != nil {
					t.Error(err)
				}
				<-leave
				call.Leave()
			}()
			synctest.Wait()
			go func() { ended <- h.Exit(background) }()
			synctest.Wait()
			require.Equal(t, lifecycle.PhaseExitModule, h.Status().Phase)
			close(leave)
			require.NoError(t, <-ended)
		}
	})
}

// P2: an OnExit either refuses or its hook runs.
func TestAHookThatOnExitTookIsRunHoweverItRacesWithExit(t *testing.T) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		h := lifecycle.New(nil, lifecycle.Options{})
		var taken, run atomic.Int64
		var others crowd
		begin := make(chan struct{})
		for range 4 {
			others.Go(func() {
				<-begin
				for range 50 {
					err := h.OnExit(lifecycle.PhaseExitModule, "hook", func(context.Context) error { run.Add(1); return nil })
					if err != nil {
						require.ErrorIs(t, err, lifecycle.ErrExiting)
						return
					}
					taken.Add(1)
					runtime.Gosched()
				}
			})
		}
		close(begin)
		dawdle(rng)
		require.NoError(t, h.Exit(patience(t)))
		others.await(t)
		require.Equal(t, taken.Load(), run.Load(), "hooks that were taken and run")
	})
}

// P3: the line for room is one. What would fit waits behind what does not.
func TestASmallAppendDoesNotPassALargeOneThatWaitsForRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{onAppend: func(int) error { <-gate; return nil }}
		h := lifecycle.New(s, lifecycle.Options{QueueBytes: 200})
		d := h.Durability()
		_, err := d.Append(background, make([]byte, 68)) // half of the limit
		require.NoError(t, err)
		var j journal
		for _, length := range []int{150, 0} {
			go func() {
				p, err := d.Append(background, make([]byte, length))
				j.addf("%d bytes at %d %v", length, p.Offset(), err)
			}()
			synctest.Wait()
		}
		require.Empty(t, j.all(), "an empty one would fit")
		close(gate)
		synctest.Wait()
		require.NoError(t, h.Exit(background))
		require.ElementsMatch(t, []string{"150 bytes at 1 <nil>", "0 bytes at 2 <nil>"}, j.all())
	})
}

// pieces is a BatchLog that gets a batch in several pieces, and refuses one.
type pieces struct {
	script
	gate    chan struct{}
	refuses int // the number of the piece, from 1
	got     int
}

func (p *pieces) BatchHeader() int { return 0 }

func (p *pieces) AppendBatch([]byte, int) error {
	<-p.gate
	if p.got++; p.got == p.refuses {
		return errors.New("disk gone")
	}
	return nil
}

// P4: nothing is written behind what the log refused, not even of the same batch.
func TestNoPieceOfABatchIsWrittenBehindOneThatTheLogRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &pieces{gate: make(chan struct{}), refuses: 3}
		h := lifecycle.New(p, lifecycle.Options{})
		var last lifecycle.Pending
		for range 6 {
			pending, err := h.Durability().Append(background, make([]byte, 200<<10))
			require.NoError(t, err)
			last = pending
			synctest.Wait() // the first is a batch of its own, which waits at the gate; the others are the next
		}
		close(p.gate)
		require.ErrorIs(t, last.Wait(background), lifecycle.ErrUnknown)
		require.ErrorContains(t, h.Exit(background), "disk gone")
		require.Equal(t, 3, p.got)
	})
}

// P4: whoever is told of the log's failure finds the exit begun. The test stops the
// exit before it begins.
func TestWhoIsToldOfTheLogsFailureFindsTheExitBegun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		watched(t, func(step seam.Step, _ string) {
			if step == seam.Begin {
				time.Sleep(time.Second)
			}
		})
		h := lifecycle.New(&script{onSync: func(int) error { return errors.New("disk gone") }}, lifecycle.Options{})
		_, err := h.Durability().Commit(background, nil)
		require.ErrorIs(t, err, lifecycle.ErrUnknown)
		select {
		case <-h.Exiting():
		default:
			t.Error("the exit has not begun")
		}
		require.Error(t, h.Exit(background))
	})
}

// slowError takes a second to say what it is.
type slowError struct{}

func (slowError) Error() string { time.Sleep(time.Second); return "slow" }

// P5: a task counts as alive until its failure is recorded.
func TestTheExitWaitsUntilATasksFailureIsRecorded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("task", func(ctx context.Context) error { <-ctx.Done(); return slowError{} }))
		require.ErrorIs(t, h.Exit(background), slowError{})
		require.Equal(t, "failed", h.Report().Outcome)
	})
}

// P5: a failure that is like the exit's cause, and not the same, is a failure. (A
// *LogError is ErrClosed, and says more.)
func TestAFailureThatIsLikeTheCauseIsInTheResult(t *testing.T) {
	bubble(t, func(t *testing.T) {
		eio := errors.New("input/output error")
		h := lifecycle.New(&script{onSync: func(int) error { return eio }}, lifecycle.Options{})
		release := make(chan struct{})
		require.NoError(t, h.Go("deaf", stubborn(release)))
		h.Fail(lifecycle.ErrClosed)
		_, err := h.Durability().Commit(background, nil)
		require.ErrorIs(t, err, eio)
		close(release)
		require.ErrorIs(t, h.Exit(background), eio)
	})
}

// P6: those who find that no exit has begun, and begin one, begin one.
func TestExitsThatBeginAtTheSameMomentAreOne(t *testing.T) {
	bubble(t, func(t *testing.T) {
		watched(t, func(step seam.Step, _ string) {
			if step == seam.Begin {
				time.Sleep(time.Second) // the other stands here too
			}
		})
		var j journal
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "hook", func(context.Context) error { j.add("hook"); return nil }))
		var callers sync.WaitGroup
		for range 3 {
			callers.Go(func() { j.addf("%v", h.Exit(background)) })
		}
		callers.Wait()
		require.Equal(t, []string{"hook", "<nil>", "<nil>", "<nil>"}, j.all())
	})
}

// inTime fails the test if f takes more than a minute of the bubble's time, rather
// than wait for what never ends.
func inTime(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		require.FailNow(t, "it does not return: "+what)
		return nil
	}
}

// P10: the exit of a host in the middle of its work ends.
func TestTheExitOfABusyHostEndsInTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &script{}
		h := lifecycle.New(s, lifecycle.Options{})
		d := h.Durability()
		require.NoError(t, h.Go("task", untilCancelled))
		require.NoError(t, h.Every("ticker", time.Hour, untilCancelled))
		for i := range 3 {
			synctest.Wait() // the actor has nothing to do
			_, err := d.Append(background, []byte{byte(i)})
			require.NoError(t, err)
		}
		for range 100 {
			call, err := h.Enter()
			require.NoError(t, err)
			call.Leave()
		}
		require.NoError(t, inTime(t, "Commit", func() error { _, err := d.Commit(background, nil); return err }))
		future := make(chan error, 1)
		go func() { future <- d.Wait(background, 1000) }()
		synctest.Wait()
		require.NoError(t, inTime(t, "Exit", func() error { return h.Exit(background) }))
		require.ErrorIs(t, inTime(t, "Wait", func() error { return <-future }), lifecycle.ErrClosed)
		require.Len(t, s.synced(), 4)
	})
}

// P6: a caller's wait ends with its context, whoever the exit waits for.
func TestACallerWhoseContextEndsHasItsAnswerInTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		release := make(chan struct{})
		require.NoError(t, h.Go("deaf", stubborn(release)))
		err := inTime(t, "Exit", func() error { return h.Exit(within(t, time.Second)) })
		var unended *lifecycle.ExitError
		require.ErrorAs(t, err, &unended)
		require.Len(t, unended.Stragglers, 1)
		require.Equal(t, "deaf", unended.Stragglers[0].Name)
		require.Contains(t, unended.Stragglers[0].Stack, "stubborn")
		close(release)
		require.NoError(t, h.Exit(background))
	})
}

// P7: ForceExit ends, whatever does not, and says what.
func TestForceExitEndsInTimeWhateverHangs(t *testing.T) {
	hang := make(map[string]func(o *lifecycle.Options, s *script, deaf func()) (after func(h *lifecycle.Host)))
	hang["task"] = func(_ *lifecycle.Options, _ *script, deaf func()) func(*lifecycle.Host) {
		return func(h *lifecycle.Host) { _ = h.Go("deaf", func(context.Context) error { deaf(); return nil }) }
	}
	hang["call"] = func(_ *lifecycle.Options, _ *script, deaf func()) func(*lifecycle.Host) {
		return func(h *lifecycle.Host) {
			call, _ := h.Enter()
			go func() { deaf(); call.Leave() }()
		}
	}
	for _, phase := range []lifecycle.Phase{lifecycle.PhaseExitModule, lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease} {
		hang[phase.String()+" hook"] = func(_ *lifecycle.Options, _ *script, deaf func()) func(*lifecycle.Host) {
			return func(h *lifecycle.Host) {
				_ = h.OnExit(phase, "deaf", func(context.Context) error { deaf(); return nil })
				h.Fail(nil) // it has begun when ForceExit comes
				synctest.Wait()
			}
		}
	}
	hang["append"] = func(_ *lifecycle.Options, s *script, deaf func()) func(*lifecycle.Host) {
		s.onAppend = func(int) error { deaf(); return nil }
		return nil
	}
	hang["sync"] = func(_ *lifecycle.Options, s *script, deaf func()) func(*lifecycle.Host) {
		s.onSync = func(int) error { deaf(); return nil }
		return nil
	}
	hang["close"] = func(_ *lifecycle.Options, s *script, deaf func()) func(*lifecycle.Host) {
		s.onClose = func() error { deaf(); return nil }
		return nil
	}
	hang["observer Synced"] = func(o *lifecycle.Options, _ *script, deaf func()) func(*lifecycle.Host) {
		o.Observer.Synced = func(lifecycle.SyncEvent) { deaf() }
		return nil
	}
	hang["observer PhaseStart"] = func(o *lifecycle.Options, _ *script, deaf func()) func(*lifecycle.Host) {
		o.Observer.PhaseStart = func(lifecycle.PhaseEvent) { deaf() }
		return nil
	}
	for name, prepare := range hang {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				release := make(chan struct{})
				var o lifecycle.Options
				s := &script{}
				after := prepare(&o, s, func() { <-release })
				h := lifecycle.New(s, o)
				_, err := h.Durability().Append(background, []byte("accepted"))
				require.NoError(t, err)
				synctest.Wait()
				if after != nil {
					after(h)
				}
				err = inTime(t, "ForceExit", func() error { return h.ForceExit(within(t, time.Second)) })
				var forced *lifecycle.ExitError
				require.ErrorAs(t, err, &forced)
				require.ErrorIs(t, err, lifecycle.ErrForced)
				require.Len(t, forced.Stragglers, 1)
				_, err = h.Durability().Append(background, []byte("late"))
				require.ErrorIs(t, err, lifecycle.ErrClosed)
				unknown := name == "append" || name == "sync"
				require.Equal(t, unknown, errors.Is(forced, lifecycle.ErrUnknown))
				require.Equal(t, !unknown, len(s.synced()) == 1)
				close(release)
				synctest.Wait()
				require.False(t, s.overlap)
			})
		})
	}
}

// P7: an actor that only looks for work has nothing that could be lost.
func TestForceExitGivesUpNothingWhileTheActorLooksForWork(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var slow atomic.Bool
		watched(t, func(step seam.Step, _ string) {
			if step == seam.Take && slow.Load() {
				time.Sleep(time.Second)
			}
		})
		h := lifecycle.New(&script{}, lifecycle.Options{})
		slow.Store(true)
		_, err := h.Durability().Commit(background, nil)
		require.NoError(t, err)
		require.NoError(t, h.ForceExit(expired()))
		require.Equal(t, "clean", h.Report().Outcome)
	})
}

// P8: whoever belongs to the host is told so, and does not wait for itself.
func TestAnExitFromInsideTheHostIsRefusedInTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		refused := func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			defer cancel()
			if err := h.Exit(ctx); !errors.Is(err, lifecycle.ErrSelfExit) {
				return fmt.Errorf("Exit: %w", err)
			}
			return nil
		}
		call, err := h.Enter()
		require.NoError(t, err)
		require.NoError(t, refused(call.Context(background)), "a call")
		call.Leave()
		told := make(chan error, 1)
		require.NoError(t, h.Go("task", func(ctx context.Context) error { told <- refused(ctx); return nil }))
		require.NoError(t, <-told, "a task")
		require.NoError(t, h.Every("ticker", time.Second, func(ctx context.Context) error { told <- refused(ctx); <-ctx.Done(); return nil }))
		require.NoError(t, <-told, "a tick")
		require.Equal(t, lifecycle.Running, h.Status().State, "nothing has begun")
		require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "hook", refused))
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "hook", refused))
		require.NoError(t, h.Exit(background))
	})
	bubble(t, func(t *testing.T) { // a release hook of a forced exit has a context of its own
		h := lifecycle.New(nil, lifecycle.Options{})
		var told error
		require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "hook", func(ctx context.Context) error {
			told = h.Exit(ctx)
			return nil
		}))
		require.NoError(t, h.ForceExit(background))
		require.ErrorIs(t, told, lifecycle.ErrSelfExit)
	})
}

// P2: once the Controller's exit has begun, nothing is opened any more.
func TestALaunchIsRefusedOnceTheControllersExitHasBegun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := lifecycle.NewController[string](lifecycle.ControllerOptions{})
		release := make(chan struct{})
		_, err := c.Launch(background, "key", func(context.Context) (*lifecycle.Host, error) {
			h := lifecycle.New(nil, lifecycle.Options{})
			return h, h.Go("deaf", stubborn(release))
		})
		require.NoError(t, err)
		require.Error(t, c.Exit(expired()))
		_, err = c.Launch(background, "other", func(context.Context) (*lifecycle.Host, error) {
			t.Error("open was called")
			return lifecycle.New(nil, lifecycle.Options{}), nil
		})
		require.ErrorIs(t, err, lifecycle.ErrExiting)
		close(release)
		require.NoError(t, c.Exit(background))
	})
}

// probe finds out whether a lock is held while user code runs: that code calls it,
// and it calls what takes every lock there is.
type probe struct {
	locks  func()
	mu     sync.Mutex
	passed map[string]bool
	failed map[string]bool
}

// at is called by user code. It outlasts a lock that is held, so that the test ends.
func (p *probe) at(where string) {
	p.mu.Lock()
	p.passed[where] = true
	over := len(p.failed) > 0
	p.mu.Unlock()
	if over {
		return
	}
	free := make(chan struct{})
	go func() { defer close(free); p.locks() }()
	ok := true
	select {
	case <-free:
	case <-time.After(3 * time.Second):
		ok = false
	}
	if !ok {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.failed[where] = true
	}
}

func newProbe(locks func()) *probe {
	return &probe{locks: locks, passed: map[string]bool{}, failed: map[string]bool{}}
}

func (p *probe) check(t *testing.T, places ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, place := range places {
		require.True(t, p.passed[place], "%s was not called: %v", place, p.passed)
	}
	require.Empty(t, p.failed, "a lock is held across these")
}

// probingError is an error whose text is user code.
type probingError struct {
	p     *probe
	where string
}

func (e probingError) Error() string { e.p.at(e.where); return e.where }

// probingHandler is a slog handler.
type probingHandler struct {
	slog.Handler
	p *probe
}

func (h probingHandler) Handle(ctx context.Context, r slog.Record) error {
	h.p.at("logger: " + r.Message)
	return h.Handler.Handle(ctx, r)
}

// P9. Every kind of user code asks the host for what needs each of its locks. It
// runs in real time: a goroutine that waits for a mutex keeps a bubble from ending.
func TestNoLockIsHeldAcrossUserCode(t *testing.T) {
	var h atomic.Pointer[lifecycle.Host]
	p := newProbe(func() {
		if host := h.Load(); host != nil {
			host.Status() // the tasks', the host's and the queue's
			host.Report() // the callouts' too, once the exit runs
		}
	})
	block, blocked := make(chan struct{}), make(chan struct{})
	s := &script{
		onAppend: func(n int) error {
			p.at("Log.Append")
			if n == 2 {
				close(blocked)
				<-block
			}
			return nil
		},
		onSync:  func(int) error { p.at("Log.Sync"); return nil },
		onClose: func() error { p.at("Log.Close"); return probingError{p, "error of Close"} },
	}
	stuck := make(chan struct{})
	var firstStuck sync.Once
	h.Store(lifecycle.New(s, lifecycle.Options{
		QueueBytes: 1,
		StuckAfter: time.Millisecond,
		Logger:     slog.New(probingHandler{slog.NewTextHandler(io.Discard, nil), p}),
		Observer: lifecycle.Observer{
			PhaseStart: func(lifecycle.PhaseEvent) { p.at("PhaseStart") },
			PhaseEnd:   func(lifecycle.PhaseEvent) { p.at("PhaseEnd") },
			HookEnd:    func(lifecycle.HookEvent) { p.at("HookEnd") },
			TaskEnd:    func(lifecycle.TaskEvent) { p.at("TaskEnd") },
			Stuck:      func(lifecycle.StuckEvent) { p.at("Stuck"); firstStuck.Do(func() { close(stuck) }) },
			Synced:     func(lifecycle.SyncEvent) { p.at("Synced") },
		},
	}))
	host := h.Load()
	for _, phase := range []lifecycle.Phase{lifecycle.PhaseExitModule, lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease} {
		require.NoError(t, host.OnExit(phase, "hook", func(context.Context) error {
			p.at("hook of " + phase.String())
			return probingError{p, "error of a hook"}
		}))
	}
	require.NoError(t, host.Go("task", func(ctx context.Context) error {
		<-ctx.Done()
		p.at("task")
		<-stuck
		return probingError{p, "error of a task"}
	}))
	ticked := make(chan struct{})
	var once sync.Once
	require.NoError(t, host.Every("ticker", time.Millisecond, func(context.Context) error {
		once.Do(func() { close(ticked) })
		return probingError{p, "error of a tick"}
	}))
	<-ticked
	d := host.Durability()
	_, err := d.Commit(background, []byte("first"))
	require.NoError(t, err)
	_, err = d.Append(background, []byte("second"))
	require.NoError(t, err)
	<-blocked
	ctx, cancel := context.WithCancel(background)
	_, err = d.Append(brokenContext{ctx, func() <-chan struct{} { p.at("Done of a context"); cancel(); return ctx.Done() }}, []byte("no room"))
	require.ErrorIs(t, err, context.Canceled)
	close(block)
	host.Fail(probingError{p, "error of Fail"})
	require.Error(t, host.Exit(background))
	p.check(t, "Log.Append", "Log.Sync", "Log.Close", "PhaseStart", "PhaseEnd", "HookEnd", "TaskEnd", "Stuck", "Synced",
		"hook of exit module", "hook of checkpoint", "hook of release", "task", "Done of a context", "error of Close",
		"error of a hook", "error of a task", "error of a tick", "error of Fail", "logger: tick failed", "logger: exit begins",
		"logger: exit waits", "logger: exit ended")
}

// P9, of the Controller.
// In a bubble: there a goroutine that waits for a mutex stops the clock, and with
// it the patience with the logger, so that such a fault hangs.
func TestTheControllerHoldsNoLockAcrossUserCode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var c *lifecycle.Controller[string]
		p := newProbe(func() { c.Keys() })
		c = lifecycle.NewController[string](lifecycle.ControllerOptions{Logger: slog.New(probingHandler{slog.NewTextHandler(io.Discard, nil), p})})
		_, err := c.Launch(background, "key", func(context.Context) (*lifecycle.Host, error) {
			p.at("open")
			return lifecycle.New(nil, lifecycle.Options{}), nil
		})
		require.NoError(t, err)
		_, err = c.Launch(background, "other", func(context.Context) (*lifecycle.Host, error) {
			return nil, probingError{p, "error of open"}
		})
		require.Error(t, err)
		require.NoError(t, c.Exit(background))
		p.check(t, "open", "error of open", "logger: launched")
	})
}

// goexitThenPanic is what require.FailNow is in front of a deferred Close of nil:
// recover stops the panic, and not the Goexit below it.
func goexitThenPanic() {
	defer panic("in a defer")
	runtime.Goexit()
}

// P3, P4, P5.
func TestAGoexitWhoseDeferPanicsIsAFailureWhereverItHappens(t *testing.T) {
	failing := func(n int) error {
		if n == 1 {
			goexitThenPanic()
		}
		return nil
	}
	for name, s := range map[string]*script{"append": {onAppend: failing}, "sync": {onSync: failing}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := lifecycle.New(s, lifecycle.Options{})
				_, err := h.Durability().Commit(background, []byte("x"))
				var failed *lifecycle.LogError
				require.ErrorAs(t, err, &failed)
				require.Equal(t, name, failed.Op)
				require.ErrorContains(t, err, "in a defer")
				_, err = h.Durability().Append(background, []byte("y"))
				require.ErrorIs(t, err, lifecycle.ErrClosed)
				require.ErrorAs(t, h.Exit(background), &failed)
				require.Zero(t, h.Durability().Durable())
			})
		})
	}
	t.Run("close", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			h := lifecycle.New(&script{onClose: func() error { goexitThenPanic(); return nil }}, lifecycle.Options{})
			require.ErrorContains(t, h.Exit(background), "in a defer")
		})
	})
	t.Run("hook", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			h := lifecycle.New(nil, lifecycle.Options{})
			require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "hook", func(context.Context) error { goexitThenPanic(); return nil }))
			var failed *lifecycle.HookError
			require.ErrorAs(t, h.Exit(background), &failed)
			require.ErrorContains(t, failed, "in a defer")
		})
	})
	t.Run("tick", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			h := lifecycle.New(nil, lifecycle.Options{})
			require.NoError(t, h.Every("ticker", time.Second, func(context.Context) error { goexitThenPanic(); return nil }))
			time.Sleep(3500 * time.Millisecond)
			ticker := h.Status().Tasks[0]
			require.EqualValues(t, []int64{3, 3}, []int64{ticker.Ticks, ticker.Failed})
			require.Contains(t, ticker.LastError, "in a defer")
			require.NoError(t, h.Exit(background))
		})
	})
	t.Run("task", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			h := lifecycle.New(nil, lifecycle.Options{})
			require.NoError(t, h.Go("task", func(context.Context) error { goexitThenPanic(); return nil }))
			var failed *lifecycle.TaskError
			require.ErrorAs(t, h.Exit(background), &failed)
		})
	})
	t.Run("launch", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			c := lifecycle.NewController[string](lifecycle.ControllerOptions{})
			_, err := c.Launch(background, "orders", func(context.Context) (*lifecycle.Host, error) { goexitThenPanic(); return nil, nil })
			require.ErrorContains(t, err, "in a defer")
			require.NoError(t, c.Exit(background))
		})
	})
	t.Run("observers", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			o := lifecycle.Observer{PhaseStart: func(lifecycle.PhaseEvent) { runtime.Goexit() }}
			p := lifecycle.Observer{PhaseStart: func(lifecycle.PhaseEvent) { panic("in a defer") }}
			h := lifecycle.New(nil, lifecycle.Options{Observer: lifecycle.MultiObserver(o, p)})
			require.NoError(t, h.Exit(background))
			require.Contains(t, fmt.Sprint(h.Report().Phases[0].Errors), "in a defer")
		})
	})
}

// P9: an error's methods may hang, and then it is said whom the exit waits for.
func TestALogWhoseErrorHangsIsNamed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		h := lifecycle.New(&script{onSync: func(int) error { return hangingError(release) }}, lifecycle.Options{})
		p, err := h.Durability().Append(background, []byte("x"))
		require.NoError(t, err)
		var exit *lifecycle.ExitError
		require.ErrorAs(t, h.Exit(within(t, time.Minute)), &exit)
		require.Len(t, exit.Stragglers, 1)
		require.Equal(t, []string{"log", "sync"}, []string{exit.Stragglers[0].Kind, exit.Stragglers[0].Name})
		close(release)
		require.Error(t, p.Wait(background))
		require.Error(t, h.Exit(background))
	})
}

type hangingError chan struct{}

func (e hangingError) Error() string { <-e; return "released" }

// A logger that hangs has no phase to be a straggler of where Run and Controllers
// use it: it is left behind.
func TestALoggerThatHangsHoldsUpNeitherRunNorAController(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		hanging := slog.New(handler(func() { <-release }))
		h := lifecycle.New(nil, lifecycle.Options{})
		begin := time.Now()
		require.NoError(t, lifecycle.Run(expired(), h, lifecycle.RunOptions{Signals: noSignals, Logger: hanging}))
		require.Equal(t, lifecycle.ForceGrace, time.Since(begin))

		c := lifecycle.NewController[string](lifecycle.ControllerOptions{Logger: hanging})
		for _, key := range []string{"orders", "users"} {
			_, err := c.Launch(background, key, func(context.Context) (*lifecycle.Host, error) { return lifecycle.New(nil, lifecycle.Options{}), nil })
			require.NoError(t, err)
		}
		require.NoError(t, c.Exit(background))
		require.Equal(t, 2*lifecycle.ForceGrace, time.Since(begin), "the second record is not waited for")
		close(release)
	})
}

func TestALoggerThatPanicsEndsNeitherRunNorTheProcess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, lifecycle.Run(expired(), h, lifecycle.RunOptions{Signals: noSignals, Logger: slog.New(handler(func() { panic("logger") }))}))
		require.Equal(t, "clean", h.Report().Outcome)
	})
}

// The first paragraph of a goroutine profile is that of the most frequent stack.
func TestTasksDeeperThanAProfileHaveAStackAllTheSame(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		h := lifecycle.New(nil, lifecycle.Options{})
		for range 100 {
			require.NoError(t, h.Go("deep", func(context.Context) error { deep(200, release); return nil }))
		}
		var exit *lifecycle.ExitError
		require.ErrorAs(t, h.Exit(within(t, time.Minute)), &exit) // when all of them wait
		require.Equal(t, 100, exit.Stragglers[0].Count)
		require.Contains(t, exit.Stragglers[0].Stack, "lifecycle_test.deep")
		close(release)
		require.NoError(t, h.Exit(background))
	})
}

func deep(n int, release chan struct{}) {
	if n == 0 {
		<-release
		return
	}
	deep(n-1, release)
}
