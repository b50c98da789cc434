package lifecycleotel_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/metric/metricdata/metricdatatest"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/lifecycleotel"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

func newMetering(t *testing.T, opts lifecycleotel.Options) (*lifecycleotel.Telemetry, *sdkmetric.ManualReader) {
	reader := sdkmetric.NewManualReader()
	opts.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	telemetry, err := lifecycleotel.New(opts)
	require.NoError(t, err)
	return telemetry, reader
}

// collect returns the metrics by name.
func collect(t *testing.T, reader sdkmetric.Reader) map[string]metricdata.Metrics {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(context.Background(), &all))
	byName := map[string]metricdata.Metrics{}
	for _, scope := range all.ScopeMetrics {
		require.Equal(t, lifecycleotel.ScopeName, scope.Scope.Name)
		for _, m := range scope.Metrics {
			byName[m.Name] = m
		}
	}
	return byName
}

func set(pairs ...string) attribute.Set {
	var kvs []attribute.KeyValue
	for i := 0; i < len(pairs); i += 2 {
		kvs = append(kvs, attribute.String(pairs[i], pairs[i+1]))
	}
	return attribute.NewSet(kvs...)
}

// sums is the values of a sum by attributes.
func sums(m metricdata.Metrics) map[string]int64 {
	all := map[string]int64{}
	if data, ok := m.Data.(metricdata.Sum[int64]); ok {
		for _, p := range data.DataPoints {
			all[p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Value
		}
	}
	return all
}

func TestMetricsTellWhatStatusTells(t *testing.T) {
	telemetry, reader := newMetering(t, lifecycleotel.Options{})
	host := telemetry.NewHost(&lifecycletest.Log{First: 1000}, lifecycle.Options{Name: "orders"})
	for range 5 {
		_, err := host.Durability().Commit(context.Background(), []byte("four"))
		require.NoError(t, err)
	}
	for range 3 {
		require.NoError(t, host.Go("reader", func(ctx context.Context) error { <-ctx.Done(); return nil }))
	}
	call, err := host.Enter()
	require.NoError(t, err)

	got := collect(t, reader)
	sum := func(name, unit, description string, monotonic bool, points ...metricdata.DataPoint[int64]) {
		t.Helper()
		metricdatatest.AssertEqual(t, metricdata.Metrics{
			Name: name, Unit: unit, Description: description,
			Data: metricdata.Sum[int64]{Temporality: metricdata.CumulativeTemporality, IsMonotonic: monotonic, DataPoints: points},
		}, got[name], metricdatatest.IgnoreTimestamp(), metricdatatest.IgnoreExemplars())
	}
	orders := set("lifecycle.host.name", "orders")
	sum("lifecycle.transaction.accepted", "{transaction}", "Transactions that were accepted.", true, metricdata.DataPoint[int64]{Attributes: orders, Value: 5})
	sum("lifecycle.transaction.durable", "{transaction}", "Transactions that have become durable.", true, metricdata.DataPoint[int64]{Attributes: orders, Value: 5})
	sum("lifecycle.call.active", "{call}", "Calls in flight.", false, metricdata.DataPoint[int64]{Attributes: orders, Value: 1})
	sum("lifecycle.queue.usage", "By", "What is accepted and not yet written, as Options.QueueBytes counts it.", false, metricdata.DataPoint[int64]{Attributes: orders})
	sum("lifecycle.task.active", "{task}", "Tasks that run.", false,
		metricdata.DataPoint[int64]{Attributes: set("lifecycle.host.name", "orders", "lifecycle.task.name", "reader"), Value: 3})
	sum("lifecycle.host.count", "{host}", "Hosts that run, or exit, and in which phase.", false,
		metricdata.DataPoint[int64]{Attributes: set("lifecycle.host.name", "orders", "lifecycle.host.state", "running"), Value: 1})

	host.Fail(nil)
	<-host.Exiting()
	require.Equal(t, map[string]int64{"lifecycle.host.name=orders,lifecycle.host.state=exiting,lifecycle.phase.name=exit module": 1},
		sums(collect(t, reader)["lifecycle.host.count"]))
	call.Leave()
	require.NoError(t, host.Exit(context.Background()))

	got = collect(t, reader) // the last batch is observed after those who waited for it have been woken
	for name, unit := range map[string]string{"lifecycle.sync.transactions": "{transaction}", "lifecycle.sync.size": "By"} {
		require.Equal(t, unit, got[name].Unit)
		points := got[name].Data.(metricdata.Histogram[int64]).DataPoints
		require.Len(t, points, 1)
		require.True(t, points[0].Attributes.Equals(&orders))
		require.Equal(t, uint64(5), points[0].Count)
		require.Equal(t, map[string]int64{"{transaction}": 5, "By": 20}[unit], points[0].Sum)
	}
	durations := got["lifecycle.sync.duration"]
	require.Equal(t, "s", durations.Unit)
	require.Equal(t, uint64(5), durations.Data.(metricdata.Histogram[float64]).DataPoints[0].Count)
	shutdown(t, telemetry)
	got = collect(t, reader)
	for _, now := range []string{"lifecycle.host.count", "lifecycle.call.active", "lifecycle.task.active", "lifecycle.queue.usage"} {
		require.NotContains(t, got, now, "after Shutdown no host is observed")
	}
}

func TestPhasesAndExitsAreHistogramsByOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, reader := newMetering(t, lifecycleotel.Options{})
		host := telemetry.NewHost(nil, lifecycle.Options{Name: "orders"})
		require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "fails late", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			<-ctx.Done()
			return errQuota{"disk"}
		}))
		require.Error(t, host.Exit(t.Context()))
		synctest.Wait()
		got := collect(t, reader)
		shutdown(t, telemetry)

		exits := got["lifecycle.exit.duration"].Data.(metricdata.Histogram[float64]).DataPoints
		require.Len(t, exits, 1)
		want := set("lifecycle.host.name", "orders", "lifecycle.exit.outcome", "failed")
		require.True(t, exits[0].Attributes.Equals(&want))
		require.Equal(t, 2.0, exits[0].Sum)
		phases := got["lifecycle.phase.duration"].Data.(metricdata.Histogram[float64]).DataPoints
		require.Len(t, phases, 7)
		for _, p := range phases {
			require.Equal(t, uint64(1), p.Count)
			if p.Sum > 0 {
				want := set("lifecycle.host.name", "orders", "lifecycle.phase.name", "checkpoint", "error.type", errQuotaType)
				require.True(t, p.Attributes.Equals(&want), "%v", p.Attributes.ToSlice())
				require.Equal(t, 2.0, p.Sum)
			}
		}
	})
}

