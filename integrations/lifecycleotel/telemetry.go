package lifecycleotel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed080d9131/lifecycle"
)

// ScopeName is the name of the instrumentation scope of every span and metric.
const ScopeName = "github.com/seed080d9131/lifecycle/integrations/lifecycleotel"

// Options configure a Telemetry. The zero value is good.
type Options struct {
	// TracerProvider makes the spans; nil: the global one, otel.GetTracerProvider.
	TracerProvider trace.TracerProvider
	// MeterProvider makes the instruments; nil: the global one,
	// otel.GetMeterProvider. Its instruments are called on the durability actor, as the
	// SDK's are made for: one that blocks or panics there, in a view's attribute filter
	// say, does so to the host's commits and its exit.
	MeterProvider metric.MeterProvider
	// Attributes returns what a host's metrics carry, and the root span of its exit
	// beside lifecycle.host.name. Hosts with equal attributes share their series, which
	// are sums then: a server of very many databases returns a class of them here.
	// NewHost calls it once a host, with its name, and waits for it. nil, or if it
	// panics, which OpenTelemetry's error handler is told: lifecycle.host.name alone.
	Attributes func(host string) []attribute.KeyValue
}

// Telemetry makes the spans and metrics of the hosts that its NewHost makes: of one,
// or of all hosts of a Controller, whatever comes and goes. Its methods may be called
// at any time, by any number of goroutines. It comes from New; the zero Telemetry
// can't be used.
//
// It owns one goroutine for each exit that runs (see the package's documentation), and
// none otherwise.
type Telemetry struct {
	tracer     trace.Tracer
	metrics    *metrics
	attributes func(host string) []attribute.KeyValue
	closing    chan struct{} // closed by Shutdown

	mu     sync.Mutex // guards what follows
	closed bool
	hosts  map[*lifecycle.Host]*hosted // whose exit has not ended, or not been told to its end
}

// New makes a Telemetry, which the caller owes a Shutdown. It creates the instruments
// and registers their callback, and does not block. The error is the meter's: an
// instrument of that name exists and is another, say.
func New(opts Options) (*Telemetry, error) {
	if opts.TracerProvider == nil {
		opts.TracerProvider = otel.GetTracerProvider()
	}
	if opts.MeterProvider == nil {
		opts.MeterProvider = otel.GetMeterProvider()
	}
	if opts.Attributes == nil {
		opts.Attributes = func(string) []attribute.KeyValue { return nil }
	}
	meter := opts.MeterProvider.Meter(ScopeName, metric.WithSchemaURL(semconv.SchemaURL))
	m, err := newMetrics(meter)
	if err != nil {
		return nil, fmt.Errorf("lifecycleotel: New: %w", err)
	}
	t := &Telemetry{
		tracer:     opts.TracerProvider.Tracer(ScopeName, trace.WithSchemaURL(semconv.SchemaURL)),
		metrics:    m,
		attributes: opts.Attributes,
		closing:    make(chan struct{}),
		hosts:      map[*lifecycle.Host]*hosted{},
	}
	// Never unregistered: the counters have to be there for the reader's last collection,
	// which the MeterProvider's Shutdown makes.
	if _, err = meter.RegisterCallback(m.collect, m.observables()...); err != nil {
		return nil, fmt.Errorf("lifecycleotel: New: %w", err)
	}
	return t, nil
}

// NewHost is lifecycle.New for a host that this Telemetry follows from its birth to
// the end of its exit. It blocks as long as lifecycle.New does. An observer in opts is
// told everything as well, after this one. After Shutdown the host is one that nobody
// follows.
func (t *Telemetry) NewHost(log lifecycle.Log, opts lifecycle.Options) *lifecycle.Host {
	if opts.Name == "" {
		opts.Name = "host"
	}
	var attributes []attribute.KeyValue
	guard(func() { attributes = t.attributes(opts.Name) }) // the log is the caller's, open, and nobody else would close it
	if attributes == nil {
		attributes = []attribute.KeyValue{HostNameKey.String(opts.Name)}
	}
	h := newHosted(t, opts.Name, attribute.NewSet(attributes...))
	opts.Observer = lifecycle.MultiObserver(h.observer(), opts.Observer) // this one first: it never hangs
	host := lifecycle.New(log, opts)
	h.host = host
	first := host.Report().First
	h.accepted, h.durable = first, first

	t.mu.Lock()
	if !t.closed {
		t.hosts[host] = h
		t.metrics.add(h)
	}
	closed := t.closed
	t.mu.Unlock()
	close(h.made)
	if closed {
		h.giveUp()
	}
	return host
}

