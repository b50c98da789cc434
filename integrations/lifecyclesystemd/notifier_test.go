package lifecyclesystemd

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

// systemd keeps what it is told, and when, in the time of a bubble.
type systemd struct {
	mu    sync.Mutex
	start time.Time
	got   []string // "5s READY=1", without STATUS lines
	texts []string
	err   error         // that every message meets
	takes time.Duration // that every message does
}

func newSystemd() *systemd { return &systemd{start: time.Now()} }

func (s *systemd) send(message string) error {
	time.Sleep(s.takes)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	for line := range strings.SplitSeq(message, "\n") {
		if text, ok := strings.CutPrefix(line, "STATUS="); ok {
			s.texts = append(s.texts, text)
			continue
		}
		s.got = append(s.got, time.Since(s.start).String()+" "+line)
	}
	return nil
}

// take returns what has come since the last take.
func (s *systemd) take() (got []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got, s.got = s.got, nil
	return got
}

func (s *systemd) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// begun returns a Notifier of src with looks at full seconds, after its READY.
func begun(t *testing.T, s *systemd, src Source) *Notifier {
	t.Helper()
	n, err := start(src, Options{Still: 30 * time.Second}, s.send, 0)
	require.NoError(t, err)
	told, err := n.Ready("serving")
	require.NoError(t, err)
	require.True(t, told)
	require.Equal(t, []string{"0s READY=1"}, s.take())
	return n
}

// settle lets two looks pass. The first may have come before an exit was where it
// stands still.
func settle(s *systemd) {
	time.Sleep(2 * time.Second)
	synctest.Wait()
	s.take()
}

const extend = " EXTEND_TIMEOUT_USEC=30000000"

func TestSystemdHearsReadyThenStoppingThenExtensionsOnlyWhileThereIsProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
		s := newSystemd()
		n := begun(t, s, h)
		var calls []lifecycle.Call
		for range 3 {
			call, err := h.Enter()
			require.NoError(t, err)
			calls = append(calls, call)
		}
		stuck := make(chan struct{})
		require.NoError(t, h.Go("stuck", func(context.Context) error { <-stuck; return nil }))
		time.Sleep(time.Hour)
		require.Empty(t, s.take(), "a service that runs asks for time")

		h.Fail(nil)
		synctest.Wait()
		require.Equal(t, []string{"1h0m0s STOPPING=1"}, s.take())
		time.Sleep(10 * time.Second)
		require.Empty(t, s.take(), "an exit that stands still asks for time")

		for _, call := range calls { // at 1h0m11.3s, 12.6s and 13.9s
			time.Sleep(1300 * time.Millisecond)
			call.Leave()
		}
		time.Sleep(4600 * time.Millisecond)
		require.Equal(t, []string{"1h0m12s" + extend, "1h0m13s" + extend, "1h0m14s" + extend}, s.take())
		time.Sleep(time.Hour) // and nobody moves
		require.Empty(t, s.take(), "an exit that stands still asks for time")
		require.Equal(t, []string{
			"serving",
			"exiting: exit module, 3 calls, 1 task",
			"exiting: exit module, 2 calls, 1 task",
			"exiting: exit module, 1 call, 1 task",
			"exiting: await tasks, 1 task",
		}, s.texts)
		close(stuck)
		require.NoError(t, h.Exit(t.Context()))
		require.NoError(t, n.Wait())
	})
}

