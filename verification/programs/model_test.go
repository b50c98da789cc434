package programs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// model is what must have happened in a program, given what the users' code did and when.
type model struct {
	*trace
	memory bool
	queue  int
	errs   []error

	begin   time.Duration // of the exit
	cause   error         // nil: plain
	tied    bool          // several tasks failed at the moment of its beginning
	byForce bool          // ForceExit began it
	forced  time.Duration // when it was
	flush   time.Duration // when a ForceExit's context ended
	failed  time.Duration // when the log returned its first error of append or sync
	gaveUp  time.Duration // when the drain was

	starts, ends [8]time.Duration // of each phase
	cancelled    time.Duration    // when the tasks were
	hookReports  [8][]lifecycle.HookReport
	abandoned    [8][]lifecycle.Straggler
	skipped      bool
	failures     []error // that the result must have
	failuresNot  []error // that it must not have
	goexit       bool
	accepted     []*attempt // by offset
	acceptedAt   map[*attempt]time.Duration
}

func (m *model) complain(format string, args ...any) {
	m.errs = append(m.errs, fmt.Errorf(format, args...))
}

// judge compares a trace with what must have happened.
func judge(p program, tr *trace) error {
	m := &model{
		trace: tr, memory: p.Log.Kind == "memory", queue: p.Queue,
		forced: never, flush: never, failed: never, gaveUp: never, cancelled: never,
	}
	if m.queue == 0 {
		m.queue = lifecycle.DefaultQueueBytes
	}
	for _, w := range tr.wrong {
		m.complain("%s", w)
	}
	m.findBegin()
	m.walk()
	if m.failed >= m.gaveUp { // nobody was told any more
		m.failed = never
	}
	m.judgeAdmission()
	m.judgeTasks()
	m.judgeDurability()
	m.judgeResult()
	m.judgeReport()
	m.judgeExits()
	m.judgeLooks()
	return errors.Join(m.errs...)
}

// isFailure says whether a task that ends so fails the host. Its context is cancelled or not.
func (r *taskRun) isFailure(cancelled bool) bool {
	switch r.result {
	case "error", "error and canceled", "panic", "goexit":
		return true
	case "canceled":
		return !cancelled
	}
	return false // "cause" of a context that is not cancelled is nil
}

// findBegin finds what began the exit: the first of a call that asks for it, the log's failure and a task's.
func (m *model) findBegin() {
	m.begin = never
	consider := func(at time.Duration, cause error, force bool) {
		if at < m.begin {
			m.begin, m.cause, m.byForce = at, cause, force
		}
	}
	for _, c := range m.log {
		if c.err != nil && c.op != "close" && m.failed == never {
			m.failed = c.end
			consider(c.end, errLog, false)
		}
	}
	for _, e := range m.exits {
		consider(e.begin, nil, e.force)
		if e.force {
			m.forced = min(m.forced, e.begin)
			if e.ctxEnd != never {
				m.flush = min(m.flush, max(e.ctxEnd, e.begin))
			}
		}
	}
	for _, f := range m.fails {
		consider(f.at, f.err, false)
	}
	var ofOneMoment []error
	for _, r := range m.tasks {
		if r.interval > 0 || r.admission != nil || !r.isFailure(false) || r.end == never || r.end > m.begin {
			continue
		}
		cause := r.err
		if r.result == "canceled" {
			cause = context.Canceled
		} else if r.result == "goexit" {
			cause = lifecycle.ErrGoexit
		}
		switch {
		case r.end < m.begin:
			consider(r.end, cause, false)
			ofOneMoment = []error{cause}
		case ofOneMoment != nil: // the sync of two tasks' transactions let both end
			ofOneMoment = append(ofOneMoment, cause)
		}
	}
	m.tied = len(ofOneMoment) > 1
	for _, r := range m.tasks {
		for _, cause := range ofOneMoment { // any may be first, and is everybody's cause
			if errors.Is(r.cause, cause) {
				m.cause = cause
				return
			}
		}
	}
}

func (m *model) graceEnd() time.Duration {
	if m.forced == never {
		return never
	}
	return m.forced + lifecycle.ForceGrace
}

