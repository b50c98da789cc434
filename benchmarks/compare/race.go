package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
	"github.com/seed080d9131/lifecycle/benchmarks/peers"
)

// closeRace: many writers commit one record after another, until they get an error, and their log is closed under
// them. For most peers that is misuse; it is also what happens when a process shuts down in the wrong order, and what
// this library is about. Each race is a process of its own, since some of them do not survive it.

const raceVariable = "LIFECYCLE_COMPARE_RACE"

// race is what a race came to.
type race struct {
	Panicked     int64 `json:"panicked"`     // writers whose Commit panicked
	Hung         int64 `json:"hung"`         // writers still inside Commit 2 s after Close returned
	CloseHung    bool  `json:"close_hung"`   // Close had not returned after 10 s
	Acknowledged int64 `json:"acknowledged"` // commits that returned nil
	Reopened     bool  `json:"reopened"`     // after all that, so that Lost is known
	Lost         int64 `json:"lost"`         // of those acknowledged, not there when opened again
}

type raceOrder struct {
	Peer, Dir string
	Writers   int
}

func closeRace(e *env) error {
	writers := e.calls(60_000)
	name := fmt.Sprintf("%d writers", writers)
	names := []string{peers.Ours.Name, "pebble Set", "raft-wal", "badger Update", "etcd wal", "tidwall/wal", "bbolt Batch"}
	if e.quick {
		names = names[:4]
	}
	results := map[string]race{}
	died := map[string]error{}
	rounds := e.rounds
	e.rounds = 1
	var candidates []harness.Candidate
	for _, peer := range names {
		candidates = append(candidates, harness.Candidate{Name: peer, Measure: func() (float64, error) {
			return e.fresh(func(dir string) (float64, error) {
				r, err := runRace(raceOrder{Peer: peer, Dir: dir, Writers: writers})
				if err != nil {
					died[peer] = err
					if peer == peers.Ours.Name {
						return 0, err
					}
				}
				results[peer] = r
				return 0, nil
			})
		}})
	}
	e.interleave(name, candidates)
	e.rounds = rounds
	ours := results[peers.Ours.Name]
	if _, failed := died[peers.Ours.Name]; failed {
		return nil // told already
	}
	if !ours.Reopened {
		return fmt.Errorf("our log could not be opened again after the race: %+v", ours)
	}
	if ours.Acknowledged == 0 {
		return fmt.Errorf("nothing was acknowledged before the exit: that was no race")
	}
	const lost = "acknowledged and lost"
	count := func(what string, of func(race) float64) {
		for _, peer := range names {
			if died[peer] != nil || what == lost && !results[peer].Reopened {
				continue
			}
			r := row{Bar: e.bar, Case: name, Unit: what, Ours: of(ours), Peer: peer, Theirs: of(results[peer]), Ratio: of(ours), Low: of(ours), High: of(ours), Rounds: 1}
			if peer == peers.Ours.Name {
				r.Peer, r.Theirs = "none", 0
				atMost(0).apply(&r)
			}
			e.rows = append(e.rows, r)
		}
	}
	count("panicked", func(r race) float64 { return float64(r.Panicked) })
	count("hung", func(r race) float64 {
		if r.CloseHung {
			return float64(r.Hung) + 1
		}
		return float64(r.Hung)
	})
	count(lost, func(r race) float64 { return float64(r.Lost) })
	for _, peer := range names {
		if err := died[peer]; err != nil && peer != peers.Ours.Name {
			e.rows = append(e.rows, row{Bar: e.bar, Case: name, Unit: "processes died", Peer: peer, Theirs: 1, Rounds: 1})
		}
	}
	return nil
}

// runRace runs this program again, for one race.
func runRace(order raceOrder, args ...string) (r race, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	raw, err := json.Marshal(order)
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), raceVariable+"="+string(raw))
	out, err := cmd.Output()
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}

// racer is the process of one race.
func racer() {
	var order raceOrder
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "race:", err)
			os.Exit(1)
		}
	}
	fail(json.Unmarshal([]byte(os.Getenv(raceVariable)), &order))
	var peer peers.Peer
	for _, p := range append(peers.All(), peers.Ours) {
		if p.Name == order.Peer {
			peer = p
		}
	}
	log, err := peer.Open(order.Dir)
	fail(err)

	r, acknowledged := raceWriters(log, order.Writers)
	if !r.CloseHung {
		found := make([]uint64, order.Writers)
		read := make(chan error, 1)
		go func() {
			read <- peer.Read(order.Dir, func(b []byte) {
				if len(b) == raceRecord {
					found[binary.LittleEndian.Uint64(b)]++
				}
			})
		}()
		select {
		case err := <-read:
			fail(err)
			r.Reopened = true
			for i := range found {
				r.Lost += max(0, int64(acknowledged[i])-int64(found[i]))
			}
		case <-time.After(20 * time.Second):
			// A writer that hangs keeps the lock.
		}
	}
	fail(json.NewEncoder(os.Stdout).Encode(r))
}

const raceRecord = 16 // the writer, and its how manieth

// raceWriters starts the writers, closes the log when a few thousand commits have been acknowledged, and counts.
func raceWriters(log peers.Committer, writers int) (r race, acknowledged []uint64) {
	var panicked, total atomic.Int64
	acks := make([]atomic.Uint64, writers)
	running := make([]atomic.Bool, writers)
	ended := make(chan struct{})
	var group sync.WaitGroup
	for i := range writers {
		running[i].Store(true)
		group.Go(func() {
			defer running[i].Store(false)
			defer func() {
				if recover() != nil {
					panicked.Add(1)
				}
			}()
			record := make([]byte, raceRecord)
			binary.LittleEndian.PutUint64(record, uint64(i))
			for n := uint64(0); ; n++ {
				binary.LittleEndian.PutUint64(record[8:], n)
				if log.Commit(record) != nil {
					return
				}
				acks[i].Add(1)
				total.Add(1)
			}
		})
	}
	go func() { group.Wait(); close(ended) }()
	for deadline := time.Now().Add(10 * time.Second); total.Load() < int64(writers)/10 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		defer func() {
			if recover() != nil {
				panicked.Add(1)
			}
		}()
		_ = log.Close()
	}()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		r.CloseHung = true
	}
	select {
	case <-ended:
	case <-time.After(2 * time.Second):
	}
	for i := range running {
		if running[i].Load() {
			r.Hung++
		}
	}
	r.Panicked, r.Acknowledged = panicked.Load(), total.Load()
	acknowledged = make([]uint64, writers)
	for i := range acks {
		acknowledged[i] = acks[i].Load()
	}
	return r, acknowledged
}
