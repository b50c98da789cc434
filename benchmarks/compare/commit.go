package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
	"github.com/seed080d9131/lifecycle/benchmarks/peers"
)

// frameBytes is what ours adds to a record that is a batch of its own, 4 of them for each record: a bare loop writes as much.
const frameBytes = 48 + 4

// asked is what the bars ask of durable commits: of the limit, of pebble's Set, and of every other peer.
type asked struct{ limit, pebble, others bound }

func commits(committers int) func(*env) error {
	ask := map[int]asked{
		1:    {atLeast(0.95), atLeast(1), atLeast(1)},
		8:    {atLeast(0.85), atLeast(2), atLeast(1)},
		64:   {atLeast(0.80), atLeast(2), atLeast(1)},
		512:  {bound{}, atLeast(2.6), atLeast(1.1)},
		4096: {bound{}, atLeast(3.5), atLeast(1.1)},
	}[committers]
	return func(e *env) error {
		err := e.commits(committers, 128, ask)
		if committers == 1 {
			err = errors.Join(err, e.commits(committers, 1024, ask))
		}
		return err
	}
}

func commits1k(e *env) error {
	var failures []error
	for _, committers := range []int{8, 64, 512} {
		failures = append(failures, e.commits(committers, 1024, asked{bound{}, atLeast(2), atLeast(1)}))
	}
	return errors.Join(failures...)
}

// commits is one case: that many committers, each of which commits a record of that size, waits until it is
// durable, and repeats.
func (e *env) commits(committers, size int, ask asked) error {
	name := fmt.Sprintf("%d × %d B", committers, size)
	zeroed, err := harness.NewZeroed(e.dir, 64<<20)
	if err != nil {
		return err
	}
	defer zeroed.Close()
	limit := harness.Candidate{Name: "limit", Measure: func() (float64, error) {
		result, err := zeroed.Pages(e.warmup, e.measure)
		return result.PerSecond * float64(committers), err
	}}
	if committers == 1 {
		limit = harness.Candidate{Name: "bare loop", Measure: func() (float64, error) {
			result, err := zeroed.Records((frameBytes+size+7)&^7, e.warmup, e.measure)
			return result.PerSecond, err
		}}
	}
	candidates := []harness.Candidate{e.committer(peers.Ours, committers, size), limit}
	if committers > 1 && committers <= 64 { // what the limit's page would be if it held as much as a batch of ours
		candidates = append(candidates, harness.Candidate{Name: "bare loop", Measure: func() (float64, error) {
			result, err := zeroed.Records((frameBytes-4+committers*(4+size)+7)&^7, e.warmup, e.measure)
			return result.PerSecond * float64(committers), err
		}})
	}
	serial := map[string]bool{}
	for _, peer := range peers.All() {
		if !e.wanted(peer, committers) {
			continue
		}
		serial[peer.Name] = peer.Serial && committers > 1
		candidates = append(candidates, e.committer(peer, committers, size))
	}
	if committers >= someCommitters {
		candidates = append(candidates, e.committer(peers.Peer{Name: checkpointed, Open: peers.OpenCheckpointed}, committers, size))
	}
	samples := e.interleave(name, candidates)
	ours := samples[peers.Ours.Name]
	for _, c := range candidates[1:] {
		required := ask.others
		switch {
		case c.Name == checkpointed:
			continue
		case c.Name == limit.Name:
			required = ask.limit
		case c.Name == "bare loop", c.Name == logWriter && committers >= manyCommitters:
			required = bound{}
		case c.Name == "pebble Set":
			required = ask.pebble
		case serial[c.Name]:
			required = bound{} // shown beside its grouped self
		}
		e.add(name, "commits/s", c.Name, ours, samples[c.Name], required)
	}
	if committers >= someCommitters {
		e.add(name+", "+checkpointed, "commits/s", limit.Name, samples[checkpointed], samples[limit.Name], ask.limit)
		e.add(name+", "+checkpointed, "commits/s", "pebble Set", samples[checkpointed], samples["pebble Set"], ask.pebble)
		e.add(name+", "+checkpointed, "commits/s", logWriter, samples[checkpointed], samples[logWriter], ask.others)
	}
	return nil
}

// A file that has been written before, as the limit's and the LogWriter's have, costs less than a new one. Ours writes over such
// files where the server makes checkpoints. Without them it writes zeros ahead, which some committers feel; many fill their batches
// so well that it writes into growing files instead, which cost more, so that only after checkpoints the LogWriter's terms are equal.
const (
	someCommitters = 64
	manyCommitters = 512
	checkpointed   = "after checkpoints"
	logWriter      = "pebble LogWriter"
)

// wanted leaves out what tells nothing: group commits around one committer, and most of those who write one after
// another where there are many. Quick takes those who have been found ahead of the others.
func (e *env) wanted(peer peers.Peer, committers int) bool {
	if e.quick {
		switch peer.Name {
		case "pebble Set", "pebble LogWriter":
			return true
		case "etcd wal":
			return committers == 1
		case "tidwall/wal, grouped":
			return committers > 1
		}
		return false
	}
	switch {
	case committers == 1:
		return peer.Serial || peer.Name == "pebble Set" || peer.Name == "pebble LogWriter" || peer.Name == "badger Update" || peer.Name == "bbolt Batch"
	case committers == 64:
		return true
	}
	return !peer.Serial
}

