package explore

import (
	"fmt"
	"slices"
	"sync"

	"github.com/seed080d9131/lifecycle"
)

// Log is a strict log in memory: it tells apart what was written and what was
// synced, and says when it is used against its contract, or closed too early.
type Log struct {
	// FailAppend, FailSync and FailClose make that call, counted from 1, fail.
	FailAppend, FailSync, FailClose int
	// Slow makes each call a step of its own, between whose begin and end others
	// take theirs.
	Slow bool

	world *World

	mu       sync.Mutex // guards what follows
	entries  []string
	synced   int
	busy     string
	dead     bool // a call has failed: only Close may follow
	closed   bool
	appends  int
	syncs    int
	closings int
}

func (l *Log) Next() lifecycle.Offset { return 0 }

func (l *Log) begin(call string) {
	l.mu.Lock()
	switch {
	case l.busy != "":
		l.world.Broken("a %s of the log overlaps its %s", call, l.busy)
	case l.closed:
		l.world.Broken("P1: %s of a closed log", call)
	case l.dead && call != "Close":
		l.world.Broken("P4: %s of a log that has failed", call)
	}
	l.busy = call
	l.mu.Unlock()
	if l.Slow {
		l.world.Pause("log." + call)
	}
}

func (l *Log) end(fails bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = ""
	if fails {
		l.dead = true
		return errLog
	}
	return nil
}

func (l *Log) Append(txs [][]byte) error {
	l.begin("Append")
	l.mu.Lock()
	l.appends++
	fails := l.appends == l.FailAppend
	if !fails {
		for _, tx := range txs {
			l.entries = append(l.entries, string(tx))
		}
	}
	l.mu.Unlock()
	return l.end(fails)
}

func (l *Log) Sync() error {
	l.begin("Sync")
	l.mu.Lock()
	l.syncs++
	fails := l.syncs == l.FailSync
	if !fails {
		l.synced = len(l.entries)
	}
	l.mu.Unlock()
	return l.end(fails)
}

func (l *Log) Close() error {
	l.world.sealedOver("the log was closed")
	l.begin("Close")
	l.mu.Lock()
	l.closings++
	l.closed = true
	fails := l.closings == l.FailClose
	l.mu.Unlock()
	return l.end(fails)
}

// durable is what would be there after a power failure.
func (l *Log) durable() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries[:l.synced])
}

func (l *Log) holds(offset lifecycle.Offset, tx string) bool {
	held := l.durable()
	return offset < uint64(len(held)) && held[offset] == tx
}

// failed reports whether a call has failed; a nil Log never does.
func (l *Log) failed() bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

func (l *Log) fingerprint() string {
	if l == nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprint(l.entries, l.synced, l.busy, l.dead, l.closed, l.appends, l.syncs)
}
