package lifecycletest

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/seed080d9131/lifecycle"
)

// Op is a method of lifecycle.Log.
type Op uint8

// The methods of lifecycle.Log.
const (
	Next Op = 1 + iota
	Append
	Sync
	Close
)

var opNames = [...]string{Next: "Next", Append: "Append", Sync: "Sync", Close: "Close"}

// String returns the method's name.
func (op Op) String() string {
	if op == 0 || int(op) >= len(opNames) {
		return fmt.Sprintf("Op(%d)", uint8(op))
	}
	return opNames[op]
}

// ErrCrashed is what a Log returns once it has crashed.
var ErrCrashed = errors.New("the log has crashed")

// Log is a lifecycle.Log in memory, for tests. It remembers every call, can be
// told to fail, block, panic or call runtime.Goexit at one of them, and keeps what
// was synced apart from what was only written. The zero Log is empty and ready.
//
// It also checks its caller: calls that overlap, come after Close or after a
// failure, sync nothing, or change their bytes meanwhile are breaches of the
// contract of lifecycle.Log, which Misuse lists. New and ExitEverywhere fail a
// test that has some.
//
// All methods but those of lifecycle.Log may be called at any time by anyone.
type Log struct {
	// First is the offset of the first transaction. Set it before use.
	First lifecycle.Offset

	mu      sync.Mutex // guards what follows
	written [][]byte
	synced  int // of written
	calls   []Call
	counts  [len(opNames)]int
	plans   map[planned]*plan
	busy    []Op // calls that run
	failed  bool
	closed  bool
	crashed bool
	misuse  []string
}

// Call is a call of one of the log's methods.
type Call struct {
	Op     Op
	N      int      // which call of this method it is, from 1
	Txs    [][]byte // Append's, copied
	Ended  bool     // it has returned, panicked or called Goexit
	Err    error    // what it returned
	Failed bool     // it returned an error, panicked or called Goexit
}

type planned struct {
	op Op
	n  int
}

// plan is what a call does before, or instead of, its work, in this order.
type plan struct {
	reached  chan struct{} // nil: it does not block
	released chan struct{}
	release  func()
	fail     func() error // returns the error, panics, or calls Goexit
}

// FailAt makes the n-th call of a method, from 1, return err and do nothing. A
// Next can't return an error: it panics with err.
func (l *Log) FailAt(op Op, n int, err error) {
	l.plan(op, n, func(p *plan) { p.fail = func() error { return err } })
}

// PanicAt makes the n-th call of a method panic with value.
func (l *Log) PanicAt(op Op, n int, value any) {
	l.plan(op, n, func(p *plan) { p.fail = func() error { panic(value) } })
}

// GoexitAt makes the n-th call of a method call runtime.Goexit.
func (l *Log) GoexitAt(op Op, n int) {
	l.plan(op, n, func(p *plan) { p.fail = func() error { runtime.Goexit(); return nil } })
}

// BlockAt makes the n-th call of a method wait, before it does anything, until
// release is called; reached closes when it is there. A call that is told to fail
// as well fails after the wait. release may be called more than once, and before
// the call. In a bubble, call BlockAt inside it.
func (l *Log) BlockAt(op Op, n int) (reached <-chan struct{}, release func()) {
	p := l.plan(op, n, func(p *plan) {
		if p.reached == nil {
			p.reached, p.released = make(chan struct{}), make(chan struct{})
			p.release = sync.OnceFunc(func() { close(p.released) })
		}
	})
	return p.reached, p.release
}

