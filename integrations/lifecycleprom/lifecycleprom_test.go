package lifecycleprom_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/lifecycleprom"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

// prom is a collector in a registry that checks each metric against its description.
type prom struct {
	*lifecycleprom.Collector
	t        testing.TB
	registry *prometheus.Registry
}

func newProm(t testing.TB, opts lifecycleprom.Options) *prom {
	p := &prom{lifecycleprom.NewCollector(opts), t, prometheus.NewPedanticRegistry()}
	p.registry.MustRegister(p.Collector)
	return p
}

// scrape is what there is to see: values by series, of histograms and summaries their
// _count and _sum.
func (p *prom) scrape() sample {
	p.t.Helper()
	families, err := p.registry.Gather()
	require.NoError(p.t, err)
	s := sample{}
	for _, f := range families {
		for _, m := range f.Metric {
			s.add(f, m)
		}
	}
	return s
}

type sample map[string]float64

func (s sample) add(f *dto.MetricFamily, m *dto.Metric) {
	var labels []string
	for _, l := range m.Label {
		labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	put := func(suffix string, value float64) {
		s[strings.TrimPrefix(f.GetName(), "lifecycle_")+suffix+"{"+strings.Join(labels, ",")+"}"] = value
	}
	switch f.GetType() {
	case dto.MetricType_COUNTER:
		put("", m.Counter.GetValue())
	case dto.MetricType_GAUGE:
		put("", m.Gauge.GetValue())
	case dto.MetricType_SUMMARY:
		put("_count", float64(m.Summary.GetSampleCount()))
		put("_sum", m.Summary.GetSampleSum())
	case dto.MetricType_HISTOGRAM:
		put("_count", float64(m.Histogram.GetSampleCount()))
		put("_sum", m.Histogram.GetSampleSum())
	}
}

// with returns the series whose names begin like that.
func (s sample) with(prefix string) sample {
	found := sample{}
	for name, value := range s {
		if strings.HasPrefix(name, prefix) {
			found[name] = value
		}
	}
	return found
}

// has fails unless these series have these values.
func (s sample) has(t testing.TB, want sample) {
	t.Helper()
	for name, value := range want {
		require.Equal(t, value, s[name], name)
	}
}

// requireMonotonic fails if anything that only grows has fallen, or gone.
func requireMonotonic(t testing.TB, before, after sample) {
	t.Helper()
	for name, value := range before {
		family, _, _ := strings.Cut(name, "{")
		if strings.HasSuffix(family, "_total") || strings.HasSuffix(family, "_count") || strings.HasSuffix(family, "_sum") {
			now, there := after[name]
			require.True(t, there, "%s is gone", name)
			require.GreaterOrEqual(t, now, value, name)
		}
	}
}

// slowLog takes a time to sync, that of a bubble.
type slowLog struct {
	lifecycletest.Log
	sync time.Duration
}

func (l *slowLog) Sync() error {
	time.Sleep(l.sync)
	return l.Log.Sync()
}

func commit(t testing.TB, h *lifecycle.Host, txs ...string) {
	t.Helper()
	for _, tx := range txs {
		_, err := h.Durability().Commit(t.Context(), []byte(tx))
		require.NoError(t, err)
	}
}

var errBroken = errors.New("broken")

// everything is a host of each kind, in a bubble's time, so that each metric has
// something to show. It returns what lets the last one's exit end.
func everything(t testing.TB, p *prom) (release func()) {
	failing := p.NewHost(&lifecycletest.Log{}, lifecycle.Options{Name: "orders"})
	commit(t, failing, "a", "bc")
	require.NoError(t, failing.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { return errBroken }))
	require.NoError(t, failing.Go("import", func(context.Context) error { return errBroken }))
	require.ErrorIs(t, failing.Exit(t.Context()), errBroken)

	stuck := p.NewHost(nil, lifecycle.Options{Name: "orders", StuckAfter: time.Second})
	held := make(chan struct{})
	require.NoError(t, stuck.Go("index rebuild", func(context.Context) error { <-held; return nil }))
	require.NoError(t, stuck.Every("cleanup", time.Second, func(context.Context) error { return errBroken }))
	time.Sleep(2500 * time.Millisecond)
	stuck.Fail(nil)
	time.Sleep(2500 * time.Millisecond)
	synctest.Wait()
	return func() {
		close(held)
		require.NoError(t, stuck.Exit(t.Context()))
	}
}

func TestNamesUnitsAndHelpsFollowTheConventionsByPrometheusOwnLinter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProm(t, lifecycleprom.Options{})
		release := everything(t, p)
		problems, err := testutil.GatherAndLint(p.registry)
		require.NoError(t, err)
		require.Empty(t, problems)

		// It has seen all that there are.
		described := make(chan *prometheus.Desc, 100)
		p.Describe(described)
		close(described)
		families, err := p.registry.Gather()
		require.NoError(t, err)
		for desc := range described {
			require.True(t, slices.ContainsFunc(families, func(f *dto.MetricFamily) bool {
				return strings.Contains(desc.String(), fmt.Sprintf("%q", f.GetName()))
			}), "%s was not gathered", desc)
		}
		release()
	})
}