func TestASyncThatFailsHasItsErrorType(t *testing.T) {
	telemetry, reader := newMetering(t, lifecycleotel.Options{})
	log := &lifecycletest.Log{}
	log.FailAt(lifecycletest.Sync, 1, errQuota{"disk"})
	host := telemetry.NewHost(log, lifecycle.Options{Name: "orders"})
	_, err := host.Durability().Commit(context.Background(), []byte("tx"))
	require.Error(t, err)
	<-host.Done()
	shutdown(t, telemetry)
	got := collect(t, reader)
	points := got["lifecycle.sync.duration"].Data.(metricdata.Histogram[float64]).DataPoints
	require.Len(t, points, 1)
	want := set("lifecycle.host.name", "orders", "error.type", errQuotaType)
	require.True(t, points[0].Attributes.Equals(&want))
	require.NotContains(t, got, "lifecycle.sync.transactions", "nothing became durable")
}

func TestCountersNeverFallWhereHostsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, reader := newMetering(t, lifecycleotel.Options{})
		life := func(first uint64, commits int) {
			host := telemetry.NewHost(&lifecycletest.Log{First: first}, lifecycle.Options{Name: "orders"})
			require.NoError(t, host.Every("cleanup", time.Second, func(context.Context) error { return errors.New("no") }))
			for range commits {
				_, err := host.Durability().Commit(t.Context(), []byte("tx"))
				require.NoError(t, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
			<-ctx.Done()
			cancel()
			require.NoError(t, host.Exit(t.Context()))
			synctest.Wait()
		}
		check := func(transactions, ticks int64) {
			t.Helper()
			got := collect(t, reader)
			require.Equal(t, map[string]int64{"lifecycle.host.name=orders": transactions}, sums(got["lifecycle.transaction.accepted"]))
			require.Equal(t, map[string]int64{"lifecycle.host.name=orders": transactions}, sums(got["lifecycle.transaction.durable"]))
			cleanup := map[string]int64{"lifecycle.host.name=orders,lifecycle.task.name=cleanup": ticks}
			require.Equal(t, cleanup, sums(got["lifecycle.task.ticks"]))
			require.Equal(t, cleanup, sums(got["lifecycle.task.failed_ticks"]))
			require.Empty(t, sums(got["lifecycle.host.count"]), "no host is left")
			require.Empty(t, sums(got["lifecycle.call.active"]))
			require.Empty(t, sums(got["lifecycle.task.active"]))
		}
		life(0, 5)
		check(5, 2)
		life(5, 2)
		check(7, 4)
		life(0, 1) // another log
		check(8, 6)
		shutdown(t, telemetry)
	})
}

