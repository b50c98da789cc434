package lifecycleotel

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed080d9131/lifecycle"
)

// The attributes of the spans, their events, and the metrics. What they tell besides
// has the names of OpenTelemetry's semantic conventions: error.type, exception.type,
// exception.message, exception.stacktrace and code.stacktrace.
const (
	HostNameKey        = attribute.Key("lifecycle.host.name")         // string: Options.Name of the host
	HostStateKey       = attribute.Key("lifecycle.host.state")        // string: "running" or "exiting"
	PhaseKey           = attribute.Key("lifecycle.phase.name")        // string: the phase's name, "await tasks"
	PhaseAgeKey        = attribute.Key("lifecycle.phase.age")         // float64, seconds: since the phase began
	HookNameKey        = attribute.Key("lifecycle.hook.name")         // string
	HookSkippedKey     = attribute.Key("lifecycle.hook.skipped")      // bool, only where true: ForceExit did not let it begin
	HookAbandonedKey   = attribute.Key("lifecycle.hook.abandoned")    // bool, only where true: ForceExit left it behind
	TaskNameKey        = attribute.Key("lifecycle.task.name")         // string
	LogOperationKey    = attribute.Key("lifecycle.log.operation")     // string: LogError.Op
	ExitCauseKey       = attribute.Key("lifecycle.exit.cause")        // string, only where there is one: what began the exit
	ExitOutcomeKey     = attribute.Key("lifecycle.exit.outcome")      // string: "clean", "failed", "forced", or "unfinished" at Shutdown
	OffsetFirstKey     = attribute.Key("lifecycle.offset.first")      // int64: Report.First
	OffsetAcceptedKey  = attribute.Key("lifecycle.offset.accepted")   // int64: Report.Accepted
	OffsetDurableKey   = attribute.Key("lifecycle.offset.durable")    // int64: Report.Durable
	LostKey            = attribute.Key("lifecycle.transaction.lost")  // int64: Report.Lost
	StragglerKindKey   = attribute.Key("lifecycle.straggler.kind")    // string: "call", "task", "hook" or "log"
	StragglerNameKey   = attribute.Key("lifecycle.straggler.name")    // string
	StragglerCountKey  = attribute.Key("lifecycle.straggler.count")   // int64
	StragglerAgeKey    = attribute.Key("lifecycle.straggler.age")     // float64, seconds
	StragglerOthersKey = attribute.Key("lifecycle.straggler.omitted") // int64: how many more stragglers were reported than have an event
	QueueUsageKey      = attribute.Key("lifecycle.queue.usage")       // int64, bytes: StuckEvent.QueuedBytes
	DroppedKey         = attribute.Key("lifecycle.exit.dropped")      // int64, only where there were: events that were lost because a span processor hung
)

// The names of the spans' events, beside "exception".
const (
	StragglerEvent = "lifecycle.straggler" // of a phase's span: a straggler, each time that it is reported
	AbandonedEvent = "lifecycle.abandoned" // of the root span: whom ForceExit left behind
)

// So many stragglers of one report have an event, the oldest first; the SDK keeps 128
// events of a span, the latest.
const maxStragglers = 16

// Texts of errors and stacks are cut off at so many bytes.
const (
	maxText  = 4 << 10
	maxStack = 16 << 10
)

// exit is the spans of an exit, hosted.main's own. A span that could not be started,
// because a processor panicked, is a span that does nothing.
type exit struct {
	*hosted
	ctx      context.Context // carries root
	root     trace.Span
	phases   [lifecycle.PhaseRelease + 1]phaseSpan
	current  lifecycle.Phase // told to have begun, and not to have ended
	told     map[error]bool  // failures of tasks and the log that root has as events
	lastTime time.Time       // the latest end of a span
}

type phaseSpan struct {
	trace.Span                 // nil: not told to have begun
	ctx        context.Context // carries it
	last       time.Time       // its start, the end of its last hook, its end
	hooks      int             // told to have ended
	ended      bool
}

var noSpan = trace.SpanFromContext(context.Background())

