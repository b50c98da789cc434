package linear

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/internal/seam"
)

var (
	histories = flag.Int("histories", 600, "how many histories each test makes")
	seed      = flag.Uint64("seed", 0, "plays the histories of that seed again, with the same choices (0: a new one)")
)

const (
	mostClients  = 5
	mostRequests = 6 // of a client
	checkTime    = 30 * time.Second
)

// In a bubble jitter is a virtual sleep of random length at every step: an order of all
// steps drawn at random, on one processor or many. It is the only place for ForceExit,
// whose grace takes virtual time too.
func TestHistoriesInABubbleAreLinearizable(t *testing.T) {
	play(t, func(t *testing.T, rng *rand.Rand, counts *counts) []porcupine.Operation {
		var history []porcupine.Operation
		synctest.Test(t, func(t *testing.T) {
			r := newRecorder(rng, counts)
			r.jitter = func() {
				if d := r.below(12); d > 4 {
					time.Sleep(time.Duration(d) * time.Microsecond)
				}
			}
			r.force = r.below(3) == 0
			r.hang = r.force && r.below(2) == 0
			history = r.record(t)
		})
		return history
	})
}

// Outside one the processors do what they like, and jitter gives way to others.
func TestHistoriesOfRealGoroutinesAreLinearizable(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	play(t, func(t *testing.T, rng *rand.Rand, counts *counts) []porcupine.Operation {
		r := newRecorder(rng, counts)
		r.jitter = func() {
			for range max(0, r.below(12)-4) {
				runtime.Gosched()
			}
		}
		return r.record(t)
	})
}

// counts is what happened in all histories of a test.
type counts struct {
	operations, accepted, refused, unknown, expired, failed, forced, gaveUp int
}

func play(t *testing.T, one func(t *testing.T, rng *rand.Rand, counts *counts) []porcupine.Operation) {
	seed := *seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	var counts counts
	undecided := 0
	for n := range *histories {
		history := one(t, rand.New(rand.NewPCG(seed, uint64(n))), &counts)
		if t.Failed() {
			t.Logf("in history %d", n)
			return
		}
		counts.operations += len(history)
		switch result := porcupine.CheckOperationsTimeout(model, history, checkTime); result {
		case porcupine.Illegal:
			require.Fail(t, "not linearizable", "history %d of seed %d:\n%s", n, seed, show(history))
		case porcupine.Unknown:
			undecided++
		}
	}
	require.Zero(t, undecided, "histories that took porcupine more than %v", checkTime)
	t.Logf("counts: histories %d, operations %d, accepted %d, refused %d, unknown %d, expired %d, failing logs %d, forced exits %d (gave up %d), undecided %d",
		*histories, counts.operations, counts.accepted, counts.refused, counts.unknown, counts.expired, counts.failed, counts.forced, counts.gaveUp, undecided)
}

