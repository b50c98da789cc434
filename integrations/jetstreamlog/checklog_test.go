package jetstreamlog

import (
	"strings"
	"testing"
	"time"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecycletest"
	"github.com/stretchr/testify/require"
)

// A process that is killed is a connection that ends. The medium fails as the way to the
// servers goes dead for longer than the log waits, and then is there again.
func TestTheLogIsALog(t *testing.T) {
	t.Parallel()
	lifecycletest.CheckLog(t, func(t testing.TB) lifecycletest.LogPlace {
		timeout := 20 * time.Second
		if strings.Contains(t.Name(), "failed") { // each failure takes so long
			timeout = 700 * time.Millisecond
		}
		c := theCluster(t)
		var p *proxy
		place := lifecycletest.LogPlace{
			Open: func() (lifecycle.Log, error) {
				p = newProxy(t, c.members[0].Client)
				l, err := Open(t.Context(), c.connect(t, p.address), streamOf(t), Options{})
				if err != nil {
					return nil, err
				}
				l.options.Timeout = timeout
				return l, nil
			},
			Read: func(log lifecycle.Log, from lifecycle.Offset, visit func(lifecycle.Offset, []byte)) error {
				for entry, err := range log.(*Log).Read(t.Context(), from) {
					if err != nil {
						return err
					}
					visit(entry.Offset, entry.Data)
				}
				return nil
			},
			ReadsWhileAppending: true,
			Crash: func(log lifecycle.Log, _ uint64) error {
				log.(*Log).js.Conn().Close()
				return nil
			},
			Fail: func(log lifecycle.Log, _ lifecycletest.Op) error {
				dead := p
				dead.holdRequests()
				time.AfterFunc(timeout*3/2, dead.cut)
				return nil
			},
		}
		if *long {
			place.LargestTransaction = lifecycle.MaxTransactionBytes
		}
		return place
	})
}

func TestTheLongestTransaction(t *testing.T) {
	if !*long {
		t.Skip("skipped: 64 MiB only with -long")
	}
	c := theCluster(t)
	js := c.connect(t)
	l := c.open(t, js, Options{})
	tx := make([]byte, lifecycle.MaxTransactionBytes)
	tx[len(tx)-1] = 1
	require.NoError(t, l.Append([][]byte{tx}))
	require.NoError(t, l.Sync())
	entries := all(t, l, 0)
	require.Len(t, entries, 1)
	require.Equal(t, tx, entries[0].Data)
}
