package lifecycle_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

// The storms: round after round of one host that exits while everything else goes
// on, with chance in every step. A failure prints the seed. LIFECYCLE_SEED=n plays
// the rounds of that seed again, with the same choices; the schedule stays the
// machine's.

const stormLasts = 800 * time.Millisecond

// storm plays rounds for a while. Each gets a source of chance of its own.
func storm(t *testing.T, play func(t *testing.T, rng *rand.Rand)) {
	seed := rand.Uint64()
	if s := os.Getenv("LIFECYCLE_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("LIFECYCLE_SEED=%d", seed)
	before := hostGoroutines()
	n := uint64(0)
	defer func() {
		if t.Failed() {
			t.Logf("in round %d", n)
		}
	}()
	for end := time.Now().Add(stormLasts); n == 0 || time.Now().Before(end); n++ {
		play(t, rand.New(rand.NewPCG(seed, n)))
		if t.Failed() {
			return
		}
	}
	t.Logf("%d rounds", n)
	for range 1000 {
		if hostGoroutines() <= before {
			return
		}
		for range 100 {
			runtime.Gosched()
		}
	}
	t.Errorf("%d goroutines of hosts remain, %d before\n%s", hostGoroutines(), before, allStacks())
}

// bubbleStorm plays each round in a bubble, whose end fails if a goroutine is left
// or if all that are left wait for each other.
func bubbleStorm(t *testing.T, play func(t *testing.T, rng *rand.Rand)) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		synctest.Test(t, func(t *testing.T) { play(t, rng) })
	})
}

// hostGoroutines counts the goroutines that the library started or that are in it.
func hostGoroutines() int {
	n := 0
	for paragraph := range bytes.SplitSeq(allStacks(), []byte("\n\n")) {
		if bytes.Contains(paragraph, []byte("seed080d9131/lifecycle.(")) {
			n++
		}
	}
	return n
}

func allStacks() []byte {
	var all bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&all, 2)
	return all.Bytes()
}

func fork(rng *rand.Rand) *rand.Rand { return rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())) }

// dawdle lets others run, for a random moment.
func dawdle(rng *rand.Rand) {
	for range rng.IntN(5) {
		runtime.Gosched()
	}
}

func oneIn(rng *rand.Rand, n int) bool { return rng.IntN(n) == 0 }

// hurt returns an error, panics or calls Goexit.
func hurt(rng *rand.Rand, err error) error {
	switch rng.IntN(3) {
	case 0:
		panic(err)
	case 1:
		runtime.Goexit()
	}
	return err
}

// strictLog keeps what is written and notes every call that a Log must not get.
type strictLog struct {
	pause func()       // in every Append and Sync
	fails int          // the call of Append or Sync, from 1, that fails; 0: none
	fail  func() error // how

	busy atomic.Bool

	mu     sync.Mutex // guards what follows
	txs    [][]byte
	synced int
	calls  int
	failed bool
	closed bool
	broken []string
}

// enter checks that op may be called now, and reports whether it is to fail.
func (l *strictLog) enter(op string) (fail bool) {
	overlaps := !l.busy.CompareAndSwap(false, true)
	l.mu.Lock()
	defer l.mu.Unlock()
	if overlaps {
		l.broken = append(l.broken, op+" overlaps another call")
	}
	if l.closed {
		l.broken = append(l.broken, op+" after Close")
	}
	if op == "Close" {
		l.closed = true
		return false
	}
	if l.failed {
		l.broken = append(l.broken, op+" after an error")
	}
	l.calls++
	l.failed = l.failed || l.calls == l.fails
	return l.calls == l.fails
}

func (l *strictLog) Next() lifecycle.Offset { return 0 }

func (l *strictLog) Append(txs [][]byte) error {
	fail := l.enter("Append")
	defer l.busy.Store(false)
	l.mu.Lock()
	if len(txs) == 0 {
		l.broken = append(l.broken, "Append of nothing")
	}
	for i, tx := range txs {
		if fail && i > len(txs)/2 {
			break
		}
		l.txs = append(l.txs, bytes.Clone(tx))
	}
	l.mu.Unlock()
	l.dawdle()
	if fail {
		return l.fail()
	}
	return nil
}

func (l *strictLog) Sync() error {
	fail := l.enter("Sync")
	defer l.busy.Store(false)
	l.mu.Lock()
	n := len(l.txs)
	if n == l.synced {
		l.broken = append(l.broken, "Sync with nothing appended since the last")
	}
	l.mu.Unlock()
	l.dawdle()
	if fail {
		return l.fail()
	}
	l.mu.Lock()
	l.synced = n
	l.mu.Unlock()
	return nil
}

func (l *strictLog) Close() error {
	l.enter("Close")
	l.busy.Store(false)
	return nil
}

func (l *strictLog) dawdle() {
	if l.pause != nil {
		l.pause()
	}
}

// ledger is what was accepted, by all writers of a round.
type ledger struct {
	durability *lifecycle.Durability
	nextID     atomic.Uint64

	mu      sync.Mutex // guards what follows
	entries []entry
	broken  []string
}

