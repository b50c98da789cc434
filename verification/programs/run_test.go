package programs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// never is a moment that does not come.
const never = time.Duration(math.MaxInt64)

// Moments are counted from the program's start.

// trace is what the users' code of a program did, and what it was told.
type trace struct {
	mu       sync.Mutex
	start    time.Time
	tasks    []*taskRun
	calls    []*callRun
	hooks    []*hookRun
	txs      []*attempt
	waits    []*waitRun
	exits    []*exitRun
	fails    []*failRun
	looks    []*look
	log      []*logCall
	wrong    []string // what was seen on the spot
	phases   []string // as the observer was told them
	exiting  time.Duration
	done     time.Duration
	result   error
	report   lifecycle.Report
	accepted uint64
	durable  uint64
}

type taskRun struct {
	step                  int
	name                  string
	begin, end, cancelled time.Duration
	admission             error
	cause                 error         // as its context has it
	over                  time.Duration // when it went about to end by itself
	result                string
	err                   error // what it is known by
	ticks                 []tick
	interval              time.Duration
}

type tick struct{ begin, end time.Duration }

type callRun struct {
	begin, end time.Duration
	admission  error
}

type hookRun struct {
	name         string
	phase        lifecycle.Phase
	registration time.Duration
	admission    error
	begin, end   time.Duration
	left         time.Duration // behind; set by the model
	ready        time.Duration // when it began to look whether it is cancelled
	cancelled    time.Duration
	result       string
	err          error
}

// attempt is an Append, a Commit, or an Append whose Pending is waited for.
type attempt struct {
	how                string
	tx                 string
	begin, ctxEnd      time.Duration
	appended           time.Duration // when Append returned; not of Commit
	appendErr          error
	end                time.Duration
	err                error
	offset             uint64
	accepted, returned bool
}

type waitRun struct {
	through            uint64
	begin, ctxEnd, end time.Duration
	err                error
}

type exitRun struct {
	force              bool
	begin, ctxEnd, end time.Duration
	err                error
}

type failRun struct {
	at  time.Duration
	err error
}

type look struct {
	at     time.Duration
	status *lifecycle.Status
	report *lifecycle.Report
}

type logCall struct {
	op         string
	begin, end time.Duration
	txs        []string
	err        error
}

// world runs a program.
type world struct {
	trace
	p        program
	host     *lifecycle.Host
	released chan struct{} // closed when everything that hangs is let go
	clients  sync.WaitGroup
}

func (w *world) now() time.Duration { return time.Since(w.start) }