// Each step of a kind happens between two looks, and nothing else does.
func TestEachKindOfProgressIsSeenOnceAndNothingElseIs(t *testing.T) {
	type world struct {
		host  *lifecycle.Host
		log   *lifecycletest.Log
		n     *Notifier
		steps []func() // each is a progress; the exit ends with the last
	}
	gates := func(w *world, n int) []chan struct{} {
		all := make([]chan struct{}, n)
		for i := range all {
			all[i] = make(chan struct{})
			w.steps = append(w.steps, func() { close(all[i]) })
		}
		return all
	}
	for name, prepare := range map[string]func(t *testing.T, w *world){
		"calls that leave": func(t *testing.T, w *world) {
			for range 3 {
				call, err := w.host.Enter()
				require.NoError(t, err)
				w.steps = append(w.steps, call.Leave)
			}
		},
		"tasks that end": func(t *testing.T, w *world) {
			for _, gate := range gates(w, 3) {
				require.NoError(t, w.host.Go("task", func(context.Context) error { <-gate; return nil }))
			}
		},
		"hooks that end, of one phase": func(t *testing.T, w *world) {
			all := gates(w, 4)
			for i := range all { // last registered first
				gate := all[len(all)-1-i]
				require.NoError(t, w.host.OnExit(lifecycle.PhaseCheckpoint, "hook", func(context.Context) error { <-gate; return nil }))
			}
		},
		"phases": func(t *testing.T, w *world) {
			for i, gate := range gates(w, 3) {
				p := []lifecycle.Phase{lifecycle.PhaseExitModule, lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease}[i]
				require.NoError(t, w.host.OnExit(p, "hook", func(context.Context) error { <-gate; return nil }))
			}
		},
		"batches that become durable": func(t *testing.T, w *world) {
			call, err := w.host.Enter() // it appends during the exit, too
			require.NoError(t, err)
			appendOne := func() {
				_, err := w.host.Durability().Append(t.Context(), []byte("tx"))
				require.NoError(t, err)
			}
			_, releaseFirst := w.log.BlockAt(lifecycletest.Sync, 1)
			_, releaseSecond := w.log.BlockAt(lifecycletest.Sync, 2)
			appendOne()
			synctest.Wait() // the first batch is on its way
			appendOne()
			w.steps = append(w.steps, releaseFirst, releaseSecond, call.Leave)
		},
		"marks": func(t *testing.T, w *world) {
			call, err := w.host.Enter()
			require.NoError(t, err)
			w.steps = append(w.steps, w.n.Progress, w.n.Progress, call.Leave)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &lifecycletest.Log{}
				w := &world{host: lifecycle.New(log, lifecycle.Options{}), log: log}
				s := newSystemd()
				w.n = begun(t, s, w.host)
				prepare(t, w)
				time.Sleep(100 * time.Millisecond) // looks are between steps
				w.host.Fail(nil)
				synctest.Wait()
				require.Equal(t, []string{"100ms STOPPING=1"}, s.take())
				settle(s)
				for i, step := range w.steps {
					time.Sleep(30 * time.Second)
					synctest.Wait()
					require.Empty(t, s.take(), "before step %d", i)
					step()
					if i == len(w.steps)-1 {
						break
					}
					time.Sleep(time.Second)
					synctest.Wait()
					require.Len(t, s.take(), 1, "step %d", i)
				}
				require.NoError(t, w.host.Exit(t.Context()))
				require.NoError(t, w.n.Wait())
			})
		})
	}
}

func TestAControllersExitMovesWhileOneOfItsHostsDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := lifecycle.NewController[int](lifecycle.ControllerOptions{})
		s := newSystemd()
		n := begun(t, s, c)
		gates := map[int]chan struct{}{}
		launch := func(key int) *lifecycle.Host {
			h, err := c.Launch(t.Context(), key, func(context.Context) (*lifecycle.Host, error) {
				return lifecycle.New(nil, lifecycle.Options{Name: "the same name"}), nil
			})
			require.NoError(t, err)
			gate := make(chan struct{})
			gates[key] = gate
			require.NoError(t, h.Go("task", func(context.Context) error { <-gate; return nil }))
			return h
		}
		first := launch(1)
		close(gates[1])
		require.NoError(t, first.Exit(t.Context()))
		for key := range 3 {
			launch(key) // one again under its name
		}
		time.Sleep(time.Minute)
		require.Empty(t, s.take(), "the exit of a host is taken for that of the service")

		exited := make(chan error, 1)
		go func() { exited <- c.Exit(context.Background()) }()
		synctest.Wait()
		require.Equal(t, []string{"1m0s STOPPING=1"}, s.take())
		settle(s)
		for key := range 2 {
			time.Sleep(time.Minute)
			synctest.Wait()
			require.Empty(t, s.take())
			close(gates[key])
			time.Sleep(1500 * time.Millisecond)
			synctest.Wait()
			require.Len(t, s.take(), 1)
		}
		s.mu.Lock()
		require.Equal(t, "exiting: await tasks, 1 of 3 hosts left, 1 task", s.texts[len(s.texts)-1])
		s.mu.Unlock()
		time.Sleep(time.Hour) // the third is stuck
		require.Empty(t, s.take())
		close(gates[2])
		require.NoError(t, <-exited)
		require.NoError(t, n.Wait())
	})
}

func TestAMessageThatIsNotToldKeepsNoExitWaitingAndStoppingIsToldLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		s := newSystemd()
		n := begun(t, s, h)
		full := errors.New("full")
		s.fail(full)
		call, err := h.Enter()
		require.NoError(t, err)
		h.Fail(nil)
		time.Sleep(2500 * time.Millisecond)
		require.Empty(t, s.take())
		call.Leave()
		require.NoError(t, h.Exit(t.Context()))
		require.ErrorIs(t, n.Wait(), full)
		require.ErrorContains(t, n.Wait(), "3 messages, the first STOPPING=1: full")

		h = lifecycle.New(nil, lifecycle.Options{})
		s = newSystemd()
		n = begun(t, s, h)
		call, err = h.Enter()
		require.NoError(t, err)
		s.fail(full)
		h.Fail(nil)
		time.Sleep(2500 * time.Millisecond)
		s.fail(nil)
		time.Sleep(time.Second)
		require.Equal(t, []string{"3s STOPPING=1"}, s.take())
		call.Leave()
		require.NoError(t, h.Exit(t.Context()))
		require.ErrorContains(t, n.Wait(), "was not told 3 messages")
	})
}

