package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"
	"sync"
	"time"

	oklog "github.com/oklog/run"
	"github.com/thejerf/suture/v4"
	"golang.org/x/sync/errgroup"
	"gopkg.in/tomb.v2"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
	"github.com/seed080d9131/lifecycle/benchmarks/peers"
	"github.com/seed080d9131/lifecycle/commitlog"
)

func idle(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// waitGroup starts that many goroutines that wait for a context, all of one WaitGroup, and returns the milliseconds
// from the cancellation until the last has ended.
func waitGroup(goroutines int) float64 {
	ctx, cancel := context.WithCancel(context.Background())
	var group, started sync.WaitGroup
	started.Add(goroutines)
	for range goroutines {
		group.Go(func() {
			started.Done()
			_ = idle(ctx)
		})
	}
	started.Wait()
	start := time.Now()
	cancel()
	group.Wait()
	return milliseconds(time.Since(start))
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

func exitTasks(e *env) error {
	const tasks = 100_000
	name := fmt.Sprintf("%d tasks", tasks)
	samples := e.interleave(name, []harness.Candidate{
		{Name: "lifecycle", Measure: func() (float64, error) { return exitOurs(tasks) }},
		{Name: "WaitGroup", Measure: func() (float64, error) { return waitGroup(tasks), nil }},
		{Name: "errgroup", Measure: func() (float64, error) {
			ctx, cancel := context.WithCancel(context.Background())
			group, ctx := errgroup.WithContext(ctx)
			return stop(tasks, func(run func(<-chan struct{})) {
				group.Go(func() error { run(ctx.Done()); return nil })
			}, func() error { cancel(); return group.Wait() })
		}},
		{Name: "tomb", Measure: func() (float64, error) {
			var t tomb.Tomb
			return stop(tasks, func(run func(<-chan struct{})) {
				t.Go(func() error { run(t.Dying()); return nil })
			}, func() error { t.Kill(nil); return t.Wait() })
		}},
		{Name: "oklog/run", Measure: func() (float64, error) {
			// Each actor has an interrupt of its own: that is the interface.
			var group oklog.Group
			ended, release := make(chan error, 1), make(chan struct{})
			group.Add(func() error { <-release; return nil }, func(error) {})
			return stop(tasks, func(run func(<-chan struct{})) {
				interrupt := make(chan struct{})
				group.Add(func() error { run(interrupt); return nil }, func(error) { close(interrupt) })
			}, func() error { close(release); return <-ended }, func() { go func() { ended <- group.Run() }() })
		}},
		{Name: "suture", Measure: func() (float64, error) {
			ctx, cancel := context.WithCancel(context.Background())
			tree := suture.New("tree", suture.Spec{EventHook: func(suture.Event) {}, Timeout: time.Minute})
			ended := tree.ServeBackground(ctx)
			return stop(tasks, func(run func(<-chan struct{})) {
				tree.Add(service(func(ctx context.Context) { run(ctx.Done()) }))
			}, func() error {
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					return err
				}
				return nil
			})
		}},
	})
	e.add(name, "ms", "cancel, WaitGroup.Wait", samples["lifecycle"], samples["WaitGroup"], atMost(1.15))
	for _, peer := range []string{"errgroup", "tomb", "oklog/run", "suture"} {
		e.add(name, "ms", peer, samples["lifecycle"], samples[peer], bound{})
	}
	heap := e.interleave("heap of an idle task", []harness.Candidate{
		{Name: "lifecycle", Measure: func() (float64, error) {
			h := lifecycle.New(nil, lifecycle.Options{})
			return idleHeap(tasks, func(run func(<-chan struct{})) error {
				return h.Go("idle", func(ctx context.Context) error { run(ctx.Done()); return nil })
			}, func() error { return h.Exit(context.Background()) })
		}},
		{Name: "WaitGroup", Measure: func() (float64, error) {
			ctx, cancel := context.WithCancel(context.Background())
			var group sync.WaitGroup
			return idleHeap(tasks, func(run func(<-chan struct{})) error {
				group.Go(func() { run(ctx.Done()) })
				return nil
			}, func() error { cancel(); group.Wait(); return nil })
		}},
	})
	e.add("heap of an idle task", "B", "WaitGroup.Go", heap["lifecycle"], heap["WaitGroup"], bound{})
	return nil
}

// idleHeap is how much of the heap each of so many goroutines takes that wait for a channel. Their stacks are not of it.
func idleHeap(tasks int, add func(run func(<-chan struct{})) error, end func() error) (float64, error) {
	var failed error
	before, after := live(), int64(0)
	_, err := stop(tasks, func(run func(<-chan struct{})) {
		failed = errors.Join(failed, add(run))
	}, func() error {
		after = live()
		return end()
	})
	return float64(after-before) / float64(tasks), errors.Join(failed, err)
}

// exitOurs is stop for the tasks of a host.
func exitOurs(tasks int) (float64, error) {
	h := lifecycle.New(nil, lifecycle.Options{})
	var failed error
	took, err := stop(tasks, func(run func(<-chan struct{})) {
		failed = errors.Join(failed, h.Go("idle", func(ctx context.Context) error {
			run(ctx.Done())
			return nil
		}))
	}, func() error { return h.Exit(context.Background()) })
	return took, errors.Join(failed, err)
}

type service func(context.Context)

func (s service) Serve(ctx context.Context) error {
	s(ctx)
	return suture.ErrDoNotRestart
}

// stop has add make that many goroutines that wait for a channel, and returns the milliseconds that end took. What
// begin does comes between the two.
func stop(tasks int, add func(run func(<-chan struct{})), end func() error, begin ...func()) (float64, error) {
	var started sync.WaitGroup
	started.Add(tasks)
	for range tasks {
		add(func(c <-chan struct{}) {
			started.Done()
			<-c
		})
	}
	for _, b := range begin {
		b()
	}
	started.Wait()
	start := time.Now()
	err := end()
	return milliseconds(time.Since(start)), err
}

// held is a commitlog whose first write waits, so that everything after it stands in the queue.
type held struct {
	*commitlog.Log
	open chan struct{}
}

func (h held) Append(txs [][]byte) error {
	<-h.open
	return h.Log.Append(txs)
}

func (h held) AppendBatch(batch []byte, n int) error {
	<-h.open
	return h.Log.AppendBatch(batch, n)
}

// exitDrain: in both, the bytes are in memory when the clock starts and synced when it stops.
func exitDrain(e *env) error {
	const size = 128
	n := e.calls(1_000_000)
	bytes := int64(n) * (size + 4)
	zeroed, err := harness.NewZeroed(e.dir, bytes)
	if err != nil {
		return err
	}
	defer zeroed.Close()
	record := pattern(size, 4)
	name := fmt.Sprintf("%d × %d B", n, size)
	const raw, growing = "raw write, zeroed file", "raw write, growing file"
	rate := func(took time.Duration, err error) (float64, error) {
		return float64(bytes) / 1e6 / took.Seconds(), err
	}
	samples := e.interleave(name, []harness.Candidate{
		{Name: "lifecycle", Measure: func() (float64, error) { return rate(e.drainOurs(n, record, bytes)) }},
		{Name: raw, Measure: func() (float64, error) { return rate(zeroed.Stream(bytes)) }},
		{Name: "new files", Measure: func() (float64, error) { return rate(e.drainOurs(n, record, 0)) }},
		{Name: growing, Measure: func() (float64, error) {
			return e.fresh(func(dir string) (float64, error) { return rate(growingWrite(dir, bytes)) })
		}},
	})
	e.add(name, "MB/s", raw, samples["lifecycle"], samples[raw], atLeast(0.70))
	e.add(name+", new files", "MB/s", growing, samples["new files"], samples[growing], bound{})
	return nil
}

// drainOurs accepts n records while the log's first write waits, and returns how long Exit takes from the moment at
// which that write is let go. The log is peers.Recycled.
func (e *env) drainOurs(n int, record []byte, recycled int64) (took time.Duration, err error) {
	_, err = e.fresh(func(dir string) (float64, error) {
		log, err := peers.Recycled(dir, recycled)
		if err != nil {
			return 0, err
		}
		open := make(chan struct{})
		h := lifecycle.New(held{log, open}, lifecycle.Options{QueueBytes: 1 << 40})
		for range n {
			if _, err := h.Durability().Append(context.Background(), record); err != nil {
				close(open)
				return 0, errors.Join(err, h.Exit(context.Background()))
			}
		}
		start := time.Now()
		close(open)
		err = h.Exit(context.Background())
		took = time.Since(start)
		return 0, err
	})
	return took, err
}

func fleet(e *env) error {
	hosts := e.calls(10_000)
	name := fmt.Sprintf("%d hosts, 2 tasks each", hosts)
	var heap []float64
	samples := e.interleave(name, []harness.Candidate{
		{Name: "lifecycle", Measure: func() (float64, error) {
			took, bytes, err := exitFleet(hosts)
			heap = append(heap, bytes)
			return took, err
		}},
		// As many goroutines: a host's two tasks and its actor.
		{Name: "WaitGroup", Measure: func() (float64, error) { return waitGroup(3 * hosts), nil }},
	})
	e.add(name, "ms", "cancel, WaitGroup.Wait", samples["lifecycle"], samples["WaitGroup"], atMost(1.5))
	e.value("heap of an idle host", "B", heap, atMost(4096))
	return nil
}

// exitFleet returns the milliseconds that the exit of so many hosts took, each with a log that does nothing and two tasks, and
// the bytes of heap that one of them held before it had tasks.
func exitFleet(hosts int) (took, heap float64, err error) {
	ctx := context.Background()
	c := lifecycle.NewController[int](lifecycle.ControllerOptions{})
	all := make([]*lifecycle.Host, hosts)
	before := live()
	for i := range all {
		if all[i], err = c.Launch(ctx, i, func(context.Context) (*lifecycle.Host, error) {
			return lifecycle.New(nothing{}, lifecycle.Options{}), nil
		}); err != nil {
			return 0, 0, err
		}
	}
	heap = float64(live()-before) / float64(hosts)
	var started sync.WaitGroup
	started.Add(2 * hosts)
	for _, h := range all {
		for _, task := range []string{"first", "second"} {
			if err := h.Go(task, func(ctx context.Context) error {
				started.Done()
				return idle(ctx)
			}); err != nil {
				return 0, 0, err
			}
		}
	}
	started.Wait()
	start := time.Now()
	err = c.Exit(ctx)
	took = milliseconds(time.Since(start))
	runtime.KeepAlive(all)
	return took, heap, err
}

// live is the heap after a collection. Stacks are not part of it.
func live() int64 {
	runtime.GC()
	runtime.GC() // what the first one swept late
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func recovery(e *env) error {
	const size = 128
	total := int64(1 << 30)
	if e.quick {
		total = 64 << 20
	}
	name := fmt.Sprintf("%d MiB of %d B", total>>20, size)
	_, err := e.fresh(func(dir string) (float64, error) {
		if err := writeLog(dir, total, size); err != nil {
			return 0, err
		}
		bytes := 0.0
		samples := e.interleave(name, []harness.Candidate{
			{Name: "lifecycle", Measure: func() (float64, error) {
				start := time.Now()
				log, err := commitlog.Open(dir, commitlog.Options{})
				if err != nil {
					return 0, err
				}
				took := time.Since(start)
				return float64(total) / 1e6 / took.Seconds(), log.Close()
			}},
			{Name: "read", Measure: func() (float64, error) {
				start := time.Now()
				n, err := checksums(dir)
				bytes = float64(n)
				// Per byte of record, as above: headers and frames are what the format costs, and its own fault.
				return float64(total) / 1e6 / time.Since(start).Seconds(), err
			}},
		})
		e.add(name, "MB/s", fmt.Sprintf("read and CRC32C of the %d MiB", int(bytes)>>20), samples["lifecycle"], samples["read"], atLeast(0.5))
		return 0, nil
	})
	return err
}

// writeLog leaves a closed log of so many bytes, in records of that size.
func writeLog(dir string, total int64, size int) error {
	log, err := commitlog.Open(dir, commitlog.Options{})
	if err != nil {
		return err
	}
	batch := make([][]byte, 1024)
	for i := range batch {
		batch[i] = pattern(size, i)
	}
	for written := int64(0); err == nil && written < total; written += int64(len(batch) * size) {
		err = log.Append(batch)
	}
	if err == nil {
		err = log.Sync()
	}
	return errors.Join(err, log.Close())
}

func checksums(dir string) (int64, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return 0, err
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	buffer := make([]byte, 1<<20)
	total := int64(0)
	for _, name := range names {
		file, err := os.Open(name)
		if err != nil {
			return 0, err
		}
		sum := uint32(0)
		for {
			n, err := file.Read(buffer)
			sum = crc32.Update(sum, table, buffer[:n])
			total += int64(n)
			if err == io.EOF {
				break
			}
			if err != nil {
				return 0, errors.Join(err, file.Close())
			}
		}
		file.Close()
	}
	return total, nil
}

// stuck has 100,000 tasks that do not end, and an Exit whose caller does not wait: what it takes to name them.
func stuck(e *env) error {
	const tasks = 100_000
	h := lifecycle.New(nil, lifecycle.Options{})
	release := make(chan struct{})
	for range tasks {
		if err := h.Go("stuck", func(context.Context) error { <-release; return nil }); err != nil {
			return err
		}
	}
	expired, cancel := context.WithCancel(context.Background())
	cancel()
	_ = h.Exit(expired) // begins the exit
	name := fmt.Sprintf("%d tasks", tasks)
	var ours, profile []float64 // the longest stops
	samples := e.interleave(name, []harness.Candidate{
		{Name: "lifecycle", Measure: func() (float64, error) {
			before, start := pauses(), time.Now()
			err := h.Exit(expired)
			took := time.Since(start)
			ours = append(ours, longest(before, pauses()))
			var exit *lifecycle.ExitError
			if !errors.As(err, &exit) || len(exit.Stragglers) != 1 || exit.Stragglers[0].Count != tasks || exit.Stragglers[0].Stack == "" {
				return 0, fmt.Errorf("not the report of %d tasks: %w", tasks, err)
			}
			return took.Seconds(), nil
		}},
		{Name: "profile", Measure: func() (float64, error) {
			before, start := pauses(), time.Now()
			err := pprof.Lookup("goroutine").WriteTo(io.Discard, 0)
			took := time.Since(start)
			profile = append(profile, longest(before, pauses()))
			return took.Seconds(), err
		}},
		{Name: "stack", Measure: func() (float64, error) {
			buffer := make([]byte, 128<<20)
			start := time.Now()
			runtime.Stack(buffer, true)
			return time.Since(start).Seconds(), nil
		}},
	})
	e.value(name, "s", samples["lifecycle"], atMost(0.25))
	e.add(name, "s", "goroutine profile", samples["lifecycle"], samples["profile"], bound{})
	e.add(name, "s", "runtime.Stack(all)", samples["lifecycle"], samples["stack"], bound{})
	e.add("longest stop of the world", "ms", "goroutine profile", ours, profile, atMost(1))
	close(release)
	return h.Exit(context.Background())
}

// pauses are the stops of the world so far that were not for a collection, as the runtime sorts them by length.
func pauses() *metrics.Float64Histogram {
	sample := []metrics.Sample{{Name: "/sched/pauses/total/other:seconds"}}
	metrics.Read(sample)
	return sample[0].Value.Float64Histogram()
}

// longest is the longest stop between two looks, in milliseconds: the lower end of its class, which is about a
// tenth wide, or 0 if there was none.
func longest(before, after *metrics.Float64Histogram) float64 {
	for i := len(after.Counts) - 1; i >= 0; i-- {
		if after.Counts[i] > before.Counts[i] {
			return max(after.Buckets[i], 0) * 1000
		}
	}
	return 0
}
