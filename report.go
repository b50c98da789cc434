package lifecycle

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Status is what a host is doing now. Durations are nanoseconds in JSON.
type Status struct {
	Host        string       `json:"host"`
	State       State        `json:"state"`
	Phase       Phase        `json:"phase"`        // of the exit; 0: none runs
	Cause       string       `json:"cause"`        // what began the exit; "": nothing, or a plain exit
	Tasks       []TaskStatus `json:"tasks"`        // those that run, by name
	Calls       int          `json:"calls"`        // in flight
	QueuedBytes int          `json:"queued_bytes"` // as Options.QueueBytes counts; what the log has taken of a batch, by sixteenths of that
	Accepted    Offset       `json:"accepted"`
	Durable     Offset       `json:"durable"`
	LogError    string       `json:"log_error"` // the log's first failure; "": none
}

// TaskStatus is the tasks of one name.
type TaskStatus struct {
	Name      string        `json:"name"`
	Count     int           `json:"count"`
	Age       time.Duration `json:"age"`    // of the oldest
	Every     time.Duration `json:"every"`  // the oldest's interval; 0: of Go
	Ticks     int64         `json:"ticks"`  // that have ended, failed ones among them
	Failed    int64         `json:"failed"` // ticks
	LastError string        `json:"last_error"`
}

// Status returns what the host is doing at this moment. It does not block.
func (h *Host) Status() Status {
	d := &h.durability
	s := Status{Host: h.name, Tasks: h.tasks.status(), Calls: h.gate.count()}
	h.mu.Lock()
	s.State = h.state
	if h.state != Running {
		s.Phase, s.Cause = h.exit.phase, h.exit.causeText
	}
	h.mu.Unlock()
	d.mu.Lock()
	s.QueuedBytes, s.Accepted, s.Durable = d.bytes, d.accepted, d.durable.Load()
	failed := d.failed
	d.mu.Unlock()
	if failed != nil {
		s.LogError = failed.Error()
	}
	return s
}

// Report is the story of an exit, finished or not. Durations are nanoseconds in
// JSON.
type Report struct {
	Host     string        `json:"host"`
	Outcome  string        `json:"outcome"` // "" before the end, then "clean", "failed" or "forced"
	Cause    string        `json:"cause"`   // what began the exit; "": a plain one
	Start    time.Time     `json:"start"`   // of the exit
	Duration time.Duration `json:"duration"`
	First    Offset        `json:"first"` // the log's Next when the host was made
	Accepted Offset        `json:"accepted"`
	Durable  Offset        `json:"durable"`
	Lost     uint64        `json:"lost"` // accepted and not durable, or not known to be, at the end
	Phases   []PhaseReport `json:"phases"`
}

// PhaseReport is one phase of an exit.
type PhaseReport struct {
	Phase      Phase         `json:"phase"`
	Start      time.Time     `json:"start"`
	Duration   time.Duration `json:"duration"` // so far, if it has not ended
	Ended      bool          `json:"ended"`
	Hooks      []HookReport  `json:"hooks"`      // in the order in which they ran
	Stragglers []Straggler   `json:"stragglers"` // whom it waits for; once it has ended, whom it was last reported to wait for
	Abandoned  []Straggler   `json:"abandoned"`  // whom ForceExit left behind
	Errors     []string      `json:"errors"`
}

// HookReport is one hook of an exit.
type HookReport struct {
	Hook      string        `json:"hook"`
	Start     time.Time     `json:"start"`
	Duration  time.Duration `json:"duration"`
	Error     string        `json:"error"`     // what it returned or panicked with; "": nil
	Skipped   bool          `json:"skipped"`   // by ForceExit, before it began
	Abandoned bool          `json:"abandoned"` // by ForceExit, while it ran
}

// Report returns the story of the exit so far; before it begins, only Host, First,
// Accepted and Durable are set. While a phase waits, its stragglers are looked up
// as for an ExitError, which takes as long as a goroutine profile.
func (h *Host) Report() Report {
	d := &h.durability
	durable := d.Durable()
	r := Report{Host: h.name, First: d.first, Accepted: d.Accepted(), Durable: durable, Phases: []PhaseReport{}}
	h.mu.Lock()
	e := h.exit
	if e == nil {
		h.mu.Unlock()
		return r
	}
	state, phase := h.state, e.phase
	r.Outcome, r.Cause, r.Start = e.outcome, e.causeText, e.start.Round(0)
	r.Duration = e.duration
	if state == Exited {
		r.Lost = e.lost
	} else {
		r.Duration = time.Since(e.start)
	}
	for _, p := range e.phases {
		if !p.Ended {
			p.Duration = time.Since(p.Start)
		}
		p.Start = p.Start.Round(0)
		p.Hooks = copyOf(p.Hooks)
		p.Stragglers = copyOf(p.Stragglers)
		p.Abandoned = copyOf(p.Abandoned)
		p.Errors = copyOf(p.Errors)
		r.Phases = append(r.Phases, p)
	}
	h.mu.Unlock()
	if n := len(r.Phases); n > 0 && !r.Phases[n-1].Ended && r.Phases[n-1].Phase == phase {
		r.Phases[n-1].Stragglers = withStacks(e.stragglers(phase))
	}
	return r
}