type entry struct {
	offset  lifecycle.Offset
	tx      []byte
	pending lifecycle.Pending
	zero    bool // a Commit's: there is no Pending
	known   bool // a Commit's outcome is
	err     error
}

// tx makes a transaction like no other; some are empty of all but that.
func (l *ledger) tx(rng *rand.Rand) []byte {
	tx := binary.LittleEndian.AppendUint64(nil, l.nextID.Add(1))
	for range rng.IntN(40) {
		tx = append(tx, byte(rng.Uint32()))
	}
	return tx
}

func (l *ledger) append(ctx context.Context, rng *rand.Rand) (lifecycle.Pending, error) {
	tx := l.tx(rng)
	p, err := l.durability.Append(ctx, tx)
	if err == nil {
		l.keep(entry{offset: p.Offset(), tx: bytes.Clone(tx), pending: p})
	}
	clear(tx) // it was copied
	return p, err
}

func (l *ledger) commit(ctx context.Context, rng *rand.Rand) error {
	tx := l.tx(rng)
	offset, err := l.durability.Commit(ctx, tx)
	if err == nil || errors.Is(err, lifecycle.ErrUnknown) {
		l.keep(entry{offset: offset, tx: tx, zero: true, known: err == nil || ctx.Err() == nil, err: err})
	}
	return err
}

func (l *ledger) keep(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
}

func (l *ledger) breaks(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = append(l.broken, fmt.Sprintf(format, args...))
}

// check compares what the writers were told with the log, once the exit has ended.
// clean says that everything must be durable.
func (l *ledger) check(t *testing.T, log *strictLog, clean bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	log.mu.Lock()
	defer log.mu.Unlock()
	require.Empty(t, log.broken)
	require.Empty(t, l.broken)
	require.True(t, log.closed)
	accepted, durable := l.durability.Accepted(), l.durability.Durable()
	require.EqualValues(t, accepted, len(l.entries), "accepted, by the host and by the writers")
	require.LessOrEqual(t, durable, lifecycle.Offset(log.synced), "durable without a Sync")
	if clean {
		require.Equal(t, accepted, durable)
		require.EqualValues(t, accepted, len(log.txs))
		require.Len(t, log.txs, log.synced)
	}
	slices.SortFunc(l.entries, func(a, b entry) int { return int(a.offset) - int(b.offset) })
	done, cancel := context.WithCancel(t.Context())
	cancel()
	for i, e := range l.entries {
		require.EqualValues(t, i, e.offset, "offsets have no gaps and come once")
		if i < len(log.txs) {
			require.Equal(t, e.tx, log.txs[i], "transaction %d", i)
		}
		if !e.zero {
			select {
			case <-e.pending.Done():
			default:
				require.Fail(t, "no outcome", "transaction %d", i)
			}
			e.known, e.err = true, e.pending.Wait(done)
			require.Equal(t, e.err == nil, e.pending.Wait(done) == nil, "one outcome")
		}
		switch {
		case !e.known:
		case e.offset < durable:
			require.NoError(t, e.err, "transaction %d of %d durable", i, durable)
		default:
			require.ErrorIs(t, e.err, lifecycle.ErrUnknown, "transaction %d of %d durable", i, durable)
			require.NotErrorIs(t, e.err, context.Canceled)
		}
	}
}

// crowd is the goroutines of a round that are not the host's.
type crowd struct{ sync.WaitGroup }

// await waits for all, and gives up, with every stack, on what nobody ends.
func (c *crowd) await(t *testing.T) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		c.Wait()
	}()
	select {
	case <-gone:
	case <-patience(t).Done():
		t.Fatalf("a round does not end\n%s", allStacks())
	}
}

// patience is a context that ends when something must have gone wrong.
func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func queueBytes(rng *rand.Rand) int { return []int{0, 1, 100, 1000}[rng.IntN(4)] }

