package lifecycleotel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/lifecycleotel"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

var phaseNames = []string{"exit module", "cancel tasks", "await tasks", "checkpoint", "close durability", "close log", "release"}

// newTracing is a Telemetry whose spans come, as they end, to the exporter.
func newTracing(t *testing.T, more ...sdktrace.TracerProviderOption) (*lifecycleotel.Telemetry, *tracetest.InMemoryExporter, *sdktrace.TracerProvider) {
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(append([]sdktrace.TracerProviderOption{sdktrace.WithSyncer(exporter)}, more...)...)
	telemetry, err := lifecycleotel.New(lifecycleotel.Options{TracerProvider: provider})
	require.NoError(t, err)
	return telemetry, exporter, provider
}

func shutdown(t *testing.T, telemetry *lifecycleotel.Telemetry) {
	t.Helper()
	require.NoError(t, telemetry.Shutdown(context.Background()))
}

type trees map[trace.SpanID][]tracetest.SpanStub // children by parent, in the order in which they were exported

func treesOf(spans tracetest.SpanStubs) (roots tracetest.SpanStubs, children trees) {
	children = trees{}
	for _, s := range spans {
		if s.Parent.IsValid() {
			children[s.Parent.SpanID()] = append(children[s.Parent.SpanID()], s)
		} else {
			roots = append(roots, s)
		}
	}
	return roots, children
}

func named(t *testing.T, spans tracetest.SpanStubs, name string) tracetest.SpanStub {
	t.Helper()
	var all []tracetest.SpanStub
	for _, s := range spans {
		if s.Name == name {
			all = append(all, s)
		}
	}
	require.Len(t, all, 1, "spans named %q", name)
	return all[0]
}

func names(spans []tracetest.SpanStub) []string {
	var all []string
	for _, s := range spans {
		all = append(all, s.Name)
	}
	return all
}

func attributes(kvs []attribute.KeyValue) map[string]any {
	all := map[string]any{}
	for _, kv := range kvs {
		all[string(kv.Key)] = kv.Value.AsInterface()
	}
	return all
}

// checkExit says whether spans are one exit in order: seven phases one after another
// inside the root, the hooks one after another inside their phases.
func checkExit(t *testing.T, root tracetest.SpanStub, children trees) {
	t.Helper()
	require.Equal(t, "exit", root.Name)
	phases := children[root.SpanContext.SpanID()]
	require.Equal(t, phaseNames, names(phases))
	checkInside(t, root, phases)
	for _, p := range phases {
		checkInside(t, p, children[p.SpanContext.SpanID()])
	}
}

func checkInside(t *testing.T, outer tracetest.SpanStub, inner []tracetest.SpanStub) {
	t.Helper()
	at := outer.StartTime
	for _, s := range inner {
		require.Equal(t, outer.SpanContext.TraceID(), s.SpanContext.TraceID())
		require.False(t, s.StartTime.Before(at), "%s begins %v before what comes before it has ended", s.Name, at.Sub(s.StartTime))
		require.False(t, s.EndTime.Before(s.StartTime), s.Name)
		at = s.EndTime
	}
	require.False(t, outer.EndTime.Before(at), "%s ends %v before what is in it", outer.Name, at.Sub(outer.EndTime))
}

