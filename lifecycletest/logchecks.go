package lifecycletest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// The checks of CheckLog, in the order of its table.

func (c *logChecker) offsets() string {
	c.open(ruleNext, "at first")
	c.atNext(ruleNext, "in a new log")
	for i := range 5 {
		c.append(c.some())
		c.atNext(ruleNext, "after an Append that is not synced")
		c.append(c.some())
		c.sync()
		c.holds(ruleOffset, fmt.Sprintf("after Sync %d", i+1))
		c.atNext(ruleNext, "after Read")
	}
	c.close("at last")
	return ""
}

func (c *logChecker) order() string {
	c.open(ruleAppend, "at first")
	for i := range 40 {
		for range 1 + c.random.IntN(3) {
			c.append(c.some())
		}
		c.sync()
		if i%10 == 0 {
			c.holds(ruleAppend, "after Append and Sync")
		}
	}
	c.holds(ruleAppend, "after Append and Sync")
	for range 20 {
		c.reads(ruleOffset, "read from the middle", c.random.IntN(len(c.txs)+1), len(c.txs))
	}
	c.reads(ruleOffset, "read from its end", len(c.txs), len(c.txs))
	c.close("at last")
	return ""
}

// sizeList is what might be an edge of somebody's.
func sizeList(largest int) (sizes []int) {
	sizes = []int{0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13}
	for power := 16; power <= largest; power *= 2 {
		sizes = append(sizes, power)
		if power <= 64<<10 {
			sizes = append(sizes, power-1, power+1)
		}
	}
	sizes = append(sizes, largest)
	slices.Sort(sizes)
	sizes = slices.Compact(sizes)
	return slices.DeleteFunc(sizes, func(size int) bool { return size > largest })
}

func (c *logChecker) sizes() string {
	c.open(ruleSizes, "at first")
	sizes := sizeList(c.largest)
	for _, size := range sizes {
		c.commit(c.sized(size))
	}
	c.holds(ruleSizes, fmt.Sprintf("after transactions of %d to %d bytes, each synced", sizes[0], c.largest))
	small := slices.DeleteFunc(slices.Clone(sizes), func(size int) bool { return size > defaultLargest })
	c.random.Shuffle(len(small), func(i, j int) { small[i], small[j] = small[j], small[i] })
	c.commit(c.sized(small...))
	c.commit(c.sized(0, 0, 0))
	c.commit(c.sized(5, 0))
	c.commit(c.sized(0))
	c.holds(ruleSizes, "after a batch of them all")
	c.close("at last")
	c.open(ruleSizes, "after Close")
	c.holds(ruleSizes, "opened again with transactions of all sizes")
	c.close("at last")
	return ""
}

func (c *logChecker) many() string {
	c.open(ruleAppend, "at first")
	for _, n := range []int{10_000, 1, 3_000} {
		txs := make([][]byte, n)
		for i := range txs {
			txs[i] = c.tx(c.random.IntN(40))
		}
		c.append(txs)
	}
	c.sync()
	c.holds(ruleAppend, "after batches of 10,000, 1 and 3,000 transactions under one Sync")
	c.close("at last")
	c.open(ruleSync, "after Close")
	c.holds(ruleSync, "opened again after batches of 10,000, 1 and 3,000 transactions")
	c.close("at last")
	return ""
}

func (c *logChecker) nothing() string {
	c.open(ruleSync, "at first")
	c.sync()
	c.holds(ruleSync, "after a Sync of nothing in a new log")
	c.append(nil)
	c.atNext(ruleNext, "after an Append of nothing")
	c.sync()
	c.holds(ruleAppend, "after an Append of nothing and Sync")
	c.commit(c.some())
	c.sync()
	c.append([][]byte{})
	c.sync()
	c.sync()
	c.holds(ruleAppend, "after Syncs and Appends of nothing")
	c.append(c.some())
	c.append(nil)
	c.sync()
	c.holds(ruleAppend, "after an Append of nothing before a Sync")
	c.close("at last")
	c.open(ruleSync, "after Close")
	c.holds(ruleSync, "opened again after Syncs and Appends of nothing")
	c.close("at last")
	c.open(ruleClose, "after Close of a log that was only opened")
	c.holds(ruleClose, "opened again after a session without an Append")
	c.close("at last")
	return ""
}

