package jetstreamlog

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/jetstreamlog/internal/member"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestOpenRefusesArgumentsThatMakeNoSense(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	_, err := Open(t.Context(), nil, "orders", Options{})
	require.ErrorIs(t, err, ErrInvalid)
	for _, name := range []string{"", "a b", "a.b", "a*", "a>", "a/b", strings.Repeat("n", 250), strings.Repeat("n", 5000)} {
		_, err = Open(t.Context(), js, name, Options{})
		require.ErrorIs(t, err, ErrInvalid, "%q", name)
	}
	for _, options := range []Options{{Replicas: -1}, {Timeout: -1}, {MaxBatch: -1}, {Fence: make([]byte, maxFenceBytes+1)}} {
		_, err = Open(t.Context(), js, streamOf(t), options)
		require.ErrorIs(t, err, ErrInvalid)
	}
	_, err = js.Stream(t.Context(), streamOf(t))
	require.ErrorIs(t, err, jetstream.ErrStreamNotFound, "and made nothing")
}

func TestTheLongestNameAndFenceAreTaken(t *testing.T) {
	c := theCluster(t)
	fence := make([]byte, maxFenceBytes)
	js := c.connect(t)
	name := strings.Repeat("n", maxNameBytes)
	l, err := Open(t.Context(), js, name, Options{Fence: fence})
	require.NoError(t, err)
	entries := all(t, l, 0)
	require.Len(t, entries, 1)
	require.Equal(t, fence, entries[0].Data)
	require.NoError(t, l.Close())
	require.NoError(t, js.DeleteStream(t.Context(), name))
	require.NoError(t, js.DeleteStream(t.Context(), name+partsSuffix))
}

// Whose connection is not there yet waits for it.
func TestOpenWaitsForAConnection(t *testing.T) {
	free, err := member.FreeAddrs(1)
	require.NoError(t, err)
	c := theCluster(t)
	_, err = Open(t.Context(), c.connect(t, free[0]), streamOf(t), Options{Timeout: 300 * time.Millisecond})
	require.ErrorIs(t, err, ErrTimeout)
	require.NotErrorIs(t, err, ErrInvalid)
}

func TestOpenRefusesAStreamThatWouldBreakAPromise(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	name := streamOf(t)
	for what, change := range map[string]func(*jetstream.StreamConfig){
		"storage":      func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"1 replicas":   func(c *jetstream.StreamConfig) { c.Replicas = 1 },
		"max age":      func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"max messages": func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 100, jetstream.DiscardOld },
		"max bytes":    func(c *jetstream.StreamConfig) { c.MaxBytes, c.Discard = 100, jetstream.DiscardOld },
		"of a subject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject, c.Discard = 100, jetstream.DiscardOld },
		"atomic":       func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = false },
		"direct":       func(c *jetstream.StreamConfig) { c.AllowDirect = false },
		"retention":    func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy },
		"subjects":     func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "lifecycle.other") },
		"acknowledge":  func(c *jetstream.StreamConfig) { c.NoAck, c.AllowAtomicPublish = true, false },
		"roll-ups":     func(c *jetstream.StreamConfig) { c.AllowRollup = true },
		"expire":       func(c *jetstream.StreamConfig) { c.AllowMsgTTL = true },
		"purged":       func(c *jetstream.StreamConfig) { c.DenyPurge = true },
		"messages of":  func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 },
	} {
		config := streamConfig(name, "lifecycle."+name+".tx", 3)
		change(&config)
		_, err := js.CreateStream(t.Context(), config)
		require.NoError(t, err, what)
		_, err = Open(t.Context(), js, name, Options{})
		require.ErrorIs(t, err, ErrInvalid, what)
		if what != "acknowledge" { // such a stream can't take batches either, which is said first
			require.ErrorContains(t, err, what)
		}
		require.NoError(t, js.DeleteStream(t.Context(), name))
	}
}

func TestAStreamWithSomebodyElsesMessagesIsRefused(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	l := c.open(t, js, Options{})
	require.NoError(t, l.Append(numbered(0, 2)))
	require.NoError(t, l.Sync())
	_, err := js.Publish(t.Context(), l.txs.subject, []byte("hello"))
	require.NoError(t, err)
	_, err = Open(t.Context(), js, streamOf(t), Options{})
	require.ErrorIs(t, err, ErrForeign)

	require.NoError(t, l.Append(numbered(2, 1)))
	err = l.Sync()
	require.ErrorIs(t, err, ErrFenced)
	require.ErrorIs(t, err, ErrForeign)
}

// The last message was a log's when Open looked, and then another came.
func TestAFenceIsNotPutBehindSomebodyElsesMessage(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	l := c.open(t, js, Options{})
	require.NoError(t, l.Append(numbered(0, 1)))
	require.NoError(t, l.Sync())
	_, err := js.Publish(t.Context(), l.txs.subject, []byte("hello"))
	require.NoError(t, err)
	l.options.Fence = []byte("fence")
	require.ErrorIs(t, l.fence(t.Context()), ErrForeign)
}

func TestASealedStreamFailsTheLogAtOnce(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	for _, n := range []int{1, 3} {
		l := c.open(t, js, Options{})
		config := l.txs.stream.CachedInfo().Config
		require.NoError(t, l.Append(numbered(0, n)))
		config.Sealed = true
		_, err := js.UpdateStream(t.Context(), config)
		require.NoError(t, err)
		err = l.Sync()
		require.ErrorContains(t, err, "sealed")
		require.NotErrorIs(t, err, ErrTimeout)
		_, err = Open(t.Context(), js, streamOf(t), Options{})
		require.ErrorContains(t, err, "sealed")
		require.NoError(t, js.DeleteStream(t.Context(), streamOf(t)))
	}
}

