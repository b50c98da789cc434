package lifecycleotel

import (
	"context"
	"runtime/pprof"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed080d9131/lifecycle"
)

// hosted is a host that is followed.
//
// Its observer never calls the tracer: that may block, hang or panic, and the exit
// would wait. It notes what happened and when in queue, for the goroutine main, the owner of
// all spans of the exit. The first note starts it; it ends when
// the host's exit has ended, or at Shutdown, having ended every span. Only the batches
// of the durability actor are recorded at once (synced): instruments don't block, unless
// the MeterProvider makes them.
type hosted struct {
	t       *Telemetry
	name    string
	set     attribute.Set
	counted attribute.Set         // set, or that of the others, which the metrics have instead
	options []metric.RecordOption // counted
	host    *lifecycle.Host       // set before made closes
	made    chan struct{}
	wake    chan struct{} // capacity 1: there is something in queue
	ended   chan struct{} // closed when main has ended

	mu      sync.Mutex // guards what follows
	queue   []note
	links   []trace.Link // until main starts
	linked  int
	dropped int // notes, since the queue was full
	running bool
	over    bool // nothing is noted any more

	lastTasks []lifecycle.TaskStatus // when PhaseExitModule had ended

	// Of the metrics, guarded by metrics.mu.
	series            *series
	accepted, durable uint64 // as counted in series
	ticks             map[string]ticks
}

type note struct {
	at   time.Time
	tell func(x *exit, at time.Time)
}

// A processor that hangs lets so many notes wait. What is dropped then, and all that
// follows it, the report has, but for the stragglers' events and the failures beyond
// those that the exit's result keeps.
const (
	maxQueue = 1024
	maxLinks = 128
)

func newHosted(t *Telemetry, name string, set attribute.Set) *hosted {
	counted := t.metrics.admit(set)
	return &hosted{
		t: t, name: name, set: set, counted: counted,
		options: []metric.RecordOption{metric.WithAttributeSet(counted)},
		made:    make(chan struct{}),
		wake:    make(chan struct{}, 1),
		ended:   make(chan struct{}),
		ticks:   map[string]ticks{},
	}
}

func (h *hosted) observer() lifecycle.Observer {
	return lifecycle.Observer{
		PhaseStart: func(e lifecycle.PhaseEvent) {
			h.note(func(x *exit, at time.Time) { x.phaseStart(e.Phase, at) })
		},
		PhaseEnd: func(e lifecycle.PhaseEvent) {
			if e.Phase == lifecycle.PhaseExitModule {
				h.keepTicks()
			}
			h.note(func(x *exit, at time.Time) { x.phaseEnd(e, at) })
		},
		HookEnd: func(e lifecycle.HookEvent) {
			h.note(func(x *exit, at time.Time) { x.hookEnd(e, at) })
		},
		TaskEnd: func(e lifecycle.TaskEvent) {
			if e.Err != nil {
				h.note(func(x *exit, at time.Time) { x.failed(e.Err, at) })
			}
		},
		Stuck: func(e lifecycle.StuckEvent) {
			h.note(func(x *exit, at time.Time) { x.stuck(e, at) })
		},
		Synced: h.synced,
	}
}

// keepTicks keeps the ticks of tasks that the next phase cancels: they leave Status, and
// their ticks with them. It does not count them, since that may wait for a collection.
func (h *hosted) keepTicks() {
	if !isClosed(h.made) {
		return // lifecycle.New has not returned: there is no task
	}
	tasks := h.host.Status().Tasks
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastTasks = tasks
}

// synced records a batch. It runs on the durability actor.
func (h *hosted) synced(e lifecycle.SyncEvent) {
	if isClosed(h.t.closing) {
		return
	}
	if e.Err != nil {
		h.note(func(x *exit, at time.Time) {
			guard(func() {
				x.t.metrics.syncDuration.Record(context.Background(), e.Duration.Seconds(), h.with(errorType(e.Err)))
			})
			x.failed(e.Err, at)
		})
		return
	}
	ctx, m := context.Background(), h.t.metrics
	m.syncDuration.Record(ctx, e.Duration.Seconds(), h.options...)
	m.syncTransactions.Record(ctx, int64(e.Txs), h.options...)
	m.syncSize.Record(ctx, int64(e.Bytes), h.options...)
}

// with is the attributes of the host's metrics and these.
func (h *hosted) with(more ...attribute.KeyValue) metric.MeasurementOption {
	return withAttributes(h.counted, more...)
}

// note puts what has happened, and the time, into the queue: in order of time.
func (h *hosted) note(tell func(x *exit, at time.Time)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := time.Now()
	switch {
	case h.over:
		return
	case len(h.queue) >= maxQueue || h.dropped > 0: // and all that follows: no gap that is filled in out of order
		h.dropped++
		return
	}
	h.queue = append(h.queue, note{at, tell})
	if !h.running {
		h.running = true
		go h.main(at)
		return
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hosted) link(l trace.Link) {
	h.mu.Lock()
	h.linked++
	add, running := h.linked <= maxLinks, h.running
	if add && !running {
		h.links = append(h.links, l)
	}
	h.mu.Unlock()
	if add && running {
		h.note(func(x *exit, _ time.Time) { guard(func() { x.root.AddLink(l) }) })
	}
}

// giveUp is called when the Telemetry shuts down. It returns false if no main runs, and
// none will.
func (h *hosted) giveUp() (running bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = h.over || !h.running
	return h.running
}

// main makes the spans of the exit, which began at start.
func (h *hosted) main(start time.Time) {
	pprof.SetGoroutineLabels(context.Background()) // it is not the host's, whose observer has started it
	defer close(h.ended)
	<-h.made
	defer h.t.forget(h)
	defer h.stop()

	h.mu.Lock()
	links := h.links
	h.links = nil
	h.mu.Unlock()
	x := newExit(h, start, links)
	for {
		h.drain(x)
		select {
		case <-h.wake:
			continue
		case <-h.host.Done():
		case <-h.t.closing:
		}
		break
	}
	dropped := h.stop()
	h.drain(x)
	if isClosed(h.host.Done()) {
		x.finish(dropped)
	} else {
		x.interrupt(dropped)
	}
}

func (h *hosted) stop() (dropped int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	return h.dropped
}

func (h *hosted) drain(x *exit) {
	for {
		h.mu.Lock()
		queue := h.queue
		h.queue = nil
		h.mu.Unlock()
		if len(queue) == 0 {
			return
		}
		for _, n := range queue {
			n.tell(x, n.at)
		}
	}
}