func newExit(h *hosted, start time.Time, links []trace.Link) *exit {
	x := &exit{hosted: h, told: map[error]bool{}, lastTime: start}
	attributes := append([]attribute.KeyValue{HostNameKey.String(h.name)}, h.set.ToSlice()...)
	if cause := h.host.Status().Cause; cause != "" {
		attributes = append(attributes, ExitCauseKey.String(shorten(cause, maxText)))
	}
	x.ctx, x.root = x.begin(context.Background(), "exit", start,
		trace.WithNewRoot(), trace.WithLinks(links...), trace.WithAttributes(attributes...))
	return x
}

func (x *exit) begin(ctx context.Context, name string, at time.Time, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	spanCtx, span := ctx, noSpan
	guard(func() { spanCtx, span = x.t.tracer.Start(ctx, name, append(options, trace.WithTimestamp(at))...) })
	return spanCtx, span
}

func (x *exit) end(span trace.Span, at time.Time) {
	x.lastTime = later(at, x.lastTime)
	guard(func() { span.End(trace.WithTimestamp(at)) })
}

func (x *exit) phaseStart(p lifecycle.Phase, at time.Time) {
	s := &x.phases[p]
	s.last = at
	s.ctx, s.Span = x.begin(x.ctx, p.String(), at, trace.WithAttributes(HostNameKey.String(x.name), PhaseKey.String(p.String())))
	x.current = p
}

func (x *exit) phaseEnd(e lifecycle.PhaseEvent, at time.Time) {
	if s := &x.phases[e.Phase]; s.Span != nil {
		x.endPhase(s, e.Phase, e.Duration, at, e.Err)
	}
}

func (x *exit) endPhase(s *phaseSpan, p lifecycle.Phase, took time.Duration, at time.Time, err error) {
	s.ended = true
	x.current = 0
	attributes := []attribute.KeyValue{PhaseKey.String(p.String())}
	if err != nil {
		failure := errorType(err)
		attributes = append(attributes, failure)
		guard(func() {
			s.SetAttributes(failure)
			s.SetStatus(codes.Error, text(err))
		})
	}
	guard(func() { x.t.metrics.phaseDuration.Record(x.ctx, took.Seconds(), x.with(attributes...)) })
	s.last = later(at, s.last)
	x.end(s.Span, s.last)
}

func (x *exit) hookEnd(e lifecycle.HookEvent, at time.Time) {
	if s := &x.phases[e.Phase]; s.Span != nil {
		s.hooks++
		x.hook(s, e.Phase, lifecycle.HookReport{
			Hook: e.Hook, Start: at.Add(-e.Duration), Duration: e.Duration,
			Skipped: e.Skipped, Abandoned: e.Abandoned,
		}, e.Err)
	}
}

// hook makes the span of a hook that has ended, was skipped or was left behind.
func (x *exit) hook(s *phaseSpan, p lifecycle.Phase, r lifecycle.HookReport, err error) {
	_, span := x.begin(s.ctx, "hook "+r.Hook, r.Start, trace.WithAttributes(
		HostNameKey.String(x.name), PhaseKey.String(p.String()), HookNameKey.String(r.Hook)))
	end := r.Start.Add(r.Duration)
	guard(func() {
		switch {
		case r.Skipped:
			span.SetAttributes(HookSkippedKey.Bool(true), semconv.ErrorTypeKey.String("skipped"))
			span.SetStatus(codes.Error, "skipped by ForceExit")
		case r.Abandoned:
			span.SetAttributes(HookAbandonedKey.Bool(true), semconv.ErrorTypeKey.String("abandoned"))
			span.SetStatus(codes.Error, "left behind by ForceExit")
		case err != nil:
			x.exception(span, err, end)
			span.SetAttributes(errorType(err))
			span.SetStatus(codes.Error, text(inner(err)))
		}
	})
	s.last = later(end, s.last)
	x.end(span, end)
}

