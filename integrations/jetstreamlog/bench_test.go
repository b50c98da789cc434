package jetstreamlog

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

// BenchmarkCommits is committers that each commit 128 B, wait until a quorum of three
// servers has it, and repeat: through a Host, and by a publish of their own, which has no
// fence, no order among them, and no protection from being doubled.
func BenchmarkCommits(b *testing.B) {
	c := theCluster(b)
	js := c.connect(b)
	for _, committers := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("by=host/committers=%d", committers), func(b *testing.B) {
			l, err := Open(b.Context(), js, streamOf(b), Options{})
			require.NoError(b, err)
			host := lifecycle.New(l, lifecycle.Options{})
			measure(b, committers, func(ctx context.Context, tx []byte) error {
				_, err := host.Durability().Commit(ctx, tx)
				return err
			})
			require.NoError(b, host.Exit(context.Background()))
		})
		publish := func(by string, one func(ctx context.Context, subject string, tx []byte) error) {
			b.Run(fmt.Sprintf("by=%s/committers=%d", by, committers), func(b *testing.B) {
				name := streamOf(b)
				_, err := js.CreateStream(b.Context(), streamConfig(name, name, DefaultReplicas))
				require.NoError(b, err)
				measure(b, committers, func(ctx context.Context, tx []byte) error { return one(ctx, name, tx) })
			})
		}
		publish("Publish", func(ctx context.Context, subject string, tx []byte) error {
			_, err := js.Publish(ctx, subject, tx)
			return err
		})
		publish("PublishAsync", func(ctx context.Context, subject string, tx []byte) error {
			f, err := js.PublishAsync(subject, tx)
			if err != nil {
				return err
			}
			select {
			case <-f.Ok():
				return nil
			case err := <-f.Err():
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}
}

// measure lets committers commit b.N transactions.
func measure(b *testing.B, committers int, commit func(ctx context.Context, tx []byte) error) {
	tx := make([]byte, 128)
	require.NoError(b, commit(b.Context(), tx))
	b.ResetTimer()
	var group sync.WaitGroup
	for i := range committers {
		n := b.N / committers
		if i < b.N%committers {
			n++
		}
		group.Go(func() {
			for range n {
				if err := commit(b.Context(), tx); err != nil {
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