// walk goes through the phases.
func (m *model) walk() {
	t := m.begin
	for p := lifecycle.PhaseExitModule; p <= lifecycle.PhaseRelease; p++ {
		m.starts[p] = t
		switch p {
		case lifecycle.PhaseExitModule:
			t = m.runHooks(p, t)
			done := t
			for _, c := range m.calls {
				if c.admission == nil {
					done = max(done, c.end)
				}
			}
			t = m.awaitOrLeave(p, t, done, m.callsAt)
		case lifecycle.PhaseCancelTasks:
			m.cancelled = min(t, max(m.forced, m.begin))
			m.endTickers()
		case lifecycle.PhaseAwaitTasks:
			done := t
			for _, r := range m.tasks {
				if r.admission == nil {
					done = max(done, r.end)
				}
			}
			// Who waits for room is let go by the seal, at the moment at which it is left behind.
			t = m.awaitOrLeave(p, t, done, func(at time.Duration) []lifecycle.Straggler { return m.tasksAt(at - 1) })
		case lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease:
			t = m.runHooks(p, t)
		case lifecycle.PhaseCloseDurability:
			done := max(t, m.settled())
			switch late := max(t, m.graceEnd(), m.flush); {
			case m.forced == never || m.flush == never || done <= late:
				t = done
			default:
				t, m.gaveUp = late, late
				m.abandoned[p] = append(m.abandoned[p], m.logAt(p, late)...)
			}
		case lifecycle.PhaseCloseLog:
			if m.memory {
				break
			}
			done := never
			for _, c := range m.log {
				if c.op == "close" {
					done = c.end
					if m.gaveUp == never && c.begin != t {
						m.complain("the log's close began at %v, not at %v", c.begin, t)
					}
				}
			}
			if late := max(t, m.flush); m.flush != never && done > late {
				if late += lifecycle.ForceGrace; done > late {
					if m.gaveUp == never {
						m.abandoned[p] = []lifecycle.Straggler{{Kind: "log", Name: "close", Count: 1}}
					}
					done = late
				}
			}
			t = max(t, done)
		}
		m.ends[p] = t
	}
}

// awaitOrLeave is the end of a wait for something that is done at some moment, unless it is left behind before.
func (m *model) awaitOrLeave(p lifecycle.Phase, t, done time.Duration, alive func(time.Duration) []lifecycle.Straggler) time.Duration {
	if late := max(t, m.graceEnd()); m.forced != never && done >= late {
		m.abandoned[p] = append(m.abandoned[p], alive(late)...)
		return late
	}
	return done
}

// runHooks goes through the hooks of a phase, last registered first.
func (m *model) runHooks(p lifecycle.Phase, t time.Duration) time.Duration {
	for _, k := range slices.Backward(m.hooks) {
		if k.phase != p || k.admission != nil {
			continue
		}
		forced := m.forced <= t
		if forced && p != lifecycle.PhaseRelease {
			m.skipped = true
			m.hookReports[p] = append(m.hookReports[p], lifecycle.HookReport{Hook: k.name, Skipped: true})
			if k.begin != never {
				m.complain("%s ran, though it was to be skipped", k.name)
			}
			continue
		}
		if k.begin != t {
			m.complain("%s began at %v, not at %v", k.name, k.begin, t)
		}
		cancel, leave := m.forced, m.graceEnd()
		if forced {
			cancel, leave = t+lifecycle.ForceGrace, t+lifecycle.ForceGrace+lifecycle.ForceGrace/10
		}
		if k.cancelled != never && k.cancelled < leave && k.cancelled != max(k.ready, cancel) {
			m.complain("%s was cancelled at %v, not at %v", k.name, k.cancelled, cancel)
		}
		if k.end >= leave { // at leave, if it waited for room: the seal let it go
			m.abandoned[p] = append(m.abandoned[p], lifecycle.Straggler{Kind: "hook", Name: k.name, Count: 1})
			m.hookReports[p] = append(m.hookReports[p], lifecycle.HookReport{Hook: k.name, Abandoned: true, Duration: leave - t})
			m.failuresNot = append(m.failuresNot, k.err)
			t, k.left = leave, leave
			continue
		}
		report := lifecycle.HookReport{Hook: k.name, Duration: k.end - t}
		switch k.result {
		case "error", "panic":
			m.failures = append(m.failures, k.err)
			report.Error = "some"
		case "goexit":
			m.goexit = true
			report.Error = "some"
		case "cause": // of its own context: nothing, unless that is cancelled
			m.failuresNot = append(m.failuresNot, k.err)
			if k.cancelled != never || cancel < k.end {
				report.Error = "some"
				m.failures = append(m.failures, m.hookCause(forced))
			}
		default:
			m.failuresNot = append(m.failuresNot, k.err)
		}
		m.hookReports[p] = append(m.hookReports[p], report)
		t = k.end
	}
	return t
}