var temporalities = []metricdata.Temporality{metricdata.CumulativeTemporality, metricdata.DeltaTemporality}

func always(temporality metricdata.Temporality) sdkmetric.TemporalitySelector {
	return func(sdkmetric.InstrumentKind) metricdata.Temporality { return temporality }
}

// totals is what a backend has counted by what it was sent.
type totals struct {
	temporality metricdata.Temporality
	counters    map[string]int64
	batches     map[string]uint64
}

func newTotals(temporality metricdata.Temporality) *totals {
	return &totals{temporality, map[string]int64{}, map[string]uint64{}}
}

func (b *totals) take(all *metricdata.ResourceMetrics) {
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for at, n := range sums(m) {
					if b.temporality == metricdata.DeltaTemporality {
						n += b.counters[m.Name+" "+at]
					}
					b.counters[m.Name+" "+at] = n
				}
			case metricdata.Histogram[float64]:
				n := uint64(0)
				for _, p := range data.DataPoints {
					n += p.Count
				}
				if b.temporality == metricdata.DeltaTemporality {
					n += b.batches[m.Name]
				}
				b.batches[m.Name] = n
			}
		}
	}
}

// backend is an exporter that counts.
type backend struct {
	*totals
	exports int
}

func (b *backend) Temporality(sdkmetric.InstrumentKind) metricdata.Temporality { return b.temporality }
func (*backend) Aggregation(kind sdkmetric.InstrumentKind) sdkmetric.Aggregation {
	return sdkmetric.DefaultAggregationSelector(kind)
}
func (b *backend) Export(_ context.Context, all *metricdata.ResourceMetrics) error {
	b.exports++
	b.take(all)
	return nil
}
func (*backend) ForceFlush(context.Context) error { return nil }
func (*backend) Shutdown(context.Context) error   { return nil }

// As the README has it: the exit, the Telemetry's Shutdown, the MeterProvider's.
func TestTheLastIntervalsCountsAreExportedOnceInTheOrderOfTheReadme(t *testing.T) {
	for _, temporality := range temporalities {
		t.Run(temporality.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				exporter := &backend{totals: newTotals(temporality)}
				manual, byHand := sdkmetric.NewManualReader(sdkmetric.WithTemporalitySelector(always(temporality))), newTotals(temporality)
				collectByHand := func() {
					var all metricdata.ResourceMetrics
					require.NoError(t, manual.Collect(t.Context(), &all))
					byHand.take(&all)
				}
				meters := sdkmetric.NewMeterProvider(
					sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter, sdkmetric.WithInterval(time.Minute))), sdkmetric.WithReader(manual))
				telemetry, err := lifecycleotel.New(lifecycleotel.Options{MeterProvider: meters})
				require.NoError(t, err)
				host := telemetry.NewHost(&lifecycletest.Log{First: 70}, lifecycle.Options{Name: "orders"})
				commit := func(n int) {
					for range n {
						_, err := host.Durability().Commit(t.Context(), []byte("tx"))
						require.NoError(t, err)
					}
				}
				require.NoError(t, host.Every("cleanup", time.Second, func(context.Context) error { return errors.New("no") }))
				commit(2)
				time.Sleep(time.Minute + 500*time.Millisecond) // one interval, and not all of another
				synctest.Wait()
				require.Equal(t, 1, exporter.exports)
				require.EqualValues(t, 2, exporter.counters["lifecycle.transaction.accepted lifecycle.host.name=orders"])
				collectByHand()

				commit(3)
				time.Sleep(2 * time.Second)
				call, err := host.Enter()
				require.NoError(t, err)
				host.Fail(nil)
				time.Sleep(2 * time.Second) // tasks run until the calls have left
				commit(1)
				call.Leave()
				require.NoError(t, host.Exit(t.Context()))
				shutdown(t, telemetry)
				for range 2 {
					collectByHand()
				}
				require.NoError(t, meters.Shutdown(t.Context()))
				require.Equal(t, 2, exporter.exports)
				for reader, got := range map[string]*totals{"periodic": exporter.totals, "manual": byHand} {
					for name, want := range map[string]int64{
						"lifecycle.transaction.accepted lifecycle.host.name=orders":                          6,
						"lifecycle.transaction.durable lifecycle.host.name=orders":                           6,
						"lifecycle.task.ticks lifecycle.host.name=orders,lifecycle.task.name=cleanup":        64,
						"lifecycle.task.failed_ticks lifecycle.host.name=orders,lifecycle.task.name=cleanup": 64,
					} {
						require.Equal(t, want, got.counters[name], "%s: %s", reader, name)
					}
					require.Equal(t, map[string]uint64{
						"lifecycle.sync.duration": 6, "lifecycle.phase.duration": 7, "lifecycle.exit.duration": 1,
					}, got.batches, reader)
				}
			})
		})
	}
}

