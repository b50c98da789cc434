package programs

import (
	"fmt"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/seed080d9131/lifecycle"
)

// unit is what the delays of a program are multiples of, nearly. Two of them are less than lifecycle.ForceGrace, and three
// more.
const unit = 40 * time.Millisecond

// forever is how long something takes that ends only when the program lets everything go, after the host has.
const forever = -1

// delay is so many units and a part of one that belongs to id alone, so that no two sums of delays are equal.
func delay(units, id int) time.Duration {
	x := uint64(id)*0x9e3779b97f4a7c15 + 0x1234567
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return time.Duration(units)*unit + 1 + time.Duration((x^x>>31)%uint64(unit-1))
}

// program is what a test runs. Its zero parts are the simplest, so that shrinking leads there.
type program struct {
	Log   logScript
	Queue int // Options.QueueBytes
	Steps []step
}

// logScript is how the log behaves.
type logScript struct {
	Kind                string // "memory": none; "plain"; "batch"
	Append, Sync, Close int    // units that a call takes; forever: none at all
	FailOp              string // "", "append", "sync", "close"
	FailCall            int    // which call of it fails, from 0
	How                 string // "error", "panic", "hang": it returns in the end, but late
}

// step is one thing that somebody does. What the fields mean depends on it.
type step struct {
	After   int // units since the step before
	Do      string
	Name    string
	Phase   lifecycle.Phase
	For     int    // units: a task's life (0: until it is cancelled), an interval, a hook's, a call's; forever: see there
	Obey    int    // units from cancellation to the end; forever: it does not
	Size    int    // of a transaction
	Timeout int    // units; 0: none, forever: over already
	Result  string // of user code
	Commit  string // what a task or hook appends: "", "append", "commit"
}

func (s step) String() string {
	text := fmt.Sprintf("+%d %s", s.After, s.Do)
	add := func(name string, value any) { text += fmt.Sprintf(" %s=%v", name, value) }
	if s.Name != "" {
		add("name", s.Name)
	}
	if s.Phase != 0 {
		add("phase", s.Phase)
	}
	for i, n := range []int{s.For, s.Obey, s.Size, s.Timeout} {
		if n != 0 {
			add([]string{"for", "obey", "size", "timeout"}[i], n)
		}
	}
	if s.Result != "" {
		add("result", s.Result)
	}
	if s.Commit != "" {
		add("commit", s.Commit)
	}
	return text
}

func (p program) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "log %+v, queue %d\n", p.Log, p.Queue)
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%3d %v\n", i, s)
	}
	return b.String()
}

// units draws a short delay, or one that never ends if that may be.
func units(t *rapid.T, label string, most int, mayHang bool) int {
	if mayHang && rapid.IntRange(0, 9).Draw(t, label+" hangs") == 9 {
		return forever
	}
	return rapid.IntRange(0, most).Draw(t, label)
}

func drawStep(t *rapid.T) step {
	s := step{
		After: rapid.IntRange(0, 4).Draw(t, "after"),
		Do: rapid.SampledFrom([]string{
			"append", "commit", "pending", "go", "every", "enter", "hook", "wait", "status", "report",
			"invalid", "self exit", "exit", "fail", "force", "go", "commit", "hook", "append",
		}).Draw(t, "do"),
	}
	timeout := func() {
		s.Timeout = rapid.SampledFrom([]int{0, 0, 1, 2, 5, forever}).Draw(t, "timeout")
	}
	result := func(of ...string) { s.Result = rapid.SampledFrom(of).Draw(t, "result") }
	commit := func() { s.Commit = rapid.SampledFrom([]string{"", "append", "commit"}).Draw(t, "commits") }
	size := func() { s.Size = rapid.SampledFrom([]int{0, 10, 100, 400}).Draw(t, "size") }
	switch s.Do {
	case "go":
		s.Name = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name")
		s.For = rapid.SampledFrom([]int{0, 0, 0, 1, 4, 9}).Draw(t, "life")
		s.Obey = units(t, "obey", 3, true)
		result("nil", "nil", "nil", "canceled", "cause", "error", "error and canceled", "refusal", "panic", "goexit")
		commit()
		size()
	case "every":
		s.Name = rapid.SampledFrom([]string{"c", "d"}).Draw(t, "name")
		s.For = rapid.IntRange(0, 4).Draw(t, "interval")
		s.Obey = units(t, "tick", 3, true)
		result("nil", "error", "panic", "goexit")
	case "enter":
		s.For = units(t, "call", 6, true)
	case "hook":
		s.Phase = rapid.SampledFrom([]lifecycle.Phase{lifecycle.PhaseExitModule, lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease}).Draw(t, "phase")
		s.For = units(t, "hook", 5, true)
		s.Obey = rapid.SampledFrom([]int{0, forever}).Draw(t, "obey")
		result("nil", "nil", "error", "cause", "panic", "goexit")
		commit()
		size()
	case "append", "commit", "pending":
		size()
		timeout()
	case "wait":
		s.Size = rapid.IntRange(0, 3).Draw(t, "beyond")
		timeout()
	case "exit", "force":
		timeout()
	case "fail":
		result("nil", "error")
	}
	return s
}

func drawProgram(t *rapid.T) program {
	p := program{Queue: rapid.SampledFrom([]int{0, 300, 1}).Draw(t, "queue")}
	p.Log.Kind = rapid.SampledFrom([]string{"plain", "batch", "memory"}).Draw(t, "log")
	if p.Log.Kind != "memory" {
		p.Log.Append = units(t, "append", 2, true)
		p.Log.Sync = units(t, "sync", 3, true)
		p.Log.Close = units(t, "close", 4, true)
		p.Log.FailOp = rapid.SampledFrom([]string{"", "", "sync", "append", "close"}).Draw(t, "fails")
		if p.Log.FailOp != "" {
			p.Log.How = rapid.SampledFrom([]string{"error", "panic", "hang"}).Draw(t, "how")
		}
		if p.Log.FailOp == "append" || p.Log.FailOp == "sync" {
			p.Log.FailCall = rapid.IntRange(0, 4).Draw(t, "at")
		}
	}
	least := rapid.SampledFrom([]int{0, 6, 12, 20}).Draw(t, "steps at least")
	p.Steps = rapid.SliceOfN(rapid.Custom(drawStep), least, 30).Draw(t, "steps")
	return p
}
