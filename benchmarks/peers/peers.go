// Package peers puts logs and databases, this library's among them, behind one small interface: append a record and
// return when it is durable. Each is set up as its authors recommend for speed at the same durability, that is
// with a sync of the disk between the call and its return; the settings are named where they are made.
//
// Those that write one batch after another are there twice: as they are, one record a batch ("etcd wal"), and under
// the same simple group commit ("etcd wal, grouped"), which is what a program that uses them would build.
package peers

import (
	"errors"
	"sync"
)

// Committer appends records durably.
type Committer interface {
	// Commit appends a copy of b and returns nil once it would survive a power failure. It may be called by any
	// number of goroutines.
	Commit(b []byte) error
	// Close is called once, when no Commit is under way.
	Close() error
}

// Submitter takes records without a wait for each.
type Submitter interface {
	Committer
	// Submit appends a copy of b, and returns before it is durable.
	Submit(b []byte) error
	// Drain returns when all that was submitted before is durable.
	Drain() error
}

// Peer is one way to commit.
type Peer struct {
	Name string
	// Serial: commits stand in line, one sync each, so that more committers than one make it no faster.
	Serial bool
	// Open opens what is in an empty or used directory.
	Open func(dir string) (Committer, error)
	// Read calls yield with every record that a directory holds, after Close.
	Read func(dir string, yield func([]byte)) error
}

// Ours is this library: a Host on a commitlog.
var Ours = Peer{Name: "lifecycle", Open: openOurs, Read: readOurs}

// All are the others.
func All() []Peer {
	all := []Peer{
		{Name: "pebble Set", Open: openPebble, Read: readPebble},
		{Name: "pebble LogWriter", Open: openLogWriter, Read: readLogWriter},
		{Name: "bbolt Batch", Open: openBoltBatch, Read: readBolt},
		{Name: "badger Update", Open: openBadger, Read: readBadger},
	}
	serial := []struct {
		name string
		open func(dir string) (batcher, error)
		read func(dir string, yield func([]byte)) error
	}{
		{"etcd wal", openEtcd, readEtcd},
		{"raft-wal", openRaftWAL, readRaftWAL},
		{"tidwall/wal", openTidwall, readTidwall},
		{"sqlite", openSQLite, readSQLite},
		{"bbolt", openBolt, readBolt},
	}
	for _, s := range serial {
		all = append(all,
			Peer{Name: s.name, Serial: true, Read: s.read, Open: func(dir string) (Committer, error) {
				b, err := s.open(dir)
				if err != nil {
					return nil, err
				}
				return &oneByOne{log: b}, nil
			}},
			Peer{Name: s.name + ", grouped", Read: s.read, Open: func(dir string) (Committer, error) {
				b, err := s.open(dir)
				if err != nil {
					return nil, err
				}
				return newGroup(b), nil
			}})
	}
	return all
}

// batcher is a log that writes one batch after another.
type batcher interface {
	// WriteBatch returns nil once all records are durable. It keeps none of them. Calls don't overlap.
	WriteBatch(records [][]byte) error
	Close() error
}

// oneByOne lets one committer in at a time, each with a batch of its own.
type oneByOne struct {
	mu     sync.Mutex // held across the write: that is what serial means
	log    batcher
	record [1][]byte
}

func (o *oneByOne) Commit(b []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.record[0] = b
	return o.log.WriteBatch(o.record[:])
}

func (o *oneByOne) Close() error { return o.log.Close() }

// group is the group commit that anybody would write first, made with care: committers copy their records into the batch
// that is being filled and wait for its one wake-up; a single goroutine takes the batch and writes it. While it
// writes, the next one fills. Two batches are used in turn, so nothing is allocated but the wake-up.
type group struct {
	log   batcher
	ended chan struct{}

	mu      sync.Mutex
	ready   sync.Cond // the batch has its first record, or closed is set
	filling *batch
	closed  bool
}

type batch struct {
	bytes   []byte
	lengths []int
	done    chan struct{} // closed when the batch is durable, or has failed
	err     *error        // set before done is closed; apart from the batch, which is used again
}

var errClosed = errors.New("peers: closed")

func newGroup(log batcher) *group {
	g := &group{log: log, ended: make(chan struct{}), filling: &batch{}}
	g.ready.L = &g.mu
	go g.write()
	return g
}

func (g *group) Commit(b []byte) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return errClosed
	}
	f := g.filling
	if len(f.lengths) == 0 {
		f.done, f.err = make(chan struct{}), new(error)
		g.ready.Signal()
	}
	f.bytes = append(f.bytes, b...)
	f.lengths = append(f.lengths, len(b))
	done, err := f.done, f.err
	g.mu.Unlock()
	<-done
	return *err
}

// write is the one goroutine. It ends when the group is closed and nothing is left to write.
func (g *group) write() {
	defer close(g.ended)
	spare := &batch{}
	var records [][]byte
	for {
		g.mu.Lock()
		for len(g.filling.lengths) == 0 && !g.closed {
			g.ready.Wait()
		}
		if len(g.filling.lengths) == 0 {
			g.mu.Unlock()
			return
		}
		taken := g.filling
		g.filling, spare = spare, taken
		g.mu.Unlock()

		records = records[:0]
		bytes := taken.bytes
		for _, n := range taken.lengths {
			records = append(records, bytes[:n:n])
			bytes = bytes[n:]
		}
		*taken.err = g.log.WriteBatch(records)
		close(taken.done)
		taken.bytes, taken.lengths = taken.bytes[:0], taken.lengths[:0]
	}
}

func (g *group) Close() error {
	g.mu.Lock()
	g.closed = true
	g.ready.Signal()
	g.mu.Unlock()
	<-g.ended
	return g.log.Close()
}