// failed takes a failure of a task, or of the log.
func (x *exit) failed(err error, at time.Time) {
	switch err.(type) {
	case *lifecycle.TaskError, *lifecycle.LogError: // pointers: they can be keys
		if x.told[err] {
			return
		}
		x.told[err] = true
	}
	guard(func() { x.exception(x.root, err, at) })
}

func (x *exit) stuck(e lifecycle.StuckEvent, at time.Time) {
	s := &x.phases[e.Phase]
	if s.Span == nil || s.ended {
		return
	}
	x.stragglers(s, e.Stragglers, e.Age, e.QueuedBytes, at)
}

func (x *exit) stragglers(s *phaseSpan, all []lifecycle.Straggler, age time.Duration, queued int, at time.Time) {
	for i, one := range all {
		attributes := append(straggler(one), PhaseAgeKey.Float64(age.Seconds()), QueueUsageKey.Int(queued))
		if i == maxStragglers-1 && len(all) > maxStragglers {
			attributes = append(attributes, StragglerOthersKey.Int(len(all)-maxStragglers))
		}
		guard(func() {
			s.AddEvent(StragglerEvent, trace.WithTimestamp(at), trace.WithAttributes(attributes...))
		})
		if i == maxStragglers-1 {
			return
		}
	}
}

func straggler(s lifecycle.Straggler) []attribute.KeyValue {
	attributes := []attribute.KeyValue{
		StragglerKindKey.String(s.Kind), StragglerNameKey.String(s.Name),
		StragglerCountKey.Int(s.Count), StragglerAgeKey.Float64(s.Age.Seconds()),
	}
	if s.Stack != "" {
		attributes = append(attributes, semconv.CodeStacktrace(shorten(s.Stack, maxStack)))
	}
	return attributes
}

// finish ends the root span, by the report of the exit, which has ended. An observer
// is passed over, in a forced exit whose observers have had their time: what this one
// was not told the report has.
func (x *exit) finish(dropped int) {
	r := x.host.Report()
	var before time.Time
	for _, p := range r.Phases {
		s := &x.phases[p.Phase]
		if s.Span == nil {
			x.phaseStart(p.Phase, later(p.Start, before))
		}
		for i := s.hooks; i < len(p.Hooks); i++ {
			var err error
			if p.Hooks[i].Error != "" {
				err = errors.New(p.Hooks[i].Error)
			}
			x.hook(s, p.Phase, p.Hooks[i], err)
		}
		if !s.ended {
			var err error
			if len(p.Errors) > 0 {
				err = errors.New(strings.Join(p.Errors, "\n"))
			}
			x.endPhase(s, p.Phase, p.Duration, p.Start.Add(p.Duration), err)
		}
		before = s.last
		for _, left := range p.Abandoned {
			attributes := append(straggler(left), PhaseKey.String(p.Phase.String()))
			at := p.Start.Add(p.Duration)
			guard(func() {
				x.root.AddEvent(AbandonedEvent, trace.WithTimestamp(at), trace.WithAttributes(attributes...))
			})
		}
	}
	end := later(r.Start.Add(r.Duration), x.lastTime)
	result := x.host.Exit(context.Background()) // it has ended: this returns its result at once
	guard(func() {
		for _, leaf := range leaves(result) {
			if _, isHook := leaf.(*lifecycle.HookError); !isHook { // the hook's span has that
				x.failed(leaf, end)
			}
		}
	})
	x.endRoot(end, r.Outcome, r, dropped, result)
	guard(func() {
		x.t.metrics.exitDuration.Record(x.ctx, r.Duration.Seconds(), x.with(ExitOutcomeKey.String(r.Outcome)))
	})
}

// interrupt ends the spans of an exit that has not ended.
func (x *exit) interrupt(dropped int) {
	r := x.host.Report()
	at := time.Now()
	unfinished := errors.New("the exit had not ended when its telemetry was shut down")
	if x.current != 0 {
		s := &x.phases[x.current]
		if n := len(r.Phases); n > 0 && r.Phases[n-1].Phase == x.current {
			p := r.Phases[n-1]
			x.stragglers(s, p.Stragglers, p.Duration, x.host.Status().QueuedBytes, at)
		}
		guard(func() {
			s.SetAttributes(semconv.ErrorTypeKey.String("unfinished"))
			s.SetStatus(codes.Error, "the phase had not ended when its telemetry was shut down")
		})
		x.end(s.Span, at)
	}
	x.endRoot(at, "unfinished", r, dropped, unfinished)
}