func TestAScrapeShowsWhatItsHostsDoAndHaveDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProm(t, lifecycleprom.Options{})
		log := &slowLog{sync: 3 * time.Millisecond}
		log.First = 1000
		host := p.NewHost(log, lifecycle.Options{Name: "orders"})
		commit(t, host, "12345", "1234567", strings.Repeat("x", 300))
		call, err := host.Enter()
		require.NoError(t, err)
		ticks := 0
		require.NoError(t, host.Every("cleanup", 10*time.Second, func(context.Context) error {
			if ticks++; ticks == 2 {
				return errBroken
			}
			return nil
		}))
		require.NoError(t, host.Go("import", func(ctx context.Context) error { <-ctx.Done(); return nil }))
		time.Sleep(5 * time.Second)
		require.NoError(t, host.Go("import", func(ctx context.Context) error { <-ctx.Done(); return nil }))
		time.Sleep(30 * time.Second)
		_, err = host.Durability().Append(t.Context(), []byte("on its way"))
		require.NoError(t, err)
		synctest.Wait()

		require.NoError(t, testutil.GatherAndCompare(p.registry, strings.NewReader(`
# HELP lifecycle_batch_bytes Bytes of the transactions of a batch that became durable.
# TYPE lifecycle_batch_bytes histogram
lifecycle_batch_bytes_bucket{host="orders",le="256"} 2
lifecycle_batch_bytes_bucket{host="orders",le="1024"} 3
lifecycle_batch_bytes_bucket{host="orders",le="4096"} 3
lifecycle_batch_bytes_bucket{host="orders",le="16384"} 3
lifecycle_batch_bytes_bucket{host="orders",le="65536"} 3
lifecycle_batch_bytes_bucket{host="orders",le="262144"} 3
lifecycle_batch_bytes_bucket{host="orders",le="1.048576e+06"} 3
lifecycle_batch_bytes_bucket{host="orders",le="4.194304e+06"} 3
lifecycle_batch_bytes_bucket{host="orders",le="1.6777216e+07"} 3
lifecycle_batch_bytes_bucket{host="orders",le="6.7108864e+07"} 3
lifecycle_batch_bytes_bucket{host="orders",le="+Inf"} 3
lifecycle_batch_bytes_sum{host="orders"} 312
lifecycle_batch_bytes_count{host="orders"} 3
# HELP lifecycle_batch_transactions Transactions of a batch that became durable.
# TYPE lifecycle_batch_transactions histogram
lifecycle_batch_transactions_bucket{host="orders",le="1"} 3
lifecycle_batch_transactions_bucket{host="orders",le="4"} 3
lifecycle_batch_transactions_bucket{host="orders",le="16"} 3
lifecycle_batch_transactions_bucket{host="orders",le="64"} 3
lifecycle_batch_transactions_bucket{host="orders",le="256"} 3
lifecycle_batch_transactions_bucket{host="orders",le="1024"} 3
lifecycle_batch_transactions_bucket{host="orders",le="4096"} 3
lifecycle_batch_transactions_bucket{host="orders",le="16384"} 3
lifecycle_batch_transactions_bucket{host="orders",le="+Inf"} 3
lifecycle_batch_transactions_sum{host="orders"} 3
lifecycle_batch_transactions_count{host="orders"} 3
# HELP lifecycle_calls_in_flight Client calls that have entered and not left.
# TYPE lifecycle_calls_in_flight gauge
lifecycle_calls_in_flight{host="orders"} 1
# HELP lifecycle_exits_total Exits that have ended.
# TYPE lifecycle_exits_total counter
lifecycle_exits_total{host="orders",outcome="clean"} 0
lifecycle_exits_total{host="orders",outcome="failed"} 0
lifecycle_exits_total{host="orders",outcome="forced"} 0
# HELP lifecycle_hosts Hosts that are running or exiting.
# TYPE lifecycle_hosts gauge
lifecycle_hosts{host="orders",state="exiting"} 0
lifecycle_hosts{host="orders",state="running"} 1
# HELP lifecycle_log_failures_total Hosts whose log has failed, after which a host exits.
# TYPE lifecycle_log_failures_total counter
lifecycle_log_failures_total{host="orders"} 0
# HELP lifecycle_queue_bytes Bytes that are accepted and not yet written, 32 for each transaction among them.
# TYPE lifecycle_queue_bytes gauge
lifecycle_queue_bytes{host="orders"} 0
# HELP lifecycle_sync_duration_seconds How long the log took to append and sync a batch that became durable.
# TYPE lifecycle_sync_duration_seconds histogram
lifecycle_sync_duration_seconds_bucket{host="orders",le="2.5e-05"} 0
lifecycle_sync_duration_seconds_bucket{host="orders",le="5e-05"} 0
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.0001"} 0
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.00025"} 0
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.0005"} 0
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.001"} 0
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.0025"} 0
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.005"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.01"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.025"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.05"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.1"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.25"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="0.5"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="1"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="2.5"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="10"} 3
lifecycle_sync_duration_seconds_bucket{host="orders",le="+Inf"} 3
lifecycle_sync_duration_seconds_sum{host="orders"} 0.009000000000000001
lifecycle_sync_duration_seconds_count{host="orders"} 3
# HELP lifecycle_task_failed_ticks_total Ticks of periodic tasks that failed.
# TYPE lifecycle_task_failed_ticks_total counter
lifecycle_task_failed_ticks_total{host="orders",task="cleanup"} 1
# HELP lifecycle_task_failures_total Tasks that failed, each of which makes its host exit.
# TYPE lifecycle_task_failures_total counter
lifecycle_task_failures_total{host="orders",task="cleanup"} 0
lifecycle_task_failures_total{host="orders",task="import"} 0
# HELP lifecycle_task_oldest_age_seconds How long the oldest task of this name has been running.
# TYPE lifecycle_task_oldest_age_seconds gauge
lifecycle_task_oldest_age_seconds{host="orders",task="cleanup"} 35
lifecycle_task_oldest_age_seconds{host="orders",task="import"} 35
# HELP lifecycle_task_ticks_total Ticks of periodic tasks that have ended, failed ones among them.
# TYPE lifecycle_task_ticks_total counter
lifecycle_task_ticks_total{host="orders",task="cleanup"} 3
# HELP lifecycle_tasks_running Background tasks that run.
# TYPE lifecycle_tasks_running gauge
lifecycle_tasks_running{host="orders",task="cleanup"} 1
lifecycle_tasks_running{host="orders",task="import"} 2
# HELP lifecycle_transactions_accepted_total Transactions that Append accepted.
# TYPE lifecycle_transactions_accepted_total counter
lifecycle_transactions_accepted_total{host="orders"} 4
# HELP lifecycle_transactions_durable_total Transactions that became durable.
# TYPE lifecycle_transactions_durable_total counter
lifecycle_transactions_durable_total{host="orders"} 3
# HELP lifecycle_transactions_lost_total Transactions that were accepted and that were not durable, or not known to be, when the exit had ended.
# TYPE lifecycle_transactions_lost_total counter
lifecycle_transactions_lost_total{host="orders"} 0
`)))
		call.Leave()
		require.NoError(t, host.Exit(t.Context()))
	})
}

