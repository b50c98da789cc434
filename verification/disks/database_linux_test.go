//go:build !386 && !arm

package disks

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys"
	"github.com/seed080d9131/lifecycle/verification/disks/workload"
)

// A database is a host on a log in a directory, through several lives, each of which
// ends with an exit, and what was acknowledged.
type database struct {
	t       *testing.T
	dir     string
	segment int64
	judge   *workload.Judge
	life    uint32

	log  *commitlog.Log
	host *lifecycle.Host

	truncate bool       // now and then
	moment   func() int // of acknowledgements and truncations; nil: it is of no interest

	mu          sync.Mutex
	acked       []acknowledged
	refusals    []refusal
	truncations []truncation
	enough      int           // acknowledgements
	reached     chan struct{} // closed when there are enough
}

type acknowledged struct {
	moment int // at which it was known
	offset uint64
	id     workload.ID
}

type truncation struct {
	moment int // before it began
	before uint64
}

type refusal struct {
	offset   uint64
	accepted bool
	err      error
}

const databaseCommitters = 4

func newDatabase(t *testing.T, dir string, shape workload.Shape, segment int64) *database {
	d := &database{
		t:       t,
		dir:     dir,
		segment: segment,
		judge:   &workload.Judge{Shape: shape, Committers: databaseCommitters + 1},
	}
	t.Cleanup(func() { // nothing may hold the mount, however the test ended
		if d.host != nil {
			ctx, cancel := context.WithTimeout(context.Background(), programTimeout)
			defer cancel()
			_ = d.host.ForceExit(ctx)
		}
		if d.log != nil {
			_ = d.log.Close()
		}
	})
	return d
}

// open opens the log and has it judged. Nil says that all is as it should be.
func (d *database) open(fs fsys.FS) error {
	d.t.Helper()
	log, err := commitlog.Open(d.dir, commitlog.Options{SegmentBytes: d.segment, FS: fs})
	if err != nil {
		return err
	}
	d.log = log
	require.Empty(d.t, d.judge.Check(log))
	return nil
}

// start makes a host of the open log, with committers that go on until it exits or
// fails. Reached is closed when so many transactions were acknowledged.
func (d *database) start(enough int) {
	d.t.Helper()
	d.host = lifecycle.New(d.log, lifecycle.Options{Name: "disks"})
	d.acked, d.refusals, d.truncations = nil, nil, nil
	d.enough, d.reached = enough, make(chan struct{})
	d.judge.Begin(d.life)
	load := &workload.Load{
		Shape:      d.judge.Shape,
		Life:       d.life,
		Committers: databaseCommitters,
		Acknowledged: func(offset uint64, id workload.ID) {
			moment := d.now()
			d.mu.Lock()
			defer d.mu.Unlock()
			d.acked = append(d.acked, acknowledged{moment, offset, id})
			if len(d.acked) == d.enough {
				close(d.reached)
			}
		},
		Refused: func(offset uint64, accepted bool, err error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.refusals = append(d.refusals, refusal{offset, accepted, err})
		},
	}
	if log, host := d.log, d.host; d.truncate {
		load.Truncate = func(keep uint64) {
			before := host.Durability().Durable()
			before -= min(keep, before)
			moment := d.now()
			d.mu.Lock()
			d.truncations = append(d.truncations, truncation{moment, before})
			d.mu.Unlock()
			if err := log.TruncateBefore(before); err != nil {
				host.Fail(err)
			}
		}
	}
	d.life++
	require.NoError(d.t, load.Start(d.host))
}

func (d *database) now() int {
	if d.moment == nil {
		return 0
	}
	return d.moment()
}

// exit awaits the exit, tells the judge what was acknowledged, and returns the exit's result.
func (d *database) exit() error {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), programTimeout)
	defer cancel()
	err := d.host.Exit(ctx)
	select {
	case <-d.host.Done():
	default:
		require.NoError(d.t, err, "the exit does not end")
	}
	for _, a := range d.acked {
		d.judge.Acknowledge(a.offset, a.id)
	}
	for _, truncation := range d.truncations {
		d.judge.Truncating(truncation.before)
	}
	return err
}

// live is a life that ends well.
func (d *database) live(enough int) {
	d.t.Helper()
	require.NoError(d.t, d.open(nil))
	d.start(enough)
	d.await(d.reached)
	require.NoError(d.t, d.exit())
}

// await waits for a moment of the life, unless the host fails before.
func (d *database) await(moment <-chan struct{}) {
	d.t.Helper()
	select {
	case <-moment:
	case <-d.host.Exiting():
		require.NoError(d.t, d.exit(), "the host failed")
	}
}

// awaitFailure waits until the host exits by itself.
func (d *database) awaitFailure() {
	d.t.Helper()
	select {
	case <-d.host.Exiting():
	case <-time.After(programTimeout):
		require.Fail(d.t, "the host does not fail")
	}
}

// requireFailed demands of a life whose log failed that it ended as promised: the host
// exited by itself, for that reason, and said so, called nothing durable after the
// failure, and refuses everything with that error.
func (d *database) requireFailed(exit error, reason ...error) *lifecycle.LogError {
	t := d.t
	t.Helper()
	var failure *lifecycle.LogError
	require.ErrorAs(t, exit, &failure)
	require.Contains(t, []string{"append", "sync"}, failure.Op)
	is := false
	for _, r := range reason {
		is = is || errors.Is(exit, r) && errors.Is(failure, r)
	}
	require.True(t, is, "none of %v: %v", reason, exit)

	durability := d.host.Durability()
	durable := durability.Durable()
	for _, a := range d.acked {
		require.Less(t, a.offset, durable)
	}
	for _, r := range d.refusals {
		if errors.Is(r.err, context.Canceled) { // the failure cancels the tasks
			continue
		}
		require.ErrorIs(t, r.err, lifecycle.ErrClosed)
		if r.accepted {
			require.GreaterOrEqual(t, r.offset, durable)
			require.ErrorIs(t, r.err, lifecycle.ErrUnknown)
			require.ErrorAs(t, r.err, new(*lifecycle.LogError))
		}
	}
	for range 3 {
		_, err := durability.Commit(t.Context(), []byte("late"))
		require.ErrorIs(t, err, lifecycle.ErrClosed)
		require.ErrorAs(t, err, new(*lifecycle.LogError))
	}
	require.Equal(t, durable, durability.Durable())
	report := d.host.Report()
	require.Equal(t, "failed", report.Outcome)
	require.Equal(t, report.Accepted-report.Durable, report.Lost)
	require.Positive(t, report.Lost)
	require.Equal(t, exit, d.host.Exit(t.Context()), "the result is one")
	return failure
}
