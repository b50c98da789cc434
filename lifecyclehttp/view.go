package lifecyclehttp

import (
	"fmt"
	"hash/fnv"
	"html/template"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed080d9131/lifecycle"
)

// The page's bounds; what lies beyond is counted.
const (
	maxDetailed = 100  // hosts in detail
	maxLinks    = 1000 // other hosts
	maxRows     = 200  // tasks, stragglers, hooks or errors of a host
	maxText     = 1000 // characters of an error or a cause
	maxName     = 120  // characters of a name
)

// page is what page.html shows.
type page struct {
	CSS     template.CSS
	JS      template.JS
	Title   string
	Heading string // "": there is one host, whose name says it all
	Note    string // in place of hosts
	Counts  []count
	Time    time.Time
	Refresh int // seconds
	One     bool
	Search  bool
	Find    string
	JSON    string // its address
	Hosts   []hostView
	Others  []link
	Rest    string // how many more there are
}

type count struct{ N, Kind string }

type link struct{ Name, URL, Kind string }

type hostView struct {
	Name, URL, Kind string // Kind: "running", "exiting", "clean", "failed", "forced"
	Alone           bool   // on the page
	Lead            string // what it does, in a sentence
	Cause           string
	LogError        string
	Steps           []step
	Facts           []fact
	Waits           []straggler
	WaitsHead       string
	Left            []straggler
	Hooks           []hookRow
	Errors          []phaseText
	Tasks           []taskRow
	More            map[string]string // of the lists above, by name
}

type step struct {
	N                     int
	Name, Took, Kind, Say string // Kind: "done", "now", "bad" (done, not well), "todo"
	Current               bool
}

type fact struct{ Name, Value, Unit, Kind string }

type straggler struct {
	Key, Kind, Name, Count, Age, Phase, At string
	Frames                                 []frame
}

// frame is two lines of a stack, or one that is a remark.
type frame struct {
	Func, At string
	Own      bool // neither the standard library's nor this module's
}

type hookRow struct{ Name, Phase, Took, Result, Kind string }

type phaseText struct{ Phase, Text string }

type taskRow struct{ Name, Count, Age, Every, Ticks, Failed, LastError string }

func newPage(s *Snapshot, one bool, name, find string) *page {
	total := s.Counts.Running + s.Counts.Exiting + s.Counts.Clean + s.Counts.Failed + s.Counts.Forced
	p := &page{
		CSS: template.CSS(pageCSS), JS: template.JS(pageJS),
		Time: s.Time, Refresh: 3, One: one, Find: find, Search: !one && (total > 10 || find != ""),
	}
	if s.Counts.Exiting > 0 {
		p.Refresh = 1
	}
	query := url.Values{"format": {"json"}}
	if one {
		query.Set("host", name)
	} else if find != "" {
		query.Set("find", find)
	}
	p.JSON = "?" + query.Encode()
	if total != 1 || len(s.Hosts) != 1 {
		p.Heading = plural(total, "host")
		for _, c := range []struct {
			n    int
			kind string
		}{{s.Counts.Exiting, "exiting"}, {s.Counts.Failed, "failed"}, {s.Counts.Forced, "forced"}, {s.Counts.Running, "running"}, {s.Counts.Clean, "clean"}} {
			if c.n > 0 {
				p.Counts = append(p.Counts, count{grouped(uint64(c.n)), c.kind})
			}
		}
	}
	switch {
	case len(s.Hosts) > 0:
	case one:
		p.Note = fmt.Sprintf("No host is named %q. It may have exited, or not be launched yet.", shorten(name, maxName))
	case find != "":
		p.Note = fmt.Sprintf("No host's name has %q in it.", shorten(find, maxName))
	default:
		p.Note = "No host is registered."
	}
	for i, h := range s.Hosts {
		if i < maxDetailed {
			view := newHostView(h)
			view.Alone = len(s.Hosts) == 1
			p.Hosts = append(p.Hosts, view)
			continue
		}
		if i == maxDetailed+maxLinks {
			p.Rest = fmt.Sprintf("And %s more: search for a name, or see ?format=json, which has all.", grouped(uint64(len(s.Hosts)-i)))
			break
		}
		p.Others = append(p.Others, link{shorten(h.Status.Host, maxName), hostURL(h), h.outcome()})
	}
	p.Title = "lifecycle: " + p.Heading
	if p.Heading == "" {
		h := s.Hosts[0]
		p.Title = shorten(h.Status.Host, maxName) + ": " + h.outcome()
		if h.outcome() == "exiting" {
			p.Title = shorten(h.Status.Host, maxName) + ": " + h.Status.Phase.String()
		}
	}
	return p
}

