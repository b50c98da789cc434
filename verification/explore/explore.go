// Package explore walks through the interleavings of a host's goroutines, one
// after the other, and looks at every state on the way.
//
// The host announces each step that others can see before it takes it (package
// seam). Here every goroutine that announces one is parked until a scheduler
// chooses it; when all are at rest (synctest.Wait), those who are parked are the
// choices, and each choice leads to another state. A schedule is a list of choices.
// The scheduler walks all of them depth first: it makes the world again, follows
// the list so far, and takes the next choice that has not been taken.
//
// Many schedules lead to the same state, and from there on alike, so a state that
// has been seen is not entered twice. What a state is: what the host's future
// depends on (the order of the queue included), the log, what every goroutine has
// announced, and what it was told. Were something left out, states that differ would
// pass for one, and one choice in it would lead to two others: that is looked for in every walk,
// and where every schedule can be walked, the pruned walk must see the same states and
// the same ends.
//
// Between two steps the code runs as it is, with real locks and channels; what is
// explored is the order of steps, not of instructions, and data races are hidden:
// for those there are the storms under the race detector.
package explore

import (
	"context"
	"crypto/sha256"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// Scenario is a small world whose every course is explored.
type Scenario struct {
	Name      string
	Setup     func(w *World) // makes the host and starts clients; it runs before any of them
	Check     func(w *World) // of the ends; nil: none of its own
	Ticks     int            // how often time may pass while somebody could go on; when nobody can it always may
	Big       bool           // more than some seconds
	EveryStep bool           // every announcement is a choice
	Quiet     bool           // the actor's steps inside a batch are no choices; not with force, a slow log or a full queue
}

// Result is what a walk has seen.
type Result struct {
	Schedules   int // worlds that were made
	Steps       int // choices that were taken in them, those that lead back to a branch included
	Longest     int // schedule
	Divergences int // replays that came to another state than before: there must be none
	Conflicts   int // choices that lead from one state to two: the fingerprint leaves something out
	Broken      []string
	Schedule    []string // that broke something

	States map[State]bool
	Ends   map[string]bool // what everybody was told by then

	next      map[edge]State // where each choice has led
	everyStep bool
}

// edge is a choice in a state.
type edge struct {
	from   State
	choice string
}

// State is a fingerprint of one.
type State [sha256.Size]byte

// Options of a walk.
type Options struct {
	Prune     bool // a state that has been seen is not entered again
	EveryStep bool // every step that is announced is a choice
	Most      int  // schedules; 0: all
}

// The scheduler's own choice: to let time pass, enough of it for ForceExit's grace.
const tick = "time"

const (
	tickLength = lifecycle.ForceGrace + 20*time.Millisecond
	lastTicks  = 30   // when nobody can go on
	maxLength  = 2000 // of a schedule
)

var background = context.Background()

// canceled is a context that is done.
var canceled = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func newResult() *Result {
	return &Result{States: map[State]bool{}, Ends: map[string]bool{}, next: map[edge]State{}}
}

// branch is a state on the way, with the choices there.
type branch struct {
	choices []string
	next    int
	state   State
}

// Walk explores a scenario until something breaks or nothing is left.
func Walk(t *testing.T, sc Scenario, opts Options) *Result {
	r := newResult()
	r.everyStep = opts.EveryStep
	var path []*branch
	for {
		path = r.run(t, sc, path, opts)
		if len(r.Broken) > 0 || r.Divergences > 0 || r.Conflicts > 0 || opts.Most > 0 && r.Schedules >= opts.Most {
			break
		}
		for len(path) > 0 && path[len(path)-1].next == len(path[len(path)-1].choices)-1 {
			path = path[:len(path)-1]
		}
		if len(path) == 0 {
			break
		}
		path[len(path)-1].next++
	}
	return r
}

// Replay follows one schedule, and then goes on with the first choice each time. It
// returns the schedule with each goroutine's step.
func Replay(t *testing.T, sc Scenario, schedule []string, everyStep bool) (*Result, []string) {
	r := newResult()
	var path []*branch
	for _, choice := range schedule {
		path = append(path, &branch{choices: []string{choice}})
	}
	var steps []string
	r.schedule(t, sc, everyStep, func(w *World, choices []string, depth int) string {
		w.check()
		choice := choices[0]
		if depth < len(path) {
			if choice = path[depth].choices[0]; !slices.Contains(choices, choice) {
				r.Divergences++
				return ""
			}
		}
		step := choice
		if g := w.named(choice); g != nil {
			step += ": " + g.at
		}
		steps = append(steps, step)
		return choice
	})
	return r, steps
}

// run walks one schedule: along path, and on from its end with first choices.
func (r *Result) run(t *testing.T, sc Scenario, path []*branch, opts Options) []*branch {
	replayed := len(path)
	r.schedule(t, sc, opts.EveryStep, func(w *World, choices []string, depth int) string {
		if depth < replayed {
			b := path[depth]
			if !slices.Equal(b.choices, choices) || depth == replayed-1 && w.fingerprint() != b.state {
				r.Divergences++
				r.Schedule = taken(path)
				return ""
			}
			if depth == replayed-1 {
				w.check() // so that what the branch does is compared with the state before it
			}
			return b.choices[b.next]
		}
		w.check()
		state := w.fingerprint()
		if len(path) > 0 {
			last := path[len(path)-1]
			e := edge{last.state, last.choices[last.next]}
			if before, taken := r.next[e]; taken && before != state {
				r.Conflicts++
			}
			r.next[e] = state
		}
		if r.States[state] && opts.Prune {
			return ""
		}
		r.States[state] = true
		path = append(path, &branch{choices: choices, state: state})
		return choices[0]
	})
	r.Longest = max(r.Longest, len(path))
	if len(r.Broken) > 0 {
		r.Schedule = taken(path)
	}
	return path
}

func taken(path []*branch) []string {
	var all []string
	for _, b := range path {
		all = append(all, b.choices[b.next])
	}
	return all
}

// schedule makes a world and lets choose say who goes on, until nobody can, or
// choose says "": then it brings the world to its end unscheduled.
func (r *Result) schedule(t *testing.T, sc Scenario, everyStep bool, choose func(w *World, choices []string, depth int) string) {
	r.Schedules++
	defer func() { // the bubble's panic, if its goroutines never end
		if p := recover(); p != nil {
			r.Broken = append(r.Broken, fmt.Sprintf("P10: %v\n%s", p, debug.Stack()))
		}
	}()
	synctest.Test(t, func(*testing.T) {
		w := newWorld()
		w.quiet, w.everyStep = sc.Quiet, everyStep
		sc.Setup(w)
		for depth := 0; ; {
			synctest.Wait()
			choices := w.choices(sc.Ticks)
			if len(choices) == 0 {
				if !w.passTime() {
					w.check()
					w.checkEnd()
					if sc.Check != nil {
						sc.Check(w)
					}
					r.Ends[strings.Join(w.facts, "\n")] = true
					break
				}
				continue
			}
			choice := ""
			if depth >= maxLength {
				w.Broken("P6: %d steps, and no end", depth)
			}
			if len(w.broken) == 0 {
				choice = choose(w, choices, depth)
			}
			if choice == "" {
				w.finish()
				break
			}
			r.Steps++
			depth++
			w.release(choice)
		}
		r.Broken = append(r.Broken, w.broken...)
	})
}

// choices is who is parked, and time if it may pass.
func (w *World) choices(ticks int) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, g := range w.order {
		if g.at != "" {
			all = append(all, g.name)
		}
	}
	if len(all) > 0 && w.clock < ticks {
		all = append(all, tick)
	}
	return all
}

