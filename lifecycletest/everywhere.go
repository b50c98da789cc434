package lifecycletest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// PointVariable is the environment variable that makes ExitEverywhere rerun one
// moment, as its failures print it.
const PointVariable = "LIFECYCLETEST_POINT"

// ExitEverywhere runs a workload again and again, each time in a world of its own,
// and begins the exit of its host at another moment, so that whatever a shutdown can
// interrupt is interrupted.
//
// open makes the world: a server, the host in it, and whatever they need. drive is
// what its clients do; it may start goroutines, and should wait for them. Both get
// a T that belongs to the run, whose Cleanup and TempDir too are the run's. In a
// bubble, sleep as you like: it takes no time.
//
// The moments are those in which user code reaches the host:
//
//	append         before an Append or Commit accepts anything
//	wait           before a Commit or Wait waits
//	go, every      before a task is admitted
//	enter, leave   before a call is admitted or leaves
//	onexit         before a hook is registered
//	task, taskend  before a task's func runs; when it has returned
//	tick           before the func of Every runs
//
// At each of them, one after the other, the exit begins twice: once while the
// goroutine that is there goes on at once, and once while it is held until the
// exit can go no further without it. The first run counts the moments, and exits when
// drive has returned; at the moments that come after that, as tasks are cancelled and
// write what they have left, the goroutine is held too. Of more moments than Runs a
// sample is taken.
//
// A run fails if
//
//   - the exit does not end within a limit (Within), or drive does not return;
//   - its result is not nil (AllowError), so also if a task fails because it does not
//     take the host's refusals for an answer;
//   - what was accepted is not durable, or not in the log, if the log was given to
//     the host as a *Log (for others: Reopens, in a t.Cleanup of open);
//   - a goroutine that is no task, hook or call appends after the seal, where a
//     shutdown loses what it writes (AllowLateAppends);
//   - a hook appends in PhaseRelease;
//   - a call leaves twice;
//   - a goroutine is left when the cleanups have run (IgnoreGoroutines);
//   - open or drive fails, by its T or its error. Errors that are the host's
//     refusals, ErrExiting and ErrClosed, are what clients expect of a host that
//     exits. Where open returns an error, it must leave no host running.
//
// The failure names the moment and ends with a line that reruns it alone.
//
// Runs take place in bubbles of testing/synctest, where time is virtual and every
// goroutine is known. Workloads that wait for sockets or other processes need
// RealTime; ExitEverywhere says so when a bubble does not come to rest.
// ExitEverywhere itself must not be called in a bubble.
//
// It is the host that open returns whose exit begins, and before open has returned
// any that open makes. (With RealTime, one that another goroutine makes for it, as
// Controller.Launch does, is watched from when open has returned.) Other hosts of
// the world are the workload's to exit.
func ExitEverywhere[S any](t *testing.T, open func(t testing.TB) (S, *lifecycle.Host, error), drive func(t testing.TB, server S) error, opts ...ExitOption) {
	t.Helper()
	k := newKit(t, t, opts)
	k.open = func(t testing.TB) (*lifecycle.Host, func(testing.TB) error, error) {
		server, host, err := open(t)
		return host, func(t testing.TB) error { return drive(t, server) }, err
	}
	k.everywhere()
}

// kit is one call of ExitEverywhere.
type kit struct {
	config
	tb       testing.TB // is told
	t        *testing.T // makes bubbles
	open     func(t testing.TB) (*lifecycle.Host, func(testing.TB) error, error)
	only     string        // the moment to rerun; "": all
	watchdog time.Duration // how long a run may take, in real time
	clock    atomic.Int64  // ticks of real time, which a bubble can't see otherwise
	found    map[string]*finding
	order    []string // of found
}

// finding is a problem, with the first moment at which it was found.
type finding struct {
	problem
	run   *run
	times int
}

const (
	clockTick       = 100 * time.Microsecond
	defaultWatchdog = 30 * time.Second
	mostFindings    = 3
	reruns          = 50
)

func newKit(tb testing.TB, t *testing.T, opts []ExitOption) *kit {
	k := &kit{config: newConfig(), tb: tb, t: t, watchdog: defaultWatchdog, found: map[string]*finding{}}
	if testing.Short() {
		k.runs = shortRuns
	}
	for _, o := range opts {
		o.setExit(&k.config)
	}
	k.only = os.Getenv(PointVariable)
	return k
}

func (k *kit) everywhere() {
	k.tb.Helper()
	if _, bubble := goroutine(); bubble != "" {
		k.tb.Fatalf("lifecycletest: ExitEverywhere makes bubbles of its own, and was called in one: call it from the test itself.")
	}
	defer k.startClock()()

	first := k.try(target{})
	switch {
	case k.only != "":
		k.again(first)
	case first.stuck || len(first.problems) > 0:
	default:
		targets := k.choose(first.points)
		missed := 0
		for _, at := range targets {
			r := k.try(at)
			if !r.reached {
				missed++
			}
			if r.stuck || len(k.found) >= mostFindings {
				break
			}
		}
		k.tb.Logf("lifecycletest: %d runs at %d moments%s", len(targets), len(first.points), kinds(first.points))
		if missed > 0 {
			k.tb.Logf("lifecycletest: %d runs did not come to their moment: the workload does not take the same steps every time. They exited at the end.", missed)
		}
	}
	for _, key := range k.order {
		k.tb.Errorf("%s", k.found[key].text(k.tb.Name()))
	}
}