// hookCause is what context.Cause says in a hook that was cancelled.
func (m *model) hookCause(forced bool) error {
	if forced { // its own time is over
		return context.DeadlineExceeded
	}
	return lifecycle.ErrForced
}

// endTickers finds when the tasks of Every ended: between two ticks at once, else with the tick.
func (m *model) endTickers() {
	for _, r := range m.tasks {
		if r.interval == 0 || r.admission != nil {
			continue
		}
		due := r.begin + r.interval
		r.end = m.cancelled
		for i, k := range r.ticks {
			if k.begin != due || k.begin > m.cancelled {
				m.complain("tick %d of step %d began at %v; due at %v, cancelled at %v", i, r.step, k.begin, due, m.cancelled)
			}
			if due = never; k.end != never {
				due = k.end + r.interval
			}
			r.end = max(m.cancelled, k.end)
		}
		if due < m.cancelled {
			m.complain("step %d has no tick at %v", r.step, due)
		}
	}
}

// settled is when the last accepted transaction had its outcome.
func (m *model) settled() time.Duration {
	if m.memory || m.trace.accepted == 0 {
		return m.failedOr(0)
	}
	appended := uint64(0)
	for _, c := range m.log {
		switch {
		case c.end == never:
			return never
		case c.err != nil && c.op != "close":
			return c.end
		case c.op == "append":
			appended += uint64(len(c.txs))
		case c.op == "sync" && appended >= m.trace.accepted:
			return c.end
		}
	}
	return never
}

func (m *model) failedOr(t time.Duration) time.Duration {
	if m.failed != never {
		return m.failed
	}
	return t
}

// Who is alive at a moment.

func (m *model) callsAt(at time.Duration) (all []lifecycle.Straggler) {
	n := 0
	for _, c := range m.calls {
		if c.admission == nil && c.begin <= at && at < c.end {
			n++
		}
	}
	if n > 0 {
		all = append(all, lifecycle.Straggler{Kind: "call", Name: "Enter", Count: n})
	}
	return all
}