func TestAnExitIsATraceWithASpanForEachPhaseAndHookInOrder(t *testing.T) {
	telemetry, exporter, _ := newTracing(t)
	log := &lifecycletest.Log{First: 40}
	host := telemetry.NewHost(log, lifecycle.Options{Name: "orders"})
	require.NoError(t, host.Go("writer", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }))
	nothing := func(context.Context) error { return nil }
	require.NoError(t, host.OnExit(lifecycle.PhaseExitModule, "http", nothing))
	require.NoError(t, host.OnExit(lifecycle.PhaseExitModule, "grpc", nothing))
	require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(ctx context.Context) error {
		_, err := host.Durability().Commit(ctx, []byte("snapshot"))
		return err
	}))
	require.NoError(t, host.OnExit(lifecycle.PhaseRelease, "gauges", nothing))
	for range 3 {
		_, err := host.Durability().Commit(context.Background(), []byte("tx"))
		require.NoError(t, err)
	}
	require.NoError(t, host.Exit(context.Background()))
	shutdown(t, telemetry)

	spans := exporter.GetSpans()
	require.Len(t, spans, 1+7+4)
	roots, children := treesOf(spans)
	require.Len(t, roots, 1)
	checkExit(t, roots[0], children)
	require.Equal(t, map[string]any{
		"lifecycle.host.name": "orders", "lifecycle.exit.outcome": "clean",
		"lifecycle.offset.first": int64(40), "lifecycle.offset.accepted": int64(44), "lifecycle.offset.durable": int64(44),
		"lifecycle.transaction.lost": int64(0),
	}, attributes(roots[0].Attributes))
	phases := children[roots[0].SpanContext.SpanID()]
	var hooks []string
	for _, p := range phases {
		require.Equal(t, map[string]any{"lifecycle.host.name": "orders", "lifecycle.phase.name": p.Name}, attributes(p.Attributes))
		for _, h := range children[p.SpanContext.SpanID()] {
			hooks = append(hooks, p.Name+"/"+h.Name)
			require.Equal(t, map[string]any{
				"lifecycle.host.name": "orders", "lifecycle.phase.name": p.Name, "lifecycle.hook.name": strings.TrimPrefix(h.Name, "hook "),
			}, attributes(h.Attributes))
		}
	}
	require.Equal(t, []string{"exit module/hook grpc", "exit module/hook http", "checkpoint/hook snapshot", "release/hook gauges"}, hooks)
	for _, s := range spans {
		require.Equal(t, codes.Unset, s.Status.Code, s.Name)
		require.Empty(t, s.Events, s.Name)
		require.Equal(t, lifecycleotel.ScopeName, s.InstrumentationScope.Name)
		require.Equal(t, trace.SpanKindInternal, s.SpanKind)
	}
}

func TestStragglersAreEventsOfTheirPhaseEachTimeTheyAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, exporter, _ := newTracing(t)
		host := telemetry.NewHost(nil, lifecycle.Options{StuckAfter: time.Second})
		release := make(chan struct{})
		for range 2 {
			require.NoError(t, host.Go("deaf", func(context.Context) error { waitDeaf(release); return nil }))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3500*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, host.Exit(ctx), context.DeadlineExceeded)
		close(release)
		require.NoError(t, host.Exit(t.Context()))
		shutdown(t, telemetry)

		phase := named(t, exporter.GetSpans(), "await tasks")
		require.Len(t, phase.Events, 3)
		for i, e := range phase.Events {
			require.Equal(t, "lifecycle.straggler", e.Name)
			require.Equal(t, phase.StartTime.Add(time.Duration(i+1)*time.Second), e.Time)
			got := attributes(e.Attributes)
			require.Contains(t, got["code.stacktrace"], "waitDeaf")
			delete(got, "code.stacktrace")
			require.Equal(t, map[string]any{
				"lifecycle.straggler.kind": "task", "lifecycle.straggler.name": "deaf", "lifecycle.straggler.count": int64(2),
				"lifecycle.straggler.age": float64(i + 1), "lifecycle.phase.age": float64(i + 1), "lifecycle.queue.usage": int64(0),
			}, got)
		}
		require.Equal(t, codes.Unset, phase.Status.Code)
		require.Equal(t, 3500*time.Millisecond, phase.EndTime.Sub(phase.StartTime))
	})
}

//go:noinline
func waitDeaf(release <-chan struct{}) { <-release }

