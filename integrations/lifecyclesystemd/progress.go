package lifecyclesystemd

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/seed080d9131/lifecycle"
)

// progress is what has been seen of the exits of hosts. It knows no clock.
type progress struct {
	seen  map[*lifecycle.Host]exit
	marks uint64
	asks  uint64 // Reports so far
}

// exit is how far a host's exit has come. A number that counts what is left may flicker
// upwards, as that of calls does for one that is refused, so the best is kept.
type exit struct {
	state   lifecycle.State
	phase   lifecycle.Phase
	tasks   int
	calls   int
	queued  int
	left    uint64 // accepted and not durable
	durable lifecycle.Offset
	hooks   int    // of its last Report that had ended; notAsked: in this phase
	asked   uint64 // the number of that Report; 0: none yet
}

const notAsked = -1

// A look asks so many hosts for their Reports.
const maxReports = 8

// look takes in how far the exits have come, and reports whether one has moved since the
// last look.
func (p *progress) look(hosts []*lifecycle.Host, marks uint64) (moved bool) {
	moved = marks != p.marks
	now := make(map[*lifecycle.Host]exit, len(hosts))
	for _, h := range hosts {
		last, known := p.seen[h]
		e, its := last.advance(h.Status(), known)
		moved = moved || its
		now[h] = e
	}
	for h := range p.seen {
		if _, there := now[h]; !there { // its exit has ended
			moved = true
		}
	}
	p.seen, p.marks = now, marks
	if !moved {
		moved = p.lookAtHooks(hosts)
	}
	return moved
}

// advance returns e as s shows it. A host that is new is one that was still launched
// when the exit began.
func (e exit) advance(s lifecycle.Status, known bool) (exit, bool) {
	tasks := 0
	for _, t := range s.Tasks {
		tasks += t.Count
	}
	now := exit{s.State, s.Phase, tasks, s.Calls, s.QueuedBytes, s.Accepted - s.Durable, s.Durable, notAsked, e.asked}
	if !known {
		return now, true
	}
	if now.phase == e.phase {
		now.hooks = e.hooks
	}
	moved := now.state > e.state || now.state == e.state && now.phase > e.phase ||
		now.tasks < e.tasks || now.calls < e.calls || now.queued < e.queued || now.durable > e.durable
	now.tasks, now.calls = min(now.tasks, e.tasks), min(now.calls, e.calls)
	if now.durable == e.durable {
		now.queued = min(now.queued, e.queued) // tasks and calls may still append
	}
	return now, moved
}

// lookAtHooks asks the Reports of those whose exit is in a phase with hooks: a Status
// does not show them, and a Report costs a goroutine profile. Those come first who were
// asked longest ago, so that each has its turn; the first Report of a phase is only what
// the next is compared with.
func (p *progress) lookAtHooks(hosts []*lifecycle.Host) (moved bool) {
	var inHooks []*lifecycle.Host
	for _, h := range hosts {
		if e := p.seen[h]; e.state == lifecycle.Exiting && takesHooks(e.phase) {
			inHooks = append(inHooks, h)
		}
	}
	slices.SortStableFunc(inHooks, func(a, b *lifecycle.Host) int { return cmp.Compare(p.seen[a].asked, p.seen[b].asked) })
	for _, h := range inHooks[:min(len(inHooks), maxReports)] {
		e := p.seen[h]
		hooks := 0
		for _, phase := range h.Report().Phases {
			hooks += len(phase.Hooks)
		}
		moved = moved || e.hooks != notAsked && hooks > e.hooks
		p.asks++
		e.hooks, e.asked = hooks, p.asks
		p.seen[h] = e
	}
	return moved
}

func takesHooks(p lifecycle.Phase) bool {
	return p == lifecycle.PhaseExitModule || p == lifecycle.PhaseCheckpoint || p == lifecycle.PhaseRelease
}

// text says in a line what the exits wait for.
func (p *progress) text() string {
	var sum exit
	hosts := 0
	for _, e := range p.seen {
		if e.state == lifecycle.Exited {
			continue
		}
		hosts++
		if sum.phase == 0 || e.phase < sum.phase {
			sum.phase = e.phase
		}
		sum.tasks += e.tasks
		sum.calls += e.calls
		sum.left += e.left
	}
	if hosts == 0 {
		return "exiting"
	}
	parts := []string{"exiting: " + sum.phase.String()}
	if len(p.seen) > 1 {
		parts = append(parts, fmt.Sprintf("%d of %d hosts left", hosts, len(p.seen)))
	}
	for _, part := range []struct {
		n    uint64
		what string
	}{{uint64(sum.calls), "call"}, {uint64(sum.tasks), "task"}, {sum.left, "transaction"}} {
		if part.n == 0 {
			continue
		}
		plural := "s"
		if part.n == 1 {
			plural = ""
		}
		text := fmt.Sprintf("%d %s%s", part.n, part.what, plural)
		if part.what == "transaction" {
			text += " to make durable"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// stalls knows whose log had something to make durable at the last look.
type stalls map[*lifecycle.Host]stall

// stall is how far a log had come, and at how many looks in a row.
type stall struct {
	durable lifecycle.Offset
	looks   int
}

// maxLooks is how many looks in a row may see a log at one place, with something to make
// durable. The second is a quarter of the watchdog's time after the log has stopped, or
// more, and is the last to feed it; so it bites no earlier than 5/4 after, and a log that
// moves again within 4/4 is seen to by a look before that.
const maxLooks = 2

// none reports whether no host stands still: none that runs had transactions that were
// accepted and not durable at the last looks, none of which is now. (A host whose own exit
// has begun is that exit's affair.)
func (s *stalls) none(hosts []*lifecycle.Host) bool {
	healthy := true
	waiting := stalls{}
	for _, h := range hosts {
		select {
		case <-h.Exiting():
			continue
		default:
		}
		d := h.Durability()
		durable := d.Durable()
		if d.Accepted() == durable {
			continue
		}
		now := stall{durable, 1}
		if last, waited := (*s)[h]; waited && last.durable == durable {
			now.looks = last.looks + 1
		}
		if now.looks > maxLooks {
			healthy = false
		}
		waiting[h] = now
	}
	*s = waiting
	return healthy
}
