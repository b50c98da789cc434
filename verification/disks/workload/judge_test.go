package workload

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/commitlog"
)

// Each case is a log that is wrong in one way; the judge has to say in which.
func TestTheJudgeFindsWhatIsWrongWithALog(t *testing.T) {
	shape := Shape{Seed: 5, Small: 40, Large: 400}
	a, b := func(n uint32) ID { return ID{0, 0, n} }, func(n uint32) ID { return ID{0, 1, n} }
	acknowledged := []ID{a(0), b(0), a(1), b(1), a(2)}
	altered := func(id ID) []byte {
		tx := shape.Tx(id)
		tx[len(tx)-1] ^= 1
		return tx
	}
	txs := func(ids ...ID) (txs [][]byte) {
		for _, id := range ids {
			txs = append(txs, shape.Tx(id))
		}
		return txs
	}
	for name, c := range map[string]struct {
		txs  [][]byte
		want string // "": nothing
	}{
		"as it should be":        {txs(acknowledged...), ""},
		"more than acknowledged": {txs(append(acknowledged, b(2), a(3))...), ""},
		"the last is missing":    {txs(acknowledged[:4]...), "lost: offset 4 was acknowledged"},
		"all are missing":        {nil, "but the log ends at 0"},
		"two changed places":     {txs(a(0), b(0), b(1), a(1), a(2)), "lost: offset 2 was acknowledged to life 0, committer 0, serial 1, and holds life 0, committer 1, serial 1"},
		"one is there twice":     {txs(append(acknowledged, a(2))...), "serial 3 of that committer comes next"},
		"one is left out":        {txs(append(acknowledged, a(4))...), "serial 3 of that committer comes next"},
		"the first is no first":  {txs(append(acknowledged, ID{0, 2, 1})...), "nothing of that committer came before"},
		"a changed byte":         {append(txs(acknowledged[:4]...), altered(a(2))), "its content is another"},
		"nobody's committer":     {txs(append(acknowledged, ID{0, 3, 0})...), "a transaction of nobody"},
		"nobody's life":          {txs(append(acknowledged, ID{1, 0, 0})...), "a transaction of nobody"},
		"too short":              {append(txs(acknowledged...), []byte{1}), "1 bytes are too few"},
	} {
		t.Run(name, func(t *testing.T) {
			log, err := commitlog.Open(t.TempDir(), commitlog.Options{})
			require.NoError(t, err)
			defer log.Close()
			require.NoError(t, log.Append(c.txs))
			require.NoError(t, log.Sync())
			j := Judge{Shape: shape, Committers: 3}
			j.Begin(0)
			for i, id := range acknowledged {
				j.Acknowledge(uint64(i), id)
			}
			findings := j.Check(log)
			if c.want == "" {
				require.Empty(t, findings)
				require.Empty(t, j.Check(log), "again")
				return
			}
			require.NotEmpty(t, findings)
			require.Contains(t, findings[0], c.want)
		})
	}
}

func TestTheJudgeRemembersWhatALogHeldAndWhereItMayBegin(t *testing.T) {
	shape := Shape{Seed: 5, Small: 400, Large: 4000}
	dir := t.TempDir()
	open := func() *commitlog.Log {
		log, err := commitlog.Open(dir, commitlog.Options{SegmentBytes: 1})
		require.NoError(t, err)
		return log
	}
	log := open()
	for i := range uint32(100) {
		require.NoError(t, log.Append([][]byte{shape.Tx(ID{0, 0, i})}))
		require.NoError(t, log.Sync())
	}
	j := Judge{Shape: shape, Committers: 1}
	j.Begin(0)
	require.Empty(t, j.Check(log))
	require.Equal(t, 100, j.Recovered)

	require.NoError(t, log.TruncateBefore(50))
	require.Positive(t, log.First())
	findings := j.Check(log)
	require.Len(t, findings, 1)
	require.Contains(t, findings[0], "but no truncation went beyond 0")
	j.Truncating(50)
	require.Empty(t, j.Check(log))
	require.NoError(t, log.Close())

	dir = t.TempDir()
	log = open()
	defer log.Close()
	require.NoError(t, log.Append([][]byte{shape.Tx(ID{0, 0, 0}), shape.Tx(ID{0, 0, 1})}))
	require.NoError(t, log.Sync())
	require.Equal(t, []string{"lost: the log ends at offset 2, but an earlier opening showed all below 100"}, j.Check(log))

	j.Acknowledge(1, ID{0, 0, 1})
	require.Contains(t, j.Check(log)[0], "but the log held it already")
	j.Acknowledge(200, ID{0, 0, 1})
	j.Acknowledge(200, ID{0, 0, 2})
	require.Contains(t, j.Check(log)[0], "was acknowledged to two")
}
