package commitlog

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

// history is what a test knows of a log: what was appended, and how much of it was acknowledged.
type history struct {
	txs          []string // by offset
	acknowledged uint64   // every offset below it
	truncated    uint64   // every offset below it may be gone
	count        int      // makes every transaction another, also when an offset is used again
}

func (h *history) append(l *Log, sizes ...int) error {
	var txs [][]byte
	for _, size := range sizes {
		h.count++
		tx := tx(uint64(h.count), size)
		txs = append(txs, tx)
		h.txs = append(h.txs, string(tx))
	}
	var err error
	if h.count%2 == 0 {
		err = l.Append(txs)
	} else {
		err = l.AppendBatch(batch(txs...), len(txs))
	}
	l.waitPrepared() // for the same operations in each run
	return err
}

func (h *history) sync(l *Log) error {
	err := l.Sync()
	if err == nil {
		h.acknowledged = uint64(len(h.txs))
	}
	l.waitPrepared()
	return err
}

// verify compares an opened log with the history, and continues the history from what was found.
func (h *history) verify(l *Log) error {
	first, txs, err := contents(l)
	if err != nil {
		return err
	}
	next := first + uint64(len(txs))
	switch {
	case l.Next() != next:
		return fmt.Errorf("entries up to %d, but the next is %d", next, l.Next())
	case first > h.truncated:
		return fmt.Errorf("begins at %d, truncated before %d", first, h.truncated)
	case next < h.acknowledged:
		return fmt.Errorf("ends at %d, acknowledged are %d", next, h.acknowledged)
	case next > uint64(len(h.txs)):
		return fmt.Errorf("ends at %d, only %d were appended", next, len(h.txs))
	}
	for i, tx := range txs {
		if offset := first + uint64(i); h.txs[offset] != tx {
			return fmt.Errorf("offset %d is %.20q, not %.20q", offset, tx, h.txs[offset])
		}
	}
	h.txs, h.acknowledged = h.txs[:next:next], next
	return nil
}

// workload appends across rotations and truncates, three times: the first ends with a close, the second
// with a killed process. It stops at the first error.
func (h *history) workload(fs *faultfs.FS) (err error) {
	for round := range 3 {
		l, err := Open(testDir, small(fs))
		if err != nil {
			return err
		}
		if err := h.verify(l); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		err = h.session(l)
		if err != nil {
			l.Close()
			return err
		}
		if round == 1 {
			fs.Restart()
			continue
		}
		h.acknowledged = uint64(len(h.txs)) // as Close syncs
		if err := l.Close(); err != nil {
			h.acknowledged = l.durable.Load()
			return err
		}
	}
	return nil
}

func (h *history) session(l *Log) error {
	steps := []func() error{
		func() error { return h.append(l, 40) },
		func() error { return h.sync(l) },
		func() error { return h.append(l, 1800, 30) },
		func() error { return h.sync(l) },
		func() error { return h.append(l, 0, 60) },
		func() error { return h.append(l, 2500) }, // into the next segment
		func() error { return h.sync(l) },
		func() error { return h.append(l, 3000) }, // and the next
		func() error { return h.append(l, 20) },
		func() error { return h.sync(l) },
		func() error {
			h.truncated = h.acknowledged - 1
			return l.TruncateBefore(h.truncated)
		},
		func() error { return h.append(l, 3500) },
		func() error { return h.append(l, 10) }, // for Close to sync
	}
	for _, step := range steps {
		if err := step(); err != nil {
			if !errors.Is(err, faultfs.ErrInjected) && !errors.Is(err, faultfs.ErrKilled) {
				return fmt.Errorf("not the injected error: %w", err)
			}
			if l.failure != nil { // it did not come from TruncateBefore
				if again := l.Append([][]byte{{1}}); !errors.Is(again, err) {
					return fmt.Errorf("not poisoned: %w", again)
				}
			}
			return err
		}
	}
	return nil
}

