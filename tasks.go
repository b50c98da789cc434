package lifecycle

import (
	"cmp"
	"context"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed080d9131/lifecycle/internal/seam"
)

// tasks is the group of background tasks of a host.
//
// Admission and registration are one step under mu. A task's end needs no lock: it
// takes itself off the atomic count of its block. Who takes the last one off a block
// that is not filled any more takes that off its list, under mu: when the exit has
// set refusing, blocks can only fall, and who brings it to zero closes idle. A task's
// failure is recorded with the host before the task stops to count as alive, so that
// whoever finds the group idle finds every failure too.
//
// Tasks of one name share a group, and with it one context and one label: what a
// task costs is its place in a block and its goroutine.
type tasks struct {
	host    *Host
	ctx     context.Context // parent of every task's
	cancel  context.CancelCauseFunc
	crowded atomic.Bool // there are more than keptGroups groups; stored under mu

	mu       sync.Mutex // guards what follows, and the fields of groups, blocks and tasks that are not said to be another's
	refusing bool
	groups   map[string]*group
	blocks   int           // in the lists of groups
	idle     chan struct{} // made by whoever awaits; closed at refusing && blocks == 0
}

// group is the tasks of one name.
type group struct {
	name string
	ctx  context.Context // tasks.ctx with its label

	first, last *block // in the order of their tasks' start; the last has places left, or had

	// Of tasks of Every.
	ticks, failed int64
	lastError     string
}

// block is the place of tasks that were started one after another. Its places are
// given out from the front, and again only when all have been given and have come
// back.
type block struct {
	host  *Host
	group *group
	left  atomic.Int32 // places that have not come back
	taken int          // places that have been given out
	tasks []task

	prev, next *block // in the group's list
}

const blockTasks = 32 // at most

// task is a task of Go or Every.
type task struct {
	block *block
	start atomic.Int64  // since the host's birth, or hasEnded
	every time.Duration // 0: of Go

	// The task's own goroutine's.
	run   func(ctx context.Context) error
	due   time.Duration // of the next tick
	ended bool
}

const hasEnded = -1

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
	now := ts.host.age()
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
	t := ts.place(g)
	t.run, t.every, t.due, t.ended = run, every, now+every, false
	t.start.Store(int64(now))
	ts.mu.Unlock()

	go t.main()
	return nil
}

// main is the task's goroutine. A runtime.Goexit in user code unwinds it from
// wherever it is, so that what must happen at its end happens in a defer.
func (t *task) main() {
	h, g := t.block.host, t.block.group
	pprof.SetGoroutineLabels(g.ctx)
	defer t.leave()
	h.at(seam.TaskBegin, g.name)
	if t.every > 0 {
		t.tickUntilCancelled()
		h.at(seam.TaskEnd, g.name)
		t.end(nil, nil)
		return
	}
	defer t.catch()
	err := t.run(g.ctx)
	h.at(seam.TaskEnd, g.name)
	t.end(err, nil)
}

// catch is protect for the task as a whole, without its frames: those of 100,000
// stragglers are what their report takes its time for.
func (t *task) catch() {
	if t.ended {
		return
	}
	stack := debug.Stack()
	if v := recover(); v != nil {
		t.block.host.at(seam.TaskEnd, t.block.group.name)
		t.end(&PanicError{Value: v, Stack: stack}, stack)
		return
	}
	t.end(ErrGoexit, stack)
}

// tickUntilCancelled is the life of a task of Every.
func (t *task) tickUntilCancelled() {
	h, g := t.block.host, t.block.group
	timer := time.NewTimer(t.due - h.age())
	defer timer.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-timer.C:
		}
		if g.ctx.Err() != nil { // both were ready
			return
		}
		h.at(seam.TickBegin, g.name)
		stack, err := protect(func() error { return t.run(g.ctx) }, t.ticked)
		h.at(seam.TickEnd, g.name)
		t.ticked(err, stack)
		timer.Reset(t.every)
	}
}

