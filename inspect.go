package lifecycle

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/seed080d9131/lifecycle/internal/seam"
)

func init() { seam.StateOf = func(host any) seam.State { return host.(*Host).inspect() } }

// inspect writes down what the host's future depends on, apart from where its
// goroutines stand: two moments with the same text, and the same goroutines at the
// same steps, go on alike. What only makes it faster (spare chunks, how long syncs
// take) is left out, and so is everything that depends on the clock.
func (h *Host) inspect() seam.State {
	var s seam.State
	var b strings.Builder
	h.mu.Lock()
	fmt.Fprintf(&b, "host %v exiting=%t done=%t waiting=%d hooks", h.state, isClosed(h.exiting), isClosed(h.done), len(h.waiting))
	for _, k := range h.hooks {
		fmt.Fprintf(&b, " %d/%s", k.phase, k.name)
	}
	b.WriteByte('\n')
	if e := h.exit; e != nil {
		s.Forced = e.forced
		s.Phase = e.phase.String()
		fmt.Fprintf(&b, "exit %v cause=%q forced=%t grace=%t flush=%t leftIn=%v outcome=%s\n",
			e.phase, e.causeText, e.forced, isClosed(e.graceEnd), isClosed(e.flushEnd), e.leftIn, e.outcome)
		for _, left := range e.left {
			fmt.Fprintf(&b, "left %s %s %d\n", left.Kind, left.Name, left.Count)
		}
		for _, p := range e.phases {
			fmt.Fprintf(&b, "phase %v ended=%t errors=%q", p.Phase, p.Ended, p.Errors)
			for _, k := range p.Hooks {
				fmt.Fprintf(&b, " hook=%s,%t,%t,%q", k.Hook, k.Skipped, k.Abandoned, k.Error)
			}
			b.WriteByte('\n')
		}
	}
	h.mu.Unlock()

	calls, open := 0, 0
	for i := range h.gate.shards {
		word := h.gate.shards[i].word.Load()
		calls += int(word >> 1)
		if word&gateClosed == 0 {
			open++
		}
	}
	fmt.Fprintf(&b, "calls %d open=%d empty=%t\n", calls, open, isClosed(h.gate.empty))

	ts := &h.tasks
	ts.mu.Lock()
	fmt.Fprintf(&b, "tasks %d refusing=%t awaited=%t cancelled=%t\n", ts.alive(), ts.refusing, ts.idle != nil, ts.ctx.Err() != nil)
	for _, name := range slices.Sorted(maps.Keys(ts.groups)) {
		g := ts.groups[name]
		count, _, _ := g.running()
		fmt.Fprintf(&b, "task %s %d ticks=%d failed=%d\n", name, count, g.ticks, g.failed)
	}
	ts.mu.Unlock()

	h.callouts.mu.Lock()
	var active []string
	for c := range h.callouts.active {
		active = append(active, c.name)
	}
	for name, label := range h.callouts.shared {
		active = append(active, fmt.Sprintf("%s left=%t kept=%t", name, label.left, label.kept))
	}
	h.callouts.mu.Unlock()
	slices.Sort(active)
	fmt.Fprintf(&b, "callouts %q\n", active)

	h.durability.inspect(&b, &s)
	s.Text = b.String()
	return s
}

// alive counts the tasks that the exit waits for. It is called with mu held.
func (ts *tasks) alive() int {
	n := 0
	for _, g := range ts.groups {
		for block := g.first; block != nil; block = block.next {
			n += int(block.left.Load()) - (len(block.tasks) - block.taken)
		}
	}
	return n
}

func (d *Durability) inspect(b *strings.Builder, s *seam.State) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Sealed, s.GivenUp = d.sealed, d.givenUp.Load()
	call, failed := "", ""
	if c := d.call.Load(); c != nil {
		call = *c
	}
	if d.failed != nil {
		failed = d.failed.Error()
	}
	fmt.Fprintf(b, "durability accepted=%d durable=%d bytes=%d sealed=%t givenUp=%t quiet=%t parked=%t over=%t generation=%d call=%s failed=%s\n",
		d.accepted, d.durable.Load(), d.bytes, d.sealed, d.givenUp.Load(), d.quiet.Load(), d.parked, d.over, d.generation, call, failed)
	fmt.Fprintf(b, "actor wake=%d drained=%t closing=%t closed=%t future=%t\n",
		len(d.wake), isClosed(d.drained), isClosed(d.closing), isClosed(d.closed), d.future != nil)
	for i, batch := range []*batch{&d.queue, &d.flight} {
		fmt.Fprintf(b, "%s end=%d waiters=%d", [...]string{"queue", "flight"}[i], batch.end, batch.waiters)
		for _, c := range batch.chunks {
			fmt.Fprintf(b, " %q", c.appendTo(nil, d.header))
		}
		b.WriteByte('\n')
	}
	b.WriteString("room")
	for w := d.room.first; w != nil; w = w.next {
		fmt.Fprintf(b, " %q", w.tx)
	}
	b.WriteByte('\n')
}