// work starts what a database runs: view cleanup, metrics, appenders, and clients
// that come and go. All writes must be taken until the host cancels, and view
// cleanup's even then. broken says that the log may fail, or the exit be forced.
func work(h *lifecycle.Host, l *ledger, clients *crowd, rng *rand.Rand, broken bool) {
	judge := func(who string, err error) error {
		if err != nil && !broken {
			l.breaks("%s: %v", who, err)
		}
		return err
	}
	cleanup := fork(rng)
	_ = h.Go("view cleanup", func(ctx context.Context) error {
		for ctx.Err() == nil {
			if judge("view cleanup", l.commit(context.WithoutCancel(ctx), cleanup)) != nil {
				break
			}
			dawdle(cleanup)
		}
		_, err := l.append(context.WithoutCancel(ctx), cleanup) // nobody waits for this one
		_ = judge("view cleanup, first of the last", err)
		_ = judge("view cleanup, last", l.commit(context.WithoutCancel(ctx), cleanup))
		return context.Cause(ctx)
	})
	disk := fork(rng)
	_ = h.Every("disk metrics", 20*time.Microsecond, func(ctx context.Context) error {
		_, err := l.append(context.WithoutCancel(ctx), disk)
		return judge("disk metrics", err)
	})
	for i := range 2 + rng.IntN(4) {
		own := fork(rng)
		_ = h.Go([]string{"tx metrics", "appender"}[i%2], func(ctx context.Context) error {
			for ctx.Err() == nil {
				var err error
				if oneIn(own, 3) {
					err = l.commit(ctx, own)
				} else {
					_, err = l.append(ctx, own)
				}
				if err != nil {
					if ctx.Err() == nil {
						_ = judge("appender", err)
					}
					return nil
				}
				dawdle(own)
			}
			return ctx.Err()
		})
	}
	for range rng.IntN(3) { // clients with a call
		own := fork(rng)
		clients.Go(func() {
			for {
				call, err := h.Enter()
				if err != nil {
					if !errors.Is(err, lifecycle.ErrExiting) {
						l.breaks("Enter: %v", err)
					}
					return
				}
				_, err = l.append(context.Background(), own)
				_ = judge("a client in a call", err)
				call.Leave()
				dawdle(own)
			}
		})
	}
	for range rng.IntN(3) { // and those that know no calls
		own := fork(rng)
		clients.Go(func() {
			for {
				p, err := l.append(context.Background(), own)
				if err != nil {
					if !errors.Is(err, lifecycle.ErrClosed) {
						l.breaks("Append: %v", err)
					}
					return
				}
				if oneIn(own, 4) {
					_ = judge("a client's Wait", p.Wait(context.Background()))
				}
				dawdle(own)
			}
		})
	}
}

func TestNoTaskEverWritesToAClosedLogHoweverItRacesWithExit(t *testing.T) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		pause := fork(rng)
		log := &strictLog{pause: func() { dawdle(pause) }}
		h := lifecycle.New(log, lifecycle.Options{QueueBytes: queueBytes(rng)})
		l := &ledger{durability: h.Durability()}
		var others crowd
		work(h, l, &others, rng, false)
		for range 2 + rng.IntN(6) {
			own, impatient, late := fork(rng), oneIn(rng, 3), rng.IntN(40)
			others.Go(func() {
				for range late {
					runtime.Gosched()
				}
				if impatient {
					ctx, cancel := context.WithCancel(context.Background())
					if oneIn(own, 2) {
						cancel()
					} else {
						go cancel()
					}
					err := h.Exit(ctx)
					var unended *lifecycle.ExitError
					if err != nil && !(errors.As(err, &unended) && errors.Is(err, context.Canceled) && unended.Phase != 0) {
						l.breaks("Exit whose context ended: %v", err)
					}
				}
				if err := h.Exit(patience(t)); err != nil {
					l.breaks("Exit: %v", err)
				}
			})
		}
		others.await(t)
		l.check(t, log, true)
		require.Equal(t, "clean", h.Report().Outcome)
	})
}

// spawned is one func that was given to Go or Every.
type spawned struct {
	admitted atomic.Bool
	every    bool
	called   atomic.Int32
	running  atomic.Int32
}

func TestARefusedFuncIsNeverCalledAndAnAdmittedOneReturnsBeforeTheSeal(t *testing.T) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		h := lifecycle.New(nil, lifecycle.Options{})
		var awaited atomic.Bool // every task, says the host
		var mu sync.Mutex       // guards what follows
		var all []*spawned
		var broken []string
		breaks := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			broken = append(broken, fmt.Sprintf(format, args...))
		}

		var spawn func(rng *rand.Rand, depth int) (admitted bool)
		spawn = func(rng *rand.Rand, depth int) bool {
			s, own := &spawned{every: oneIn(rng, 4)}, fork(rng)
			mu.Lock()
			all = append(all, s)
			mu.Unlock()
			run := func(ctx context.Context) error {
				if awaited.Load() {
					breaks("a func was called though all were awaited")
				}
				s.called.Add(1)
				if s.running.Add(1) > 1 {
					breaks("two ticks of one Every at a time")
				}
				defer s.running.Add(-1)
				for range own.IntN(3) {
					if depth > 0 {
						spawn(own, depth-1)
					}
					dawdle(own)
				}
				if !s.every && oneIn(own, 2) {
					<-ctx.Done()
					if depth > 0 && spawn(own, depth-1) {
						breaks("a task was admitted after the cancellation")
					}
				}
				dawdle(own)
				return nil
			}
			name := "task " + strconv.Itoa(own.IntN(300)) // groups come and go
			var err error
			if s.every {
				err = h.Every(name, time.Microsecond, run)
			} else {
				err = h.Go(name, run)
			}
			if err != nil && !errors.Is(err, lifecycle.ErrExiting) {
				breaks("refused with %v", err)
			}
			s.admitted.Store(err == nil)
			return err == nil
		}

		atTheSeal := func() {
			awaited.Store(true)
			mu.Lock()
			defer mu.Unlock()
			for _, s := range all {
				if s.running.Load() != 0 {
					broken = append(broken, "a task is alive though all were awaited")
				}
			}
			if n := len(h.Status().Tasks); n != 0 {
				broken = append(broken, fmt.Sprintf("%d tasks alive by Status", n))
			}
		}
		require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "look", func(context.Context) error {
			atTheSeal()
			return nil
		}))
		var others crowd
		// Half of the rounds are as short as can be: the exit, and one task that
		// slips in or not.
		spawns, depth := 60, 2
		if oneIn(rng, 2) {
			spawns, depth = 1, 0
		}
		for range 1 + rng.IntN(4) {
			own := fork(rng)
			others.Go(func() {
				for range spawns {
					if !spawn(own, depth) {
						return
					}
					dawdle(own)
				}
			})
		}
		for range 2 {
			late := rng.IntN(1 + 2*spawns)
			others.Go(func() {
				for range late {
					runtime.Gosched()
				}
				if err := h.Exit(patience(t)); err != nil {
					breaks("Exit: %v", err)
				}
			})
		}
		others.await(t)
		atTheSeal()
		mu.Lock()
		defer mu.Unlock()
		require.Empty(t, broken)
		for _, s := range all {
			switch called := s.called.Load(); {
			case !s.admitted.Load():
				require.Zero(t, called, "a refused func was called")
			case !s.every:
				require.EqualValues(t, 1, called, "an admitted func was not called once")
			}
		}
	})
}

