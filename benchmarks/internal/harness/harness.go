// Package harness measures competitors side by side: in alternation, so that the machine's moods fall on all of
// them; after a warm-up; each time in a fresh directory; and judged by the medians of ratios paired within a round.
package harness

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Candidate is one of those that are measured together.
type Candidate struct {
	Name    string
	Measure func() (float64, error) // one measure, from scratch
}

// Interleave measures every candidate once a round, one at a time. Each round begins with the next candidate and
// every second one runs backwards, so nobody always follows the same neighbour. Samples[name][round] is what was
// measured, NaN where a measure failed; the errors come back joined, and stop nothing. Step, if not nil, hears of each
// measure before it begins.
func Interleave(rounds int, candidates []Candidate, step func(round int, name string)) (map[string][]float64, error) {
	samples := make(map[string][]float64, len(candidates))
	var failures []error
	for round := range rounds {
		for i := range candidates {
			at := (round + i) % len(candidates)
			if round%2 == 1 {
				at = (round + len(candidates) - i) % len(candidates)
			}
			c := candidates[at]
			if step != nil {
				step(round, c.Name)
			}
			runtime.GC() // the garbage of one is not collected in the time of the next
			value, err := c.Measure()
			if err != nil {
				failures = append(failures, fmt.Errorf("%s, round %d: %w", c.Name, round+1, err))
				value = math.NaN()
			}
			samples[c.Name] = append(samples[c.Name], value)
		}
	}
	return samples, errors.Join(failures...)
}

// Loop is a closed loop: workers that each call the operation, wait for its end, and call it again.
type Loop struct {
	Workers int
	Warmup  time.Duration // runs before the count begins, without a pause between them
	Measure time.Duration
	Op      func(worker int) error
}

// Result is what a closed loop came to.
type Result struct {
	PerSecond float64 // operations that ended during Measure
	Total     int64   // those that ended at all: before, during and after
}

// Run returns what was done when Measure is over and all workers have ended. The first error ends the loop and is
// returned.
func (l Loop) Run() (Result, error) {
	type padded struct {
		atomic.Int64
		_ [120]byte // two cache lines a worker: counting must not be what is measured
	}
	counts := make([]padded, l.Workers)
	sum := func() (n int64) {
		for i := range counts {
			n += counts[i].Load()
		}
		return n
	}
	var stop atomic.Bool
	var first atomic.Pointer[error]
	var group sync.WaitGroup
	failed := make(chan struct{})
	for worker := range l.Workers {
		group.Go(func() {
			for !stop.Load() {
				if err := l.Op(worker); err != nil {
					if first.CompareAndSwap(nil, &err) {
						close(failed)
					}
					return
				}
				counts[worker].Add(1)
			}
		})
	}
	wait := func(d time.Duration) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-failed:
		}
	}
	wait(l.Warmup)
	before, start := sum(), time.Now()
	wait(l.Measure)
	after, took := sum(), time.Since(start)
	stop.Store(true)
	group.Wait()
	if err := first.Load(); err != nil {
		return Result{}, *err
	}
	if after == before {
		return Result{}, fmt.Errorf("not one operation ended in %v", took)
	}
	return Result{PerSecond: float64(after-before) / took.Seconds(), Total: sum()}, nil
}