func scribble(b []byte) {
	for i := range b {
		b[i] = 0xa5
	}
}

func (c *logChecker) keepsNothing() string {
	c.open(ruleAppend, "at first")
	for range 10 {
		for range 3 {
			txs := append(c.some(), c.sized(100, 70_000)...)
			lent := cloneAll(txs)
			if err := guarded(func() error { return c.log.Append(lent) }); err != nil {
				c.broken(ruleAppend, "Append of %s returns an error: %s", described(txs), told(err))
			}
			c.txs = append(c.txs, txs...)
			for i, tx := range lent {
				scribble(tx)
				lent[i] = []byte("not yours any more")
			}
		}
		c.sync()
	}
	c.holds(ruleKeepNothing, "after the bytes that Append got were written over, before Sync")
	c.close("at last")
	c.open(ruleKeepNothing, "after Close")
	c.holds(ruleKeepNothing, "opened again after the bytes that Append got were written over, before Sync")
	c.close("at last")
	return ""
}

// batch lays out txs as the host's queue does, with slack bytes behind them, and
// rubbish where the log may write.
func batch(header, slack int, txs [][]byte) []byte {
	size := header + slack
	for _, tx := range txs {
		size += 4 + len(tx)
	}
	b := make([]byte, size)
	scribble(b)
	b = b[:header]
	for _, tx := range txs {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(tx)))
		b = append(b, tx...)
	}
	return b
}

// appendBatch appends txs in one buffer, and writes over it when that has returned.
func (c *logChecker) appendBatch(log lifecycle.BatchLog, header, slack int, txs [][]byte) {
	c.t.Helper()
	lent := batch(header, slack, txs)
	before := bytes.Clone(lent)
	if err := guarded(func() error { return log.AppendBatch(lent, len(txs)) }); err != nil {
		c.broken(ruleBatch, "AppendBatch of %s, with %d bytes of capacity behind them, returns an error: %s", described(txs), slack, told(err))
	}
	if !bytes.Equal(lent[header:], before[header:]) {
		c.broken(ruleHeaderBytes, "AppendBatch of %s has changed the records, which are not its to write", described(txs))
	}
	scribble(lent[:cap(lent)])
	c.txs = append(c.txs, txs...)
}

func (c *logChecker) batches() string {
	c.open(ruleBatch, "at first")
	log, ok := c.log.(lifecycle.BatchLog)
	if !ok {
		c.close("at last")
		return "the log is no lifecycle.BatchLog"
	}
	header := c.header(log)
	for i := range 12 {
		for range 1 + c.random.IntN(3) {
			c.appendBatch(log, header, 16*(i%3), c.some())
		}
		if i%2 == 0 {
			c.append(c.some())
		}
		if i%3 == 0 {
			c.appendBatch(log, header, 0, c.sized(c.random.IntN(30)))
		}
		c.sync()
		if i == 0 {
			c.holds(ruleBatch, "after AppendBatch and Append, before one Sync, with rubbish in the batch's header and behind its end, all of it written over before Sync")
		}
	}
	c.holds(ruleBatch, "after AppendBatch and Append in turn, with rubbish in the batch's header and behind its end, all of it written over before Sync")

	edges := slices.DeleteFunc(sizeList(c.largest), func(size int) bool { return size > 256<<10 })
	for _, size := range edges {
		c.appendBatch(log, header, size%17, c.sized(size))
	}
	c.appendBatch(log, header, 16, c.sized(0, 0, 0))
	c.appendBatch(log, header, 1, c.sized(0))
	many := make([][]byte, 8_000)
	for i := range many {
		many[i] = c.tx(c.random.IntN(30))
	}
	c.appendBatch(log, header, 16, many)
	c.appendBatch(log, header, 0, c.sized(c.largest)) // a single one gets a batch of its own
	c.sync()
	c.holds(ruleSeveral, fmt.Sprintf("after AppendBatch of %d to %d bytes in many calls under one Sync", edges[0], c.largest))
	c.close("at last")

	c.open(ruleBatch, "after Close")
	log, ok = c.log.(lifecycle.BatchLog)
	if !ok || c.header(log) != header {
		c.broken(ruleHeader, "opened again, the log wants another BatchHeader than before: %d", header)
	}
	c.holds(ruleBatch, "opened again after AppendBatch")
	c.appendBatch(log, header, 0, c.some())
	c.sync()
	c.holds(ruleBatch, "opened again, after AppendBatch")
	c.close("at last")
	return ""
}

