package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

func newController() *lifecycle.Controller[string] {
	return lifecycle.NewController[string](lifecycle.ControllerOptions{})
}

// opener opens an in-memory host of that name.
func opener(name string) func(context.Context) (*lifecycle.Host, error) {
	return func(context.Context) (*lifecycle.Host, error) {
		return lifecycle.New(nil, lifecycle.Options{Name: name}), nil
	}
}

func TestThoseWhoLaunchAKeyAtTheSameTimeShareOneHost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		opened := 0
		hosts := make(chan *lifecycle.Host, 10)
		for range cap(hosts) {
			go func() {
				h, err := c.Launch(background, "orders", func(context.Context) (*lifecycle.Host, error) {
					opened++
					time.Sleep(time.Second)
					return lifecycle.New(nil, lifecycle.Options{}), nil
				})
				require.NoError(t, err)
				hosts <- h
			}()
		}
		synctest.Wait()
		_, err := c.Host("orders")
		require.ErrorIs(t, err, lifecycle.ErrNoHost)
		require.ErrorContains(t, err, "orders")
		require.Empty(t, c.Keys())
		first := <-hosts
		for range cap(hosts) - 1 {
			require.Same(t, first, <-hosts)
		}
		require.Equal(t, 1, opened)
		again, err := c.Launch(background, "orders", opener("another"))
		require.NoError(t, err)
		require.Same(t, first, again)
		require.Equal(t, []string{"orders"}, c.Keys())
		require.NoError(t, c.Exit(background))
		require.Equal(t, lifecycle.Exited, first.Status().State)
		require.Empty(t, c.Keys())
	})
}

func TestALaunchDuringAnExitWaitsForItsEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		s := &script{onClose: func() error { time.Sleep(time.Minute); return nil }}
		old, err := c.Launch(background, "orders", func(context.Context) (*lifecycle.Host, error) {
			return lifecycle.New(s, lifecycle.Options{}), nil
		})
		require.NoError(t, err)
		go func() { require.NoError(t, c.ExitHost(background, "orders")) }()
		synctest.Wait()
		same, err := c.Host("orders")
		require.NoError(t, err)
		require.Same(t, old, same, "it stays registered until the exit has ended")
		_, err = c.Launch(within(t, time.Second), "orders", opener("too early"))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		h, err := c.Launch(background, "orders", func(context.Context) (*lifecycle.Host, error) {
			_, _, closes := s.counts()
			require.Equal(t, 1, closes)
			return opener("new")(background)
		})
		require.NoError(t, err)
		require.NotSame(t, old, h)
		<-old.Done()
		require.NoError(t, c.ExitHost(background, "orders"))
		require.NoError(t, c.ExitHost(background, "orders"), "of an unknown key: nil")
		require.NoError(t, c.ForceExitHost(background, "orders"))
		require.NoError(t, c.Exit(background))
	})
}

func TestAHostThatFailsByItselfLeavesTheRegistryWhenItsExitHasEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		h, err := c.Launch(background, "orders", opener("orders"))
		require.NoError(t, err)
		release := make(chan struct{})
		require.NoError(t, h.Go("stuck", stubborn(release)))
		h.Fail(errors.New("lease lost"))
		synctest.Wait()
		require.Equal(t, []string{"orders"}, c.Keys())
		close(release)
		<-h.Done()
		require.Empty(t, c.Keys())
		require.NoError(t, c.Exit(background), "it left before")
	})
}

func TestALaunchThatFailsIsTakenBack(t *testing.T) {
	boom := errors.New("no such directory")
	for name, c := range map[string]struct {
		open func(h *lifecycle.Host) (*lifecycle.Host, error)
		is   error
		made bool
	}{
		"error":              {func(*lifecycle.Host) (*lifecycle.Host, error) { return nil, boom }, boom, false},
		"error beside host":  {func(h *lifecycle.Host) (*lifecycle.Host, error) { return h, boom }, boom, true},
		"panic":              {func(*lifecycle.Host) (*lifecycle.Host, error) { panic(boom) }, boom, false},
		"goexit":             {func(*lifecycle.Host) (*lifecycle.Host, error) { runtime.Goexit(); return nil, nil }, lifecycle.ErrGoexit, false},
		"nothing":            {func(*lifecycle.Host) (*lifecycle.Host, error) { return nil, nil }, lifecycle.ErrInvalid, false},
		"a host that exits":  {func(h *lifecycle.Host) (*lifecycle.Host, error) { h.Fail(boom); return h, nil }, boom, true},
		"host exited before": {func(h *lifecycle.Host) (*lifecycle.Host, error) { h.Fail(boom); <-h.Done(); return h, nil }, boom, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				controller := newController()
				s := &script{onClose: func() error { time.Sleep(time.Second); return nil }}
				h := lifecycle.New(s, lifecycle.Options{})
				_, err := controller.Launch(background, "orders", func(context.Context) (*lifecycle.Host, error) { return c.open(h) })
				require.ErrorIs(t, err, c.is)
				require.ErrorContains(t, err, `Launch "orders"`)
				var caught *lifecycle.PanicError
				require.Equal(t, name == "panic" || name == "goexit", errors.As(err, &caught))
				require.Empty(t, controller.Keys())
				if c.made {
					require.Equal(t, lifecycle.Exited, h.Status().State, "exited before Launch returns")
				}
				_, err = controller.Launch(background, "orders", opener("again"))
				require.NoError(t, err)
				require.NoError(t, controller.Exit(background))
				_ = h.Exit(background)
			})
		})
	}
}