func (x *exit) endRoot(at time.Time, outcome string, r lifecycle.Report, dropped int, result error) {
	guard(func() {
		x.root.SetAttributes(
			ExitOutcomeKey.String(outcome),
			OffsetFirstKey.Int64(int64(r.First)), OffsetAcceptedKey.Int64(int64(r.Accepted)), OffsetDurableKey.Int64(int64(r.Durable)),
			LostKey.Int64(int64(r.Lost)),
		)
		if r.Cause != "" {
			x.root.SetAttributes(ExitCauseKey.String(shorten(r.Cause, maxText)))
		}
		if dropped > 0 {
			x.root.SetAttributes(DroppedKey.Int(dropped))
		}
	})
	if result != nil {
		failure := semconv.ErrorTypeKey.String(outcome)
		if outcome == "failed" {
			failure = errorType(result)
		}
		guard(func() {
			x.root.SetAttributes(failure)
			x.root.SetStatus(codes.Error, text(result))
		})
	}
	x.end(x.root, at)
}

// exception records err as the conventions say: type, message, and the stack where
// there is one.
func (x *exit) exception(span trace.Span, err error, at time.Time) {
	var attributes []attribute.KeyValue
	var stack []byte
	switch e := err.(type) {
	case *lifecycle.TaskError:
		attributes, stack = append(attributes, TaskNameKey.String(e.Task)), e.Stack
	case *lifecycle.HookError:
		stack = e.Stack
	case *lifecycle.LogError:
		attributes = append(attributes, LogOperationKey.String(e.Op))
		if p, ok := e.Err.(*lifecycle.PanicError); ok {
			stack = p.Stack
		}
	}
	if len(stack) > 0 {
		attributes = append(attributes, semconv.ExceptionStacktrace(shorten(string(stack), maxStack)))
	}
	span.RecordError(inner(err), trace.WithTimestamp(at), trace.WithAttributes(attributes...))
}

// inner is what failed inside the error that says where it failed.
func inner(err error) error {
	switch e := err.(type) {
	case *lifecycle.TaskError:
		return e.Err
	case *lifecycle.HookError:
		return e.Err
	case *lifecycle.LogError:
		return e.Err
	}
	if t := reflect.TypeOf(err); t.Kind() == reflect.Pointer && t.Elem().PkgPath() == reflect.TypeFor[lifecycle.TaskError]().PkgPath() {
		if cause := errors.Unwrap(err); cause != nil { // the cause that was given to Fail
			return cause
		}
	}
	return err
}

// errorType is error.type of the first failure in err.
func errorType(err error) attribute.KeyValue {
	result := semconv.ErrorTypeOther
	guard(func() {
		if all := leaves(err); len(all) > 0 {
			err = all[0]
		}
		result = semconv.ErrorType(inner(err))
	})
	return result
}

// leaves is the failures that are joined in err.
func leaves(err error) []error {
	var all []error
	nodes := 0
	var walk func(error)
	walk = func(err error) {
		if nodes++; err == nil || nodes > maxFailures {
			return
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				walk(e)
			}
			return
		}
		if err != lifecycle.ErrForced && err != lifecycle.ErrUnknown {
			all = append(all, err)
		}
	}
	walk(err)
	return all
}

const maxFailures = 256

// text is err's, shortened. Error may panic.
func text(err error) (s string) {
	defer func() {
		if v := recover(); v != nil {
			s = fmt.Sprintf("%T, whose Error panicked", err)
		}
	}()
	return shorten(err.Error(), maxText)
}

func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + " …"
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func withAttributes(set attribute.Set, more ...attribute.KeyValue) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(append(set.ToSlice(), more...)...))
}
