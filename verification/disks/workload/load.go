package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"github.com/seed080d9131/lifecycle"
)

// Load is committers that write to a host, each a task of it, until it exits or
// refuses them, and a checkpoint hook that writes one last transaction. Each
// committer goes through three habits at random: it commits; it appends a burst and
// waits for all of it; it appends and does not wait.
//
// The funcs are called by several goroutines at once. All but Acknowledged may be nil.
type Load struct {
	Shape
	Life       uint32
	Committers uint32 // the checkpoint's number is the one after the last

	// Acknowledged is called once for each transaction that the host called durable.
	Acknowledged func(offset uint64, id ID)
	// Accepted is called for each transaction that the host accepted, before anything is waited for.
	Accepted func(offset uint64, id ID)
	// Refused is called with each error, and with the offset that it concerns, if
	// there is one.
	Refused func(offset uint64, accepted bool, err error)
	// Truncate is called now and then with the number of transactions to keep.
	Truncate func(keep uint64)

	serials []atomic.Uint32
}

// Truncate is called once in so many transactions of the first committer.
const truncateEvery = 24

// Start registers the checkpoint and starts the committers. That the host exits by then, since its log
// has failed under the first of them, is no error.
func (l *Load) Start(h *lifecycle.Host) error {
	l.serials = make([]atomic.Uint32, l.Committers+1)
	err := h.OnExit(lifecycle.PhaseCheckpoint, "last", func(ctx context.Context) error {
		l.commit(ctx, h.Durability(), l.Committers)
		return nil
	})
	for c := range l.Committers {
		if err == nil {
			err = h.Go(fmt.Sprint("committer ", c), func(ctx context.Context) error {
				l.run(ctx, h.Durability(), c)
				return nil
			})
		}
	}
	if errors.Is(err, lifecycle.ErrExiting) {
		return nil
	}
	return err
}

func (l *Load) run(ctx context.Context, d *lifecycle.Durability, committer uint32) {
	rng := rand.New(rand.NewPCG(l.Seed^uint64(l.Life)<<32, uint64(committer)))
	for truncated := uint32(0); ; {
		var ok bool
		switch rng.IntN(4) {
		case 0, 1:
			ok = l.commit(ctx, d, committer)
		case 2:
			ok = l.burst(ctx, d, committer, 2+rng.IntN(7))
		case 3:
			_, _, ok = l.append(ctx, d, committer)
		}
		if !ok {
			return
		}
		if n := l.serials[committer].Load() / truncateEvery; committer == 0 && l.Truncate != nil && n > truncated {
			truncated = n
			l.Truncate(rng.Uint64N(200))
		}
	}
}

func (l *Load) next(committer uint32) (ID, []byte) {
	id := ID{l.Life, committer, l.serials[committer].Add(1) - 1}
	return id, l.Tx(id)
}

// commit uses Commit, unless somebody wants to know what was accepted.
func (l *Load) commit(ctx context.Context, d *lifecycle.Durability, committer uint32) bool {
	if l.Accepted != nil {
		return l.burst(ctx, d, committer, 1)
	}
	id, tx := l.next(committer)
	offset, err := d.Commit(ctx, tx)
	if err != nil {
		l.refused(offset, errors.Is(err, lifecycle.ErrUnknown), err)
		return false
	}
	l.Acknowledged(offset, id)
	return true
}

func (l *Load) append(ctx context.Context, d *lifecycle.Durability, committer uint32) (lifecycle.Pending, ID, bool) {
	id, tx := l.next(committer)
	p, err := d.Append(ctx, tx)
	if err != nil {
		l.refused(0, false, err)
		return p, id, false
	}
	if l.Accepted != nil {
		l.Accepted(p.Offset(), id)
	}
	return p, id, true
}

func (l *Load) burst(ctx context.Context, d *lifecycle.Durability, committer uint32, n int) bool {
	pending := make([]lifecycle.Pending, 0, n)
	ids := make([]ID, 0, n)
	ok := true
	for range n {
		var p lifecycle.Pending
		var id ID
		if p, id, ok = l.append(ctx, d, committer); !ok {
			break
		}
		pending, ids = append(pending, p), append(ids, id)
	}
	for i, p := range pending {
		if err := p.Wait(ctx); err != nil {
			l.refused(p.Offset(), true, err)
			return false
		}
		l.Acknowledged(p.Offset(), ids[i])
	}
	return ok
}

func (l *Load) refused(offset uint64, accepted bool, err error) {
	if l.Refused != nil {
		l.Refused(offset, accepted, err)
	}
}