// again reruns one moment until something is found.
func (k *kit) again(first *run) {
	k.tb.Helper()
	at, held := strings.CutSuffix(k.only, ",held")
	reached := 0
	for range reruns {
		r := k.try(target{at, held})
		if r.reached {
			reached++
		}
		if r.stuck || len(r.problems) > 0 {
			return
		}
	}
	if reached == 0 {
		known := make([]string, len(first.points))
		for i, p := range first.points {
			known[i] = p.id
		}
		k.tb.Errorf("lifecycletest: the workload never came to the moment %s=%q in %d runs. Has the code moved? Its moments are:\n%s", PointVariable, k.only, reruns, indent(strings.Join(known, "\n")))
		return
	}
	k.tb.Logf("lifecycletest: nothing went wrong in %d runs that exited at %s", reached, k.only)
}

// target is where a run begins the exit; the zero target: when drive has returned.
type target struct {
	id   string
	held bool
}

// choose picks the targets of the runs.
func (k *kit) choose(points []point) []target {
	var all []target // held first: what they find is found again
	for _, p := range points {
		all = append(all, target{p.id, true})
	}
	for _, p := range points {
		if !p.during {
			all = append(all, target{p.id, false})
		}
	}
	if len(all) <= k.runs {
		return all
	}
	chosen := map[int]bool{}
	for i := range k.runs / 2 {
		chosen[i*len(all)/(k.runs/2)] = true
	}
	for _, i := range rand.New(rand.NewPCG(k.seed, 0)).Perm(len(all)) {
		if len(chosen) == k.runs {
			break
		}
		chosen[i] = true
	}
	sample := make([]target, 0, len(chosen))
	for i, at := range all {
		if chosen[i] {
			sample = append(sample, at)
		}
	}
	return sample
}

// kinds counts moments by kind.
func kinds(points []point) string {
	counts := map[string]int{}
	for _, p := range points {
		counts[p.kind]++
	}
	var names []string
	for name := range counts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(counts[b], counts[a]) })
	text := ""
	for i, name := range names {
		text += [2]string{", ", ": "}[b2i(i == 0)] + strconv.Itoa(counts[name]) + " " + name
	}
	return text
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// try runs the workload once and keeps what is wrong.
func (k *kit) try(at target) *run {
	r := newRun(k, at)
	if k.realTime {
		r.main()
	} else {
		k.inBubble(r)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.problems {
		f := k.found[p.key]
		if f == nil {
			f = &finding{problem: p, run: r}
			k.found[p.key] = f
			k.order = append(k.order, p.key)
		}
		f.times++
	}
	return r
}

// inBubble runs r in a bubble, and gives up on one that does not come to rest.
func (k *kit) inBubble(r *run) {
	ended := make(chan struct{})
	var bubbled atomic.Uint64 // the goroutine that waits for the bubble
	go func() {
		defer close(ended)
		defer func() {
			if v := recover(); v != nil {
				// Goroutines that are left; the run has said which.
				r.left(fmt.Sprint(v))
			}
		}()
		id, _ := goroutine()
		bubbled.Store(id)
		synctest.Test(k.t, func(*testing.T) { r.main() })
	}()
	timer := time.NewTimer(k.watchdog)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		_, bubble := parseHeader([]byte(rawStackOf(bubbled.Load())))
		text := strings.Join(bubbleStacks(bubble), "\n\n")
		r.mu.Lock()
		r.stuck = true
		r.mu.Unlock()
		r.add(newProblem("watchdog", "a run has not ended within %v of real time, and the bubble that it takes place in is not at rest: a goroutine computes, or waits for what a bubble can't wait for, such as a socket, another process, or a mutex that is held across a wait. If that is meant, run the workload outside a bubble with RealTime. These are its goroutines:\n%s", k.watchdog, indent(text)))
	}
}

// startClock makes real time visible to bubbles, whose own stands still while
// anybody runs.
func (k *kit) startClock() (stop func()) {
	stopping, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(clockTick)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				k.clock.Add(1)
			case <-stopping:
				return
			}
		}
	}()
	return func() { close(stopping); <-stopped }
}

// text is the failure as the test reports it.
func (f *finding) text(test string) string {
	r := f.run
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	b.WriteString("lifecycletest: an exit in the middle of this workload goes wrong.\n")
	if r.target.id == "" || !r.reached {
		b.WriteString("moment: when drive has returned\n")
	} else {
		fmt.Fprintf(&b, "moment: %s\n", r.at)
		if r.during {
			b.WriteString("        the exit had begun when drive had returned; that goroutine is held there until it can go no further without it\n")
		} else if r.target.held {
			b.WriteString("        that goroutine is held there until the exit can go no further without it\n")
		} else {
			b.WriteString("        that goroutine goes on at once\n")
		}
	}
	fmt.Fprintf(&b, "wrong:  %s\n", f.problem.text)
	if r.target.id != "" && r.reached && r.stackAt != "" {
		fmt.Fprintf(&b, "That moment was here:\n%s\n", indent(r.stackAt))
	}
	if f.times > 1 {
		fmt.Fprintf(&b, "The same went wrong in %d runs.\n", f.times)
	}
	if logged := r.tb.logs(); logged != "" {
		fmt.Fprintf(&b, "The run has logged:\n%s\n", indent(logged))
	}
	b.WriteString("rerun:  ")
	if r.target.id != "" && r.reached {
		id := r.target.id
		if r.target.held {
			id += ",held"
		}
		fmt.Fprintf(&b, "%s=%s ", PointVariable, shellQuoted(id))
	}
	fmt.Fprintf(&b, "go test -run %s", shellQuoted("^"+strings.ReplaceAll(test, "/", "$/^")+"$"))
	return b.String()
}

func shellQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
