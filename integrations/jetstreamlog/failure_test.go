package jetstreamlog

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed080d9131/lifecycle"
	"github.com/stretchr/testify/require"
)

var long = flag.Bool("long", false, "run the tests with more transactions, more kills and larger transactions")

// load is clients that commit through hosts, and what they were told.
type load struct {
	clients int
	kills   int
	fenced  int

	mu      sync.Mutex
	acked   map[uint64]string // by offset
	sent    map[string]bool   // everything that a host accepted
	changed chan struct{}     // closed and made anew at each acknowledgement
	number  atomic.Int64
}

func newLoad() *load {
	return &load{clients: 16, acked: map[uint64]string{}, sent: map[string]bool{}, changed: make(chan struct{})}
}

// run lets clients commit through the host until ctx ends or the host refuses.
func (w *load) run(ctx context.Context, host *lifecycle.Host, running *sync.WaitGroup) {
	for range w.clients {
		running.Go(func() {
			for ctx.Err() == nil {
				tx := fmt.Sprintf("%s %d", host.Status().Host, w.number.Add(1))
				p, err := host.Durability().Append(ctx, []byte(tx))
				if err != nil {
					return
				}
				w.mu.Lock()
				w.sent[tx] = true
				w.mu.Unlock()
				if p.Wait(context.Background()) != nil {
					return
				}
				w.mu.Lock()
				w.acked[p.Offset()] = tx
				close(w.changed)
				w.changed = make(chan struct{})
				w.mu.Unlock()
			}
		})
	}
}

// more waits until n more transactions are acknowledged.
func (w *load) more(t testing.TB, n int) {
	t.Helper()
	late := time.After(time.Minute)
	w.mu.Lock()
	until := len(w.acked) + n
	for len(w.acked) < until {
		changed, have := w.changed, len(w.acked)
		w.mu.Unlock()
		select {
		case <-changed:
		case <-late:
			require.Fail(t, "too late", "%d of %d acknowledged after a minute", have, until)
		}
		w.mu.Lock()
	}
	w.mu.Unlock()
}

// verify reads the whole log, compares it with what the clients were told, and prints
// the counts.
func (w *load) verify(t testing.TB, l *Log) {
	t.Helper()
	seen := map[string]uint64{}
	doubled, foreign := 0, 0
	next := l.First()
	for _, e := range all(t, l, next) {
		require.Equal(t, next, e.Offset, "a gap")
		next++
		tx := string(e.Data)
		if _, twice := seen[tx]; twice {
			doubled++
		}
		seen[tx] = e.Offset
		if !w.sent[tx] {
			foreign++
		}
	}
	require.Equal(t, l.Next(), next)
	lost, moved := 0, 0
	for offset, tx := range w.acked {
		switch at, found := seen[tx]; {
		case !found:
			lost++
		case at != offset:
			moved++
		}
	}
	t.Logf("counts: acknowledged %d, in the log %d, kills %d, fenced writers %d, lost = %d, doubled = %d, reordered = %d", len(w.acked), len(seen), w.kills, w.fenced, lost, doubled, moved)
	require.Zero(t, lost, "lost")
	require.Zero(t, doubled, "doubled")
	require.Zero(t, moved, "reordered")
	require.Zero(t, foreign, "never sent")
	require.NotEmpty(t, w.acked)
}

func awaitDone(t testing.TB, host *lifecycle.Host) {
	t.Helper()
	select {
	case <-host.Done():
	case <-time.After(time.Minute):
		require.Fail(t, "the host has not ended after a minute")
	}
}

func exitClean(t testing.TB, host *lifecycle.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, host.Exit(ctx))
}