func TestOfManyStragglersTheOldestHaveEventsAndTheOthersACount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, exporter, _ := newTracing(t)
		host := telemetry.NewHost(nil, lifecycle.Options{StuckAfter: time.Second})
		release := make(chan struct{})
		for i := range 100 {
			require.NoError(t, host.Go(fmt.Sprint("task ", i), func(context.Context) error { <-release; return nil }))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, host.Exit(ctx), context.DeadlineExceeded)
		close(release)
		require.NoError(t, host.Exit(t.Context()))
		shutdown(t, telemetry)
		events := named(t, exporter.GetSpans(), "await tasks").Events
		require.Len(t, events, 16)
		require.NotContains(t, attributes(events[14].Attributes), "lifecycle.straggler.omitted")
		require.Equal(t, int64(84), attributes(events[15].Attributes)["lifecycle.straggler.omitted"])
	})
}

func TestWhatIsOverIsExportedWhileTheExitHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, exporter, _ := newTracing(t)
		host := telemetry.NewHost(nil, lifecycle.Options{})
		release := make(chan struct{})
		require.NoError(t, host.OnExit(lifecycle.PhaseExitModule, "http", func(context.Context) error { return nil }))
		require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "hangs", func(context.Context) error { <-release; return nil }))
		host.Fail(nil)
		synctest.Wait()
		require.Equal(t, []string{"hook http", "exit module", "cancel tasks", "await tasks"}, names(exporter.GetSpans()))
		close(release)
		require.NoError(t, host.Exit(t.Context()))
		shutdown(t, telemetry)
		require.Len(t, exporter.GetSpans(), 1+7+2)
	})
}

func TestShutdownEndsTheSpansOfAnExitThatHasNotEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, exporter, _ := newTracing(t)
		host := telemetry.NewHost(nil, lifecycle.Options{})
		release := make(chan struct{})
		require.NoError(t, host.Go("deaf", func(context.Context) error { waitDeaf(release); return nil }))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, host.Exit(ctx), context.DeadlineExceeded)
		shutdown(t, telemetry)

		spans := exporter.GetSpans()
		require.Equal(t, []string{"exit module", "cancel tasks", "await tasks", "exit"}, names(spans))
		phase, root := named(t, spans, "await tasks"), named(t, spans, "exit")
		require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "the phase had not ended when its telemetry was shut down"}, phase.Status)
		require.Len(t, phase.Events, 1)
		require.Equal(t, "deaf", attributes(phase.Events[0].Attributes)["lifecycle.straggler.name"])
		require.Contains(t, attributes(phase.Events[0].Attributes)["code.stacktrace"], "waitDeaf")
		require.Equal(t, codes.Error, root.Status.Code)
		require.Equal(t, "unfinished", attributes(root.Attributes)["lifecycle.exit.outcome"])
		require.Equal(t, "unfinished", attributes(root.Attributes)["error.type"])
		require.Empty(t, root.Events)
		require.Equal(t, time.Second, root.EndTime.Sub(root.StartTime))

		close(release)
		require.NoError(t, host.Exit(t.Context()))
		shutdown(t, telemetry)
		require.Len(t, exporter.GetSpans(), 4, "after Shutdown nobody is followed")
	})
}