// plan panics if the call can't come any more: the test would wait for nothing.
func (l *Log) plan(op Op, n int, change func(*plan)) *plan {
	if op < Next || op > Close || n < 1 {
		panic(fmt.Sprintf("lifecycletest: no call %d of %v: methods are Next to Close, and calls count from 1", n, op))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if made := l.counts[op]; n <= made {
		panic(fmt.Sprintf("lifecycletest: call %d of %v can't be planned: there have been %d; plan it before the host can get there", n, op, made))
	}
	if l.plans == nil {
		l.plans = map[planned]*plan{}
	}
	p := l.plans[planned{op, n}]
	if p == nil {
		p = &plan{}
		l.plans[planned{op, n}] = p
	}
	change(p)
	return p
}

// Next implements lifecycle.Log.
func (l *Log) Next() lifecycle.Offset {
	var next lifecycle.Offset
	if err := l.do(Next, nil, func() { next = l.next() }); err != nil {
		panic(err)
	}
	return next
}

// Append implements lifecycle.Log. It copies txs.
func (l *Log) Append(txs [][]byte) error {
	copies := cloneAll(txs)
	return l.do(Append, copies, func() {
		if !slices.EqualFunc(copies, txs, bytes.Equal) {
			l.misused("the bytes of Append %d changed while it ran", l.counts[Append])
		}
		l.written = append(l.written, copies...)
	})
}

// Sync implements lifecycle.Log.
func (l *Log) Sync() error {
	return l.do(Sync, nil, func() { l.synced = len(l.written) })
}

// Close implements lifecycle.Log. It syncs nothing.
func (l *Log) Close() error { return l.do(Close, nil, func() {}) }

// do is a call. work runs under mu, if the call is to succeed.
func (l *Log) do(op Op, txs [][]byte, work func()) (err error) {
	l.mu.Lock()
	closed := l.closed
	l.judge(op, txs)
	l.counts[op]++
	n, at := l.counts[op], len(l.calls)
	l.calls = append(l.calls, Call{Op: op, N: n, Txs: txs})
	l.busy = append(l.busy, op)
	p := l.plans[planned{op, n}]
	l.closed = l.closed || op == Close
	l.mu.Unlock()

	returned := false
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		call := &l.calls[at]
		call.Ended, call.Err, call.Failed = true, err, err != nil || !returned
		l.failed = l.failed || call.Failed
		i := slices.Index(l.busy, op)
		l.busy = slices.Delete(l.busy, i, i+1)
	}()
	if p != nil && p.reached != nil {
		close(p.reached)
		<-p.released
	}
	if p != nil && p.fail != nil {
		err = p.fail()
		returned = true
		if err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	returned = true
	switch {
	case l.crashed:
		return ErrCrashed
	case closed && op != Next:
		return fmt.Errorf("lifecycletest: %v after Close", op)
	}
	work()
	return nil
}

// judge notes what is wrong with a call that begins. It is called with mu held.
func (l *Log) judge(op Op, txs [][]byte) {
	n := l.counts[op] + 1
	if l.crashed {
		return
	}
	if len(l.busy) > 0 && op != Next {
		l.misused("%v %d began while %v ran: calls must not overlap", op, n, l.busy[0])
	}
	if l.closed && op != Next {
		l.misused("%v %d came after Close", op, n)
	}
	switch {
	case l.failed && (op == Append || op == Sync):
		l.misused("%v %d came after a failure: only Close may follow one", op, n)
	case op == Append && len(txs) == 0:
		l.misused("Append %d has no transactions", n)
	case op == Sync && l.synced == len(l.written):
		l.misused("Sync %d has nothing to sync", n)
	}
}

func (l *Log) misused(format string, args ...any) {
	l.misuse = append(l.misuse, fmt.Sprintf(format, args...))
}

func (l *Log) next() lifecycle.Offset { return l.First + lifecycle.Offset(len(l.written)) }

// Synced returns a copy of the transactions that a Sync has covered, those that
// the log held when it was opened among them, in order. The first has the offset
// First.
func (l *Log) Synced() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cloneAll(l.written[:l.synced])
}

// Written returns a copy of the transactions that the log holds, synced or not.
func (l *Log) Written() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cloneAll(l.written)
}

// Calls returns every call so far, in the order in which they began. Txs are the
// log's own: don't change them.
func (l *Log) Calls() []Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.calls)
}

// Count returns how many calls of a method have begun.
func (l *Log) Count(op Op) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if int(op) >= len(l.counts) {
		return 0
	}
	return l.counts[op]
}

// Misuse returns the breaches of the contract of lifecycle.Log so far, a sentence
// each.
func (l *Log) Misuse() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.misuse)
}

// Reopen returns the log as the next process finds it: a new Log that holds what
// was synced, and nothing else. It panics if the log is not closed, as a real one
// would refuse, being locked; to lose power, use Crash.
func (l *Log) Reopen() *Log {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		panic("lifecycletest: Reopen of a log that is not closed: exit its host first, or use Crash")
	}
	return l.survivor()
}

// Crash loses power: from now on the log's calls, those that run among them,
// change nothing and return ErrCrashed. It returns the log as the next process
// finds it, with what was synced and nothing else.
func (l *Log) Crash() *Log {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.crashed = true
	return l.survivor()
}

func (l *Log) survivor() *Log {
	return &Log{First: l.First, written: cloneAll(l.written[:l.synced]), synced: l.synced}
}

func cloneAll(txs [][]byte) [][]byte {
	all := make([][]byte, len(txs))
	for i, tx := range txs {
		all[i] = bytes.Clone(tx)
	}
	return all
}

var _ lifecycle.Log = (*Log)(nil)