// committer measures a peer: opened in a fresh directory, used for a while with larger records, so that first segments,
// small files and cold caches are behind it, then by the committers that count.
func (e *env) committer(peer peers.Peer, committers, size int) harness.Candidate {
	return harness.Candidate{Name: peer.Name, Measure: func() (float64, error) {
		return e.fresh(func(dir string) (_ float64, err error) {
			c, err := peer.Open(dir)
			if err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, c.Close()) }()
			if err := e.prefill(c); err != nil {
				return 0, err
			}
			records := make([][]byte, committers)
			for i := range records {
				records[i] = pattern(size, i)
			}
			flushes, known := harness.Flushes(dir)
			result, err := harness.Loop{Workers: committers, Warmup: e.warmup, Measure: e.measure, Op: func(worker int) error {
				r := records[worker]
				binary.LittleEndian.PutUint64(r, binary.LittleEndian.Uint64(r)+1)
				return c.Commit(r)
			}}.Run()
			if err != nil {
				return 0, err
			}
			// A sync can cover one commit of each committer, no more: whoever commits more often does not sync.
			if after, _ := harness.Flushes(dir); known && int64(after-flushes)*int64(committers) < result.Total {
				return 0, fmt.Errorf("%d commits by %d committers, and the device was flushed only %d times: that is not durable", result.Total, committers, after-flushes)
			}
			return result.PerSecond, nil
		})
	}}
}

// prefill has 8 committers of 16 KiB: large enough to be over soon, and small enough that a log which adapts to its load
// (ours zeroes segments ahead for up to 256 KiB a sync) still takes it for many small commits.
func (e *env) prefill(c peers.Committer) error {
	const size = 16 << 10
	total := int64(32 << 20)
	if e.quick {
		total = 4 << 20
	}
	var written atomic.Int64
	var group sync.WaitGroup
	failures := make([]error, 8)
	for worker := range failures {
		group.Go(func() {
			record := pattern(size, worker)
			for failures[worker] == nil && written.Add(size) <= total {
				failures[worker] = c.Commit(record)
			}
		})
	}
	group.Wait()
	return errors.Join(failures...)
}

// pattern fills a record with what no codec makes smaller.
func pattern(size, seed int) []byte {
	b := make([]byte, size)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

// submit is one producer that appends without waiting, and one drain at the end.
func submit(e *env) error {
	const size = 128
	n := 2_000_000
	if e.quick {
		n = 200_000
	}
	bytes := int64(n) * (size + 4)
	zeroed, err := harness.NewZeroed(e.dir, bytes)
	if err != nil {
		return err
	}
	defer zeroed.Close()
	record := pattern(size, 1)
	var allocations []float64
	producer := func(name string, open func(dir string) (peers.Committer, error)) harness.Candidate {
		return harness.Candidate{Name: name, Measure: func() (float64, error) {
			return e.fresh(func(dir string) (_ float64, err error) {
				c, err := open(dir)
				if err != nil {
					return 0, err
				}
				defer func() { err = errors.Join(err, c.Close()) }()
				if err := e.prefill(c); err != nil {
					return 0, err
				}
				s := c.(peers.Submitter)
				before, start := mallocs(), time.Now()
				for range n {
					if err := s.Submit(record); err != nil {
						return 0, err
					}
				}
				if err := s.Drain(); err != nil {
					return 0, err
				}
				took := time.Since(start)
				if name == peers.Ours.Name {
					allocations = append(allocations, float64(int(mallocs()-before)/n))
				}
				return float64(n) / took.Seconds(), nil
			})
		}}
	}
	const raw, growing, fresh = "raw write, zeroed file", "raw write, growing file", "new files"
	samples := e.interleave(fmt.Sprintf("%d × %d B", n, size), []harness.Candidate{
		producer(peers.Ours.Name, func(dir string) (peers.Committer, error) { return peers.OpenOurs(dir, bytes) }),
		producer(fresh, peers.Ours.Open),
		{Name: raw, Measure: func() (float64, error) {
			took, err := zeroed.Stream(bytes)
			return float64(n) / took.Seconds(), err
		}},
		producer("pebble LogWriter", func(dir string) (peers.Committer, error) {
			return peers.OpenLogWriter(dir, bytes+bytes/8+32<<20)
		}),
		{Name: growing, Measure: func() (float64, error) {
			return e.fresh(func(dir string) (float64, error) {
				took, err := growingWrite(dir, bytes)
				return float64(n) / took.Seconds(), err
			})
		}},
	})
	ours := samples[peers.Ours.Name]
	name := fmt.Sprintf("%d × %d B", n, size)
	e.add(name, "records/s", raw, ours, samples[raw], atLeast(0.60))
	e.add(name, "records/s", "pebble LogWriter", ours, samples["pebble LogWriter"], atLeast(1.5))
	e.add(name+", new files", "records/s", growing, samples[fresh], samples[growing], bound{})
	e.value("allocations each", "", allocations, atMost(0))
	return nil
}

// growingWrite is harness.Zeroed.Stream into a new file.
func growingWrite(dir string, bytes int64) (time.Duration, error) {
	file, err := os.Create(dir + "/growing")
	if err != nil {
		return 0, err
	}
	defer file.Close()
	piece := pattern(1<<20, 2)
	start := time.Now()
	for p := int64(0); p < bytes; p += int64(len(piece)) {
		if _, err := file.WriteAt(piece[:min(int64(len(piece)), bytes-p)], p); err != nil {
			return 0, err
		}
	}
	if err := file.Sync(); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}