// copyOf is not nil even for nil, so that JSON has a list.
func copyOf[T any](list []T) []T { return append([]T{}, list...) }

// String shows so many bytes of an error's text.
const maxText = 4 << 10

// The widths of String's timeline, in characters: it fits a terminal of 80.
const (
	phaseWidth = 17
	barWidth   = 36
	lineWidth  = 80
)

// String returns the timeline as a person reads it: a bar a phase, to scale, what
// its hooks and stragglers did under it, and the sums at the end.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "exit of host %s", printable(r.Host))
	switch {
	case r.Start.IsZero():
		fmt.Fprintf(&b, ": not begun\n")
	case r.Outcome == "":
		fmt.Fprintf(&b, ": runs since %s\n", shortDuration(r.Duration))
	default:
		fmt.Fprintf(&b, ": %s in %s\n", r.Outcome, shortDuration(r.Duration))
	}
	if r.Cause != "" {
		writeLine(&b, "  because of: ", r.Cause)
	}
	for _, p := range r.Phases {
		p.write(&b, r)
	}
	fmt.Fprintf(&b, "accepted %d, durable %d", r.Accepted-r.First, r.Durable-r.First)
	if r.Outcome != "" {
		fmt.Fprintf(&b, ", lost %d", r.Lost)
	}
	if r.First > 0 {
		fmt.Fprintf(&b, " (offsets from %d)", r.First)
	}
	b.WriteByte('\n')
	return b.String()
}

func (p PhaseReport) write(b *strings.Builder, r Report) {
	duration := shortDuration(p.Duration)
	if !p.Ended {
		duration += " …"
	}
	fmt.Fprintf(b, "  %d %-*s %s %9s\n", int(p.Phase), phaseWidth, p.Phase, bar(p.Start.Sub(r.Start), p.Duration, r.Duration), duration)
	for _, h := range p.Hooks {
		line := "hook " + printable(h.Hook)
		switch {
		case h.Skipped:
			line += ": skipped"
		case h.Abandoned:
			line += ": left behind after " + shortDuration(h.Duration)
		case h.Error != "":
			line += " (" + shortDuration(h.Duration) + "): " + h.Error
		default:
			line += " (" + shortDuration(h.Duration) + ")"
		}
		writeLine(b, "      ", line)
	}
	writeStragglers(b, "waited for ", p.Stragglers, p.Ended)
	writeStragglers(b, "left behind ", p.Abandoned, true)
	for _, e := range p.Errors {
		if !p.isHookError(r.Host, e) { // that stands beside the hook
			writeLine(b, "      error: ", strings.TrimPrefix(e, "lifecycle: "+hostText(r.Host)))
		}
	}
}

func (p PhaseReport) isHookError(host, text string) bool {
	return slices.ContainsFunc(p.Hooks, func(h HookReport) bool {
		return h.Error != "" && text == (&HookError{Phase: p.Phase, Hook: h.Hook, Err: errors.New(h.Error), host: host}).Error()
	})
}

// String shows so many stragglers of a phase, the oldest first, and counts the
// others.
const maxShown = 8

func writeStragglers(b *strings.Builder, label string, all []Straggler, ended bool) {
	if !ended {
		label = "waits for "
	}
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Straggler) int { return -cmp.Compare(a.Age, b.Age) })
	for i, s := range all {
		if i == maxShown {
			fmt.Fprintf(b, "      … and %d more\n", len(all)-i)
			return
		}
		line := label + printable(s.String())
		if at := s.where(); at != "" {
			line += " at " + at
		}
		writeLine(b, "      ", line)
	}
}

// writeLine writes text behind indent, broken into lines of lineWidth at most
// where there is a space to break at.
func writeLine(b *strings.Builder, indent, text string) {
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + " …"
	}
	width := lineWidth - utf8.RuneCountInString(indent)
	blank := strings.Repeat(" ", utf8.RuneCountInString(indent))
	for line := range strings.SplitSeq(text, "\n") {
		runes := []rune(printable(line))
		more := ""
		for len(runes) > width-len(more) {
			end := width - len(more)
			for i := end; i > end/2; i-- {
				if runes[i] == ' ' {
					end = i
					break
				}
			}
			b.WriteString(indent + more + string(runes[:end]) + "\n")
			for runes = runes[end:]; len(runes) > 0 && runes[0] == ' '; {
				runes = runes[1:]
			}
			indent, more = blank, "  "
		}
		b.WriteString(indent + more + string(runes) + "\n")
		indent = blank
	}
}

// bar draws where a phase lies in the whole, a cell at least.
func bar(start, duration, whole time.Duration) string {
	if whole <= 0 {
		whole = 1
	}
	cell := func(d time.Duration) int {
		return min(max(int(math.Round(float64(d)/float64(whole)*barWidth)), 0), barWidth)
	}
	from := min(cell(start), barWidth-1)
	to := min(max(cell(start+duration), from+1), barWidth)
	return strings.Repeat("·", from) + strings.Repeat("█", to-from) + strings.Repeat("·", barWidth-to)
}

// printable replaces what would move a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// shortDuration rounds to three digits or so.
func shortDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + shortDuration(d.Abs()) // -d has no end for the least Duration
	case d < 10*time.Microsecond:
		return d.Round(10 * time.Nanosecond).String()
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
