package lifecycle

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// nothing is a Log that keeps nothing.
type nothing struct{}

func (nothing) Next() Offset          { return 0 }
func (nothing) Append([][]byte) error { return nil }
func (nothing) Sync() error           { return nil }
func (nothing) Close() error          { return nil }

func BenchmarkEnterLeave(b *testing.B) {
	h := New(nil, Options{})
	defer h.Exit(context.Background())
	b.ReportAllocs()
	for b.Loop() {
		c, _ := h.Enter()
		c.Leave()
	}
}

func BenchmarkEnterLeaveParallel(b *testing.B) {
	h := New(nil, Options{})
	defer h.Exit(context.Background())
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c, _ := h.Enter()
			c.Leave()
		}
	})
}

func BenchmarkWaitGroupAddDone(b *testing.B) {
	var wg sync.WaitGroup
	for b.Loop() {
		wg.Add(1)
		wg.Done()
	}
}

func BenchmarkGo(b *testing.B) {
	h := New(nil, Options{})
	b.ReportAllocs()
	for b.Loop() {
		_ = h.Go("trivial", func(context.Context) error { return nil })
	}
	_ = h.Exit(context.Background())
}

func BenchmarkErrgroupGo(b *testing.B) {
	var g errgroup.Group
	b.ReportAllocs()
	for b.Loop() {
		g.Go(func() error { return nil })
	}
	_ = g.Wait()
}

func BenchmarkAppend(b *testing.B) {
	for _, goroutines := range []int{1, 8} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			h := New(nothing{}, Options{})
			defer h.Exit(context.Background())
			tx := make([]byte, 128)
			b.ReportAllocs()
			b.SetParallelism(max(goroutines/2, 1))
			if goroutines == 1 {
				for b.Loop() {
					_, _ = h.Durability().Append(context.Background(), tx)
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_, _ = h.Durability().Append(context.Background(), tx)
				}
			})
		})
	}
}

func BenchmarkChannelSend(b *testing.B) {
	for _, goroutines := range []int{1, 8} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			c := make(chan [128]byte, 1024)
			done := make(chan struct{})
			go func() {
				for range c {
				}
				close(done)
			}()
			b.SetParallelism(max(goroutines/2, 1))
			if goroutines == 1 {
				for b.Loop() {
					c <- [128]byte{}
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						c <- [128]byte{}
					}
				})
			}
			close(c)
			<-done
		})
	}
}

func BenchmarkCommit(b *testing.B) {
	h := New(nothing{}, Options{})
	defer h.Exit(context.Background())
	tx := make([]byte, 128)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = h.Durability().Commit(context.Background(), tx)
	}
}

func BenchmarkNewExit(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_ = New(nothing{}, Options{}).Exit(context.Background())
	}
}

// BenchmarkExitOfTasks is the exit of 100,000 idle tasks of one name.
func BenchmarkExitOfTasks(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		h := New(nil, Options{})
		var begun sync.WaitGroup
		begun.Add(100_000)
		for range 100_000 {
			_ = h.Go("idle", func(ctx context.Context) error { begun.Done(); <-ctx.Done(); return nil })
		}
		begun.Wait()
		runtime.GC()
		b.StartTimer()
		if err := h.Exit(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFleet is a Controller of 10,000 hosts, each with a log that keeps nothing
// and two tasks: what an idle host costs, and how long the exit of all takes.
func BenchmarkFleet(b *testing.B) {
	const hosts = 10_000
	idle := func(ctx context.Context) error { <-ctx.Done(); return nil }
	for b.Loop() {
		b.StopTimer()
		var before, bare, after runtime.MemStats
		c := NewController[int](ControllerOptions{})
		runtime.GC()
		runtime.ReadMemStats(&before)
		goroutines := runtime.NumGoroutine()
		all := make([]*Host, hosts)
		for i := range hosts {
			all[i], _ = c.Launch(context.Background(), i, func(context.Context) (*Host, error) {
				return New(nothing{}, Options{}), nil
			})
		}
		runtime.GC()
		runtime.ReadMemStats(&bare)
		b.ReportMetric(float64(bare.HeapAlloc-before.HeapAlloc)/hosts, "heap-B/host")
		b.ReportMetric(float64(bare.StackInuse-before.StackInuse)/hosts, "stack-B/host")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/hosts, "goroutines/host")
		for _, h := range all {
			_ = h.Go("first", idle)
			_ = h.Go("second", idle)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-bare.HeapAlloc)/hosts/2, "heap-B/task")
		b.StartTimer()
		if err := c.Exit(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()

		// The same goroutines under one WaitGroup.
		ctx, cancel := context.WithCancel(context.Background())
		var group sync.WaitGroup
		for range 3 * hosts {
			group.Go(func() { _ = idle(ctx) })
		}
		start := time.Now()
		cancel()
		group.Wait()
		b.ReportMetric(float64(time.Since(start).Nanoseconds()), "WaitGroup-ns")
		b.StartTimer()
	}
}

// BenchmarkStragglers is the report of an exit that waits for 100,000 tasks of one
// name, against the stack dump that the runtime has to offer.
func BenchmarkStragglers(b *testing.B) {
	h := New(nil, Options{})
	release := make(chan struct{})
	for range 100_000 {
		_ = h.Go("stuck", func(context.Context) error { <-release; return nil })
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = h.Exit(ctx)
	b.Run("ExitError", func(b *testing.B) {
		for b.Loop() {
			_ = h.Exit(ctx)
		}
	})
	b.Run("runtime.Stack", func(b *testing.B) {
		buffer := make([]byte, 256<<20)
		for b.Loop() {
			runtime.Stack(buffer, true)
		}
	})
	close(release)
	_ = h.Exit(context.Background())
}
