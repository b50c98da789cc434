package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/trace"
	"slices"
	"strings"
	"time"

	"github.com/seed080d9131/lifecycle/internal/seam"
)

// exit is the one run of a host's exit, in a goroutine of its own: run walks the
// table of phases. Callers of Exit only wait for it. Everything that it calls, or
// waits for, it can stop waiting for, if ForceExit says so:
//
//	who                                    is left behind when
//	calls, tasks, a hook that runs         graceEnd closes: ForceGrace after ForceExit
//	a release hook begun after ForceExit   its own ForceGrace has passed
//	the drain, the close of the log        flushEnd closes: a ForceExit's context has ended
type exit struct {
	host         *Host
	cause        error  // what began it; nil: a plain exit
	causeText    string // "": plain
	failure      error  // the cause as part of the result: it names the host
	cancellation error  // the cause that tasks are cancelled with
	start        time.Time
	graceEnd     chan struct{}
	flushEnd     chan struct{}
	hookCtx      context.Context // of hooks; ForceExit cancels it
	cancelHooks  context.CancelCauseFunc
	result       error // set before host.done closes

	// The runner's own.
	now        time.Time     // between two phases: when the last one had ended
	nextReport time.Time     // of stragglers
	calling    []string      // observers and the logger that the runner waits for
	observed   time.Duration // by observers, since ForceExit
	logged     time.Duration // by the logger, since ForceExit

	// Guarded by host.mu.
	phase      Phase
	phases     []PhaseReport
	failures   failures
	inPhase    failures // those of the phase that runs
	forced     bool
	flushed    bool // flushEnd is closed
	graceTimer *time.Timer
	left       []Straggler // behind
	leftIn     Phase       // the first phase in which something was left behind or skipped
	duration   time.Duration
	lost       uint64
	outcome    string
}

func newExit(h *Host, cause, failure error, force bool) *exit {
	cancellation := cause
	switch {
	case cause != nil:
	case force:
		cancellation = ErrForced
	default:
		cancellation = ErrExiting
	}
	e := &exit{
		host:         h,
		cause:        cause,
		causeText:    text(cause),
		failure:      failure,
		cancellation: cancellation,
		start:        time.Now(),
		graceEnd:     make(chan struct{}),
		flushEnd:     make(chan struct{}),
		phases:       make([]PhaseReport, 0, len(phases)),
	}
	e.hookCtx, e.cancelHooks = context.WithCancelCause(h.base)
	e.enter(phases[0].Phase, e.start) // here, so that at no moment of an exit there is no phase
	return e
}

// run is the exit from its beginning to its end.
func (e *exit) run() {
	if e.host.logger != nil {
		e.log(slog.LevelInfo, "exit begins", "cause", e.causeText)
	}
	e.runPhases()
	e.finish()
}

// runPhases walks the table. In an execution trace (runtime/trace) that is a task,
// and each phase a region.
func (e *exit) runPhases() {
	ctx := context.Background()
	if trace.IsEnabled() {
		traced, task := trace.NewTask(ctx, "exit of host "+e.host.name)
		defer task.End()
		ctx = traced
	}
	for _, row := range phases {
		region := trace.StartRegion(ctx, row.String())
		e.startPhase(row.Phase)
		if row.hooks {
			e.runHooks(row.Phase)
		}
		if row.step != nil {
			row.step(e)
		}
		e.endPhase(row.Phase)
		region.End()
	}
}

// The steps, in the order of the table.

func (e *exit) awaitCalls() {
	e.awaitOrLeave(e.host.gate.empty, e.calls)
}

func (e *exit) cancelTasks() { e.host.tasks.cancel(e.cancellation) }

func (e *exit) awaitTasks() {
	e.awaitOrLeave(e.host.tasks.await(), func() []found {
		return append(e.host.tasks.stragglers(), e.leftCallouts(inTaskEnd, inLogger)...)
	})
}

// awaitOrLeave waits for done, or until the grace of a forced exit has passed
// and somebody is alive to be left behind. If nobody is, the last is on its way
// out this moment.
func (e *exit) awaitOrLeave(done <-chan struct{}, alive func() []found) {
	for !e.wait(done, e.graceEnd) {
		if left := alive(); len(left) > 0 {
			e.leaveBehind(left...)
			return
		}
		runtime.Gosched()
	}
}

