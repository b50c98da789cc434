package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"testing"

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