func (m *model) tasksAt(at time.Duration) (all []lifecycle.Straggler) {
	for _, r := range m.tasks {
		if r.admission != nil || r.begin > at || at >= r.end {
			continue
		}
		i := slices.IndexFunc(all, func(s lifecycle.Straggler) bool { return s.Name == r.name })
		if i < 0 {
			i = len(all)
			all = append(all, lifecycle.Straggler{Kind: "task", Name: r.name})
		}
		all[i].Count++
	}
	slices.SortFunc(all, func(a, b lifecycle.Straggler) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func (m *model) logAt(p lifecycle.Phase, at time.Duration) []lifecycle.Straggler {
	name := "drain"
	for _, c := range m.log {
		if c.begin <= at && at < c.end {
			name = c.op
		}
	}
	return []lifecycle.Straggler{{Kind: "log", Name: name, Count: 1}}
}

// phaseAt is the phase of the exit at a moment that is no boundary of one; 0 before and after.
func (m *model) phaseAt(at time.Duration) lifecycle.Phase {
	for p := lifecycle.PhaseExitModule; p <= lifecycle.PhaseRelease; p++ {
		if m.starts[p] <= at && at < m.ends[p] {
			return p
		}
	}
	return 0
}

// stragglersAt is everyone that the phase waits for.
func (m *model) stragglersAt(p lifecycle.Phase, at time.Duration) (all []lifecycle.Straggler) {
	for _, k := range m.hooks {
		if k.begin <= at && at < min(k.end, k.left) && k.phase == p {
			all = append(all, lifecycle.Straggler{Kind: "hook", Name: k.name, Count: 1})
		}
	}
	switch p {
	case lifecycle.PhaseExitModule:
		all = append(all, m.callsAt(at)...)
	case lifecycle.PhaseAwaitTasks:
		all = append(all, m.tasksAt(at)...)
	case lifecycle.PhaseCloseDurability, lifecycle.PhaseCloseLog:
		all = append(all, m.logAt(p, at)...)
	}
	return all
}

func sameStragglers(a, b []lifecycle.Straggler) bool {
	names := func(all []lifecycle.Straggler) (names []string) {
		for _, s := range all {
			names = append(names, fmt.Sprint(s.Kind, s.Name, s.Count))
		}
		slices.Sort(names)
		return names
	}
	return slices.Equal(names(a), names(b))
}

// judgeAdmission: before the exit everyone is admitted, after its begin nobody.
func (m *model) judgeAdmission() {
	if m.exiting != m.begin {
		m.complain("the exit began at %v, not at %v", m.exiting, m.begin)
	}
	admission := func(what string, at time.Duration, err error) {
		if at < m.begin && err != nil {
			m.complain("%s before the exit: %w", what, err)
		}
		if at > m.begin && !errors.Is(err, lifecycle.ErrExiting) {
			m.complain("%s during the exit: %v", what, err)
		}
	}
	for _, r := range m.tasks {
		admission("Go or Every", r.begin, r.admission)
		if r.admission != nil && (r.end != never || len(r.ticks) > 0) {
			m.complain("the refused task of step %d ran", r.step)
		}
	}
	for _, c := range m.calls {
		admission("Enter", c.begin, c.admission)
	}
	for _, k := range m.hooks {
		admission("OnExit", k.registration, k.admission)
		if k.admission != nil && k.begin != never {
			m.complain("the refused %s ran", k.name)
		}
	}
}

// judgeTasks: every task that was alive is cancelled at one moment, with the exit's cause.
func (m *model) judgeTasks() {
	for _, r := range m.tasks {
		if r.admission != nil || r.interval > 0 {
			continue
		}
		if r.cancelled != never {
			if r.cancelled != m.cancelled {
				m.complain("the task of step %d was cancelled at %v, not at %v", r.step, r.cancelled, m.cancelled)
			}
			want := m.cause
			switch {
			case want == nil && m.byForce:
				want = lifecycle.ErrForced
			case want == nil:
				want = lifecycle.ErrExiting
			}
			if !errors.Is(r.cause, want) {
				m.complain("the task of step %d was cancelled with %v, not %v", r.step, r.cause, want)
			}
		} else if r.over > m.cancelled {
			m.complain("the task of step %d was not cancelled", r.step)
		}
		// What it ended with. One whose life ended by itself in the first phase is not cancelled yet.
		cancelled := r.cancelled != never || r.end > m.cancelled
		switch {
		case r.end == m.cancelled && r.result == "canceled" && (m.failed == r.end || m.tied): // woken with who began the exit: cancelled or not
		case r.end == m.ends[lifecycle.PhaseRelease] && r.end >= m.graceEnd(): // left behind, and let go by the seal: either
		case r.end > m.ends[lifecycle.PhaseRelease]:
			m.failuresNot = append(m.failuresNot, r.err)
		case r.isFailure(cancelled) && r.result == "goexit":
			m.goexit = true
		case r.isFailure(cancelled) && r.result == "canceled":
			m.failures = append(m.failures, context.Canceled)
		case r.isFailure(cancelled):
			m.failures = append(m.failures, r.err)
		default:
			m.failuresNot = append(m.failuresNot, r.err)
		}
	}
	for _, f := range m.fails {
		switch {
		case f.err == nil:
		case f.at < m.ends[lifecycle.PhaseRelease] || f.at == m.begin:
			m.failures = append(m.failures, f.err)
		default:
			m.failuresNot = append(m.failuresNot, f.err)
		}
	}
	for _, c := range m.log {
		if c.err != nil && c.end <= m.ends[lifecycle.PhaseRelease] {
			m.failures = append(m.failures, errLog)
		}
	}
}

// event is something that changes what the durability channel would answer.
type event struct {
	at    time.Duration
	order int // of those of one moment
	do    func()
}

// judgeDurability goes through the appends and the log's calls in the order in which they happened.
func (m *model) judgeDurability() {
	m.acceptedAt = map[*attempt]time.Duration{}
	var events []event
	add := func(at time.Duration, order int, do func()) {
		if at != never {
			events = append(events, event{at, order, do})
		}
	}
	bytes, sealed := 0, false
	var room []*attempt
	size := func(a *attempt) int { return len(a.tx) + 32 }
	hasRoom := func(a *attempt) bool { return bytes == 0 || bytes+size(a) <= m.queue }
	accept := func(a *attempt, at time.Duration) {
		if !a.accepted && a.returned {
			m.complain("%q was not accepted at %v: %v, %v", a.tx, at, a.appendErr, a.err)
		}
		if a.accepted && a.offset != uint64(len(m.accepted)) {
			m.complain("%q has offset %d, not %d", a.tx, a.offset, len(m.accepted))
		}
		if !m.memory {
			bytes += size(a)
		}
		m.acceptedAt[a] = at
		m.accepted = append(m.accepted, a)
		if a.how != "commit" && a.appended != at {
			m.complain("the Append of %q returned at %v, not at %v", a.tx, a.appended, at)
		}
	}
	refuse := func(a *attempt, at time.Duration, want error) {
		err, end := a.appendErr, a.appended
		if a.how == "commit" {
			err, end = a.err, a.end
		}
		if a.accepted || end != at || !errors.Is(err, want) || errors.Is(err, lifecycle.ErrUnknown) {
			m.complain("%q was answered at %v with accepted %v, %v; it was to be refused at %v with %v", a.tx, end, a.accepted, err, at, want)
		}
	}
	seal := m.starts[lifecycle.PhaseCloseDurability]
	closed := func() error { // a *LogError is ErrClosed too; of one moment, either comes first
		if m.failed < seal {
			return errLog
		}
		return lifecycle.ErrClosed
	}
	refuseRoom := func(at time.Duration, why error) {
		for _, a := range room {
			refuse(a, at, why)
		}
		room = nil
	}
	attempts := slices.Clone(m.txs)
	for _, a := range attempts {
		add(a.begin, 0, func() {
			switch {
			case a.ctxEnd <= a.begin:
				refuse(a, a.begin, context.Canceled)
			case sealed || m.failed < a.begin:
				why := lifecycle.ErrClosed
				if m.failed < a.begin {
					why = errLog
				}
				refuse(a, a.begin, why)
			case len(room) == 0 && hasRoom(a):
				accept(a, a.begin)
			default:
				room = append(room, a)
			}
		})
		if a.ctxEnd > a.begin {
			add(a.ctxEnd, 2, func() {
				if i := slices.Index(room, a); i >= 0 {
					room = slices.Delete(room, i, i+1)
					refuse(a, a.ctxEnd, context.DeadlineExceeded)
				}
			})
		}
	}
	written, durable := 0, 0
	handed := 0 // bytes that the log has taken of a flight, and still count
	poisoned := false
	var durableAt []time.Duration // by offset
	for i, c := range m.log {
		c := c
		if poisoned && c.op != "close" {
			m.complain("the log was called after its failure: %s", c.op)
		}
		poisoned = poisoned || c.err != nil
		if c.op == "sync" && (i == 0 || m.log[i-1].op != "append") {
			m.complain("a sync of nothing")
		}
		add(c.end, 1, func() {
			switch {
			case c.op == "close":
			case c.err != nil:
				bytes = 0
				if c.end < seal {
					refuseRoom(c.end, errLog)
				}
				refuseRoom(c.end, lifecycle.ErrClosed)
			case c.op == "append":
				for _, tx := range c.txs {
					if written >= len(m.accepted) || m.accepted[written].tx != tx {
						m.complain("offset %d was written as %q", written, tx)
					} else {
						handed += size(m.accepted[written])
					}
					written++
				}
				// Room is made by a 16th of the queue at least, or with the last part of a flight.
				last := i+1 == len(m.log) || m.log[i+1].op != "append"
				if c.end >= m.gaveUp || handed < m.queue/16 && !last {
					return
				}
				bytes -= handed
				handed = 0
				for len(room) > 0 && hasRoom(room[0]) {
					a := room[0]
					if c.end == seal && !a.accepted { // the seal came first, of the same moment
						break
					}
					room = room[1:]
					accept(a, c.end)
				}
			case c.op == "sync":
				if c.end < m.gaveUp {
					for durable = written; len(durableAt) < durable; {
						durableAt = append(durableAt, c.end)
					}
				}
			}
		})
	}
	add(seal, 3, func() {
		sealed = true
		refuseRoom(seal, closed())
	})
	add(m.gaveUp, 4, func() { bytes = 0 })
	for _, l := range m.looks {
		if s := l.status; s != nil {
			add(l.at, 5, func() {
				if m.memory {
					durable = len(m.accepted)
				}
				if s.Accepted != uint64(len(m.accepted)) || s.Durable != uint64(durable) || s.QueuedBytes != bytes {
					m.complain("status at %v: accepted %d, durable %d, queued %d; they are %d, %d, %d",
						l.at, s.Accepted, s.Durable, s.QueuedBytes, len(m.accepted), durable, bytes)
				}
			})
		}
	}
	slices.SortStableFunc(events, func(a, b event) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.order, b.order))
	})
	for _, e := range events {
		e.do()
	}
	if uint64(len(m.accepted)) != m.trace.accepted {
		m.complain("%d accepted, the host says %d", len(m.accepted), m.trace.accepted)
	}
	if m.memory {
		for _, a := range m.accepted {
			durableAt = append(durableAt, m.acceptedAt[a])
		}
	}
	if uint64(len(durableAt)) != m.trace.durable {
		m.complain("%d durable, the host says %d", len(durableAt), m.trace.durable)
	}
	closes := 0
	for _, c := range m.log {
		if c.op == "close" {
			closes++
		}
	}
	if closes != 1 && !m.memory {
		m.complain("the log was closed %d times", closes)
	}
	m.judgeWaits(durableAt)
}

