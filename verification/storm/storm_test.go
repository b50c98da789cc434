package storm

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
	"github.com/seed080d9131/lifecycle/internal/seam"
)

var (
	rounds = flag.Int("rounds", 200, "how many rounds each number of processors plays")
	seed   = flag.Uint64("seed", 0, "plays the rounds of that seed again, with the same choices (0: a new one)")
)

// A round that takes so long does not end.
const patience = 2 * time.Minute

func TestStorm(t *testing.T) {
	seed := *seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	before := goleak.IgnoreCurrent()
	var all sums
	for _, processors := range []int{1, 2, 4} {
		t.Run(fmt.Sprintf("GOMAXPROCS=%d", processors), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
			dir := t.TempDir()
			for n := range *rounds {
				rng := rand.New(rand.NewPCG(seed, uint64(processors)<<32|uint64(n)))
				r := newRound(rng, fmt.Sprintf("storm-%d-%d", processors, n), filepath.Join(dir, fmt.Sprint(n)))
				if r.bubble {
					synctest.Test(t, r.play)
				} else {
					watchdog := time.AfterFunc(patience, func() {
						panic(fmt.Sprintf("round %d of seed %d, GOMAXPROCS %d, does not end (see the stacks)", n, seed, processors))
					})
					r.play(t)
					watchdog.Stop()
				}
				if t.Failed() {
					t.Logf("in round %d of -seed %d: %s", n, seed, r.plan)
					return
				}
				all.add(r)
				require.NoError(t, os.RemoveAll(r.dir))
			}
		})
	}
	if !t.Failed() {
		goleak.VerifyNone(t, before)
		t.Log(all.String())
	}
}

// sums is what happened in all rounds.
type sums struct {
	rounds, bubbles, clean, failed, forced, failingLogs, files, expired int
	accepted, durable, unknown, refusals, tasks, calls, steps           int
}

func (s *sums) add(r *round) {
	s.rounds++
	if r.bubble {
		s.bubbles++
	}
	switch r.outcome {
	case "clean":
		s.clean++
	case "failed":
		s.failed++
	case "forced":
		s.forced++
	}
	if r.faulty {
		s.failingLogs++
	}
	if r.kind != "memory" {
		s.files++
	}
	s.expired += int(r.expired.Load())
	s.accepted += r.tally.accepted
	s.durable += r.tally.durable
	s.unknown += r.tally.unknown
	s.refusals += int(r.refusals.Load())
	s.tasks += int(r.tasks.Load())
	s.calls += int(r.calls.Load())
	s.steps += int(r.steps.Load())
}

func (s *sums) String() string {
	return fmt.Sprintf("counts: rounds %d (in a bubble %d, on commitlog %d, failing logs %d), exits clean %d, failed %d, forced %d, callers expired %d, appends accepted %d, durable %d, unknown %d, refusals %d, tasks %d, calls %d, steps with jitter %d",
		s.rounds, s.bubbles, s.files, s.failingLogs, s.clean, s.failed, s.forced, s.expired, s.accepted, s.durable, s.unknown, s.refusals, s.tasks, s.calls, s.steps)
}

// plan is what chance has decided of a round.
type plan struct {
	bubble    bool
	kind      string // of log
	faulty    bool   // the log may fail
	hangs     bool   // the log hangs; only with force
	force     bool   // somebody calls ForceExit
	stubborn  bool   // some don't obey, and an observer hangs; only with force
	returns   bool   // the observer's hanging ends when the exit is about to leave it
	failFirst bool   // the exit begins with Fail
	fail      bool   // somebody calls Fail at some time
	failures  bool   // tasks and hooks may fail
	queue     int
}

// round is one host's life.
type round struct {
	plan
	name, dir string
	host      *lifecycle.Host
	guard     *guard
	ledger    ledger

	pause    func()
	steps    atomic.Int64
	tasks    atomic.Int64 // accepted
	calls    atomic.Int64
	refusals atomic.Int64
	expired  atomic.Int64

	forcing    atomic.Bool // ForceExit was called
	callsOver  atomic.Bool // the first phase has ended
	tasksOver  atomic.Bool // the third phase has ended
	taskFailed atomic.Bool
	hookFailed atomic.Bool
	hooksOwed  atomic.Int64

	// Who runs.
	liveTasks, liveCalls, liveHooks atomic.Int64

	users   sync.WaitGroup // every func and goroutine that is not the host's
	release chan struct{}  // ends what is stubborn or hangs

	observer chan struct{} // ends the observer's hanging
	returned sync.Once     // of its end

	mu      sync.Mutex // guards what follows
	rng     *rand.Rand
	cancels map[int64][]context.CancelFunc // at so many steps
	results []error

	outcome string
	tally   tally
}