func TestWhatIsAcceptedAndUnwrittenIsInTheQueue(t *testing.T) {
	p := newProm(t, lifecycleprom.Options{})
	log := &lifecycletest.Log{}
	reached, release := log.BlockAt(lifecycletest.Append, 1)
	host := p.NewHost(log, lifecycle.Options{Name: "orders"})
	for range 3 {
		_, err := host.Durability().Append(t.Context(), make([]byte, 100))
		require.NoError(t, err)
	}
	<-reached
	s := p.scrape()
	require.EqualValues(t, 3*(100+32), s[`queue_bytes{host="orders"}`])
	require.EqualValues(t, 3, s[`transactions_accepted_total{host="orders"}`])
	require.EqualValues(t, 0, s[`transactions_durable_total{host="orders"}`])
	release()
	require.NoError(t, host.Exit(t.Context()))
	require.Zero(t, p.scrape()[`queue_bytes{host="orders"}`])
}

func TestWhomAPhaseWaitsForIsShownAndGoneWhenThePhaseHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProm(t, lifecycleprom.Options{})
		log := &lifecycletest.Log{}
		closing, letClose := log.BlockAt(lifecycletest.Close, 1)
		host := p.NewHost(log, lifecycle.Options{Name: "orders", StuckAfter: time.Second})
		call, err := host.Enter()
		require.NoError(t, err)
		task, hook := make(chan struct{}), make(chan struct{})
		for range 2 {
			require.NoError(t, host.Go("import", func(context.Context) error { <-task; return nil }))
		}
		require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(context.Context) error { <-hook; return nil }))
		require.Empty(t, p.scrape().with("exit_stragglers"))

		host.Fail(nil)
		waits := func(phase lifecycle.Phase, kind, name string, count float64) {
			t.Helper()
			synctest.Wait()
			require.Empty(t, p.scrape().with("exit_stragglers"), "none was reported yet")
			time.Sleep(1500 * time.Millisecond)
			s := p.scrape()
			require.Equal(t, sample{
				fmt.Sprintf(`exit_stragglers{host="orders",kind=%q,name=%q,phase=%q}`, kind, name, phase): count,
			}, s.with("exit_stragglers"))
			require.Equal(t, sample{fmt.Sprintf(`exiting_hosts{host="orders",phase=%q}`, phase): 1}, s.with("exiting_hosts"))
			require.EqualValues(t, 1, s[`hosts{host="orders",state="exiting"}`])
			require.Zero(t, s[`hosts{host="orders",state="running"}`])
		}
		waits(lifecycle.PhaseExitModule, "call", "Enter", 1)
		call.Leave()
		waits(lifecycle.PhaseAwaitTasks, "task", "import", 2)
		close(task)
		waits(lifecycle.PhaseCheckpoint, "hook", "snapshot", 1)
		close(hook)
		<-closing
		waits(lifecycle.PhaseCloseLog, "log", "close", 1)
		letClose()
		require.NoError(t, host.Exit(t.Context()))
		s := p.scrape()
		require.Empty(t, s.with("exit_stragglers"))
		require.Empty(t, s.with("exiting_hosts"))
		require.Equal(t, sample{`hosts{host="orders",state="exiting"}`: 0, `hosts{host="orders",state="running"}`: 0}, s.with("hosts"))
		require.Equal(t, sample{
			`exit_phase_duration_seconds_sum{host="orders",phase="exit module"}`:      1.5,
			`exit_phase_duration_seconds_sum{host="orders",phase="cancel tasks"}`:     0,
			`exit_phase_duration_seconds_sum{host="orders",phase="await tasks"}`:      1.5,
			`exit_phase_duration_seconds_sum{host="orders",phase="checkpoint"}`:       1.5,
			`exit_phase_duration_seconds_sum{host="orders",phase="close durability"}`: 0,
			`exit_phase_duration_seconds_sum{host="orders",phase="close log"}`:        1.5,
			`exit_phase_duration_seconds_sum{host="orders",phase="release"}`:          0,
		}, s.with("exit_phase_duration_seconds_sum"))
		require.EqualValues(t, 1.5, s[`exit_hook_duration_seconds_sum{hook="snapshot",host="orders",phase="checkpoint"}`])
	})
}

