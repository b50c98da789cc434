package lifecycleprom

import "github.com/prometheus/client_golang/prometheus"

// The metrics that are not histograms, in the order of the README. Names follow
// https://prometheus.io/docs/practices/naming: base units, and _total for counters.
var (
	hostsDesc   = newDesc("hosts", "Hosts that are running or exiting.", "state")
	exitingDesc = newDesc("exiting_hosts", "Hosts whose exit is in this phase.", "phase")

	acceptedDesc    = newDesc("transactions_accepted_total", "Transactions that Append accepted.")
	durableDesc     = newDesc("transactions_durable_total", "Transactions that became durable.")
	lostDesc        = newDesc("transactions_lost_total", "Transactions that were accepted and that were not durable, or not known to be, when the exit had ended.")
	queueDesc       = newDesc("queue_bytes", "Bytes that are accepted and not yet written, 32 for each transaction among them.")
	callsDesc       = newDesc("calls_in_flight", "Client calls that have entered and not left.")
	logFailuresDesc = newDesc("log_failures_total", "Hosts whose log has failed, after which a host exits.")

	runningDesc      = newDesc("tasks_running", "Background tasks that run.", "task")
	ageDesc          = newDesc("task_oldest_age_seconds", "How long the oldest task of this name has been running.", "task")
	ticksDesc        = newDesc("task_ticks_total", "Ticks of periodic tasks that have ended, failed ones among them.", "task")
	failedTicksDesc  = newDesc("task_failed_ticks_total", "Ticks of periodic tasks that failed.", "task")
	taskFailuresDesc = newDesc("task_failures_total", "Tasks that failed, each of which makes its host exit.", "task")

	hookDesc         = newDesc("exit_hook_duration_seconds", "How long a hook of an exit took, or until it was left behind.", "phase", "hook")
	hookFailuresDesc = newDesc("exit_hook_failures_total", "Hooks of an exit that failed, or that a forced exit skipped or left behind.", "phase", "hook")
	stragglersDesc   = newDesc("exit_stragglers", "Whom the phase of an exit that runs was last reported to wait for.", "phase", "kind", "name")
	exitsDesc        = newDesc("exits_total", "Exits that have ended.", "outcome")
)

var descs []*prometheus.Desc

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	desc := prometheus.NewDesc("lifecycle_"+name, help, append([]string{"host"}, labels...), nil)
	descs = append(descs, desc)
	return desc
}

// histograms are those of all series.
type histograms struct {
	latency, transactions, bytes *prometheus.HistogramVec // by host
	phase                        *prometheus.HistogramVec // by host and phase
}

func newHistograms() histograms {
	return histograms{
		latency: newHistogram("sync_duration_seconds", "How long the log took to append and sync a batch that became durable.",
			[]float64{.000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}),
		transactions: newHistogram("batch_transactions", "Transactions of a batch that became durable.",
			[]float64{1, 4, 16, 64, 256, 1024, 4096, 16384}),
		bytes: newHistogram("batch_bytes", "Bytes of the transactions of a batch that became durable.",
			[]float64{256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20}),
		phase: newHistogram("exit_phase_duration_seconds", "How long a phase of an exit took that has ended.",
			[]float64{.001, .01, .1, 1, 10, 100}, "phase"),
	}
}

// newHistogram has the buckets given, and native ones, each wider by 9 % than the
// one before. Those need no limit: durations and sizes have few orders of magnitude.
func newHistogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:                        "lifecycle_" + name,
		Help:                        help,
		Buckets:                     buckets,
		NativeHistogramBucketFactor: 1.1,
	}, append([]string{"host"}, labels...))
}

func (h histograms) all() []prometheus.Collector {
	return []prometheus.Collector{h.latency, h.transactions, h.bytes, h.phase}
}
