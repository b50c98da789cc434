package lifecycleotel_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/lifecycleotel"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

func TestWithoutProvidersAHostWorksAndExits(t *testing.T) {
	telemetry, err := lifecycleotel.New(lifecycleotel.Options{})
	require.NoError(t, err)
	host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{})
	_, err = host.Durability().Commit(context.Background(), []byte("tx"))
	require.NoError(t, err)
	require.NoError(t, host.Exit(context.Background()))
	shutdown(t, telemetry)
}

func TestASamplerThatDropsEverythingLeavesNoSpan(t *testing.T) {
	telemetry, exporter, _ := newTracing(t, sdktrace.WithSampler(sdktrace.NeverSample()))
	host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{})
	require.NoError(t, host.OnExit(lifecycle.PhaseRelease, "fails", func(context.Context) error { return errors.New("no") }))
	require.Error(t, host.Exit(context.Background()))
	shutdown(t, telemetry)
	require.Empty(t, exporter.GetSpans())
}

// processor does what its funcs do.
type processor struct{ onStart, onEnd func(name string) }

func (p processor) OnStart(_ context.Context, s sdktrace.ReadWriteSpan) {
	if p.onStart != nil {
		p.onStart(s.Name())
	}
}
func (p processor) OnEnd(s sdktrace.ReadOnlySpan) {
	if p.onEnd != nil {
		p.onEnd(s.Name())
	}
}
func (processor) Shutdown(context.Context) error   { return nil }
func (processor) ForceFlush(context.Context) error { return nil }

func TestAProcessorThatPanicsChangesNothingForTheHostOrTheOtherSpans(t *testing.T) {
	var mu sync.Mutex
	var told []string
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, err.Error())
	}))
	for name, p := range map[string]processor{
		"start": {onStart: func(name string) {
			if name == "await tasks" {
				panic("at start")
			}
		}},
		"end": {onEnd: func(name string) {
			if name == "await tasks" {
				panic("at end")
			}
		}},
	} {
		told = nil
		telemetry, exporter, provider := newTracing(t)
		provider.RegisterSpanProcessor(p)
		var observed []lifecycle.Phase
		host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{Observer: lifecycle.Observer{
			PhaseEnd: func(e lifecycle.PhaseEvent) { observed = append(observed, e.Phase) },
		}})
		require.NoError(t, host.Exit(context.Background()), name)
		require.Len(t, observed, 7)
		for _, phase := range host.Report().Phases {
			require.Empty(t, phase.Errors, name)
		}
		shutdown(t, telemetry)
		want := 8
		if name == "start" {
			want = 7
		}
		require.Len(t, exporter.GetSpans(), want, name)
		require.Equal(t, []string{"lifecycleotel: panic: at " + name}, told)
	}
}

func TestAProcessorThatHangsHoldsNoExitUp(t *testing.T) {
	for _, name := range []string{"exit", "await tasks"} {
		for _, when := range []string{"start", "end"} {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				hang := func(span string) {
					if span == name {
						<-release
					}
				}
				telemetry, exporter, provider := newTracing(t)
				if when == "start" {
					provider.RegisterSpanProcessor(processor{onStart: hang})
				} else {
					provider.RegisterSpanProcessor(processor{onEnd: hang})
				}
				host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{})
				_, err := host.Durability().Commit(t.Context(), []byte("tx"))
				require.NoError(t, err)
				require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "lets it get there", func(context.Context) error {
					<-time.After(time.Second)
					return nil
				}))
				begun := time.Now()
				require.NoError(t, host.Exit(t.Context()))
				require.Equal(t, time.Second, time.Since(begun))

				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				require.ErrorIs(t, telemetry.Shutdown(ctx), context.DeadlineExceeded)
				close(release)
				shutdown(t, telemetry)
				roots, children := treesOf(exporter.GetSpans())
				require.Len(t, roots, 1)
				checkExit(t, roots[0], children)
				require.Equal(t, time.Second, roots[0].EndTime.Sub(roots[0].StartTime), "the times are those of the exit")
			})
		}
	}
}

func TestWhatAProcessorThatHangsMakesTheTelemetryDropTheReportTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		telemetry, exporter, provider := newTracing(t)
		provider.RegisterSpanProcessor(processor{onStart: func(name string) {
			if name == "exit" {
				<-release
			}
		}})
		host := telemetry.NewHost(nil, lifecycle.Options{})
		for range 2000 {
			require.NoError(t, host.Go("fails", func(ctx context.Context) error { <-ctx.Done(); return errQuota{"disk"} }))
		}
		require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "second", func(context.Context) error {
			close(release)
			synctest.Wait() // there is room again
			return nil
		}))
		require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "first", func(context.Context) error { return nil }))
		require.Error(t, host.Exit(t.Context()))
		shutdown(t, telemetry)
		roots, children := treesOf(exporter.GetSpans())
		require.Len(t, roots, 1)
		checkExit(t, roots[0], children)
		phases := children[roots[0].SpanContext.SpanID()]
		require.Equal(t, []string{"hook first", "hook second"}, names(children[phases[3].SpanContext.SpanID()]))
		require.Greater(t, attributes(roots[0].Attributes)["lifecycle.exit.dropped"], int64(900))
		require.Equal(t, "failed", attributes(roots[0].Attributes)["lifecycle.exit.outcome"])
	})
}

// blockedExporter exports nothing until it is released.
type blockedExporter struct {
	release  chan struct{}
	exported []string
}

func (e *blockedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	<-e.release
	for _, s := range spans {
		e.exported = append(e.exported, s.Name())
	}
	return nil
}
func (*blockedExporter) Shutdown(context.Context) error { return nil }