func TestLaunchReturnsWhenItsContextEndsThoughTheWayBackHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		release := make(chan struct{})
		begin := time.Now()
		_, err := c.Launch(within(t, time.Second), "orders", func(ctx context.Context) (*lifecycle.Host, error) {
			h := lifecycle.New(nil, lifecycle.Options{})
			_ = h.Go("stuck", stubborn(release))
			return h, errors.New("failed half-way")
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begin))
		_, err = c.Launch(within(t, time.Second), "orders", opener("too early"))
		require.ErrorIs(t, err, context.DeadlineExceeded, "the key is not free yet")
		close(release)
		_, err = c.Launch(background, "orders", opener("next"))
		require.NoError(t, err)
		require.NoError(t, c.Exit(background))
	})
}

func TestThoseWhoWaitForALeaderWhoseContextEndedTryAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		var given *lifecycle.Host
		go func() {
			_, err := c.Launch(within(t, time.Second), "orders", func(ctx context.Context) (*lifecycle.Host, error) {
				<-ctx.Done()
				given = lifecycle.New(nil, lifecycle.Options{})
				return given, nil // it comes too late for its leader
			})
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}()
		synctest.Wait()
		h, err := c.Launch(background, "orders", opener("second"))
		require.NoError(t, err)
		require.NotSame(t, given, h)
		require.Equal(t, lifecycle.Exited, given.Status().State, "nobody wanted it")
		require.NoError(t, c.Exit(background))
	})
}

func TestTheControllersExitBeginsAllAtOnceAndOneStuckHostDelaysNoOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		release := make(chan struct{})
		var hosts []*lifecycle.Host
		for i := range 10 {
			h, err := c.Launch(background, fmt.Sprint("db", i), opener(fmt.Sprint("db", i)))
			require.NoError(t, err)
			hosts = append(hosts, h)
			if i == 3 {
				require.NoError(t, h.Go("stuck", stubborn(release)))
			}
			if i == 5 {
				require.NoError(t, h.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { return errors.New("gauge stuck") }))
			}
		}
		err := c.Exit(within(t, time.Second))
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, "db3", exit.Host)
		require.Equal(t, "stuck", exit.Stragglers[0].Name)
		require.Contains(t, exit.Stragglers[0].Stack, "stubborn")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		<-c.Exiting()
		for i, h := range hosts {
			require.Equal(t, i != 3, h.Status().State == lifecycle.Exited)
		}
		_, err = c.Launch(background, "new", opener("new"))
		require.ErrorIs(t, err, lifecycle.ErrExiting)
		_, err = c.Launch(background, "db1", opener("new"))
		require.ErrorIs(t, err, lifecycle.ErrExiting)
		close(release)
		err = c.Exit(background)
		require.ErrorContains(t, err, "gauge stuck")
		require.ErrorContains(t, err, `host "db5"`)
		require.Equal(t, err, c.Exit(expired()), "one run, one result")
		require.Equal(t, err, c.ForceExit(background))
		<-c.Done()
	})
}

func TestALaunchUnderWayWhenTheExitBeginsEndsInARefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		s := &script{}
		go func() {
			_, err := c.Launch(background, "orders", func(ctx context.Context) (*lifecycle.Host, error) {
				<-ctx.Done()
				require.ErrorIs(t, context.Cause(ctx), lifecycle.ErrExiting)
				time.Sleep(time.Minute)
				return lifecycle.New(s, lifecycle.Options{}), nil
			})
			require.ErrorIs(t, err, lifecycle.ErrExiting)
		}()
		synctest.Wait()
		err := c.Exit(within(t, time.Second))
		var exit *lifecycle.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, "launch", exit.Stragglers[0].Name)
		require.NoError(t, c.Exit(background))
		_, _, closes := s.counts()
		require.Equal(t, 1, closes, "no host is left running")
	})
}

