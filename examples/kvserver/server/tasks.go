package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// tasks are what the server does in the background. The exit cancels them, awaits
// every one, and only then closes the log that they write to.
type tasks struct {
	host      *lifecycle.Host
	store     *store
	snapshots *snapshotter
	metrics   *metrics
	dir       string
	logger    *slog.Logger
}

func (t *tasks) start(c config) error {
	var stuck error
	if c.stuck {
		stuck = t.host.Go("index rebuild", c.Stuck)
	}
	return errors.Join(
		stuck,
		t.host.Every("view cleanup", c.cleanup, t.cleanUp),
		t.host.Every("disk metrics", c.metrics, t.measureDisk),
		t.host.Every("tx metrics", c.metrics, t.transactionMeter()),
		t.host.Every("snapshot", c.snapshot, t.snapshots.take),
		// The last snapshot holds everything: no call and no task writes any more.
		t.host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", t.snapshots.take),
		t.host.OnExit(lifecycle.PhaseRelease, "totals", t.logTotals),
	)
}

// logTotals runs last, when nothing counts any more.
func (t *tasks) logTotals(context.Context) error {
	m := t.metrics
	t.logger.Info("totals", "commits", m.commits(), "syncs", m.syncs.Load(), "expired", m.cleaned.Load())
	return nil
}

// cleanupBatch is how many keys share a wait for the disk.
const cleanupBatch = 1000

// cleanUp commits the deletion of what has expired. It is the task for which a
// host's exit needs its order: a commit may be under way whenever the exit begins.
func (t *tasks) cleanUp(ctx context.Context) error {
	for ctx.Err() == nil {
		records := t.store.expired(time.Now(), cleanupBatch)
		if len(records) == 0 {
			return nil
		}
		var last lifecycle.Pending
		for _, r := range records {
			p, err := t.store.append(ctx, r)
			if err != nil {
				return err
			}
			last = p
		}
		if err := t.store.wait(ctx, last); err != nil { // and so for all before it
			return err
		}
		t.metrics.cleaned.Add(int64(len(records)))
	}
	return nil
}

// measureDisk records how much the directory takes on the disk.
func (t *tasks) measureDisk(ctx context.Context) error {
	logBytes, err := bytesIn(ctx, logDir(t.dir))
	if err != nil {
		return err
	}
	snapshotBytes, err := bytesIn(ctx, snapshotDir(t.dir))
	if err != nil {
		return err
	}
	t.metrics.disk.Store(&diskMetrics{logBytes, snapshotBytes})
	t.logger.Debug("disk metrics", "log_bytes", logBytes, "snapshot_bytes", snapshotBytes)
	return nil
}

func bytesIn(ctx context.Context, dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil && entry.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				total += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil
		}
		return err
	})
	return total, err
}

// transactionMeter returns the task that records how fast commits go, and how far
// the disk is behind.
func (t *tasks) transactionMeter() func(context.Context) error {
	durability := t.host.Durability()
	before, at := durability.Durable(), time.Now()
	return func(context.Context) error {
		durable, now := durability.Durable(), time.Now()
		m := transactionMetrics{
			perSecond: float64(durable-before) / now.Sub(at).Seconds(),
			lag:       durability.Accepted() - durable, // read later, so never less
		}
		before, at = durable, now
		t.metrics.transactions.Store(&m)
		t.logger.Debug("tx metrics", "commits_per_second", m.perSecond, "lag", m.lag)
		return nil
	}
}

// metrics are the last values that the tasks found, and a few counters.
type metrics struct {
	store   *store
	first   uint64 // offset of the first commit of this run
	syncs   atomic.Int64
	cleaned atomic.Int64

	disk         atomic.Pointer[diskMetrics]
	transactions atomic.Pointer[transactionMetrics]
}

type diskMetrics struct{ logBytes, snapshotBytes int64 }

type transactionMetrics struct {
	perSecond float64
	lag       uint64 // accepted and not durable
}

// synced is the host's observer: it runs after each batch.
func (m *metrics) synced(e lifecycle.SyncEvent) {
	if e.Err == nil {
		m.syncs.Add(1)
	}
}

// commits is not counted by the observer: that runs after those who wait have been
// woken, and not at all in a forced exit.
func (m *metrics) commits() uint64 { return m.store.durability.Durable() - m.first }

// String returns the metrics in Prometheus' text format.
func (m *metrics) String() string {
	var b strings.Builder
	put := func(name, kind, help string, value any) {
		fmt.Fprintf(&b, "# HELP kvserver_%s %s\n# TYPE kvserver_%s %s\nkvserver_%s %v\n", name, help, name, kind, name, value)
	}
	keys, bytes := m.store.size()
	put("keys", "gauge", "Keys in the store, expired ones that are not yet deleted among them.", keys)
	put("bytes", "gauge", "Bytes of keys and values.", bytes)
	put("commits_total", "counter", "Transactions that became durable.", m.commits())
	put("syncs_total", "counter", "Batches that were synced.", m.syncs.Load())
	put("expired_total", "counter", "Deletions of expired keys that were committed.", m.cleaned.Load())
	if t := m.transactions.Load(); t != nil {
		put("commits_per_second", "gauge", "Transactions that became durable a second, of late.", t.perSecond)
		put("durable_lag", "gauge", "Transactions that are accepted and not yet durable.", t.lag)
	}
	if d := m.disk.Load(); d != nil {
		put("log_bytes", "gauge", "Bytes of the log on the disk.", d.logBytes)
		put("snapshot_bytes", "gauge", "Bytes of the snapshots on the disk.", d.snapshotBytes)
	}
	return b.String()
}
