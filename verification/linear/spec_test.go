package linear

import (
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
)

// at is an operation over a time.
func at(call, end int64, in input, out output) porcupine.Operation {
	return porcupine.Operation{Input: in, Call: call, Output: out, Return: end}
}

// gave is the answer to an append that was accepted at offset, and shows a count.
func gave(offset int) output { return output{yes, offset} }

func TestWrongHistoriesAreFound(t *testing.T) {
	appendOf := func(id byte) input { return input{kind: appending, id: id} }
	waitFor := func(offset int) input { return input{kind: waiting, offset: offset} }
	do := func(k kind, count int) input { return input{kind: k, count: count} }
	read := func(ids ...byte) input { return input{kind: reading, read: string(ids)} }

	// Two appends at once, a sync for both, seal, drain, and the log as read at the end.
	good := func() []porcupine.Operation {
		return []porcupine.Operation{
			at(1, 4, appendOf(7), gave(1)), at(2, 3, appendOf(8), gave(0)),
			at(5, 8, do(syncing, 2), output{}), at(9, 12, do(settling, 2), output{}),
			at(10, 11, input{kind: durable}, gave(2)),
			at(13, 20, do(sealing, 0), output{}), at(14, 20, do(draining, 0), output{}),
			at(15, 16, appendOf(9), output{told: closed}),
			at(17, 18, waitFor(0), output{told: yes}),
			at(21, 22, read(8, 7), output{}),
		}
	}
	failed := func() []porcupine.Operation {
		return []porcupine.Operation{
			at(1, 2, appendOf(7), gave(0)), at(3, 8, do(failing, 0), output{}),
			at(4, 5, waitFor(0), output{told: unknownLog}), at(6, 7, appendOf(8), output{told: logError}),
			at(9, 12, do(sealing, 0), output{}), at(9, 12, do(draining, 0), output{}), at(13, 14, read(), output{}),
		}
	}
	gaveUp := func() []porcupine.Operation {
		return []porcupine.Operation{
			at(1, 2, appendOf(7), gave(0)), at(3, 8, do(sealing, 0), output{}), at(3, 8, do(draining, 0), output{}),
			at(4, 8, do(giving, 0), output{}), at(5, 7, waitFor(0), output{told: unknownForced}),
			at(1, 10, do(syncing, 1), output{}), at(11, 12, do(settling, 1), output{}),
			at(13, 14, input{kind: durable}, gave(0)), at(15, 16, read(7), output{}),
		}
	}
	right := map[string][]porcupine.Operation{"a plain exit": good(), "a log that fails": failed(), "a drain given up": gaveUp()}

	with := func(history []porcupine.Operation, i int, in input, out output) []porcupine.Operation {
		history[i].Input, history[i].Output = in, out
		return history
	}
	plus := func(history []porcupine.Operation, more ...porcupine.Operation) []porcupine.Operation {
		return append(history, more...)
	}
	wrong := map[string][]porcupine.Operation{
		"a lost append":                             with(good(), 9, read(8), output{}),
		"appends swapped in the log":                with(good(), 9, read(7, 8), output{}),
		"an append that nobody made":                with(good(), 9, read(8, 7, 9), output{}),
		"an offset twice":                           with(good(), 0, appendOf(7), gave(0)),
		"an offset left out":                        with(good(), 0, appendOf(7), gave(2)),
		"durable moves back":                        plus(good(), at(23, 24, input{kind: durable}, gave(1))),
		"durable before the sync":                   plus(good(), at(5, 6, input{kind: durable}, gave(1))),
		"acknowledged before it is durable":         plus(good(), at(6, 7, waitFor(0), output{told: yes})),
		"published before the sync":                 plus(good()[:2], at(5, 8, do(settling, 2), output{}), at(9, 12, do(syncing, 2), output{})),
		"accepted after the seal":                   with(good(), 7, appendOf(9), gave(2)),
		"accepted after the drain":                  plus(good(), at(21, 22, appendOf(9), gave(2))),
		"refused before the seal":                   plus(good(), at(1, 2, appendOf(9), output{told: closed})),
		"accepted counts what is not":               plus(good(), at(5, 6, input{kind: accepted}, gave(3))),
		"accepted moves back":                       plus(good(), at(5, 6, input{kind: accepted}, gave(1))),
		"a known outcome told as unknown":           with(good(), 8, waitFor(0), output{told: unknownCtx}),
		"closed, told of what was accepted":         with(good(), 8, waitFor(0), output{told: closed}),
		"drained with an append that is not synced": plus(good()[:2], at(5, 8, do(sealing, 0), output{}), at(5, 8, do(draining, 0), output{})),
		"drained before the seal":                   plus(good()[:5], at(13, 16, do(draining, 0), output{}), at(17, 20, do(sealing, 0), output{})),
		"durable after the log's failure":           plus(failed(), at(9, 10, do(syncing, 1), output{}), at(11, 12, do(settling, 1), output{})),
		"accepted after the log's failure":          plus(failed(), at(9, 10, appendOf(9), gave(1))),
		"both outcomes":                             plus(failed(), at(9, 10, waitFor(0), output{told: yes})),
		"durable moves after the drain is given up": with(gaveUp(), 7, input{kind: durable}, gave(1)),
		"unknown, then durable":                     plus(gaveUp(), at(17, 18, waitFor(0), output{told: yes})),
	}
	for name, history := range right {
		require.Equal(t, porcupine.Ok, porcupine.CheckOperationsTimeout(model, history, time.Minute), name)
	}
	for name, history := range wrong {
		require.Equal(t, porcupine.Illegal, porcupine.CheckOperationsTimeout(model, history, time.Minute), name)
	}
	t.Logf("counts: right histories %d, judged right %d; wrong histories %d, found %d", len(right), len(right), len(wrong), len(wrong))
}
