//go:build linux

package lifecycle_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
)

// BenchmarkDurableCommit is committers that each append 128 B, wait until it is
// durable, and repeat; "bare" is one goroutine that writes and syncs a zeroed file. It
// tells how long a batch was in the log, and how long it took from there to the next.
func BenchmarkDurableCommit(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "bare"))
		require.NoError(b, err)
		defer f.Close()
		_, err = f.Write(make([]byte, 64<<20))
		require.NoError(b, err)
		require.NoError(b, f.Sync())
		tx := make([]byte, 176)
		at := int64(0)
		for b.Loop() {
			_, err := f.WriteAt(tx, at%(63<<20))
			require.NoError(b, err)
			require.NoError(b, syscall.Fdatasync(int(f.Fd())))
			at += 176
		}
	})
	for _, committers := range []int{1, 8, 64, 512, 4096} {
		b.Run(fmt.Sprintf("committers=%d", committers), func(b *testing.B) {
			log, err := commitlog.Open(b.TempDir(), commitlog.Options{})
			require.NoError(b, err)
			batches, inLog := 0, time.Duration(0) // the actor's, until it has ended
			h := lifecycle.New(log, lifecycle.Options{Observer: lifecycle.Observer{Synced: func(e lifecycle.SyncEvent) {
				batches++
				inLog += e.Duration
			}}})
			tx := make([]byte, 128)
			b.ResetTimer()
			var group sync.WaitGroup
			for i := range committers {
				n := b.N / committers
				if i < b.N%committers {
					n++
				}
				group.Go(func() {
					for range n {
						if _, err := h.Durability().Commit(context.Background(), tx); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			group.Wait()
			b.StopTimer()
			require.NoError(b, h.Exit(context.Background()))
			perBatch := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(batches) }
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
			b.ReportMetric(float64(b.N)/float64(batches), "commits/batch")
			b.ReportMetric(perBatch(inLog), "µs-in-log/batch")
			b.ReportMetric(perBatch(b.Elapsed()-inLog), "µs-between/batch")
		})
	}
}

// BenchmarkThinkers is 256 committers that think 2 ms between two commits: how long one takes.
func BenchmarkThinkers(b *testing.B) {
	const committers = 256
	log, err := commitlog.Open(b.TempDir(), commitlog.Options{})
	require.NoError(b, err)
	h := lifecycle.New(log, lifecycle.Options{})
	tx := make([]byte, 128)
	took := make([][]float64, committers)
	b.ResetTimer()
	var group sync.WaitGroup
	for i := range committers {
		group.Go(func() {
			for range b.N/committers + 1 {
				time.Sleep(2 * time.Millisecond)
				start := time.Now()
				if _, err := h.Durability().Commit(context.Background(), tx); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], float64(time.Since(start).Nanoseconds())/1000)
			}
		})
	}
	group.Wait()
	b.StopTimer()
	require.NoError(b, h.Exit(context.Background()))
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(all[len(all)/2], "p50-µs")
	b.ReportMetric(all[len(all)*99/100], "p99-µs")
	b.ReportMetric(all[len(all)*999/1000], "p99.9-µs")
}

// BenchmarkCommitAfterBulk is one committer after 256 MiB that were appended at once.
func BenchmarkCommitAfterBulk(b *testing.B) {
	log, err := commitlog.Open(b.TempDir(), commitlog.Options{})
	require.NoError(b, err)
	h := lifecycle.New(log, lifecycle.Options{})
	d := h.Durability()
	bulk, tx := make([]byte, 64<<10), make([]byte, 128)
	for range 256 << 20 / len(bulk) {
		_, err := d.Append(context.Background(), bulk)
		require.NoError(b, err)
	}
	require.NoError(b, d.Wait(context.Background(), d.Accepted()-1))
	for b.Loop() {
		if _, err := d.Commit(context.Background(), tx); err != nil {
			b.Fatal(err)
		}
	}
	require.NoError(b, h.Exit(context.Background()))
}

// BenchmarkSubmit is 2,000,000 transactions of 128 B that are appended without waiting, until the last is durable, in a
// server that makes a checkpoint between two such bursts.
func BenchmarkSubmit(b *testing.B) {
	log, err := commitlog.Open(b.TempDir(), commitlog.Options{SpareSegments: 8})
	require.NoError(b, err)
	h := lifecycle.New(log, lifecycle.Options{})
	d := h.Durability()
	tx := make([]byte, 128)
	burst := func() {
		for range 2_000_000 {
			if _, err := d.Append(context.Background(), tx); err != nil {
				b.Fatal(err)
			}
		}
		require.NoError(b, d.Wait(context.Background(), d.Accepted()-1))
	}
	for range 2 {
		burst()
		require.NoError(b, log.TruncateBefore(log.Next()))
	}
	for b.Loop() {
		burst()
		b.StopTimer()
		require.NoError(b, log.TruncateBefore(log.Next()))
		b.StartTimer()
	}
	require.NoError(b, h.Exit(context.Background()))
}
