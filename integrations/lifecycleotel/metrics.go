package lifecycleotel

import (
	"context"
	"errors"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/seed080d9131/lifecycle"
)

// metrics is the instruments, and what the observable ones observe.
//
// Those ask each host for its Status when they are collected, which takes no
// goroutine profile. A series is the hosts with equal attributes. Its counters go on
// where a host ends and another begins, so that they never fall: what a host has
// counted is added as the difference to what it had at the collection before, and
// once more when its exit has ended.
type metrics struct {
	syncDuration, phaseDuration, exitDuration metric.Float64Histogram
	syncTransactions, syncSize                metric.Int64Histogram
	accepted, durable, ticks, failedTicks     metric.Int64ObservableCounter
	hosts, calls, tasks, queue                metric.Int64ObservableUpDownCounter

	mu   sync.Mutex                     // guards what follows, and the metrics' fields of hosted; Status, which is called under it, does not block
	all  map[attribute.Distinct]*series // only ever more, so that no count is in two of them
	live map[*hosted]struct{}
	over bool // the counters stand still
}

type series struct {
	set               attribute.Set
	hosts             int
	accepted, durable int64
	tasks             map[string]*taskSeries

	// Of the collection that runs.
	calls, queue int64
	states       map[state]int64
}

type taskSeries struct {
	ticks
	active int64 // of the collection that runs
}

type ticks struct{ ended, failed int64 }

type state struct {
	lifecycle.State
	lifecycle.Phase
}

// So many attribute sets have series, the first ones, and so many tasks' names each. What
// more there is is counted together from its begin, as "_OTHER". (Not in the set that
// the SDK keeps for what is beyond its own limit: once that is observed, the SDK puts
// all that follows into it.)
const (
	maxSets      = 1000
	maxTaskNames = 100
)

const other = "_OTHER"

var otherHosts = attribute.NewSet(HostNameKey.String(other))

// Syncs take from some microseconds, in memory, to seconds, on a disk that is busy.
var (
	syncBuckets  = []float64{0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
	exitBuckets  = []float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 25, 50, 100}
	countBuckets = []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000}
	byteBuckets  = []float64{1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26}
)

func newMetrics(meter metric.Meter) (*metrics, error) {
	m := &metrics{all: map[attribute.Distinct]*series{}, live: map[*hosted]struct{}{}}
	var errs []error
	seconds := func(name, what string, buckets []float64) metric.Float64Histogram {
		i, err := meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(what), metric.WithExplicitBucketBoundaries(buckets...))
		errs = append(errs, err)
		return i
	}
	amounts := func(name, unit, what string, buckets []float64) metric.Int64Histogram {
		i, err := meter.Int64Histogram(name, metric.WithUnit(unit), metric.WithDescription(what), metric.WithExplicitBucketBoundaries(buckets...))
		errs = append(errs, err)
		return i
	}
	counter := func(name, unit, what string) metric.Int64ObservableCounter {
		i, err := meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(what))
		errs = append(errs, err)
		return i
	}
	upDown := func(name, unit, what string) metric.Int64ObservableUpDownCounter {
		i, err := meter.Int64ObservableUpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(what))
		errs = append(errs, err)
		return i
	}
	m.syncDuration = seconds("lifecycle.sync.duration", "How long the log took to write and sync a batch.", syncBuckets)
	m.syncTransactions = amounts("lifecycle.sync.transactions", "{transaction}", "The transactions of a batch that became durable.", countBuckets)
	m.syncSize = amounts("lifecycle.sync.size", "By", "The bytes of the transactions of a batch that became durable.", byteBuckets)
	m.phaseDuration = seconds("lifecycle.phase.duration", "How long a phase of an exit took.", exitBuckets)
	m.exitDuration = seconds("lifecycle.exit.duration", "How long an exit took, from its begin to its end.", exitBuckets)
	m.accepted = counter("lifecycle.transaction.accepted", "{transaction}", "Transactions that were accepted.")
	m.durable = counter("lifecycle.transaction.durable", "{transaction}", "Transactions that have become durable.")
	m.ticks = counter("lifecycle.task.ticks", "{tick}", "Ticks of periodic tasks that have ended, failed ones among them.")
	m.failedTicks = counter("lifecycle.task.failed_ticks", "{tick}", "Ticks of periodic tasks that have failed.")
	m.hosts = upDown("lifecycle.host.count", "{host}", "Hosts that run, or exit, and in which phase.")
	m.calls = upDown("lifecycle.call.active", "{call}", "Calls in flight.")
	m.tasks = upDown("lifecycle.task.active", "{task}", "Tasks that run.")
	m.queue = upDown("lifecycle.queue.usage", "By", "What is accepted and not yet written, as Options.QueueBytes counts it.")
	return m, errors.Join(errs...)
}