func (c *logChecker) header(log lifecycle.BatchLog) (header int) {
	c.t.Helper()
	if err := guarded(func() error { header = log.BatchHeader(); return nil }); err != nil {
		c.broken(ruleHeader, "BatchHeader panics: %s", told(err))
	}
	if header < 0 || header > 4096 {
		c.broken(ruleHeader, "BatchHeader is %d", header)
	}
	if again := log.BatchHeader(); again != header {
		c.broken(ruleHeaderOnce, "BatchHeader is %d, and asked again it is %d", header, again)
	}
	return header
}

func (c *logChecker) reopening() string {
	for session := range 8 {
		when := "in a new log"
		if session > 0 {
			when = fmt.Sprintf("opened again after %d sessions that synced all and closed", session)
		}
		c.open(ruleSync, when)
		c.atNext(ruleNext, when)
		if c.random.IntN(2) == 0 {
			c.reads(ruleSync, when, 0, len(c.txs)) // or append without having read
		}
		for range session % 4 {
			c.append(c.some())
			c.commit(c.some())
		}
		c.holds(ruleSync, when+", after what the session appended")
		c.close(when)
	}
	c.open(ruleSync, "at last")
	c.holds(ruleSync, "opened for the last time")
	c.close("at last")
	return ""
}

func (c *logChecker) closingUnsynced() string {
	for session := range 5 {
		when := fmt.Sprintf("opened again after %d sessions that closed without a Sync of the last batches", session)
		c.open(ruleSync, when)
		c.survives(ruleSync, when)
		c.commit(c.some())
		c.append(c.sized(40, 50, 60))
		c.append(c.some())
		log := c.log
		c.log = nil
		// It may refuse, but must not pretend.
		if err := guarded(log.Close); err != nil {
			c.t.Logf("Close with transactions that are not synced returns %s", told(err))
		}
	}
	c.open(ruleSync, "at last")
	c.survives(ruleSync, "opened for the last time, after sessions that closed without a Sync of the last batches")
	c.close("at last")
	return ""
}

func (c *logChecker) closing() string {
	for session := range 20 {
		c.open(ruleClose, fmt.Sprintf("immediately after Close (session %d)", session+1))
		c.commit(c.sized(20))
		log := c.log
		c.close("after Append and Sync")
		if session%2 == 0 {
			continue
		}
		// A host closes its log once; a deferred Close of whoever opened it may come after.
		if err := guarded(log.Close); isPanic(err) {
			c.broken(ruleClose, "a second Close panics: %s", told(err))
		}
	}
	c.open(ruleClose, "immediately after Close")
	closed := c.log
	c.close("after nothing")
	c.open(ruleClose, "immediately after Close")
	if err := guarded(closed.Close); isPanic(err) {
		c.broken(ruleClose, "a second Close, when the place is another log's already, panics: %s", told(err))
	}
	if c.place.Exclusive {
		if second, err := c.second(); err == nil {
			_ = guarded(second.Close)
			c.broken(ruleClose, "a second Close of a log gave up what another log holds, which was opened in between: Open of a third one is not refused")
		}
	}
	c.commit(c.sized(20))
	c.holds(ruleClose, "after a second Close of a log that was here before")
	c.close("at last")
	return ""
}

func isPanic(err error) bool {
	var p *lifecycle.PanicError
	return errors.As(err, &p)
}

// second opens the log while it is open. It fails the check if that blocks.
func (c *logChecker) second() (second lifecycle.Log, err error) {
	c.t.Helper()
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		err = guarded(func() (err error) { second, err = c.place.Open(); return err })
	}()
	timer := time.NewTimer(DefaultLimit)
	defer timer.Stop()
	select {
	case <-opened:
	case <-timer.C:
		c.t.Fatalf("lifecycletest: CheckLog: Open of a log that is open has neither opened nor refused it within %v (LogPlace.Exclusive says that it refuses at once)", DefaultLimit)
	}
	return second, err
}