func TestATickThatACollectionSeesWhileTheExitAwaitsItsTaskIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, reader := newMetering(t, lifecycleotel.Options{})
		host := telemetry.NewHost(nil, lifecycle.Options{Name: "orders"})
		var slow, obeyed atomic.Bool
		held := make(chan struct{})
		for range 2 {
			require.NoError(t, host.Every("cleanup", time.Second, func(ctx context.Context) error {
				if slow.Load() {
					<-ctx.Done()
					if !obeyed.CompareAndSwap(false, true) {
						<-held
					}
				}
				return nil
			}))
		}
		time.Sleep(2500 * time.Millisecond)
		slow.Store(true)
		time.Sleep(time.Second)
		host.Fail(nil)
		check := func(ticks int64) {
			t.Helper()
			synctest.Wait()
			require.Equal(t, map[string]int64{"lifecycle.host.name=orders,lifecycle.task.name=cleanup": ticks}, sums(collect(t, reader)["lifecycle.task.ticks"]))
		}
		check(2*2 + 1) // one obeyed, and the other is awaited
		close(held)
		require.NoError(t, host.Exit(t.Context()))
		check(2*2 + 1)
		shutdown(t, telemetry)
		check(2*2 + 1)
	})
}

func TestAHostThatOutlivesItsTelemetryIsCountedUntilShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		telemetry, reader := newMetering(t, lifecycleotel.Options{})
		host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{Name: "orders"})
		require.NoError(t, host.Every("cleanup", time.Second, func(context.Context) error { return nil }))
		life := func() {
			_, err := host.Durability().Commit(t.Context(), []byte("tx"))
			require.NoError(t, err)
			time.Sleep(3500 * time.Millisecond)
		}
		check := func() {
			t.Helper()
			got := collect(t, reader)
			require.Equal(t, map[string]int64{"lifecycle.host.name=orders": 1}, sums(got["lifecycle.transaction.accepted"]))
			require.Equal(t, map[string]int64{"lifecycle.host.name=orders,lifecycle.task.name=cleanup": 3}, sums(got["lifecycle.task.ticks"]))
			require.Equal(t, uint64(1), got["lifecycle.sync.duration"].Data.(metricdata.Histogram[float64]).DataPoints[0].Count)
			require.NotContains(t, got, "lifecycle.host.count")
			require.NotContains(t, got, "lifecycle.exit.duration")
		}
		life()
		shutdown(t, telemetry)
		check()
		life()
		check()
		require.NoError(t, host.Exit(t.Context()))
		check()
	})
}

// A server that is started again in its process.
func TestATelemetryThatFollowsAnotherGoesOnCounting(t *testing.T) {
	for _, temporality := range temporalities {
		reader := sdkmetric.NewManualReader(sdkmetric.WithTemporalitySelector(always(temporality)))
		meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
		counted := newTotals(temporality)
		for life := range int64(3) {
			telemetry, err := lifecycleotel.New(lifecycleotel.Options{MeterProvider: meters})
			require.NoError(t, err)
			host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{Name: "orders"})
			for range 5 {
				_, err := host.Durability().Commit(t.Context(), []byte("tx"))
				require.NoError(t, err)
			}
			for range 2 {
				var all metricdata.ResourceMetrics
				require.NoError(t, reader.Collect(t.Context(), &all))
				counted.take(&all)
				require.Equal(t, 5*(life+1), counted.counters["lifecycle.transaction.accepted lifecycle.host.name=orders"])
				require.NoError(t, host.Exit(t.Context()))
				shutdown(t, telemetry)
			}
		}
	}
}