var (
	errTask = errors.New("the task has failed")
	errHook = errors.New("the hook has failed")
	errFail = errors.New("somebody called Fail")
)

func newRound(rng *rand.Rand, name, dir string) *round {
	r := &round{name: name, dir: dir, rng: rng, cancels: map[int64][]context.CancelFunc{}}
	one := func(in int) bool { return rng.IntN(in) == 0 }
	r.kind = []string{"memory", "memory", "faultfs", "disk"}[rng.IntN(4)]
	r.bubble, r.force, r.failFirst, r.fail, r.failures = one(2), one(4), one(6), one(6), one(4)
	r.faulty = r.kind != "disk" && one(3)
	r.hangs = r.kind == "memory" && r.bubble && r.force && one(3)
	r.stubborn = r.bubble && r.force && one(2)
	r.returns = one(2)
	if one(2) {
		r.queue = 1 + rng.IntN(300)
	}
	return r
}

// fork makes a source of chance for somebody else.
func (r *round) fork() *rand.Rand {
	r.mu.Lock()
	defer r.mu.Unlock()
	return rand.New(rand.NewPCG(r.rng.Uint64(), r.rng.Uint64()))
}

// step is the round at the seam.
func (r *round) step(step seam.Step, name string) {
	n := r.steps.Add(1)
	r.mu.Lock()
	due := r.cancels[n]
	delete(r.cancels, n)
	r.mu.Unlock()
	for _, cancel := range due {
		cancel()
	}
	switch {
	case step == seam.Phase && name == lifecycle.PhaseCancelTasks.String():
		r.callsOver.Store(true)
		r.noCall()
	case step == seam.Phase && name == lifecycle.PhaseCheckpoint.String():
		r.tasksOver.Store(true)
		r.noTask()
	case step == seam.Seal:
		r.nobodyLives("at the seal")
	case step == seam.TakeOver && r.returns: // just now
		r.returned.Do(func() { close(r.observer) })
	}
	r.pause()
}

// noCall and noTask check that nobody is inside when the phase that awaits them is over. Who
// comes in asks as well, so that no moment between is missed.
func (r *round) noCall() {
	if n := r.liveCalls.Load(); n > 0 && r.callsOver.Load() && !r.forcing.Load() {
		r.ledger.breaks("%d calls are inside when calls are over", n)
	}
}

func (r *round) noTask() {
	if n := r.liveTasks.Load(); n > 0 && r.tasksOver.Load() && !r.forcing.Load() {
		r.ledger.breaks("%d tasks are alive when tasks are over", n)
	}
}

// nobodyLives checks P1: by an exit that is not forced, nobody is left behind.
func (r *round) nobodyLives(when string) {
	tasks, calls, hooks := r.liveTasks.Load(), r.liveCalls.Load(), r.liveHooks.Load()
	if tasks+calls+hooks > 0 && !r.forcing.Load() {
		r.ledger.breaks("%s %d tasks, %d calls and %d hooks live", when, tasks, calls, hooks)
	}
}

// expiring returns a context that ends at one of the next steps, or is done, or never ends.
func (r *round) expiring(rng *rand.Rand) context.Context {
	switch rng.IntN(4) {
	case 0:
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return ctx
	case 1:
		ctx, cancel := context.WithCancel(context.Background())
		r.mu.Lock()
		defer r.mu.Unlock()
		n := r.steps.Load() + 1 + int64(rng.IntN(40))
		r.cancels[n] = append(r.cancels[n], cancel)
		return ctx
	}
	return context.Background()
}

