package harness_test

import (
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
)

func TestTheMedianIsTheMiddle(t *testing.T) {
	require.Equal(t, 2.0, harness.Median([]float64{9, 1, 2}))
	require.Equal(t, 2.5, harness.Median([]float64{3, 9, 1, 2}))
	require.Equal(t, 7.0, harness.Median([]float64{7}))
	require.True(t, math.IsNaN(harness.Median(nil)))
}

func TestAQuantileIsInterpolatedAndLeavesItsValuesAlone(t *testing.T) {
	values := []float64{50, 10, 40, 20, 30}
	require.Equal(t, 10.0, harness.Quantile(values, 0))
	require.Equal(t, 20.0, harness.Quantile(values, 0.25))
	require.Equal(t, 50.0, harness.Quantile(values, 1))
	require.InDelta(t, 48.0, harness.Quantile(values, 0.95), 1e-9)
	require.Equal(t, []float64{50, 10, 40, 20, 30}, values)
}

// The machine doubles its speed from round to round; the ratio is 2 in each. The ratio of the medians would be
// 2 as well here, and 8 if only one of them lost its slow rounds, which is why rounds without a pair are left out.
func TestRatiosArePairedByRound(t *testing.T) {
	nan := math.NaN()
	require.Equal(t, harness.Ratio{Median: 2, Low: 2, High: 2, Pairs: 3},
		harness.Paired([]float64{2, 4, 8}, []float64{1, 2, 4}))
	require.Equal(t, harness.Ratio{Median: 2, Low: 2, High: 2, Pairs: 1},
		harness.Paired([]float64{nan, nan, 8}, []float64{1, 2, 4}))
	require.Equal(t, harness.Ratio{Median: 3, Low: 1, High: 5, Pairs: 3},
		harness.Paired([]float64{1, 3, 5}, []float64{1, 1, 1}))
	require.Equal(t, 0, harness.Paired([]float64{1}, []float64{0}).Pairs)
	require.True(t, math.IsNaN(harness.Paired(nil, []float64{1}).Median))
}

func TestEveryRoundMeasuresEachOnceAndBeginsElsewhere(t *testing.T) {
	var order []string
	failure := errors.New("no")
	candidate := func(name string) harness.Candidate {
		return harness.Candidate{Name: name, Measure: func() (float64, error) {
			order = append(order, name)
			if name == "c" && len(order) <= 3 {
				return 0, failure
			}
			return float64(len(order)), nil
		}}
	}
	samples, err := harness.Interleave(4, []harness.Candidate{candidate("a"), candidate("b"), candidate("c")}, nil)
	require.ErrorIs(t, err, failure)
	require.ErrorContains(t, err, "c, round 1")
	require.Len(t, order, 12)
	var first []string
	for round := range slices.Chunk(order, 3) {
		first = append(first, round[0])
		require.ElementsMatch(t, []string{"a", "b", "c"}, round)
	}
	require.Subset(t, first, []string{"a", "b", "c"})
	require.True(t, math.IsNaN(samples["c"][0]))
	for _, name := range []string{"a", "b", "c"} {
		require.Len(t, samples[name], 4)
	}
}

func TestAClosedLoopNeverHasMoreInFlightThanWorkers(t *testing.T) {
	var flying, most, calls atomic.Int64
	result, err := harness.Loop{Workers: 3, Warmup: 10 * time.Millisecond, Measure: 30 * time.Millisecond, Op: func(int) error {
		n := flying.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		calls.Add(1)
		flying.Add(-1)
		return nil
	}}.Run()
	require.NoError(t, err)
	require.Positive(t, result.PerSecond)
	require.Equal(t, calls.Load(), result.Total)
	require.LessOrEqual(t, most.Load(), int64(3))
	require.Zero(t, flying.Load(), "Run returns when all workers have ended")
}

// In a bubble an operation of a millisecond takes that long exactly.
func TestTheWarmupIsNotPartOfTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		result, err := harness.Loop{Workers: 2, Warmup: time.Second, Measure: 100 * time.Millisecond, Op: func(int) error {
			time.Sleep(time.Millisecond)
			return nil
		}}.Run()
		require.NoError(t, err)
		require.InDelta(t, 2000, result.PerSecond, 40, "those that end in the first and the last instant fall on either side")
		require.InDelta(t, 2200, result.Total, 4)
	})
}

func TestAnErrorEndsTheLoopAtOnce(t *testing.T) {
	failure := errors.New("no")
	start := time.Now()
	_, err := harness.Loop{Workers: 2, Warmup: time.Hour, Measure: time.Hour, Op: func(worker int) error {
		return failure
	}}.Run()
	require.ErrorIs(t, err, failure)
	require.Less(t, time.Since(start), time.Hour)
}

func TestALoopInWhichNothingEndsIsAnError(t *testing.T) {
	release := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() { close(release) })
	_, err := harness.Loop{Workers: 1, Measure: time.Millisecond, Op: func(int) error { <-release; return nil }}.Run()
	require.ErrorContains(t, err, "not one operation")
}
