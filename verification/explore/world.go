package explore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/petermattis/goid"
	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/internal/seam"
)

// World is one run of a scenario: a host, its log, the goroutines that use them, and
// what each was told. The scheduler lets one goroutine at a time take one step; a
// goroutine that is about to take one is parked until it is chosen.
type World struct {
	Host *lifecycle.Host
	Log  *Log

	root      uint64 // the scheduler's goroutine
	quiet     bool
	everyStep bool // every step is a choice

	mu         sync.Mutex // guards what follows; never held while parked
	goroutines map[uint64]*goroutine
	order      []*goroutine // by name
	free       bool         // nobody parks any more: the run is only brought to its end
	clock      int          // how often time has passed
	unfinished int          // clients that have not returned
	facts      []string     // what goroutines were told, sorted by who was told
	inside     map[string]int
	accepted   map[string]lifecycle.Offset
	refused    map[string]bool
	results    map[string]error // of Exit and ForceExit that waited to the end, by caller
	told       bool             // somebody has been refused: nothing is admitted after it
	broken     []string         // promises

	// As it was last seen, by the scheduler.
	durable, offered lifecycle.Offset
	gaveUp, sealed   bool
}

// goroutine is one that has announced a step.
type goroutine struct {
	name   string
	trace  []byte // every step that it has announced, and where a timer may start at what time
	at     string // the step that it is parked at; "": it is not
	resume chan struct{}
}

// Steps at which nobody has to be chosen, since what the goroutine does from there to
// its next step is seen by nobody else, or is the same whenever it does it.
var local = map[seam.Step]bool{
	// An announcement only.
	seam.Refused: true, seam.TaskBegin: true, seam.TaskEnd: true, seam.TickBegin: true, seam.TickEnd: true, seam.HookBegin: true, seam.HookEnd: true,
	// The world's own methods have a choice in front of them.
	seam.Go: true, seam.Every: true, seam.Enter: true, seam.OnExit: true,
	// It goes to wait for what stays as it is once it has come.
	seam.Wait: true, seam.Room: true, seam.Park: true,
	// Only the actor waits for it, and for nothing else.
	seam.LetClose: true,
}

// Steps of the actor and the log that are local too where nobody looks: no exit is
// forced, no log is slow and no queue is full.
var quiet = map[seam.Step]bool{seam.Write: true, seam.Written: true, seam.Sync: true, seam.CheckDrain: true, seam.CloseLog: true}

// Steps behind which a timer starts, apart from the runner's: what comes later
// depends on when they were taken.
var startsTimer = map[seam.Step]bool{seam.Begin: true, seam.Force: true, seam.TaskBegin: true, seam.TickEnd: true}

func newWorld() *World {
	w := &World{
		root:       goroutineID(),
		goroutines: map[uint64]*goroutine{},
		inside:     map[string]int{},
		accepted:   map[string]lifecycle.Offset{},
		refused:    map[string]bool{},
		results:    map[string]error{},
	}
	w.Log = &Log{world: w}
	return w
}

// New makes the scenario's host on w.Log, or in memory if the log is taken away.
func (w *World) New(opts lifecycle.Options) {
	remove := seam.Install(func(any) seam.Watch {
		if goroutineID() != w.root { // a host of another world
			return nil
		}
		return w.at
	})
	defer remove()
	var log lifecycle.Log
	if w.Log != nil {
		log = w.Log
	}
	if opts.StuckAfter == 0 {
		opts.StuckAfter = 1 << 40 // reports of stragglers are not explored
	}
	w.Host = lifecycle.New(log, opts)
}

// at is the host's seam: it parks the goroutine that announces a step.
func (w *World) at(step seam.Step, name string) {
	w.park(step, name, w.everyStep || !local[step] && !(w.quiet && quiet[step]))
}

// Pause parks the goroutine that calls it at a step of the scenario's own: before it
// does what others see, or where it may take long.
func (w *World) Pause(name string) { w.park(0, name, true) }

func (w *World) park(step seam.Step, name string, choice bool) {
	id := goroutineID()
	if id == w.root {
		return // the scenario's setup
	}
	w.mu.Lock()
	g := w.goroutines[id]
	if g == nil {
		g = w.adopt(id, first(step, name))
	}
	at := name
	if step != 0 {
		at = step.String()
	}
	g.trace = append(append(g.trace, at...), ' ')
	if g.name == "runner" || startsTimer[step] {
		g.trace = strconv.AppendInt(g.trace, int64(w.clock), 10)
	}
	if !choice || w.free {
		w.mu.Unlock()
		return
	}
	g.at = at
	resume := g.resume
	w.mu.Unlock()
	<-resume
}

// first names a goroutine by the first step that it announces.
func first(step seam.Step, name string) string {
	switch step {
	case seam.Phase:
		return "runner"
	case seam.Take:
		return "actor"
	case seam.TaskBegin:
		return name
	case seam.HookBegin:
		return name
	}
	return "goroutine"
}

