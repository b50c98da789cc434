package lifecycletest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

var background = context.Background()

// store is a small server that does everything right. Tests give it faults.
type store struct {
	host *lifecycle.Host
	mu   sync.Mutex // held across Append, as a state machine does

	requests chan chan int
}

type faults struct {
	start   func(s *store) error        // at the end of open
	task    func(ctx context.Context)   // instead of waiting for the end of the context
	put     func(s *store, n int) error // instead of put
	release func(s *store)              // in the release hook
	between func(s *store)              // between the puts
}

func open(log lifecycle.Log, f faults) (*store, error) {
	s := &store{host: lifecycle.New(log, lifecycle.Options{Name: "store"}), requests: make(chan chan int)}
	err := errors.Join(
		s.host.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error {
			if f.release != nil {
				f.release(s)
			}
			return nil
		}),
		s.host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(ctx context.Context) error {
			_, err := s.host.Durability().Commit(ctx, []byte("snapshot"))
			return err
		}),
		s.host.Go("cleanup", func(ctx context.Context) error {
			if f.task != nil {
				f.task(ctx)
			} else {
				<-ctx.Done()
			}
			_, err := s.host.Durability().Append(background, []byte("cleaned")) // nobody waits for it
			return err
		}),
		s.host.Every("metrics", time.Second, func(ctx context.Context) error {
			_, err := s.host.Durability().Commit(ctx, []byte("metrics"))
			return err
		}),
	)
	if err == nil && f.start != nil {
		err = f.start(s)
	}
	if err != nil {
		return nil, errors.Join(err, s.host.Exit(background))
	}
	return s, nil
}

func (s *store) put(n int) error {
	call, err := s.host.Enter()
	if err != nil {
		return err
	}
	defer call.Leave()
	s.mu.Lock()
	pending, err := s.host.Durability().Append(background, fmt.Append(nil, n))
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return pending.Wait(background)
}

// opener and driver make the functions of ExitEverywhere.
func opener(f faults) func(testing.TB) (*store, *lifecycle.Host, error) {
	return func(testing.TB) (*store, *lifecycle.Host, error) {
		s, err := open(&lifecycletest.Log{}, f)
		if err != nil {
			return nil, nil, err
		}
		return s, s.host, nil
	}
}

func driver(f faults) func(testing.TB, *store) error {
	return func(t testing.TB, s *store) error {
		put := f.put
		if put == nil {
			put = (*store).put
		}
		var clients sync.WaitGroup
		errs := make([]error, 2)
		for client := range errs {
			clients.Go(func() {
				for n := range 2 {
					if errs[client] = errors.Join(errs[client], put(s, n)); errs[client] != nil {
						return
					}
					if f.between != nil {
						f.between(s)
					}
				}
			})
		}
		clients.Wait()
		time.Sleep(1500 * time.Millisecond) // a tick
		return errors.Join(errs...)
	}
}

// exitEverywhere runs the kit on a store with faults.
func exitEverywhere(t *testing.T, f faults, opts ...lifecycletest.ExitOption) *fakeTB {
	return onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "", 0, opener(f), driver(f), opts...)
	})
}

func TestExitEverywhereIsSilentOnACorrectWorkload(t *testing.T) {
	fake := exitEverywhere(t, faults{}, lifecycletest.Runs(lifecycletest.AllRuns))
	fake.silent(t)
	for _, kind := range []string{"append", "wait", "go", "every", "enter", "leave", "onexit", "task", "tick"} {
		require.Contains(t, fake.logs(), kind)
	}
	t.Log(fake.logs())
}

func TestARawGoroutineThatAppendsAfterItsTaskHasReturnedIsFound(t *testing.T) {
	f := faults{start: func(s *store) error {
		return s.host.Go("importer", func(ctx context.Context) error {
			go func() { // and nobody waits for it
				<-ctx.Done()
				_, _ = s.host.Durability().Append(background, []byte("late"))
			}()
			<-ctx.Done()
			return nil
		})
	}}
	exitEverywhere(t, f).finds(t, "a goroutine that the host does not own appends after the seal", "host.Go", "everywhere_test.go", "created by")
	exitEverywhere(t, f, lifecycletest.AllowLateAppends()).silent(t)
}

