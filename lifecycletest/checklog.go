package lifecycletest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/seed080d9131/lifecycle"
)

// LogPlace is a place in which a log lives, such as a directory, and what CheckLog
// may do to it. Open and Read are required. Of the others, those that are left out
// say that the log can't do it or that the test can't simulate it: the checks that
// need them are skipped, and say so.
type LogPlace struct {
	// Open opens the log that lives in the place: at first a new one, after a Close or
	// a Crash what is left of it. At most one log is open at a time, but for a second
	// one that Exclusive says is refused.
	Open func() (lifecycle.Log, error)

	// Read calls visit for each durable transaction of an open log from an offset on,
	// in the log's order, with the offset that the log says it has; for from = Next
	// there is none. visit keeps no bytes.
	Read func(log lifecycle.Log, from lifecycle.Offset, visit func(offset lifecycle.Offset, tx []byte)) error

	// First is what Next is in a new log.
	First lifecycle.Offset

	// Exclusive says that Open is refused, at once, as long as the log is open.
	Exclusive bool

	// ReadsWhileAppending says that Read may be called by other goroutines while one
	// appends and syncs.
	ReadsWhileAppending bool

	// Crash ends the open log's process or its machine in the middle of its work, and
	// frees what is left of the log in this process: CheckLog does not call it any
	// more, and no goroutine of it may go on writing to the place, as none of a dead
	// process does. The next Open finds what survived. Of what was not synced nothing may
	// survive for seed 0 (a power failure), and all of it for seed 1 (a killed
	// process); for others, draw. Where only one of that can be simulated, do that.
	Crash func(log lifecycle.Log, seed uint64) error

	// Fail makes the next write (op is Append) or sync (op is Sync) of the medium under
	// the open log fail, once: after that the medium works again, so that a log which
	// tries twice is found. A log that writes only in its Sync fails there. If what was
	// not synced can vanish as the medium fails, all the better: let it.
	Fail func(log lifecycle.Log, op Op) error

	// LargestTransaction is the size, in bytes, up to which transactions are tried. 0
	// is 1 MiB; lifecycle.MaxTransactionBytes is what a log must take.
	LargestTransaction int
}

const defaultLargest = 1 << 20

// CheckLog checks that a Log is what a Host takes it for, as the documentation of
// lifecycle.Log and lifecycle.BatchLog says: order and offsets, transactions of
// every size, nothing kept of the caller's bytes, nothing lost over Close and Open,
// over a crash between Append and Sync, or after a failed write or sync, nothing
// but errors after such a failure, and all of this under a Host.
//
// Each check is a subtest, for which open makes a new, empty place; what that needs
// to be freed belongs to the t that open gets. A failure says what the log did,
// and the sentence that it breaks. What can't be checked is skipped with the reason.
// A panic of the log is taken for an error, as a Host takes it. Two things are
// checked that a Host does not need, but its program: that a second Close does not
// panic, and that Append and Sync after a failure go on to fail.
//
//	func TestTheLogIsALog(t *testing.T) {
//		lifecycletest.CheckLog(t, func(t testing.TB) lifecycletest.LogPlace {
//			dir := t.TempDir()
//			return lifecycletest.LogPlace{
//				Open: func() (lifecycle.Log, error) { return mylog.Open(dir) },
//				Read: func(log lifecycle.Log, from lifecycle.Offset, visit func(lifecycle.Offset, []byte)) error {
//					return log.(*mylog.Log).Each(from, visit)
//				},
//				Exclusive: true,
//			}
//		})
//	}
//
// CheckLog can't know whether the log syncs what it says it does if Crash keeps
// what was not synced, nor what a real disk does. It is no substitute for the
// log's own tests of its recovery.
func CheckLog(t *testing.T, open func(t testing.TB) LogPlace) {
	t.Helper()
	for _, check := range logChecks {
		t.Run(check.name, func(t *testing.T) {
			if reason := check.on(t, open); reason != "" {
				t.Skip("skipped: " + reason)
			}
		})
	}
}