// judgeWaits: everyone who waits for an offset is told its outcome when it is known, or that their own time is over.
func (m *model) judgeWaits(durableAt []time.Duration) {
	judge := func(what string, offset uint64, from, ctxEnd, end time.Duration, err error) {
		known, at := never, never // its outcome; its acceptance
		var want error
		if offset < uint64(len(m.accepted)) {
			at = m.acceptedAt[m.accepted[offset]]
			switch {
			case offset < uint64(len(durableAt)):
				known = durableAt[offset]
			case m.failed < m.gaveUp:
				known, want = m.failed, errLog
			default:
				known, want = m.gaveUp, lifecycle.ErrForced
			}
		} else {
			known, want = min(m.starts[lifecycle.PhaseCloseDurability], m.failed), lifecycle.ErrClosed
		}
		moment := max(from, known)
		if ctxEnd < moment {
			moment, want = max(from, ctxEnd), context.DeadlineExceeded
			if ctxEnd <= from {
				want = context.Canceled
			}
		}
		if ctxEnd == known && ctxEnd > from {
			return // either
		}
		if end != moment || !errors.Is(err, want) {
			m.complain("%s, of %d, was answered at %v with %v, not at %v with %v", what, offset, end, err, moment, want)
		}
		if wantUnknown := want != nil && at <= moment; errors.Is(err, lifecycle.ErrUnknown) != wantUnknown {
			m.complain("%s, of %d, was answered with %v; unknown: %v", what, offset, err, wantUnknown)
		}
	}
	for _, a := range m.txs {
		if at, accepted := m.acceptedAt[a]; accepted && a.how != "append" {
			if a.how == "pending" && a.ctxEnd != never && a.ctxEnd > a.begin || a.how == "commit" || a.how == "pending" {
				judge(fmt.Sprintf("the %s of %q", a.how, a.tx), a.offset, at, a.ctxEnd, a.end, a.err)
			}
		}
	}
	for _, r := range m.waits {
		judge("a Wait", r.through, r.begin, r.ctxEnd, r.end, r.err)
	}
}