func TestHostsWithEqualAttributesShareTheirSeries(t *testing.T) {
	telemetry, reader := newMetering(t, lifecycleotel.Options{Attributes: func(host string) []attribute.KeyValue {
		return []attribute.KeyValue{attribute.String("class", host[:1])}
	}})
	var all []*lifecycle.Host
	for _, name := range []string{"a1", "a2", "b1"} {
		host := telemetry.NewHost(nil, lifecycle.Options{Name: name})
		_, err := host.Durability().Commit(context.Background(), nil)
		require.NoError(t, err)
		all = append(all, host)
	}
	got := collect(t, reader)
	require.Equal(t, map[string]int64{"class=a": 2, "class=b": 1}, sums(got["lifecycle.transaction.accepted"]))
	require.Equal(t, map[string]int64{"class=a,lifecycle.host.state=running": 2, "class=b,lifecycle.host.state=running": 1}, sums(got["lifecycle.host.count"]))
	for _, host := range all {
		require.NoError(t, host.Exit(context.Background()))
	}
	shutdown(t, telemetry)
}

func TestSeriesAreBoundedAndEachTransactionIsCountedInOneOnly(t *testing.T) {
	for _, temporality := range temporalities {
		synctest.Test(t, func(t *testing.T) {
			reader := sdkmetric.NewManualReader(sdkmetric.WithTemporalitySelector(always(temporality)))
			telemetry, err := lifecycleotel.New(lifecycleotel.Options{MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))})
			require.NoError(t, err)
			counted := map[string]int64{}
			take := func() {
				for at, n := range sums(collect(t, reader)["lifecycle.transaction.accepted"]) {
					if temporality == metricdata.DeltaTemporality {
						n += counted[at]
					}
					require.GreaterOrEqual(t, n, counted[at], "a counter fell: %s", at)
					counted[at] = n
				}
			}
			life := func(name string, commits int) {
				host := telemetry.NewHost(nil, lifecycle.Options{Name: name})
				for range commits {
					_, err := host.Durability().Commit(t.Context(), nil)
					require.NoError(t, err)
				}
				require.NoError(t, host.Exit(t.Context()))
				synctest.Wait()
			}
			const hosts = 1200
			for i := range hosts {
				life(fmt.Sprint(i), 2)
				if i%100 == 0 {
					take()
				}
			}
			life("0", 1) // comes back, after all others
			take()
			require.Len(t, counted, 1001)
			require.Equal(t, int64(3), counted["lifecycle.host.name=0"])
			require.Equal(t, int64(400), counted["lifecycle.host.name=_OTHER"])
			var all int64
			for _, n := range counted {
				all += n
			}
			require.Equal(t, int64(2*hosts+1), all)
			if temporality == metricdata.CumulativeTemporality {
				got := collect(t, reader)
				require.Len(t, got["lifecycle.exit.duration"].Data.(metricdata.Histogram[float64]).DataPoints, 1001)
			}
			shutdown(t, telemetry)
		})
	}
}

func TestTaskNamesAreBounded(t *testing.T) {
	telemetry, reader := newMetering(t, lifecycleotel.Options{})
	host := telemetry.NewHost(nil, lifecycle.Options{Name: "h"})
	for i := range 150 {
		require.NoError(t, host.Go(fmt.Sprint("connection ", i), func(ctx context.Context) error { <-ctx.Done(); return nil }))
	}
	for range 2 {
		got := sums(collect(t, reader)["lifecycle.task.active"])
		require.Len(t, got, 101)
		require.Equal(t, int64(50), got["lifecycle.host.name=h,lifecycle.task.name=_OTHER"])
	}
	require.NoError(t, host.Exit(context.Background()))
	shutdown(t, telemetry)
}

func TestACollectionTakesNoGoroutineProfile(t *testing.T) {
	telemetry, reader := newMetering(t, lifecycleotel.Options{})
	release := make(chan struct{})
	waits := make(chan struct{})
	host := telemetry.NewHost(nil, lifecycle.Options{Observer: lifecycle.Observer{PhaseStart: func(e lifecycle.PhaseEvent) {
		if e.Phase == lifecycle.PhaseAwaitTasks {
			close(waits)
		}
	}}})
	for range 5000 {
		require.NoError(t, host.Go("deaf", func(context.Context) error { <-release; return nil }))
	}
	host.Fail(nil)
	<-waits
	measured := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	profile := measured(func() { host.Report() })
	collection := measured(func() { collect(t, reader) })
	require.Greater(t, profile, uint64(5000*100), "a profile has a record for each goroutine")
	require.Less(t, collection, profile/10)
	close(release)
	require.NoError(t, host.Exit(context.Background()))
	shutdown(t, telemetry)
}

