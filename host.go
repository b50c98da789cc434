package lifecycle

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/seed080d9131/lifecycle/internal/seam"
)

// Host is one running database: it owns a group of background tasks, the gate
// that counts client calls, and a durability actor, and is the only one that can
// end them. All its methods may be called at any time, by any number of
// goroutines.
//
//	          Exit, ForceExit, Fail,            every phase
//	          a task's or the log's failure     has ended
//	Running ───────────────────────────▶ Exiting ─────────▶ Exited
//	                                        │
//	                    closes Exiting()    │ phases 1 to 7, one run   closes Done()
//
// Whoever begins the exit first gives it its cause; everyone else joins it. From
// then on admission is over: Go, Every, Enter and OnExit refuse. (They end one after
// another, but a refusal is told only when all have ended: whoever has one finds
// everything refused.) Append goes on until PhaseCloseDurability seals the channel,
// or the log fails. A Host comes from New; the zero Host can't be used.
//
// The parts keep their own locks (tasks.mu, callouts.mu, Durability.mu). No two
// locks of a host are held together, but that an exit's end looks under Host.mu at
// what Durability.mu guards; and none across a channel operation, a wait, I/O or
// user code.
type Host struct {
	name       string
	label      string       // of its goroutines
	logger     *slog.Logger // nil: silent
	observer   Observer
	stuckAfter time.Duration
	born       time.Time
	base       context.Context // marks its descendants as the host's own, for ErrSelfExit
	watch      seam.Watch      // a test kit's; nil: nobody watches

	gate       gate
	tasks      tasks
	callouts   callouts
	durability Durability

	exiting chan struct{} // closed when the exit has begun and everything new is refused
	done    chan struct{} // closed when the exit has ended

	mu      sync.Mutex // guards what follows, and what exit says that it does
	exit    *exit      // nil: not begun
	state   State
	hooks   []hook
	waiting map[*waiter]struct{}
	atEnd   []func() // called when the exit has ended, before done closes
}

type hook struct {
	phase Phase
	name  string
	run   func(ctx context.Context) error
}

// waiter is a goroutine that waits inside Exit or ForceExit.
type waiter struct{ stack []uintptr }

// Options configure a Host. The zero value is good.
type Options struct {
	// Name says which host it is in errors, logs and labels; "" becomes "host".
	Name string
	// Logger gets the exit's begin and end, stragglers and failed ticks; nil:
	// silent.
	Logger *slog.Logger
	// Observer is told what the host does.
	Observer Observer
	// QueueBytes is how much may be accepted and unwritten before Append waits
	// for room. Each transaction counts its length + 32. 0 or less:
	// DefaultQueueBytes.
	QueueBytes int
	// StuckAfter is how long a phase of the exit waits before, and between,
	// reports of its stragglers. 0 or less: 5 s.
	StuckAfter time.Duration
}

// DefaultQueueBytes is Options.QueueBytes where that is 0: 16 MiB.
const DefaultQueueBytes = 16 << 20

const defaultStuckAfter = 5 * time.Second

// ForceGrace is how long ForceExit waits for those who obey at once: once for
// all who are alive when it is called, and once for each release hook.
const ForceGrace = 100 * time.Millisecond

// New makes a host that runs at once; the caller owes it an Exit. It asks log
// for its Next offset, and blocks as long as that takes. From then on the log is
// the host's: nobody else may append to it, sync or close it.
//
// A nil log makes an in-memory host, whose appends are durable at once and gone
// with the process.
//
// If log.Next panics, the host comes back with its exit begun and a *LogError as
// the cause.
func New(log Log, opts Options) *Host {
	h := &Host{
		name:       opts.Name,
		logger:     opts.Logger,
		observer:   opts.Observer,
		stuckAfter: opts.StuckAfter,
		born:       time.Now(),
		exiting:    make(chan struct{}),
		done:       make(chan struct{}),
	}
	if h.name == "" {
		h.name = "host"
	}
	if h.stuckAfter <= 0 {
		h.stuckAfter = defaultStuckAfter
	}
	h.label = newHostLabel(h.name)
	h.base = h.mark(context.Background())
	h.watch = seam.Of(h)
	h.gate.init()
	h.callouts.init(h)
	h.tasks.init(h)
	h.durability.init(h, log, opts.QueueBytes)
	return h
}