func TestARawGoroutineThatItsTaskWaitsForIsNone(t *testing.T) {
	exitEverywhere(t, faults{start: func(s *store) error {
		return s.host.Go("importer", func(ctx context.Context) error {
			var wg sync.WaitGroup
			wg.Go(func() {
				<-ctx.Done()
				_, _ = s.host.Durability().Append(background, []byte("late"))
			})
			wg.Wait()
			return nil
		})
	}}).silent(t)
}

func TestAHookThatAppendsWhenTheLogIsClosedIsFoundByName(t *testing.T) {
	f := faults{release: func(s *store) { _, _ = s.host.Durability().Append(background, []byte("bye")) }}
	exitEverywhere(t, f).finds(t, `hook "gauges"`, "PhaseCheckpoint", "everywhere_test.go")
	exitEverywhere(t, f, lifecycletest.AllowLateAppends()).finds(t, `hook "gauges"`)
}

func TestATaskThatIgnoresItsCancellationIsFoundWithItsStack(t *testing.T) {
	exitEverywhere(t, faults{task: deaf}).finds(t, `task "cleanup"`, "did not end within 10s", "lifecycletest_test.deaf", "ctx.Done()")
}

//go:noinline
func deaf(context.Context) { select {} }

func TestATransactionThatTheLogLosesIsFound(t *testing.T) {
	onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "", 0, func(testing.TB) (*store, *lifecycle.Host, error) {
			s, err := open(&forgetful{}, faults{})
			if err != nil {
				return nil, nil, err
			}
			return s, s.host, nil
		}, driver(faults{}))
	}).finds(t, "the log holds", "The Log has lost what it had acknowledged")
}

// forgetful loses the last transaction of each batch that has more than one, and
// what cleanup wrote, which nobody waits for.
type forgetful struct{ lifecycletest.Log }

func (l *forgetful) Append(txs [][]byte) error {
	if n := len(txs); n > 1 || string(txs[0]) == "cleaned" {
		txs = append([][]byte{[]byte("something else")}, txs[:n-1]...)[:max(n-1, 1)]
	}
	if len(txs) == 1 && string(txs[0]) == "something else" {
		return nil
	}
	return l.Log.Append(txs)
}

func TestACallThatLeavesTwiceIsFound(t *testing.T) {
	exitEverywhere(t, faults{put: func(s *store, n int) error {
		call, err := s.host.Enter()
		if err != nil {
			return err
		}
		defer call.Leave()
		call.Leave()
		return nil
	}}).finds(t, "one call has left twice", "everywhere_test.go")
}

func TestAGoroutineThatIsLeftIsFound(t *testing.T) {
	f := faults{start: func(s *store) error { go deaf(context.Background()); return nil }}
	exitEverywhere(t, f).finds(t, "goroutine is left after the exit", "lifecycletest_test.deaf", "t.Cleanup")
	exitEverywhere(t, f, lifecycletest.IgnoreGoroutines("lifecycletest_test.deaf")).silent(t)
}

func TestATaskThatTakesARefusalForAFailureIsFound(t *testing.T) {
	refused := errors.New("restart of the importer failed")
	f := faults{start: func(s *store) error {
		return s.host.Go("supervisor", func(ctx context.Context) error {
			for {
				ended := make(chan struct{})
				if err := s.host.Go("importer", func(ctx context.Context) error {
					defer close(ended)
					select {
					case <-ctx.Done():
					case <-time.After(time.Second / 4):
					}
					return nil
				}); err != nil {
					return refused // though it means only that the host exits
				}
				select {
				case <-ended:
				case <-ctx.Done():
					return nil
				}
			}
		})
	}}
	exitEverywhere(t, f).finds(t, `The task "supervisor" has failed`, "restart of the importer failed", "errors.Is")
	exitEverywhere(t, f, lifecycletest.AllowError(refused)).silent(t)
}

func TestARequestThatIsNotCountedAsACallIsFound(t *testing.T) {
	f := faults{put: func(s *store, n int) error {
		_, err := s.host.Durability().Commit(background, fmt.Append(nil, n))
		return err
	}}
	text := exitEverywhere(t, f).finds(t, "appends after the seal", "host.Enter")
	require.Contains(t, text, "everywhere_test.go")
}