// open makes the round's log, and the func that reads it when all is over.
func (r *round) open(t *testing.T, rng *rand.Rand) (lifecycle.Log, func() [][]byte) {
	if r.kind == "memory" {
		m := &memory{pause: r.pause, release: r.release}
		if r.faulty {
			m.failAt = 1 + rng.IntN(10)
		}
		if r.hangs {
			m.hangAt = 1 + rng.IntN(10)
		}
		r.guard = newGuard(m, func() { r.nobodyLives("at the close of the log") })
		return r.guard, m.read
	}
	var fs fsys.FS
	strict := faultfs.New()
	if r.kind == "faultfs" {
		fs = strict
	}
	options := commitlog.Options{SegmentBytes: 8 << 10, FS: fs}
	log, err := commitlog.Open(r.dir, options)
	require.NoError(t, err)
	if r.faulty {
		var op atomic.Int64
		at, partial := 1+rng.Int64N(40), rng.IntN(200)
		strict.Hook(func(faultfs.Op) *faultfs.Fault {
			if op.Add(1) == at {
				return &faultfs.Fault{Partial: partial}
			}
			return nil
		})
	}
	r.guard = newGuard(log, func() { r.nobodyLives("at the close of the log") })
	return batchGuard{r.guard, log}, func() [][]byte {
		if fs != nil {
			strict.Hook(nil)
			strict.PowerFail(faultfs.KeepRandom(rng.Uint64()))
		}
		again, err := commitlog.Open(r.dir, options)
		require.NoError(t, err)
		var all [][]byte
		for e, err := range again.Read(0) {
			require.NoError(t, err)
			all = append(all, bytes.Clone(e.Data))
		}
		require.NoError(t, again.Close())
		return all
	}
}

func (r *round) play(t *testing.T) {
	rng := r.fork()
	r.release, r.observer = make(chan struct{}), make(chan struct{}) // here, since they are the bubble's
	r.pause = r.dawdle
	log, read := r.open(t, rng)
	remove := seam.Install(func(any) seam.Watch { return r.step })
	var events atomic.Int64
	hangsAt := int64(0)
	if r.stubborn {
		hangsAt = 1 + rng.Int64N(30)
	}
	observe := func() {
		r.pause()
		if events.Add(1) == hangsAt {
			select {
			case <-r.observer:
			case <-r.release:
			}
		}
	}
	r.host = lifecycle.New(log, lifecycle.Options{Name: r.name, QueueBytes: r.queue, Observer: lifecycle.Observer{
		TaskEnd: func(lifecycle.TaskEvent) { observe() },
		Synced:  func(lifecycle.SyncEvent) { observe() },
	}})
	remove()
	r.ledger.durability = r.host.Durability()

	r.hooks(rng)
	for range 1 + rng.IntN(4) {
		r.startTask(0)
	}
	for range rng.IntN(3) {
		r.startTicker(rng)
	}
	for range rng.IntN(4) {
		r.user(r.client)
	}
	for range rng.IntN(3) {
		r.user(r.caller)
	}
	for range rng.IntN(30) {
		r.pause()
	}
	r.beginExit(t, rng)
	<-r.host.Done()
	for _, phase := range r.host.Report().Phases {
		for _, hook := range phase.Hooks {
			if hook.Skipped { // one that was left behind runs, perhaps not before now
				r.users.Done()
			}
		}
	}
	r.afterDone()
	close(r.release)
	r.users.Wait()
	<-r.guard.closed // after a forced exit the actor may close the log after Done
	r.check(t, read)
}

// dawdle lets others run, for a random moment.
func (r *round) dawdle() {
	r.mu.Lock()
	n := r.rng.IntN(16)
	r.mu.Unlock()
	switch {
	case n < 8:
	case n < 14:
		for range n - 7 {
			runtime.Gosched()
		}
	default: // nothing waits for this: it moves the caller behind the others
		time.Sleep(time.Duration(n-13) * time.Microsecond)
	}
}

// user starts a goroutine that is not the host's.
func (r *round) user(f func(rng *rand.Rand)) {
	rng := r.fork()
	r.users.Go(func() { f(rng) })
}

