package lifecycle

// GroupsOf is how many task groups h keeps.
func GroupsOf(h *Host) int {
	h.tasks.mu.Lock()
	defer h.tasks.mu.Unlock()
	return len(h.tasks.groups)
}

// Gate is a host's gate of one shard, so that all who enter meet.
type Gate struct{ gate }

// NewGate returns an open one.
func NewGate() *Gate {
	g := &Gate{}
	g.init()
	g.shards = g.shards[:1]
	return g
}

// Enter counts a call.
func (g *Gate) Enter() { g.enter() }

// Leave reports whether one was inside.
func (g *Gate) Leave() bool { return g.leave(0) }

// Count is how many are inside.
func (g *Gate) Count() int { return g.count() }