// What the checks check, in the words of lifecycle's documentation.
const (
	ruleOffset      = "Offset is the position of a transaction in the log: from 0, without gaps, in the order of acceptance."
	ruleSizes       = "Any Log must take what is up to it."
	ruleNext        = "Next is the offset that the first transaction of the next Append gets."
	ruleAppend      = "Append writes txs after what the log holds."
	ruleKeepNothing = "It must not keep txs or their bytes after it returns."
	ruleSync        = "Sync returns nil once all that was appended is durable."
	ruleFailed      = "After an error the host calls nothing but Close: a second fsync after a failed one may say yes to what is gone"
	ruleClose       = "Close gives up what the log holds."
	ruleHeader      = "BatchHeader is how many bytes the log wants free in front of each batch, at most 4096."
	ruleHeaderOnce  = "The host asks once, in New."
	ruleBatch       = "AppendBatch is Append for the n transactions in batch."
	ruleHeaderBytes = "Its first BatchHeader bytes are the log's to write; n records follow, each a little-endian uint32, the length, and so many bytes."
	ruleSlack       = "The bytes between len(batch) and cap(batch) are the log's to write as well; it must not keep batch after it returns."
	ruleSeveral     = "is handed over in several calls before one Sync."
	ruleDurable     = "Durable returns the durable offset: every transaction below it is durable."
	ruleCommit      = "Without an error it is, at the offset returned."
)

// rules is all of them. A test looks for them in the source.
var rules = []string{ruleOffset, ruleSizes, ruleNext, ruleAppend, ruleKeepNothing, ruleSync, ruleFailed, ruleClose, ruleHeader, ruleHeaderOnce, ruleBatch, ruleHeaderBytes, ruleSlack, ruleSeveral, ruleDurable, ruleCommit}

// logCheck is a subtest of CheckLog.
type logCheck struct {
	name string
	run  func(c *logChecker) (skipped string)
}

var logChecks = []logCheck{
	{"offsets", (*logChecker).offsets},
	{"order", (*logChecker).order},
	{"sizes", (*logChecker).sizes},
	{"many transactions in a batch", (*logChecker).many},
	{"nothing to append or sync", (*logChecker).nothing},
	{"keeps no bytes", (*logChecker).keepsNothing},
	{"batches", (*logChecker).batches},
	{"reopening", (*logChecker).reopening},
	{"closing without a sync", (*logChecker).closingUnsynced},
	{"closing", (*logChecker).closing},
	{"exclusive", (*logChecker).exclusive},
	{"reads while appending", (*logChecker).concurrentReads},
	{"crash", (*logChecker).crash},
	{"crash after a crash", (*logChecker).crashTwice},
	{"failed write", func(c *logChecker) string { return c.failed(Append) }},
	{"failed sync", func(c *logChecker) string { return c.failed(Sync) }},
	{"under a host", (*logChecker).underHost},
	{"under a host, failed sync", (*logChecker).underFailingHost},
}

// on runs the check on a new place. It returns why it can't, if it can't.
func (check logCheck) on(t testing.TB, open func(t testing.TB) LogPlace) (skipped string) {
	t.Helper()
	c := &logChecker{t: t, place: open(t), random: rand.New(rand.NewPCG(1, 2))}
	if c.place.Open == nil || c.place.Read == nil {
		t.Fatalf("lifecycletest: CheckLog: a LogPlace needs Open and Read: without reading back nothing can be checked")
	}
	c.largest = cmp.Or(c.place.LargestTransaction, defaultLargest)
	t.Cleanup(func() { // where the check has failed
		if c.log != nil {
			_ = guarded(c.log.Close)
		}
	})
	return check.run(c)
}

// logChecker is one run of a check: an open log and what it should hold.
type logChecker struct {
	t       testing.TB
	place   LogPlace
	largest int
	random  *rand.Rand
	made    int // transactions so far: no two of 12 bytes or more are the same

	log    lifecycle.Log // nil: not open
	txs    [][]byte      // appended to it, in order
	synced int           // of txs
}