func TestAPartThatIsMissingIsNotPassedOver(t *testing.T) {
	c := theCluster(t)
	l := c.open(t, c.connect(t), Options{Timeout: time.Hour})
	require.NoError(t, l.Append([][]byte{make([]byte, 2<<20)}))
	require.NoError(t, l.Sync())
	require.NoError(t, l.parts.purge(t.Context(), 2))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, err := range l.Read(ctx, 0) {
		require.ErrorIs(t, err, ErrForeign)
		require.ErrorContains(t, err, "read part 1")
	}
	require.NoError(t, l.Close())
}

func TestAMessageThatIsMissingIsNotPassedOver(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	config := streamConfig(streamOf(t), "lifecycle."+streamOf(t)+".tx", 3)
	config.DenyDelete = false
	s, err := js.CreateStream(t.Context(), config)
	require.NoError(t, err)
	l := c.open(t, js, Options{})
	require.NoError(t, l.Append(numbered(0, 10)))
	require.NoError(t, l.Sync())
	require.NoError(t, s.DeleteMsg(t.Context(), 6))
	healthy(t, js)
	var read []string
	for entry, err := range l.Read(t.Context(), 0) {
		if err != nil {
			require.ErrorIs(t, err, ErrForeign)
			require.ErrorContains(t, err, "read offset 5")
			break
		}
		read = append(read, string(entry.Data))
	}
	require.Len(t, read, 5)
	require.NoError(t, l.Close())
}

func TestAfterCloseEverythingIsRefused(t *testing.T) {
	c := theCluster(t)
	l := c.open(t, c.connect(t), Options{})
	require.NoError(t, l.Append(numbered(0, 2)))
	require.NoError(t, l.Close())
	require.ErrorIs(t, l.Close(), ErrClosed)
	require.ErrorIs(t, l.Append(numbered(0, 1)), ErrClosed)
	require.ErrorIs(t, l.AppendBatch(nil, 0), ErrClosed)
	require.ErrorIs(t, l.Sync(), ErrClosed)
	require.ErrorIs(t, l.TruncateBefore(t.Context(), 0), ErrClosed)
	for _, err := range l.Read(t.Context(), 0) {
		require.ErrorIs(t, err, ErrClosed)
	}
}

func TestABatchThatIsNoneIsRefusedAndTheLogGoesOn(t *testing.T) {
	c := theCluster(t)
	l := c.open(t, c.connect(t), Options{})
	record := func(length uint32, data string) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, length), data...)
	}
	for _, bad := range [][]byte{{1}, record(5, "four"), record(lifecycle.MaxTransactionBytes+1, ""), record(1, "two")} {
		require.ErrorIs(t, l.AppendBatch(bad, 1), ErrInvalid)
	}
	require.ErrorIs(t, l.AppendBatch(record(4, "four"), 2), ErrInvalid)
	require.ErrorIs(t, l.Append([][]byte{[]byte("a"), make([]byte, lifecycle.MaxTransactionBytes+1)}), ErrInvalid)
	require.Zero(t, l.Next())
	require.NoError(t, l.AppendBatch(append(record(4, "four"), record(0, "")...), 2))
	require.NoError(t, l.Sync())
	require.Equal(t, []string{"four", ""}, texts(t, l, 0))
	require.NoError(t, l.Close())
}

func TestWithNobodyThereEachCallEndsInTime(t *testing.T) {
	t.Parallel()
	c := theCluster(t)
	p := newProxy(t, c.members[0].Client)
	js := c.connect(t, p.address)
	l := c.open(t, js, Options{})
	require.NoError(t, l.Append(numbered(0, 1)))
	require.NoError(t, l.Sync())
	p.dropAnswers()
	l.options.Timeout = 500 * time.Millisecond
	for _, err := range l.Read(t.Context(), 0) {
		require.ErrorIs(t, err, ErrTimeout)
	}
	require.ErrorIs(t, l.TruncateBefore(t.Context(), 1), ErrTimeout)
	_, err := Open(t.Context(), js, streamOf(t), Options{Timeout: 500 * time.Millisecond})
	require.ErrorIs(t, err, ErrTimeout)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range l.Read(ctx, 0) {
		require.ErrorIs(t, err, context.Canceled)
	}
	require.NoError(t, l.Append(numbered(1, 1)))
	require.ErrorIs(t, l.Sync(), ErrTimeout)
	require.ErrorIs(t, l.Sync(), ErrTimeout)
	require.NoError(t, l.Close(), "there is nothing left to say")
}

func TestAClosedConnectionFailsTheLogAtOnce(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	l := c.open(t, js, Options{Timeout: time.Hour})
	require.NoError(t, l.Append(numbered(0, 1)))
	js.Conn().Close()
	require.ErrorContains(t, l.Sync(), "connection closed")
	require.NoError(t, l.Close())
}

func TestALogHasNoGoroutines(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	c.open(t, js, Options{}) // the connection's own goroutines run now
	before := goleak.IgnoreCurrent()
	l := c.open(t, js, Options{Fence: []byte("fence")})
	require.NoError(t, l.Append(append(numbered(1, 1500), make([]byte, 2<<20))))
	require.NoError(t, l.Sync())
	for range l.Read(t.Context(), 0) {
		break
	}
	require.Len(t, texts(t, l, 1), 1501)
	require.NoError(t, l.Close())
	goleak.VerifyNone(t, before)
}