func TestAClientThatWaitsForATaskThatIsGoneIsFound(t *testing.T) {
	f := faults{}
	requests := func(s *store) chan chan int { return s.requests }
	f.start = func(s *store) error {
		return s.host.Go("worker", func(ctx context.Context) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case reply := <-requests(s):
					reply <- 1
				}
			}
		})
	}
	f.put = func(s *store, n int) error {
		ask(requests(s))
		return nil
	}
	f.between = func(s *store) { time.Sleep(time.Second) }
	exitEverywhere(t, f).finds(t, "drive has not returned", "Exiting", "lifecycletest_test.ask")
}

// ask does not watch Exiting.
//
//go:noinline
func ask(requests chan chan int) {
	reply := make(chan int, 1)
	requests <- reply
	<-reply
}

func TestAnOpenThatFailsAndLeavesAHostIsFound(t *testing.T) {
	idle := func(testing.TB, *store) error { return nil }
	careless := func(testing.TB) (*store, *lifecycle.Host, error) {
		index := lifecycle.New(nil, lifecycle.Options{Name: "index"})
		s := &store{host: lifecycle.New(nil, lifecycle.Options{})}
		err := errors.Join(
			s.host.OnExit(lifecycle.PhaseRelease, "index", func(ctx context.Context) error { return index.Exit(ctx) }),
			s.host.Go("cleanup", func(ctx context.Context) error { <-ctx.Done(); return nil }))
		if err != nil {
			return nil, nil, err // and the index?
		}
		return s, s.host, nil
	}
	run := func(opts ...lifecycletest.ExitOption) *fakeTB {
		return onFake(t, func(tb testing.TB) { lifecycletest.ExitEverywhereOn(tb, t, "", 0, careless, idle, opts...) })
	}
	run().finds(t, `left its host "index" running`)
	run(lifecycletest.AfterOpen()).silent(t)
}

func TestAnOpenThatCantBeRefusedIsToldSo(t *testing.T) {
	strict := func(t testing.TB) (*store, *lifecycle.Host, error) {
		s := &store{host: lifecycle.New(nil, lifecycle.Options{})}
		require.NoError(t, s.host.Go("cleanup", func(ctx context.Context) error { <-ctx.Done(); return nil }))
		return s, s.host, nil
	}
	idle := func(testing.TB, *store) error { return nil }
	onFake(t, func(tb testing.TB) { lifecycletest.ExitEverywhereOn(tb, t, "", 0, strict, idle) }).
		finds(t, "open failed", "AfterOpen", "the exit has begun")
	onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "", 0, strict, idle, lifecycletest.AfterOpen())
	}).silent(t)
}

func TestAPanicOfDriveFailsTheRunAndNotTheProcess(t *testing.T) {
	f := faults{}
	onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "", 0, opener(f), func(testing.TB, *store) error { panic("boom") })
	}).finds(t, "drive failed", "panic: boom", "everywhere_test.go")
	onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "", 0, opener(f), func(t testing.TB, _ *store) error { t.Error("no apples"); return nil })
	}).finds(t, "no apples")
	onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "", 0, opener(f), func(t testing.TB, _ *store) error { return errors.New("no pears") })
	}).finds(t, "drive returned an error", "no pears", "AllowError")
}

var rerun = regexp.MustCompile(`LIFECYCLETEST_POINT='(.*)' go test -run '\^TestOfAUser\$'`)

func TestTheLastLineOfAFailureRerunsItsMomentAlone(t *testing.T) {
	f := faults{put: func(s *store, n int) error {
		_, err := s.host.Durability().Append(background, fmt.Append(nil, n))
		return err
	}}
	text := exitEverywhere(t, f).finds(t, "appends after the seal", "held")
	lines := strings.Split(text, "\n")
	found := rerun.FindStringSubmatch(lines[len(lines)-1])
	require.NotNil(t, found, text)
	require.Contains(t, found[1], ",held")

	t.Setenv(lifecycletest.PointVariable, found[1])
	opened := 0
	again := onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "", 0, func(t testing.TB) (*store, *lifecycle.Host, error) {
			opened++
			return opener(f)(t)
		}, driver(f))
	})
	again.finds(t, found[1], "appends after the seal")
	require.LessOrEqual(t, opened, 10)
}

func TestAMomentThatTheWorkloadNeverComesToIsSaid(t *testing.T) {
	onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "append@gone.go:1#1", 0, opener(faults{}), driver(faults{}))
	}).finds(t, "never came to the moment", "append@gone.go:1#1", "enter@everywhere_test.go:")
}