func hostURL(h HostSnapshot) string { return "?host=" + url.QueryEscape(h.Status.Host) }

func newHostView(h HostSnapshot) hostView {
	s := h.Status
	v := hostView{
		Name: shorten(s.Host, maxName), URL: hostURL(h), Kind: h.outcome(),
		Cause: shorten(s.Cause, maxText), LogError: shorten(s.LogError, maxText),
		More: map[string]string{},
	}
	v.addFacts(s)
	v.addTasks(s.Tasks)
	reports := map[lifecycle.Phase]*lifecycle.PhaseReport{}
	phase := s.Phase
	if r := h.Report; r != nil {
		for i := range r.Phases {
			p := &r.Phases[i]
			reports[p.Phase] = p
			if !p.Ended {
				phase = p.Phase
			}
			v.addPhase(s.Host, p)
		}
	}
	for p := lifecycle.PhaseExitModule; p <= lifecycle.PhaseRelease; p++ {
		v.Steps = append(v.Steps, newStep(p, phase, s.State, reports[p]))
	}
	v.Lead = lead(h, phase)
	return v
}

// lead says what the host does, in a sentence.
func lead(h HostSnapshot, phase lifecycle.Phase) string {
	r := h.Report
	switch {
	case h.Status.State == lifecycle.Running:
		return "Taking calls and tasks."
	case r == nil:
		return fmt.Sprintf("Exiting, in phase %q. So many exit at once that its report was not taken; its own page has it.", phase)
	case r.Outcome == "":
		text := fmt.Sprintf("The exit has run for %s", elapsed(r.Duration))
		if n := len(r.Phases); n > 0 && !r.Phases[n-1].Ended {
			text += fmt.Sprintf(", %s for %s", phase, elapsed(r.Phases[n-1].Duration))
		}
		return text + "."
	}
	text := fmt.Sprintf("Exited in %s. ", elapsed(r.Duration))
	switch {
	case r.Lost > 0:
		text += plural(int(r.Lost), "accepted transaction") + " lost, or not known to be durable."
	case r.Accepted > r.First:
		text += "All that was accepted is durable."
	default:
		text += "Nothing was accepted."
	}
	return text
}

func newStep(p, current lifecycle.Phase, state lifecycle.State, r *lifecycle.PhaseReport) step {
	s := step{N: int(p), Name: p.String(), Kind: "todo", Say: "to come"}
	switch {
	case state == lifecycle.Running:
		s.Say = ""
	case state == lifecycle.Exited || r != nil && r.Ended || p < current:
		s.Kind, s.Say = "done", "done"
	case p == current:
		s.Kind, s.Say, s.Current = "now", "now", true
	}
	if r == nil {
		return s
	}
	s.Took = elapsed(r.Duration)
	bad := len(r.Errors) > 0 || len(r.Abandoned) > 0
	for _, hook := range r.Hooks {
		bad = bad || hook.Skipped || hook.Abandoned || hook.Error != ""
	}
	if bad && s.Kind == "done" {
		s.Kind, s.Say = "bad", "not clean"
	}
	return s
}