func TestAForcedExitSaysWhoWasSkippedAndWhoWasLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, exporter, _ := newTracing(t)
		host := telemetry.NewHost(nil, lifecycle.Options{Name: "orders"})
		release := make(chan struct{})
		defer close(release)
		require.NoError(t, host.Go("deaf", func(context.Context) error { waitDeaf(release); return nil }))
		require.NoError(t, host.OnExit(lifecycle.PhaseExitModule, "never begins", func(context.Context) error { return nil }))
		require.NoError(t, host.OnExit(lifecycle.PhaseExitModule, "hangs", func(context.Context) error { waitDeaf(release); return nil }))
		require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(context.Context) error { return nil }))
		require.NoError(t, host.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { return nil }))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, host.Exit(ctx), context.DeadlineExceeded)
		err := host.ForceExit(t.Context())
		require.ErrorIs(t, err, lifecycle.ErrForced)
		shutdown(t, telemetry)

		spans := exporter.GetSpans()
		roots, children := treesOf(spans)
		require.Len(t, roots, 1)
		root := roots[0]
		checkExit(t, root, children)
		require.Equal(t, "forced", attributes(root.Attributes)["lifecycle.exit.outcome"])
		require.Equal(t, "forced", attributes(root.Attributes)["error.type"])
		require.Equal(t, sdktrace.Status{Code: codes.Error, Description: err.Error()}, root.Status)

		left := named(t, spans, "hook hangs")
		require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "left behind by ForceExit"}, left.Status)
		require.Equal(t, true, attributes(left.Attributes)["lifecycle.hook.abandoned"])
		require.Equal(t, time.Second+lifecycle.ForceGrace, left.EndTime.Sub(left.StartTime))
		for _, name := range []string{"hook never begins", "hook snapshot"} {
			skipped := named(t, spans, name)
			require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "skipped by ForceExit"}, skipped.Status)
			require.Equal(t, true, attributes(skipped.Attributes)["lifecycle.hook.skipped"])
			require.NotContains(t, attributes(skipped.Attributes), "lifecycle.hook.abandoned")
		}
		require.Equal(t, codes.Unset, named(t, spans, "hook gauges").Status.Code)

		var abandoned []string
		for _, e := range root.Events {
			require.Equal(t, "lifecycle.abandoned", e.Name)
			got := attributes(e.Attributes)
			require.Contains(t, got["code.stacktrace"], "waitDeaf")
			abandoned = append(abandoned, fmt.Sprint(got["lifecycle.phase.name"], "/", got["lifecycle.straggler.kind"], "/", got["lifecycle.straggler.name"]))
		}
		require.Equal(t, []string{"exit module/hook/hangs", "await tasks/task/deaf"}, abandoned)
	})
}

func TestWhatAnObserverIsNotToldInAForcedExitTheReportTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, exporter, _ := newTracing(t)
		release := make(chan struct{})
		defer close(release)
		// An observer beside it hangs: in a forced exit all of them are passed over then.
		hangs := lifecycle.Observer{PhaseEnd: func(lifecycle.PhaseEvent) { <-release }, HookEnd: func(lifecycle.HookEvent) {}}
		host := telemetry.NewHost(nil, lifecycle.Options{Observer: hangs})
		require.NoError(t, host.OnExit(lifecycle.PhaseRelease, "fails", func(context.Context) error { return errors.New("no gauges") }))
		require.ErrorIs(t, host.ForceExit(t.Context()), lifecycle.ErrForced)
		shutdown(t, telemetry)

		roots, children := treesOf(exporter.GetSpans())
		require.Len(t, roots, 1)
		checkExit(t, roots[0], children)
		hook := named(t, exporter.GetSpans(), "hook fails")
		require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "no gauges"}, hook.Status)
	})
}

func TestAForcedExitWhoseDrainRunsOutOfTimeSaysWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, exporter, _ := newTracing(t)
		log := &lifecycletest.Log{}
		reached, release := log.BlockAt(lifecycletest.Sync, 1)
		host := telemetry.NewHost(log, lifecycle.Options{})
		_, err := host.Durability().Append(t.Context(), []byte("tx"))
		require.NoError(t, err)
		<-reached
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, host.ForceExit(ctx), lifecycle.ErrUnknown)
		shutdown(t, telemetry)
		release()

		roots, children := treesOf(exporter.GetSpans())
		require.Len(t, roots, 1)
		checkExit(t, roots[0], children)
		got := attributes(roots[0].Attributes)
		require.Equal(t, "forced", got["lifecycle.exit.outcome"])
		require.Equal(t, int64(1), got["lifecycle.transaction.lost"])
		require.Len(t, roots[0].Events, 1)
		left := attributes(roots[0].Events[0].Attributes)
		require.Equal(t, "log", left["lifecycle.straggler.kind"])
		require.Equal(t, "sync", left["lifecycle.straggler.name"])
		require.Equal(t, "close durability", left["lifecycle.phase.name"])
	})
}

