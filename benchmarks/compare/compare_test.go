package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
	"github.com/seed080d9131/lifecycle/benchmarks/peers"
)

func TestABoundIsMetByItsMedianRatio(t *testing.T) {
	for _, c := range []struct {
		bound  bound
		theirs []float64
		met    bool
	}{
		{atLeast(2), []float64{5, 5, 1}, true}, // 2, 2, 10
		{atLeast(2), []float64{6, 6, 1}, false},
		{atMost(2), []float64{5, 5, 1}, true},
		{atMost(2), []float64{4, 4, 100}, false},
		{atMost(2), []float64{math.NaN(), 5, math.NaN()}, true},
	} {
		e := &env{bar: "b"}
		e.add("c", "u", "peer", []float64{10, 10, 10}, c.theirs, c.bound)
		require.Len(t, e.rows, 1)
		require.Equal(t, c.met, *e.rows[0].Met, c)
		require.Empty(t, e.errs)
	}
}

func TestWhatCouldNotBeMeasuredIsAnErrorAndNoRow(t *testing.T) {
	e := &env{bar: "b"}
	nan := []float64{math.NaN()}
	e.add("c", "u", "peer", nan, []float64{1}, atLeast(1))
	e.value("c", "u", nan, atMost(1))
	require.Empty(t, e.rows)
	require.Len(t, e.errs, 2)
}

func TestARowWithoutABoundHasNoVerdict(t *testing.T) {
	e := &env{bar: "b"}
	e.add("c", "u", "peer", []float64{1}, []float64{2}, bound{})
	e.value("allocations", "", []float64{0, 0}, atMost(0))
	name := filepath.Join(t.TempDir(), "rows")
	require.NoError(t, writeJSON(name, e.rows))
	raw, err := os.ReadFile(name)
	require.NoError(t, err)
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	require.Len(t, lines, 2)
	var shown, asked map[string]any
	require.NoError(t, json.Unmarshal(lines[0], &shown))
	require.NoError(t, json.Unmarshal(lines[1], &asked))
	require.NotContains(t, shown, "met")
	require.NotContains(t, shown, "required")
	require.Equal(t, 0.5, shown["ratio"])
	require.Equal(t, true, asked["met"])
	require.Equal(t, 0.0, asked["required"], "a bound of 0 is a bound")
}

func TestFiguresAreReadable(t *testing.T) {
	for want, v := range map[string]float64{"0": 0, "0.0123": 0.01234, "12.3": 12.34, "999": 999, "1,000": 1000, "1,234,568": 1234567.8} {
		require.Equal(t, want, figure(v))
	}
}

// impostor says that every commit is durable, and does nothing.
type impostor struct{}

func (impostor) Commit([]byte) error { return nil }
func (impostor) Close() error        { return nil }

var impostorPeer = peers.Peer{Name: "impostor", Open: func(string) (peers.Committer, error) { return impostor{}, nil }}

func TestWhoDoesNotSyncHasNoFigure(t *testing.T) {
	dir := t.TempDir()
	if _, known := harness.Flushes(dir); !known {
		t.Skip("skipped: the block device does not tell its flushes")
	}
	e := &env{dir: dir, quick: true, warmup: time.Millisecond, measure: 50 * time.Millisecond}
	_, err := e.committer(impostorPeer, 1, 128).Measure()
	require.ErrorContains(t, err, "not durable")
}

func TestARaceWithAnExitLosesNothing(t *testing.T) {
	if os.Getenv(raceVariable) != "" {
		racer()
		os.Exit(0)
	}
	r, err := runRace(raceOrder{Peer: "lifecycle", Dir: t.TempDir(), Writers: 500}, "-test.run", "^TestARaceWithAnExitLosesNothing$")
	require.NoError(t, err)
	require.Positive(t, r.Acknowledged)
	r.Acknowledged = 0
	require.Equal(t, race{Reopened: true}, r)
}

func TestTheRaceCountsPanicsHangsAndLosses(t *testing.T) {
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	log := &misbehaving{closed: make(chan struct{}), hang: hang}
	r, acknowledged := raceWriters(log, 20)
	require.Equal(t, int64(5), r.Panicked)
	require.Equal(t, int64(5), r.Hung)
	require.False(t, r.CloseHung)
	sum := uint64(0)
	for _, n := range acknowledged {
		sum += n
	}
	require.Equal(t, uint64(r.Acknowledged), sum)
}

// misbehaving panics in a quarter of its writers once it is closed, and never answers another quarter.
type misbehaving struct {
	closed, hang chan struct{}
}

func (m *misbehaving) Commit(b []byte) error {
	select {
	case <-m.closed:
	default:
		runtime.Gosched()
		return nil
	}
	switch b[0] % 4 {
	case 0:
		panic("closed")
	case 1:
		<-m.hang
	}
	return errors.New("closed")
}

func (m *misbehaving) Close() error {
	close(m.closed)
	return nil
}

func TestCurvesAreDrawnWithoutWhatHasNoLogarithm(t *testing.T) {
	name := filepath.Join(t.TempDir(), "curves.svg")
	c := curve{name: "ours"}
	c.add(1, []float64{3, 1, 2})
	c.add(10, []float64{math.NaN(), 4})
	c.add(100, nil)
	c.add(1000, []float64{0, 1})
	require.Equal(t, []point{{1, 1, 2, 3}, {10, 4, 4, 4}, {1000, 0, 0.5, 1}}, c.points)
	require.NoError(t, drawCurves(name, "title", "x", "y", []curve{c, {name: "empty"}}))
	raw, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Contains(t, string(raw), "<svg")
	require.ErrorContains(t, drawCurves(name, "title", "x", "y", []curve{{name: "empty"}}), "nothing to draw")
}

func TestAWideSpreadIsTold(t *testing.T) {
	e := &env{bar: "b"}
	e.add("steady", "u", "peer", []float64{1, 2, 1.5}, []float64{1, 1, 1}, atLeast(1))
	require.Zero(t, unsettled(e.rows))
	e.add("moody", "u", "peer", []float64{1, 2.1, 1.5}, []float64{1, 1, 1}, atLeast(1))
	require.Equal(t, 1, unsettled(e.rows))
}