// beginExit lets some call Exit, Fail and ForceExit.
func (r *round) beginExit(t *testing.T, rng *rand.Rand) {
	if r.failFirst {
		r.host.Fail(errFail)
		require.NotEqual(t, lifecycle.Running, r.host.Status().State)
	}
	for range 1 + rng.IntN(3) {
		r.user(r.exit)
	}
	if r.fail {
		r.user(func(*rand.Rand) { r.host.Fail(errFail) })
	}
	if r.force {
		r.user(func(rng *rand.Rand) {
			for range rng.IntN(20) {
				r.pause()
			}
			r.forcing.Store(true)
			ctx, cancel := context.Background(), context.CancelFunc(func() {})
			if r.hangs || rng.IntN(2) == 0 {
				ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(200))*time.Millisecond)
			}
			r.result(r.host.ForceExit(ctx))
			cancel()
		})
	}
}

// exit calls Exit until it has ended, as often as its contexts end before.
func (r *round) exit(rng *rand.Rand) {
	for {
		ctx := r.expiring(rng)
		err := r.host.Exit(ctx)
		select {
		case <-r.host.Exiting():
		default:
			r.ledger.breaks("Exit returned, and the exit has not begun")
		}
		var unended *lifecycle.ExitError
		if !errors.As(err, &unended) || !errors.Is(unended.Err, context.Canceled) {
			r.result(err)
			return
		}
		r.expired.Add(1)
		if unended.Phase == 0 || ctx.Err() == nil {
			r.ledger.breaks("the error of a caller whose context ended: %v", unended)
		}
	}
}