// broken fails the check.
func (c *logChecker) broken(rule, format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("lifecycletest: CheckLog: %s\nThe contract says: %q", fmt.Sprintf(format, args...), rule)
}

// unable fails the check since the place does not do what it should.
func (c *logChecker) unable(doing string, err error) {
	c.t.Helper()
	c.t.Fatalf("lifecycletest: CheckLog: LogPlace.%s failed, so nothing can be said of the log: %v", doing, err)
}

// guarded takes a panic for an error, as a Host does.
func guarded(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &lifecycle.PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return f()
}

// told is an error with the stack, if it is a panic's.
func told(err error) string {
	var p *lifecycle.PanicError
	if errors.As(err, &p) {
		return fmt.Sprintf("%v\n%s", err, indent(string(p.Stack)))
	}
	return err.Error()
}

// open opens the log; rule is broken if that fails.
func (c *logChecker) open(rule, when string) {
	c.t.Helper()
	if err := guarded(func() (err error) { c.log, err = c.place.Open(); return err }); err != nil {
		c.log = nil
		c.broken(rule, "%s, Open fails: %s", when, told(err))
	}
	if c.log == nil {
		c.t.Fatalf("lifecycletest: CheckLog: LogPlace.Open returned neither a log nor an error")
	}
}

func (c *logChecker) close(when string) {
	c.t.Helper()
	log := c.log
	c.log = nil
	if err := guarded(log.Close); err != nil {
		c.broken(ruleClose, "%s, Close of a log that has not failed returns an error: %s", when, told(err))
	}
}

// next is what Next should be.
func (c *logChecker) next() lifecycle.Offset {
	return c.place.First + lifecycle.Offset(len(c.txs))
}

// tx makes a transaction: its number, then noise, or what might be taken for the
// end of a log, or for its inside.
func (c *logChecker) tx(size int) []byte {
	c.made++
	tx := make([]byte, size)
	switch c.made % 4 {
	case 0: // zeros
	case 1:
		for i := range tx {
			tx[i] = 0xff
		}
	default:
		for i := 0; i < size; i += 8 {
			var noise [8]byte
			binary.LittleEndian.PutUint64(noise[:], c.random.Uint64())
			copy(tx[i:], noise[:])
		}
	}
	if size >= 12 {
		copy(tx, fmt.Sprintf("tx %09d", c.made))
	}
	return tx
}

func (c *logChecker) sized(sizes ...int) [][]byte {
	txs := make([][]byte, len(sizes))
	for i, size := range sizes {
		txs[i] = c.tx(size)
	}
	return txs
}

// some draws a batch of small transactions, rarely a larger one.
func (c *logChecker) some() [][]byte {
	sizes := make([]int, 1+c.random.IntN(6))
	for i := range sizes {
		sizes[i] = c.random.IntN(200)
		if c.random.IntN(40) == 0 {
			sizes[i] = c.random.IntN(20 << 10)
		}
	}
	return c.sized(sizes...)
}

// append appends copies of txs.
func (c *logChecker) append(txs [][]byte) {
	c.t.Helper()
	copies := cloneAll(txs)
	if err := guarded(func() error { return c.log.Append(copies) }); err != nil {
		c.broken(ruleAppend, "Append of %s after %d transactions returns an error: %s", described(txs), len(c.txs), told(err))
	}
	c.txs = append(c.txs, txs...)
}

func (c *logChecker) sync() {
	c.t.Helper()
	if err := guarded(c.log.Sync); err != nil {
		c.broken(ruleSync, "Sync of %d transactions, %d of them synced before, returns an error: %s", len(c.txs), c.synced, told(err))
	}
	c.synced = len(c.txs)
}

// commit appends and syncs.
func (c *logChecker) commit(txs [][]byte) {
	c.t.Helper()
	c.append(txs)
	c.sync()
}