// surviveKills puts a host under load, kills a server several times while it runs, and
// brings it back each time.
func surviveKills(t *testing.T, kills int, victim func(leader string, followers []string) string) {
	t.Parallel()
	c := newCluster(t)
	js := c.connect(t)
	host := lifecycle.New(c.open(t, js, Options{}), lifecycle.Options{Name: "a"})
	healthy(t, js)
	w := newLoad()
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	w.run(ctx, host, &running)
	for range kills {
		w.more(t, 300)
		leader, followers := place(t, js)
		require.NoError(t, c.kill(victim(leader, followers)))
		w.kills++
		w.more(t, 300)
		c.startAll(t)
		healthy(t, js)
	}
	w.more(t, 300)
	stop()
	running.Wait()
	exitClean(t, host)
	w.verify(t, c.open(t, js, Options{}))
}

func TestTheStreamLeaderIsKilledUnderLoad(t *testing.T) {
	kills := 1
	if *long {
		kills = 20
	}
	surviveKills(t, kills, func(leader string, _ []string) string { return leader })
}

func TestAFollowerIsKilledUnderLoad(t *testing.T) {
	kills := 1
	if *long {
		kills = 20
	}
	surviveKills(t, kills, func(_ string, followers []string) string { return followers[0] })
}

// A leader that steps down in the middle of a batch has some of its messages, and the next
// one the others.
func TestLeadersStepDownInTheMiddleOfBatches(t *testing.T) {
	t.Parallel()
	c := theCluster(t)
	js := c.connect(t)
	l := c.open(t, js, Options{})
	healthy(t, js)
	steps := 4
	if *long {
		steps = 100
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	stepped := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < steps && err == nil; i++ {
			err = try(ctx, func(ctx context.Context) (bool, error) {
				answer, err := js.Conn().RequestWithContext(ctx, "$JS.API.STREAM.LEADER.STEPDOWN."+streamOf(t), nil)
				if err == nil && bytes.Contains(answer.Data, []byte(`"error"`)) {
					err = fmt.Errorf("%s", answer.Data)
				}
				return false, err
			})
		}
		stepped <- err
	}()
	w := newLoad()
	for ended := false; !ended; {
		select {
		case err := <-stepped:
			require.NoError(t, err)
			ended = true // and one more batch
		default:
		}
		txs := numbered(len(w.acked), 500+len(w.acked)%1000)
		next := l.Next()
		require.NoError(t, l.Append(txs))
		require.NoError(t, l.Sync())
		for i, tx := range txs {
			w.sent[string(tx)], w.acked[next+uint64(i)] = true, string(tx)
		}
	}
	require.NoError(t, l.Close())
	w.verify(t, c.open(t, js, Options{}))
}

func TestTheQuorumIsLostAndComesBackInTime(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	js := c.connect(t)
	host := lifecycle.New(c.open(t, js, Options{Timeout: time.Minute}), lifecycle.Options{Name: "a"})
	healthy(t, js)
	w := newLoad()
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	w.run(ctx, host, &running)
	w.more(t, 300)
	leader, followers := place(t, js)
	for _, name := range []string{leader, followers[0]} {
		require.NoError(t, c.kill(name))
		w.kills++
	}
	requireStuck(t, host)
	c.startAll(t)
	w.more(t, 300)
	stop()
	running.Wait()
	exitClean(t, host)
	w.verify(t, c.open(t, js, Options{}))
}

// requireStuck waits until a commit finds no quorum.
func requireStuck(t *testing.T, host *lifecycle.Host) {
	t.Helper()
	eventually(t, "a durable offset that stands still", func(ctx context.Context) error {
		durable := host.Durability().Durable()
		if err := host.Durability().Wait(ctx, durable); errors.Is(err, context.DeadlineExceeded) {
			return nil
		}
		return errors.New("still moving")
	})
}

func TestTheQuorumIsLostForLongerThanTheTimeout(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	js := c.connect(t)
	require.NoError(t, c.open(t, js, Options{}).Close()) // a new cluster takes longer to choose its leaders
	healthy(t, js)
	host := lifecycle.New(c.open(t, js, Options{Timeout: 3 * time.Second}), lifecycle.Options{Name: "a"})
	w := newLoad()
	var running sync.WaitGroup
	w.run(t.Context(), host, &running)
	w.more(t, 300)
	leader, followers := place(t, js)
	for _, name := range []string{leader, followers[0]} {
		require.NoError(t, c.kill(name))
		w.kills++
	}
	awaitDone(t, host)
	running.Wait() // nobody is left waiting
	err := host.Exit(t.Context())
	require.ErrorIs(t, err, ErrTimeout)
	var failed *lifecycle.LogError
	require.ErrorAs(t, err, &failed)
	_, err = host.Durability().Commit(t.Context(), nil)
	require.ErrorIs(t, err, lifecycle.ErrClosed)

	c.startAll(t)
	healthy(t, js)
	w.verify(t, c.open(t, js, Options{}))
}

func TestForceExitEndsWhileTheQuorumIsLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	js := c.connect(t)
	opened := c.open(t, js, Options{Timeout: 2 * time.Minute})
	log := &watched{Log: opened, closed: make(chan error, 1)}
	host := lifecycle.New(log, lifecycle.Options{Name: "a"})
	healthy(t, js)
	w := newLoad()
	var running sync.WaitGroup
	w.run(t.Context(), host, &running)
	w.more(t, 300)
	leader, followers := place(t, js)
	for _, name := range []string{leader, followers[0]} {
		require.NoError(t, c.kill(name))
		w.kills++
	}
	requireStuck(t, host)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := host.ForceExit(ctx)
	require.ErrorIs(t, err, lifecycle.ErrForced)
	require.ErrorIs(t, err, lifecycle.ErrUnknown)
	awaitDone(t, host)
	running.Wait()
	require.Positive(t, host.Report().Lost)
	select {
	case <-log.closed:
		require.Fail(t, "the log's call has returned before the quorum was back")
	default:
	}

	c.startAll(t) // the call that was abandoned ends now, and the log closes
	require.NoError(t, <-log.closed)
	healthy(t, js)
	w.verify(t, c.open(t, js, Options{}))
}

// watched tells when the log was closed.
type watched struct {
	*Log
	closed chan error
}

func (l *watched) Close() error {
	err := l.Log.Close()
	l.closed <- err
	return err
}

func TestTwoHostsOnOneStream(t *testing.T) {
	t.Parallel()
	c := theCluster(t)
	js := c.connect(t)
	w := newLoad()
	rounds := 10
	if *long {
		rounds = 200
	}
	var running sync.WaitGroup
	old := lifecycle.New(c.open(t, js, Options{}), lifecycle.Options{Name: "host 0"})
	w.run(t.Context(), old, &running)
	for round := range rounds {
		w.more(t, 50) // the old one writes
		log := c.open(t, c.connect(t), Options{Fence: fmt.Appendf(nil, "fence %d", round)})
		w.mu.Lock()
		w.sent[fmt.Sprintf("fence %d", round)] = true
		w.mu.Unlock()
		next := log.Next()
		host := lifecycle.New(log, lifecycle.Options{Name: fmt.Sprintf("host %d", round+1)})
		w.run(t.Context(), host, &running)
		awaitDone(t, old) // fenced by the first thing that it writes
		require.ErrorIs(t, old.Exit(t.Context()), ErrFenced)
		require.Less(t, old.Durability().Durable(), next, "nothing of the old one's came behind the fence")
		w.fenced++
		old = host
	}
	w.more(t, 50)
	exitClean(t, old)
	running.Wait()
	w.verify(t, c.open(t, js, Options{}))
}

func TestWithoutAFenceTheFirstToWriteFencesTheOther(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	a, b := c.open(t, js, Options{}), c.open(t, js, Options{})
	require.NoError(t, b.Append(numbered(0, 1)))
	require.NoError(t, b.Sync())
	require.NoError(t, a.Append(numbered(100, 1)))
	require.ErrorIs(t, a.Sync(), ErrFenced)
	require.ErrorIs(t, a.Sync(), ErrFenced, "for good")
	require.ErrorIs(t, a.Append(numbered(101, 1)), ErrFenced)
	require.ErrorIs(t, a.TruncateBefore(t.Context(), 0), ErrFenced)
	require.NoError(t, a.Close())
	require.NoError(t, b.Append(numbered(1, 1)))
	require.NoError(t, b.Sync())
	require.Equal(t, []string{"tx 0", "tx 1"}, texts(t, b, 0))
	require.NoError(t, b.Close())
}