// result keeps what an Exit returned that has ended.
func (r *round) result(err error) {
	select {
	case <-r.host.Done():
	default:
		r.ledger.breaks("a result before Done: %v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, err)
}

// begins notes that a user's func has begun, which none must after Done unless an exit was
// forced.
func (r *round) begins(who string) {
	select {
	case <-r.host.Done():
		if !r.forcing.Load() {
			r.ledger.breaks("%s begins after Done", who)
		}
	default:
	}
}

// write writes as somebody that the exit waits for: never refused, but by a log that failed
// or after a forced exit.
func (r *round) write(ctx context.Context, rng *rand.Rand, who string) {
	err := r.ledger.write(ctx, rng)
	var failure *lifecycle.LogError
	switch {
	case err == nil:
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
	case errors.As(err, &failure):
		if !r.faulty {
			r.ledger.breaks("%s: %v from a log that does not fail", who, err)
		}
		r.refusals.Add(1)
	case errors.Is(err, lifecycle.ErrClosed) && r.forcing.Load():
		r.refusals.Add(1)
	default:
		r.ledger.breaks("%s met a refusal: %v", who, err)
	}
}

// startTask calls Go; some of its tasks start others.
func (r *round) startTask(depth int) {
	rng := r.fork()
	var ran atomic.Int64
	r.users.Add(1)
	err := r.host.Go([]string{"cleanup", "compaction", "metrics"}[rng.IntN(3)], func(ctx context.Context) error {
		defer r.users.Done()
		if ran.Add(1) > 1 {
			r.ledger.breaks("a task ran twice")
		}
		r.liveTasks.Add(1)
		r.noTask()
		defer r.liveTasks.Add(-1)
		r.begins("a task")
		return r.task(ctx, rng, depth)
	})
	if err == nil {
		r.tasks.Add(1)
		return
	}
	r.refusals.Add(1)
	if !errors.Is(err, lifecycle.ErrExiting) || ran.Load() > 0 {
		r.ledger.breaks("a task was refused with %v, and ran %d times", err, ran.Load())
	}
	r.users.Done() // a func that runs later all the same brings the counter below zero
}

func (r *round) task(ctx context.Context, rng *rand.Rand, depth int) error {
	for range rng.IntN(6) {
		if ctx.Err() != nil {
			break
		}
		switch rng.IntN(8) {
		case 0:
			if depth < 2 {
				r.startTask(depth + 1)
			}
		case 1:
			r.call(rng)
		case 2:
			r.write(ctx, rng, "a task")
		case 3:
			if err := r.host.Exit(ctx); !errors.Is(err, lifecycle.ErrSelfExit) {
				r.ledger.breaks("Exit from inside a task: %v", err)
			}
		default:
			r.write(context.Background(), rng, "a task")
		}
	}
	switch rng.IntN(5) {
	case 0:
		return nil // before it is told to
	case 1:
		if r.failures {
			r.taskFailed.Store(true)
			return errTask
		}
	}
	<-ctx.Done()
	if r.stubborn && rng.IntN(2) == 0 {
		<-r.release
	}
	r.write(context.Background(), rng, "a task's cleanup")
	if r.failures && rng.IntN(4) == 0 {
		r.taskFailed.Store(true)
		return errTask
	}
	return context.Cause(ctx)
}

func (r *round) startTicker(rng *rand.Rand) {
	interval, ticks := time.Duration(1+rng.IntN(50))*time.Microsecond, r.fork()
	var running atomic.Bool
	err := r.host.Every("ticker", interval, func(ctx context.Context) error {
		if !running.CompareAndSwap(false, true) {
			r.ledger.breaks("ticks overlap")
		}
		defer running.Store(false)
		r.liveTasks.Add(1)
		r.noTask()
		defer r.liveTasks.Add(-1)
		r.begins("a tick")
		r.write(ctx, ticks, "a tick")
		if ticks.IntN(8) == 0 {
			return errTask // no failure of the host
		}
		return nil
	})
	if err != nil {
		r.refusals.Add(1)
	}
}

// call is a client's call.
func (r *round) call(rng *rand.Rand) {
	call, err := r.host.Enter()
	if err != nil {
		r.refusals.Add(1)
		if !errors.Is(err, lifecycle.ErrExiting) {
			r.ledger.breaks("a call was refused with %v", err)
		}
		return
	}
	r.calls.Add(1)
	r.liveCalls.Add(1)
	r.noCall()
	r.write(r.expiring(rng), rng, "a call")
	if r.stubborn && rng.IntN(4) == 0 {
		<-r.release
	}
	r.liveCalls.Add(-1)
	call.Leave()
}

// caller calls, one short call after another, until it is refused: so that some call comes
// at whatever moment the gate closes.
func (r *round) caller(rng *rand.Rand) {
	for {
		call, err := r.host.Enter()
		if err != nil {
			r.refusals.Add(1)
			return
		}
		r.calls.Add(1)
		r.liveCalls.Add(1)
		r.noCall()
		if rng.IntN(4) == 0 {
			r.pause()
			r.noCall()
		}
		r.liveCalls.Add(-1)
		call.Leave()
	}
}

// client is somebody outside: it calls, appends without a call, starts tasks, and looks on.
func (r *round) client(rng *rand.Rand) {
	durable := lifecycle.Offset(0)
	for range 1 + rng.IntN(12) {
		switch rng.IntN(6) {
		case 0:
			r.startTask(1)
		case 1, 2:
			r.call(rng)
		case 3:
			ctx := r.expiring(rng)
			if err := r.ledger.write(ctx, rng); err != nil && ctx.Err() == nil {
				r.refusals.Add(1)
				if !errors.Is(err, lifecycle.ErrClosed) {
					r.ledger.breaks("an append was refused with %v", err)
				}
			}
		case 4:
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = r.host.Durability().Wait(ctx, r.host.Durability().Accepted())
		case 5:
			_ = r.host.Status()
			_ = r.host.Report()
		}
		if now := r.host.Durability().Durable(); now < durable {
			r.ledger.breaks("durable moved from %d back to %d", durable, now)
		} else {
			durable = now
		}
		r.pause()
	}
}

// hooks registers some, each of which owes a run.
func (r *round) hooks(rng *rand.Rand) {
	for _, phase := range []lifecycle.Phase{lifecycle.PhaseExitModule, lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease} {
		for range rng.IntN(3) {
			hookRng := r.fork()
			r.users.Add(1)
			err := r.host.OnExit(phase, phase.String(), func(ctx context.Context) error {
				defer r.users.Done()
				r.hooksOwed.Add(-1)
				r.liveHooks.Add(1)
				defer r.liveHooks.Add(-1)
				r.begins("a hook")
				return r.hook(phase, hookRng)
			})
			if err == nil {
				r.hooksOwed.Add(1)
				continue
			}
			r.users.Done()
			if !errors.Is(err, lifecycle.ErrExiting) || !r.faulty {
				r.ledger.breaks("a hook was refused with %v", err)
			}
		}
	}
}

func (r *round) hook(phase lifecycle.Phase, rng *rand.Rand) error {
	switch phase {
	case lifecycle.PhaseRelease:
		if err := r.ledger.write(context.Background(), rng); !errors.Is(err, lifecycle.ErrClosed) {
			r.ledger.breaks("an append of a release hook: %v", err)
		}
	case lifecycle.PhaseCheckpoint:
		if tasks, calls := r.liveTasks.Load(), r.liveCalls.Load(); tasks+calls > 0 && !r.forcing.Load() {
			r.ledger.breaks("a checkpoint with %d tasks and %d calls alive", tasks, calls)
		}
		fallthrough
	default:
		r.write(context.Background(), rng, "a hook")
	}
	if r.failures && rng.IntN(3) == 0 {
		r.hookFailed.Store(true)
		return errHook
	}
	return nil
}

// afterDone asks the host for everything, and is refused.
func (r *round) afterDone() {
	never := func(context.Context) error { r.ledger.breaks("a refused func ran"); return nil }
	_, enter := r.host.Enter()
	_, app := r.host.Durability().Append(context.Background(), nil)
	for what, err := range map[string]error{
		"Go": r.host.Go("late", never), "Every": r.host.Every("late", time.Microsecond, never),
		"OnExit": r.host.OnExit(lifecycle.PhaseRelease, "late", never), "Enter": enter,
	} {
		if !errors.Is(err, lifecycle.ErrExiting) {
			r.ledger.breaks("%s after Done: %v", what, err)
		}
	}
	if !errors.Is(app, lifecycle.ErrClosed) {
		r.ledger.breaks("Append after Done: %v", app)
	}
}

// check looks at all that the round has left, when everyone is gone.
func (r *round) check(t *testing.T, read func() [][]byte) {
	require.NoError(t, r.guard.breaks())
	log := read()
	var err error
	r.tally, err = r.ledger.check(log)
	require.NoError(t, err)

	result, report := r.results[0], r.host.Report()
	for _, other := range r.results {
		require.True(t, result == other, "two results: %v and %v", result, other)
	}
	r.outcome = report.Outcome
	require.EqualValues(t, r.tally.accepted-r.tally.durable, report.Lost)
	if result == nil {
		require.Equal(t, "clean", report.Outcome)
		require.Equal(t, r.tally.accepted, r.tally.durable)
		require.Len(t, log, r.tally.accepted)
		require.False(t, r.taskFailed.Load() || r.hookFailed.Load(), "a failure is missing from the result")
	}
	if !r.forcing.Load() {
		require.Zero(t, r.hooksOwed.Load(), "hooks that did not run")
		if r.taskFailed.Load() {
			require.ErrorIs(t, result, errTask)
		}
		if r.hookFailed.Load() {
			require.ErrorIs(t, result, errHook)
		}
		if r.failFirst && !r.faulty && !r.failures { // or else an exit that another began may have ended before
			require.ErrorIs(t, result, errFail)
		}
		if !r.taskFailed.Load() && !r.hookFailed.Load() && !r.fail && !r.failFirst && !r.faulty {
			require.NoError(t, result)
		}
	}
	if r.bubble {
		if r.forcing.Load() { // who was left behind dawdles on the way out
			time.Sleep(time.Second)
		}
		synctest.Wait()
	}
	require.Zero(t, r.goroutines(), "goroutines of the host are left")
}

// goroutines counts those that carry the host's label, when each has had time to return.
func (r *round) goroutines() int {
	label, n := fmt.Appendf(nil, `"lifecycle.host":"%s#`, r.name), 0
	for range 1000 {
		var profile bytes.Buffer
		_ = pprof.Lookup("goroutine").WriteTo(&profile, 1)
		if n = bytes.Count(profile.Bytes(), label); n == 0 {
			return 0
		}
		for range 100 {
			runtime.Gosched()
		}
	}
	return n
}

// String is the plan as a failure shows it.
func (p plan) String() string {
	words := []string{p.kind, fmt.Sprintf("queue %d", p.queue)}
	for _, w := range []struct {
		is   bool
		word string
	}{
		{p.bubble, "bubble"}, {p.faulty, "faulty"}, {p.hangs, "hangs"}, {p.force, "force"}, {p.stubborn, "stubborn"},
		{p.failFirst, "Fail first"}, {p.fail, "Fail"}, {p.failures, "failures"},
	} {
		if w.is {
			words = append(words, w.word)
		}
	}
	return fmt.Sprint(slices.Clip(words))
}
