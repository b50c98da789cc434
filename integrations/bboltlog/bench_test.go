package bboltlog

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/seed080d9131/lifecycle"
)

// BenchmarkCommits is committers that each commit 128 B, wait until it is durable, and
// repeat: through a Host, by bbolt's own group commit with its defaults, and by an
// Update of their own.
func BenchmarkCommits(b *testing.B) {
	for _, committers := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("by=host/committers=%d", committers), func(b *testing.B) {
			log, err := Open(benchDB(b), Options{Bucket: "log"})
			require.NoError(b, err)
			host := lifecycle.New(log, lifecycle.Options{})
			measure(b, committers, func(tx []byte) error {
				_, err := host.Durability().Commit(context.Background(), tx)
				return err
			})
			require.NoError(b, host.Exit(context.Background()))
		})
		for _, by := range []string{"Batch", "Update"} {
			b.Run(fmt.Sprintf("by=%s/committers=%d", by, committers), func(b *testing.B) {
				db := benchDB(b)
				require.NoError(b, db.Update(func(tx *bbolt.Tx) error {
					_, err := tx.CreateBucket([]byte("log"))
					return err
				}))
				do := db.Update
				if by == "Batch" {
					do = db.Batch
				}
				var offset atomic.Uint64
				measure(b, committers, func(data []byte) error {
					key := number(offset.Add(1))
					return do(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("log")).Put(key, data) })
				})
			})
		}
	}
}

func benchDB(b *testing.B) *bbolt.DB {
	db := mustOpenDB(b, newPath(b))
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