func TestExitHostOfALaunchingKeyWaitsForTheLaunch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		go func() {
			_, _ = c.Launch(background, "orders", func(context.Context) (*lifecycle.Host, error) {
				time.Sleep(time.Minute)
				return opener("orders")(background)
			})
		}()
		synctest.Wait()
		begin := time.Now()
		require.NoError(t, c.ExitHost(background, "orders"))
		require.Equal(t, time.Minute, time.Since(begin))
		require.Empty(t, c.Keys())

		for _, exitHost := range []func(context.Context, string) error{c.ExitHost, c.ForceExitHost} {
			var h *lifecycle.Host
			go func() {
				h, _ = c.Launch(background, "orders", func(context.Context) (*lifecycle.Host, error) {
					time.Sleep(time.Minute)
					return opener("orders")(background)
				})
			}()
			synctest.Wait()
			require.ErrorIs(t, exitHost(expired(), "orders"), context.Canceled)
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			require.Equal(t, lifecycle.Exited, h.Status().State, "a context that is done still begins the exit")
		}
		require.NoError(t, c.Exit(background))
	})
}

func TestForceExitOfAControllerLeavesBehindHostsTasksAndLaunches(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		release := make(chan struct{})
		s := &script{}
		for i := range 3 {
			h, err := c.Launch(background, fmt.Sprint("db", i), opener(fmt.Sprint("db", i)))
			require.NoError(t, err)
			require.NoError(t, h.Go("stuck", stubborn(release)))
		}
		refused := make(chan error, 1)
		go func() {
			_, err := c.Launch(background, "slow", func(context.Context) (*lifecycle.Host, error) {
				<-release
				return lifecycle.New(s, lifecycle.Options{}), nil
			})
			refused <- err
		}()
		synctest.Wait()
		begin := time.Now()
		err := c.ForceExit(background)
		require.Equal(t, lifecycle.ForceGrace, time.Since(begin), "all at once")
		require.ErrorIs(t, err, lifecycle.ErrForced)
		require.Len(t, err.(interface{ Unwrap() []error }).Unwrap(), 4)
		require.ErrorContains(t, err, `"slow"`)
		close(release)
		require.ErrorIs(t, <-refused, lifecycle.ErrExiting)
		synctest.Wait()
		_, _, closes := s.counts()
		require.Equal(t, 1, closes, "what it returned later was exited")
	})
}

func TestTheControllerRefusesSelfWaitsAndBadArguments(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newController()
		var noContext context.Context
		_, err := c.Launch(noContext, "x", opener("x"))
		require.ErrorIs(t, err, lifecycle.ErrInvalid)
		_, err = c.Launch(background, "x", nil)
		require.ErrorIs(t, err, lifecycle.ErrInvalid)
		for _, err := range []error{c.Exit(noContext), c.ForceExit(noContext), c.ExitHost(noContext, "x"), c.ForceExitHost(noContext, "x")} {
			require.ErrorIs(t, err, lifecycle.ErrInvalid)
		}
		_, err = c.Launch(expired(), "x", opener("x"))
		require.ErrorIs(t, err, context.Canceled)

		h, err := c.Launch(background, "orders", func(ctx context.Context) (*lifecycle.Host, error) {
			require.ErrorIs(t, c.Exit(ctx), lifecycle.ErrSelfExit)
			require.ErrorIs(t, c.ForceExit(ctx), lifecycle.ErrSelfExit)
			require.ErrorIs(t, c.ExitHost(ctx, "orders"), lifecycle.ErrSelfExit)
			_, err := c.Launch(ctx, "orders", opener("inner"))
			require.ErrorIs(t, err, lifecycle.ErrSelfExit)
			_, err = c.Launch(ctx, "another", opener("another"))
			require.NoError(t, err)
			return opener("orders")(ctx)
		})
		require.NoError(t, err)
		done := make(chan struct{})
		require.NoError(t, h.Go("task", func(ctx context.Context) error {
			defer close(done)
			require.ErrorIs(t, c.Exit(ctx), lifecycle.ErrSelfExit)
			require.ErrorIs(t, c.ForceExit(ctx), lifecycle.ErrSelfExit)
			require.ErrorIs(t, c.ExitHost(ctx, "orders"), lifecycle.ErrSelfExit)
			return c.ExitHost(ctx, "another")
		}))
		<-done
		require.Equal(t, lifecycle.Running, h.Status().State)
		require.NoError(t, c.Exit(background))
	})
}