// Every operation of the workload fails in turn, or is the last before the process is killed, with a write
// cut at many lengths and a sync that wrote nothing, half or all. Then the process starts again, the power
// fails, or one after the other, and the log must open each time with everything that was acknowledged.
func TestNothingAcknowledgedIsLostWhateverFails(t *testing.T) {
	plain := faultfs.New()
	require.NoError(t, new(history).workload(plain))
	trace := plain.Trace()
	var runs, next atomic.Int64
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for index := int(next.Add(1)) - 1; index < len(trace) && !t.Failed(); index = int(next.Add(1)) - 1 {
				for _, fault := range faultsAt(index, trace[index]) {
					runs.Add(int64(faultyRun(t, index, fault)))
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d operations, %d reopenings", len(trace), runs.Load())
}

// faultsAt is every fault that is tried at an operation.
func faultsAt(index int, op faultfs.Op) (faults []faultfs.Fault) {
	partials := []int{0}
	if op.Kind == faultfs.Write {
		step := 1
		if op.Bytes > 256 {
			step = 509 // no multiple or divisor of a sector
		}
		if testing.Short() {
			step *= 7
		}
		for p := step; p < op.Bytes; p += step {
			partials = append(partials, p)
		}
		partials = append(partials, op.Bytes)
	}
	if op.Kind == faultfs.Sync {
		partials = append(partials, 1, 2)
	}
	for _, partial := range partials {
		for _, kill := range []bool{false, true} {
			fault := faultfs.Fault{Partial: partial, Kill: kill}
			switch partial {
			case 1:
				fault.Keep = faultfs.KeepRandom(uint64(index))
			case 2:
				fault.Keep = faultfs.KeepAll
			}
			faults = append(faults, fault)
		}
	}
	return faults
}

func faultyRun(t *testing.T, index int, fault faultfs.Fault) (runs int) {
	fs := faultfs.New()
	fs.Hook(faultfs.FailAt(index, fault))
	h := &history{}
	err := h.workload(fs)
	fail := func(what string, err error) {
		op := faultfs.Op{}
		if trace := fs.Trace(); index < len(trace) {
			op = trace[index]
		}
		t.Errorf("fault %+v at %+v: %s: %v", fault, op, what, err)
	}
	if err != nil && !errors.Is(err, faultfs.ErrInjected) && !errors.Is(err, faultfs.ErrKilled) {
		fail("workload", err)
		return runs
	}
	crashes := map[string]func(fs *faultfs.FS){
		"restart":     func(*faultfs.FS) {},
		"power, none": func(fs *faultfs.FS) { fs.PowerFail(faultfs.KeepNone) },
		"power, all":  func(fs *faultfs.FS) { fs.PowerFail(faultfs.KeepAll) },
		"power, some": func(fs *faultfs.FS) { fs.PowerFail(faultfs.KeepRandom(uint64(index*31 + fault.Partial))) },
		"power, more": func(fs *faultfs.FS) { fs.PowerFail(faultfs.KeepRandom(uint64(index*37 + fault.Partial + 1))) },
		"caches":      func(fs *faultfs.FS) { fs.DropCaches() },
	}
	for name, crash := range crashes {
		fs := fs.Clone()
		h := *h
		crash(fs)
		for round := range 3 { // found; written to and lost power; closed in order
			l, err := Open(testDir, small(fs))
			if err != nil {
				fail(fmt.Sprintf("%s, opening %d", name, round), err)
				return runs
			}
			runs++
			if err := h.verify(l); err != nil {
				fail(fmt.Sprintf("%s, opening %d", name, round), err)
				return runs
			}
			if err := errors.Join(h.append(l, 70), h.sync(l), h.append(l, 700)); err != nil {
				fail(fmt.Sprintf("%s, after opening %d", name, round), err)
				return runs
			}
			switch round {
			case 0:
				fs.PowerFail(faultfs.KeepNone)
			case 1:
				h.acknowledged = uint64(len(h.txs))
				if err := l.Close(); err != nil {
					fail(name+", close", err)
					return runs
				}
				fs.PowerFail(faultfs.KeepNone)
			}
		}
	}
	return runs
}

// Long histories by seed: sessions that end in a kill, a power failure or a failed operation at random.
func TestNothingAcknowledgedIsLostInRandomHistories(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		fs := faultfs.New()
		h := &history{}
		random := faultfs.KeepRandom(uint64(seed))
		number := func(bits int) (n int) {
			for range bits {
				n <<= 1
				if random() {
					n |= 1
				}
			}
			return n
		}
		for session := range 12 {
			l, err := Open(testDir, small(fs))
			require.NoError(t, err, "seed %d, session %d", seed, session)
			require.NoError(t, h.verify(l), "seed %d, session %d", seed, session)
			at := fs.Count() + number(6)
			fault := faultfs.Fault{Partial: number(11), Kill: random(), Keep: faultfs.KeepRandom(uint64(seed*100 + session))}
			fs.Hook(faultfs.FailAt(at, fault))
			for range number(5) {
				err = h.append(l, number(9), number(6))
				if err == nil && random() {
					err = h.sync(l)
				}
				if err == nil && number(3) == 0 {
					h.truncated = h.acknowledged
					err = l.TruncateBefore(h.truncated)
				}
				if err != nil {
					break
				}
			}
			appended := l.failure == nil
			if random() && l.Close() == nil && appended {
				h.acknowledged = uint64(len(h.txs))
			}
			fs.Hook(nil)
			if random() {
				fs.PowerFail(faultfs.KeepRandom(uint64(seed*1000 + session)))
			} else {
				fs.Restart()
			}
		}
	}
}