func (e *exit) closeDurability() {
	d := &e.host.durability
	e.host.at(seam.Seal, "")
	d.seal()
	if !e.wait(d.drained, e.graceEnd) { // forced
		// An observer that hangs on the actor's goroutine must not take what was
		// accepted with it: another goroutine goes on in its place.
		e.host.at(seam.TakeOver, "")
		if len(e.host.callouts.activeNow(inSynced)) > 0 {
			e.host.at(seam.TakeOver, "") // it may have returned by now
			if d.takeOver() {
				e.leaveBehind(e.leftCallouts(inSynced)...)
			}
		}
		if !e.wait(d.drained, e.flushEnd) {
			e.host.at(seam.GiveUp, "")
			log := d.straggler()
			if d.giveUp() {
				e.leaveBehind(log)
			} else {
				e.wait(d.drained, nil)
			}
		}
	}
	e.host.at(seam.CheckDrain, "")
	if err := d.checkDrained(); err != nil {
		e.addFailure(err)
	}
}

func (e *exit) closeLog() {
	d := &e.host.durability
	e.host.at(seam.LetClose, "")
	d.closeLog()
	if e.wait(d.closed, e.flushEnd) {
		return
	}
	// The time for the drain is over; that for a Close that returns at once is not.
	patience, stop := e.patience(0)
	defer stop()
	if !e.wait(d.closed, patience) && !d.givenUp.Load() {
		e.leaveBehind(d.straggler())
	}
}

// Hooks.

func (e *exit) runHooks(p Phase) {
	h := e.host
	h.mu.Lock()
	hooks := h.hooks
	h.mu.Unlock() // it no longer changes: OnExit refuses
	for _, k := range slices.Backward(hooks) {
		if k.phase == p {
			e.runHook(k)
		}
	}
}

func (e *exit) runHook(k hook) {
	parent, forced := e.hookCtx, e.isForced()
	report := HookReport{Hook: k.name, Start: time.Now().Round(0)}
	if forced && k.phase != PhaseRelease {
		report.Skipped = true
		e.skipped(k.phase)
		e.endHook(k, report, ErrForced)
		return
	}
	c := e.host.callouts.beginHook(k.name)
	if forced {
		var cancel context.CancelFunc
		parent, cancel = context.WithTimeout(e.host.base, ForceGrace)
		defer cancel()
	}
	// A little longer than its context, so that it can obey that.
	abandon, stop := e.patience(ForceGrace / 10)
	defer stop()
	ctx := context.WithValue(c.label.on(parent), calloutKey{}, c)
	// What the hook came to is taken in its own goroutine too: an error's methods
	// are user code like the hook.
	var failure error
	took := func(err error, stack []byte) {
		if err != nil && !e.host.callouts.wasLeft(c) {
			failed := &HookError{Phase: k.phase, Hook: k.name, Err: err, Stack: stack, host: e.host.name}
			failure, report.Error = failed, text(err)
			e.addFailure(failed)
		}
	}
	if e.call(c, abandon, func() {
		e.host.at(seam.HookBegin, k.name)
		stack, err := protect(func() error { return k.run(ctx) }, took)
		e.host.at(seam.HookEnd, k.name)
		took(err, stack)
	}) {
		report.Duration = e.host.age() - c.start
		e.endHook(k, report, failure)
		return
	}
	e.endHook(k, HookReport{Hook: k.name, Start: report.Start, Duration: e.host.age() - c.start, Abandoned: true}, ErrForced)
}

func (e *exit) endHook(k hook, report HookReport, err error) {
	h := e.host
	h.mu.Lock()
	current := e.current()
	current.Hooks = append(current.Hooks, report)
	h.mu.Unlock()
	if f := h.observer.HookEnd; f != nil {
		event := HookEvent{Host: h.name, Phase: k.phase, Hook: k.name, Duration: report.Duration, Err: err, Skipped: report.Skipped, Abandoned: report.Abandoned}
		e.observe(inHookEnd, func() { f(event) })
	}
}

// call runs f in a goroutine of its own and waits for it. It returns false if f
// is left behind; then nothing that f writes to may be read.
func (e *exit) call(c *callout, abandon <-chan struct{}, f func()) (returned bool) {
	c.f, c.done = f, make(chan struct{})
	go c.main(&e.host.callouts)
	if e.wait(c.done, abandon) {
		return true
	}
	e.leaveBehind(e.leaveCallout(c))
	return false
}

// observe calls an observer or the logger. If the runner waits for the same one
// already, and this is about its hanging, it is passed over.
func (e *exit) observe(name string, f func()) {
	if slices.Contains(e.calling, name) {
		return
	}
	c := e.host.callouts.begin(name, 0)
	if c == nil {
		return
	}
	// In a forced exit all calls of observers together have ForceGrace, and those of
	// the logger too: a slow one is not to make it long.
	spent := &e.observed
	if name == inLogger {
		spent = &e.logged
	}
	if e.isForced() && *spent >= ForceGrace {
		e.host.callouts.end(c)
		return
	}
	abandon, stop := e.patience(-*spent)
	defer stop()
	e.calling = append(e.calling, name)
	e.call(c, abandon, f)
	e.calling = e.calling[:len(e.calling)-1]
	if e.isForced() {
		*spent += e.host.age() - c.start
	}
}