func TestNoCallIsInFlightOnceTheModuleHasExited(t *testing.T) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		var inFlight, late, broken atomic.Int64
		look := func(e lifecycle.PhaseEvent) {
			if e.Phase > lifecycle.PhaseExitModule || e.Duration > 0 {
				late.Add(inFlight.Load())
			}
		}
		h := lifecycle.New(nil, lifecycle.Options{Observer: lifecycle.Observer{PhaseEnd: look, PhaseStart: look}})
		var clients crowd
		for range 2 + rng.IntN(8) {
			own := fork(rng)
			clients.Go(func() {
				for range 2000 {
					call, err := h.Enter()
					if err != nil {
						if !errors.Is(err, lifecycle.ErrExiting) || call != (lifecycle.Call{}) {
							broken.Add(1)
						}
						if again, err := h.Enter(); err == nil {
							broken.Add(1)
							again.Leave()
						}
						call.Leave() // a refused call's does nothing
						return
					}
					inFlight.Add(1)
					end := func() {
						dawdle(own)
						inFlight.Add(-1)
						call.Leave()
					}
					if oneIn(own, 4) { // another goroutine's stack is another shard's
						ended := make(chan struct{})
						go func() { end(); close(ended) }()
						<-ended
					} else {
						end()
					}
				}
			})
		}
		for range rng.IntN(60) {
			runtime.Gosched()
		}
		require.NoError(t, h.Exit(patience(t)))
		require.Zero(t, late.Load(), "calls that were in flight in a later phase")
		clients.await(t)
		require.Zero(t, broken.Load())
		require.Zero(t, h.Status().Calls)
	})
}

// A Leave too many may take another call's place, whose own is then the one too
// many. Together they never take, or give back, more than was there.
func TestLeavesTooManyDoNotHoldTheExit(t *testing.T) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		gate := lifecycle.NewGate()
		var clients crowd
		var refused atomic.Int64
		tooMany := int64(0)
		for range 2 + rng.IntN(3) {
			own := fork(rng)
			extra := own.IntN(2000)
			tooMany += int64(extra)
			clients.Go(func() {
				for left := extra; left > 0 || oneIn(own, 2); {
					gate.Enter()
					if !gate.Leave() {
						refused.Add(1)
					}
					if left > 0 {
						left--
						if !gate.Leave() {
							refused.Add(1)
						}
					}
				}
			})
		}
		clients.await(t)
		require.Zero(t, gate.Count(), "calls in flight, though all have left")
		require.Equal(t, tooMany, refused.Load(), "each Leave too many is noticed once, if the others have left")
	})
}

// trouble is what a round did to its host, and what must come of it.
type trouble struct {
	mu      sync.Mutex
	certain []error // each must be in the result
}

func (tr *trouble) add(err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.certain = append(tr.certain, err)
}

