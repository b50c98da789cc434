package lifecycle

import (
	"cmp"
	"context"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/seed080d9131/lifecycle/internal/seam"
)

// tasks is the group of background tasks of a host.
//
// Admission and registration are one step under mu, and so are a task's end and
// its taking off: when the exit has set refusing, alive can only fall, and the
// task that brings it to zero closes idle. A task's failure is recorded with the
// host before the task stops to count as alive, so that whoever finds the group
// idle finds every failure too.
//
// Tasks of one name share a group, and with it one context and one label: what a
// task costs is its struct and its goroutine.
type tasks struct {
	host   *Host
	ctx    context.Context // parent of every task's
	cancel context.CancelCauseFunc

	mu       sync.Mutex // guards what follows, and the fields of groups and tasks
	refusing bool
	alive    int // admitted, not yet taken off
	groups   map[string]*group
	idle     chan struct{} // made by whoever awaits; closed at refusing && alive == 0
}

// group is the tasks of one name.
type group struct {
	name     string
	id       string          // its label's value: unique in the process
	ctx      context.Context // tasks.ctx with the label
	count    int             // of the list below
	oldest   *task           // tasks that run, in the order of their start
	youngest *task

	// Of tasks of Every.
	ticks, failed int64
	lastError     string
}

// task is a task of Go or Every.
type task struct {
	tasks *tasks
	group *group
	run   func(ctx context.Context) error
	start time.Duration // since the host's birth
	every time.Duration // 0: of Go

	prev, next *task // in the group's list

	// The task's own goroutine's.
	due   time.Duration // of the next tick
	ended bool
}

// A group that has become empty is kept for the next task of its name, label and
// all, as long as the host has no more groups than this.
const keptGroups = 128

func (ts *tasks) init(h *Host) {
	ts.host = h
	ts.ctx, ts.cancel = context.WithCancelCause(h.base)
	ts.groups = map[string]*group{}
}

// Go starts run as a background task of the host. The exit cancels run's context
// with its cause and waits until run has returned; until then the task may
// append. Tasks may start tasks.
//
// A task that returns an error, panics or calls runtime.Goexit fails the host:
// the exit begins, with a *TaskError as its cause. An error that says no more
// than that the context was cancelled, or that the host refused something
// because it is exiting, is no failure, and nor is one that only repeats the
// exit's cause.
//
// Go does not block. It returns an error that is ErrExiting once the exit has
// begun and ErrInvalid if name is empty or run is nil; run is not called then.
func (h *Host) Go(name string, run func(ctx context.Context) error) error {
	if err := h.checkNamed("Go", name, run == nil); err != nil {
		return err
	}
	h.at(seam.Go, name)
	return h.tasks.spawn("Go", name, 0, run)
}

// Every starts a background task that calls run again and again: first one
// interval after the call of Every, then one interval after run has returned, so
// that ticks never overlap. The exit stops it between ticks at once, and cancels
// the context of a tick that runs, with its cause.
//
// A tick that fails, panics or calls runtime.Goexit is logged and counted
// (TaskStatus), and the next one follows; it never fails the host or its exit.
//
// Every does not block. It returns an error that is ErrExiting once the exit has
// begun and ErrInvalid if name is empty, run is nil or the interval is not
// positive; run is not called then.
func (h *Host) Every(name string, every time.Duration, run func(ctx context.Context) error) error {
	if err := h.checkNamed("Every", name, run == nil); err != nil {
		return err
	}
	if every <= 0 {
		return h.invalid("Every "+strconv.Quote(name), "an interval of "+every.String())
	}
	h.at(seam.Every, name)
	return h.tasks.spawn("Every", name, every, run)
}

func (ts *tasks) spawn(op, name string, every time.Duration, run func(ctx context.Context) error) error {
	t := &task{tasks: ts, run: run, every: every, start: ts.host.age()}
	t.due = t.start + every

	ts.mu.Lock()
	if ts.refusing {
		ts.mu.Unlock()
		ts.host.at(seam.Refused, op)
		return ts.host.refuse(op+" "+strconv.Quote(name), ErrExiting)
	}
	g := ts.groups[name]
	if g == nil {
		g = ts.newGroup(name)
	}
	t.group = g
	g.link(t)
	ts.alive++
	ts.mu.Unlock()

	go t.main()
	return nil
}

// main is the task's goroutine. A runtime.Goexit in user code unwinds it from
// wherever it is, so that what must happen at its end happens in a defer.
func (t *task) main() {
	pprof.SetGoroutineLabels(t.group.ctx)
	defer t.leave()
	t.tasks.host.at(seam.TaskBegin, t.group.name)
	if t.every > 0 {
		t.tickUntilCancelled()
		t.tasks.host.at(seam.TaskEnd, t.group.name)
		t.end(nil, nil)
		return
	}
	stack, err := protect(t.call, t.end)
	t.tasks.host.at(seam.TaskEnd, t.group.name)
	t.end(err, stack)
}

func (t *task) call() error { return t.run(t.group.ctx) }

// tickUntilCancelled is the life of a task of Every.
func (t *task) tickUntilCancelled() {
	h, ctx := t.tasks.host, t.group.ctx
	timer := time.NewTimer(t.due - h.age())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if ctx.Err() != nil { // both were ready
			return
		}
		h.at(seam.TickBegin, t.group.name)
		stack, err := protect(t.call, t.ticked)
		h.at(seam.TickEnd, t.group.name)
		t.ticked(err, stack)
		timer.Reset(t.every)
	}
}

