package lifecycleprom

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed080d9131/lifecycle"
)

// Options configure a Collector. The zero value is good.
type Options struct {
	// Label returns the value under which something is shown, given the label ("host",
	// "task", "hook", or "name", a straggler's) and its name. What gets one value is
	// added up. It is how a server of very many databases, or with names that are
	// made at run time, keeps the number of its series down:
	//
	//	func(label, name string) string {
	//		if label == "host" {
	//			return "all"
	//		}
	//		return name
	//	}
	//
	// It is called at scrapes, by NewHost and during exits, at any time and by any
	// goroutine, must return the same for the same, and must not use the Collector. If it
	// panics, the name is taken. nil: every name is its own value.
	Label func(label, name string) string
}

// Collector is a prometheus.Collector of hosts. Its methods may be called at any
// time, by any number of goroutines. It owns no goroutine.
//
// What an ended host has done is added to the sums of its series once, at the first
// scrape that finds it ended; that, and what the hosts alive say, is one step under
// gathering, so that no scrape counts a host twice or not at all. NewHost does it too
// when the list has become long, so that hosts that nobody scrapes are not kept for
// ever.
//
// Locks: gathering before mu or a series' mu, and those two never together. Only
// scrapes wait for gathering.
type Collector struct {
	label      func(label, name string) string
	histograms histograms

	gathering sync.Mutex // guards the fields of series and watched that are said to be its own

	mu      sync.Mutex // guards what follows
	series  map[string]*series
	watched map[*watched]struct{} // hosts that have not been added to their series
	sweepAt int                   // so many of them
}

// NewCollector makes a Collector without hosts.
func NewCollector(opts Options) *Collector {
	return &Collector{
		label:      opts.Label,
		histograms: newHistograms(),
		series:     map[string]*series{},
		watched:    map[*watched]struct{}{},
		sweepAt:    minSweep,
	}
}

const minSweep = 64

// NewHost is lifecycle.New for a host that the Collector shows, from now until its
// exit has ended. It joins an observer of its own to opts.Observer, which is told
// after it. It blocks as lifecycle.New does, and the caller owes the host an Exit all
// the same; the Collector is told nothing of that.
func (c *Collector) NewHost(log lifecycle.Log, opts lifecycle.Options) *lifecycle.Host {
	w := &watched{
		collector: c,
		series:    c.seriesOf(cmp.Or(opts.Name, "host")), // New's own default
		ticks:     map[string]ticks{},
	}
	opts.Observer = lifecycle.MultiObserver(w.observer(), opts.Observer)
	host := lifecycle.New(log, opts)
	w.host.Store(host)
	w.first = host.Report().First

	c.mu.Lock()
	c.watched[w] = struct{}{}
	long := len(c.watched) >= c.sweepAt
	c.mu.Unlock()
	if long && c.gathering.TryLock() { // or else a scrape does it
		c.addEnded(c.hosts())
		c.gathering.Unlock()
		c.mu.Lock()
		c.sweepAt = max(minSweep, 2*len(c.watched))
		c.mu.Unlock()
	}
	return host
}

func (c *Collector) seriesOf(host string) *series {
	value := c.value("host", host)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.series[value]
	if s == nil {
		s = newSeries(value, c.histograms)
		c.series[value] = s
	}
	return s
}

// value is the label's value for a name.
func (c *Collector) value(label, name string) (value string) {
	defer func() {
		value = strings.ToValidUTF8(value, "\uFFFD") // or the whole scrape would fail
	}()
	if c.label == nil {
		return name
	}
	defer func() {
		if recover() != nil {
			value = name
		}
	}()
	return c.label(label, name)
}

func (c *Collector) hosts() []*watched {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.watched))
}

// addEnded adds the hosts that have ended to their series, and returns the others.
// It is called with gathering held.
func (c *Collector) addEnded(hosts []*watched) (alive []*watched) {
	var ended []*watched
	for _, w := range hosts {
		select {
		case <-w.host.Load().Done():
			w.end()
			ended = append(ended, w)
		default:
			alive = append(alive, w)
		}
	}
	c.mu.Lock()
	for _, w := range ended {
		delete(c.watched, w)
	}
	c.mu.Unlock()
	return alive
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range descs {
		ch <- desc
	}
	for _, h := range c.histograms.all() {
		h.Describe(ch)
	}
}

// Collect implements prometheus.Collector. It waits for no host, whatever those are
// doing, and only for another Collect that runs.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	for _, metric := range c.gather() {
		ch <- metric
	}
	for _, h := range c.histograms.all() { // after what has ended was added to them
		h.Collect(ch)
	}
}

func (c *Collector) gather() []prometheus.Metric {
	c.gathering.Lock()
	defer c.gathering.Unlock()
	now := map[*series]*moment{}
	of := func(s *series) *moment {
		m := now[s]
		if m == nil {
			m = newMoment()
			now[s] = m
		}
		return m
	}
	for _, w := range c.addEnded(c.hosts()) {
		w.look(of(w.series))
	}
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.series))
	c.mu.Unlock()
	var metrics []prometheus.Metric
	for _, s := range all {
		metrics = s.metrics(of(s), metrics)
	}
	return metrics
}

// moment is what the hosts of one series that are alive say at a scrape.
type moment struct {
	accepted, durable, logFailures uint64
	queued, calls                  int
	running, exiting               int
	inPhase                        [lastPhase + 1]int
	tasks                          map[string]*taskMoment
	stragglers                     map[straggler]int
}

type taskMoment struct {
	count int
	age   time.Duration
	ticks
	ticking bool // of Every
}

// straggler is the labels of one.
type straggler struct {
	phase      lifecycle.Phase
	kind, name string
}

func newMoment() *moment {
	return &moment{tasks: map[string]*taskMoment{}, stragglers: map[straggler]int{}}
}

func (m *moment) task(value string) *taskMoment {
	t := m.tasks[value]
	if t == nil {
		t = &taskMoment{}
		m.tasks[value] = t
	}
	return t
}