// What another writer puts in the place of a batch has the same length, or that of its
// beginning. A log that had its next batch on the way already would have it taken; one
// that published the transactions of a batch each for itself, the rest of it.
func TestNothingFollowsABatchThatWasRefused(t *testing.T) {
	c := theCluster(t)
	js := c.connect(t)
	for _, test := range []struct{ batch, others int }{{1, 1}, {3, 3}, {3, 1}, {3, 2}} {
		a, b := c.open(t, js, Options{MaxBatch: test.batch}), c.open(t, js, Options{})
		require.NoError(t, b.Append(numbered(0, test.others)))
		require.NoError(t, b.Sync())
		err := a.Append(numbered(100, 4*test.batch))
		if err == nil {
			err = a.Sync()
		}
		require.ErrorIs(t, err, ErrFenced)
		for _, text := range texts(t, c.open(t, js, Options{}), 0) {
			require.NotContains(t, text, "tx 10")
		}
		require.NoError(t, b.Append(numbered(1, 1)))
		require.NoError(t, b.Sync(), "nothing has fenced the other one")
	}
}

// The servers take a batch, and the answer is lost. It is published again, and refused,
// and found to be there.
func TestALostAcknowledgementDoublesNothing(t *testing.T) {
	t.Parallel()
	c := theCluster(t)
	direct := c.connect(t)
	p := newProxy(t, c.members[0].Client)
	l := c.open(t, c.connect(t, p.address), Options{})
	healthy(t, direct)
	w := newLoad()
	for round, size := range []int{1, 10} {
		txs := numbered(100*round, size)
		next := l.Next()
		require.NoError(t, l.Append(txs))
		p.dropAnswers()
		synced := make(chan error, 1)
		go func() { synced <- l.Sync() }()
		s, err := direct.Stream(t.Context(), streamOf(t))
		require.NoError(t, err)
		eventually(t, "the batch in the stream", func(ctx context.Context) error {
			info, err := s.Info(ctx)
			if err == nil && info.State.LastSeq < next+uint64(size) {
				err = errors.New("not yet")
			}
			return err
		})
		select {
		case err := <-synced:
			require.Fail(t, "Sync has returned", "%v", err)
		default:
		}
		p.cut()
		require.NoError(t, <-synced)
		for i, tx := range txs {
			w.sent[string(tx)], w.acked[next+uint64(i)] = true, string(tx)
		}
	}
	require.NoError(t, l.Close())
	w.verify(t, c.open(t, direct, Options{}))
}

// A batch is held up on its way, published again over another connection, and
// acknowledged. The first copy arrives when more was written already.
func TestACopyThatArrivesLateIsRefused(t *testing.T) {
	t.Parallel()
	c := theCluster(t)
	direct := c.connect(t)
	p := newProxy(t, c.members[0].Client)
	l := c.open(t, c.connect(t, p.address), Options{})
	healthy(t, direct)
	w := newLoad()
	for round, size := range []int{1, 10, 1} {
		txs := numbered(100*round, size)
		before := l.Next()
		require.NoError(t, l.Append(txs))
		p.holdRequests()
		synced := make(chan error, 1)
		go func() { synced <- l.Sync() }()
		p.awaitHeld(t, string(txs[size-1]))
		p.cut()
		require.NoError(t, <-synced)
		for i, tx := range txs {
			w.sent[string(tx)], w.acked[before+uint64(i)] = true, string(tx)
		}
	}
	require.Equal(t, 3, p.release(t), "copies that arrive now")
	// The server that has read them hands on what comes next behind them.
	require.NoError(t, l.Append(numbered(900, 1)))
	require.NoError(t, l.Sync())
	w.sent["tx 900"], w.acked[l.Next()-1] = true, "tx 900"
	require.NoError(t, l.Close())
	w.verify(t, c.open(t, direct, Options{}))
}