func TestManyHostsReadersAndCollectionsAtOnce(t *testing.T) {
	one, two := sdkmetric.NewManualReader(), sdkmetric.NewManualReader()
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(one), sdkmetric.WithReader(two))
	telemetry, err := lifecycleotel.New(lifecycleotel.Options{MeterProvider: provider})
	require.NoError(t, err)
	var hosts, readers sync.WaitGroup
	stop := make(chan struct{})
	for _, reader := range []sdkmetric.Reader{one, two} {
		readers.Go(func() {
			var last int64
			for {
				select {
				case <-stop:
					return
				default:
				}
				var now int64
				for _, n := range sums(collect(t, reader)["lifecycle.transaction.accepted"]) {
					now += n
				}
				if now < last {
					t.Errorf("accepted fell from %d to %d", last, now)
				}
				last = now
			}
		})
	}
	const workers, lives, commits = 4, 25, 8
	for w := range workers {
		hosts.Go(func() {
			for i := range lives {
				host := telemetry.NewHost(&lifecycletest.Log{First: uint64(i * commits)}, lifecycle.Options{Name: fmt.Sprint(w / 2)})
				for range commits {
					if _, err := host.Durability().Commit(context.Background(), []byte("tx")); err != nil {
						t.Error(err)
					}
				}
				if err := host.Exit(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	hosts.Wait()
	close(stop)
	readers.Wait()
	want := map[string]int64{"lifecycle.host.name=0": 2 * lives * commits, "lifecycle.host.name=1": 2 * lives * commits}
	for _, reader := range []sdkmetric.Reader{one, two} {
		require.Equal(t, want, sums(collect(t, reader)["lifecycle.transaction.accepted"]))
		require.Equal(t, want, sums(collect(t, reader)["lifecycle.transaction.durable"]))
	}
	shutdown(t, telemetry)
}

func TestAShutdownInTheMidstOfAStormLosesNothingOfTheHostsThatHadExited(t *testing.T) {
	telemetry, reader := newMetering(t, lifecycleotel.Options{})
	var begun atomic.Bool // Shutdown has
	var before, all atomic.Int64
	var storm sync.WaitGroup
	for w := range 4 {
		storm.Go(func() {
			for range 40 {
				host := telemetry.NewHost(&lifecycletest.Log{}, lifecycle.Options{Name: fmt.Sprint(w % 2)})
				for range 5 {
					if _, err := host.Durability().Commit(context.Background(), []byte("tx")); err != nil {
						t.Error(err)
					}
				}
				all.Add(5)
				if err := host.Exit(context.Background()); err != nil {
					t.Error(err)
				}
				if !begun.Load() {
					before.Add(5)
				}
			}
		})
	}
	accepted := func() (n int64) {
		for _, own := range sums(collect(t, reader)["lifecycle.transaction.accepted"]) {
			n += own
		}
		return n
	}
	last := int64(0)
	for last < 100 {
		now := accepted()
		require.GreaterOrEqual(t, now, last)
		last = now
	}
	begun.Store(true)
	shutdown(t, telemetry)
	end := accepted()
	require.GreaterOrEqual(t, end, before.Load())
	storm.Wait()
	require.Equal(t, end, accepted(), "it stands still")
	require.Less(t, end, all.Load()+1)
}

func TestAnInstrumentThatTheMeterRefusesIsAnError(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	provider := refusing{sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))}
	_, err := lifecycleotel.New(lifecycleotel.Options{MeterProvider: provider})
	require.ErrorIs(t, err, errRefused)
}

var errRefused = errors.New("no more instruments")

type refusing struct{ metric.MeterProvider }

func (p refusing) Meter(name string, options ...metric.MeterOption) metric.Meter {
	return refusingMeter{p.MeterProvider.Meter(name, options...)}
}

type refusingMeter struct{ metric.Meter }

func (m refusingMeter) Int64ObservableCounter(string, ...metric.Int64ObservableCounterOption) (metric.Int64ObservableCounter, error) {
	return nil, errRefused
}