// outcome is the exit's.
func (m *model) outcome() string {
	left := m.skipped
	for _, a := range m.abandoned {
		left = left || len(a) > 0
	}
	lost := m.trace.accepted > m.trace.durable
	switch {
	case m.forced <= m.ends[lifecycle.PhaseRelease] && (left || lost):
		return "forced"
	case len(m.failures) > 0 || m.goexit:
		return "failed"
	default:
		return "clean"
	}
}

func (m *model) judgeResult() {
	outcome, lost := m.outcome(), m.trace.accepted-m.trace.durable
	if (outcome == "clean") != (m.result == nil) {
		m.complain("the exit was %s, and its result is %v", outcome, m.result)
	}
	if lost > 0 && outcome == "clean" {
		m.complain("clean, with %d lost", lost)
	}
	if m.done != m.ends[lifecycle.PhaseRelease] {
		m.complain("the exit ended at %v, not at %v", m.done, m.ends[lifecycle.PhaseRelease])
	}
	for _, err := range m.failures {
		if !errors.Is(m.result, err) {
			m.complain("the result lacks %q: %w", err, m.result)
		}
	}
	for _, err := range m.failuresNot {
		if errors.Is(m.result, err) {
			m.complain("the result has %q", err)
		}
	}
	if m.goexit && !errors.Is(m.result, lifecycle.ErrGoexit) {
		m.complain("the result lacks the Goexit: %w", m.result)
	}
	if outcome == "forced" {
		var exit *lifecycle.ExitError
		if !errors.As(m.result, &exit) || !errors.Is(m.result, lifecycle.ErrForced) {
			m.complain("the exit was forced, and its result is %w", m.result)
		} else if all := slices.Concat(m.abandoned[:]...); !sameStragglers(exit.Stragglers, all) {
			m.complain("left behind are %v, not %v", exit.Stragglers, all)
		}
		if errors.Is(m.result, lifecycle.ErrUnknown) != (lost > 0) {
			m.complain("%d lost, and the result is %w", lost, m.result)
		}
	}
}

