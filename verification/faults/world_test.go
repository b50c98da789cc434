package faults

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

var (
	ci    = flag.Bool("ci", false, "the sizes for CI: every byte, third faults")
	seeds = flag.Int("seeds", 0, "how many random histories; 0: 60, with -ci 4000")
	from  = flag.Uint64("from", 0, "the seed of the first random history")
)

// dir is two levels down, so that there are entries of directories above it to lose.
const dir = "/data/log"

// options make the smallest segments there are: 4 KiB of header and 4 KiB of frames.
func options(fs *faultfs.FS) commitlog.Options {
	return commitlog.Options{SegmentBytes: 8 << 10, FS: fs}
}

// inBubble runs f in a bubble, where synctest.Wait tells that the log's preparer has ended, and with one
// processor, so that recovery checks segments one after another: every run then does the same operations in the
// same order, and the index of an operation means the same in each.
func inBubble(t *testing.T, f func(t *testing.T)) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, f)
}

// history is what a test knows of a log: what was appended, and how much of it was acknowledged.
type history struct {
	txs          []string // by offset
	acknowledged uint64   // every offset below it
	truncated    uint64   // every offset below it may be gone
	count        int      // makes every transaction another, also when an offset is used again
}

func (h *history) clone() *history {
	c := *h
	c.txs = slices.Clone(h.txs)
	return &c
}

// transaction has the given size, at least, and begins as no other does. The rest is the same in all, so that pieces
// of two can make a whole one if the log lets them.
func transaction(n, size int) []byte {
	tx := fmt.Appendf(nil, "#%d ", n)
	for i := len(tx); i < size; i++ {
		tx = append(tx, byte(i*31+i>>3))
	}
	return tx
}

// append writes transactions of these sizes in one call, by either of the log's ways.
func (h *history) append(l *commitlog.Log, sizes ...int) error {
	var txs [][]byte
	for _, size := range sizes {
		h.count++
		tx := transaction(h.count, size)
		txs = append(txs, tx)
		h.txs = append(h.txs, string(tx))
	}
	var err error
	if h.count%2 == 0 {
		err = l.Append(txs)
	} else {
		batch := make([]byte, l.BatchHeader())
		for _, tx := range txs {
			batch = binary.LittleEndian.AppendUint32(batch, uint32(len(tx)))
			batch = append(batch, tx...)
		}
		err = l.AppendBatch(batch, len(txs))
	}
	synctest.Wait()
	return err
}

func (h *history) sync(l *commitlog.Log) error {
	err := l.Sync()
	if err == nil {
		h.acknowledged = uint64(len(h.txs))
	}
	synctest.Wait()
	return err
}

func (h *history) truncate(l *commitlog.Log, before uint64) error {
	h.truncated = max(h.truncated, before)
	return l.TruncateBefore(before)
}

// close acknowledges everything if the log takes it so.
func (h *history) close(l *commitlog.Log) error {
	healthy := l.Append(nil) == nil
	err := l.Close()
	if err == nil && healthy {
		h.acknowledged = uint64(len(h.txs))
	}
	return err
}

// contents reads a log from its beginning to its end.
func contents(l *commitlog.Log) (first uint64, txs []string, err error) {
	first = l.First()
	for entry, err := range l.Read(first) {
		if err != nil {
			return first, txs, err
		}
		if entry.Offset != first+uint64(len(txs)) {
			return first, txs, fmt.Errorf("offset %d after %d entries from %d on", entry.Offset, len(txs), first)
		}
		txs = append(txs, string(entry.Data))
	}
	if next := first + uint64(len(txs)); next != l.Next() {
		return first, txs, fmt.Errorf("entries up to %d, but the next is %d", next, l.Next())
	}
	return first, txs, nil
}

// verify compares an opened log with the history, and goes on from what was found: an opened log is durable as a
// whole.
func (h *history) verify(l *commitlog.Log) error {
	first, txs, err := contents(l)
	if err != nil {
		return err
	}
	next := first + uint64(len(txs))
	switch {
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

// injected reports whether an error is the fault's own. Damage never is: none was done.
func injected(err error) bool {
	return (errors.Is(err, faultfs.ErrInjected) || errors.Is(err, faultfs.ErrKilled)) && !isDamage(err)
}

func isDamage(err error) bool {
	var damage *commitlog.DamageError
	return errors.As(err, &damage)
}

// reopen opens the log and verifies it.
func reopen(fs *faultfs.FS, h *history) (*commitlog.Log, error) {
	l, err := commitlog.Open(dir, options(fs))
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	if err := h.verify(l); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// crash is a way in which a process and perhaps its machine end.
type crash struct {
	name string
	do   func(fs *faultfs.FS, seed uint64)
}

var (
	killed   = crash{"process killed", func(fs *faultfs.FS, _ uint64) { fs.Restart() }}
	lostAll  = crash{"power lost, nothing unsynced kept", func(fs *faultfs.FS, _ uint64) { fs.PowerFail(faultfs.KeepNone) }}
	lostNone = crash{"power lost, all kept", func(fs *faultfs.FS, _ uint64) { fs.PowerFail(faultfs.KeepAll) }}
	lostSome = crash{"power lost, some kept", func(fs *faultfs.FS, seed uint64) { fs.PowerFail(faultfs.KeepRandom(seed)) }}
	dropped  = crash{"process killed, caches dropped", func(fs *faultfs.FS, _ uint64) { fs.DropCaches(); fs.Restart() }}

	crashes = []crash{killed, lostAll, lostNone, lostSome, dropped}
)

// lifeAfter is what must work after a crash, whatever led to it. The log opens and shows what it must; what it shows
// survives a second crash that comes before anything else is written; it takes transactions and closes in order.
// It returns how often the log was opened.
func lifeAfter(fs *faultfs.FS, h *history, seed uint64) (opened int, err error) {
	l, err := reopen(fs, h)
	if err != nil {
		return 0, fmt.Errorf("after the crash: %w", err)
	}
	_ = l // it dies with its process
	second := []crash{lostAll, lostSome, dropped}[seed%3]
	second.do(fs, seed)
	if l, err = reopen(fs, h); err != nil {
		return 1, fmt.Errorf("after a second crash (%s) right behind the recovery: %w", second.name, err)
	}
	if err := errors.Join(h.append(l, 70), h.sync(l), h.append(l, 700), h.close(l)); err != nil {
		return 2, fmt.Errorf("going on after the recovery: %w", err)
	}
	fs.PowerFail(faultfs.KeepNone)
	if l, err = reopen(fs, h); err != nil {
		return 2, fmt.Errorf("after a clean close and a power failure: %w", err)
	}
	return 3, h.close(l)
}

// seedOf makes a number of numbers.
func seedOf(numbers ...int) uint64 {
	sum := fnv.New64a()
	fmt.Fprint(sum, numbers)
	return sum.Sum64()
}
