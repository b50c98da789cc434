package lifecycle_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
)

var _ lifecycle.BatchLog = (*commitlog.Log)(nil)

// fill makes a transaction that says who wrote it, and which of theirs it is.
func fill(writer, n uint32, length int) []byte {
	tx := make([]byte, max(length, 8))
	binary.LittleEndian.PutUint32(tx, writer)
	binary.LittleEndian.PutUint32(tx[4:], n)
	for i := 8; i < len(tx); i++ {
		tx[i] = byte(writer + n + uint32(i))
	}
	return tx
}

// A host on a real log, through several lives: whatever was accepted is read again,
// at its offset, with its bytes.
func TestWhatAHostAcceptedIsInItsLogWhenThatIsOpenedAgain(t *testing.T) {
	dir := t.TempDir()
	accepted := map[uint64][]byte{}
	for life := range uint32(4) {
		log, err := commitlog.Open(dir, commitlog.Options{SegmentBytes: 256 << 10})
		require.NoError(t, err)
		require.EqualValues(t, len(accepted), log.Next())
		h := lifecycle.New(log, lifecycle.Options{QueueBytes: 1 << 20})
		require.EqualValues(t, len(accepted), h.Durability().Durable())

		var mu sync.Mutex
		var writers sync.WaitGroup
		for w := range uint32(8) {
			writers.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(life), uint64(w)))
				for n := range uint32(1 << 30) {
					length := rng.IntN(300)
					if rng.IntN(100) == 0 {
						length = rng.IntN(600 << 10) // more than a chunk of the queue, and than a segment
					}
					tx := fill(life<<8|w, n, length)
					p, err := h.Durability().Append(context.Background(), tx)
					if err != nil {
						require.ErrorIs(t, err, lifecycle.ErrClosed)
						return
					}
					mu.Lock()
					accepted[p.Offset()] = tx
					mu.Unlock()
					if rng.IntN(4) == 0 {
						require.NoError(t, p.Wait(context.Background()))
						require.Greater(t, h.Durability().Durable(), p.Offset())
					}
				}
			})
		}
		require.NoError(t, h.Durability().Wait(context.Background(), h.Durability().Accepted()+500))
		require.NoError(t, h.Exit(context.Background()))
		writers.Wait()
		require.EqualValues(t, len(accepted), h.Durability().Durable())
	}

	log, err := commitlog.Open(dir, commitlog.Options{})
	require.NoError(t, err)
	defer log.Close()
	next := uint64(0)
	for entry, err := range log.Read(0) {
		require.NoError(t, err)
		require.Equal(t, next, entry.Offset)
		require.True(t, bytes.Equal(accepted[next], entry.Data), "offset %d", next)
		next++
	}
	require.EqualValues(t, len(accepted), next)
}

// The lock is given up before Exit returns.
func TestALogThatAHostHasClosedCanBeOpenedAtOnce(t *testing.T) {
	dir := t.TempDir()
	for range 20 {
		log, err := commitlog.Open(dir, commitlog.Options{})
		require.NoError(t, err)
		h := lifecycle.New(log, lifecycle.Options{})
		_, err = commitlog.Open(dir, commitlog.Options{})
		require.ErrorIs(t, err, commitlog.ErrLocked)
		_, err = h.Durability().Append(context.Background(), []byte("x"))
		require.NoError(t, err)
		require.NoError(t, h.Exit(context.Background()))
	}
}

// P2: room comes back for small batches as well, though who waits for it is woken for a 16th of the queue.
func TestRoomComesBackFromEveryBatch(t *testing.T) {
	log, err := commitlog.Open(t.TempDir(), commitlog.Options{})
	require.NoError(t, err)
	h := lifecycle.New(log, lifecycle.Options{QueueBytes: 1 << 10})
	for range 100 {
		_, err := h.Durability().Commit(background, []byte("small"))
		require.NoError(t, err)
	}
	require.Zero(t, h.Status().QueuedBytes)
	require.NoError(t, h.Exit(background))
}