// message is an error whose text is made where it is logged, as user code.
type message struct{ error }

func (m message) LogValue() slog.Value { return slog.StringValue(text(m.error)) }

func (e *exit) log(level slog.Level, message string, attrs ...any) {
	logger := e.host.logger
	if logger == nil || slices.Contains(e.calling, inLogger) {
		return
	}
	e.observe(inLogger, func() {
		logger.Log(e.host.base, level, message, append([]any{"host", e.host.name}, attrs...)...)
	})
}

// Waiting.

// wait waits for done, and reports stragglers meanwhile. It returns false if
// abandon closes first.
func (e *exit) wait(done, abandon <-chan struct{}) bool {
	if isClosed(done) {
		return true
	}
	runtime.Gosched() // who closes it is about to, most of the time
	if isClosed(done) {
		return true
	}
	timer := time.NewTimer(time.Until(e.nextReport))
	defer timer.Stop()
	for {
		select {
		case <-done:
			return true
		case <-abandon:
			return isClosed(done)
		case <-timer.C:
			e.nextReport = time.Now().Add(e.host.stuckAfter)
			e.reportStragglers()
			timer.Reset(time.Until(e.nextReport))
		}
	}
}

// patience is how long to wait for user code that begins now: for ever, but for
// ForceExit, which leaves it ForceGrace, or what remains of it, and extra.
func (e *exit) patience(extra time.Duration) (abandon <-chan struct{}, stop func()) {
	if !e.isForced() {
		return e.graceEnd, func() {}
	}
	late := make(chan struct{})
	timer := time.AfterFunc(ForceGrace+extra, func() { close(late) })
	return late, func() { timer.Stop() }
}

// stragglers is everyone that a phase waits for.
func (e *exit) stragglers(p Phase) []found {
	return e.stragglersBut(p, map[*Host]bool{e.host: true})
}

func (e *exit) stragglersBut(p Phase, seen map[*Host]bool) []found {
	h := e.host
	all := h.callouts.stragglers(p, h.stuckAfter, seen)
	switch p {
	case PhaseExitModule:
		all = append(all, e.calls()...)
	case PhaseAwaitTasks:
		all = append(all, h.tasks.stragglers()...)
	case PhaseCloseDurability, PhaseCloseLog:
		if d := &h.durability; d.isBusy(p) {
			all = append(all, d.straggler())
		}
	}
	return all
}

// calls is the calls in flight, as one entry. They are counted, not named, and
// have no goroutine of their own: what there is to show is who waits inside
// Exit, since one of those may hold a call.
func (e *exit) calls() []found {
	h := e.host
	n := h.gate.count()
	if n == 0 {
		return nil
	}
	var stacks strings.Builder
	h.mu.Lock()
	var waiting [][]uintptr
	for w := range h.waiting {
		waiting = append(waiting, w.stack)
	}
	h.mu.Unlock()
	for i, pcs := range waiting {
		if i == 3 {
			fmt.Fprintf(&stacks, "\n(and %d more)\n", len(waiting)-i)
			break
		}
		stacks.WriteString("(it waits inside Exit; if it holds a call, for itself)\n" + formatStack(pcs))
	}
	return []found{{Straggler: Straggler{
		Kind: "call", Name: "Enter", Count: n, Age: time.Since(e.start), Stack: stacks.String(),
	}}}
}

// reportStragglers tells the report, the logger and the observer who the phase
// waits for, if there is anybody.
func (e *exit) reportStragglers() {
	h := e.host
	h.mu.Lock()
	phase, age := e.phase, time.Since(e.current().Start)
	h.mu.Unlock()
	stragglers := withStacks(e.stragglers(phase))
	if len(stragglers) == 0 {
		return // the last of them has just ended
	}
	at := make([]string, len(stragglers))
	for i, s := range stragglers {
		at[i], stragglers[i].Stack = s.where(), top(s.Stack)
	}
	h.mu.Lock()
	e.current().Stragglers = stragglers
	h.mu.Unlock()

	queued := h.durability.queuedBytes()
	for i, s := range stragglers {
		if i == maxStacks {
			e.log(slog.LevelWarn, "exit waits", "phase", phase.String(), "phase_age", age, "more_stragglers", len(stragglers)-i)
			break
		}
		attrs := []any{"phase", phase.String(), "phase_age", age, "kind", s.Kind, "name", s.Name, "count", s.Count, "age", s.Age, "at", at[i]}
		if phase == PhaseCloseDurability {
			attrs = append(attrs, "queued_bytes", queued)
		}
		e.log(slog.LevelWarn, "exit waits", attrs...)
	}
	if f := h.observer.Stuck; f != nil {
		event := StuckEvent{Host: h.name, Phase: phase, Age: age, Stragglers: slices.Clone(stragglers), QueuedBytes: queued}
		e.observe(inStuck, func() { f(event) })
	}
}