// disturb throws at the host whatever may come from outside and inside while it
// exits. Nothing of it goes on for ever. yield is for who polls: in a bubble, where
// time must pass, it sleeps.
func disturb(h *lifecycle.Host, l *ledger, tr *trouble, others *crowd, rng *rand.Rand, yield func()) {
	for i := range rng.IntN(3) {
		own, failure := fork(rng), fmt.Errorf("task %d has failed", i)
		_ = h.Go("failing", func(ctx context.Context) error {
			if oneIn(own, 2) {
				<-ctx.Done()
			}
			dawdle(own)
			switch own.IntN(3) {
			case 0:
				tr.add(failure)
				return failure
			case 1:
				tr.add(failure)
				panic(failure)
			}
			tr.add(lifecycle.ErrGoexit)
			runtime.Goexit()
			return nil
		})
	}
	for _, phase := range []lifecycle.Phase{lifecycle.PhaseExitModule, lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease} {
		own, failure := fork(rng), fmt.Errorf("hook of %v has failed", phase)
		others.Go(func() {
			dawdle(own)
			fails := oneIn(own, 3)
			err := h.OnExit(phase, "hook", func(ctx context.Context) error {
				_, err := l.append(ctx, own)
				if ctx.Err() == nil && phase == lifecycle.PhaseRelease && !errors.Is(err, lifecycle.ErrClosed) {
					l.breaks("Append in a release hook: %v", err)
				}
				if !fails {
					return nil
				}
				tr.add(failure)
				panic(failure)
			})
			if err != nil && !errors.Is(err, lifecycle.ErrExiting) {
				l.breaks("OnExit: %v", err)
			}
		})
	}
	if oneIn(rng, 3) {
		own, cause := fork(rng), errors.New("failed from outside")
		others.Go(func() {
			for range own.IntN(60) {
				runtime.Gosched()
			}
			begun := h.Status().State != lifecycle.Running
			h.Fail(cause)
			if !begun && h.Status().State != lifecycle.Exited {
				tr.add(cause)
			}
		})
	}
	for range rng.IntN(2) {
		own := fork(rng)
		others.Go(func() {
			for h.Status().State != lifecycle.Exited {
				if oneIn(own, 50) {
					_ = h.Report().String()
				}
				if d, a := l.durability.Durable(), l.durability.Accepted(); d > a {
					l.breaks("%d durable, %d accepted", d, a)
				}
				yield()
			}
		})
	}
	for range rng.IntN(3) { // waits for what may come
		through := rng.Uint64N(100)
		others.Go(func() {
			err := l.durability.Wait(context.Background(), through)
			switch {
			case err == nil && l.durability.Durable() <= through:
				l.breaks("Wait(%d) returned nil, durable is %d", through, l.durability.Durable())
			case err != nil && !errors.Is(err, lifecycle.ErrUnknown) && !errors.Is(err, lifecycle.ErrClosed):
				l.breaks("Wait: %v", err)
			}
		})
	}
}

// moody is a log that dawdles, and may fail.
func moody(rng *rand.Rand, failure error) *strictLog {
	pause, way := fork(rng), fork(rng)
	log := &strictLog{pause: func() { dawdle(pause) }, fail: func() error { return hurt(way, failure) }}
	if oneIn(rng, 2) {
		log.fails = 1 + rng.IntN(30)
	}
	return log
}

// results collects what the callers of Exit got.
type results struct {
	mu  sync.Mutex
	all []error
}

func (r *results) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, err)
}

// one is the result that all have in common.
func (r *results) one(t *testing.T) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range r.all {
		require.True(t, err == r.all[0], "one caller got %v, another %v", r.all[0], err)
	}
	return r.all[0]
}

func TestEveryTransactionHasOneOutcomeWhateverHappensToTheExit(t *testing.T) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		logFailure := errors.New("the disk is gone")
		log := moody(rng, logFailure)
		h := lifecycle.New(log, lifecycle.Options{QueueBytes: queueBytes(rng)})
		l, tr := &ledger{durability: h.Durability()}, &trouble{}
		var others crowd
		var ends results
		work(h, l, &others, rng, true)
		disturb(h, l, tr, &others, rng, runtime.Gosched)
		for range 1 + rng.IntN(4) {
			late := rng.IntN(60)
			others.Go(func() {
				for range late {
					runtime.Gosched()
				}
				ends.add(h.Exit(patience(t)))
			})
		}
		others.await(t)

		result := ends.one(t)
		require.True(t, result == h.Exit(t.Context()), "a later caller got another result")
		require.NotErrorIs(t, result, lifecycle.ErrForced)
		l.check(t, log, !log.failed)
		for _, err := range tr.certain {
			require.ErrorIs(t, result, err, "no false nil")
		}
		r := h.Report()
		require.Equal(t, r.Accepted-r.Durable, r.Lost)
		require.Equal(t, result == nil, r.Outcome == "clean")
		if log.failed {
			var failure *lifecycle.LogError
			require.ErrorAs(t, result, &failure)
		}
	})
}