func (m *metrics) observables() []metric.Observable {
	return []metric.Observable{m.accepted, m.durable, m.ticks, m.failedTicks, m.hosts, m.calls, m.tasks, m.queue}
}

// admit is the set that a host is counted under: the given one, or that of the others.
func (m *metrics) admit(set attribute.Set) attribute.Set {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over || m.all[set.Equivalent()] != nil {
		return set
	}
	if len(m.all) >= maxSets {
		set = otherHosts
	}
	if m.all[set.Equivalent()] == nil {
		m.all[set.Equivalent()] = &series{set: set, tasks: map[string]*taskSeries{}, states: map[state]int64{}}
	}
	return set
}

// add is called with a host whose set was admitted.
func (m *metrics) add(h *hosted) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return
	}
	h.series = m.all[h.counted.Equivalent()]
	h.series.hosts++
	m.live[h] = struct{}{}
}

// remove is called when the exit of h has ended.
func (m *metrics) remove(h *hosted) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.live[h]; !ok {
		return
	}
	h.count(h.host.Status())
	delete(m.live, h)
	h.series.hosts--
}

// end counts the hosts that live once more and lets them go. Their counters stay, for
// the collections to come: of those the reader's own Shutdown has the last.
func (m *metrics) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	for h := range m.live {
		h.count(h.host.Status())
		h.series.hosts--
	}
	clear(m.live)
}

// count adds what the host has done since it was counted last.
func (h *hosted) count(status lifecycle.Status) {
	s := h.series
	if status.Accepted > h.accepted {
		s.accepted += int64(status.Accepted - h.accepted)
		h.accepted = status.Accepted
	}
	if status.Durable > h.durable {
		s.durable += int64(status.Durable - h.durable)
		h.durable = status.Durable
	}
	h.mu.Lock()
	last := h.lastTasks
	h.mu.Unlock()
	h.countTicks(last)
	h.countTicks(status.Tasks)
}

// countTicks adds the ticks that have not been counted. Their numbers only grow: a task
// that ticks ends in the exit alone.
func (h *hosted) countTicks(tasks []lifecycle.TaskStatus) {
	for _, t := range tasks {
		now, before := ticks{t.Ticks, t.Failed}, h.ticks[t.Name]
		if now.ended <= before.ended {
			continue
		}
		own := h.series.task(t.Name)
		own.ended += now.ended - before.ended
		own.failed += now.failed - before.failed
		h.ticks[t.Name] = now
	}
}

// task is the series of a task's name.
func (s *series) task(name string) *taskSeries {
	t := s.tasks[name]
	if t == nil && len(s.tasks) >= maxTaskNames {
		name = other
		t = s.tasks[name]
	}
	if t == nil {
		t = &taskSeries{}
		s.tasks[name] = t
	}
	return t
}

// collect is the callback of the observable instruments.
func (m *metrics) collect(_ context.Context, o metric.Observer) error {
	for _, observe := range m.read() { // without the lock: views have filters, which are user code
		o.ObserveInt64(observe.instrument, observe.value, observe.attributes)
	}
	return nil
}

type observation struct {
	instrument metric.Int64Observable
	value      int64
	attributes metric.MeasurementOption
}

func (m *metrics) read() []observation {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.all {
		s.calls, s.queue = 0, 0
		clear(s.states)
		for name, t := range s.tasks {
			if t.active = 0; t.ended == 0 {
				delete(s.tasks, name)
			}
		}
	}
	for h := range m.live {
		status := h.host.Status()
		h.count(status)
		if status.State == lifecycle.Exited {
			continue
		}
		s := h.series
		s.calls += int64(status.Calls)
		s.queue += int64(status.QueuedBytes)
		s.states[state{status.State, status.Phase}]++
		for _, t := range status.Tasks {
			s.task(t.Name).active += int64(t.Count)
		}
	}
	var all []observation
	for _, s := range m.all {
		own := metric.WithAttributeSet(s.set)
		all = append(all, observation{m.accepted, s.accepted, own}, observation{m.durable, s.durable, own})
		for name, t := range s.tasks {
			with := withAttributes(s.set, TaskNameKey.String(name))
			if t.ended > 0 {
				all = append(all, observation{m.ticks, t.ended, with}, observation{m.failedTicks, t.failed, with})
			}
			if s.hosts > 0 && t.active > 0 {
				all = append(all, observation{m.tasks, t.active, with})
			}
		}
		if s.hosts == 0 {
			continue
		}
		all = append(all, observation{m.calls, s.calls, own}, observation{m.queue, s.queue, own})
		for at, n := range s.states {
			attributes := []attribute.KeyValue{HostStateKey.String(at.State.String())}
			if at.Phase != 0 {
				attributes = append(attributes, PhaseKey.String(at.Phase.String()))
			}
			all = append(all, observation{m.hosts, n, withAttributes(s.set, attributes...)})
		}
	}
	return all
}