func TestRunsLimitsTheRunsToASampleThatTheSeedDraws(t *testing.T) {
	count := func(opts ...lifecycletest.ExitOption) (runs int) {
		onFake(t, func(tb testing.TB) {
			lifecycletest.ExitEverywhereOn(tb, t, "", 0, func(t testing.TB) (*store, *lifecycle.Host, error) {
				runs++
				return opener(faults{})(t)
			}, driver(faults{}), opts...)
		}).silent(t)
		return runs
	}
	require.Equal(t, 1+10, count(lifecycletest.Runs(10)), "the first counts")
	require.Equal(t, 1+1, count(lifecycletest.Runs(1)))
	require.Equal(t, 1+10, count(lifecycletest.Runs(10), lifecycletest.Seed(7)))
}

func TestOtherHostsAreNotDisturbed(t *testing.T) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			h := lifecycle.New(&lifecycletest.Log{}, lifecycle.Options{Name: "store"})
			_, err := h.Durability().Commit(background, nil)
			if err == nil {
				err = h.Exit(background)
			}
			if err != nil {
				t.Errorf("a host of nobody's: %v", err)
				return
			}
		}
	}()
	exitEverywhere(t, faults{}, lifecycletest.Runs(20)).silent(t)
	close(stop)
	<-stopped
}

func TestAWorkloadWithRealFilesRunsInABubble(t *testing.T) {
	onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "", 0, func(t testing.TB) (*store, *lifecycle.Host, error) {
			dir := filepath.Join(t.TempDir(), "log")
			log, err := commitlog.Open(dir, commitlog.Options{})
			if err != nil {
				return nil, nil, err
			}
			s, err := open(log, faults{})
			if err != nil {
				return nil, nil, err
			}
			t.Cleanup(func() {
				lifecycletest.Reopens(t, s.host, func() (lifecycle.Log, error) { return commitlog.Open(dir, commitlog.Options{}) })
				_, err := os.Stat(dir)
				require.NoError(t, err)
			})
			return s, s.host, nil
		}, driver(faults{}), lifecycletest.Runs(20))
	}).silent(t)
}

// listen makes the store listen at a socket, for which a bubble can't wait.
func listen(s *store) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	err = s.host.Go("accept", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
		defer stop()
		_, _ = listener.Accept()
		return nil
	})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	return nil
}

func TestAWorkloadThatABubbleCantHoldIsSentOutside(t *testing.T) {
	f := faults{start: listen}
	onFake(t, func(tb testing.TB) {
		lifecycletest.ExitEverywhereOn(tb, t, "", time.Second/2, opener(f), driver(f))
	}).finds(t, "RealTime", "a socket", "net.(*TCPListener).Accept")
}

func TestOutsideABubbleTheSameIsFound(t *testing.T) {
	quick := func(f faults) func(testing.TB, *store) error {
		return func(_ testing.TB, s *store) error {
			put := f.put
			if put == nil {
				put = (*store).put
			}
			return errors.Join(put(s, 1), put(s, 2))
		}
	}
	run := func(f faults, opts ...lifecycletest.ExitOption) *fakeTB {
		return onFake(t, func(tb testing.TB) {
			lifecycletest.ExitEverywhereOn(tb, t, "", 0, opener(f), quick(f), append(opts, lifecycletest.RealTime())...)
		})
	}
	run(faults{start: listen}).silent(t)
	run(faults{start: func(s *store) error {
		return s.host.Go("importer", func(ctx context.Context) error {
			go func() {
				<-ctx.Done()
				_, _ = s.host.Durability().Append(background, []byte("late"))
			}()
			<-ctx.Done()
			return nil
		})
	}}).finds(t, "appends after the seal")
	end := make(chan struct{})
	run(faults{task: func(context.Context) { <-end }}, lifecycletest.Within(50*time.Millisecond)).finds(t, `task "cleanup"`, "50ms")
	close(end)
}

func TestTheExampleHolds(t *testing.T) {
	t.Run("at any moment", ordersMayExitAtAnyMoment)
	t.Run("full disk", ordersRefuseWhenTheDiskIsFull)
}

func TestExitEverywhereInABubbleSaysWhereItBelongs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exitEverywhere(t, faults{}).finds(t, "makes bubbles of its own")
	})
}