func TestTheAttributesOfAHostAreThoseOfTheRoot(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	telemetry, err := lifecycleotel.New(lifecycleotel.Options{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)),
		Attributes: func(host string) []attribute.KeyValue {
			return []attribute.KeyValue{attribute.String("db.namespace", host)}
		},
	})
	require.NoError(t, err)
	require.NoError(t, telemetry.NewHost(nil, lifecycle.Options{Name: "orders"}).Exit(context.Background()))
	shutdown(t, telemetry)
	got := attributes(named(t, exporter.GetSpans(), "exit").Attributes)
	require.Equal(t, "orders", got["db.namespace"])
	require.Equal(t, "orders", got["lifecycle.host.name"])
}

func TestATaskThatFailsIsAnExceptionOfTheRoot(t *testing.T) {
	telemetry, exporter, _ := newTracing(t)
	host := telemetry.NewHost(nil, lifecycle.Options{Name: "orders"})
	require.NoError(t, host.Go("compaction", func(context.Context) error { return fmt.Errorf("segment 7: %w", io.ErrUnexpectedEOF) }))
	<-host.Done()
	shutdown(t, telemetry)

	roots, children := treesOf(exporter.GetSpans())
	require.Len(t, roots, 1)
	root := roots[0]
	checkExit(t, root, children)
	require.Len(t, root.Events, 1)
	require.Equal(t, "exception", root.Events[0].Name)
	require.Equal(t, map[string]any{
		"exception.type": "*fmt.wrapError", "exception.message": "segment 7: unexpected EOF", "lifecycle.task.name": "compaction",
	}, attributes(root.Events[0].Attributes))
	failure := `lifecycle: host "orders": task "compaction": segment 7: unexpected EOF`
	require.Equal(t, sdktrace.Status{Code: codes.Error, Description: failure}, root.Status)
	got := attributes(root.Attributes)
	require.Equal(t, "failed", got["lifecycle.exit.outcome"])
	require.Equal(t, failure, got["lifecycle.exit.cause"])
	require.Equal(t, "*errors.errorString", got["error.type"], "wrappers of fmt.Errorf are not the type")
	for _, p := range children[root.SpanContext.SpanID()] {
		require.Equal(t, codes.Unset, p.Status.Code, "the cause failed before any phase: %s", p.Name)
	}
}

func TestAPanicHasItsStack(t *testing.T) {
	telemetry, exporter, _ := newTracing(t)
	host := telemetry.NewHost(nil, lifecycle.Options{})
	require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(context.Context) error { panicNow("no disk"); return nil }))
	require.NoError(t, host.Go("task", func(context.Context) error { panicNow("no memory"); return nil }))
	<-host.Done()
	shutdown(t, telemetry)
	spans := exporter.GetSpans()
	hook, root := named(t, spans, "hook snapshot"), named(t, spans, "exit")
	for message, span := range map[string]tracetest.SpanStub{"panic: no disk": hook, "panic: no memory": root} {
		require.Len(t, span.Events, 1)
		got := attributes(span.Events[0].Attributes)
		require.Equal(t, "*lifecycle.PanicError", got["exception.type"])
		require.Equal(t, message, got["exception.message"])
		require.Contains(t, got["exception.stacktrace"], "panicNow")
		require.Equal(t, "*lifecycle.PanicError", attributes(span.Attributes)["error.type"])
	}
	require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "panic: no disk"}, hook.Status)
	phase := named(t, spans, "checkpoint")
	require.Equal(t, codes.Error, phase.Status.Code)
	require.Contains(t, phase.Status.Description, `hook "snapshot": panic: no disk`)
	require.Equal(t, "*lifecycle.PanicError", attributes(phase.Attributes)["error.type"])
}

//go:noinline
func panicNow(v any) { panic(v) }