func TestEveryTransactionHasOneOutcomeHoweverTheExitIsForced(t *testing.T) {
	bubbleStorm(t, func(t *testing.T, rng *rand.Rand) {
		log := moody(rng, errors.New("the disk is gone"))
		if oneIn(rng, 2) {
			slow := fork(rng)
			log.pause = func() { time.Sleep(time.Duration(slow.IntN(int(lifecycle.ForceGrace)))) }
		}
		h := lifecycle.New(log, lifecycle.Options{QueueBytes: queueBytes(rng)})
		l, tr := &ledger{durability: h.Durability()}, &trouble{}
		release := make(chan struct{})
		var others crowd
		var ends results
		forcedWork(h, l, &others, rng, release)
		disturb(h, l, tr, &others, rng, func() { time.Sleep(time.Millisecond) })
		for range 1 + rng.IntN(3) {
			late, force := time.Duration(rng.IntN(int(lifecycle.ForceGrace))), !oneIn(rng, 3)
			flush := time.Duration(rng.IntN(3)) * lifecycle.ForceGrace
			if !force {
				flush = time.Hour
			}
			others.Go(func() {
				time.Sleep(late)
				ctx, cancel := context.WithTimeout(context.Background(), flush)
				defer cancel()
				if force {
					ends.add(h.ForceExit(ctx))
				} else if err := h.Exit(ctx); !errors.Is(err, context.DeadlineExceeded) {
					ends.add(err)
				}
			})
		}
		time.Sleep(lifecycle.ForceGrace)
		ends.add(h.ForceExit(t.Context()))
		durable := h.Durability().Durable()
		close(release)
		others.Wait()
		synctest.Wait()
		time.Sleep(time.Minute) // until a log that was given up has closed
		synctest.Wait()

		require.Equal(t, durable, h.Durability().Durable(), "durable moved after the end")
		result := ends.one(t)
		l.check(t, log, false)
		r := h.Report()
		require.Equal(t, r.Accepted-r.Durable, r.Lost)
		require.Equal(t, result == nil, r.Outcome == "clean")
		if result == nil {
			require.False(t, log.failed)
			require.Zero(t, r.Lost)
		}
		left := 0
		for _, p := range r.Phases {
			left += len(p.Abandoned)
			for _, hook := range p.Hooks {
				if hook.Skipped {
					left++
				}
			}
		}
		if r.Outcome == "forced" {
			require.NotZero(t, uint64(left)+r.Lost, "forced, and nothing was left behind, skipped or lost\n%v", r)
		} else {
			require.Zero(t, left, "%v", r)
		}
		require.Equal(t, r.Outcome == "forced", errors.Is(result, lifecycle.ErrForced))
	})
}

// forcedWork is work for a host that is forced, in virtual time: those who write
// until they are refused take their time.
func forcedWork(h *lifecycle.Host, l *ledger, clients *crowd, rng *rand.Rand, release <-chan struct{}) {
	some := func(rng *rand.Rand) { time.Sleep(time.Duration(rng.IntN(int(lifecycle.ForceGrace / 8)))) }
	for range rng.IntN(3) {
		own := fork(rng)
		_ = h.Go("appender", func(ctx context.Context) error {
			for ctx.Err() == nil {
				if _, err := l.append(ctx, own); err != nil {
					break
				}
				some(own)
			}
			some(own)
			_ = l.commit(context.WithoutCancel(ctx), own)
			return ctx.Err()
		})
	}
	if oneIn(rng, 2) {
		own := fork(rng)
		_ = h.Go("stubborn", func(ctx context.Context) error {
			<-release
			_, err := l.append(ctx, own)
			if err == nil {
				l.breaks("Append was accepted after the exit")
			}
			return nil
		})
	}
	if oneIn(rng, 3) {
		if call, err := h.Enter(); err == nil {
			clients.Go(func() {
				<-release
				call.Leave()
			})
		}
	}
	for range rng.IntN(3) {
		own := fork(rng)
		clients.Go(func() {
			for {
				if _, err := l.append(context.Background(), own); err != nil {
					if !errors.Is(err, lifecycle.ErrClosed) {
						l.breaks("Append: %v", err)
					}
					return
				}
				some(own)
			}
		})
	}
}

// moodyHandler is a slog handler that panics and calls Goexit.
type moodyHandler func()

func (f moodyHandler) Enabled(context.Context, slog.Level) bool  { f(); return true }
func (f moodyHandler) Handle(context.Context, slog.Record) error { f(); return nil }
func (f moodyHandler) WithAttrs([]slog.Attr) slog.Handler        { return f }
func (f moodyHandler) WithGroup(string) slog.Handler             { return f }

func TestObserversAndLoggersThatPanicOrGoexitAtRandomChangeNothing(t *testing.T) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		var mu sync.Mutex // of the moods' chance
		moods := fork(rng)
		mood := func() {
			mu.Lock()
			hurts, own := oneIn(moods, 2), fork(moods)
			mu.Unlock()
			if hurts {
				_ = hurt(own, errors.New("a bad mood"))
			}
		}
		var order []lifecycle.Phase
		var ended, ticks, committed atomic.Int64
		observer := lifecycle.Observer{
			PhaseStart: func(e lifecycle.PhaseEvent) { order = append(order, e.Phase); mood() },
			PhaseEnd:   func(lifecycle.PhaseEvent) { mood() },
			HookEnd:    func(lifecycle.HookEvent) { mood() },
			TaskEnd:    func(lifecycle.TaskEvent) { ended.Add(1); mood() },
			Stuck:      func(lifecycle.StuckEvent) { mood() },
			Synced:     func(e lifecycle.SyncEvent) { committed.Add(int64(e.Txs)); mood() },
		}
		log := &strictLog{}
		h := lifecycle.New(log, lifecycle.Options{
			Logger: slog.New(moodyHandler(mood)), Observer: observer,
			QueueBytes: queueBytes(rng), StuckAfter: []time.Duration{200 * time.Microsecond, 5 * time.Millisecond, time.Hour}[rng.IntN(3)],
		})
		l := &ledger{durability: h.Durability()}
		require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "checkpoint", func(ctx context.Context) error {
			_, err := l.append(ctx, rand.New(rand.NewPCG(1, 1)))
			return err
		}))
		var others crowd
		tickRng := fork(rng)
		require.NoError(t, h.Every("failing tick", 100*time.Microsecond, func(context.Context) error {
			ticks.Add(1)
			return hurt(tickRng, errors.New("a failed tick"))
		}))
		work(h, l, &others, rng, false)
		for _, task := range h.Status().Tasks {
			ended.Add(-int64(task.Count))
		}
		for range rng.IntN(60) {
			runtime.Gosched()
		}
		require.NoError(t, h.Exit(patience(t)))
		others.await(t)
		l.check(t, log, true)
		require.Zero(t, ended.Load(), "TaskEnd is called once for each task")
		require.EqualValues(t, h.Durability().Accepted(), committed.Load(), "Synced is called once for each batch")
		require.Equal(t, []lifecycle.Phase{1, 2, 3, 4, 5, 6, 7}, order)
	})
}