func (c *logChecker) exclusive() string {
	if !c.place.Exclusive {
		return "LogPlace.Exclusive is not set: the log does not say that it refuses a second opener"
	}
	c.open(ruleClose, "at first")
	c.commit(c.some())
	for range 3 {
		second, err := c.second()
		if err == nil {
			_ = guarded(second.Close)
			c.broken(ruleClose, "Open of a log that is open is not refused, though LogPlace.Exclusive says so: two hosts would write one log, and the lock is what a log holds until Close")
		}
		if isPanic(err) {
			c.broken(ruleClose, "Open of a log that is open panics: %s", told(err))
		}
		c.commit(c.some())
	}
	c.holds(ruleSync, "after a second opener was refused")
	c.close("at last")
	c.open(ruleClose, "after Close, with other openers refused before,")
	c.holds(ruleSync, "opened again after a second opener was refused")
	c.close("at last")
	return ""
}

func (c *logChecker) concurrentReads() string {
	if !c.place.ReadsWhileAppending {
		return "LogPlace.ReadsWhileAppending is not set"
	}
	c.open(ruleAppend, "at first")
	log, first := c.log, c.place.First
	batches := make([][][]byte, 150)
	for i := range batches {
		batches[i] = c.some()
		c.txs = append(c.txs, batches[i]...)
	}
	var durable atomic.Int64
	var stop atomic.Bool
	const readers = 3
	begun := make(chan struct{}, readers) // each has read once
	wrong := make(chan string, readers)
	var wg sync.WaitGroup
	for reader := range readers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(reader), 3))
			begin := sync.OnceFunc(func() { begun <- struct{}{} })
			defer begin()
			for last := false; !last; {
				last = stop.Load()
				least := int(durable.Load())
				from := 0
				if reader > 0 {
					from = random.IntN(least + 1)
				}
				at, found := from, ""
				err := guarded(func() error {
					return c.place.Read(log, first+lifecycle.Offset(from), func(offset lifecycle.Offset, tx []byte) {
						if found == "" {
							found = c.compare(at, offset, tx)
						}
						at++
					})
				})
				switch {
				case found != "":
				case err != nil:
					found = "an error: " + told(err)
				case at < least:
					found = fmt.Sprintf("an end before offset %d, though everything before %d was synced when Read was called", first+lifecycle.Offset(at), first+lifecycle.Offset(least))
				}
				if found != "" {
					wrong <- found
					return
				}
				begin()
			}
		})
	}
	var failed error
	for i, b := range batches {
		if i == len(batches)/3 {
			for range readers {
				<-begun
			}
		}
		if failed = guarded(func() error { return log.Append(cloneAll(b)) }); failed != nil {
			break
		}
		if failed = guarded(log.Sync); failed != nil {
			break
		}
		durable.Add(int64(len(b)))
	}
	stop.Store(true)
	wg.Wait()
	if failed != nil {
		c.broken(ruleSync, "while others read, Append or Sync returns an error: %s", told(failed))
	}
	select {
	case found := <-wrong:
		c.broken(ruleOffset, "while another goroutine appends, a reader finds %s", found)
	default:
	}
	c.synced = len(c.txs)
	c.holds(ruleSync, "after appends and reads at the same time")
	c.close("at last")
	return ""
}

const crashSeeds = 8