func TestAnExitDoesNotWaitForASlowSystemd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		s := newSystemd()
		s.takes = time.Minute
		n, err := start(h, Options{}, s.send, time.Second)
		require.NoError(t, err)
		begin := time.Now()
		require.NoError(t, h.Exit(t.Context()))
		require.Zero(t, time.Since(begin))
		require.NoError(t, n.Wait())
		require.Equal(t, time.Minute, time.Since(begin))
	})
}

func TestOnceTheExitHasBegunReadyAndStatusAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		s := newSystemd()
		n := begun(t, s, h)
		told, err := n.Status("two\nlines, and WATCHDOG=trigger\x00" + strings.Repeat("é", 1000))
		require.NoError(t, err)
		require.True(t, told)
		require.Empty(t, s.take())
		require.Equal(t, "two lines, and WATCHDOG=trigger "+strings.Repeat("é", 484)+"…", s.texts[1])
		call, err := h.Enter()
		require.NoError(t, err)
		h.Fail(nil)
		for range 2 {
			told, err = n.Ready("")
			require.ErrorIs(t, err, lifecycle.ErrExiting)
			require.False(t, told)
			_, err = n.Status("")
			require.ErrorIs(t, err, lifecycle.ErrExiting)
			call.Leave()
			call = lifecycle.Call{}
			require.NoError(t, h.Exit(t.Context()))
		}
		require.NoError(t, n.Wait())
		require.NotContains(t, s.take(), "0s READY=1")
	})
}

func TestTheWatchdogIsFedWhileTransactionsBecomeDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lifecycletest.Log{}
		h := lifecycle.New(log, lifecycle.Options{})
		s := newSystemd()
		n, err := start(h, Options{}, s.send, 20*time.Second)
		require.NoError(t, err)
		time.Sleep(35 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"5s WATCHDOG=1", "10s WATCHDOG=1", "15s WATCHDOG=1", "20s WATCHDOG=1", "25s WATCHDOG=1", "30s WATCHDOG=1", "35s WATCHDOG=1"}, s.take())

		// A disk that hangs from second 35 on.
		_, release := log.BlockAt(lifecycletest.Sync, 1)
		for range 3 {
			_, err := h.Durability().Append(t.Context(), []byte("tx"))
			require.NoError(t, err)
		}
		time.Sleep(32 * time.Second)
		require.Equal(t, []string{"40s WATCHDOG=1", "45s WATCHDOG=1"}, s.take())
		release()
		time.Sleep(4 * time.Second)
		require.Equal(t, []string{"1m10s WATCHDOG=1"}, s.take())

		call, err := h.Enter()
		require.NoError(t, err)
		h.Fail(nil)
		time.Sleep(time.Minute)
		require.Equal(t, []string{"1m11s STOPPING=1"}, s.take(), "systemd's watchdog ends with STOPPING")
		call.Leave()
		require.NoError(t, h.Exit(t.Context()))
		require.NoError(t, n.Wait())
	})
}

func TestAStallShorterThanTheWatchdogPassesAndOneWithoutEndIsKilledInTime(t *testing.T) {
	const watchdog = 20 * time.Second
	for at := time.Duration(1); at < watchdog; at += 700 * time.Millisecond {
		for _, stall := range []time.Duration{11 * time.Second, 12 * time.Second, watchdog - 1, 10 * watchdog} {
			synctest.Test(t, func(t *testing.T) {
				h := lifecycle.New(&slowLog{sync: stall}, lifecycle.Options{})
				last, longest, feeds := time.Now(), time.Duration(0), 0
				n, err := start(h, Options{}, func(message string) error {
					if message == "WATCHDOG=1" {
						longest, last, feeds = max(longest, time.Since(last)), time.Now(), feeds+1
					}
					return nil
				}, watchdog)
				require.NoError(t, err)
				time.Sleep(at)
				stopped := time.Now()
				_, err = h.Durability().Append(t.Context(), []byte("tx"))
				require.NoError(t, err)
				time.Sleep(3 * watchdog)
				require.NoError(t, h.Exit(t.Context()))
				require.NoError(t, n.Wait()) // what the func has kept may be read from here on
				if stall > watchdog {
					killed := last.Add(watchdog).Sub(stopped)
					require.GreaterOrEqual(t, killed, watchdog*5/4, "a stall from %v on", at)
					require.LessOrEqual(t, killed, watchdog*6/4, "a stall from %v on", at)
				} else {
					require.Less(t, longest, watchdog, "a stall of %v from %v on", stall, at)
					require.NotZero(t, feeds)
				}
			})
		}
	}
}