func TestAnExitThatFailBeginsHasItsCause(t *testing.T) {
	telemetry, exporter, _ := newTracing(t)
	host := telemetry.NewHost(nil, lifecycle.Options{})
	host.Fail(errQuota{"disk"})
	<-host.Done()
	shutdown(t, telemetry)
	root := named(t, exporter.GetSpans(), "exit")
	require.Equal(t, "no quota: disk", attributes(root.Attributes)["lifecycle.exit.cause"])
	require.Equal(t, errQuotaType, attributes(root.Attributes)["error.type"])
	require.Equal(t, codes.Error, root.Status.Code)
	require.Len(t, root.Events, 1)
	require.Equal(t, map[string]any{"exception.type": errQuotaType, "exception.message": "no quota: disk"}, attributes(root.Events[0].Attributes))
}

type errQuota struct{ what string }

func (e errQuota) Error() string { return "no quota: " + e.what }

const errQuotaType = "github.com/seed080d9131/lifecycle/integrations/lifecycleotel_test.errQuota"

func TestALogThatFailsIsAnExceptionOfTheRoot(t *testing.T) {
	telemetry, exporter, _ := newTracing(t)
	log := &lifecycletest.Log{}
	log.FailAt(lifecycletest.Sync, 2, errors.New("input/output error"))
	host := telemetry.NewHost(log, lifecycle.Options{Name: "orders"})
	_, err := host.Durability().Commit(context.Background(), []byte("one"))
	require.NoError(t, err)
	_, err = host.Durability().Commit(context.Background(), []byte("two"))
	require.Error(t, err)
	<-host.Done()
	shutdown(t, telemetry)
	root := named(t, exporter.GetSpans(), "exit")
	got := attributes(root.Attributes)
	require.Equal(t, "failed", got["lifecycle.exit.outcome"])
	require.Equal(t, int64(1), got["lifecycle.transaction.lost"])
	require.Equal(t, int64(2), got["lifecycle.offset.accepted"])
	require.Equal(t, int64(1), got["lifecycle.offset.durable"])
	require.Len(t, root.Events, 1)
	require.Equal(t, map[string]any{
		"exception.type": "*errors.errorString", "exception.message": "input/output error", "lifecycle.log.operation": "sync",
	}, attributes(root.Events[0].Attributes))
}

func TestALogThatFailsToCloseIsAFailureOfItsPhase(t *testing.T) {
	telemetry, exporter, _ := newTracing(t)
	log := &lifecycletest.Log{}
	log.FailAt(lifecycletest.Close, 1, errors.New("input/output error"))
	host := telemetry.NewHost(log, lifecycle.Options{})
	require.Error(t, host.Exit(context.Background()))
	shutdown(t, telemetry)
	spans := exporter.GetSpans()
	for _, name := range phaseNames {
		want := codes.Unset
		if name == "close log" {
			want = codes.Error
		}
		require.Equal(t, want, named(t, spans, name).Status.Code, name)
	}
	root := named(t, spans, "exit")
	require.Len(t, root.Events, 1)
	require.Equal(t, "close", attributes(root.Events[0].Attributes)["lifecycle.log.operation"])
}

func TestHostsThatExitAtOnceDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that no grace of ForceExit passes
		const hosts = 40
		telemetry, exporter, _ := newTracing(t)
		var all []*lifecycle.Host
		for i := range hosts {
			host := telemetry.NewHost(&lifecycletest.Log{First: uint64(i)}, lifecycle.Options{Name: fmt.Sprint("host ", i/2)}) // two of each name
			require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, fmt.Sprint("hook of ", i), func(context.Context) error { return nil }))
			if i%4 == 0 {
				require.NoError(t, host.Go("fails", func(ctx context.Context) error { <-ctx.Done(); return errors.New("late") }))
			}
			all = append(all, host)
		}
		var group sync.WaitGroup
		for i, host := range all {
			group.Go(func() {
				if i%3 == 0 {
					_ = host.ForceExit(context.Background())
				} else {
					_ = host.Exit(context.Background())
				}
			})
		}
		group.Wait()
		shutdown(t, telemetry)
		roots, children := treesOf(exporter.GetSpans())
		require.Len(t, roots, hosts)
		for _, root := range roots {
			checkExit(t, root, children)
			got := attributes(root.Attributes)
			i := int(got["lifecycle.offset.first"].(int64))
			require.Equal(t, fmt.Sprint("host ", i/2), got["lifecycle.host.name"])
			hooks := children[children[root.SpanContext.SpanID()][3].SpanContext.SpanID()]
			require.Equal(t, []string{fmt.Sprint("hook hook of ", i)}, names(hooks))
			failures := 0
			if i%4 == 0 {
				failures = 1
			}
			require.Len(t, root.Events, failures)
		}
	})
}