func (c *logChecker) crash() string {
	if c.place.Crash == nil {
		return "LogPlace.Crash is nil: a crash between Append and Sync can't be simulated here"
	}
	c.open(ruleSync, "at first")
	kept, lost := 0, 0
	for seed := range uint64(crashSeeds) {
		for range c.random.IntN(3) {
			c.append(c.some())
			c.commit(c.some())
		}
		c.append(c.some())
		c.append(c.sized(30, 3_000, 0, 50))
		if seed%2 == 1 { // more than a buffer holds
			c.append(c.sized(40_000, 20, 70_000))
		}
		c.append(c.some())
		unsynced := len(c.txs) - c.synced
		c.crashNow(seed)
		when := fmt.Sprintf("opened after a crash between Append and Sync (seed %d)", seed)
		c.open(ruleSync, when)
		synced := c.synced
		c.survives(ruleSync, when)
		kept += len(c.txs) - synced
		lost += unsynced - (len(c.txs) - synced)
		// What follows must not mix with what the crash has left.
		c.commit(c.sized(10, 90))
		c.holds(ruleAppend, when+", after Append and Sync")
	}
	c.close("at last")
	c.open(ruleSync, "after Close")
	c.holds(ruleSync, fmt.Sprintf("opened again after %d crashes", crashSeeds))
	c.close("at last")
	c.t.Logf("%d crashes; of the transactions that were not synced, %d survived and %d did not", crashSeeds, kept, lost)
	return ""
}

func (c *logChecker) crashNow(seed uint64) {
	c.t.Helper()
	log := c.log
	c.log = nil
	if err := c.place.Crash(log, seed); err != nil {
		c.unable("Crash", err)
	}
}

// crashTwice: a host takes all that an opened log shows for durable.
func (c *logChecker) crashTwice() string {
	if c.place.Crash == nil {
		return "LogPlace.Crash is nil: a crash can't be simulated here"
	}
	c.open(ruleSync, "at first")
	for seed := uint64(1); seed < crashSeeds; seed++ {
		c.commit(c.some())
		c.append(c.sized(40, 400))
		c.append(c.sized(40_000, 20, 70_000))
		c.append(c.some())
		c.crashNow(seed)
		c.open(ruleSync, fmt.Sprintf("after a crash (seed %d)", seed))
		c.survives(ruleSync, fmt.Sprintf("opened after a crash (seed %d)", seed))
		c.crashNow(0)
		when := fmt.Sprintf("opened after a crash (seed %d), another, that keeps only what is durable, and nothing appended in between", seed)
		c.open(ruleDurable, when)
		c.survives(ruleDurable, when)
	}
	c.close("at last")
	return ""
}

// failed: after a failed write or sync.
func (c *logChecker) failed(op Op) string {
	if c.place.Fail == nil {
		return "LogPlace.Fail is nil: a failure of the medium can't be simulated here"
	}
	what := map[Op]string{Append: "write", Sync: "sync"}[op]
	for round := range 6 {
		c.open(ruleSync, "before a "+what+" fails")
		c.survives(ruleSync, "opened again after a failed "+what)
		for range round % 3 {
			c.append(c.some())
			c.commit(c.some())
		}
		if err := c.place.Fail(c.log, op); err != nil {
			c.unable("Fail", err)
		}
		log := c.log
		steps := []func() error{
			func() error { return c.try(c.sized(30, 200)) },
			func() error { return c.try(c.some()) },
			log.Sync,
		}
		if batch, ok := log.(lifecycle.BatchLog); ok && round%2 == 1 {
			steps[1] = func() error { return c.tryBatch(batch, c.some()) }
		}
		var first error
		for _, step := range steps {
			if first = guarded(step); first != nil {
				break
			}
		}
		if first == nil {
			c.broken(ruleSync, "a %s of the medium under the log has failed, and Append and Sync have returned nil: either the log keeps the error to itself, or LogPlace.Fail does not reach what the log does", what)
		}
		// A retry finds a medium that works.
		again := []struct {
			name string
			call func() error
		}{
			{"Sync", log.Sync},
			{"Append", func() error { return c.try(c.sized(50)) }},
			{"Sync after Append", log.Sync},
		}
		if batch, ok := log.(lifecycle.BatchLog); ok {
			again = append(again, struct {
				name string
				call func() error
			}{"AppendBatch", func() error { return c.tryBatch(batch, c.sized(60)) }})
		}
		for _, step := range again {
			if err := guarded(step.call); err == nil {
				c.broken(ruleFailed, "after a failed %s (%v), %s returns nil: what it should have written or synced may be gone, and a caller that tries again must hear so", what, first, step.name)
			}
		}
		c.log = nil
		if err := guarded(log.Close); isPanic(err) {
			c.broken(ruleClose, "after a failed %s (%v), Close panics: %s", what, first, told(err))
		}
		if round == 5 && c.place.Crash != nil {
			c.open(ruleClose, fmt.Sprintf("after a failed %s (%v) and Close", what, first))
			c.survives(ruleSync, "opened again after a failed "+what)
			c.crashNow(0)
			c.open(ruleDurable, fmt.Sprintf("after a failed %s (%v), Close, Open and a crash", what, first))
			c.survives(ruleDurable, fmt.Sprintf("opened after a failed %s, Close, Open and a crash that keeps only what is durable", what))
			c.commit(c.some())
			c.holds(ruleAppend, "after Append and Sync")
			c.close("at last")
		}
	}
	c.open(ruleClose, "after a failed "+what+" and Close")
	c.survives(ruleSync, "opened again after a failed "+what)
	c.commit(c.some())
	c.holds(ruleAppend, fmt.Sprintf("opened again after a failed %s, after Append and Sync", what))
	c.close("at last")
	return ""
}