func TestAStragglerThatAForcedExitLeftBehindIsNoLongerWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProm(t, lifecycleprom.Options{})
		log := &lifecycletest.Log{}
		syncing, letSync := log.BlockAt(lifecycletest.Sync, 1)
		held := make(chan struct{})
		host := p.NewHost(log, lifecycle.Options{Name: "orders", StuckAfter: time.Second, Observer: lifecycle.Observer{
			PhaseStart: func(e lifecycle.PhaseEvent) { // hangs until the time of all observers is over
				if e.Phase == lifecycle.PhaseAwaitTasks {
					<-held
				}
			},
		}})
		require.NoError(t, host.Go("import", func(context.Context) error { <-held; return nil }))
		_, err := host.Durability().Append(t.Context(), []byte("a"))
		require.NoError(t, err)
		<-syncing
		host.Fail(nil)
		time.Sleep(1500 * time.Millisecond)
		require.EqualValues(t, 1, p.scrape()[`exit_stragglers{host="orders",kind="task",name="import",phase="await tasks"}`])
		forced := make(chan error)
		go func() { forced <- host.ForceExit(t.Context()) }()
		time.Sleep(300 * time.Millisecond)
		s := p.scrape()
		require.Equal(t, sample{`exiting_hosts{host="orders",phase="close durability"}`: 1}, s.with("exiting_hosts"))
		require.Empty(t, s.with("exit_stragglers"))
		letSync()
		require.ErrorIs(t, <-forced, lifecycle.ErrForced)
		close(held)
		s = p.scrape()
		require.EqualValues(t, 1, s[`exits_total{host="orders",outcome="forced"}`])
		require.Len(t, s.with("exit_phase_duration_seconds_count"), 7)
	})
}

// A goroutine profile of that many goroutines takes megabytes, so a scrape that took
// one would show.
func TestAScrapeDuringAnExitThatHangsTakesNoGoroutineProfile(t *testing.T) {
	p := newProm(t, lifecycleprom.Options{})
	waits := make(chan struct{})
	host := p.NewHost(nil, lifecycle.Options{Name: "orders", StuckAfter: time.Hour, Observer: lifecycle.Observer{
		PhaseStart: func(e lifecycle.PhaseEvent) {
			if e.Phase == lifecycle.PhaseAwaitTasks {
				close(waits)
			}
		},
	}})
	held := make(chan struct{})
	var parked sync.WaitGroup
	const goroutines = 5000
	for range goroutines {
		parked.Go(func() { <-held })
	}
	require.NoError(t, host.Go("import", func(context.Context) error { <-held; return nil }))
	host.Fail(nil)
	<-waits
	p.scrape()

	allocatedBy := func(f func()) uint64 {
		least := ^uint64(0)
		for range 5 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			f()
			runtime.ReadMemStats(&after)
			least = min(least, after.TotalAlloc-before.TotalAlloc)
		}
		return least
	}
	profile := allocatedBy(func() { host.Report() })
	require.Greater(t, profile, uint64(goroutines*100), "the measure is none")
	require.Less(t, allocatedBy(func() { p.scrape() }), profile/4)
	close(held)
	require.NoError(t, host.Exit(t.Context()))
	parked.Wait()
}

func TestAHostThatIsLaunchedAgainUnderItsNameGoesOnCounting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProm(t, lifecycleprom.Options{})
		log := &lifecycletest.Log{}
		last := sample{}
		for launch := range 3 {
			host := p.NewHost(log, lifecycle.Options{Name: "orders"})
			require.NoError(t, host.Every("cleanup", time.Second, func(context.Context) error { return errBroken }))
			require.NoError(t, host.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { time.Sleep(time.Second); return nil }))
			for range 4 {
				commit(t, host, "tx")
				now := p.scrape()
				requireMonotonic(t, last, now)
				last = now
			}
			time.Sleep(2500 * time.Millisecond)
			require.NoError(t, host.Exit(t.Context()))
			for range 2 { // at the first scrape after its end, and at the next
				now := p.scrape()
				requireMonotonic(t, last, now)
				last = now
				n := float64(launch + 1)
				now.has(t, sample{
					`transactions_accepted_total{host="orders"}`:                                    4 * n,
					`transactions_durable_total{host="orders"}`:                                     4 * n,
					`sync_duration_seconds_count{host="orders"}`:                                    4 * n,
					`batch_bytes_sum{host="orders"}`:                                                8 * n,
					`task_ticks_total{host="orders",task="cleanup"}`:                                2 * n,
					`task_failed_ticks_total{host="orders",task="cleanup"}`:                         2 * n,
					`tasks_running{host="orders",task="cleanup"}`:                                   0,
					`exits_total{host="orders",outcome="clean"}`:                                    n,
					`exit_phase_duration_seconds_count{host="orders",phase="release"}`:              n,
					`exit_phase_duration_seconds_sum{host="orders",phase="release"}`:                n,
					`exit_hook_duration_seconds_count{hook="gauges",host="orders",phase="release"}`: n,
					`exit_hook_duration_seconds_sum{hook="gauges",host="orders",phase="release"}`:   n,
					`exit_hook_failures_total{hook="gauges",host="orders",phase="release"}`:         0,
					`log_failures_total{host="orders"}`:                                             0,
				})
			}
			log = log.Reopen()
		}
	})
}

