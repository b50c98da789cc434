package lifecycle

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/seed080d9131/lifecycle/internal/seam"
)

// gate counts the calls in flight, and once closed admits no more.
//
// The count is spread over shards, so that cores do not fight for one cache
// line. A shard is one word, count<<1 | closed: admission and registration are
// one atomic addition, and no check can go stale between the two. A call leaves
// by the shard that it entered by, so each shard's count is exact.
//
// When closed, a shard's count of admitted calls only falls. Who arrives late
// adds and takes back at once, so a shard may look busy for a moment when it is
// not, and never the other way round: whoever brings a closed shard to zero
// looks at all of them, and finding all zero means that every call has left.
type gate struct {
	shards []gateShard
	once   sync.Once
	empty  chan struct{} // closed once the gate is closed and every call has left
}

type gateShard struct {
	word atomic.Int64
	_    [56]byte // a cache line each
}

const (
	gateClosed = 1
	gateOne    = 2
)

func (g *gate) init() {
	n := 1
	for n < 4*runtime.GOMAXPROCS(0) && n < 64 {
		n *= 2
	}
	g.shards = make([]gateShard, n)
	g.empty = make(chan struct{})
}

// shard picks one by the address of the caller's stack: a goroutine keeps its
// shard, others mostly have another.
func (g *gate) shard() uint32 {
	var here byte
	hash := uint32(uintptr(unsafe.Pointer(&here))>>11) * 0x9E3779B1
	return hash >> 16 & uint32(len(g.shards)-1)
}

func (g *gate) enter() (shard uint32, admitted bool) {
	shard = g.shard()
	if g.shards[shard].word.Add(gateOne)&gateClosed == 0 {
		return shard, true
	}
	g.leave(shard)
	return 0, false
}

// leave reports false if nobody is inside by that shard, and takes nothing then. An
// addition that is taken back would do as well, but for who enters and leaves
// between the two.
func (g *gate) leave(shard uint32) bool {
	word := &g.shards[shard].word
	for {
		old := word.Load()
		if old < gateOne {
			return false
		}
		if word.CompareAndSwap(old, old-gateOne) {
			if old == gateOne|gateClosed {
				g.check()
			}
			return true
		}
	}
}

// close refuses who comes from now on.
func (g *gate) close() {
	for i := range g.shards {
		g.shards[i].word.Or(gateClosed)
	}
	g.check()
}

func (g *gate) check() {
	for i := range g.shards {
		if g.shards[i].word.Load() != gateClosed {
			return
		}
	}
	g.once.Do(func() { close(g.empty) })
}

// count is the number of calls in flight, exact while none enters or leaves.
func (g *gate) count() int {
	n := 0
	for i := range g.shards {
		n += int(g.shards[i].word.Load() >> 1)
	}
	return n
}

// Call is a client call in flight, as Enter admitted it. It is a small value;
// copies stand for the same call.
type Call struct {
	host  *Host
	shard uint32
}

// Enter counts a client call in flight. The exit's first phase waits until each
// has left. It neither blocks nor allocates. From the moment the exit begins it
// returns an error that is ErrExiting, and the zero Call.
func (h *Host) Enter() (Call, error) {
	h.at(seam.Enter, "")
	shard, admitted := h.gate.enter()
	if !admitted {
		h.at(seam.Refused, "Enter")
		return Call{}, h.refuse("Enter", ErrExiting)
	}
	return Call{h, shard}, nil
}

// Leave ends the call. Call it exactly once, deferred, so that a panic leaves
// too; the zero Call's is a no-op. A Leave too many may let the exit overtake
// another call. Where it is noticed, because no call is in flight that was counted
// in the same shard, nothing is taken from the count and the host fails with an
// error that is ErrInvalid.
func (c Call) Leave() {
	if c.host == nil {
		return
	}
	c.host.at(seam.Leave, "")
	if !c.host.gate.leave(c.shard) {
		c.host.Fail(c.host.invalid("Leave", "no call is in flight where this one was counted, so it had left before"))
	}
}

// Context returns parent marked as a context of this call: an Exit of the host
// under it is refused with ErrSelfExit rather than wait for its own caller. The
// zero Call returns parent.
func (c Call) Context(parent context.Context) context.Context {
	if c.host == nil {
		return parent
	}
	return c.host.mark(parent)
}
