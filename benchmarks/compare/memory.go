package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/sourcegraph/conc"
	"golang.org/x/sync/errgroup"
	"gopkg.in/tomb.v2"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
)

// nothing is a log that does nothing.
type nothing struct{}

func (nothing) Next() lifecycle.Offset { return 0 }
func (nothing) Append([][]byte) error  { return nil }
func (nothing) Sync() error            { return nil }
func (nothing) Close() error           { return nil }

// mallocs is how many objects the process has allocated so far.
func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

// each has goroutines that share n calls, and returns the nanoseconds that one call took: the time of all, divided by
// n. The loop is the caller's, so that what is measured may be inlined.
func each(goroutines, n int, loop func(n int) error) (float64, error) {
	failures := make([]error, goroutines)
	var group sync.WaitGroup
	begin := make(chan struct{})
	for i := range goroutines {
		group.Go(func() {
			<-begin
			failures[i] = loop(n / goroutines)
		})
	}
	start := time.Now()
	close(begin)
	group.Wait()
	return float64(time.Since(start).Nanoseconds()) / float64(n), errors.Join(failures...)
}

func (e *env) calls(n int) int {
	if e.quick {
		return n / 10
	}
	return n
}

func appends(e *env) error {
	n := e.calls(4_000_000)
	record := pattern(128, 3)
	var allocations []float64
	for _, goroutines := range []int{1, 8} {
		name := fmt.Sprintf("%d goroutines", goroutines)
		samples := e.interleave(name, []harness.Candidate{
			{Name: "lifecycle", Measure: func() (float64, error) {
				h := lifecycle.New(nothing{}, lifecycle.Options{})
				ctx := context.Background()
				d := h.Durability()
				before := mallocs()
				took, err := each(goroutines, n, func(n int) error {
					for range n {
						if _, err := d.Append(ctx, record); err != nil {
							return err
						}
					}
					return nil
				})
				allocations = append(allocations, float64(int(mallocs()-before)/n))
				return took, errors.Join(err, h.Exit(ctx))
			}},
			{Name: "channel", Measure: func() (float64, error) {
				c := make(chan [128]byte, 1024)
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for range c {
					}
				}()
				took, err := each(goroutines, n, func(n int) error {
					for range n {
						c <- [128]byte(record)
					}
					return nil
				})
				close(c)
				<-ended
				return took, err
			}},
		})
		e.add(name, "ns", "channel send", samples["lifecycle"], samples["channel"], atMost(1.3))
	}
	e.value("allocations each", "", allocations, atMost(0))
	return nil
}

// spawn counts until the last task has ended: a queue of goroutines that nobody has run yet is not cheap, only unpaid.
func spawn(e *env) error {
	n := e.calls(1_000_000)
	var allocations []float64
	samples := e.interleave("spawn and end", []harness.Candidate{
		{Name: "lifecycle", Measure: func() (float64, error) {
			h := lifecycle.New(nil, lifecycle.Options{})
			task := func(context.Context) error { return nil }
			before, start := mallocs(), time.Now()
			for range n {
				if err := h.Go("trivial", task); err != nil {
					return 0, err
				}
			}
			err := h.Exit(context.Background())
			took := time.Since(start)
			allocations = append(allocations, float64(int(mallocs()-before)/n))
			return float64(took.Nanoseconds()) / float64(n), err
		}},
		{Name: "errgroup", Measure: func() (float64, error) {
			var g errgroup.Group
			task := func() error { return nil }
			start := time.Now()
			for range n {
				g.Go(task)
			}
			err := g.Wait()
			return float64(time.Since(start).Nanoseconds()) / float64(n), err
		}},
		{Name: "WaitGroup", Measure: func() (float64, error) {
			var g sync.WaitGroup
			start := time.Now()
			for range n {
				g.Go(func() {})
			}
			g.Wait()
			return float64(time.Since(start).Nanoseconds()) / float64(n), nil
		}},
		{Name: "conc", Measure: func() (float64, error) {
			var g conc.WaitGroup
			start := time.Now()
			for range n {
				g.Go(func() {})
			}
			g.Wait()
			return float64(time.Since(start).Nanoseconds()) / float64(n), nil
		}},
		{Name: "tomb", Measure: func() (float64, error) {
			var t tomb.Tomb
			start := time.Now()
			// A tomb dies with its last goroutine, and panics if another one follows: so they are started by one of its own.
			t.Go(func() error {
				for range n {
					t.Go(func() error { return nil })
				}
				return nil
			})
			err := t.Wait()
			return float64(time.Since(start).Nanoseconds()) / float64(n), err
		}},
	})
	e.add("spawn and end", "ns", "errgroup.Go", samples["lifecycle"], samples["errgroup"], atMost(1.35))
	e.add("spawn and end", "ns", "WaitGroup.Go", samples["lifecycle"], samples["WaitGroup"], bound{})
	e.add("spawn and end", "ns", "conc WaitGroup.Go", samples["lifecycle"], samples["conc"], bound{})
	e.add("spawn and end", "ns", "tomb Go", samples["lifecycle"], samples["tomb"], bound{})
	e.value("allocations each", "", allocations, atMost(2))
	return nil
}

func enter(e *env) error {
	n := e.calls(20_000_000)
	processors := runtime.GOMAXPROCS(0)
	gate := func(goroutines int) func() (float64, error) {
		return func() (float64, error) {
			h := lifecycle.New(nil, lifecycle.Options{})
			took, err := each(goroutines, n, func(n int) error {
				for range n {
					call, err := h.Enter()
					if err != nil {
						return err
					}
					call.Leave()
				}
				return nil
			})
			// Of each goroutine, not of all together: what one call costs the one who makes it.
			return took * float64(goroutines), errors.Join(err, h.Exit(context.Background()))
		}
	}
	samples := e.interleave("Enter and Leave", []harness.Candidate{
		{Name: "one", Measure: gate(1)},
		{Name: "WaitGroup", Measure: func() (float64, error) {
			var g sync.WaitGroup
			return each(1, n, func(n int) error {
				for range n {
					g.Add(1)
					g.Done()
				}
				return nil
			})
		}},
		{Name: "all", Measure: gate(processors)},
	})
	e.add("1 goroutine", "ns", "WaitGroup Add, Done", samples["one"], samples["WaitGroup"], atMost(1))
	if processors > 1 {
		e.add(fmt.Sprintf("%d goroutines", processors), "ns", "ours with 1", samples["all"], samples["one"], atMost(2))
	}
	return nil
}
