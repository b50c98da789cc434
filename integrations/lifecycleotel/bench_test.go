package lifecycleotel

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"github.com/seed080d9131/lifecycle"
)

var batch = lifecycle.SyncEvent{Host: "orders", Txs: 12, Bytes: 1200, Durable: 1, Duration: 800 * time.Microsecond}

func syncedHost(t testing.TB, opts Options) *hosted {
	telemetry, err := New(opts)
	require.NoError(t, err)
	h := newHosted(telemetry, "orders", attribute.NewSet(HostNameKey.String("orders")))
	h.synced(batch) // the first makes the series
	return h
}

func TestTheSyncedObserverAllocatesNothing(t *testing.T) {
	h := syncedHost(t, Options{MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))})
	require.Zero(t, testing.AllocsPerRun(1000, func() { h.synced(batch) }))
}

func BenchmarkSynced(b *testing.B) {
	b.Run("sdk", func(b *testing.B) {
		h := syncedHost(b, Options{MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))})
		b.ReportAllocs()
		for b.Loop() {
			h.synced(batch)
		}
	})
	b.Run("noop", func(b *testing.B) {
		h := syncedHost(b, Options{MeterProvider: noop.NewMeterProvider()})
		b.ReportAllocs()
		for b.Loop() {
			h.synced(batch)
		}
	})
}