func described(txs [][]byte) string {
	if len(txs) == 1 {
		return fmt.Sprintf("one of %d bytes", len(txs[0]))
	}
	bytes := 0
	for _, tx := range txs {
		bytes += len(tx)
	}
	return fmt.Sprintf("%d with %d bytes together", len(txs), bytes)
}

// atNext checks Next.
func (c *logChecker) atNext(rule, when string) {
	c.t.Helper()
	if next := c.nextOf(rule, when); next != c.next() {
		c.broken(rule, "%s, Next is %d; it should be %d: a new log's is %d, and %d transactions were appended", when, next, c.next(), c.place.First, len(c.txs))
	}
}

func (c *logChecker) nextOf(rule, when string) (next lifecycle.Offset) {
	c.t.Helper()
	if err := guarded(func() error { next = c.log.Next(); return nil }); err != nil {
		c.broken(rule, "%s, Next panics: %s", when, told(err))
	}
	return next
}

// holds checks that the log holds exactly what was appended, all of it synced.
func (c *logChecker) holds(rule, when string) {
	c.t.Helper()
	c.atNext(rule, when)
	c.reads(rule, when, 0, len(c.txs))
}

// reads reads from txs[from] on, and checks that at least those before least are
// there, and nothing else. It returns where the log ends.
func (c *logChecker) reads(rule, when string, from, least int) (end int) {
	c.t.Helper()
	at, wrong := from, ""
	err := guarded(func() error {
		return c.place.Read(c.log, c.place.First+lifecycle.Offset(from), func(offset lifecycle.Offset, tx []byte) {
			if wrong == "" {
				wrong = c.compare(at, offset, tx)
			}
			at++
		})
	})
	switch {
	case wrong != "":
		c.broken(rule, "%s, the log read from offset %d on has %s", when, c.place.First+lifecycle.Offset(from), wrong)
	case err != nil:
		c.broken(rule, "%s, the log can't be read from offset %d on: after %d of %d transactions it says: %s", when, c.place.First+lifecycle.Offset(from), at-from, len(c.txs)-from, told(err))
	case at < least:
		c.broken(rule, "%s, the log ends before offset %d; %d were appended up to %d, and those before %d were synced", when, c.place.First+lifecycle.Offset(at), len(c.txs), c.next(), c.place.First+lifecycle.Offset(c.synced))
	}
	return at
}

// compare says what is wrong with what the log has in the place of txs[at].
func (c *logChecker) compare(at int, offset lifecycle.Offset, tx []byte) string {
	right := c.place.First + lifecycle.Offset(at)
	switch {
	case offset != right:
		return fmt.Sprintf("offset %d where %d belongs", offset, right)
	case at >= len(c.txs):
		return fmt.Sprintf("at offset %d a transaction of %d bytes, %.40q, but only those before it were ever appended", offset, len(tx), tx)
	case !bytes.Equal(tx, c.txs[at]):
		also := ""
		if i := slices.IndexFunc(c.txs, func(other []byte) bool { return len(tx) >= 12 && bytes.Equal(other, tx) }); i >= 0 {
			also = fmt.Sprintf(", which belongs at %d", c.place.First+lifecycle.Offset(i))
		}
		return fmt.Sprintf("at offset %d %d bytes, %.40q%s; appended were %d, %.40q", offset, len(tx), tx, also, len(c.txs[at]), c.txs[at])
	}
	return ""
}

// survives checks what a log holds that was opened after a crash or a failure: all
// that was synced and a beginning of the rest. The check goes on from there.
func (c *logChecker) survives(rule, when string) {
	c.t.Helper()
	end := c.reads(rule, when, 0, c.synced)
	c.txs, c.synced = c.txs[:end:end], end
	c.atNextAfter(ruleNext, when)
}

// atNextAfter is atNext where what was lost counts no more.
func (c *logChecker) atNextAfter(rule, when string) {
	c.t.Helper()
	if next := c.nextOf(rule, when); next != c.next() {
		c.broken(rule, "%s, Next is %d, but what the log holds goes from %d to before %d", when, next, c.place.First, c.next())
	}
}