// slowLog takes its time.
type slowLog struct {
	lifecycletest.Log
	sync time.Duration
}

func (l *slowLog) Sync() error {
	time.Sleep(l.sync)
	return l.Log.Sync()
}

func TestTheWatchdogIsFedWhileALogIsSlowAndAlwaysBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(&slowLog{sync: 9 * time.Second}, lifecycle.Options{})
		s := newSystemd()
		n, err := start(h, Options{}, s.send, 20*time.Second)
		require.NoError(t, err)
		for range 44 {
			time.Sleep(time.Second)
			_, err := h.Durability().Append(t.Context(), []byte("tx"))
			require.NoError(t, err)
		}
		require.Len(t, s.take(), 8)
		require.NoError(t, h.Exit(t.Context()))
		require.NoError(t, n.Wait())
	})
}

func TestAHostThatExitsDoesNotStarveTheWatchdogOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lifecycletest.Log{}
		_, release := log.BlockAt(lifecycletest.Sync, 1)
		c := lifecycle.NewController[string](lifecycle.ControllerOptions{})
		h, err := c.Launch(t.Context(), "a", func(context.Context) (*lifecycle.Host, error) {
			return lifecycle.New(log, lifecycle.Options{}), nil
		})
		require.NoError(t, err)
		s := newSystemd()
		n, err := start(c, Options{}, s.send, 20*time.Second)
		require.NoError(t, err)
		_, err = h.Durability().Append(t.Context(), []byte("tx"))
		require.NoError(t, err)
		h.Fail(nil)
		time.Sleep(41 * time.Second)
		require.Len(t, s.take(), 8)
		release()
		require.NoError(t, c.Exit(t.Context()))
		require.NoError(t, n.Wait())
	})
}

func TestALookAsksFewReportsOfManyHostsThatAreStuckEachInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p progress
		var hosts []*lifecycle.Host
		gates := make([]chan struct{}, 3*maxReports)
		for i := range gates {
			gates[i] = make(chan struct{})
			h := lifecycle.New(nil, lifecycle.Options{})
			require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "last", func(context.Context) error { <-gates[0]; return nil }))
			require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "first", func(context.Context) error { <-gates[i]; return nil }))
			h.Fail(nil)
			hosts = append(hosts, h)
		}
		synctest.Wait()
		require.True(t, p.look(hosts, 0), "they are new")
		require.False(t, p.look(hosts, 0))
		asked := p.asks
		require.EqualValues(t, maxReports, asked)
		for range 2 { // the others' turns
			require.False(t, p.look(hosts, 0))
			asked += maxReports
			require.Equal(t, asked, p.asks)
		}
		for _, i := range []int{1, 2 * maxReports} { // each is seen within three looks
			close(gates[i])
			synctest.Wait()
			var moved []bool
			for range 3 {
				moved = append(moved, p.look(hosts, 0))
			}
			seen := 0
			for _, m := range moved {
				if m {
					seen++
				}
			}
			require.Equal(t, 1, seen, "looks after the hook of host %d has ended: %v", i, moved)
		}
		require.Equal(t, asked+6*maxReports, p.asks)
		for i, gate := range gates {
			if i != 1 && i != 2*maxReports {
				close(gate)
			}
		}
		for _, h := range hosts {
			require.NoError(t, h.Exit(t.Context()))
		}
		require.True(t, p.look(hosts, 0))
		require.False(t, p.look(hosts, 0))
		require.Equal(t, "exiting", p.text())
	})
}

func TestWhatCantBeMeantIsRefusedByStart(t *testing.T) {
	h := lifecycle.New(nil, lifecycle.Options{})
	for name, test := range map[string]struct {
		src  Source
		opts Options
	}{
		"nothing":       {nil, Options{}},
		"a nil host":    {(*lifecycle.Host)(nil), Options{}},
		"a nil pointer": {(*lifecycle.Controller[string])(nil), Options{}},
		"no hosts":      {struct{ Source }{h}, Options{}},
		"too short":     {h, Options{Still: time.Millisecond}},
		"negative":      {h, Options{Still: -time.Hour}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", "")
			_, err := Start(test.src, test.opts)
			require.ErrorIs(t, err, lifecycle.ErrInvalid)
		})
	}
	t.Setenv("NOTIFY_SOCKET", "vsock:2:1234")
	_, err := Start(h, Options{})
	require.ErrorIs(t, err, lifecycle.ErrInvalid)
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	t.Setenv("WATCHDOG_USEC", "often")
	_, err = Start(h, Options{})
	require.ErrorIs(t, err, lifecycle.ErrInvalid)
	require.NoError(t, h.Exit(t.Context()))
}
