package lifecycletest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/internal/seam"
)

// run is one run of a workload: a world, its exit, and what was wrong.
type run struct {
	*monitor
	kit    *kit
	target target
	tb     *runTB
	before map[string]bool // labels that were there before it

	mu       sync.Mutex // guards what follows
	opened   bool
	hosts    []*lifecycle.Host // made in open
	seen     map[string]int    // moments, by place
	points   []point
	reached  bool
	during   bool   // the exit had begun when it was
	at       string // where the exit began, for people
	stackAt  string
	stuck    bool
	ended    bool
	problems []problem
}

// point is a moment of the workload. Its id says the place, and how many times the
// workload has come by, so that it is found again whatever other goroutines do
// meanwhile.
type point struct {
	kind   string
	id     string
	during bool // the exit had begun
}

// How the moments are called.
var momentNames = map[seam.Step]string{
	seam.Append: "append", seam.Wait: "wait", seam.Go: "go", seam.Every: "every", seam.Enter: "enter", seam.Leave: "leave",
	seam.OnExit: "onexit", seam.TaskBegin: "task", seam.TaskEnd: "taskend", seam.TickBegin: "tick",
}

const (
	maxPoints  = 100_000
	driveLimit = time.Hour // of a bubble's time
)

func newRun(k *kit, at target) *run {
	return &run{monitor: newMonitor(), kit: k, target: at, tb: newRunTB(k.tb), seen: map[string]int{}}
}

func (r *run) add(problems ...problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problems = append(r.problems, problems...)
}

// main is the run. In a bubble it is the bubble's first goroutine.
func (r *run) main() {
	_, r.bubble = goroutine()
	if r.bubble == "" {
		r.before = hostLabels()
	}
	defer r.tb.cancel()

	var host *lifecycle.Host
	var drive func() error
	var openErr error
	remove := seam.Install(r.claim)
	opened := r.begin("open", func() {
		r.mu.Lock()
		r.opener, _ = goroutine()
		r.mu.Unlock()
		h, d, err := r.kit.open(r.tb)
		host, openErr = h, err
		drive = func() error { return d(r.tb) }
	})
	inTime := r.await(opened, r.driveLimit())
	remove()
	if !inTime {
		r.giveUp("open has not returned", opened)
		return
	}
	r.mu.Lock()
	hosts := r.hosts
	r.mu.Unlock()
	if host != nil && !slices.Contains(hosts, host) {
		hosts = append(hosts, host)
	}
	switch {
	case !opened.returned():
		text := "open failed:\n" + indent(opened.said(r.tb))
		if r.hasBegun() {
			text += "\nThe exit had begun while open ran, so the host refused what open asked of it. A server that is told to stop while it starts must take that for an answer: let open return the host's error and exit what it has begun, or say AfterOpen."
		}
		r.add(problem{"open", text})
		r.abandon(hosts)
	case openErr != nil:
		if !r.isExpected(openErr) {
			r.add(newProblem("open", "open returned an error:\n%s", indent(openErr.Error())))
		}
		for _, h := range hosts {
			if !isExiting(h) {
				r.add(newProblem("open left", "open returned an error and left its host %q running: its goroutines and its log stay, though nobody can reach them any more. Where open fails it must take back what it has begun: call the host's Exit before it returns the error. It was:\n%s", h.Status().Host, indent(openErr.Error())))
			}
		}
		r.abandon(hosts)
	case host == nil:
		r.add(newProblem("open", "open returned a nil host and no error."))
		r.abandon(hosts)
	default:
		r.host.Store(host)
		r.mu.Lock()
		r.opened = true
		r.mu.Unlock()
		r.live(host, drive)
	}
	r.end(host)
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
}

// live drives the world, exits it, and judges.
func (r *run) live(host *lifecycle.Host, drive func() error) {
	var driveErr error
	driven := r.begin("drive", func() { driveErr = drive() })
	timer := time.NewTimer(r.driveLimit())
	select {
	case <-driven.done:
	case <-host.Exiting():
	case <-timer.C:
		r.add(newProblem("drive slow", "drive has not returned in %v, and nobody has begun the exit. It is here:\n%s", r.driveLimit(), indent(stackOf(driven.id()))))
	}
	timer.Stop()
	host.Fail(nil)

	stuck, result := r.exit(host, r.kit.config)
	if len(stuck) > 0 {
		r.add(stuck...)
		r.giveUp("drive has not returned after that", driven)
		return
	}
	if !r.await(driven, r.driveLimit()) {
		r.giveUp(fmt.Sprintf("the exit has ended, but drive has not returned after %v more: whoever waits for what the host's tasks would do must also watch Exiting or Done", r.driveLimit()), driven)
		return
	}
	switch {
	case !driven.returned():
		r.add(newProblem("drive", "drive failed:\n%s", indent(driven.said(r.tb))))
	case driveErr != nil && !r.isExpected(driveErr):
		r.add(newProblem("drive", "drive returned an error:\n%s\nThe refusals of a host that exits, ErrExiting and ErrClosed, are expected of it, and errors that wrap them; others are not (AllowError).", indent(driveErr.Error())))
	}
	wrong := ""
	if result != nil && !r.isAllowed(result) {
		wrong = explain(result)
	}
	r.add(r.judge(host, logOf(host), result, wrong)...)
}