func show(history []porcupine.Operation) string {
	slices.SortFunc(history, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	text := ""
	for _, op := range history {
		text += fmt.Sprintf("%4d to %4d  client %2d  %s\n", op.Call, op.Return, op.ClientId, describe(op.Input.(input), op.Output.(output)))
	}
	return text
}

// recorder makes one history.
type recorder struct {
	jitter func()
	force  bool // the exit is forced, with a context that ends
	hang   bool // a sync hangs until the exit has ended
	counts *counts
	clock  atomic.Int64

	mu      sync.Mutex // guards what follows
	rng     *rand.Rand
	history []porcupine.Operation
	steps   int
	cancels map[int]func() // called at so many steps
	// Of the host's operations that have begun.
	landing *porcupine.Operation
	closing []porcupine.Operation
}

func newRecorder(rng *rand.Rand, counts *counts) *recorder {
	return &recorder{rng: rng, counts: counts, cancels: map[int]func(){}}
}

// below returns a random number.
func (r *recorder) below(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rng.IntN(n)
}

// Operations that the recorder finds at the seam, by their clients' numbers in the history.
const (
	byLog = mostClients + iota
	byActor
	byRunner
)

func (r *recorder) begin(client int, in input) porcupine.Operation {
	return porcupine.Operation{ClientId: client, Input: in, Call: r.clock.Add(1)}
}

func (r *recorder) end(op porcupine.Operation, out output) {
	op.Output, op.Return = out, r.clock.Add(1)
	r.mu.Lock()
	r.history = append(r.history, op)
	r.mu.Unlock()
}

// watch is the recorder at the seam.
func (r *recorder) watch(log *slowLog) seam.Watch {
	return func(step seam.Step, _ string) {
		r.mu.Lock()
		r.steps++
		cancel := r.cancels[r.steps]
		r.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		switch step {
		case seam.Settle:
			op := r.begin(byActor, input{kind: settling, count: log.count()})
			r.landing = &op
		case seam.Poison:
			op := r.begin(byActor, input{kind: failing})
			r.landing = &op
		case seam.Take: // the actor has landed
			if r.landing != nil {
				r.end(*r.landing, output{})
				r.landing = nil
			}
		case seam.Seal:
			r.closing = append(r.closing, r.begin(byRunner, input{kind: sealing}), r.begin(byRunner, input{kind: draining}))
		case seam.GiveUp:
			r.counts.gaveUp++
			if r.below(2) == 0 { // the sync returns about now
				r.mu.Lock()
				r.cancels[r.steps+1+r.rng.IntN(10)] = log.end
				r.mu.Unlock()
			}
			r.closing = append(r.closing, r.begin(byRunner, input{kind: giving}))
		case seam.CheckDrain:
			for _, op := range r.closing {
				r.end(op, output{})
			}
		}
		r.jitter()
	}
}

// expiring returns a context that ends at one of the next steps, or never.
func (r *recorder) expiring() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rng.IntN(3) > 0 {
		return context.Background()
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancels[r.steps+1+r.rng.IntN(20)] = cancel
	return ctx
}

// record plays a host with clients from its beginning to its end.
func (r *recorder) record(t *testing.T) []porcupine.Operation {
	log := &slowLog{r: r, release: make(chan struct{})}
	log.end = sync.OnceFunc(func() { close(log.release) })
	if !r.force && r.below(3) == 0 {
		log.failAt = 1 + r.below(6)
		r.counts.failed++
	}
	if r.hang {
		log.hangAt = 1 + r.below(4)
	}
	remove := seam.Install(func(any) seam.Watch { return r.watch(log) })
	queue := 0
	if r.below(2) == 0 {
		queue = 1 + r.below(100) // room for one to three
	}
	host := lifecycle.New(log, lifecycle.Options{Name: "linear", QueueBytes: queue})
	remove()

	var clients sync.WaitGroup
	for n := range 2 + r.below(mostClients-1) {
		c := client{r, n, host.Durability(), nil}
		requests := 1 + r.below(mostRequests)
		clients.Go(func() {
			for range requests {
				c.request()
				r.jitter()
			}
		})
	}
	for range r.below(10) {
		r.jitter()
	}
	if r.force {
		r.counts.forced++
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		_ = host.ForceExit(ctx) // its result is the storms' matter
		cancel()
	} else {
		_ = host.Exit(t.Context())
	}
	clients.Wait()
	log.end()
	<-log.closed() // the actor closes it itself, perhaps after Done
	op := r.begin(byLog, input{kind: durable})
	r.end(op, output{offset: int(host.Durability().Durable())})
	r.end(r.begin(byLog, input{kind: reading, read: log.read()}), output{})
	return r.history
}

// client asks the channel for this and that.
type client struct {
	r          *recorder
	n          int
	durability *lifecycle.Durability
	pending    []lifecycle.Pending
}

func (c *client) request() {
	r := c.r
	switch choice := r.below(10); {
	case choice < 4:
		ctx, id := r.expiring(), byte(r.clock.Add(1))
		op := r.begin(c.n, input{kind: appending, id: id})
		p, err := c.durability.Append(ctx, []byte{id})
		r.end(op, output{r.append(err), int(p.Offset())})
		if err == nil {
			c.pending = append(c.pending, p)
		}
	case choice < 6:
		ctx, id := r.expiring(), byte(r.clock.Add(1))
		append, wait := r.begin(c.n, input{kind: appending, id: id}), r.begin(c.n, input{kind: waiting})
		offset, err := c.durability.Commit(ctx, []byte{id})
		if err != nil && !errors.Is(err, lifecycle.ErrUnknown) {
			r.end(append, output{r.append(err), 0})
			return
		}
		r.end(append, output{r.append(nil), int(offset)})
		wait.Input = input{kind: waiting, offset: int(offset)}
		r.end(wait, output{told: r.outcome(err)})
	case choice < 7 && len(c.pending) > 0:
		p := c.pending[r.below(len(c.pending))]
		ctx := r.expiring()
		op := r.begin(c.n, input{kind: waiting, offset: int(p.Offset())})
		r.end(op, output{told: r.outcome(p.Wait(ctx))})
	case choice < 8:
		offset := r.below(8) // perhaps of the future
		ctx := r.expiring()
		op := r.begin(c.n, input{kind: waiting, offset: offset})
		r.end(op, output{told: r.outcome(c.durability.Wait(ctx, lifecycle.Offset(offset)))})
	case choice < 9:
		op := r.begin(c.n, input{kind: accepted})
		r.end(op, output{offset: int(c.durability.Accepted())})
	default:
		op := r.begin(c.n, input{kind: durable})
		r.end(op, output{offset: int(c.durability.Durable())})
	}
}

// append and outcome put an error into the words of the specification, and count it.
func (r *recorder) append(err error) told {
	r.mu.Lock()
	defer r.mu.Unlock()
	var failure *lifecycle.LogError
	switch {
	case err == nil:
		r.counts.accepted++
		return yes
	case errors.As(err, &failure):
		r.counts.refused++
		return logError
	case errors.Is(err, lifecycle.ErrClosed):
		r.counts.refused++
		return closed
	case errors.Is(err, context.Canceled):
		r.counts.expired++
		return ctxError
	}
	return told(err.Error())
}

func (r *recorder) outcome(err error) told {
	var failure *lifecycle.LogError
	if err == nil {
		return yes
	}
	if !errors.Is(err, lifecycle.ErrUnknown) {
		return r.append(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.unknown++
	switch {
	case errors.As(err, &failure):
		return unknownLog
	case errors.Is(err, lifecycle.ErrForced):
		return unknownForced
	case errors.Is(err, context.Canceled):
		return unknownCtx
	}
	return told(err.Error())
}

// slowLog is a Log in memory that takes its time, and may fail or hang. After a failure it
// says yes to whatever it is asked and keeps nothing, as a disk does after a failed fsync.
type slowLog struct {
	r       *recorder
	release chan struct{} // closed: nothing hangs any more
	failAt  int           // the call that fails; 0: none
	hangAt  int           // the sync that hangs; 0: none
	end     func()        // closes release

	mu      sync.Mutex // guards what follows
	calls   int
	failed  bool
	syncs   int
	written []byte
	synced  int
	done    chan struct{}
}

func (l *slowLog) Next() lifecycle.Offset { return 0 }

// call reports whether the call has an effect, and its error.
func (l *slowLog) call() (effect bool, err error) {
	l.r.jitter()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	if l.calls == l.failAt {
		l.failed, err = true, errBroken
	}
	return !l.failed, err
}

var errBroken = errors.New("the disk is gone")

func (l *slowLog) Append(txs [][]byte) error {
	effect, err := l.call()
	if !effect {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, tx := range txs {
		l.written = append(l.written, tx...)
	}
	return nil
}

func (l *slowLog) Sync() error {
	l.mu.Lock()
	n := len(l.written)
	l.syncs++
	hangs := l.syncs == l.hangAt
	l.mu.Unlock()
	op := l.r.begin(byLog, input{kind: syncing, count: n})
	if hangs {
		<-l.release
	}
	if effect, err := l.call(); !effect {
		return err
	}
	l.mu.Lock()
	l.synced = n
	l.mu.Unlock()
	l.r.end(op, output{})
	return nil
}

func (l *slowLog) Close() error {
	close(l.closed())
	return nil
}

func (l *slowLog) closed() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
	}
	return l.done
}

func (l *slowLog) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced
}

// read is what a reader finds after a power failure.
func (l *slowLog) read() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.written[:l.synced])
}