func (m *model) judgeReport() {
	r := m.report
	if r.Outcome != m.outcome() || r.First != 0 || r.Accepted != m.trace.accepted || r.Durable != m.trace.durable || r.Lost != r.Accepted-r.Durable {
		m.complain("the report is of an exit that was %s, %d accepted, %d durable, %d lost; it was %s, %d, %d",
			r.Outcome, r.Accepted, r.Durable, r.Lost, m.outcome(), m.trace.accepted, m.trace.durable)
	}
	if (r.Cause == "") != (m.cause == nil) {
		m.complain("the cause is %q, not %v", r.Cause, m.cause)
	}
	m.judgePhases(r, never)
	var told []string
	for p := lifecycle.PhaseExitModule; p <= lifecycle.PhaseRelease; p++ {
		told = append(told, "start "+p.String(), "end "+p.String())
	}
	if !slices.Equal(told, m.phases) {
		m.complain("the observer was told %v", m.phases)
	}
}

// judgePhases compares a report's phases with those up to a moment.
func (m *model) judgePhases(r lifecycle.Report, at time.Duration) {
	p := lifecycle.Phase(0)
	for _, got := range r.Phases {
		if p++; got.Phase != p {
			m.complain("phase %d is %v", p, got.Phase)
			return
		}
		start, ended := got.Start.Sub(m.start.Round(0)), m.ends[p] < at
		if start != m.starts[p] || got.Ended != ended || ended && got.Duration != m.ends[p]-m.starts[p] {
			m.complain("report at %v: %v began at %v and took %v (ended: %v); it began at %v and ended at %v",
				at, p, start, got.Duration, got.Ended, m.starts[p], m.ends[p])
			continue
		}
		if !ended {
			if !sameStragglers(got.Stragglers, m.stragglersAt(p, at)) {
				m.complain("report at %v: %v waits for %v, not %v", at, p, got.Stragglers, m.stragglersAt(p, at))
			}
			continue
		}
		if !sameStragglers(got.Abandoned, m.abandoned[p]) {
			m.complain("%v left behind %v, not %v", p, got.Abandoned, m.abandoned[p])
		}
		same := slices.EqualFunc(got.Hooks, m.hookReports[p], func(a, b lifecycle.HookReport) bool {
			return a.Hook == b.Hook && a.Skipped == b.Skipped && a.Abandoned == b.Abandoned && a.Duration == b.Duration && (a.Error == "") == (b.Error == "")
		})
		if !same {
			m.complain("%v ran the hooks %+v, not %+v", p, got.Hooks, m.hookReports[p])
		}
	}
	if next := p + 1; next <= lifecycle.PhaseRelease && m.starts[next] < at {
		m.complain("report at %v has no phase after %v", at, p)
	}
}

