package storm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed080d9131/lifecycle"
)

// ledger is what a round's writers were told.
type ledger struct {
	durability *lifecycle.Durability
	last       atomic.Uint64 // the last transaction's number

	mu      sync.Mutex // guards what follows
	entries []entry
	broken  []string
}

// entry is a transaction that was accepted.
type entry struct {
	offset  lifecycle.Offset
	tx      []byte
	pending lifecycle.Pending // of an Append
	commit  bool              // a Commit's: there is no Pending
	err     error             // of the Commit
}

func (l *ledger) breaks(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = append(l.broken, fmt.Sprintf(format, args...))
}

// write appends or commits a transaction like no other. An error means that nothing was
// accepted.
func (l *ledger) write(ctx context.Context, rng *rand.Rand) (refusal error) {
	tx := binary.LittleEndian.AppendUint64(nil, l.last.Add(1))
	for range rng.IntN(50) {
		tx = append(tx, byte(rng.Uint32()))
	}
	e := entry{tx: slices.Clone(tx), commit: rng.IntN(2) == 0}
	if e.commit {
		e.offset, e.err = l.durability.Commit(ctx, tx)
		if e.err != nil && !errors.Is(e.err, lifecycle.ErrUnknown) {
			return e.err
		}
	} else {
		p, err := l.durability.Append(ctx, tx)
		if err != nil {
			return err
		}
		e.pending, e.offset = p, p.Offset()
	}
	clear(tx) // it was copied
	l.mu.Lock()
	l.entries = append(l.entries, e)
	l.mu.Unlock()
	if !e.commit && rng.IntN(4) == 0 {
		_ = e.pending.Wait(ctx)
	}
	return nil
}

// tally is what the ledger counted.
type tally struct{ accepted, durable, unknown int }

// check compares what the writers were told with each other, the host and the log, when all
// is over.
func (l *ledger) check(log [][]byte) (tally, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	accepted, durable := int(l.durability.Accepted()), int(l.durability.Durable())
	counted := tally{accepted: accepted, durable: durable}
	if len(l.broken) > 0 {
		return counted, fmt.Errorf("%q", l.broken)
	}
	if accepted != len(l.entries) {
		return counted, fmt.Errorf("%d accepted by the host, %d by the writers' count", accepted, len(l.entries))
	}
	if durable > len(log) || len(log) > accepted {
		return counted, fmt.Errorf("%d accepted, %d durable, but the log has %d", accepted, durable, len(log))
	}
	slices.SortFunc(l.entries, func(a, b entry) int { return int(a.offset) - int(b.offset) })
	done, cancel := context.WithCancel(context.Background())
	cancel()
	for i, e := range l.entries {
		if int(e.offset) != i {
			return counted, fmt.Errorf("offset %d where %d is due", e.offset, i)
		}
		if i < len(log) && !slices.Equal(e.tx, log[i]) {
			return counted, fmt.Errorf("the log's record %d is not the transaction that got that offset", i)
		}
		err := e.err
		if !e.commit {
			select {
			case <-e.pending.Done():
			default:
				return counted, fmt.Errorf("no outcome for %d", i)
			}
			err = e.pending.Wait(done)
			if again := e.pending.Wait(done); (again == nil) != (err == nil) {
				return counted, fmt.Errorf("two outcomes for %d: %v and %v", i, err, again)
			}
		}
		if err != nil {
			counted.unknown++
		}
		switch impatient := e.commit && errors.Is(err, context.Canceled); {
		case err == nil && i >= durable:
			return counted, fmt.Errorf("%d was acknowledged, and only %d are durable", i, durable)
		case err != nil && i < durable && !impatient:
			return counted, fmt.Errorf("%d is durable, and its writer was told %w", i, err)
		case err != nil && !errors.Is(err, lifecycle.ErrUnknown):
			return counted, fmt.Errorf("the outcome of %d is %w", i, err)
		}
	}
	return counted, nil
}