// adopt is called with mu held.
func (w *World) adopt(id uint64, name string) *goroutine {
	g := &goroutine{resume: make(chan struct{}), name: name}
	for n := 2; slices.ContainsFunc(w.order, func(other *goroutine) bool { return other.name == g.name }); n++ {
		g.name = name + "#" + strconv.Itoa(n)
	}
	w.goroutines[id] = g
	i, _ := slices.BinarySearchFunc(w.order, g.name, func(g *goroutine, name string) int { return strings.Compare(g.name, name) })
	w.order = slices.Insert(w.order, i, g)
	return g
}

// Client starts a goroutine that is none of the host's. What it does before its first
// step, it does while the world is set up.
func (w *World) Client(name string, f func()) {
	w.mu.Lock()
	w.unfinished++
	w.mu.Unlock()
	go func() {
		w.mu.Lock()
		g := w.adopt(goroutineID(), name)
		w.mu.Unlock()
		f()
		w.mu.Lock()
		g.trace = append(g.trace, "end"...)
		w.unfinished--
		w.mu.Unlock()
	}()
}

// me is the name of the calling goroutine.
func (w *World) me() string {
	id := goroutineID()
	w.mu.Lock()
	defer w.mu.Unlock()
	if g := w.goroutines[id]; g != nil {
		return g.name
	}
	return "setup"
}

// tell records what a goroutine was told, as part of the state.
func (w *World) tell(format string, args ...any) {
	fact := w.me() + ": " + fmt.Sprintf(format, args...)
	w.mu.Lock()
	i, _ := slices.BinarySearch(w.facts, fact)
	w.facts = slices.Insert(w.facts, i, fact)
	w.mu.Unlock()
}

// Broken says that a promise does not hold.
func (w *World) Broken(format string, args ...any) {
	w.mu.Lock()
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
	w.mu.Unlock()
}

// within counts user code that the host answers for.
func (w *World) within(what string, by int) {
	w.mu.Lock()
	w.inside[what] += by
	w.mu.Unlock()
}

// What scenarios ask of the host. Each checks the answer that it gets.

func (w *World) wasTold() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told || isClosed(w.Host.Exiting())
}

// admission checks the answer of Go, Every, Enter or OnExit.
func (w *World) admission(what string, afterRefusal bool, err error) bool {
	switch {
	case err == nil && afterRefusal:
		w.Broken("P2: %s was admitted after somebody had been refused", what)
	case err != nil && !errors.Is(err, lifecycle.ErrExiting):
		w.Broken("P2: %s: %v", what, err)
	case err != nil:
		w.mu.Lock()
		w.told = true
		w.mu.Unlock()
		if !isClosed(w.Host.Exiting()) {
			w.Broken("P2: %s was refused before Exiting closed", what)
		}
	}
	w.tell("%s %s", what, kind(err))
	return err == nil
}

// Go starts a task, and reports whether it was admitted.
func (w *World) Go(name string, run func(ctx context.Context) error) bool {
	w.Pause("ask")
	var answered, wasRefused bool
	told := w.wasTold()
	err := w.Host.Go(name, func(ctx context.Context) error {
		w.mu.Lock()
		refused := answered && wasRefused
		w.mu.Unlock()
		if refused {
			w.Broken("P2: the func of the refused task %s was called", name)
		}
		w.within("task "+name, 1)
		defer w.within("task "+name, -1)
		return run(ctx)
	})
	w.mu.Lock()
	answered, wasRefused = true, err != nil
	if wasRefused && w.inside["task "+name] > 0 {
		w.broken = append(w.broken, "P2: the func of the refused task "+name+" was called")
	}
	w.mu.Unlock()
	return w.admission("Go "+name, told, err)
}

// every starts a task of Every.
func (w *World) every(name string, interval time.Duration) {
	ticks := 0
	w.Pause("ask")
	told := w.wasTold()
	w.admission("Every "+name, told, w.Host.Every(name, interval, func(context.Context) error {
		w.within("tick "+name, 1)
		defer w.within("tick "+name, -1)
		ticks++
		w.Append(background, name+strconv.Itoa(ticks))
		return nil
	}))
}

// OnExit registers a hook.
func (w *World) OnExit(p lifecycle.Phase, name string, hook func(ctx context.Context) error) bool {
	w.Pause("ask")
	told := w.wasTold()
	return w.admission("OnExit "+name, told, w.Host.OnExit(p, name, func(ctx context.Context) error {
		what := "hook " + name
		if p == lifecycle.PhaseRelease {
			what = "release " + name
		}
		w.within(what, 1)
		defer w.within(what, -1)
		return hook(ctx)
	}))
}

// Call enters, runs f and leaves.
func (w *World) Call(f func(lifecycle.Call)) {
	w.Pause("ask")
	told := w.wasTold()
	call, err := w.Host.Enter()
	if !w.admission("Enter", told, err) {
		return
	}
	w.within("call", 1)
	f(call)
	w.within("call", -1)
	call.Leave()
}