func (v *hostView) addFacts(s lifecycle.Status) {
	tasks := 0
	for _, t := range s.Tasks {
		tasks += t.Count
	}
	bytes, unit := size(s.QueuedBytes)
	lag := s.Accepted - min(s.Durable, s.Accepted)
	lagKind := ""
	if lag > 0 {
		lagKind = "some"
	}
	v.Facts = []fact{
		{"calls in flight", grouped(uint64(max(s.Calls, 0))), "", ""},
		{"tasks", grouped(uint64(tasks)), "", ""},
		{"queue", bytes, unit, ""},
		{"accepted", grouped(s.Accepted), "", ""},
		{"durable", grouped(s.Durable), "", ""},
		{"lag", grouped(lag), "", lagKind},
	}
}

func (v *hostView) addTasks(tasks []lifecycle.TaskStatus) {
	for i, t := range tasks {
		if i == maxRows {
			v.More["tasks"] = grouped(uint64(len(tasks) - i))
			break
		}
		row := taskRow{Name: shorten(t.Name, maxName), Count: grouped(uint64(t.Count)), Age: elapsed(t.Age), LastError: shorten(t.LastError, maxText)}
		if t.Every > 0 {
			row.Every, row.Ticks, row.Failed = elapsed(t.Every), grouped(uint64(t.Ticks)), grouped(uint64(t.Failed))
		}
		v.Tasks = append(v.Tasks, row)
	}
}

func (v *hostView) addPhase(host string, p *lifecycle.PhaseReport) {
	if !p.Ended {
		n := 0
		for i, s := range p.Stragglers {
			n += s.Count
			if i < maxRows {
				v.Waits = append(v.Waits, newStraggler(host, p.Phase, "waits", s))
			}
		}
		if len(p.Stragglers) > maxRows {
			v.More["waits"] = grouped(uint64(len(p.Stragglers) - maxRows))
		}
		if n > 0 {
			v.WaitsHead = waitingFor(n, p.Stragglers)
		}
	}
	for _, s := range p.Abandoned {
		if len(v.Left) == maxRows {
			v.More["left"] = "more"
			break
		}
		v.Left = append(v.Left, newStraggler(host, p.Phase, "left", s))
	}
	told := map[string]bool{}
	for _, hook := range p.Hooks {
		row := hookRow{Name: shorten(hook.Hook, maxName), Phase: p.Phase.String(), Took: elapsed(hook.Duration), Result: "ok", Kind: "ok"}
		switch {
		case hook.Skipped:
			row.Took, row.Result, row.Kind = "", "skipped", "bad"
		case hook.Abandoned:
			row.Result, row.Kind = "left behind", "bad"
		case hook.Error != "":
			row.Result, row.Kind = shorten(hook.Error, maxText), "bad"
			told[fmt.Sprintf("%v: hook %q: %s", p.Phase, hook.Hook, hook.Error)] = true
		}
		if len(v.Hooks) == maxRows {
			v.More["hooks"] = "more"
			break
		}
		v.Hooks = append(v.Hooks, row)
	}
	for _, e := range p.Errors {
		text := strings.TrimPrefix(e, fmt.Sprintf("lifecycle: host %q: ", host))
		if told[text] { // it stands beside its hook
			continue
		}
		if len(v.Errors) == maxRows {
			v.More["errors"] = "more"
			break
		}
		v.Errors = append(v.Errors, phaseText{p.Phase.String(), shorten(text, maxText)})
	}
}

func waitingFor(n int, all []lifecycle.Straggler) string {
	for _, s := range all {
		if s.Kind != all[0].Kind || s.Kind == "log" {
			return "Waiting for " + grouped(uint64(n))
		}
	}
	return "Waiting for " + plural(n, all[0].Kind)
}