// ticked counts a tick, and logs it if it failed.
func (t *task) ticked(err error, stack []byte) {
	h, g := t.tasks.host, t.group
	var failed string
	if err != nil {
		if failure := h.taskFailure(g.ctx, g.name, err, stack); failure != nil {
			failed = text(failure.Err)
		}
	}
	t.due = h.age() + t.every

	t.tasks.mu.Lock()
	g.ticks++
	if failed != "" {
		g.failed++
		g.lastError = failed
	}
	t.tasks.mu.Unlock()

	if failed != "" && h.logger != nil {
		h.callouts.here(inLogger, PhaseAwaitTasks, g.ctx, func() {
			h.logger.WarnContext(g.ctx, "tick failed", "host", h.name, "task", g.name, "err", failed)
		})
	}
}

// end takes what the task came to: a failure fails the host, and then the
// observer is told.
func (t *task) end(err error, stack []byte) {
	t.ended = true
	h, g := t.tasks.host, t.group
	event := TaskEvent{Host: h.name, Task: g.name}
	if err != nil {
		if failure := h.taskFailure(g.ctx, g.name, err, stack); failure != nil {
			h.fail(failure)
			event.Err = failure
		}
	}
	if f := h.observer.TaskEnd; f != nil {
		event.Duration = h.age() - t.start
		t.tasks.mu.Lock()
		g.unlink(t) // if it is waited for from here on, it is for the observer
		t.tasks.mu.Unlock()
		h.callouts.here(inTaskEnd, PhaseAwaitTasks, g.ctx, func() { f(event) })
	}
}

// leave is the last thing that the goroutine does. If the task has not ended,
// it is a ticker whose tick called Goexit: it goes on in a new goroutine.
func (t *task) leave() {
	if !t.ended {
		go t.main()
		return
	}
	ts := t.tasks
	ts.host.at(seam.TaskLeave, t.group.name)
	var idle chan struct{}
	ts.mu.Lock()
	t.group.unlink(t)
	if g := t.group; g.count == 0 && len(ts.groups) > keptGroups && ts.groups[g.name] == g {
		delete(ts.groups, g.name) // g itself: its name may have a new one already
	}
	ts.alive--
	if ts.alive == 0 && ts.refusing {
		idle, ts.idle = ts.idle, nil
	}
	ts.mu.Unlock()
	if idle != nil {
		close(idle)
	}
}

// taskFailure returns nil if err is no failure of a task of that name.
//
// stack is that of a panic or Goexit, or nil.
func (h *Host) taskFailure(ctx context.Context, name string, err error, stack []byte) *TaskError {
	failure := &TaskError{Task: name, Err: err, Stack: stack, host: h.name}
	if stack != nil {
		return failure
	}
	ownRefusal := func(e error) bool {
		r, ok := e.(*refusal)
		return ok && r.host == h && r.is == ErrExiting
	}
	if isCancellation(ctx, err) || onlyEchoes(err, ownRefusal) {
		return nil
	}
	return failure
}

// refuse ends admission.
func (ts *tasks) refuse() {
	ts.mu.Lock()
	ts.refusing = true
	ts.mu.Unlock()
}

// await returns a channel that is closed when no task is alive. Admission must
// have ended.
func (ts *tasks) await() <-chan struct{} {
	idle := make(chan struct{})
	ts.mu.Lock()
	alive := ts.alive
	ts.idle = idle
	ts.mu.Unlock()
	if alive == 0 {
		close(idle)
	}
	return idle
}

// stragglers is one entry a name, with its label in place of the stack.
func (ts *tasks) stragglers() []found {
	now := ts.host.age()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	var all []found
	for _, g := range ts.groups {
		if g.count > 0 {
			all = append(all, found{
				Straggler: Straggler{Kind: "task", Name: g.name, Count: g.count, Age: now - g.oldest.start},
				label:     g.id,
			})
		}
	}
	return all
}

// status is one entry a name, by name.
func (ts *tasks) status() []TaskStatus {
	now := ts.host.age()
	all := []TaskStatus{}
	ts.mu.Lock()
	for _, g := range ts.groups {
		if g.count > 0 {
			all = append(all, TaskStatus{
				Name: g.name, Count: g.count, Age: now - g.oldest.start, Every: g.oldest.every,
				Ticks: g.ticks, Failed: g.failed, LastError: g.lastError,
			})
		}
	}
	ts.mu.Unlock()
	slices.SortFunc(all, func(a, b TaskStatus) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func (ts *tasks) newGroup(name string) *group {
	g := &group{name: name, id: nextLabel()}
	g.ctx = pprof.WithLabels(ts.ctx, pprof.Labels(labelHost, ts.host.name, labelTask, name, labelID, g.id))
	ts.groups[name] = g
	return g
}

func (g *group) link(t *task) {
	t.prev = g.youngest
	if t.prev == nil {
		g.oldest = t
	} else {
		t.prev.next = t
	}
	g.youngest = t
	g.count++
}

// unlink takes t off the list; a second time it does nothing.
func (g *group) unlink(t *task) {
	if t.prev == nil && g.oldest != t {
		return
	}
	if t.prev == nil {
		g.oldest = t.next
	} else {
		t.prev.next = t.next
	}
	if t.next == nil {
		g.youngest = t.prev
	} else {
		t.next.prev = t.prev
	}
	t.prev, t.next = nil, nil
	g.count--
}
