package lifecycletest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/internal/seam"
)

// monitor keeps book of one host, by what the host announces.
type monitor struct {
	host   atomic.Pointer[lifecycle.Host]
	steps  atomic.Int64 // announced so far
	opener uint64       // the goroutine that makes hosts
	bubble string       // its bubble

	mu      sync.Mutex        // guards what follows
	owners  map[uint64]owner  // goroutines that the host runs
	entered map[uint64][]site // calls in flight, by the goroutine that entered
	calls   int               // admitted
	leaves  int               //
	strange []site            // Leaves by goroutines with no call of their own in flight, while others had some
	excess  []site            // Leaves with no call in flight at all
	late    []late            // appends after the seal
	drivers map[uint64]string // the kit's own goroutines that run the user's funcs
}

// owner is what the host runs on a goroutine.
type owner struct{ kind, name string }

func (o owner) String() string {
	if o.name == "" {
		return o.kind
	}
	return fmt.Sprintf("%s %q", o.kind, o.name)
}

// late is an append after the seal.
type late struct {
	by    owner
	at    site
	stack string
}

func newMonitor() *monitor {
	return &monitor{
		owners: map[uint64]owner{}, entered: map[uint64][]site{}, drivers: map[uint64]string{},
	}
}

// saw takes a step of the host, on the goroutine that takes it, and returns who
// that is.
func (m *monitor) saw(h *lifecycle.Host, step seam.Step, name string) (id uint64, by owner) {
	m.steps.Add(1)
	id, _ = goroutine()
	switch step {
	case seam.TaskBegin, seam.HookBegin, seam.TaskLeave, seam.HookEnd, seam.Enter, seam.Leave,
		seam.Append, seam.Wait, seam.Go, seam.Every, seam.OnExit, seam.TickBegin, seam.TaskEnd, seam.Refused:
	default:
		return id, owner{}
	}
	var at site
	switch step {
	case seam.Enter, seam.Leave, seam.Refused:
		at = userSite()
	}

	m.mu.Lock()
	switch step {
	case seam.TaskBegin:
		m.owners[id] = owner{"task", name}
	case seam.HookBegin:
		m.owners[id] = owner{"hook", name}
	case seam.Enter:
		m.entered[id] = append(m.entered[id], at)
		m.calls++
	case seam.Leave:
		m.leave(id, at)
	}
	by, owned := m.owners[id]
	if !owned {
		by = owner{kind: "raw"}
		if driver, ok := m.drivers[id]; ok {
			by = owner{kind: driver}
		}
	}
	switch step {
	case seam.TaskLeave, seam.HookEnd:
		delete(m.owners, id)
	}
	refusedCall := step == seam.Refused && name == "Enter"
	if refusedCall {
		m.calls--
		m.pop(id)
	}
	m.mu.Unlock()

	if step == seam.Refused && name == "Append" && h.Status().LogError == "" {
		stack := ownStack()
		m.mu.Lock()
		m.late = append(m.late, late{by, at, stack})
		m.mu.Unlock()
	}
	return id, by
}

// leave is called with mu held.
func (m *monitor) leave(id uint64, at site) {
	m.leaves++
	switch {
	case len(m.entered[id]) > 0:
		m.pop(id)
	case len(m.entered) > 0: // another goroutine's: handed over, or a Leave too many
		m.strange = append(m.strange, at)
		for other := range m.entered {
			m.pop(other)
			break
		}
	default:
		m.excess = append(m.excess, at)
	}
}

// pop is called with mu held.
func (m *monitor) pop(id uint64) {
	all := m.entered[id]
	if len(all) <= 1 {
		delete(m.entered, id)
		return
	}
	m.entered[id] = all[:len(all)-1]
}

// drives says that the calling goroutine runs a func of the user's until the
// process ends.
func (m *monitor) drives(what string) {
	id, _ := goroutine()
	m.mu.Lock()
	m.drivers[id] = what
	m.mu.Unlock()
}

