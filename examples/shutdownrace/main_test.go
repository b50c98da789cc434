package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func seedFor(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return seed
}

func TestHostLosesNothing(t *testing.T) {
	total := play(orders[2], 300, seedFor(t))
	require.False(t, total.broken(), "%+v", total)
	require.NotZero(t, total.accepted)
}

func TestWrongOrdersBreakWhatTheDocSaysTheyBreak(t *testing.T) {
	seed := seedFor(t)
	var closed, aborted counts
	for i := uint64(0); i < 20 && (closed.crashed == 0 || aborted.crashed == 0 || aborted.lost == 0 || aborted.unanswered == 0); i++ {
		closed, aborted = play(orders[0], 200, seed+i), play(orders[1], 200, seed+i)
		require.Zero(t, closed.lost, "it awaits its writer")
		require.Zero(t, closed.unanswered, "it awaits its writer")
	}
	require.NotZero(t, closed.crashed)
	require.NotZero(t, aborted.crashed)
	require.NotZero(t, aborted.lost)
	require.NotZero(t, aborted.unanswered)
}

func TestTableIsAligned(t *testing.T) {
	var b bytes.Buffer
	printTable(&b, []counts{{order: "a", rounds: 7, crashed: 123456}, {order: "close, then abort"}})
	lines := bytes.Split(b.Bytes(), []byte("\n"))
	require.Len(t, lines[1], len(lines[0]))
	require.Len(t, lines[2], len(lines[0]))
}