func TestASlowExporterHoldsNoExitUpAndIsFlushedByTheProvidersShutdown(t *testing.T) {
	exporter := &blockedExporter{release: make(chan struct{})}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter, sdktrace.WithMaxExportBatchSize(1)))
	telemetry, err := lifecycleotel.New(lifecycleotel.Options{TracerProvider: provider})
	require.NoError(t, err)
	for range 3 {
		host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{})
		require.NoError(t, host.Exit(context.Background()))
	}
	shutdown(t, telemetry) // nor does this wait for the exporter
	close(exporter.release)
	require.NoError(t, provider.Shutdown(context.Background()))
	require.Len(t, exporter.exported, 3*8)
}

func TestWhenShutdownHasReturnedNoGoroutineIsLeft(t *testing.T) {
	telemetry, _, _ := newTracing(t)
	for range 50 {
		host := telemetry.NewHost(nil, lifecycle.Options{})
		require.NoError(t, host.Exit(context.Background()))
	}
	shutdown(t, telemetry)
	buf := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "(*hosted).main(") {
			require.NotContains(t, stack, "finish", "it may be at its last instruction, and no further back")
			require.NotContains(t, stack, "select")
		}
	}
}

func requireCollected(t *testing.T, host weak.Pointer[lifecycle.Host]) {
	t.Helper()
	for range 100 {
		runtime.GC()
		if host.Value() == nil {
			return
		}
		runtime.Gosched()
	}
	require.Nil(t, host.Value())
}

func TestAHostThatHasExitedIsForgotten(t *testing.T) {
	telemetry, _, _ := newTracing(t)
	host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{})
	require.NoError(t, host.Exit(context.Background()))
	shutdown(t, telemetry) // waits for the last spans, and forgets nothing itself
	gone := weak.Make(host)
	host = nil
	requireCollected(t, gone)
	runtime.KeepAlive(telemetry)
}

func TestAHostThatExitsAfterShutdownIsForgotten(t *testing.T) {
	telemetry, err := lifecycleotel.New(lifecycleotel.Options{MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))})
	require.NoError(t, err)
	host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{})
	shutdown(t, telemetry)
	require.NoError(t, host.Exit(context.Background()))
	gone := weak.Make(host)
	host = nil
	requireCollected(t, gone)
	runtime.KeepAlive(telemetry)
}

func TestAttributesThatPanicLeaveTheHostItsName(t *testing.T) {
	var told []string
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { told = append(told, err.Error()) }))
	telemetry, reader := newMetering(t, lifecycleotel.Options{Attributes: func(string) []attribute.KeyValue { panic("attributes") }})
	log := &lifecycletest.Log{}
	host := telemetry.NewHost(log, lifecycle.Options{Name: "orders"})
	require.Equal(t, []string{"lifecycleotel: panic: attributes"}, told)
	require.Equal(t, map[string]int64{"lifecycle.host.name=orders": 0}, sums(collect(t, reader)["lifecycle.transaction.accepted"]))
	require.NoError(t, host.Exit(context.Background()))
	shutdown(t, telemetry)
}

func TestAnExitBegunBeforeNewReturnsIsFollowedToo(t *testing.T) {
	for range 300 { // that goroutine and New's end race
		telemetry, exporter, _ := newTracing(t)
		log := &lifecycletest.Log{}
		log.PanicAt(lifecycletest.Next, 1, "no log")
		host := telemetry.NewHost(log, lifecycle.Options{})
		<-host.Done()
		shutdown(t, telemetry)
		roots, children := treesOf(exporter.GetSpans())
		require.Len(t, roots, 1)
		checkExit(t, roots[0], children)
		require.Equal(t, "failed", attributes(roots[0].Attributes)["lifecycle.exit.outcome"])
		require.Len(t, roots[0].Events, 1)
		require.Equal(t, "next", attributes(roots[0].Events[0].Attributes)["lifecycle.log.operation"])
	}
}

func TestAfterShutdownNewHostMakesAHostThatNobodyFollows(t *testing.T) {
	telemetry, exporter, _ := newTracing(t)
	shutdown(t, telemetry)
	host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{})
	_, err := host.Durability().Commit(context.Background(), []byte("tx"))
	require.NoError(t, err)
	require.NoError(t, telemetry.LinkExit(context.Background(), host))
	require.NoError(t, host.Exit(context.Background()))
	shutdown(t, telemetry)
	require.Empty(t, exporter.GetSpans())
}

// The exit begun at each moment of a small life: the telemetry is in nobody's way, and
// every exit becomes a whole trace.
func TestWheneverTheExitBeginsItIsAWholeTrace(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	var exits atomic.Int64
	lifecycletest.ExitEverywhere(t,
		func(t testing.TB) (*lifecycle.Host, *lifecycle.Host, error) {
			exits.Add(1)
			telemetry, err := lifecycleotel.New(lifecycleotel.Options{ // one a bubble
				TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)),
			})
			if err != nil {
				return nil, nil, err
			}
			t.Cleanup(func() {
				if err := telemetry.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
			})
			host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{})
			err = host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(ctx context.Context) error {
				_, err := host.Durability().Commit(ctx, []byte("snapshot"))
				return err
			})
			if errors.Is(err, lifecycle.ErrExiting) {
				err = nil
			}
			return host, host, err
		},
		func(t testing.TB, host *lifecycle.Host) error {
			call, err := host.Enter()
			if err != nil {
				return err
			}
			defer call.Leave()
			_, err = host.Durability().Commit(context.Background(), []byte("tx"))
			return err
		})
	roots, children := treesOf(exporter.GetSpans())
	require.Greater(t, exits.Load(), int64(10))
	require.Len(t, roots, int(exits.Load()))
	for _, root := range roots {
		checkExit(t, root, children)
	}
}
