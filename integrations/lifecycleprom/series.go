package lifecycleprom

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed080d9131/lifecycle"
)

// series is what is shown under one value of the label "host". It stays for as long
// as the Collector.
type series struct {
	host                         string
	latency, transactions, bytes prometheus.Observer
	phase                        prometheus.ObserverVec

	mu sync.Mutex // guards what follows

	// Sums of hosts that have ended, written with Collector.gathering held as well.
	accepted, durable, lost, logFailures uint64
	outcomes                             map[string]uint64

	// As it was announced; and, for hosts that have ended, what was not.
	tasks map[string]*taskSums
	hooks map[hook]*hookSums
}

type taskSums struct {
	ticks    // of hosts that have ended
	ticking  bool
	failures uint64
}

type hook struct {
	phase lifecycle.Phase
	name  string
}

type hookSums struct {
	ran, failures uint64
	took          time.Duration
}

func newSeries(host string, h histograms) *series {
	return &series{
		host:         host,
		latency:      h.latency.WithLabelValues(host),
		transactions: h.transactions.WithLabelValues(host),
		bytes:        h.bytes.WithLabelValues(host),
		phase:        h.phase.MustCurryWith(prometheus.Labels{"host": host}),
		outcomes:     map[string]uint64{},
		tasks:        map[string]*taskSums{},
		hooks:        map[hook]*hookSums{},
	}
}

// synced runs on the durability actor, which writes its next batch when it has
// returned. It takes no lock.
func (s *series) synced(e lifecycle.SyncEvent) {
	if e.Err != nil {
		return // Status keeps it
	}
	s.latency.Observe(e.Duration.Seconds())
	s.transactions.Observe(float64(e.Txs))
	s.bytes.Observe(float64(e.Bytes))
}

// The rest is called with mu held.

func (s *series) task(value string) *taskSums {
	t := s.tasks[value]
	if t == nil {
		t = &taskSums{}
		s.tasks[value] = t
	}
	return t
}

func (s *series) addHook(k hook, took time.Duration, skipped, failed bool) {
	sums := s.hooks[k]
	if sums == nil {
		sums = &hookSums{}
		s.hooks[k] = sums
	}
	if !skipped {
		sums.ran++
		sums.took += took
	}
	if failed {
		sums.failures++
	}
}

// metrics appends what there is to show beside the histograms: the sums, and now. It takes mu.
func (s *series) metrics(now *moment, to []prometheus.Metric) []prometheus.Metric {
	add := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		m, err := prometheus.NewConstMetric(desc, kind, value, append([]string{s.host}, labels...)...)
		if err != nil {
			m = prometheus.NewInvalidMetric(desc, err)
		}
		to = append(to, m)
	}
	counter := func(desc *prometheus.Desc, value uint64, labels ...string) {
		add(desc, prometheus.CounterValue, float64(value), labels...)
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		add(desc, prometheus.GaugeValue, value, labels...)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	gauge(hostsDesc, float64(now.running), lifecycle.Running.String())
	gauge(hostsDesc, float64(now.exiting), lifecycle.Exiting.String())
	for p, n := range now.inPhase {
		if n > 0 {
			gauge(exitingDesc, float64(n), lifecycle.Phase(p).String())
		}
	}
	counter(acceptedDesc, s.accepted+now.accepted)
	counter(durableDesc, s.durable+now.durable)
	counter(lostDesc, s.lost)
	gauge(queueDesc, float64(now.queued))
	gauge(callsDesc, float64(now.calls))
	counter(logFailuresDesc, s.logFailures+now.logFailures)

	for name, sums := range s.tasks { // of those alive too
		t := now.task(name)
		t.ticking = t.ticking || sums.ticking
	}
	for name, t := range now.tasks {
		sums := s.tasks[name]
		if sums == nil {
			sums = &taskSums{}
		}
		gauge(runningDesc, float64(t.count), name)
		if t.count > 0 {
			gauge(ageDesc, t.age.Seconds(), name)
		}
		if t.ticking {
			counter(ticksDesc, uint64(sums.all+t.all), name)
			counter(failedTicksDesc, uint64(sums.failed+t.failed), name)
		}
		counter(taskFailuresDesc, sums.failures, name)
	}

	for k, sums := range s.hooks {
		m, err := prometheus.NewConstSummary(hookDesc, sums.ran, sums.took.Seconds(), nil, s.host, k.phase.String(), k.name)
		if err != nil {
			m = prometheus.NewInvalidMetric(hookDesc, err)
		}
		to = append(to, m)
		counter(hookFailuresDesc, sums.failures, k.phase.String(), k.name)
	}
	for k, n := range now.stragglers {
		gauge(stragglersDesc, float64(n), k.phase.String(), k.kind, k.name)
	}
	for _, outcome := range []string{"clean", "failed", "forced"} {
		counter(exitsDesc, s.outcomes[outcome], outcome)
	}
	return to
}
