package jetstreamlog

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func all(t testing.TB, l *Log, from uint64) (entries []Entry) {
	t.Helper()
	for e, err := range l.Read(t.Context(), from) {
		require.NoError(t, err)
		entries = append(entries, e)
	}
	return entries
}

func texts(t testing.TB, l *Log, from uint64) (texts []string) {
	t.Helper()
	for i, e := range all(t, l, from) {
		require.Equal(t, from+uint64(i), e.Offset)
		texts = append(texts, string(e.Data))
	}
	return texts
}

func numbered(from, n int) (txs [][]byte) {
	for i := from; i < from+n; i++ {
		txs = append(txs, fmt.Appendf(nil, "tx %d", i))
	}
	return txs
}

func TestWhatWasSyncedIsReadBackInOrderAfterReopening(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	l := c.open(t, js, Options{})
	require.Zero(t, l.Next())
	require.Zero(t, l.First())
	const n = 2500 // three batches
	txs := numbered(0, n)
	txs[7] = nil
	require.NoError(t, l.Append(txs[:10]))
	require.Empty(t, texts(t, l, 0), "nothing was synced")
	require.NoError(t, l.Append(txs[10:]))
	require.EqualValues(t, n, l.Next())
	require.NoError(t, l.Sync())
	require.Len(t, texts(t, l, 0), n)
	require.Equal(t, []string{"tx 2498", "tx 2499"}, texts(t, l, n-2))
	require.Empty(t, texts(t, l, n))
	require.NoError(t, l.Close())

	l = c.open(t, js, Options{})
	require.EqualValues(t, n, l.Next())
	for i, text := range texts(t, l, 0) {
		require.Equal(t, string(txs[i]), text)
	}
	require.NoError(t, l.Append(numbered(n, 1)))
	require.NoError(t, l.Close(), "it syncs")
	require.Equal(t, []string{"tx 2500"}, texts(t, c.open(t, js, Options{}), n))
}

func TestALongTransactionGoesInPartsAndTruncationTakesThemAlong(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	l := c.open(t, js, Options{})
	long := make([]byte, 3<<20+1)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(long)
	want := [][]byte{[]byte("before"), long, []byte("between"), long[1:], []byte("after")}
	require.NoError(t, l.Append(want))
	require.NoError(t, l.Sync())
	check := func(l *Log, from int) {
		t.Helper()
		entries := all(t, l, uint64(from))
		require.Len(t, entries, len(want)-from)
		for i, e := range entries {
			require.True(t, bytes.Equal(want[from+i], e.Data), "offset %d", e.Offset)
		}
	}
	check(l, 0)
	require.NoError(t, l.Close())
	l = c.open(t, js, Options{})
	check(l, 0)

	parts := func() uint64 {
		state, err := l.parts.state(t.Context())
		require.NoError(t, err)
		return state.Msgs
	}
	require.EqualValues(t, 8, parts())
	require.NoError(t, l.TruncateBefore(t.Context(), 1))
	require.EqualValues(t, 8, parts())
	check(l, 1)
	require.NoError(t, l.TruncateBefore(t.Context(), 2))
	require.EqualValues(t, 4, parts())
	check(l, 2)
	require.NoError(t, l.TruncateBefore(t.Context(), 5))
	require.Zero(t, parts())
	require.NoError(t, l.Close())
}

// A log was opened while another one had published the parts of a transaction, and not
// yet the transaction itself.
func TestATruncationLeavesThePartsOfWhatAnotherLogWritesAfterwards(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	writer := c.open(t, js, Options{})
	require.NoError(t, writer.Append(numbered(0, 1)))
	require.NoError(t, writer.Sync())
	long := make([]byte, 2<<20)
	long[0] = 1
	require.NoError(t, writer.Append([][]byte{long})) // its parts are there
	janitor := c.open(t, js, Options{})
	require.NoError(t, writer.Sync()) // now it is there itself
	require.NoError(t, janitor.TruncateBefore(t.Context(), janitor.Next()))
	entries := all(t, writer, 1)
	require.Len(t, entries, 1)
	require.Equal(t, long, entries[0].Data)
	require.NoError(t, janitor.Close())
	require.NoError(t, writer.Close())
}

// What is looked for is gone: that is noticed at once, and not only in Options.Timeout.
func TestATruncationMeanwhileIsNoticedAtOnce(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	l := c.open(t, js, Options{Timeout: time.Hour})
	long := make([]byte, 2<<20)
	require.NoError(t, l.Append([][]byte{long, long, long}))
	require.NoError(t, l.Sync())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	read := 0
	for _, err := range l.Read(ctx, 0) {
		if read == 1 {
			require.ErrorIs(t, err, ErrTruncated)
			break
		}
		require.NoError(t, err)
		read++
		require.NoError(t, l.TruncateBefore(ctx, 3)) // what follows has been asked for already
	}
	require.Equal(t, 1, read)
	_, err := l.headerAt(ctx, 1) // as a second truncation does
	require.ErrorIs(t, err, ErrTruncated)
	var wg sync.WaitGroup
	require.NoError(t, l.Append(numbered(0, 100)))
	require.NoError(t, l.Sync())
	for offset := range uint64(50) {
		wg.Go(func() {
			if err := l.TruncateBefore(ctx, 2*offset); err != nil {
				t.Errorf("truncate before %d: %v", 2*offset, err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 98, l.First())
	require.NoError(t, l.Close())
}

func TestFirstDoesNotGoBackWhenAnOldAnswerArrivesLate(t *testing.T) {
	var s store
	var wg sync.WaitGroup
	for _, first := range []uint64{5, 98, 94, 0} {
		s.heard(first)
	}
	require.EqualValues(t, 98, s.first())
	for first := range uint64(1000) {
		wg.Go(func() { s.heard(first) })
	}
	wg.Wait()
	require.EqualValues(t, 999, s.first())
}

func TestOffsetsGoOnWhereAnEmptiedStreamStood(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	l := c.open(t, js, Options{})
	require.NoError(t, l.Append(numbered(0, 10)))
	require.NoError(t, l.Sync())
	require.NoError(t, l.Append(numbered(10, 1)))

	require.NoError(t, l.TruncateBefore(t.Context(), 0))
	require.Zero(t, l.First())
	require.NoError(t, l.TruncateBefore(t.Context(), 4))
	require.EqualValues(t, 4, l.First())
	require.NoError(t, l.TruncateBefore(t.Context(), 3), "it is gone already")
	require.EqualValues(t, 4, l.First())
	require.Equal(t, "tx 4", texts(t, l, 4)[0])
	for _, err := range l.Read(t.Context(), 3) {
		require.ErrorIs(t, err, ErrTruncated)
	}
	require.ErrorIs(t, l.TruncateBefore(t.Context(), 11), ErrInvalid, "offset 10 is not durable")
	require.NoError(t, l.TruncateBefore(t.Context(), 10))
	require.EqualValues(t, 10, l.First())
	for _, err := range l.Read(t.Context(), 0) {
		require.ErrorIs(t, err, ErrTruncated)
	}
	require.NoError(t, l.Sync())
	require.NoError(t, l.TruncateBefore(t.Context(), 11))

	again := c.open(t, js, Options{})
	require.EqualValues(t, 11, again.Next())
	require.EqualValues(t, 11, again.First())
	require.NoError(t, again.Append(numbered(11, 2)))
	require.NoError(t, again.Sync())
	require.Equal(t, []string{"tx 11", "tx 12"}, texts(t, again, 11))
	require.NoError(t, again.Close())
}