// OnExit registers a hook for a phase that takes hooks: PhaseExitModule,
// PhaseCheckpoint or PhaseRelease. The hooks of a phase run one after another,
// last registered first, as defer does. A hook's error, panic or Goexit is kept
// for Exit's result as a *HookError and skips nothing. Its context is cancelled
// by ForceExit, which skips hooks of the first two kinds that have not begun, and
// otherwise not before the exit has ended.
//
// OnExit does not block. It returns an error that is ErrExiting once the exit has
// begun, and ErrInvalid if the phase takes no hooks, name is empty or hook is
// nil.
func (h *Host) OnExit(p Phase, name string, run func(ctx context.Context) error) error {
	if err := h.checkNamed("OnExit", name, run == nil); err != nil {
		return err
	}
	if !p.takesHooks() {
		return h.invalid("OnExit "+strconv.Quote(name), fmt.Sprintf("the phase %q takes no hooks", p))
	}
	h.at(seam.OnExit, name)
	h.mu.Lock()
	begun := h.exit != nil
	if !begun {
		h.hooks = append(h.hooks, hook{p, name, run})
	}
	h.mu.Unlock()
	if begun {
		h.at(seam.Refused, "OnExit")
		return h.refuse("OnExit "+strconv.Quote(name), ErrExiting)
	}
	return nil
}

// Durability returns the host's durability channel.
func (h *Host) Durability() *Durability { return &h.durability }

// Exit ends the host: it begins the exit, if nobody has, and waits until it has
// ended. All callers share one run of the phases and one result, so calling it
// again, or at the same time, is how to go on waiting.
//
// It returns nil only if every phase ended clean: no failed task, hook, flush or
// close, and everything that was accepted is durable. Otherwise the failures come
// back joined, the cause of the exit first; after a forced exit that left
// something behind, an *ExitError that is ErrForced.
//
// ctx bounds only this caller's wait. When it ends first, an *ExitError names the
// phase, each straggler with its stack, and ctx's error, and the exit goes on: no
// deadline makes it close the log under a task. A ctx that is done already still
// begins the exit.
//
// If ctx descends from one of the host's own tasks, calls or hooks, Exit starts
// nothing and returns an error that is ErrSelfExit: it would wait for its
// caller. Use Fail there. A nil ctx is ErrInvalid, and starts nothing.
func (h *Host) Exit(ctx context.Context) error {
	if err := h.checkCaller("Exit", ctx); err != nil {
		return err
	}
	h.at(seam.Exit, "")
	e, _ := h.begin(nil, nil, false)
	if isClosed(h.done) {
		return e.result
	}
	w := h.beginWaiting()
	defer h.endWaiting(w)
	defer reportInside(ctx, h.inner)()
	select {
	case <-h.done:
	case <-ctx.Done():
		if !isClosed(h.done) {
			return e.unended(endOf(ctx))
		}
	}
	return e.result
}

// ForceExit ends the host even if something in it never ends, and is the only
// way to do so. It begins the exit or takes over the one that runs, cancels every
// task and hook, waits ForceGrace for those who obey, and leaves the rest behind:
// their later appends get ErrClosed. Hooks of PhaseExitModule and PhaseCheckpoint
// that have not begun are skipped, so a task that only such a hook can stop (Serve,
// which Shutdown ends) should watch its context as well. What was accepted is drained and synced and the
// log closed, for which it waits until ctx ends; what is not durable by then is
// settled as ErrUnknown, and the actor closes the log itself when the log's call
// returns. Release hooks run, each under a context of its own that ends after
// ForceGrace.
//
// It returns when the exit has ended, with the exit's result: an *ExitError that
// is ErrForced, and names all who were left behind, if anyone was, or if
// anything was skipped or lost. ErrSelfExit and ErrInvalid are as for Exit.
func (h *Host) ForceExit(ctx context.Context) error {
	if err := h.checkCaller("ForceExit", ctx); err != nil {
		return err
	}
	h.at(seam.ForceExit, "")
	e, _ := h.begin(nil, nil, true)
	if isClosed(h.done) {
		return e.result
	}
	w := h.beginWaiting()
	defer h.endWaiting(w)
	defer reportInside(ctx, h.inner)()
	h.at(seam.Force, "")
	e.force()
	select {
	case <-h.done:
	case <-ctx.Done():
		if !isClosed(h.done) {
			h.at(seam.EndFlush, "")
			e.endFlush()
			<-h.done
		}
	}
	return e.result
}

// Fail begins the exit and waits for nothing, so a task, a call or a hook may
// call it. The cause is what context.Cause shows in every task, and part of
// Exit's result; nil begins a clean exit, like Exit. If the exit has begun, a
// cause that says something new is added to its result; once it has ended, Fail
// does nothing.
func (h *Host) Fail(cause error) {
	h.at(seam.Fail, "")
	if cause == nil {
		h.begin(nil, nil, false)
		return
	}
	failure := &causeError{h.name, cause}
	if e, first := h.begin(cause, failure, false); !first {
		e.addFailure(failure)
	}
}