// The parent's stragglers contain those of the children that its hooks wait for.
func TestAParentsStragglersContainItsChildrens(t *testing.T) {
	bubble(t, func(t *testing.T) {
		parent := lifecycle.New(nil, lifecycle.Options{Name: "server"})
		c := newController()
		release := make(chan struct{})
		child, err := c.Launch(background, "orders", opener("orders"))
		require.NoError(t, err)
		require.NoError(t, child.Go("cleanup", stubborn(release)))
		require.NoError(t, parent.OnExit(lifecycle.PhaseExitModule, "databases", c.Exit))
		var exit *lifecycle.ExitError
		require.ErrorAs(t, parent.Exit(within(t, time.Second)), &exit)
		names := []string{exit.Stragglers[0].Name, exit.Stragglers[1].Name}
		slices.Sort(names)
		require.Equal(t, []string{"databases", "orders/cleanup"}, names)
		i := slices.IndexFunc(exit.Stragglers, func(s lifecycle.Straggler) bool { return s.Kind == "task" })
		require.Contains(t, exit.Stragglers[i].Stack, "stubborn")
		close(release)
		require.NoError(t, parent.Exit(background))
	})
}

func TestHostsThatWaitForEachOtherAreReportedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a := lifecycle.New(nil, lifecycle.Options{Name: "a"})
		b := lifecycle.New(nil, lifecycle.Options{Name: "b"})
		// Contexts that carry the hooks' marks but not their host's, so that neither is refused.
		require.NoError(t, a.OnExit(lifecycle.PhaseRelease, "exit b", func(ctx context.Context) error { return b.Exit(ctx) }))
		require.NoError(t, b.OnExit(lifecycle.PhaseRelease, "exit a", func(ctx context.Context) error { return a.Exit(ctx) }))
		var exit *lifecycle.ExitError
		require.ErrorAs(t, a.Exit(within(t, time.Second)), &exit)
		require.Len(t, exit.Stragglers, 2)
		require.Error(t, a.ForceExit(background))
		require.Error(t, b.ForceExit(background))
	})
}

func TestNoKeyEverHasTwoHostsHoweverLaunchesAndExitsRace(t *testing.T) {
	// In bubbles: a forced exit leaves behind a log that the machine has not let close
	// within ForceGrace, and then the next host may meet it.
	rounds := 40
	for range rounds {
		bubble(t, func(t *testing.T) {
			c := lifecycle.NewController[int](lifecycle.ControllerOptions{})
			var open [4]atomic.Int32
			var group sync.WaitGroup
			for range 8 {
				group.Go(func() {
					for range 50 {
						key := rand.IntN(len(open))
						switch rand.IntN(6) {
						case 0:
							_ = c.ExitHost(background, key)
						case 1:
							_ = c.ForceExitHost(expired(), key)
						case 2:
							if h, err := c.Host(key); err == nil {
								h.Fail(errors.New("by itself"))
							}
						default:
							ctx, cancel := context.WithCancel(background)
							if rand.IntN(4) == 0 {
								go cancel()
							}
							_, err := c.Launch(ctx, key, func(context.Context) (*lifecycle.Host, error) {
								if open[key].Add(1) != 1 {
									t.Error("two hosts hold one log")
								}
								s := &script{onClose: func() error { open[key].Add(-1); return nil }}
								h := lifecycle.New(s, lifecycle.Options{})
								if rand.IntN(5) == 0 {
									return h, errors.New("half-way")
								}
								return h, nil
							})
							_ = err
							cancel()
						}
					}
				})
			}
			if rand.IntN(2) == 0 {
				group.Go(func() { _ = c.Exit(background) })
			}
			group.Wait()
			_ = c.Exit(background)
			for key := range open {
				require.Zero(t, open[key].Load(), "a host was left running")
			}
		})
	}
}

func TestTheControllerLogsWhatBecomesOfLaunchesWhateverItsHandlerDoes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		c := lifecycle.NewController[string](lifecycle.ControllerOptions{Logger: slog.New(handler(func() { j.add("record"); panic("handler") }))})
		h, err := c.Launch(background, "orders", opener("orders"))
		require.NoError(t, err)
		require.Equal(t, []*lifecycle.Host{h}, c.Hosts())
		_, err = c.Launch(background, "broken", func(context.Context) (*lifecycle.Host, error) { return nil, errors.New("no such directory") })
		require.Error(t, err)
		require.Equal(t, []string{"record", "record"}, j.all())
		require.NoError(t, c.Exit(background))
		require.Empty(t, c.Hosts())
	})
}