func (w *world) complain(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// note changes the trace.
func (w *world) note(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// run runs a program to its end in a bubble and returns its trace.
func run(t *testing.T, p program) (tr *trace) {
	// Nothing in the bubble may fail t, which would end the search: the model judges the trace when it is over.
	synctest.Test(t, func(*testing.T) {
		w := &world{p: p, released: make(chan struct{})}
		w.start = time.Now()
		w.exiting, w.done = never, never
		phase := func(what string) func(lifecycle.PhaseEvent) {
			return func(e lifecycle.PhaseEvent) {
				w.note(func() { w.phases = append(w.phases, what+" "+e.Phase.String()) })
			}
		}
		var log lifecycle.Log
		switch p.Log.Kind {
		case "plain":
			log = &scriptedLog{w: w}
		case "batch":
			log = &scriptedBatchLog{&scriptedLog{w: w}}
		}
		w.host = lifecycle.New(log, lifecycle.Options{
			QueueBytes: p.Queue,
			StuckAfter: time.Hour,
			Observer:   lifecycle.Observer{PhaseStart: phase("start"), PhaseEnd: phase("end")},
		})
		w.clients.Go(func() { <-w.host.Exiting(); w.note(func() { w.exiting = w.now() }) })
		w.clients.Go(func() { <-w.host.Done(); w.note(func() { w.done = w.now() }) })
		at := time.Duration(0)
		// What ends every program: a patient exit, and if that does not end, force.
		steps := append(slices.Clone(p.Steps), step{Do: "exit", Timeout: 100}, step{After: 101, Do: "force", Timeout: 3})
		for i, s := range steps {
			at += delay(s.After, i)
			time.Sleep(at - w.now())
			synctest.Wait()
			w.clients.Go(func() { w.do(i, s) })
		}
		<-w.host.Done()
		synctest.Wait()
		w.note(func() {
			d := w.host.Durability()
			w.report, w.accepted, w.durable = w.host.Report(), d.Accepted(), d.Durable()
		})
		w.result = w.host.Exit(context.Background())
		time.Sleep(delay(5, len(steps)))
		close(w.released)
		w.clients.Wait()
		time.Sleep(time.Hour) // whatever was left behind ends
		synctest.Wait()
		if d := w.host.Durability(); d.Durable() != w.durable || d.Accepted() != w.accepted {
			w.complain("%d accepted and %d durable at the end, %d and %d later", w.accepted, w.durable, d.Accepted(), d.Durable())
		}
		tr = &w.trace
	})
	return tr
}

// wait waits units, or until everything is let go.
func (w *world) wait(units, id int) {
	if units == forever {
		<-w.released
		return
	}
	time.Sleep(delay(units, id))
}

// context is one with a step's timeout, and the moment when it ends.
func (w *world) context(s step, id int) (ctx context.Context, end time.Duration, cancel func()) {
	switch s.Timeout {
	case 0:
		return context.Background(), never, func() {}
	case forever:
		ctx, stop := context.WithCancel(context.Background())
		stop()
		return ctx, w.now(), stop
	default:
		timeout := delay(s.Timeout, id)
		ctx, stop := context.WithTimeout(context.Background(), timeout)
		return ctx, w.now() + timeout, stop
	}
}

func (w *world) do(i int, s step) {
	id := (i + 1) << 8
	h := w.host
	own := fmt.Errorf("error of step %d", i)
	switch s.Do {
	case "go":
		r := &taskRun{step: i, name: s.Name, begin: w.now(), end: never, cancelled: never, over: never, result: s.Result, err: own}
		w.note(func() { w.tasks = append(w.tasks, r) })
		err := h.Go(s.Name, func(ctx context.Context) error { return w.task(ctx, r, s, id) })
		w.note(func() { r.admission = err })
	case "every":
		interval := delay(s.For, id+1)
		r := &taskRun{step: i, name: s.Name, begin: w.now(), end: never, cancelled: never, err: own, interval: interval}
		w.note(func() { w.tasks = append(w.tasks, r) })
		err := h.Every(s.Name, interval, func(ctx context.Context) error {
			n := 0
			w.note(func() { n = len(r.ticks); r.ticks = append(r.ticks, tick{w.now(), never}) })
			w.wait(s.Obey, id+2+n)
			w.note(func() { r.ticks[n].end = w.now() })
			return end(s.Result, own, ctx)
		})
		w.note(func() { r.admission = err })
	case "enter":
		r := &callRun{begin: w.now(), end: never}
		w.note(func() { w.calls = append(w.calls, r) })
		call, err := h.Enter()
		w.note(func() { r.admission = err })
		if err == nil {
			w.wait(s.For, id)
			w.note(func() { r.end = w.now() })
		}
		call.Leave()
	case "hook":
		r := &hookRun{
			name: fmt.Sprintf("hook %d", i), phase: s.Phase, registration: w.now(),
			begin: never, end: never, ready: never, left: never, cancelled: never, result: s.Result, err: own,
		}
		w.note(func() { w.hooks = append(w.hooks, r) })
		err := h.OnExit(s.Phase, r.name, func(ctx context.Context) error { return w.hook(ctx, r, s, id) })
		w.note(func() { r.admission = err })
	case "append", "commit", "pending":
		ctx, ctxEnd, cancel := w.context(s, id)
		defer cancel()
		w.transact(ctx, ctxEnd, s.Do, fmt.Sprintf("step %d", i), s.Size)
	case "wait":
		ctx, ctxEnd, cancel := w.context(s, id)
		defer cancel()
		r := &waitRun{through: h.Durability().Accepted() + uint64(s.Size) - 1, begin: w.now(), ctxEnd: ctxEnd, end: never}
		if r.through == math.MaxUint64 {
			r.through = 0
		}
		w.note(func() { w.waits = append(w.waits, r) })
		err := h.Durability().Wait(ctx, r.through)
		w.note(func() { r.end, r.err = w.now(), err })
	case "exit", "force":
		ctx, ctxEnd, cancel := w.context(s, id)
		defer cancel()
		r := &exitRun{force: s.Do == "force", begin: w.now(), ctxEnd: ctxEnd, end: never}
		w.note(func() { w.exits = append(w.exits, r) })
		exit := h.Exit
		if r.force {
			exit = h.ForceExit
		}
		err := exit(ctx)
		w.note(func() { r.end, r.err = w.now(), err })
	case "fail":
		if s.Result == "nil" {
			own = nil
		}
		w.note(func() { w.fails = append(w.fails, &failRun{w.now(), own}) })
		h.Fail(own)
	case "status":
		status := h.Status()
		w.note(func() { w.looks = append(w.looks, &look{at: w.now(), status: &status}) })
	case "report":
		report := h.Report()
		w.note(func() { w.looks = append(w.looks, &look{at: w.now(), report: &report}) })
	case "invalid":
		w.invalid()
	case "self exit":
		call, err := h.Enter()
		if err != nil {
			return
		}
		for _, exit := range []func(context.Context) error{h.Exit, h.ForceExit} {
			if err := exit(call.Context(context.Background())); !errors.Is(err, lifecycle.ErrSelfExit) {
				w.complain("an exit from inside a call: %v", err)
			}
		}
		call.Leave()
	}
}

// end is how user code ends: with an error, or in a way that does not return.
func end(result string, own error, ctx context.Context) error {
	switch result {
	case "error":
		return fmt.Errorf("wrapped: %w", own)
	case "error and canceled":
		return errors.Join(context.Canceled, own)
	case "canceled":
		return fmt.Errorf("wrapped: %w", context.Canceled)
	case "cause":
		return context.Cause(ctx)
	case "panic":
		panic(own)
	case "goexit":
		runtime.Goexit()
	}
	return nil
}

func (w *world) task(ctx context.Context, r *taskRun, s step, id int) error {
	defer func() { w.note(func() { r.end = w.now() }) }()
	var life <-chan time.Time
	if s.For > 0 {
		life = time.After(delay(s.For, id+1) - (w.now() - r.begin))
	}
	select {
	case <-ctx.Done():
		w.note(func() { r.cancelled, r.cause = w.now(), context.Cause(ctx) })
		w.wait(s.Obey, id+2)
	case <-life:
		w.note(func() { r.over = w.now() })
	}
	if s.Commit != "" {
		w.transact(context.Background(), never, s.Commit, r.name, s.Size)
	}
	if s.Result == "refusal" {
		return w.host.Go("late", func(context.Context) error { return nil })
	}
	return end(s.Result, r.err, ctx)
}

func (w *world) hook(ctx context.Context, r *hookRun, s step, id int) error {
	defer func() { w.note(func() { r.end = w.now() }) }()
	w.note(func() {
		if r.begin != never {
			w.wrong = append(w.wrong, r.name+" ran twice")
		}
		r.begin = w.now()
	})
	if self := w.host.Exit(ctx); !errors.Is(self, lifecycle.ErrSelfExit) {
		w.complain("an exit from inside a hook: %v", self)
	}
	time.Sleep(delay(0, id+1))
	if s.Commit != "" {
		w.transact(context.Background(), never, s.Commit, r.name, s.Size)
	}
	w.note(func() { r.ready = w.now() })
	var over <-chan time.Time
	if s.For != forever {
		over = time.After(delay(s.For, id+2))
	}
	done := ctx.Done()
	if s.Obey == forever {
		done = nil
	}
	select {
	case <-over:
	case <-done:
		w.note(func() { r.cancelled = w.now() })
	case <-w.released:
	}
	return end(s.Result, r.err, ctx)
}

// transact appends a transaction, and waits for it if how says so.
func (w *world) transact(ctx context.Context, ctxEnd time.Duration, how, who string, size int) {
	d := w.host.Durability()
	r := &attempt{how: how, begin: w.now(), ctxEnd: ctxEnd, appended: never, end: never}
	w.note(func() {
		r.tx = fmt.Sprintf("%s, %d", who, len(w.txs))
		for len(r.tx) < size {
			r.tx += "."
		}
		w.txs = append(w.txs, r)
	})
	if how == "commit" {
		offset, err := d.Commit(ctx, []byte(r.tx))
		w.note(func() {
			r.end, r.offset, r.err, r.returned = w.now(), offset, err, true
			r.accepted = err == nil || errors.Is(err, lifecycle.ErrUnknown)
		})
		return
	}
	pending, err := d.Append(ctx, []byte(r.tx))
	w.note(func() {
		r.appended, r.appendErr, r.accepted, r.offset = w.now(), err, err == nil, pending.Offset()
		r.returned = how == "append" || err != nil
	})
	if how == "append" || err != nil {
		return
	}
	err = pending.Wait(ctx)
	w.note(func() { r.end, r.err, r.returned = w.now(), err, true })
	select {
	case <-pending.Done():
	default:
		if err == nil {
			w.complain("%q is durable, and its Done is not closed", r.tx)
		}
	}
}

// invalid makes calls that can't be meant.
func (w *world) invalid() {
	h, d := w.host, w.host.Durability()
	ctx := context.Background()
	nop := func(context.Context) error { return nil }
	var none context.Context
	_, appendErr := d.Append(none, nil)
	for name, err := range map[string]error{
		"Go of no name":         h.Go("", nop),
		"Go of nil":             h.Go("x", nil),
		"Every of no name":      h.Every("", time.Second, nop),
		"Every of nil":          h.Every("x", time.Second, nil),
		"Every 0":               h.Every("x", 0, nop),
		"OnExit of no name":     h.OnExit(lifecycle.PhaseRelease, "", nop),
		"OnExit of nil":         h.OnExit(lifecycle.PhaseRelease, "x", nil),
		"OnExit of await tasks": h.OnExit(lifecycle.PhaseAwaitTasks, "x", nop),
		"OnExit of no phase":    h.OnExit(99, "x", nop),
		"Exit of nil":           h.Exit(none),
		"ForceExit of nil":      h.ForceExit(none),
		"Wait under nil":        d.Wait(none, 0),
		"Append under nil":      appendErr,
		"Wait of no Pending":    lifecycle.Pending{}.Wait(ctx),
	} {
		if !errors.Is(err, lifecycle.ErrInvalid) {
			w.complain("%s: %v", name, err)
		}
	}
}

// scriptedLog is the log of a program. It also sees to what the host may ask of a log.
type scriptedLog struct {
	w      *world
	counts map[string]int
}

func (l *scriptedLog) Next() uint64 { return 0 }

func (l *scriptedLog) call(op string, units int, txs []string) error {
	w, script := l.w, l.w.p.Log
	r := &logCall{op: op, begin: w.now(), end: never, txs: txs}
	n := 0
	w.note(func() {
		if len(w.log) > 0 && w.log[len(w.log)-1].end == never {
			w.wrong = append(w.wrong, op+" overlaps another call of the log")
		}
		if l.counts == nil {
			l.counts = map[string]int{}
		}
		n = l.counts[op]
		l.counts[op]++
		w.log = append(w.log, r)
	})
	// A call that fails takes some time always: did it fail in the very moment in which whoever appended fails as
	// well, either might come first.
	fails := script.FailOp == op && script.FailCall == n
	if units != forever || fails {
		time.Sleep(delay(max(units, 0), 1<<30+len(op)<<20+n))
	}
	var err error
	if fails {
		if script.How == "hang" {
			<-w.released
		} else {
			err = errLog
		}
	}
	w.note(func() { r.end, r.err = w.now(), err })
	if err != nil && script.How == "panic" {
		panic(err)
	}
	return err
}

var errLog = errors.New("error of the log")

func (l *scriptedLog) Append(txs [][]byte) error {
	var all []string
	for _, tx := range txs {
		all = append(all, string(tx))
	}
	return l.call("append", l.w.p.Log.Append, all)
}
func (l *scriptedLog) Sync() error  { return l.call("sync", l.w.p.Log.Sync, nil) }
func (l *scriptedLog) Close() error { return l.call("close", l.w.p.Log.Close, nil) }

type scriptedBatchLog struct{ *scriptedLog }

func (l *scriptedBatchLog) BatchHeader() int { return 7 }

func (l *scriptedBatchLog) AppendBatch(batch []byte, n int) error {
	var all []string
	for rest := batch[7:]; len(rest) > 0; {
		size := binary.LittleEndian.Uint32(rest)
		all = append(all, string(rest[4:4+size]))
		rest = rest[4+size:]
	}
	if len(all) != n {
		l.w.complain("a batch of %d said to be of %d", len(all), n)
	}
	return l.call("append", l.w.p.Log.Append, all)
}
