package lifecycle

import (
	"context"
	"runtime/pprof"
	"strconv"
	"sync"
	"time"
)

// callouts is the user code that runs on behalf of the host outside its tasks:
// hooks, observers and the logger. All of it is known by name, since all of it
// can hang.
//
// What the exit calls runs in a goroutine of its own, so that a forced exit can
// leave it behind (exit.call). What a task or the durability actor calls runs
// where it is (here).
type callouts struct {
	host *Host

	mu     sync.Mutex // guards what follows
	active map[*callout]struct{}
	shared map[string]*calloutLabel // of observers and the logger, which run often
	left   map[string]int           // how many of a name ForceExit has left behind; nil: nobody
}

// callout is one call of user code.
type callout struct {
	*calloutLabel
	during Phase         // the phase that waits for it; 0: whichever runs
	start  time.Duration // since the host's birth
	f      func()
	done   chan struct{} // closed when f has returned; nil: it runs here

	// Whom exits of other hosts wait for that the hook has called; guarded by
	// callouts.mu.
	inside map[*insider]struct{}
	cs     *callouts
}

// insider returns the stragglers of a host inside another. Those in seen, which it
// adds to, have been asked: hosts that wait for each other are not asked for ever.
type insider func(seen map[*Host]bool) []found

// calloutKey is the key under which a hook's context holds its *callout.
type calloutKey struct{}

// reportInside makes a hook that waits under ctx for the exit of another host show
// that one's stragglers beside itself, until it calls done.
func reportInside(ctx context.Context, stragglers insider) (done func()) {
	c, ok := ctx.Value(calloutKey{}).(*callout)
	if !ok {
		return func() {}
	}
	cs, key := c.cs, &stragglers
	cs.mu.Lock()
	if c.inside == nil {
		c.inside = map[*insider]struct{}{}
	}
	c.inside[key] = struct{}{}
	cs.mu.Unlock()
	return func() {
		cs.mu.Lock()
		delete(c.inside, key)
		cs.mu.Unlock()
	}
}

type calloutLabel struct {
	name  string
	label label
	ctx   context.Context // carries the label
	left  bool            // ForceExit left one behind: it is not called again; guarded by callouts.mu
	kept  bool            // a panic or Goexit of one has been kept, or is a hook's, which keeps its own; guarded by callouts.mu
}

func (cs *callouts) init(h *Host) {
	cs.host = h
	cs.active = map[*callout]struct{}{}
	cs.shared = map[string]*calloutLabel{}
}

// newLabel is called with mu held. A hook whose namesake was left behind gets a
// label of its own.
func (cs *callouts) newLabel(kind, name string) *calloutLabel {
	l := label{cs.host.label, kind, name}
	if n := cs.left[name]; n > 0 {
		l.name += "#" + strconv.Itoa(n+1)
	}
	return &calloutLabel{name: name, label: l, ctx: l.on(context.Background())}
}

// begin registers a call of an observer or the logger; nil if one of that name
// was left behind.
func (cs *callouts) begin(name string, during Phase) *callout {
	start := cs.host.age()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	label := cs.shared[name]
	if label == nil {
		label = cs.newLabel(labelObserver, name)
		cs.shared[name] = label
	}
	if label.left {
		return nil
	}
	c := &callout{calloutLabel: label, during: during, start: start}
	cs.active[c] = struct{}{}
	return c
}

// beginHook registers a call of a hook, whatever its name.
func (cs *callouts) beginHook(name string) *callout {
	start := cs.host.age()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := &callout{calloutLabel: cs.newLabel(labelHook, name), start: start, cs: cs}
	c.kept = true
	cs.active[c] = struct{}{}
	return c
}

func (cs *callouts) end(c *callout) {
	cs.mu.Lock()
	delete(cs.active, c)
	cs.mu.Unlock()
}

// leave says that c's call is left behind.
func (cs *callouts) leave(c *callout) {
	cs.mu.Lock()
	c.left = true
	if cs.left == nil {
		cs.left = map[string]int{}
	}
	cs.left[c.name]++
	delete(cs.active, c)
	cs.mu.Unlock()
}

// activeNow returns the calls of the observer or logger of that name.
func (cs *callouts) activeNow(name string) []*callout {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	var all []*callout
	for c := range cs.active {
		if c.calloutLabel == cs.shared[name] {
			all = append(all, c)
		}
	}
	return all
}

// wasLeft reports whether c, a hook's call, has been left behind.
func (cs *callouts) wasLeft(c *callout) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return c.left
}

// here calls f on the calling goroutine, whose own labels are those of own. A
// panic of f is kept and changes nothing; a Goexit unwinds the goroutine.
func (cs *callouts) here(name string, during Phase, own context.Context, f func()) {
	c := cs.begin(name, during)
	if c == nil {
		return
	}
	pprof.SetGoroutineLabels(c.ctx)
	defer func() {
		pprof.SetGoroutineLabels(own)
		cs.end(c)
	}()
	c.call(cs, f)
}

// main is the goroutine of what the exit calls.
func (c *callout) main(cs *callouts) {
	pprof.SetGoroutineLabels(c.ctx)
	defer close(c.done)
	defer cs.end(c)
	c.call(cs, c.f)
}

// call calls f and keeps its panic or Goexit. (A hook's f has kept the hook's.)
func (c *callout) call(cs *callouts, f func()) {
	keep := func(err error, stack []byte) { cs.keep(c, err, stack) }
	if stack, err := protect(func() error { f(); return nil }, keep); err != nil {
		keep(err, stack)
	}
}

// keep puts the first panic or Goexit of an observer, or of the logger, into the
// log and, if the exit runs, into its report. It is no failure of the host.
func (cs *callouts) keep(c *callout, err error, stack []byte) {
	cs.mu.Lock()
	kept := c.kept
	c.kept = true
	cs.mu.Unlock()
	if kept {
		return
	}
	h, message := cs.host, c.name+": "+text(err)
	h.noteError(message)
	if h.logger != nil && c.name != inLogger {
		_, _ = protect(func() error {
			h.logger.ErrorContext(h.base, "panic caught", "host", h.name, "in", c.name, "err", message, "stack", string(stack))
			return nil
		}, func(error, []byte) {})
	}
}

// stragglers is what a phase waits for: what it called itself, what others
// called that it awaits, and whatever has been running for as long as stuck,
// since everything else may hang behind it.
func (cs *callouts) stragglers(phase Phase, stuck time.Duration, seen map[*Host]bool) []found {
	now := cs.host.age()
	grouped := map[*calloutLabel]*found{}
	var inside []insider
	cs.mu.Lock()
	for c := range cs.active {
		age := now - c.start
		if c.during != 0 && c.during != phase && age < stuck {
			continue
		}
		f := grouped[c.calloutLabel]
		if f == nil {
			f = c.found()
			grouped[c.calloutLabel] = f
		}
		f.Count++
		f.Age = max(f.Age, age)
		for stragglers := range c.inside {
			inside = append(inside, *stragglers)
		}
	}
	cs.mu.Unlock()
	all := make([]found, 0, len(grouped))
	for _, f := range grouped {
		all = append(all, *f)
	}
	for _, stragglers := range inside {
		all = append(all, stragglers(seen)...)
	}
	return all
}

func (c *callout) found() *found {
	return &found{Straggler: Straggler{Kind: "hook", Name: c.name}, label: c.label}
}