func (w *World) named(name string) *goroutine {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.order {
		if g.name == name {
			return g
		}
	}
	return nil
}

func (w *World) release(choice string) {
	if choice == tick {
		w.mu.Lock()
		w.clock++
		w.mu.Unlock()
		time.Sleep(tickLength)
		return
	}
	g := w.named(choice)
	g.at = ""
	g.resume <- struct{}{}
}

// passTime lets time pass where nobody can go on, until somebody can; it returns
// false if that helps nobody.
func (w *World) passTime() bool {
	for range lastTicks {
		w.mu.Lock()
		ended := w.unfinished == 0 && isClosed(w.Host.Done())
		w.mu.Unlock()
		if ended {
			return false
		}
		time.Sleep(tickLength)
		synctest.Wait()
		if len(w.choices(0)) > 0 {
			return true
		}
	}
	w.mu.Lock()
	if w.unfinished > 0 {
		w.broken = append(w.broken, fmt.Sprintf("P6, P10: %d clients wait for ever", w.unfinished))
	}
	w.mu.Unlock()
	return false
}

// finish lets everybody go on at once.
func (w *World) finish() {
	w.mu.Lock()
	w.free = true
	for _, g := range w.order {
		if g.at != "" {
			g.at = ""
			close(g.resume)
		}
	}
	w.mu.Unlock()
	synctest.Wait()
	for range lastTicks {
		if w.unfinished == 0 && isClosed(w.Host.Done()) {
			return
		}
		time.Sleep(tickLength)
		synctest.Wait()
	}
}

// fingerprint is the state.
func (w *World) fingerprint() State {
	var b strings.Builder
	b.WriteString(w.state().Text)
	b.WriteString(w.Log.fingerprint())
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintln(&b, w.clock, w.unfinished, w.told, w.facts)
	for _, g := range w.order {
		fmt.Fprintln(&b, g.name, g.at, string(g.trace))
	}
	return sha256.Sum256([]byte(b.String()))
}