// end runs the cleanups and looks for what is left.
func (r *run) end(host *lifecycle.Host) {
	cleaned := r.begin("a t.Cleanup", r.tb.runCleanups)
	if !r.await(cleaned, max(r.kit.within, DefaultLimit)) {
		r.giveUp("the run's cleanups have not returned", cleaned)
		return
	}
	if !cleaned.returned() {
		r.add(newProblem("cleanup", "a t.Cleanup failed:\n%s", indent(cleaned.said(r.tb))))
	} else if said := r.tb.takeFailures(); said != "" {
		r.add(newProblem("failed "+said, "the workload says:\n%s", indent(said)))
	}
	r.mu.Lock()
	stuck := r.stuck
	r.mu.Unlock()
	if stuck {
		return
	}
	r.add(r.lateAppends(r.kit.lateAppends)...)
	switch {
	case r.bubble != "":
		time.Sleep(time.Nanosecond) // of the bubble's time: everybody else has come to rest
		var left []string
		for _, stack := range bubbleStacks(r.bubble) {
			if !isIgnored(stack, r.kit.ignored) {
				left = append(left, stack)
			}
		}
		r.add(leak(left, "the host's, or started by open, drive, a task or a hook")...)
	case host != nil:
		r.add(leak(remaining(host.Status().Host, r.before, r.kit.ignored), "the host's own, or started by its tasks or hooks")...)
	}
}

// left is called when the bubble has ended with goroutines in it.
func (r *run) left(why string) {
	r.mu.Lock()
	said := r.stuck || r.ended || len(r.problems) > 0
	r.mu.Unlock()
	if !said {
		r.add(newProblem("bubble", "the bubble of the run ended badly: %s", why))
	}
}

// giveUp ends a run in which something hangs.
func (r *run) giveUp(why string, who *call) {
	r.mu.Lock()
	r.stuck = true
	r.mu.Unlock()
	if !r.await(who, time.Second) {
		text := why + ". It is here:\n" + indent(stackOf(who.id()))
		for i, stack := range bubbleStacks(r.bubble) {
			if i == 5 {
				break
			}
			if i == 0 {
				text += "\nThese goroutines are there too:"
			}
			text += "\n" + indent(stack) + "\n"
		}
		r.add(problem{"hangs " + who.what, text})
	}
	r.mu.Lock()
	hosts := r.hosts
	r.mu.Unlock()
	r.abandon(hosts)
}

// abandon ends hosts that nobody needs any more.
func (r *run) abandon(hosts []*lifecycle.Host) {
	for _, h := range hosts {
		ctx, cancel := context.WithTimeout(context.Background(), r.kit.within)
		if err := h.Exit(ctx); err != nil && !isDone(h) {
			_ = h.ForceExit(ctx)
		}
		cancel()
	}
}

// isExpected: clients of a host that exits expect to be refused.
func (r *run) isExpected(err error) bool {
	var failed *lifecycle.LogError
	if r.isAllowed(err) {
		return true
	}
	return !errors.As(err, &failed) && (errors.Is(err, lifecycle.ErrExiting) || errors.Is(err, lifecycle.ErrClosed))
}