// fail is Fail for the host's own parts, whose errors name the host.
func (h *Host) fail(failure error) {
	if e, first := h.begin(failure, failure, false); !first {
		e.addFailure(failure)
	}
}

// Exiting returns a channel that is closed when the exit has begun and
// everything new is refused.
func (h *Host) Exiting() <-chan struct{} { return h.exiting }

// Done returns a channel that is closed when the exit has ended.
func (h *Host) Done() <-chan struct{} { return h.done }

// begin starts the exit unless it has begun. failure is the cause as part of the
// result; force says that ForceExit begins it.
func (h *Host) begin(cause, failure error, force bool) (e *exit, first bool) {
	h.mu.Lock()
	e = h.exit
	h.mu.Unlock()
	if e == nil {
		created := newExit(h, cause, failure, force) // not under the lock: it reads the cause's text
		h.at(seam.Begin, "")
		h.mu.Lock()
		if h.exit == nil {
			h.exit, first = created, true
			if force {
				created.setForced()
			}
		}
		e = h.exit
		h.mu.Unlock()
	}
	if !first {
		<-h.exiting // a moment: until whoever began it has ended admission
		return e, false
	}
	h.at(seam.EndTasks, "")
	h.tasks.refuse()
	h.at(seam.EndCalls, "")
	h.gate.close()
	h.mu.Lock()
	h.state = Exiting
	h.mu.Unlock()
	h.at(seam.Announce, "")
	close(h.exiting)
	go e.run()
	return e, true
}

// at tells the test kit that watches the host, if one does, that the calling
// goroutine is about to take a step. No lock may be held.
func (h *Host) at(step seam.Step, name string) {
	if h.watch != nil {
		h.watch(step, name)
	}
}

// mark makes contexts recognisable as the host's own.
func (h *Host) mark(parent context.Context) context.Context {
	return context.WithValue(parent, marker{h}, true)
}

type marker struct{ *Host }

func (h *Host) checkCaller(op string, ctx context.Context) error {
	if ctx == nil {
		return h.invalid(op, "a nil context")
	}
	if ctx.Value(marker{h}) != nil {
		return fmt.Errorf("lifecycle: host %q: %s: %w; use Fail", h.name, op, ErrSelfExit)
	}
	return nil
}

func (h *Host) checkNamed(op, name string, isNil bool) error {
	switch {
	case name == "":
		return h.invalid(op, "an empty name")
	case isNil:
		return h.invalid(op+" "+strconv.Quote(name), "a nil func")
	}
	return nil
}

// beginWaiting remembers the caller's stack: should the caller hold a call that
// the exit waits for, the stragglers' report can show where it waits for itself.
func (h *Host) beginWaiting() *waiter {
	w := &waiter{callerStack(1)}
	h.mu.Lock()
	if h.waiting == nil {
		h.waiting = map[*waiter]struct{}{}
	}
	h.waiting[w] = struct{}{}
	h.mu.Unlock()
	return w
}

func (h *Host) endWaiting(w *waiter) {
	h.mu.Lock()
	delete(h.waiting, w)
	h.mu.Unlock()
}

// whenExited calls f when the exit has ended, before Done closes; at once if it
// has.
func (h *Host) whenExited(f func()) {
	h.mu.Lock()
	exited := h.state == Exited
	if !exited {
		h.atEnd = append(h.atEnd, f)
	}
	h.mu.Unlock()
	if exited {
		f()
	}
}

// inner is whom the exit waits for, as stragglers of a host around this one.
func (h *Host) inner(seen map[*Host]bool) []found {
	h.mu.Lock()
	e := h.exit
	h.mu.Unlock()
	if e == nil || seen[h] || isClosed(h.done) {
		return nil
	}
	seen[h] = true
	phase, _ := h.whereAndWhy()
	all := e.stragglersBut(phase, seen)
	for i := range all {
		all[i].Name = h.name + "/" + all[i].Name
	}
	return all
}

// noteError puts a text into the report of the phase that runs, if one does.
func (h *Host) noteError(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.exit != nil && h.state != Exited {
		h.exit.note(text)
	}
}

// whereAndWhy is the phase that runs and the text of the exit's cause.
func (h *Host) whereAndWhy() (Phase, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.exit == nil {
		return 0, ""
	}
	return h.exit.phase, h.exit.causeText
}

// age is the time since the host's birth.
func (h *Host) age() time.Duration { return time.Since(h.born) }