// Append appends and does not wait.
func (w *World) Append(ctx context.Context, tx string) {
	p, err := w.Host.Durability().Append(ctx, []byte(tx))
	w.answered(ctx, tx, p.Offset(), err == nil, err)
}

// Commit appends and waits.
func (w *World) Commit(ctx context.Context, tx string) {
	offset, err := w.Host.Durability().Commit(ctx, []byte(tx))
	accepted := err == nil || errors.Is(err, lifecycle.ErrUnknown)
	w.answered(ctx, tx, offset, accepted, err)
	if err == nil && w.Log != nil && !w.Log.holds(offset, tx) {
		w.Broken("P4: %s was acknowledged, and the log holds at %d, synced: %q", tx, offset, w.Log.durable())
	}
	if errors.Is(err, lifecycle.ErrUnknown) && !w.Log.failed() && !w.state().GivenUp && ctx.Err() == nil {
		w.Broken("P3: the outcome of %s is unknown though nothing has failed: %v", tx, err)
	}
}

func (w *World) answered(ctx context.Context, tx string, offset lifecycle.Offset, accepted bool, err error) {
	w.mu.Lock()
	if accepted {
		w.accepted[tx] = offset
	} else {
		w.refused[tx] = true
	}
	w.mu.Unlock()
	if !accepted && !errors.Is(err, lifecycle.ErrClosed) && (ctx.Err() == nil || !errors.Is(err, ctx.Err())) {
		w.Broken("P2: Append of %s: %v", tx, err)
	}
	w.tell("append %s: %s at %d", tx, kind(err), offset)
}

// Wait waits for an offset.
func (w *World) Wait(ctx context.Context, through lifecycle.Offset) {
	err := w.Host.Durability().Wait(ctx, through)
	if err == nil && w.Log != nil && uint64(len(w.Log.durable())) <= through {
		w.Broken("P4: Wait(%d) says durable, and the log holds %q", through, w.Log.durable())
	}
	w.tell("wait %d: %s", through, kind(err))
}

// Exit awaits the exit and checks what its caller was told.
func (w *World) Exit(ctx context.Context) { w.exited(ctx, "Exit", w.Host.Exit(ctx)) }

// ForceExit forces the exit and checks what its caller was told.
func (w *World) ForceExit(ctx context.Context) { w.exited(ctx, "ForceExit", w.Host.ForceExit(ctx)) }

func (w *World) exited(ctx context.Context, method string, err error) {
	var unended *lifecycle.ExitError
	if method == "Exit" && errors.As(err, &unended) && ctx.Err() != nil && errors.Is(unended.Err, ctx.Err()) {
		if unended.Phase == 0 {
			w.Broken("P6: an unended exit without a phase: %v", err)
		}
		w.tell("%s: context ended", method)
		return
	}
	if errors.Is(err, lifecycle.ErrSelfExit) {
		w.tell("%s: %s", method, kind(err))
		return
	}
	if !isClosed(w.Host.Done()) {
		w.Broken("P6: %s returned %v before the exit had ended", method, err)
	}
	w.mu.Lock()
	w.results[w.nameLocked()] = err
	w.mu.Unlock()
	w.tell("%s: %s", method, kind(err))
}

func (w *World) nameLocked() string {
	if g := w.goroutines[goroutineID()]; g != nil {
		return g.name
	}
	return "setup"
}

func (w *World) state() seam.State { return seam.StateOf(w.Host) }

// kind is an error as part of a state: which of the package's it is, without
// durations and stacks.
func kind(err error) string {
	if err == nil {
		return "ok"
	}
	var kinds []string
	for name, is := range map[string]error{
		"ErrExiting": lifecycle.ErrExiting, "ErrClosed": lifecycle.ErrClosed, "ErrSelfExit": lifecycle.ErrSelfExit,
		"ErrForced": lifecycle.ErrForced, "ErrUnknown": lifecycle.ErrUnknown, "ErrInvalid": lifecycle.ErrInvalid,
		"Canceled": context.Canceled, "errLog": errLog, "errTask": errTask, "errHook": errHook,
	} {
		if errors.Is(err, is) {
			kinds = append(kinds, name)
		}
	}
	slices.Sort(kinds)
	return strings.Join(kinds, "+")
}

var (
	errLog  = errors.New("the log's error")
	errTask = errors.New("the task's error")
	errHook = errors.New("the hook's error")
)

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// goroutineID is the calling goroutine's number. The runtime has no function for it;
// package goid reads it where the runtime keeps it, and the header of the stack tells
// whether it looked in the right place.
func goroutineID() uint64 { return uint64(goid.Get()) }

func init() {
	var buf [64]byte
	header := string(buf[:runtime.Stack(buf[:], false)])
	if want := fmt.Sprintf("goroutine %d ", goroutineID()); !strings.HasPrefix(header, want) {
		panic(fmt.Sprintf("explore: package goid does not know this version of Go: it says %q where the stack says %q", want, header))
	}
}