func TestHostsThatCameAndWentBetweenTwoScrapesAreCounted(t *testing.T) {
	p := newProm(t, lifecycleprom.Options{})
	p.scrape()
	const hosts = 300 // more than are kept
	for i := range hosts {
		host := p.NewHost(&lifecycletest.Log{}, lifecycle.Options{Name: "orders"})
		commit(t, host, "a", "b")
		require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(context.Context) error { return nil }))
		if i%3 == 0 {
			require.NoError(t, host.Go("import", func(context.Context) error { return errBroken }))
			require.ErrorIs(t, host.Exit(t.Context()), errBroken)
		} else {
			require.NoError(t, host.Exit(t.Context()))
		}
	}
	s := p.scrape()
	s.has(t, sample{
		`transactions_durable_total{host="orders"}`:                                          2 * hosts,
		`sync_duration_seconds_count{host="orders"}`:                                         2 * hosts,
		`exits_total{host="orders",outcome="clean"}`:                                         2 * hosts / 3,
		`exits_total{host="orders",outcome="failed"}`:                                        hosts / 3,
		`exits_total{host="orders",outcome="forced"}`:                                        0,
		`task_failures_total{host="orders",task="import"}`:                                   hosts / 3,
		`exit_hook_duration_seconds_count{hook="snapshot",host="orders",phase="checkpoint"}`: hosts,
	})
	for p := lifecycle.PhaseExitModule; p <= lifecycle.PhaseRelease; p++ {
		name := fmt.Sprintf(`exit_phase_duration_seconds_count{host="orders",phase=%q}`, p)
		require.EqualValues(t, hosts, s[name], name)
	}
}

func TestHostsThatNobodyScrapesAreNotKeptForEver(t *testing.T) {
	p := newProm(t, lifecycleprom.Options{})
	var collected atomic.Int64
	const hosts = 1000
	for range hosts {
		host := p.NewHost(nil, lifecycle.Options{Name: "orders"})
		runtime.AddCleanup(host, func(struct{}) { collected.Add(1) }, struct{}{})
		require.NoError(t, host.Exit(t.Context()))
	}
	deadline := time.Now().Add(10 * time.Second)
	for collected.Load() < hosts-200 && time.Now().Before(deadline) {
		runtime.GC()
	}
	require.GreaterOrEqual(t, collected.Load(), int64(hosts-200))
	require.EqualValues(t, hosts, p.scrape()[`exits_total{host="orders",outcome="clean"}`])
}

func TestTwoHostsOfOneNameAreOneSeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProm(t, lifecycleprom.Options{})
		var hosts []*lifecycle.Host
		for range 2 {
			host := p.NewHost(&lifecycletest.Log{}, lifecycle.Options{}) // both get the default name
			hosts = append(hosts, host)
			commit(t, host, "a", "b")
			_, err := host.Enter()
			require.NoError(t, err)
			require.NoError(t, host.Go("import", func(ctx context.Context) error { <-ctx.Done(); return nil }))
		}
		synctest.Wait() // the observer is told after those who wait
		p.scrape().has(t, sample{
			`hosts{host="host",state="running"}`:        2,
			`calls_in_flight{host="host"}`:              2,
			`tasks_running{host="host",task="import"}`:  2,
			`transactions_durable_total{host="host"}`:   4,
			`sync_duration_seconds_count{host="host"}`:  4,
			`exits_total{host="host",outcome="forced"}`: 0,
		})
		for _, host := range hosts {
			require.Error(t, host.ForceExit(t.Context())) // the call never leaves
		}
		require.EqualValues(t, 2, p.scrape()[`exits_total{host="host",outcome="forced"}`])
		require.EqualValues(t, 4, p.scrape()[`transactions_durable_total{host="host"}`])
	})
}

func TestAForcedExitThatPassesObserversOverIsCountedInFullAndOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProm(t, lifecycleprom.Options{})
		log := &lifecycletest.Log{}
		syncing, letSync := log.BlockAt(lifecycletest.Sync, 2)
		held := make(chan struct{})
		var told atomic.Int64
		host := p.NewHost(log, lifecycle.Options{Name: "orders", Observer: lifecycle.Observer{
			PhaseEnd: func(lifecycle.PhaseEvent) { told.Add(1); <-held },
			HookEnd:  func(lifecycle.HookEvent) { told.Add(1); <-held },
		}})
		commit(t, host, "a")
		for _, phase := range []lifecycle.Phase{lifecycle.PhaseExitModule, lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease} {
			for range 2 {
				require.NoError(t, host.OnExit(phase, "hook", func(context.Context) error { return errBroken }))
			}
		}
		_, err := host.Durability().Append(t.Context(), []byte("b"))
		require.NoError(t, err)
		<-syncing
		done, cancel := context.WithCancel(t.Context())
		cancel()
		host.Fail(nil)
		synctest.Wait() // the first hook's observer hangs
		require.ErrorIs(t, host.ForceExit(done), lifecycle.ErrForced)
		require.EqualValues(t, 1, told.Load(), "all others were passed over")
		want := func() {
			t.Helper()
			s := p.scrape()
			require.Equal(t, sample{
				`exits_total{host="orders",outcome="clean"}`: 0, `exits_total{host="orders",outcome="failed"}`: 0, `exits_total{host="orders",outcome="forced"}`: 1,
			}, s.with("exits_total"))
			require.EqualValues(t, 2, s[`transactions_accepted_total{host="orders"}`])
			require.EqualValues(t, 1, s[`transactions_durable_total{host="orders"}`])
			require.EqualValues(t, 1, s[`transactions_lost_total{host="orders"}`])
			for name, value := range s.with("exit_phase_duration_seconds_count") {
				require.EqualValues(t, 1, value, name)
			}
			require.Len(t, s.with("exit_phase_duration_seconds_count"), 7)
			report := host.Report()
			ran, failed := map[lifecycle.Phase]int{}, map[lifecycle.Phase]int{}
			for _, phase := range report.Phases {
				for _, h := range phase.Hooks {
					failed[phase.Phase]++
					if !h.Skipped {
						ran[phase.Phase]++
					}
				}
			}
			require.Equal(t, map[lifecycle.Phase]int{lifecycle.PhaseExitModule: 2, lifecycle.PhaseCheckpoint: 2, lifecycle.PhaseRelease: 2}, failed)
			for phase, n := range failed {
				require.EqualValues(t, n, s[fmt.Sprintf(`exit_hook_failures_total{hook="hook",host="orders",phase=%q}`, phase)])
				require.EqualValues(t, ran[phase], s[fmt.Sprintf(`exit_hook_duration_seconds_count{hook="hook",host="orders",phase=%q}`, phase)])
			}
		}
		want()
		close(held) // what was left behind comes back
		letSync()
		synctest.Wait()
		want()
	})
}

