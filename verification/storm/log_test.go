package storm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed080d9131/lifecycle"
)

var errLog = errors.New("the disk is gone")

// memory is a log in memory that keeps what is synced apart from what is written.
type memory struct {
	pause   func()
	failAt  int           // the call of Append or Sync, from 1, that fails; 0: none
	hangAt  int           // the one that hangs; 0: none
	release chan struct{} // ends the hanging

	mu     sync.Mutex // guards what follows
	calls  int
	txs    [][]byte
	synced int
}

func (m *memory) Next() lifecycle.Offset { return 0 }

func (m *memory) call() error {
	m.pause()
	m.mu.Lock()
	m.calls++
	n := m.calls
	m.mu.Unlock()
	if n == m.hangAt {
		<-m.release
	}
	if n == m.failAt {
		return errLog
	}
	return nil
}

func (m *memory) Append(txs [][]byte) error {
	m.mu.Lock()
	for _, tx := range txs {
		m.txs = append(m.txs, bytes.Clone(tx))
	}
	m.mu.Unlock()
	return m.call()
}

func (m *memory) Sync() error {
	m.mu.Lock()
	n := len(m.txs)
	m.mu.Unlock()
	if err := m.call(); err != nil {
		return err
	}
	m.mu.Lock()
	m.synced = n
	m.mu.Unlock()
	return nil
}

func (m *memory) Close() error { return nil }

// read is what a power failure leaves.
func (m *memory) read() [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.txs[:m.synced])
}

// guard stands between the actor and a log, and notes what no Log must be asked.
type guard struct {
	log     lifecycle.Log
	onClose func()
	busy    atomic.Bool

	mu      sync.Mutex // guards what follows
	written int        // transactions
	synced  int
	failed  bool
	closed  chan struct{} // closed when Close has returned
	closing bool
	broken  []string
}

func newGuard(log lifecycle.Log, onClose func()) *guard {
	return &guard{log: log, onClose: onClose, closed: make(chan struct{})}
}

// call calls into the log, as op, with so many transactions.
func (g *guard) call(op string, txs int, f func() error) error {
	overlaps := !g.busy.CompareAndSwap(false, true)
	g.mu.Lock()
	breaks := func(is bool, what string) {
		if is {
			g.broken = append(g.broken, op+" "+what)
		}
	}
	breaks(overlaps, "overlaps another call")
	breaks(g.closing, "after Close")
	breaks(g.failed && op != "Close", "after an error")
	breaks(op == "Append" && txs == 0, "of nothing")
	breaks(op == "Sync" && g.synced == g.written, "with nothing appended since the last")
	g.closing = g.closing || op == "Close"
	g.mu.Unlock()
	err := f()
	g.mu.Lock()
	g.failed = g.failed || err != nil
	g.written += txs
	if op == "Sync" && err == nil {
		g.synced = g.written
	}
	g.mu.Unlock()
	g.busy.Store(false)
	return err
}

func (g *guard) Next() lifecycle.Offset { return g.log.Next() }

func (g *guard) Append(txs [][]byte) error {
	return g.call("Append", len(txs), func() error { return g.log.Append(txs) })
}

func (g *guard) Sync() error { return g.call("Sync", 0, g.log.Sync) }

func (g *guard) Close() error {
	g.onClose()
	defer close(g.closed)
	return g.call("Close", 0, g.log.Close)
}

func (g *guard) breaks() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.broken) > 0 {
		return fmt.Errorf("the log was called wrongly: %q", g.broken)
	}
	return nil
}

// batchGuard is a guard before a log that takes batches.
type batchGuard struct {
	*guard
	batchLog lifecycle.BatchLog
}

func (g batchGuard) BatchHeader() int { return g.batchLog.BatchHeader() }

func (g batchGuard) AppendBatch(batch []byte, n int) error {
	return g.call("Append", n, func() error { return g.batchLog.AppendBatch(batch, n) })
}