// openCalls are where the calls in flight have entered.
func (m *monitor) openCalls() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for _, sites := range m.entered {
		for _, s := range sites {
			all = append(all, s.String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// problem is something that is wrong, told to a person who has not read this
// package.
type problem struct {
	key  string // of equal problems
	text string
}

func newProblem(key, format string, args ...any) problem {
	return problem{key, fmt.Sprintf(format, args...)}
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}

// exit exits the host, and if that does not end, says who is alive and leaves it
// behind.
func (m *monitor) exit(h *lifecycle.Host, c config) (stuck []problem, result error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.within)
	defer cancel()
	result = h.Exit(ctx)
	var unended *lifecycle.ExitError
	if ctx.Err() == nil || !errors.As(result, &unended) || !errors.Is(unended.Err, context.DeadlineExceeded) || isDone(h) {
		return nil, result
	}
	stuck = []problem{m.stuck(unended, c)}
	flush, cancelFlush := context.WithTimeout(context.Background(), c.within)
	defer cancelFlush()
	return stuck, h.ForceExit(flush)
}

func isDone(h *lifecycle.Host) bool {
	select {
	case <-h.Done():
		return true
	default:
		return false
	}
}

// stuck tells of an exit that did not end.
func (m *monitor) stuck(e *lifecycle.ExitError, c config) problem {
	var b strings.Builder
	key := "stuck " + e.Phase.String()
	fmt.Fprintf(&b, "the exit did not end within %v (Within sets the limit): the phase %q still waits", c.within, e.Phase)
	if len(e.Stragglers) == 0 {
		b.WriteString(", though for nobody who has a name.")
	} else {
		b.WriteString(" for:")
	}
	for _, s := range e.Stragglers {
		key += " " + s.Kind + " " + s.Name
		fmt.Fprintf(&b, "\n  %s.", s)
		switch s.Kind {
		case "call":
			b.WriteString(" A call that was entered has not left: let each Enter be followed by a deferred Leave, and let what calls wait for end when the host is Exiting.")
			for _, at := range m.openCalls() {
				b.WriteString("\n    entered at " + at)
			}
		case "task":
			b.WriteString(" A task must return soon after its context is cancelled: let whatever it waits for watch ctx.Done() too. It was here:")
		case "hook":
			b.WriteString(" A hook's context is cancelled by ForceExit alone, so it needs a time limit of its own for what may hang. It was here:")
		case "log":
			b.WriteString(" The Log's method has not returned. It was here:")
		}
		if s.Stack != "" {
			b.WriteString("\n" + indent(readable(s.Stack)))
		}
	}
	return problem{key, b.String()}
}

// judge tells what is wrong with an exit that has ended with result. wrong says
// what is wrong with the result itself, "" if nothing is.
func (m *monitor) judge(h *lifecycle.Host, log lifecycle.Log, result error, wrong string) []problem {
	var all []problem
	report := h.Report()
	m.mu.Lock()
	leaves, calls, suspects := m.leaves, m.calls, slices.Clone(m.strange)
	if len(suspects) == 0 {
		suspects = slices.Clone(m.excess)
	}
	m.mu.Unlock()
	leftTooOften := leaves > calls
	if leftTooOften {
		sites := ""
		for _, s := range slices.Compact(suspects) {
			sites += "\n    " + s.String()
		}
		all = append(all, newProblem("leave", "Leave was called %d times for %d calls: one call has left twice. The second time another call in flight may be taken for gone, and the exit overtakes it. Defer Leave once, right after Enter, and nowhere else. A goroutine that had no call in flight called Leave here:%s", leaves, calls, sites))
	}
	if wrong != "" && !(leftTooOften && errors.Is(result, lifecycle.ErrInvalid)) {
		all = append(all, problem{"result " + resultKey(result), wrong})
	}

	inOrder := len(report.Phases) == int(lifecycle.PhaseRelease)
	for i, p := range report.Phases {
		inOrder = inOrder && p.Phase == lifecycle.Phase(i+1) && p.Ended
	}
	if !inOrder {
		all = append(all, newProblem("phases", "the exit has ended, but not each of its phases has run and ended, in the order of their numbers. This is a fault of the library:\n%s", indent(report.String())))
	}

	var failed *lifecycle.LogError
	excused := errors.As(result, &failed) || errors.Is(result, lifecycle.ErrForced)
	if !excused && (report.Lost > 0 || report.Durable != report.Accepted) {
		all = append(all, newProblem("lost", "%d transactions were accepted and are not durable, though no error of the log says why (accepted up to %d, durable up to %d). This is a fault of the library.", report.Lost, report.Accepted, report.Durable))
	}
	if kept, ok := log.(interface{ Synced() [][]byte }); ok && !excused && report.Lost == 0 {
		first := report.First
		if l, ok := log.(interface{ first() lifecycle.Offset }); ok {
			first = l.first()
		}
		if n, want := len(kept.Synced()), int(report.Accepted-first); n != want {
			all = append(all, newProblem("content", "the log holds %d of the %d transactions up to offset %d, each of which was reported durable. The Log has lost what it had acknowledged: its Append and Sync may return nil only when the transactions are there.", n, want, report.Accepted))
		}
	}
	if checked, ok := log.(interface{ Misuse() []string }); ok {
		for _, m := range checked.Misuse() {
			all = append(all, newProblem("misuse "+m, "the log was not called as the contract of lifecycle.Log says: %s. Only its host may call a log: does something else?", m))
		}
	}
	return all
}

// logOf is the log that a host was made with.
func logOf(h *lifecycle.Host) lifecycle.Log {
	if seam.LogOf == nil {
		return nil
	}
	log, _ := seam.LogOf(h).(lifecycle.Log)
	return log
}

// first is the offset of the first transaction that Synced returns.
func (l *Log) first() lifecycle.Offset { return l.First }

// resultKey is what two results that mean the same have in common.
func resultKey(err error) string {
	var task *lifecycle.TaskError
	var hook *lifecycle.HookError
	var log *lifecycle.LogError
	switch {
	case errors.As(err, &task):
		return "task " + task.Task
	case errors.As(err, &hook):
		return "hook " + hook.Hook
	case errors.As(err, &log):
		return "log " + log.Op
	}
	return "other"
}

// explain tells what a result that should have been nil means.
func explain(err error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "the exit's result should be nil, and is:\n%s", indent(err.Error()))
	var task *lifecycle.TaskError
	var hook *lifecycle.HookError
	var log *lifecycle.LogError
	var stack []byte
	switch {
	case errors.As(err, &task):
		fmt.Fprintf(&b, "\nThe task %q has failed: ", task.Task)
		switch {
		case task.Stack != nil:
			b.WriteString("it panicked or called runtime.Goexit.")
		case errors.Is(task.Err, lifecycle.ErrClosed):
			b.WriteString("an append of it was refused, and it returned that. A task may append until it returns, so that was another host's, or it was forced.")
		default:
			b.WriteString("it returned that error. Once its context is cancelled a task may return nil, ctx.Err() or the host's refusal, bare or wrapped with %w; anything else is a failure that the exit reports. Handle the error where it happens, or wrap it so that errors.Is still finds the cause.")
		}
		stack = task.Stack
	case errors.As(err, &hook):
		fmt.Fprintf(&b, "\nThe hook %q of the phase %q has failed.", hook.Hook, hook.Phase)
		if hook.Phase == lifecycle.PhaseRelease && errors.Is(hook.Err, lifecycle.ErrClosed) {
			b.WriteString(" It appended when the log was closed already: register it for PhaseCheckpoint.")
		}
		stack = hook.Stack
	case errors.As(err, &log):
		fmt.Fprintf(&b, "\nThe log's %s has failed; what was not durable by then is lost or unknown.", log.Op)
	}
	if len(stack) > 0 {
		b.WriteString("\n" + indent(readable(string(stack))))
	}
	return b.String()
}

// lateAppends tells of the appends after the seal.
func (m *monitor) lateAppends(allowed bool) []problem {
	m.mu.Lock()
	all := slices.Clone(m.late)
	m.mu.Unlock()
	var problems []problem
	for _, l := range all {
		var text string
		switch l.by.kind {
		case "task":
			continue // left behind by ForceExit, which is reported
		case "hook":
			text = fmt.Sprintf("the %v appends in the phase %q, when the channel is sealed and the log closed: it gets ErrClosed, and the record is not written. Register it with OnExit for PhaseCheckpoint, where hooks write their last records; what gives back the rest stays in PhaseRelease.", l.by, lifecycle.PhaseRelease)
		case "raw":
			if allowed {
				continue
			}
			text = "a goroutine that the host does not own appends after the seal, and is refused with ErrClosed. The exit waits for tasks, calls and hooks; of this goroutine it knows nothing, so what it has yet to write is lost at a shutdown. Start it with host.Go, or let the task that starts it wait for it before it returns, or count its work as a call (host.Enter, and a deferred Leave)."
		default:
			if allowed {
				continue
			}
			text = fmt.Sprintf("%s appends after the seal, and is refused with ErrClosed: a request that was not counted, so the exit did not wait for it. Let each request begin with host.Enter, which refuses it once the exit has begun, and end with a deferred Leave. (Is ErrClosed an answer that your clients expect? Then say AllowLateAppends.)", l.by.kind)
		}
		problems = append(problems, problem{
			key:  "late " + l.by.String() + " " + l.at.String(),
			text: text + "\nIt appends here:\n" + indent(l.stack),
		})
	}
	return problems
}

// leak tells of goroutines that are left.
func leak(stacks []string, whose string) []problem {
	if len(stacks) == 0 {
		return nil
	}
	const most = 5
	var b strings.Builder
	noun := "goroutines are"
	if len(stacks) == 1 {
		noun = "goroutine is"
	}
	fmt.Fprintf(&b, "%d %s left after the exit: %s. What a task starts must end before the task returns, and what else was started needs somebody who stops it and waits for it: a hook, or a t.Cleanup of the test. (IgnoreGoroutines excuses some.)", len(stacks), noun, whose)
	for i, stack := range stacks {
		if i == most {
			fmt.Fprintf(&b, "\n    and %d more", len(stacks)-most)
			break
		}
		b.WriteString("\n" + indent(stack))
		if i < len(stacks)-1 {
			b.WriteByte('\n')
		}
	}
	top, _, _ := strings.Cut(stacks[0], "\n")
	return []problem{{"leak " + top, b.String()}}
}
