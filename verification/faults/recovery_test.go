package faults

import (
	"errors"
	"fmt"
	"testing"

	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

// aFew is the faults of an operation when it is not the only one that fails: a write is cut at nothing, behind what a
// frame's header needs, inside its last sector and at its end.
func aFew(op faultfs.Op) (faults []faultfs.Fault) {
	for _, kill := range []bool{false, true} {
		switch op.Kind {
		case faultfs.Write:
			for _, n := range []int{0, 50, op.Bytes - 30, op.Bytes} {
				if n >= 0 && n <= op.Bytes && (n > 0 || !kill) {
					faults = append(faults, faultfs.Fault{Partial: n, Kill: kill})
				}
			}
		case faultfs.Sync:
			faults = append(faults,
				faultfs.Fault{Kill: kill},
				faultfs.Fault{Kill: kill, Keep: faultfs.KeepRandom(uint64(op.Index))})
		default:
			faults = append(faults, faultfs.Fault{Kill: kill})
		}
	}
	return faults
}

// recovery is the suite of faults inside a reopening: each operation of it fails or is the process's last, up to depth
// times one inside the other, with a crash between; then the log must live on.
type recovery struct {
	t                      *testing.T
	turn                   int
	faults, opened, failed int
}

// at breaks each operation of an opening of fs, and goes on from there.
func (r *recovery) at(fs *faultfs.FS, h *history, depth int, path string) {
	plain := fs.Clone()
	l, err := reopen(plain, h.clone())
	if err != nil {
		r.t.Fatalf("%s: %v", path, err)
	}
	l.Close()
	r.opened++
	for _, op := range plain.Trace() {
		if op.Kind == faultfs.Unlock { // the close, which is every_test.go's
			break
		}
		for i, fault := range aFew(op) {
			if !*ci && depth > 1 && (op.Index+i)%3 > 0 {
				continue
			}
			fs, h := fs.Clone(), h.clone()
			fs.Hook(faultfs.FailAt(op.Index, fault))
			r.faults++
			path := fmt.Sprintf("%s, then reopening with %s %d failing (kill %v, partial %d)", path, op.Kind, op.Index, fault.Kill, fault.Partial)
			l, err := commitlog.Open(dir, options(fs))
			switch {
			case err == nil: // the operation was the close of a file that was only read, or is one of reading the log
				if err := h.verify(l); err != nil && !injected(err) {
					r.t.Fatalf("%s: opened: %v", path, err)
				}
			case !injected(err):
				r.t.Fatalf("%s: %v", path, err)
			default:
				r.failed++
			}
			fs.Hook(nil)
			if err != nil && !fault.Kill && op.Kind != faultfs.Mkdir && op.Kind != faultfs.SyncDir {
				lock, err := fs.Lock(dir + "/lock")
				if err != nil {
					r.t.Fatalf("%s: the log is still locked: %v", path, err)
				}
				lock.Close()
			}
			if err != nil && !fault.Kill { // nothing crashed: it must open as if nothing had been
				n, err := lifeAfter(fs.Clone(), h.clone(), uint64(op.Index))
				if err != nil {
					r.t.Fatalf("%s, then once more: %v", path, err)
				}
				r.opened += n
			}
			// One crash each, by turns; over all of this every pair comes up.
			r.turn++
			c := crashes[r.turn%len(crashes)]
			seed := seedOf(r.turn, op.Index, i)
			c.do(fs, seed)
			path += ", then " + c.name
			if depth > 1 {
				r.at(fs, h, depth-1, path)
				continue
			}
			n, err := lifeAfter(fs, h, seed)
			if err != nil {
				r.t.Fatalf("%s: %v", path, err)
			}
			r.opened += n
		}
	}
}

// First a fault in the life of the log and a crash, then faults in the recovery.
func TestNothingAcknowledgedIsLostWhenTheRecoveryFailsToo(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := &recovery{t: t}
		firsts := 0
		for _, op := range wholeLife(t) {
			for i, fault := range aFew(op) {
				if !*ci && (op.Index+i)%12 != 0 {
					continue
				}
				fs, h, err := broken(op, fault)
				if err != nil {
					t.Fatalf("%+v failing with %+v: %v", op, fault, err)
				}
				firsts++
				for j, c := range crashes {
					if !*ci && j != op.Index%len(crashes) {
						continue
					}
					fs, h := fs.Clone(), h.clone()
					c.do(fs, seedOf(op.Index, i, j))
					r.at(fs, h, 1, fmt.Sprintf("%s %d failing (kill %v, partial %d), then %s", op.Kind, op.Index, fault.Kill, fault.Partial, c.name))
				}
			}
		}
		t.Logf("counts: first faults %d, faults in recoveries %d, recoveries that failed %d, reopenings %d", firsts, r.faults, r.failed, r.opened)
	})
}

// Two faults in two recoveries, one after the other, behind a killed process that had more to lose than others: a
// torn frame behind one that was written and not synced.
func TestNothingAcknowledgedIsLostWhenTwoRecoveriesFail(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := &recovery{t: t}
		fs, h := faultfs.New(), &history{}
		l, err := reopen(fs, h)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []error{
			h.append(l, 40), h.sync(l), h.append(l, 1500), h.sync(l), h.append(l, 3000), h.sync(l),
			h.append(l, 500), h.append(l, 600),
		} {
			if step != nil {
				t.Fatal(step)
			}
		}
		for i, c := range crashes {
			if !*ci && i != 3 {
				continue
			}
			fs, h := fs.Clone(), h.clone()
			c.do(fs, uint64(i))
			r.at(fs, h, 2, c.name)
		}
		t.Logf("counts: faults in recoveries %d, recoveries that failed %d, reopenings %d", r.faults, r.failed, r.opened)
	})
}

// An Open that made the directories and could not sync them, or was killed before it did, leaves them for the next one, which
// finds them there: they must be on the medium all the same before anything is acknowledged in them.
func TestDirectoriesThatAFailedOpenMadeAreSyncedByTheNext(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		runs, failed := 0, 0
		for index, more := 0, true; more; index++ { // each operation of the Open
			for _, kill := range []bool{false, true} {
				fs, h := faultfs.New(), &history{}
				fs.Hook(faultfs.FailAt(index, faultfs.Fault{Kill: kill}))
				if _, err := commitlog.Open(dir, options(fs)); err != nil {
					failed++
				}
				more = fs.Count() > index
				fs.Hook(nil)
				fs.Restart()
				l, err := reopen(fs, h)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(h.append(l, 10), h.sync(l)); err != nil {
					t.Fatal(err)
				}
				fs.PowerFail(faultfs.KeepNone)
				if _, err = reopen(fs, h); err != nil {
					t.Errorf("operation %d failed (%+v, kill: %v): %v", index, fs.Trace()[index], kill, err)
				}
				runs++
			}
		}
		if !t.Failed() {
			t.Logf("counts: faults %d, of them %d that Open reported", runs, failed)
		}
	})
}