// judgeExits: every caller is told the one result when the exit has ended, or their own end with who is waited for.
func (m *model) judgeExits() {
	end := m.ends[lifecycle.PhaseRelease]
	for _, e := range m.exits {
		over := max(e.begin, end)
		if e.force || e.ctxEnd > over {
			if e.end != over || e.err != m.result {
				m.complain("an exit (forced: %v) of %v returned at %v, not at %v, with %v", e.force, e.begin, e.end, over, e.err)
			}
			continue
		}
		at := max(e.begin, e.ctxEnd)
		if at == end { // either
			continue
		}
		if e.begin > end {
			if e.err != m.result {
				m.complain("an exit after the end: %w", e.err)
			}
			continue
		}
		var exit *lifecycle.ExitError
		if e.end != at || !errors.As(e.err, &exit) || !errors.Is(e.err, context.DeadlineExceeded) && !errors.Is(e.err, context.Canceled) {
			m.complain("an exit of %v whose time was over at %v returned at %v with %v", e.begin, at, e.end, e.err)
			continue
		}
		if at == m.begin || at == m.cancelled {
			continue // it may be at any phase of that moment
		}
		if p := m.phaseAt(at); exit.Phase != p || !sameStragglers(exit.Stragglers, m.stragglersAt(p, at)) {
			m.complain("an exit whose time was over at %v: %v waits for %v; it is %v, and %v", at, exit.Phase, exit.Stragglers, p, m.stragglersAt(p, at))
		}
	}
}

func (m *model) judgeLooks() {
	end := m.ends[lifecycle.PhaseRelease]
	for _, l := range m.looks {
		if r := l.report; r != nil {
			if (r.Outcome == "") != (l.at < end) {
				m.complain("report at %v: %q", l.at, r.Outcome)
			}
			m.judgePhases(*r, l.at)
			continue
		}
		s := l.status
		state := lifecycle.Running
		if l.at > end {
			state = lifecycle.Exited
		} else if l.at > m.begin {
			state = lifecycle.Exiting
		}
		if s.State != state || s.Phase != m.phaseAt(l.at) {
			m.complain("status at %v: %v, %v; it is %v, %v", l.at, s.State, s.Phase, state, m.phaseAt(l.at))
		}
		var tasks []lifecycle.Straggler
		for _, k := range s.Tasks {
			tasks = append(tasks, lifecycle.Straggler{Kind: "task", Name: k.Name, Count: k.Count})
		}
		if !sameStragglers(tasks, m.tasksAt(l.at)) {
			m.complain("status at %v: tasks %v, not %v", l.at, tasks, m.tasksAt(l.at))
		}
		calls := 0
		for _, c := range m.callsAt(l.at) {
			calls = c.Count
		}
		if s.Calls != calls {
			m.complain("status at %v: %d calls, not %d", l.at, s.Calls, calls)
		}
		if (s.LogError == "") != (l.at < m.logErrorAt()) {
			m.complain("status at %v: log error %q", l.at, s.LogError)
		}
	}
}

func (m *model) logErrorAt() time.Duration {
	for _, c := range m.log {
		if c.err != nil && c.end < m.gaveUp {
			return c.end
		}
	}
	return never
}