// What the storms would need luck to meet, one moment each.

func TestALoggerThatTakesItsTimeSlowsTheExitAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{Logger: slog.New(slowHandler(time.Minute))})
		require.NoError(t, h.Exit(t.Context()))
	})
}

func TestALoggerThatHangsFromTheBeginningIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{Logger: slog.New(slowHandler(time.Hour))})
		err := h.ForceExit(t.Context())
		require.ErrorIs(t, err, lifecycle.ErrForced)
		var forced *lifecycle.ExitError
		require.ErrorAs(t, err, &forced)
		require.Equal(t, "logger", forced.Stragglers[0].Name)
		time.Sleep(time.Hour)
	})
}

type slowHandler time.Duration

func (d slowHandler) Enabled(context.Context, slog.Level) bool { return true }
func (d slowHandler) Handle(context.Context, slog.Record) error {
	time.Sleep(time.Duration(d))
	return nil
}
func (d slowHandler) WithAttrs([]slog.Attr) slog.Handler { return d }
func (d slowHandler) WithGroup(string) slog.Handler      { return d }

// Two goroutines of the actor would be two writers.
func TestAnObserverThatReturnsAsItIsLeftBehindLeavesOneActor(t *testing.T) {
	bubbleStorm(t, func(t *testing.T, rng *rand.Rand) {
		log := &strictLog{pause: runtime.Gosched}
		first := true
		h := lifecycle.New(log, lifecycle.Options{Observer: lifecycle.Observer{Synced: func(lifecycle.SyncEvent) {
			if first {
				first = false
				time.Sleep(lifecycle.ForceGrace) // it wakes when the grace ends
			}
		}}})
		l := &ledger{durability: h.Durability()}
		_, _ = l.append(t.Context(), rng)
		synctest.Wait()
		for range rng.IntN(4) {
			_, _ = l.append(t.Context(), rng)
		}
		_ = h.ForceExit(t.Context())
		synctest.Wait()
		l.check(t, log, true)
	})
}

func TestWhoObeysAtTheLastMomentDoesNotMakeTheExitForced(t *testing.T) {
	bubbleStorm(t, func(t *testing.T, rng *rand.Rand) {
		h := lifecycle.New(&strictLog{}, lifecycle.Options{})
		if oneIn(rng, 2) {
			require.NoError(t, h.Go("late", func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(lifecycle.ForceGrace)
				return nil
			}))
		} else {
			call, err := h.Enter()
			require.NoError(t, err)
			go func() {
				<-h.Exiting()
				time.Sleep(lifecycle.ForceGrace)
				call.Leave()
			}()
		}
		err := h.ForceExit(t.Context())
		if err != nil {
			var forced *lifecycle.ExitError
			require.ErrorAs(t, err, &forced)
			require.NotEmpty(t, forced.Stragglers, "forced, and nobody was left behind: %v", err)
		}
	})
}

func TestForceExitThatBeginsTheExitSkipsEveryHookThatItFinds(t *testing.T) {
	storm(t, func(t *testing.T, rng *rand.Rand) {
		h := lifecycle.New(nil, lifecycle.Options{})
		var ran atomic.Bool
		require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "listener", func(context.Context) error {
			ran.Store(true)
			return nil
		}))
		require.ErrorIs(t, h.ForceExit(t.Context()), lifecycle.ErrForced)
		require.False(t, ran.Load(), "a hook began after ForceExit")
	})
}

func TestAFailureThatIsErrForcedForcesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("slow", func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(10 * lifecycle.ForceGrace)
			_, err := h.Durability().Append(context.WithoutCancel(ctx), nil)
			return err
		}))
		h.Fail(lifecycle.ErrForced) // from another host's exit, say
		_ = h.Exit(t.Context())
		outcome := h.Report().Outcome
		time.Sleep(time.Minute) // no goroutine is to be left, even if the test fails
		require.Equal(t, "failed", outcome)
	})
}