// unended is what a caller gets whose context ended before the exit did.
func (e *exit) unended(err error) error {
	h := e.host
	h.mu.Lock()
	phase := e.phase
	h.mu.Unlock()
	if phase == 0 { // it ends this moment
		<-h.done
		return e.result
	}
	return &ExitError{Host: h.name, Phase: phase, Stragglers: withStacks(e.stragglers(phase)), Cause: e.cause, Err: err}
}

// Forcing.

// force cancels everything, and makes the exit leave behind who does not obey.
func (e *exit) force() {
	h := e.host
	h.mu.Lock()
	e.setForced()
	h.mu.Unlock()
	e.cancelHooks(ErrForced) // first: a hook that waits for what a task ends should know why it ends
	h.tasks.cancel(e.cancellation)
}

// setForced is called with host.mu held. An exit that ForceExit begins is forced
// before it runs, so that no hook slips through.
func (e *exit) setForced() {
	if e.forced || e.host.state == Exited {
		return
	}
	e.forced = true
	e.host.durability.quiet.Store(true)
	e.graceTimer = time.AfterFunc(ForceGrace, func() { close(e.graceEnd) })
}

func (e *exit) isForced() bool {
	e.host.mu.Lock()
	defer e.host.mu.Unlock()
	return e.forced
}

// endFlush ends the time for the drain and for the close of the log.
func (e *exit) endFlush() {
	e.host.mu.Lock()
	already := e.flushed
	e.flushed = true
	e.host.mu.Unlock()
	if !already {
		close(e.flushEnd)
	}
}

// leaveBehind records who is left, with their stacks.
func (e *exit) leaveBehind(who ...found) {
	if len(who) == 0 {
		return
	}
	stragglers := withStacks(who)
	h := e.host
	h.mu.Lock()
	current := e.current()
	current.Abandoned = append(current.Abandoned, stragglers...)
	e.left = append(e.left, stragglers...)
	if e.leftIn == 0 {
		e.leftIn = e.phase
	}
	h.mu.Unlock()
	for i, s := range stragglers {
		if i == maxStacks {
			break
		}
		e.log(slog.LevelError, "left behind", "kind", s.Kind, "name", s.Name, "count", s.Count, "age", s.Age, "at", s.where())
	}
}

func (e *exit) leaveCallout(c *callout) found {
	f := c.found()
	f.Count, f.Age = 1, e.host.age()-c.start
	e.host.callouts.leave(c)
	return *f
}

// leftCallouts leaves behind the calls of these observers that run on other
// goroutines than the exit's.
func (e *exit) leftCallouts(names ...string) []found {
	var all []found
	for _, name := range names {
		for _, c := range e.host.callouts.activeNow(name) {
			if c.done == nil {
				all = append(all, e.leaveCallout(c))
			}
		}
	}
	return all
}

func (e *exit) skipped(p Phase) {
	e.host.mu.Lock()
	defer e.host.mu.Unlock()
	if e.leftIn == 0 {
		e.leftIn = p
	}
}

// Bookkeeping.

// enter is called with host.mu held.
func (e *exit) enter(p Phase, now time.Time) {
	e.nextReport = now.Add(e.host.stuckAfter)
	e.phase = p
	e.phases = append(e.phases, PhaseReport{Phase: p, Start: now})
}

// current is the report of the phase that runs. It is called with host.mu held.
func (e *exit) current() *PhaseReport { return &e.phases[len(e.phases)-1] }

func (e *exit) startPhase(p Phase) {
	h := e.host
	h.at(seam.Phase, p.String())
	h.mu.Lock()
	if e.phase != p {
		e.enter(p, e.now)
	}
	h.mu.Unlock()
	if f := h.observer.PhaseStart; f != nil {
		e.observe(inPhaseStart, func() { f(PhaseEvent{Host: h.name, Phase: p}) })
	}
}

