package lifecycleprom

import (
	"sync/atomic"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// watched is a host, and what is known of it.
type watched struct {
	collector *Collector
	series    *series
	host      atomic.Pointer[lifecycle.Host] // nil until lifecycle.New has returned
	first     lifecycle.Offset               // everything below was in the log before

	// Guarded by series.mu.
	ticks  map[string]ticks // by task: the most that was seen
	phases [lastPhase + 1]bool
	hooks  [lastPhase + 1]int // so many were counted: each phase's first
	ended  bool               // everything was
	stuck  map[straggler]int
}

// ticks are those that have ended, and the failed ones among them.
type ticks struct{ all, failed int64 }

const lastPhase = lifecycle.PhaseRelease

// observer is what the host tells. All but Synced take the series' lock, for a
// moment.
func (w *watched) observer() lifecycle.Observer {
	return lifecycle.Observer{
		PhaseEnd: w.phaseEnd,
		HookEnd:  w.hookEnd,
		TaskEnd:  w.taskEnd,
		Stuck:    w.stuckIn,
		Synced:   w.series.synced,
	}
}

func (w *watched) phaseEnd(e lifecycle.PhaseEvent) {
	if host := w.host.Load(); host != nil && e.Phase == lifecycle.PhaseExitModule {
		// Tasks that the next phase cancels leave Status, and their ticks with them.
		w.takeTicks(host.Status().Tasks)
	}
	s := w.series
	s.mu.Lock()
	defer s.mu.Unlock()
	w.addPhase(e.Phase, e.Duration)
}

// addPhase is called with series.mu held.
func (w *watched) addPhase(p lifecycle.Phase, took time.Duration) {
	if w.phases[p] {
		return
	}
	w.phases[p] = true
	w.series.phase.WithLabelValues(p.String()).Observe(took.Seconds())
}

// takeTicks is called with no lock held. A task that it has seen keeps its counters,
// zeros too, when it has ended.
func (w *watched) takeTicks(tasks []lifecycle.TaskStatus) {
	values := make([]string, len(tasks))
	for i, t := range tasks {
		values[i] = w.collector.value("task", t.Name)
	}
	w.series.mu.Lock()
	defer w.series.mu.Unlock()
	for i, t := range tasks {
		w.series.task(values[i])
		if t.Every > 0 || t.Ticks > 0 {
			seen := w.ticks[t.Name]
			w.ticks[t.Name] = ticks{max(seen.all, t.Ticks), max(seen.failed, t.Failed)}
		}
	}
}

func (w *watched) hookEnd(e lifecycle.HookEvent) {
	value := w.collector.value("hook", e.Hook)
	w.series.mu.Lock()
	defer w.series.mu.Unlock()
	if w.ended {
		return // its report had it
	}
	w.hooks[e.Phase]++
	w.series.addHook(hook{e.Phase, value}, e.Duration, e.Skipped, e.Err != nil)
}

func (w *watched) taskEnd(e lifecycle.TaskEvent) {
	if e.Err == nil {
		return
	}
	value := w.collector.value("task", e.Task)
	w.series.mu.Lock()
	defer w.series.mu.Unlock()
	w.series.task(value).failures++
}

func (w *watched) stuckIn(e lifecycle.StuckEvent) {
	stuck := map[straggler]int{}
	for _, s := range e.Stragglers {
		stuck[straggler{e.Phase, s.Kind, w.collector.value("name", s.Name)}] += s.Count
	}
	w.series.mu.Lock()
	defer w.series.mu.Unlock()
	w.stuck = stuck
}

// look adds what the host does now. It is called with Collector.gathering held.
func (w *watched) look(m *moment) {
	status := w.host.Load().Status()
	w.takeTicks(status.Tasks)
	m.accepted += status.Accepted - w.first
	m.durable += status.Durable - w.first
	m.queued += status.QueuedBytes
	m.calls += status.Calls
	if status.LogError != "" {
		m.logFailures++
	}
	switch {
	case status.State == lifecycle.Running:
		m.running++
	case status.State == lifecycle.Exiting:
		m.exiting++
		m.inPhase[status.Phase]++
	}
	for _, t := range status.Tasks {
		task := m.task(w.collector.value("task", t.Name))
		task.count += t.Count
		task.age = max(task.age, t.Age)
	}
	ticked, stuck := w.seen()
	for name, n := range ticked {
		task := m.task(w.collector.value("task", name))
		task.ticking = true
		task.all += n.all
		task.failed += n.failed
	}
	for s, n := range stuck {
		if s.phase == status.Phase { // it waits still
			m.stragglers[s] += n
		}
	}
}

// end adds what the host has done to its series. It is called once, when its Done
// has closed, with Collector.gathering held.
func (w *watched) end() {
	host := w.host.Load()
	report, status := host.Report(), host.Status()
	w.takeTicks(status.Tasks) // those that were left behind
	ticked, _ := w.seen()
	taskValues := map[string]string{}
	for name := range ticked {
		taskValues[name] = w.collector.value("task", name)
	}
	hookValues := map[string]string{}
	for _, p := range report.Phases {
		for _, h := range p.Hooks {
			hookValues[h.Hook] = w.collector.value("hook", h.Hook)
		}
	}

	s := w.series
	s.mu.Lock()
	defer s.mu.Unlock()
	w.ended = true
	s.accepted += report.Accepted - report.First
	s.durable += report.Durable - report.First
	s.lost += report.Lost
	if status.LogError != "" {
		s.logFailures++
	}
	s.outcomes[report.Outcome]++
	for name, n := range ticked {
		t := s.task(taskValues[name])
		t.ticking = true
		t.all += n.all
		t.failed += n.failed
	}
	for _, p := range report.Phases {
		if p.Ended {
			w.addPhase(p.Phase, p.Duration)
		}
		for _, h := range p.Hooks[min(w.hooks[p.Phase], len(p.Hooks)):] {
			s.addHook(hook{p.Phase, hookValues[h.Hook]}, h.Duration, h.Skipped, h.Error != "" || h.Skipped || h.Abandoned)
		}
	}
}

// seen is a copy of what scrapes read.
func (w *watched) seen() (ticked map[string]ticks, stuck map[straggler]int) {
	w.series.mu.Lock()
	defer w.series.mu.Unlock()
	ticked = make(map[string]ticks, len(w.ticks))
	for name, n := range w.ticks {
		ticked[name] = n
	}
	return ticked, w.stuck // a map that nobody writes to
}