// ticked counts a tick, and logs it if it failed.
func (t *task) ticked(err error, stack []byte) {
	h, g := t.block.host, t.block.group
	var failed string
	if err != nil {
		if failure := h.taskFailure(g.ctx, g.name, err, stack); failure != nil {
			failed = text(failure.Err)
		}
	}
	t.due = h.age() + t.every

	h.tasks.mu.Lock()
	g.ticks++
	if failed != "" {
		g.failed++
		g.lastError = failed
	}
	h.tasks.mu.Unlock()

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
	h, g := t.block.host, t.block.group
	event := TaskEvent{Host: h.name, Task: g.name}
	if err != nil {
		if failure := h.taskFailure(g.ctx, g.name, err, stack); failure != nil {
			h.fail(failure)
			event.Err = failure
		}
	}
	if f := h.observer.TaskEnd; f != nil {
		event.Duration = h.age() - time.Duration(t.start.Load())
		t.start.Store(hasEnded) // if it is waited for from here on, it is for the observer
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
	b := t.block
	h, g := b.host, b.group
	h.at(seam.TaskLeave, g.name)
	t.start.Store(hasEnded)
	t.run = nil
	switch {
	case b.left.Add(-1) == 0:
		h.tasks.takeBack(b)
	case h.tasks.crowded.Load():
		h.tasks.dropIfEmpty(g)
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

// place gives out the next place of the group's last block, or the first of a new
// one, which is twice as large. It is called with mu held.
func (ts *tasks) place(g *group) *task {
	b := g.last
	if b == nil || b.taken == len(b.tasks) {
		b = ts.addBlock(g)
	}
	b.taken++
	return &b.tasks[b.taken-1]
}

func (ts *tasks) addBlock(g *group) *block {
	size := 1
	if g.last != nil {
		size = min(2*len(g.last.tasks), blockTasks)
	}
	b := newBlock(size)
	b.host, b.group, b.prev = ts.host, g, g.last
	if b.prev == nil {
		g.first = b
	} else {
		b.prev.next = b
	}
	g.last = b
	ts.blocks++
	return b
}

// takeBack takes a block whose places have all come back. The group's last one is
// kept for its next tasks.
func (ts *tasks) takeBack(b *block) {
	g := b.group
	ts.mu.Lock()
	b.reset()
	keep := b == g.last && !ts.refusing
	if !keep {
		ts.unlink(b)
	}
	var idle chan struct{}
	if ts.refusing && ts.blocks == 0 {
		idle, ts.idle = ts.idle, nil
	}
	ts.mu.Unlock()
	if ts.crowded.Load() {
		ts.dropIfEmpty(g)
	}
	if !keep {
		b.free()
	}
	if idle != nil {
		close(idle)
	}
}

func (ts *tasks) unlink(b *block) {
	g := b.group
	if b.prev == nil {
		g.first = b.next
	} else {
		b.prev.next = b.next
	}
	if b.next == nil {
		g.last = b.prev
	} else {
		b.next.prev = b.prev
	}
	ts.blocks--
}

// dropIfEmpty forgets a group without tasks if there are too many groups.
func (ts *tasks) dropIfEmpty(g *group) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.refusing || len(ts.groups) <= keptGroups || ts.groups[g.name] != g || g.first != g.last {
		return
	}
	b := g.last
	places := len(b.tasks) - b.taken
	if places == 0 || int(b.left.Load()) != places { // 0: full, or whoever came back last has yet to take it back
		return
	}
	ts.unlink(b)
	delete(ts.groups, g.name)
	ts.crowded.Store(len(ts.groups) > keptGroups)
}

// Blocks of blockTasks. All hosts share them, and the collector takes back what
// nobody needs.
var fullBlocks = sync.Pool{New: func() any { return makeBlock(blockTasks) }}

func newBlock(size int) *block {
	if size == blockTasks {
		return fullBlocks.Get().(*block)
	}
	return makeBlock(size)
}

func makeBlock(size int) *block {
	b := &block{tasks: make([]task, size)}
	for i := range b.tasks {
		b.tasks[i].block = b
		b.tasks[i].start.Store(hasEnded)
	}
	b.reset()
	return b
}

func (b *block) reset() {
	b.taken = 0
	b.left.Store(int32(len(b.tasks)))
}

func (b *block) free() {
	if len(b.tasks) == blockTasks {
		b.host, b.group, b.prev, b.next = nil, nil, nil, nil
		fullBlocks.Put(b)
	}
}

// refuse ends admission.
func (ts *tasks) refuse() {
	ts.mu.Lock()
	ts.refusing = true
	for _, g := range ts.groups {
		if b := g.last; b != nil {
			left := len(b.tasks) - b.taken
			b.taken += left
			if left > 0 && b.left.Add(int32(-left)) == 0 {
				ts.unlink(b)
			}
		}
	}
	ts.mu.Unlock()
}

// await returns a channel that is closed when no task is alive. Admission must
// have ended.
func (ts *tasks) await() <-chan struct{} {
	idle := make(chan struct{})
	ts.mu.Lock()
	empty := ts.blocks == 0
	ts.idle = idle
	ts.mu.Unlock()
	if empty {
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
		if count, start, _ := g.running(); count > 0 {
			all = append(all, found{
				Straggler: Straggler{Kind: "task", Name: g.name, Count: count, Age: max(now-start, 0)},
				label:     ts.label(g.name),
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
		if count, start, every := g.running(); count > 0 {
			all = append(all, TaskStatus{
				Name: g.name, Count: count, Age: max(now-start, 0), Every: every,
				Ticks: g.ticks, Failed: g.failed, LastError: g.lastError,
			})
		}
	}
	ts.mu.Unlock()
	slices.SortFunc(all, func(a, b TaskStatus) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// running counts the group's tasks and returns the oldest's start and interval. It is
// called with tasks.mu held.
func (g *group) running() (count int, start, every time.Duration) {
	for b := g.first; b != nil; b = b.next {
		for i := range b.tasks[:b.taken] {
			t := &b.tasks[i]
			if at := time.Duration(t.start.Load()); at != hasEnded {
				if count == 0 {
					start, every = at, t.every
				}
				count++
			}
		}
	}
	return count, start, every
}

func (ts *tasks) label(name string) label { return label{ts.host.label, labelTask, name} }

func (ts *tasks) newGroup(name string) *group {
	g := &group{name: name}
	g.ctx = ts.label(name).on(ts.ctx)
	ts.groups[name] = g
	ts.crowded.Store(len(ts.groups) > keptGroups)
	return g
}