func newStraggler(host string, p lifecycle.Phase, list string, s lifecycle.Straggler) straggler {
	key := fnv.New64a()
	fmt.Fprintf(key, "%q %d %s %s %q", host, p, list, s.Kind, s.Name)
	v := straggler{
		Key: strconv.FormatUint(key.Sum64(), 36), Kind: s.Kind, Name: shorten(s.Name, maxName),
		Age: elapsed(s.Age), Phase: p.String(), Frames: frames(s.Stack),
	}
	if s.Kind == "call" && s.Name == "Enter" {
		v.Name = "in flight"
	}
	if s.Count > 1 {
		v.Count = grouped(uint64(s.Count))
	}
	for _, f := range v.Frames {
		if f.Own {
			_, function := path.Split(f.Func)
			v.At = function
			break
		}
	}
	return v
}

// frames takes a stack apart: pairs of lines, a function and, behind a tab, where
// it stands; and remarks between them.
func frames(stack string) []frame {
	var all []frame
	for line := range strings.SplitSeq(strings.TrimSpace(stack), "\n") {
		if at, ok := strings.CutPrefix(line, "\t"); ok && len(all) > 0 && all[len(all)-1].At == "" {
			last := &all[len(all)-1]
			last.At, last.Own = at, isOwn(last.Func)
		} else if line != "" {
			all = append(all, frame{Func: line})
		}
	}
	return all
}

// isOwn reports whether a function, "path/package.Func", is of the program's own
// code: package main, or one whose path's first element has a dot, but not of this
// module's library.
func isOwn(function string) bool {
	if strings.HasPrefix(function, "github.com/seed080d9131/lifecycle.") {
		return false
	}
	element, _, more := strings.Cut(function, "/")
	if !more {
		return strings.HasPrefix(function, "main.")
	}
	return strings.Contains(element, ".")
}

// Texts.

// shorten cuts what is longer than so many characters off, and says how long it
// was.
func shorten(s string, characters int) string {
	if len(s) <= characters {
		return s
	}
	n := 0
	for i := range s {
		if n == characters {
			return s[:i] + fmt.Sprintf("… (%s characters)", grouped(uint64(utf8.RuneCountInString(s))))
		}
		n++
	}
	return s
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return grouped(uint64(n)) + " " + what + "s"
}

// grouped writes 1234567 as 1,234,567.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func size(bytes int) (value, unit string) {
	n := float64(bytes)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 1024 || unit == "GiB" {
			if unit == "B" || n >= 100 {
				return strconv.FormatFloat(n, 'f', 0, 64), unit
			}
			return strconv.FormatFloat(n, 'f', 1, 64), unit
		}
		n /= 1024
	}
	panic("unreachable")
}

// elapsed writes a duration as a person says it: two units at most, and no more
// digits than can be read while they run.
func elapsed(d time.Duration) string {
	const nbsp = "\u00a0"
	two := func(big time.Duration, bigName string, small time.Duration, smallName string) string {
		text := strconv.FormatInt(int64(d/big), 10) + nbsp + bigName
		if rest := d % big / small; rest > 0 {
			text += nbsp + strconv.FormatInt(int64(rest), 10) + nbsp + smallName
		}
		return text
	}
	in := func(unit time.Duration, name string) string {
		n := float64(d) / float64(unit)
		digits := 0
		if n < 10 {
			digits = 1
		}
		if d%unit == 0 {
			digits = 0
		}
		return strconv.FormatFloat(n, 'f', digits, 64) + nbsp + name
	}
	switch {
	case d <= 0:
		return "0" + nbsp + "s"
	case d < time.Millisecond:
		return in(time.Microsecond, "µs")
	case d < time.Second:
		return in(time.Millisecond, "ms")
	case d < time.Minute:
		return in(time.Second, "s")
	case d < time.Hour:
		return two(time.Minute, "min", time.Second, "s")
	case d < 48*time.Hour:
		return two(time.Hour, "h", time.Minute, "min")
	}
	return two(24*time.Hour, "d", time.Hour, "h")
}
