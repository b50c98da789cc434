package faults

import (
	"errors"
	"fmt"
	"regexp"
	"testing"

	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

// life is the short life of a log that the suites of single faults break: three sessions, of which the first is
// closed in order, the second killed, and the third closed again. It crosses rotations into a grown, a prepared and a
// recycled segment, and a truncation. It stops at the first error.
func (h *history) life(fs *faultfs.FS) error {
	session := func(end func(l *commitlog.Log) error, steps ...func(l *commitlog.Log) error) error {
		l, err := commitlog.Open(dir, options(fs))
		if err != nil {
			return err
		}
		if err := h.verify(l); err != nil {
			return err
		}
		for _, step := range steps {
			if err := step(l); err != nil {
				return errors.Join(err, h.refusesAll(l, err))
			}
		}
		return end(l)
	}
	appends := func(sizes ...int) func(*commitlog.Log) error {
		return func(l *commitlog.Log) error { return h.append(l, sizes...) }
	}
	syncs := func(l *commitlog.Log) error { return h.sync(l) }
	truncates := func(l *commitlog.Log) error { return h.truncate(l, h.acknowledged) }
	dies := func(*commitlog.Log) error { fs.Restart(); return nil }

	return errors.Join(
		session(h.close,
			appends(40), syncs,
			appends(1500, 0), syncs, // a quarter full: the preparer makes the next segment
			appends(700), appends(2100), // rotates
			syncs, appends(20)),
		session(dies,
			appends(600), appends(30), syncs,
			appends(1900), // rotates, with nothing prepared
			syncs, truncates, appends(10)),
		session(h.close,
			appends(50), syncs,
			appends(2400), syncs, // rotates
			truncates, // recycles
			appends(3000), appends(9), syncs, truncates),
	)
}

// refusesAll checks that a log that has failed takes nothing more and never says that a sync went well. A failed
// truncation is no failure of the log.
func (h *history) refusesAll(l *commitlog.Log, first error) error {
	if !injected(first) {
		return errors.New("not the injected error")
	}
	acknowledged := h.acknowledged
	err := l.Append([][]byte{[]byte("late")})
	if err == nil { // it was a truncation that failed
		h.txs = append(h.txs, "late")
		return h.endAnyhow(l)
	}
	if !injected(err) || !injected(l.Sync()) || !injected(l.Append(nil)) {
		return fmt.Errorf("not poisoned: %w", err)
	}
	err = h.endAnyhow(l)
	if h.acknowledged != acknowledged {
		return errors.New("acknowledged after a failure")
	}
	return err
}

// endAnyhow closes a log whose close may fail too, but only by the fault.
func (h *history) endAnyhow(l *commitlog.Log) error {
	if err := h.close(l); err != nil && !injected(err) {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

// exhaustive is the longest write that is cut at every byte with -ci. What is longer is zeros.
const exhaustive = 4 << 10

// lengths is how much of a write takes effect before it fails: with -ci every byte; of zeros, and without -ci, some of
// the beginning, the end, what lies around each sector boundary, and a few in between.
func lengths(op faultfs.Op) (all []int) {
	edge, step := 4, 127
	if *ci {
		edge, step = 64, 509
		if op.Bytes <= exhaustive {
			step = 1
		}
	}
	for n := 0; n <= op.Bytes; n++ {
		at := (op.Offset + int64(n)) % faultfs.SectorBytes
		if n < edge || op.Bytes-n < edge || at <= 1 || at == faultfs.SectorBytes-1 || n%step == 0 && (*ci || op.Bytes <= exhaustive) {
			all = append(all, n)
		}
	}
	return all
}

// faultsAt is every fault of an operation: it fails, or it is the last thing that the process does.
func faultsAt(op faultfs.Op) (faults []faultfs.Fault) {
	for _, kill := range []bool{false, true} {
		switch op.Kind {
		case faultfs.Write:
			for _, n := range lengths(op) {
				faults = append(faults, faultfs.Fault{Partial: n, Kill: kill})
			}
		case faultfs.Sync:
			faults = append(faults,
				faultfs.Fault{Kill: kill},
				faultfs.Fault{Kill: kill, Keep: faultfs.KeepRandom(uint64(op.Index))},
				faultfs.Fault{Kill: kill, Keep: faultfs.KeepRandom(uint64(op.Index) + 1000)},
				faultfs.Fault{Kill: kill, Keep: faultfs.KeepAll})
		default:
			faults = append(faults, faultfs.Fault{Kill: kill})
		}
	}
	return faults
}

// broken runs the life with a fault at one operation. A failed sync is always followed by ones that succeed.
func broken(op faultfs.Op, fault faultfs.Fault) (*faultfs.FS, *history, error) {
	fs, h := faultfs.New(), &history{}
	met := faultfs.Op{Index: -1}
	fs.Hook(func(at faultfs.Op) *faultfs.Fault {
		if at.Index != op.Index {
			return nil
		}
		met = at
		return &fault
	})
	err := h.life(fs)
	fs.Hook(nil)
	if err != nil && !injected(err) {
		return fs, h, err
	}
	if anySession(met) != anySession(op) {
		return fs, h, fmt.Errorf("the operation was %+v: runs differ", met)
	}
	return fs, h, nil
}

// anySession is op but for the random part of a temporary file's name.
func anySession(op faultfs.Op) faultfs.Op {
	op.Name = sessionInName.ReplaceAllString(op.Name, "-SESSION-")
	return op
}

var sessionInName = regexp.MustCompile("-[0-9a-f]{16}-")

// wholeLife is the operations of a life without faults.
func wholeLife(t *testing.T) []faultfs.Op {
	fs, h := faultfs.New(), &history{}
	if err := h.life(fs); err != nil {
		t.Fatal(err)
	}
	return fs.Trace()
}

func TestNothingAcknowledgedIsLostWhereverOneOperationFails(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		trace := wholeLife(t)
		runs, crashed, opened := 0, 0, 0
		kinds := map[faultfs.Kind]int{}
		for _, op := range trace {
			kinds[op.Kind]++
			for i, fault := range faultsAt(op) {
				fs, h, err := broken(op, fault)
				if err != nil {
					t.Fatalf("%+v failing with %+v: %v", op, fault, err)
				}
				runs++
				for j, c := range crashes {
					if !*ci && op.Kind == faultfs.Write && (i+j)%len(crashes) != 0 {
						continue // by turns
					}
					fs, h, seed := fs.Clone(), h.clone(), seedOf(op.Index, i, j)
					c.do(fs, seed)
					n, err := lifeAfter(fs, h, seed)
					if err != nil {
						t.Fatalf("%+v failing with %+v, then %s: %v", op, fault, c.name, err)
					}
					crashed, opened = crashed+1, opened+n
				}
			}
		}
		for _, kind := range []faultfs.Kind{
			faultfs.Mkdir, faultfs.ReadDir, faultfs.SyncDir, faultfs.Create, faultfs.Open, faultfs.Rename, faultfs.Remove,
			faultfs.Lock, faultfs.Unlock, faultfs.Read, faultfs.Write, faultfs.Sync, faultfs.Size, faultfs.Close,
		} {
			if kinds[kind] == 0 {
				t.Errorf("no %s in the life", kind)
			}
		}
		t.Logf("counts: operations %d, faults %d, crashes %d, reopenings %d", len(trace), runs, crashed, opened)
	})
}

// Two lives, one after the other, whose unsynced frames have the same sizes and the same place, and two power failures,
// each of which keeps any subset of what was not synced: the pieces must never make a frame that nobody wrote, nor bring back
// one of the first life behind one of the second.
func TestWhatTwoPowerFailuresLeaveNeverMakesAFrame(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		runs, kept := 0, 0
		for _, sizes := range [][2][]int{
			{{900}, {900}}, {{900, 900}, {900, 900}}, {{700, 700}, {700}}, {{450, 1000}, {450}}, {{1300}, {1300}}, {{300, 600}, {300, 600}},
		} {
			// The n-th thing that may be kept is, if bit n of the mask is set.
			keep := func(mask int) (func() bool, *int) {
				n := -1
				return func() bool { n++; return mask>>n&1 == 1 }, &n
			}
			for first, more := 0, true; more; first++ {
				fs, h := faultfs.New(), &history{}
				l, err := reopen(fs, h)
				if err != nil {
					t.Fatal(err)
				}
				h.count = 100
				for _, size := range sizes[0] {
					if err := h.append(l, size); err != nil {
						t.Fatal(err)
					}
				}
				choose, asked := keep(first)
				fs.PowerFail(choose)
				more = first+1 < 1<<(*asked+1)
				if l, err = reopen(fs, h); err != nil {
					t.Fatalf("sizes %v, first failure keeps %b: %v", sizes, first, err)
				}
				if len(h.txs) > 0 {
					kept++
				}
				for _, size := range sizes[1] {
					if err := h.append(l, size); err != nil {
						t.Fatal(err)
					}
				}
				for second, more := 0, true; more; second++ {
					fs, h := fs.Clone(), h.clone()
					choose, asked := keep(second)
					fs.PowerFail(choose)
					more = second+1 < 1<<(*asked+1)
					if _, err := reopen(fs, h); err != nil {
						t.Fatalf("sizes %v, first failure keeps %b, second %b: %v", sizes, first, second, err)
					}
					runs++
				}
			}
		}
		t.Logf("counts: pairs of power failures %d, first ones that kept something %d", runs, kept)
	})
}