func (e *exit) endPhase(p Phase) {
	h := e.host
	h.mu.Lock()
	e.now = e.start.Add(time.Since(e.start)) // by the monotonic clock alone
	current := e.current()
	current.Duration = e.now.Sub(current.Start)
	current.Ended = true
	event := PhaseEvent{Host: h.name, Phase: p, Duration: current.Duration, Err: e.inPhase.join(h.name)}
	e.inPhase = failures{}
	h.mu.Unlock()
	if h.logger != nil {
		e.log(slog.LevelDebug, "phase ended", "phase", p.String(), "duration", event.Duration)
	}
	if f := h.observer.PhaseEnd; f != nil {
		e.observe(inPhaseEnd, func() { f(event) })
	}
	if h.logger != nil || h.observer.PhaseEnd != nil {
		e.now = e.start.Add(time.Since(e.start)) // theirs is no phase's time
	}
}

// addFailure adds err to the result, unless it only repeats the cause.
func (e *exit) addFailure(err error) {
	if e.cause != nil && onlyEchoes(err, func(node error) bool { return isSame(node, e.cause) }) {
		return
	}
	message := text(err)
	h := e.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state == Exited {
		return
	}
	e.failures.add(err)
	e.inPhase.add(err)
	e.note(message)
}

// note is called with host.mu held.
func (e *exit) note(message string) {
	if current := e.current(); len(current.Errors) < maxFailures {
		current.Errors = append(current.Errors, message)
	}
}

// finish computes the result and ends the exit.
func (e *exit) finish() {
	h := e.host
	h.mu.Lock()
	outcome, err := e.conclude()
	h.mu.Unlock()
	if h.logger != nil {
		level := slog.LevelInfo
		if err != nil {
			level = slog.LevelError
		}
		e.log(level, "exit ended", "outcome", outcome, "duration", time.Since(e.start),
			"accepted", h.durability.Accepted(), "durable", h.durability.Durable(), "err", message{err})
	}

	h.at(seam.Finish, "")
	h.mu.Lock()
	e.outcome, e.result = e.conclude() // again: the logger may have been left behind
	e.duration = time.Since(e.start)
	e.phase = 0
	h.state = Exited
	if e.graceTimer != nil {
		e.graceTimer.Stop()
	}
	atEnd := h.atEnd
	h.mu.Unlock()
	e.cancelHooks(nil)
	for _, f := range atEnd {
		f()
	}
	h.at(seam.Done, "")
	close(h.done)
}

// conclude is called with host.mu held.
func (e *exit) conclude() (outcome string, err error) {
	h := e.host
	e.lost = h.durability.Accepted() - h.durability.Durable()
	if e.forced && (e.leftIn != 0 || e.lost > 0) {
		errs := []error{ErrForced}
		if e.lost > 0 {
			errs = append(errs, ErrUnknown)
		}
		if err := e.failures.join(h.name); err != nil {
			errs = append(errs, err)
		}
		forced := &ExitError{Host: h.name, Phase: e.leftIn, Stragglers: e.left, Cause: e.cause, Err: ErrForced}
		if forced.Phase == 0 {
			forced.Phase = PhaseCloseDurability
		}
		if len(errs) > 1 {
			forced.Err = errors.Join(errs...)
		}
		return "forced", forced
	}
	all := failures{dropped: e.failures.dropped}
	if e.failure != nil {
		all.errs = append(all.errs, e.failure)
	}
	all.errs = append(all.errs, e.failures.errs...)
	if err := all.join(h.name); err != nil {
		return "failed", err
	}
	return "clean", nil
}

// where is the frame in which s waits; "" for calls, whose stacks are not their own.
func (s Straggler) where() string {
	if s.Kind == "call" {
		return ""
	}
	return where(s.Stack)
}

// where is the frame of a stack at which its user would look first: the topmost
// that is neither the standard library's nor this package's, or else the topmost.
func where(stack string) string {
	lines := strings.Split(stack, "\n")
	first := ""
	for i := range lines[:len(lines)-1] {
		if !strings.HasPrefix(lines[i+1], "\t") {
			continue
		}
		frame := lines[i] + " " + strings.TrimSpace(lines[i+1])
		if first == "" {
			first = frame
		}
		if !isStandard(lines[i]) && !strings.HasPrefix(lines[i], packagePath+".") {
			return frame
		}
	}
	return first
}

// isStandard reports whether a function, "path/package.Func", is of the standard
// library: the first element of its path has no dot, unlike a module's.
func isStandard(function string) bool {
	element, _, more := strings.Cut(function, "/")
	if !more {
		element, _, _ = strings.Cut(element, ".")
		return element != "main"
	}
	return !strings.Contains(element, ".")
}