// LinkExit links the exit of host to the span in ctx: that of a request which asks for
// the exit, right before it does, or of one that joins the exit while it runs. It
// begins nothing and does not block. A ctx without a span, and a host whose exit has
// ended, are nothing to link. The error is lifecycle.ErrInvalid for a nil ctx or host,
// and for a host that was not made by this Telemetry's NewHost.
//
// A link and not a parent, since the exit is not the request's: it goes on when the
// request has been given up, others join it, and it is worth a trace also where the
// request's was not sampled. The first 128 links of an exit are kept.
func (t *Telemetry) LinkExit(ctx context.Context, host *lifecycle.Host) error {
	switch {
	case ctx == nil:
		return fmt.Errorf("lifecycleotel: LinkExit: %w: a nil context", lifecycle.ErrInvalid)
	case host == nil:
		return fmt.Errorf("lifecycleotel: LinkExit: %w: a nil host", lifecycle.ErrInvalid)
	}
	link := trace.LinkFromContext(ctx)
	t.mu.Lock()
	h, closed := t.hosts[host], t.closed
	t.mu.Unlock()
	switch {
	case h != nil:
		if link.SpanContext.IsValid() {
			h.link(link)
		}
	case !closed && !isClosed(host.Done()):
		return fmt.Errorf("lifecycleotel: LinkExit: %w: the host %q was not made by this Telemetry", lifecycle.ErrInvalid, host.Status().Host)
	}
	return nil
}

// Shutdown ends what this Telemetry has begun: it belongs after Run, or Exit, and
// before the Shutdown of the providers, which flushes what this one hands them.
//
// It waits until the spans of every exit that has ended have ended, and no longer than
// ctx; what it waits for is the span processors alone. The spans of an exit that still
// runs are ended as they are, as failed, with the outcome "unfinished" and those whom
// the exit waits for: Shutdown does not wait for hosts. The error is ctx's, or
// lifecycle.ErrInvalid for a nil ctx; calling Shutdown again waits again.
//
// From then on the counters stand still: the collections that follow, the last of which
// the MeterProvider's own Shutdown makes, have them as they are, and nothing of hosts,
// calls, tasks and queues. The MeterProvider keeps them, a series an attribute set, as
// long as it lives.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if ctx == nil {
		return fmt.Errorf("lifecycleotel: Shutdown: %w: a nil context", lifecycle.ErrInvalid)
	}
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	hosts := slices.Collect(maps.Values(t.hosts))
	t.mu.Unlock()
	if first {
		close(t.closing)
	}
	var errs []error
	for _, h := range hosts {
		if !h.giveUp() {
			t.drop(h) // its exit won't be told
			continue
		}
		select {
		case <-h.ended:
		case <-ctx.Done():
			if !isClosed(h.ended) {
				errs = append(errs, fmt.Errorf("lifecycleotel: Shutdown: the spans of host %q: %w", h.name, ctx.Err()))
			}
		}
	}
	t.metrics.end()
	return errors.Join(errs...)
}

// forget is called when the exit of h has been told to its end.
func (t *Telemetry) forget(h *hosted) {
	t.metrics.remove(h)
	t.drop(h)
}

func (t *Telemetry) drop(h *hosted) {
	t.mu.Lock()
	delete(t.hosts, h.host)
	t.mu.Unlock()
}

// guard calls f, which is OpenTelemetry's code and its users': processors, samplers,
// error handlers, the methods of errors. What panics there becomes an error of
// OpenTelemetry's error handler, and changes nothing else.
func guard(f func()) {
	defer func() {
		if v := recover(); v != nil {
			defer func() { _ = recover() }()
			otel.Handle(fmt.Errorf("lifecycleotel: panic: %v", v))
		}
	}()
	f()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
