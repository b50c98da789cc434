package pebblelog

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

// BenchmarkCommits is committers that each commit 128 B, wait until it is durable, and
// repeat: through a Host, and by a synced Set of their own, in the same order of keys.
func BenchmarkCommits(b *testing.B) {
	for _, committers := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("by=host/committers=%d", committers), func(b *testing.B) {
			log, err := Open(benchDB(b), Options{Prefix: "log/"})
			require.NoError(b, err)
			host := lifecycle.New(log, lifecycle.Options{})
			measure(b, committers, func(tx []byte) error {
				_, err := host.Durability().Commit(context.Background(), tx)
				return err
			})
			require.NoError(b, host.Exit(context.Background()))
		})
		b.Run(fmt.Sprintf("by=Set/committers=%d", committers), func(b *testing.B) {
			db := benchDB(b)
			var offset atomic.Uint64
			measure(b, committers, func(tx []byte) error {
				key := binary.BigEndian.AppendUint64([]byte("log/\x03"), offset.Add(1))
				return db.Set(key, tx, pebble.Sync)
			})
		})
	}
}

func benchDB(b *testing.B) *pebble.DB {
	db, err := pebble.Open(b.TempDir(), &pebble.Options{Logger: logger{new(atomic.Int64)}})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, db.Close()) })
	return db
}

// measure lets committers commit b.N transactions.
func measure(b *testing.B, committers int, commit func(tx []byte) error) {
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
				if err := commit(tx); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
}
