package lifecycleprom

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

var batches = []lifecycle.SyncEvent{
	{Host: "orders", Txs: 1, Bytes: 100, Duration: 200 * time.Microsecond},
	{Host: "orders", Txs: 37, Bytes: 5000, Duration: 3 * time.Millisecond},
	{Host: "orders", Txs: 900, Bytes: 1 << 20, Duration: 40 * time.Millisecond},
}

func syncedOf(t testing.TB) func(lifecycle.SyncEvent) {
	c := NewCollector(Options{})
	w := &watched{collector: c, series: c.seriesOf("orders")}
	synced := w.observer().Synced
	for _, e := range batches {
		synced(e)
	}
	return synced
}

func TestABatchCostsNoAllocation(t *testing.T) {
	synced := syncedOf(t)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		for _, e := range batches {
			synced(e)
		}
	}))
}

// A forced exit leaves an observer behind that does not return at once, and it may
// come back at any time.
func TestAnEventThatComesAfterTheEndIsNotCountedAgain(t *testing.T) {
	c := NewCollector(Options{})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	host := c.NewHost(nil, lifecycle.Options{Name: "orders"})
	w := c.hosts()[0]
	require.NoError(t, host.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { return nil }))
	require.NoError(t, host.Exit(t.Context()))
	before, err := registry.Gather()
	require.NoError(t, err)
	w.hookEnd(lifecycle.HookEvent{Host: "orders", Phase: lifecycle.PhaseRelease, Hook: "gauges", Err: lifecycle.ErrForced})
	w.phaseEnd(lifecycle.PhaseEvent{Host: "orders", Phase: lifecycle.PhaseExitModule, Duration: time.Second})
	w.stuckIn(lifecycle.StuckEvent{Host: "orders", Phase: lifecycle.PhaseRelease, Stragglers: []lifecycle.Straggler{{Kind: "hook", Name: "gauges", Count: 1}}})
	after, err := registry.Gather()
	require.NoError(t, err)
	require.Equal(t, fmt.Sprint(before), fmt.Sprint(after))
}

// BenchmarkExit is the life of a host with a hook and two tasks, from New to the end
// of its exit.
func BenchmarkExit(b *testing.B) {
	c := NewCollector(Options{})
	for name, newHost := range map[string]func(lifecycle.Log, lifecycle.Options) *lifecycle.Host{
		"lifecycle.New":     lifecycle.New,
		"Collector.NewHost": c.NewHost,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				host := newHost(nil, lifecycle.Options{Name: "orders"})
				idle := func(ctx context.Context) error { <-ctx.Done(); return nil }
				require.NoError(b, host.Go("import", idle))
				require.NoError(b, host.Every("cleanup", time.Hour, idle))
				require.NoError(b, host.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { return nil }))
				require.NoError(b, host.Exit(b.Context()))
			}
		})
	}
}

// BenchmarkSynced is what the durability actor waits for after each batch.
func BenchmarkSynced(b *testing.B) {
	synced := syncedOf(b)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		synced(batches[i%len(batches)])
		i++
	}
}

// BenchmarkScrape is a scrape of so many hosts with two tasks each, that have all
// synced once, each a series of its own or all together.
func BenchmarkScrape(b *testing.B) {
	for _, hosts := range []int{1, 100, 10000} {
		for name, label := range map[string]func(string, string) string{
			"own":      nil,
			"together": func(label, name string) string { return label },
		} {
			b.Run(fmt.Sprintf("%d/%s", hosts, name), func(b *testing.B) {
				c := NewCollector(Options{Label: label})
				registry := prometheus.NewRegistry()
				registry.MustRegister(c)
				var all []*lifecycle.Host
				for i := range hosts {
					host := c.NewHost(nil, lifecycle.Options{Name: fmt.Sprintf("db %d", i)})
					all = append(all, host)
					idle := func(ctx context.Context) error { <-ctx.Done(); return nil }
					require.NoError(b, host.Go("import", idle))
					require.NoError(b, host.Every("cleanup", time.Hour, idle))
					c.seriesOf(fmt.Sprintf("db %d", i)).synced(batches[i%len(batches)])
				}
				b.ReportAllocs()
				for b.Loop() {
					families, err := registry.Gather()
					require.NoError(b, err)
					require.NotEmpty(b, families)
				}
				for _, host := range all {
					require.NoError(b, host.Exit(b.Context()))
				}
			})
		}
	}
}
