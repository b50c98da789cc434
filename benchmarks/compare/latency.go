package main

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
	"github.com/seed080d9131/lifecycle/benchmarks/peers"
)

// latency is how long one commit takes: in a closed loop, and for committers that think between two commits, where
// throughput is theirs and a group commit that waits too eagerly would cost what it saves elsewhere.
func latency(e *env) error {
	cases := []struct {
		committers int
		think      time.Duration
	}{{8, 0}, {64, 0}, {64, 2 * time.Millisecond}, {256, 2 * time.Millisecond}}
	for _, c := range cases {
		name := fmt.Sprintf("%d × 128 B", c.committers)
		if c.think > 0 {
			name = fmt.Sprintf("%s, think %v", name, c.think)
		}
		high := map[string][]float64{}
		var candidates []harness.Candidate
		for _, peer := range append([]peers.Peer{peers.Ours}, peers.All()...) {
			// One sync for each, in line, is not what anybody would wait for; nor is a delay of 10 ms by design.
			if peer.Serial || peer.Name == "bbolt Batch" || peer.Name != peers.Ours.Name && !e.wanted(peer, c.committers) {
				continue
			}
			candidates = append(candidates, harness.Candidate{Name: peer.Name, Measure: func() (float64, error) {
				d, err := e.latencies(peer, c.committers, c.think)
				if err != nil {
					d.p99 = math.NaN()
				}
				high[peer.Name] = append(high[peer.Name], d.p99)
				return d.p50, err
			}})
		}
		samples := e.interleave(name, candidates)
		for _, peer := range candidates[1:] {
			e.add(name+", p50", "µs", peer.Name, samples[peers.Ours.Name], samples[peer.Name], atMost(1))
			e.add(name+", p99", "µs", peer.Name, high[peers.Ours.Name], high[peer.Name], atMost(1))
		}
	}
	return nil
}

// distribution is how long commits of 128 B took, in microseconds, and how many there were in a second.
type distribution struct{ p50, p99, perSecond float64 }

// latencies measures one peer.
func (e *env) latencies(peer peers.Peer, committers int, think time.Duration) (d distribution, err error) {
	_, err = e.fresh(func(dir string) (_ float64, err error) {
		c, err := peer.Open(dir)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		if err := e.prefill(c); err != nil {
			return 0, err
		}
		took := make([][]float64, committers)
		failures := make([]error, committers)
		start := time.Now()
		from, until := start.Add(e.warmup), start.Add(e.warmup+e.measure)
		var group sync.WaitGroup
		for worker := range committers {
			group.Go(func() {
				record := pattern(128, worker)
				// Spread over the time of one thought, as requests of clients are that know nothing of each other.
				time.Sleep(think * time.Duration(worker) / time.Duration(committers))
				for {
					begin := time.Now()
					if begin.After(until) {
						return
					}
					if failures[worker] = c.Commit(record); failures[worker] != nil {
						return
					}
					if begin.After(from) {
						took[worker] = append(took[worker], float64(time.Since(begin).Nanoseconds())/1000)
					}
					if think > 0 {
						time.Sleep(think)
					}
				}
			})
		}
		group.Wait()
		var all []float64
		for _, t := range took {
			all = append(all, t...)
		}
		if len(all) == 0 {
			return 0, errors.Join(errors.New("no commit ended while it was measured"), errors.Join(failures...))
		}
		d = distribution{harness.Quantile(all, 0.5), harness.Quantile(all, 0.99), float64(len(all)) / e.measure.Seconds()}
		return 0, errors.Join(failures...)
	})
	return d, err
}