func (r *run) isAllowed(err error) bool {
	for _, target := range r.kit.allowed {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// hasBegun: the run has begun the exit.
func (r *run) hasBegun() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reached
}

func (r *run) driveLimit() time.Duration {
	if r.bubble != "" {
		return driveLimit
	}
	return 6 * r.kit.within
}

// Hosts and moments.

// claim is asked about every host that is made in the process while open runs.
// Those of the run's bubble are the run's, and outside a bubble those that open's
// own goroutine makes; another may turn out to be when open returns it.
func (r *run) claim(made any) seam.Watch {
	h := made.(*lifecycle.Host)
	id, bubble := goroutine()
	if bubble != r.bubble {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ours := bubble != "" || id == r.opener
	if ours {
		r.hosts = append(r.hosts, h)
	}
	return func(step seam.Step, name string) {
		if returned := r.host.Load(); returned == h || returned == nil && ours {
			r.watch(h, step, name)
		}
	}
}

// watch takes a step, and begins the exit if it is the target's. If the exit has
// begun, all there is to try is to hold who takes the step.
func (r *run) watch(h *lifecycle.Host, step seam.Step, name string) {
	_, by := r.saw(h, step, name)
	kind, ok := momentNames[step]
	if !ok || isDone(h) {
		return
	}
	during := isExiting(h)
	// Whether the exit waits for a goroutine that is no task and no hook shows when
	// it is held.
	hold := r.target.held && during && step == seam.Append && by.kind != "task" && by.kind != "hook"
	var at site
	place := kind + "@"
	switch step {
	case seam.TaskBegin, seam.TaskEnd, seam.TickBegin:
		place += name
	default:
		at = userSite()
		place += at.short()
	}
	r.mu.Lock()
	counts := (r.opened || !r.kit.afterOpen) && len(r.points) < maxPoints
	here := false
	if counts {
		r.seen[place]++
		id := fmt.Sprintf("%s#%d", place, r.seen[place])
		r.points = append(r.points, point{kind, id, during})
		here = id == r.target.id && !r.reached
	}
	n := r.seen[place]
	if here {
		r.reached, r.during = true, during
	}
	r.mu.Unlock()

	if here {
		text, stack := describe(step, name, at, n, by), ""
		if at.function != "" {
			stack = ownStack()
		}
		r.mu.Lock()
		r.at, r.stackAt = text, stack
		r.mu.Unlock()
		h.Fail(nil)
		hold = r.target.held
	}
	if hold {
		r.hold(h)
	}
}

// describe says a moment for people.
func describe(step seam.Step, name string, at site, n int, by owner) string {
	switch step {
	case seam.TaskBegin:
		return fmt.Sprintf("task %q starts, the %s time", name, ordinal(n))
	case seam.TaskEnd:
		return fmt.Sprintf("task %q has returned, the %s time", name, ordinal(n))
	case seam.TickBegin:
		return fmt.Sprintf("a tick of task %q, the %s", name, ordinal(n))
	}
	what := momentNames[step]
	if name != "" {
		what += fmt.Sprintf(" %q", name)
	}
	where := by.String()
	if by.kind == "raw" {
		where = "a goroutine that the host does not own"
	}
	return fmt.Sprintf("%s at %s, the %s time, in %s", what, at, ordinal(n), where)
}

func ordinal(n int) string {
	suffix := "th"
	switch {
	case n%100 >= 11 && n%100 <= 13:
	case n%10 == 1:
		suffix = "st"
	case n%10 == 2:
		suffix = "nd"
	case n%10 == 3:
		suffix = "rd"
	}
	return fmt.Sprint(n, suffix)
}

// hold returns when the exit has ended, or when the host has taken no step for a
// while: it waits for the caller, or for something else that takes time. A wait
// that a bubble knows would be exact, but would never end if another goroutine
// waits for a mutex that the caller holds.
func (r *run) hold(h *lifecycle.Host) {
	quiet, most := int64(3), int64(500) // ticks of the clock
	if r.bubble == "" {
		quiet = 30 // what goes on may be I/O
	}
	steps, since := r.steps.Load(), r.kit.clock.Load()
	begun := since
	for yields := 0; !isDone(h); yields++ {
		runtime.Gosched()
		now := r.kit.clock.Load()
		if s := r.steps.Load(); s != steps {
			steps, since, yields = s, now, 0
		}
		if yields > 20 && now-since >= quiet || now-begun >= most {
			return
		}
	}
}

func isExiting(h *lifecycle.Host) bool {
	select {
	case <-h.Exiting():
		return true
	default:
		return false
	}
}

// Calls of the user's funcs.

// call is a func of the user's that runs in a goroutine of its own.
type call struct {
	what string
	done chan struct{} // closed when it has ended

	mu       sync.Mutex // guards what follows
	goid     uint64
	finished bool // it returned
	panicked string
}

// begin starts f, whose FailNow and panic end nothing but f.
func (r *run) begin(what string, f func()) *call {
	c := &call{what: what, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		id, _ := goroutine()
		c.mu.Lock()
		c.goid = id
		c.mu.Unlock()
		r.drives(what)
		finished := false
		defer func() {
			v := recover()
			c.mu.Lock()
			defer c.mu.Unlock()
			c.finished = finished
			if v != nil {
				c.panicked = fmt.Sprintf("panic: %v\n%s", v, readable(string(debug.Stack())))
			}
		}()
		f()
		finished = true
	}()
	return c
}

// await reports whether c ends within limit.
func (r *run) await(c *call, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-c.done:
		return true
	case <-timer.C:
		return c.ended()
	}
}

func (c *call) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *call) id() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.goid
}

func (c *call) returned() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finished
}

// said is why c did not return.
func (c *call) said(tb *runTB) string {
	c.mu.Lock()
	panicked := c.panicked
	c.mu.Unlock()
	switch said := tb.takeFailures(); {
	case panicked != "":
		return panicked
	case said != "":
		return said
	case tb.Skipped():
		return "it called Skip, which a run can't: skip the test instead"
	}
	return strings.TrimSpace(c.what + " called runtime.Goexit")
}
