package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

// randomLife is many sessions of one log, in each of which any operation may fail: those of the opening too, several
// in a row, with writes cut anywhere, syncs that wrote some of it, and a disk that is full for a while. It returns how
// many faults there were, and how often it opened the log.
func randomLife(seed uint64) (faults, opened int, err error) {
	fs, h := faultfs.New(), &history{}
	r := rand.New(rand.NewPCG(seed, 1))
	segment := int64(8<<10 + r.IntN(3)*4<<10)
	for session := range 20 {
		one := 5 + r.IntN(400) // one operation in so many fails
		fs.Hook(func(op faultfs.Op) *faultfs.Fault {
			if r.IntN(one) > 0 {
				return nil
			}
			faults++
			return &faultfs.Fault{
				Partial: r.IntN(op.Bytes + 1), Kill: r.IntN(3) == 0,
				Keep: []func() bool{faultfs.KeepNone, faultfs.KeepAll, faultfs.KeepRandom(r.Uint64())}[r.IntN(3)],
			}
		})
		if r.IntN(4) == 0 {
			fs.SetQuota(fs.Used() + int64(r.IntN(20<<10)))
		}
		l, err := commitlog.Open(dir, commitlog.Options{SegmentBytes: segment, FS: fs})
		fail := func(doing string, err error) error {
			return fmt.Errorf("session %d: %s: %w", session, doing, err)
		}
		excused := func(err error) bool { return injected(err) || errors.Is(err, syscall.ENOSPC) && !isDamage(err) }
		if err == nil {
			opened++
			steps := r.IntN(40)
			if err := h.verify(l); err != nil {
				if !excused(err) {
					return faults, opened, fail("opened", err)
				}
				steps = 0 // it could not be read, so nobody knows where the next transaction goes
			}
			var failed error
			for range steps {
				switch r.IntN(8) {
				case 0, 1, 2:
					sizes := make([]int, 1+r.IntN(4))
					for i := range sizes {
						sizes[i] = r.IntN([]int{20, 300, 2500, 9000}[r.IntN(4)])
					}
					failed = h.append(l, sizes...)
				case 3, 4, 5:
					failed = h.sync(l)
				case 6:
					if err := h.truncate(l, uint64(r.Int64N(int64(h.acknowledged)+1))); err != nil && !excused(err) {
						return faults, opened, fail("truncate", err)
					}
				case 7: // what was acknowledged can be read at any time
					first := l.First()
					n := first
					for entry, err := range l.Read(first) {
						if err != nil {
							if !excused(err) {
								return faults, opened, fail("read", err)
							}
							n = max(n, h.acknowledged)
							break
						}
						if string(entry.Data) != h.txs[entry.Offset] || entry.Offset != n {
							return faults, opened, fail("read", fmt.Errorf("offset %d is not what was appended", n))
						}
						n++
					}
					if n < h.acknowledged || n > uint64(len(h.txs)) { // a rotation syncs too
						return faults, opened, fail("read", fmt.Errorf("up to %d, acknowledged are %d", n, h.acknowledged))
					}
				}
				if failed != nil {
					if !excused(failed) {
						return faults, opened, fail("append or sync", failed)
					}
					if l.Sync() == nil || l.Append(nil) == nil {
						return faults, opened, fail("after a failure", errors.New("not poisoned"))
					}
					break
				}
			}
			if steps > 0 && r.IntN(2) == 0 {
				if err := h.close(l); err != nil && !excused(err) {
					return faults, opened, fail("close", err)
				}
			}
		} else if !excused(err) {
			return faults, opened, fail("open", err)
		}
		fs.Hook(nil)
		fs.SetQuota(-1)
		crashes[r.IntN(len(crashes))].do(fs, r.Uint64())
	}
	n, err := lifeAfter(fs, h, seed)
	return faults, opened + n, err
}

func TestNothingAcknowledgedIsLostInLongRandomLives(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := *seeds
		if n == 0 {
			n = 60
			if *ci {
				n = 4000
			}
		}
		faults, opened := 0, 0
		for seed := *from; seed < *from+uint64(n); seed++ {
			f, o, err := randomLife(seed)
			if err != nil {
				t.Fatalf("-from %d -seeds 1: %v", seed, err)
			}
			faults, opened = faults+f, opened+o
		}
		t.Logf("counts: seeds %d, faults %d, reopenings %d", n, faults, opened)
	})
}