func TestAHostLaunchedAgainUnderItsNameHasATraceOfItsOwn(t *testing.T) {
	telemetry, exporter, _ := newTracing(t)
	controller := lifecycle.NewController[string](lifecycle.ControllerOptions{})
	const lives = 5
	for i := range lives {
		host, err := controller.Launch(t.Context(), "orders", func(context.Context) (*lifecycle.Host, error) {
			return telemetry.NewHost(&lifecycletest.Log{First: uint64(i)}, lifecycle.Options{Name: "orders"}), nil
		})
		require.NoError(t, err)
		if i%2 == 0 {
			host.Fail(nil)
			continue // Launch waits for its end
		}
		require.NoError(t, controller.ExitHost(t.Context(), "orders"))
	}
	require.NoError(t, controller.Exit(t.Context()))
	shutdown(t, telemetry)
	roots, children := treesOf(exporter.GetSpans())
	require.Len(t, roots, lives)
	firsts := map[any]bool{}
	for _, root := range roots {
		checkExit(t, root, children)
		firsts[attributes(root.Attributes)["lifecycle.offset.first"]] = true
	}
	require.Len(t, firsts, lives)
}

func TestAnExitIsLinkedToWhoAskedForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, exporter, provider := newTracing(t)
		host := telemetry.NewHost(nil, lifecycle.Options{})
		release := make(chan struct{})
		require.NoError(t, host.OnExit(lifecycle.PhaseExitModule, "waits", func(context.Context) error { <-release; return nil }))
		first, request := provider.Tracer("test").Start(t.Context(), "POST /exit")
		require.NoError(t, telemetry.LinkExit(first, host))
		require.NoError(t, telemetry.LinkExit(t.Context(), host), "no span: nothing to link")
		host.Fail(nil)
		synctest.Wait()
		second, joins := provider.Tracer("test").Start(t.Context(), "POST /exit")
		require.NoError(t, telemetry.LinkExit(second, host))
		close(release)
		require.NoError(t, host.Exit(first))
		shutdown(t, telemetry)
		require.NoError(t, telemetry.LinkExit(first, host), "it has ended: nothing to link")

		root := named(t, exporter.GetSpans(), "exit")
		require.False(t, root.Parent.IsValid())
		require.NotEqual(t, request.SpanContext().TraceID(), root.SpanContext.TraceID())
		require.Len(t, root.Links, 2)
		require.True(t, root.Links[0].SpanContext.Equal(request.SpanContext()))
		require.True(t, root.Links[1].SpanContext.Equal(joins.SpanContext()))
	})
}

func TestWhatCantBeMeantIsRefused(t *testing.T) {
	telemetry, _, _ := newTracing(t)
	var none context.Context
	mine := telemetry.NewHost(nil, lifecycle.Options{})
	other := lifecycle.New(nil, lifecycle.Options{})
	defer func() {
		require.NoError(t, mine.Exit(context.Background()))
		require.NoError(t, other.Exit(context.Background()))
		shutdown(t, telemetry)
	}()
	require.ErrorIs(t, telemetry.LinkExit(none, mine), lifecycle.ErrInvalid)
	require.ErrorIs(t, telemetry.LinkExit(t.Context(), nil), lifecycle.ErrInvalid)
	require.ErrorIs(t, telemetry.LinkExit(t.Context(), other), lifecycle.ErrInvalid)
	require.ErrorIs(t, telemetry.Shutdown(none), lifecycle.ErrInvalid)
}