// Hosts whose hooks, tasks, observers and logs hang, panic or obey, as it comes, forced
// at any moment: the oracle is each host's own report.
func TestWhateverAForcedExitPassesOverTheSumsAreThoseOfTheReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProm(t, lifecycleprom.Options{})
		random := rand.New(rand.NewPCG(2026, 11))
		held := make(chan struct{})
		done, cancel := context.WithCancel(t.Context())
		cancel()
		behave := func() func() {
			switch random.IntN(12) {
			case 0:
				return func() { <-held }
			case 1:
				return func() { panic(errBroken) }
			case 2:
				return runtime.Goexit
			case 3:
				return func() { time.Sleep(30 * time.Millisecond) }
			}
			return func() {}
		}
		var hosts []*lifecycle.Host
		var releases []func()
		var exits sync.WaitGroup
		for i := range 60 {
			log := &lifecycletest.Log{}
			flush := t.Context()
			if random.IntN(3) == 0 {
				_, release := log.BlockAt([]lifecycletest.Op{lifecycletest.Append, lifecycletest.Sync, lifecycletest.Close}[random.IntN(3)], 1)
				releases = append(releases, release)
				flush = done // or it would wait for that
			}
			phaseStart, phaseEnd, hookEnd, taskEnd := behave(), behave(), behave(), behave()
			host := p.NewHost(log, lifecycle.Options{Name: fmt.Sprint(i % 3), Observer: lifecycle.Observer{
				PhaseStart: func(lifecycle.PhaseEvent) { phaseStart() },
				PhaseEnd:   func(lifecycle.PhaseEvent) { phaseEnd() },
				HookEnd:    func(lifecycle.HookEvent) { hookEnd() },
				TaskEnd:    func(lifecycle.TaskEvent) { taskEnd() },
			}})
			hosts = append(hosts, host)
			_, err := host.Durability().Append(t.Context(), []byte("tx"))
			require.NoError(t, err)
			for _, phase := range []lifecycle.Phase{lifecycle.PhaseExitModule, lifecycle.PhaseCheckpoint, lifecycle.PhaseRelease} {
				for range 2 {
					hook, failure := behave(), []error{nil, errBroken}[random.IntN(2)]
					require.NoError(t, host.OnExit(phase, "hook", func(context.Context) error { hook(); return failure }))
				}
			}
			if task := behave(); random.IntN(2) == 0 {
				require.NoError(t, host.Go("task", func(ctx context.Context) error { <-ctx.Done(); task(); return nil }))
			}
			patience := time.Duration(random.IntN(100)) * time.Millisecond
			exits.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				if host.Exit(ctx) != nil {
					_ = host.ForceExit(flush)
				}
			})
		}
		last := sample{}
		for range 20 {
			time.Sleep(20 * time.Millisecond)
			now := p.scrape()
			requireMonotonic(t, last, now)
			last = now
		}
		exits.Wait()
		want := sample{}
		count := func(format string, args ...any) { want[fmt.Sprintf(format, args...)]++ }
		for i, host := range hosts {
			report, name := host.Report(), fmt.Sprintf("host=%q", fmt.Sprint(i%3))
			want["transactions_accepted_total{"+name+"}"] += float64(report.Accepted)
			want["transactions_durable_total{"+name+"}"] += float64(report.Durable)
			want["transactions_lost_total{"+name+"}"] += float64(report.Lost)
			count("exits_total{%s,outcome=%q}", name, report.Outcome)
			for _, phase := range report.Phases {
				count("exit_phase_duration_seconds_count{%s,phase=%q}", name, phase.Phase)
				for _, hook := range phase.Hooks {
					if !hook.Skipped {
						count(`exit_hook_duration_seconds_count{hook="hook",%s,phase=%q}`, name, phase.Phase)
					}
					if hook.Skipped || hook.Abandoned || hook.Error != "" {
						count(`exit_hook_failures_total{hook="hook",%s,phase=%q}`, name, phase.Phase)
					}
				}
			}
		}
		require.Greater(t, len(want), 3*(2+7+6))
		p.scrape().has(t, want)
		close(held) // what was left behind comes back
		for _, release := range releases {
			release()
		}
		time.Sleep(time.Second)
		p.scrape().has(t, want)
	})
}

func TestALogThatFailsIsCountedOnceWhereverItFails(t *testing.T) {
	for _, op := range []lifecycletest.Op{lifecycletest.Next, lifecycletest.Append, lifecycletest.Sync, lifecycletest.Close} {
		t.Run(op.String(), func(t *testing.T) {
			p := newProm(t, lifecycleprom.Options{})
			log := &lifecycletest.Log{}
			log.FailAt(op, 1, errBroken)
			host := p.NewHost(log, lifecycle.Options{Name: "orders"})
			if op == lifecycletest.Append || op == lifecycletest.Sync {
				call, err := host.Enter() // the exit waits for it
				require.NoError(t, err)
				_, err = host.Durability().Commit(t.Context(), []byte("a"))
				require.ErrorIs(t, err, errBroken)
				s := p.scrape()
				require.EqualValues(t, 1, s[`log_failures_total{host="orders"}`])
				require.Equal(t, 1.0, s[`hosts{host="orders",state="running"}`]+s[`hosts{host="orders",state="exiting"}`])
				call.Leave()
			}
			require.ErrorIs(t, host.Exit(t.Context()), errBroken)
			for range 2 {
				s := p.scrape()
				require.EqualValues(t, 1, s[`log_failures_total{host="orders"}`])
				require.EqualValues(t, 1, s[`exits_total{host="orders",outcome="failed"}`])
				require.Zero(t, s[`sync_duration_seconds_count{host="orders"}`])
				lost := s[`transactions_accepted_total{host="orders"}`] - s[`transactions_durable_total{host="orders"}`]
				require.Equal(t, lost, s[`transactions_lost_total{host="orders"}`])
			}
		})
	}
}

func TestLabelMakesFewSeriesOfManyNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProm(t, lifecycleprom.Options{Label: func(label, name string) string {
			kind, _, _ := strings.Cut(name, " ")
			return label + ":" + kind
		}})
		var hosts []*lifecycle.Host
		held := make(chan struct{})
		for i := range 50 {
			host := p.NewHost(&lifecycletest.Log{}, lifecycle.Options{Name: fmt.Sprintf("db %d", i), StuckAfter: time.Second})
			hosts = append(hosts, host)
			commit(t, host, "a")
			require.NoError(t, host.Go(fmt.Sprintf("import %d", i), func(context.Context) error { <-held; return errBroken }))
			require.NoError(t, host.Every(fmt.Sprintf("cleanup %d", i), time.Second, func(context.Context) error { return nil }))
			require.NoError(t, host.OnExit(lifecycle.PhaseRelease, fmt.Sprintf("gauges %d", i), func(context.Context) error { return errBroken }))
		}
		time.Sleep(1500 * time.Millisecond)
		for _, host := range hosts {
			host.Fail(nil)
		}
		time.Sleep(1500 * time.Millisecond)
		s := p.scrape()
		require.EqualValues(t, 50, s[`exit_stragglers{host="host:db",kind="task",name="name:import",phase="await tasks"}`])
		require.EqualValues(t, 50, s[`tasks_running{host="host:db",task="task:import"}`])
		require.EqualValues(t, 3, s[`task_oldest_age_seconds{host="host:db",task="task:import"}`])
		require.EqualValues(t, 50, s[`exiting_hosts{host="host:db",phase="await tasks"}`])
		require.EqualValues(t, 50, s[`task_ticks_total{host="host:db",task="task:cleanup"}`])
		close(held)
		for _, host := range hosts {
			require.Error(t, host.Exit(t.Context()))
		}
		s = p.scrape()
		require.EqualValues(t, 50, s[`task_failures_total{host="host:db",task="task:import"}`])
		require.EqualValues(t, 50, s[`exit_hook_failures_total{hook="hook:gauges",host="host:db",phase="release"}`])
		require.EqualValues(t, 50, s[`transactions_durable_total{host="host:db"}`])
		require.EqualValues(t, 50, s[`exits_total{host="host:db",outcome="failed"}`])
		require.EqualValues(t, 50, s[`task_ticks_total{host="host:db",task="task:cleanup"}`])
		require.Less(t, len(s), 60)
	})
}

func TestNoNameMakesAScrapeFail(t *testing.T) {
	for name, label := range map[string]func(string, string) string{
		"as they are": nil,
		"by a Label that panics": func(string, string) string {
			panic("broken")
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProm(t, lifecycleprom.Options{Label: label})
			for _, name := range []string{"\xff", "a\xfeb", "\ufffd", "", "new\nline", `quo"te`, "\x00", "ü"} {
				host := p.NewHost(nil, lifecycle.Options{Name: name})
				task := "task " + name
				require.NoError(t, host.OnExit(lifecycle.PhaseRelease, task, func(context.Context) error { return nil }))
				require.NoError(t, host.Go(task, func(context.Context) error { return errBroken }))
				p.scrape()
				require.ErrorIs(t, host.Exit(t.Context()), errBroken)
			}
			s := p.scrape()
			require.EqualValues(t, 2, s["exits_total{host=\"\ufffd\",outcome=\"failed\"}"], "two names that have become one")
			require.EqualValues(t, 1, s[`exits_total{host="host",outcome="failed"}`])
			require.EqualValues(t, 1, s[`task_failures_total{host="ü",task="task ü"}`])
		})
	}
}

func TestTheOwnObserverOfAHostIsToldAsWell(t *testing.T) {
	p := newProm(t, lifecycleprom.Options{})
	var synced, ended atomic.Int64
	host := p.NewHost(&lifecycletest.Log{}, lifecycle.Options{Observer: lifecycle.Observer{
		Synced:   func(lifecycle.SyncEvent) { synced.Add(1) },
		PhaseEnd: func(lifecycle.PhaseEvent) { ended.Add(1); panic("broken") },
	}})
	commit(t, host, "a")
	require.NoError(t, host.Exit(t.Context()))
	require.EqualValues(t, 1, synced.Load())
	require.EqualValues(t, 7, ended.Load())
	require.Len(t, p.scrape().with("exit_phase_duration_seconds_count"), 7)
}