// try appends what may fail. Whether it is found later nobody knows.
func (c *logChecker) try(txs [][]byte) error {
	c.txs = append(c.txs, txs...)
	return c.log.Append(cloneAll(txs))
}

func (c *logChecker) tryBatch(log lifecycle.BatchLog, txs [][]byte) error {
	c.txs = append(c.txs, txs...)
	return log.AppendBatch(batch(log.BatchHeader(), 16, txs), len(txs))
}

// committed is what a host has acknowledged.
type committed struct {
	mu  sync.Mutex
	txs map[lifecycle.Offset][]byte
	err error
}

func (a *committed) add(offset lifecycle.Offset, tx []byte, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if other, ok := a.txs[offset]; ok && err == nil {
		err = fmt.Errorf("offset %d was given to %.30q and to %.30q", offset, other, tx)
	}
	if err == nil {
		a.txs[offset] = tx
	} else if a.err == nil {
		a.err = err
	}
}

// drive lets clients commit through a host until each has committed n or one fails.
func (c *logChecker) drive(host *lifecycle.Host, acked *committed, clients, n int) {
	d := host.Durability()
	var wg sync.WaitGroup
	for client := range clients {
		seed := c.made
		c.made++
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(client), uint64(seed)))
			for i := range n {
				tx := fmt.Appendf(nil, "session %d client %d tx %d ", seed, client, i)
				tx = append(tx, make([]byte, random.IntN(300))...)
				if i%3 == 2 { // nobody waits for it
					pending, err := d.Append(context.Background(), tx)
					if err != nil {
						acked.add(0, nil, err)
						return
					}
					wg.Go(func() { acked.add(pending.Offset(), tx, pending.Wait(context.Background())) })
					continue
				}
				offset, err := d.Commit(context.Background(), tx)
				acked.add(offset, tx, err)
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
}

func (c *logChecker) exit(host *lifecycle.Host) error {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), DefaultLimit)
	defer cancel()
	err := host.Exit(ctx)
	if ctx.Err() != nil {
		forced, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		_ = host.ForceExit(forced)
		c.t.Fatalf("lifecycletest: CheckLog: the exit of a host on the log has not ended within %v: %v", DefaultLimit, err)
	}
	return err
}

func (c *logChecker) underHost() string {
	acked := &committed{txs: map[lifecycle.Offset][]byte{}}
	for session := range 3 {
		c.open(ruleClose, fmt.Sprintf("after %d hosts have exited", session))
		options := lifecycle.Options{Name: "checklog"}
		if session == 2 {
			options.QueueBytes = 2 << 10 // so that Appends wait for room
		}
		host := lifecycle.New(c.log, options)
		c.log = nil // the host's
		c.drive(host, acked, 8, 60)
		if err := c.exit(host); err != nil {
			c.broken(ruleSync, "a host on the log does not exit clean: %s", told(err))
		}
		if acked.err != nil {
			c.broken(ruleSync, "a commit through a host fails: %v", acked.err)
		}
		if n := len(acked.txs); host.Durability().Accepted() != c.place.First+lifecycle.Offset(n) {
			c.broken(ruleNext, "after %d transactions a host on the log has accepted up to offset %d, from %d on", n, host.Durability().Accepted(), c.place.First)
		}
	}
	c.open(ruleClose, "after three hosts have exited")
	c.acknowledged(acked, true)
	c.close("at last")
	return ""
}