func TestALogThatWasGivenUpIsClosedAndNothingElseWhenItsCallReturns(t *testing.T) {
	bubbleStorm(t, func(t *testing.T, rng *rand.Rand) {
		done, cancel := context.WithCancel(t.Context())
		cancel()
		stuckIn, calls, returns := 1+rng.IntN(4), 0, make(chan struct{})
		log := &strictLog{pause: func() {
			if calls++; calls == stuckIn {
				<-returns
			}
		}}
		h := lifecycle.New(log, lifecycle.Options{})
		l := &ledger{durability: h.Durability()}
		for range 3 {
			_, err := l.append(t.Context(), rng)
			require.NoError(t, err)
			synctest.Wait()
		}
		if calls < stuckIn {
			t.Fatal("three batches are six calls at most, two at least")
		}
		require.ErrorIs(t, h.ForceExit(done), lifecycle.ErrUnknown)
		durable := h.Durability().Durable()
		close(returns)
		synctest.Wait()
		l.check(t, log, false)
		require.Equal(t, stuckIn, log.calls, "only Close may follow")
		require.Equal(t, durable, h.Durability().Durable())
	})
}

func TestALogThatReturnsWhileItIsGivenUpIsNoDataRace(t *testing.T) {
	bubbleStorm(t, func(t *testing.T, rng *rand.Rand) {
		done, cancel := context.WithCancel(t.Context())
		cancel()
		log := &strictLog{pause: func() { time.Sleep(lifecycle.ForceGrace) }}
		h := lifecycle.New(log, lifecycle.Options{})
		l := &ledger{durability: h.Durability()}
		_, _ = l.append(t.Context(), rng)
		synctest.Wait()
		_, _ = l.append(t.Context(), rng)
		_ = h.ForceExit(done)
		time.Sleep(time.Minute)
		l.check(t, log, false)
	})
}

func TestATaskIsInStatusHoweverManyOfItsNameAreEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		h := lifecycle.New(nil, lifecycle.Options{Observer: lifecycle.Observer{TaskEnd: func(e lifecycle.TaskEvent) {
			if e.Task == "cleanup" {
				<-end
			}
		}}})
		defer func() {
			close(end)
			require.NoError(t, h.Exit(t.Context()))
		}()
		for i := range 200 { // more than the groups that are kept
			require.NoError(t, h.Go("other "+strconv.Itoa(i), waitUntilCancelled))
		}
		for range 2 {
			require.NoError(t, h.Go("cleanup", func(context.Context) error { return nil }))
		}
		synctest.Wait()
		end <- struct{}{}
		synctest.Wait()
		require.NoError(t, h.Go("cleanup", waitUntilCancelled))
		end <- struct{}{} // the second ends after its group has
		synctest.Wait()
		require.Len(t, h.Status().Tasks, 201)
	})
}

func waitUntilCancelled(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// A host takes nothing from one bubble into the next.
func TestHostsOfManyBubblesMayWaitForRoom(t *testing.T) {
	bubbleStorm(t, func(t *testing.T, rng *rand.Rand) {
		log := &strictLog{pause: func() { time.Sleep(time.Second) }}
		h := lifecycle.New(log, lifecycle.Options{QueueBytes: 1})
		l := &ledger{durability: h.Durability()}
		for range 5 {
			own := fork(rng)
			require.NoError(t, h.Go("appender", func(ctx context.Context) error {
				_, err := l.append(context.WithoutCancel(ctx), own)
				return err
			}))
		}
		synctest.Wait()
		require.NoError(t, h.Exit(t.Context()))
		l.check(t, log, true)
	})
}

// A LogError is ErrClosed, but says more than a cause that is only that.
func TestAFailureOfTheLogIsInTheResultThoughTheCauseWasErrClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("the disk is gone")
		log := &strictLog{fails: 1, fail: func() error { return gone }}
		h := lifecycle.New(log, lifecycle.Options{})
		_, err := h.Durability().Append(t.Context(), nil)
		require.NoError(t, err)
		h.Fail(lifecycle.ErrClosed)
		err = h.Exit(t.Context())
		require.ErrorIs(t, err, lifecycle.ErrClosed)
		require.ErrorIs(t, err, gone)
	})
}

// cruelError does its worst where somebody only wants to know its text.
type cruelError struct{ text func() }

func (e cruelError) Error() string {
	e.text()
	return "a cruel error"
}

func TestAnErrorWhoseTextCallsGoexitStopsNoExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "cruel", func(context.Context) error {
			return cruelError{runtime.Goexit}
		}))
		require.Error(t, exitWithin(t, h, time.Minute))
	})
}

func TestATaskWhoseErrorsTextCallsGoexitFailsTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		require.NoError(t, h.Go("cruel", func(context.Context) error { return cruelError{runtime.Goexit} }))
		synctest.Wait()
		require.Error(t, exitWithin(t, h, time.Minute))
	})
}

// exitWithin is Exit, and fails the test if it does not end in time.
func exitWithin(t *testing.T, h *lifecycle.Host, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := h.Exit(ctx)
	select {
	case <-h.Done():
	default:
		require.Fail(t, "the exit does not end", "%v", err)
	}
	return err
}
