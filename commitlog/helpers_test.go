package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

const testDir = "/log"

// small is the smallest segment there is: 4 KiB of header and 4 KiB of frames.
func small(fs *faultfs.FS) Options { return Options{SegmentBytes: minSegmentBytes, FS: fs} }

func mustOpen(t testing.TB, dir string, opts Options) *Log {
	t.Helper()
	l, err := Open(dir, opts)
	require.NoError(t, err)
	return l
}

// tx is a transaction that tells its offset, of the given size at least.
func tx(offset uint64, size int) []byte {
	b := fmt.Appendf(nil, "tx %d ", offset)
	for len(b) < size {
		b = append(b, byte('a'+len(b)%26))
	}
	return b
}

// commit appends n transactions of a size, each with a sync of its own.
func commit(t testing.TB, l *Log, n, size int) {
	t.Helper()
	for range n {
		require.NoError(t, l.Append([][]byte{tx(l.Next(), size)}))
		require.NoError(t, l.Sync())
		l.waitPrepared()
	}
}

// contents reads everything from First on.
func contents(l *Log) (first uint64, txs []string, err error) {
	first = l.First()
	for e, err := range l.Read(first) {
		if err != nil {
			return first, txs, err
		}
		if e.Offset != first+uint64(len(txs)) {
			return first, txs, fmt.Errorf("offset %d after %d entries from %d on", e.Offset, len(txs), first)
		}
		txs = append(txs, string(e.Data))
	}
	return first, txs, nil
}

func mustContents(t testing.TB, l *Log) []string {
	t.Helper()
	first, txs, err := contents(l)
	require.NoError(t, err)
	require.Equal(t, l.Next(), first+uint64(len(txs)))
	return txs
}

// batch lays out transactions as AppendBatch takes them.
func batch(txs ...[]byte) []byte {
	b := make([]byte, frameHeaderBytes)
	for _, tx := range txs {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(tx)))
		b = append(b, tx...)
	}
	return b
}

func isDamage(err error) bool {
	var damage *DamageError
	return errors.As(err, &damage)
}

// waitPrepared waits for the preparer, if one runs.
func (l *Log) waitPrepared() {
	l.mu.Lock()
	done := l.preparing
	l.mu.Unlock()
	if done != nil {
		<-done
	}
}

// segmentPath is where the segment with that base is.
func segmentPath(base uint64) string { return testDir + "/" + segmentName(base) }