// Databases come and go under a Controller while others scrape, each as fast as it can.
func TestScrapesDuringAStormOfLaunchesWritesAndExitsCountEverythingOnce(t *testing.T) {
	p := newProm(t, lifecycleprom.Options{})
	controller := lifecycle.NewController[int](lifecycle.ControllerOptions{})
	const keys, clients, rounds = 4, 6, 60
	var committed, launched [keys]atomic.Int64
	var logs [keys]*lifecycletest.Log
	var mu sync.Mutex
	var hosts [2][]*lifecycle.Host // by name
	open := func(key int) func(context.Context) (*lifecycle.Host, error) {
		return func(context.Context) (*lifecycle.Host, error) {
			launched[key].Add(1)
			if logs[key] == nil {
				logs[key] = &lifecycletest.Log{}
			} else {
				logs[key] = logs[key].Reopen()
			}
			host := p.NewHost(logs[key], lifecycle.Options{Name: fmt.Sprint("db ", key%2)}) // two hosts each
			mu.Lock()
			hosts[key%2] = append(hosts[key%2], host)
			mu.Unlock()
			return host, errors.Join(
				host.Every("cleanup", time.Millisecond, func(context.Context) error { return nil }),
				host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(context.Context) error { return nil }))
		}
	}
	var storm, scrapers sync.WaitGroup
	for client := range clients {
		storm.Go(func() {
			random := rand.New(rand.NewPCG(uint64(client), 1))
			for range rounds {
				key := random.IntN(keys)
				host, err := controller.Launch(t.Context(), key, open(key))
				if err != nil {
					t.Errorf("launch: %v", err)
					return
				}
				for range random.IntN(8) {
					if _, err := host.Durability().Commit(t.Context(), []byte("tx")); err == nil {
						committed[key].Add(1)
					}
				}
				switch random.IntN(4) {
				case 0:
					_ = controller.ForceExitHost(t.Context(), key)
				case 1:
					_ = controller.ExitHost(t.Context(), key)
				}
			}
		})
	}
	ended := make(chan struct{})
	for range 2 {
		scrapers.Go(func() {
			last := sample{}
			for over := false; !over; {
				select {
				case <-ended:
					over = true
				default:
				}
				now := p.scrape()
				requireMonotonic(t, last, now)
				for name, durable := range now.with("transactions_durable_total") {
					accepted := strings.Replace(name, "durable", "accepted", 1)
					if durable > now[accepted] {
						t.Errorf("%s: %v of %v", name, durable, now[accepted])
					}
				}
				last = now
			}
		})
	}
	storm.Wait()
	close(ended)
	scrapers.Wait()
	require.NoError(t, controller.Exit(t.Context()))
	s := p.scrape()
	for i := range 2 {
		host := fmt.Sprintf("host=%q", fmt.Sprint("db ", i))
		exits := 0.0
		for _, n := range s.with("exits_total{" + host) {
			exits += n
		}
		require.EqualValues(t, launched[i].Load()+launched[i+2].Load(), exits)
		durable := s["transactions_durable_total{"+host+"}"]
		require.EqualValues(t, committed[i].Load()+committed[i+2].Load(), durable)
		require.Equal(t, s["transactions_accepted_total{"+host+"}"], durable+s["transactions_lost_total{"+host+"}"])
		for phase := lifecycle.PhaseExitModule; phase <= lifecycle.PhaseRelease; phase++ {
			require.Equal(t, exits, s[fmt.Sprintf("exit_phase_duration_seconds_count{%s,phase=%q}", host, phase)])
		}
		// A hook that a forced exit leaves behind has run, and failed.
		hooks, ran, failed := 0.0, 0.0, 0.0
		for _, h := range hosts[i] {
			for _, hook := range h.Report().Phases[lifecycle.PhaseCheckpoint-1].Hooks {
				hooks++
				if !hook.Skipped {
					ran++
				}
				if hook.Skipped || hook.Abandoned {
					failed++
				}
			}
		}
		require.Equal(t, exits, hooks)
		require.Equal(t, ran, s[fmt.Sprintf(`exit_hook_duration_seconds_count{hook="snapshot",%s,phase="checkpoint"}`, host)])
		require.Equal(t, failed, s[fmt.Sprintf(`exit_hook_failures_total{hook="snapshot",%s,phase="checkpoint"}`, host)])
	}
}

// The numbers are those of the README.
func TestAHostIsFiftyFiveSeriesAndATaskThreeOrFive(t *testing.T) {
	p := newProm(t, lifecycleprom.Options{})
	series := func() int {
		families, err := p.registry.Gather()
		require.NoError(t, err)
		n := 0
		for _, f := range families {
			for _, m := range f.Metric {
				switch {
				case m.Histogram != nil:
					n += len(m.Histogram.Bucket) + 3 // +Inf, _sum, _count
				case m.Summary != nil:
					n += 2
				default:
					n++
				}
			}
		}
		return n
	}
	host := p.NewHost(nil, lifecycle.Options{Name: "orders"})
	require.Equal(t, 55, series())
	idle := func(ctx context.Context) error { <-ctx.Done(); return nil }
	require.NoError(t, host.Go("import", idle))
	require.Equal(t, 55+3, series())
	require.NoError(t, host.Every("cleanup", time.Hour, idle))
	require.Equal(t, 55+3+5, series())
	require.NoError(t, host.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { return nil }))
	require.NoError(t, host.Exit(t.Context()))
	require.Equal(t, 55+2+4+7*9+3, series(), "of the tasks all but their ages")
}

func TestTheCollectorCanBeRegisteredInSeveralRegistriesButNotTwiceInOne(t *testing.T) {
	p := newProm(t, lifecycleprom.Options{})
	require.Error(t, p.registry.Register(p.Collector))
	other := prometheus.NewRegistry()
	require.NoError(t, prometheus.WrapRegistererWith(prometheus.Labels{"class": "a"}, other).Register(p.Collector))
	host := p.NewHost(nil, lifecycle.Options{Name: "orders"})
	n, err := testutil.GatherAndCount(other)
	require.NoError(t, err)
	require.Positive(t, n)
	require.NoError(t, host.Exit(t.Context()))
}