// acknowledged checks that the log holds what a host has acknowledged, each at its
// offset and once.
func (c *logChecker) acknowledged(acked *committed, all bool) {
	c.t.Helper()
	var held [][]byte
	wrong := ""
	err := guarded(func() error {
		return c.place.Read(c.log, c.place.First, func(offset lifecycle.Offset, tx []byte) {
			if right := c.place.First + lifecycle.Offset(len(held)); offset != right && wrong == "" {
				wrong = fmt.Sprintf("offset %d where %d belongs", offset, right)
			}
			held = append(held, bytes.Clone(tx))
		})
	})
	switch {
	case err != nil:
		c.broken(ruleSync, "the log that hosts have used can't be read: %s", told(err))
	case wrong != "":
		c.broken(ruleOffset, "the log that hosts have used has %s", wrong)
	case all && len(held) != len(acked.txs):
		c.broken(ruleCommit, "the log that hosts have used holds %d transactions, and they have acknowledged %d", len(held), len(acked.txs))
	}
	at := map[string]lifecycle.Offset{}
	for i, tx := range held {
		offset := c.place.First + lifecycle.Offset(i)
		if other, ok := at[string(tx)]; ok {
			c.broken(ruleCommit, "the log that hosts have used holds one transaction twice, at offsets %d and %d: %.40q", other, offset, tx)
		}
		at[string(tx)] = offset
	}
	offsets := make([]lifecycle.Offset, 0, len(acked.txs))
	for offset := range acked.txs {
		offsets = append(offsets, offset)
	}
	slices.Sort(offsets)
	for _, offset := range offsets {
		tx := acked.txs[offset]
		if found, ok := at[string(tx)]; !ok {
			c.broken(ruleCommit, "a host has acknowledged offset %d, and the log, opened again, does not hold that transaction: it holds %d, up to offset %d", offset, len(held), c.place.First+lifecycle.Offset(len(held)))
		} else if found != offset {
			c.broken(ruleCommit, "a host has acknowledged a transaction at offset %d, and the log, opened again, has it at %d", offset, found)
		}
	}
	if next := c.nextOf(ruleNext, "after hosts"); next != c.place.First+lifecycle.Offset(len(held)) {
		c.broken(ruleNext, "after hosts, Next is %d, but what the log holds goes from %d to before %d", next, c.place.First, c.place.First+lifecycle.Offset(len(held)))
	}
}

func (c *logChecker) underFailingHost() string {
	if c.place.Fail == nil {
		return "LogPlace.Fail is nil: a failure of the medium can't be simulated here"
	}
	acked := &committed{txs: map[lifecycle.Offset][]byte{}}
	c.open(ruleSync, "at first")
	log := c.log
	c.log = nil // the host's
	host := lifecycle.New(log, lifecycle.Options{Name: "checklog"})
	c.drive(host, acked, 4, 20)
	if acked.err != nil {
		_ = c.exit(host)
		c.broken(ruleSync, "a commit through a host fails before anything was made to: %v", acked.err)
	}
	// The host is idle: nothing is queued, so its actor is in no call of the log.
	if err := c.place.Fail(log, Sync); err != nil {
		_ = c.exit(host)
		c.unable("Fail", err)
	}
	before := len(acked.txs)
	c.drive(host, acked, 4, 20)
	failed := acked.err
	result := c.exit(host)
	var logError *lifecycle.LogError
	switch {
	case failed == nil:
		c.broken(ruleSync, "a sync of the medium under the log has failed, and a host has acknowledged all %d transactions that came then: either the log keeps the error to itself, or LogPlace.Fail does not reach what the log does", len(acked.txs)-before)
	case !errors.As(result, &logError):
		c.broken(ruleSync, "a sync of the medium under the log has failed (%v), and the host's exit returns no *LogError: %v", failed, result)
	}
	c.open(ruleClose, "after the exit of a host whose log has failed")
	c.acknowledged(acked, false)
	c.close("at last")
	return ""
}
