package lifecycletest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

// medium is a file in memory, with a lock. Its own mutex makes it safe for readers.
type medium struct {
	mu      sync.Mutex
	written [][]byte
	synced  int // of written: what a power failure leaves
	held    int
	fails   map[lifecycletest.Op]bool // the next one, once
}

var errMedium = errors.New("the medium has failed")

func (m *medium) fail(op lifecycletest.Op) bool {
	failed := m.fails[op]
	delete(m.fails, op)
	return failed
}

// plainLog is a log on a medium, with at most one fault. Without one it is right.
type plainLog struct {
	m      *medium
	fault  string
	next   lifecycle.Offset
	base   int // of m.written, when it was opened
	failed error
	closed bool
	syncs  int
	dead   bool // by a Crash
}

var errHeld = errors.New("held by another")

func openMedium(m *medium, fault string) (*plainLog, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held > 0 && fault != "lets a second opener in" {
		return nil, errHeld
	}
	m.held++
	if fault != "shows what is not durable" {
		m.synced = len(m.written)
	}
	l := &plainLog{m: m, fault: fault, next: lifecycle.Offset(len(m.written)), base: len(m.written)}
	switch {
	case fault == "counts from one":
		l.next++
	case fault == "is off by one after it was reopened" && l.next > 0:
		l.next++
	case fault == "forgets the last one as it reopens" && len(m.written) > 0:
		m.written = m.written[:len(m.written)-1]
		m.synced, l.next = len(m.written), l.next-1
	case fault == "reads the last one twice as it reopens" && len(m.written) > 0:
		m.written = append(m.written, m.written[len(m.written)-1])
		m.synced, l.next = len(m.written), l.next+1
	}
	return l, nil
}

func (l *plainLog) is(fault string) bool { return l.fault == fault }

func (l *plainLog) Next() lifecycle.Offset { return l.next }

func (l *plainLog) Append(txs [][]byte) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.failed != nil && !l.is("accepts again after a failure") {
		return l.failed
	}
	if l.closed || l.dead {
		return errors.New("closed")
	}
	copies := txs
	if !l.is("keeps the bytes") {
		copies = nil
		for _, tx := range txs {
			copies = append(copies, bytes.Clone(tx))
		}
	}
	switch n := len(copies); {
	case l.is("swaps neighbours") && n > 2:
		copies[1], copies[2] = copies[2], copies[1]
	case l.is("loses the last of many") && n > 5_000:
		copies = copies[:n-1]
	case l.is("loses the last of a batch") && n > 1:
		copies = copies[:n-1]
	case l.is("appends something for nothing") && n == 0:
		copies = [][]byte{nil}
	}
	if l.is("drops empty ones") {
		copies = slices.DeleteFunc(copies, func(tx []byte) bool { return len(tx) == 0 })
	}
	for i, tx := range copies {
		switch {
		case l.is("has lengths of 16 bits"):
			copies[i] = tx[:len(tx)%(1<<16)]
		case l.is("ends at zeros") && len(tx) > 0 && !bytes.ContainsFunc(tx, func(r rune) bool { return r != 0 }):
			copies[i] = nil
		}
	}
	if l.m.fail(lifecycletest.Append) {
		l.m.written = append(l.m.written, copies[:len(copies)/2]...)
		l.failed = errMedium
		if l.is("keeps a write's error to itself") {
			l.failed = nil
			return nil
		}
		return l.failed
	}
	l.m.written = append(l.m.written, copies...)
	if !l.is("never moves Next") {
		l.next += lifecycle.Offset(len(txs))
	}
	return nil
}

func (l *plainLog) Sync() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.syncs++
	if l.failed != nil && !l.is("accepts again after a failure") && !l.is("syncs again after a failed sync") {
		return l.failed
	}
	if l.m.fail(lifecycletest.Sync) {
		if !l.is("keeps a sync's error to itself") {
			l.m.written = l.m.written[:l.m.synced] // as a page cache does
			l.failed = errMedium
			if l.is("forgets more than what failed") {
				l.m.written = l.m.written[:len(l.m.written)/2]
				l.m.synced = len(l.m.written)
			}
			return l.failed
		}
		return nil
	}
	if l.is("writes again what it has written, if nothing is new") && l.m.synced == len(l.m.written) && l.m.synced > l.base {
		l.m.written = append(l.m.written, l.m.written[l.m.synced-1])
	}
	if !l.is("syncs nothing") && (l.syncs%2 == 0 || !l.is("syncs every other time")) {
		l.m.synced = len(l.m.written)
	}
	return nil
}

func (l *plainLog) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.closed {
		switch l.fault {
		case "panics as it is closed twice":
			panic("close of a closed log")
		case "gives up another's lock":
			l.m.held--
		}
		return errors.New("closed before")
	}
	l.closed = true
	switch {
	case l.is("keeps the lock"):
	case l.is("keeps the lock after a failure") && l.failed != nil:
	default:
		l.m.held--
	}
	if l.is("tears a hole as it closes") && l.m.synced < len(l.m.written)-1 {
		l.m.written = slices.Delete(l.m.written, l.m.synced, l.m.synced+1)
	}
	if l.is("throws away what a host has not waited for") && len(l.m.written) > l.base+200 {
		l.m.written = l.m.written[:len(l.m.written)-1]
		l.m.synced = len(l.m.written)
	}
	return nil
}

func (l *plainLog) read(from lifecycle.Offset, visit func(lifecycle.Offset, []byte)) error {
	l.m.mu.Lock()
	all, end := l.m.written, len(l.m.written)
	l.m.mu.Unlock()
	if l.is("shows readers the end late") {
		end--
	}
	for i := int(from); i < end; i++ {
		offset := lifecycle.Offset(i)
		if l.is("counts from one") {
			offset++
		}
		visit(offset, all[i])
	}
	return nil
}

// batchLog is a plainLog that takes batches.
type batchLog struct{ *plainLog }

const testHeader = 12

func (l batchLog) BatchHeader() int {
	switch l.fault {
	case "wants too large a header":
		return 4097
	case "wants another header each time":
		l.syncs++
		return 8 + l.syncs%2
	}
	return testHeader
}

func (l batchLog) AppendBatch(batch []byte, n int) error {
	header := batch[:testHeader]
	if l.is("counts on zeros in the header") && binary.LittleEndian.Uint32(header) != 0 {
		n--
	}
	clear(header)
	if !l.is("counts on capacity behind the batch") {
		clear(batch[len(batch):cap(batch)])
	} else if cap(batch) < len(batch)+8 {
		return errors.New("no room for the trailer")
	}
	var txs [][]byte
	for rest := batch[testHeader:]; n > 0; n-- {
		length := int(binary.LittleEndian.Uint32(rest))
		txs = append(txs, rest[4:4+length])
		if l.is("writes into the records") {
			rest[0] = 0
		}
		rest = rest[4+length:]
	}
	if l.is("keeps the batch") {
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		if l.failed != nil {
			return l.failed
		}
		l.m.written = append(l.m.written, txs...)
		l.next += lifecycle.Offset(len(txs))
		return nil
	}
	if l.is("begins each batch anew") && len(l.m.written) > l.m.synced {
		l.m.mu.Lock()
		l.next -= lifecycle.Offset(len(l.m.written) - l.m.synced)
		l.m.written = l.m.written[:l.m.synced]
		l.m.mu.Unlock()
	}
	return l.Append(txs)
}

// inMemory makes places for logs with a fault.
func inMemory(fault string, batches bool) func(testing.TB) lifecycletest.LogPlace {
	return func(testing.TB) lifecycletest.LogPlace {
		m := &medium{fails: map[lifecycletest.Op]bool{}}
		plain := func(log lifecycle.Log) *plainLog {
			if b, ok := log.(batchLog); ok {
				return b.plainLog
			}
			return log.(*plainLog)
		}
		return lifecycletest.LogPlace{
			Open: func() (lifecycle.Log, error) {
				l, err := openMedium(m, fault)
				if err != nil {
					return nil, err
				}
				if batches {
					return batchLog{l}, nil
				}
				return l, nil
			},
			Read: func(log lifecycle.Log, from lifecycle.Offset, visit func(lifecycle.Offset, []byte)) error {
				return plain(log).read(from, visit)
			},
			Exclusive:           true,
			ReadsWhileAppending: true,
			Crash: func(log lifecycle.Log, seed uint64) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				plain(log).dead = true
				m.held = 0
				clear(m.fails)
				survives := 0
				switch unsynced := len(m.written) - m.synced; seed {
				case 0:
				case 1:
					survives = unsynced
				default:
					survives = rand.New(rand.NewPCG(seed, 1)).IntN(unsynced + 1)
				}
				end := m.synced + survives
				switch {
				case fault == "lets a later one survive without those before" && m.synced+1 < len(m.written):
					m.written = append(m.written[:m.synced:m.synced], m.written[m.synced+1:]...)
					m.synced = len(m.written)
				case fault == "loses what was synced with what was not" && survives == 0:
					m.written = m.written[:max(0, m.synced-1)]
					m.synced = len(m.written)
				case fault == "finds the end of another life" && end < len(m.written) && end > 0:
					m.written = append(m.written[:end:end], m.written[end-1])
				default:
					m.written = m.written[:end:end]
				}
				return nil
			},
			Fail: func(log lifecycle.Log, op lifecycletest.Op) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.fails[op] = true
				return nil
			},
		}
	}
}

func TestCheckLogPassesALogThatIsRight(t *testing.T) {
	t.Run("plain", func(t *testing.T) { lifecycletest.CheckLog(t, inMemory("", false)) })
	t.Run("with batches", func(t *testing.T) { lifecycletest.CheckLog(t, inMemory("", true)) })
	for _, name := range lifecycletest.LogCheckNames() {
		fake := onFake(t, func(tb testing.TB) {
			if skipped := lifecycletest.CheckLogOn(tb, name, inMemory("", true)); skipped != "" {
				tb.Errorf("%s is skipped: %s", name, skipped)
			}
		})
		fake.silent(t)
	}
}

// Each of these logs has one fault, and the check named beside it finds it.
func TestCheckLogFindsEachFault(t *testing.T) {
	faults := []struct {
		fault   string
		check   string
		batches bool
		says    string
	}{
		{"counts from one", "offsets", false, "in a new log, Next is 1; it should be 0"},
		{"never moves Next", "offsets", false, "Next is 0; it should be"},
		{"swaps neighbours", "order", false, "which belongs at"},
		{"loses the last of a batch", "order", false, "appended were"},
		{"loses the last of many", "many transactions in a batch", false, "after batches of 10,000"},
		{"drops empty ones", "sizes", false, "at offset 0 1 bytes"},
		{"has lengths of 16 bits", "sizes", false, "appended were 65536"},
		{"ends at zeros", "sizes", false, "appended were"},
		{"appends something for nothing", "nothing to append or sync", false, "after an Append of nothing"},
		{"writes again what it has written, if nothing is new", "nothing to append or sync", false, "only those before it were ever appended"},
		{"keeps the bytes", "keeps no bytes", false, "must not keep txs or their bytes"},
		{"keeps the batch", "batches", true, "written over before Sync"},
		{"wants too large a header", "batches", true, "BatchHeader is 4097"},
		{"wants another header each time", "batches", true, "asked again it is"},
		{"counts on zeros in the header", "batches", true, "rubbish in the batch's header"},
		{"counts on capacity behind the batch", "batches", true, "with 0 bytes of capacity behind them"},
		{"writes into the records", "batches", true, "has changed the records"},
		{"begins each batch anew", "batches", true, ""},
		{"is off by one after it was reopened", "reopening", false, "opened again after 2 sessions"},
		{"forgets the last one as it reopens", "reopening", false, "opened again after"},
		{"reads the last one twice as it reopens", "reopening", false, "opened again after"},
		{"tears a hole as it closes", "closing without a sync", false, "closed without a Sync"},
		{"keeps the lock", "closing", false, "immediately after Close (session 2), Open fails: held by another"},
		{"panics as it is closed twice", "closing", false, "a second Close panics"},
		{"gives up another's lock", "closing", false, "gave up what another log holds"},
		{"lets a second opener in", "exclusive", false, "is not refused"},
		{"shows readers the end late", "reads while appending", false, "synced when Read was called"},
		{"syncs nothing", "crash", false, "were synced"},
		{"syncs every other time", "crash", false, "were synced"},
		{"lets a later one survive without those before", "crash", false, "between Append and Sync"},
		{"loses what was synced with what was not", "crash", false, "were synced"},
		{"finds the end of another life", "crash", false, "between Append and Sync"},
		{"shows what is not durable", "crash after a crash", false, "every transaction below it is durable"},
		{"keeps a write's error to itself", "failed write", false, "keeps the error to itself"},
		{"accepts again after a failure", "failed write", false, "after a failed write"},
		{"keeps the lock after a failure", "failed write", false, "held by another"},
		{"keeps a sync's error to itself", "failed sync", false, "keeps the error to itself"},
		{"syncs again after a failed sync", "failed sync", false, "Sync returns nil: what it should have written"},
		{"accepts again after a failure", "failed sync", true, "after a failed sync"},
		{"forgets more than what failed", "failed sync", false, "were synced"},
		{"throws away what a host has not waited for", "under a host", true, "was given to"},
		{"keeps the batch", "under a host", true, ""},
		{"keeps a sync's error to itself", "under a host, failed sync", true, "acknowledged all"},
		{"forgets more than what failed", "under a host, failed sync", false, "does not hold that transaction"},
	}
	found := map[string]bool{}
	for _, f := range faults {
		t.Run(f.fault+"/"+f.check, func(t *testing.T) {
			fake := onFake(t, func(tb testing.TB) {
				if skipped := lifecycletest.CheckLogOn(tb, f.check, inMemory(f.fault, f.batches)); skipped != "" {
					tb.Errorf("skipped: %s", skipped)
				}
			})
			fake.finds(t, "lifecycletest: CheckLog: ", "The contract says: ", f.says)
			require.NotContains(t, strings.Join(fake.failures(), ""), "skipped")
		})
		found[f.check] = true
	}
	for _, name := range lifecycletest.LogCheckNames() {
		require.True(t, found[name], "no fault is tried on %q", name)
	}
	t.Logf("%d faults", len(faults))
}

// The log for tests has no lock, and its Close keeps only what was synced.
func TestTheLogForTestsIsALog(t *testing.T) {
	lifecycletest.CheckLog(t, func(testing.TB) lifecycletest.LogPlace {
		log := &lifecycletest.Log{First: 7}
		opened := false
		return lifecycletest.LogPlace{
			First: 7,
			Open: func() (lifecycle.Log, error) {
				if opened {
					log = log.Reopen()
				}
				opened = true
				return log, nil
			},
			Read: func(l lifecycle.Log, from lifecycle.Offset, visit func(lifecycle.Offset, []byte)) error {
				for i, tx := range l.(*lifecycletest.Log).Synced() {
					if offset := 7 + lifecycle.Offset(i); offset >= from {
						visit(offset, tx)
					}
				}
				return nil
			},
			ReadsWhileAppending: true,
			Crash: func(l lifecycle.Log, _ uint64) error {
				log, opened = l.(*lifecycletest.Log).Crash(), false
				return nil
			},
		}
	})
}

func TestCheckLogSaysWhatItCantCheck(t *testing.T) {
	bare := func(t testing.TB) lifecycletest.LogPlace {
		p := inMemory("", false)(t)
		return lifecycletest.LogPlace{Open: p.Open, Read: p.Read}
	}
	reasons := map[string]string{}
	for _, name := range lifecycletest.LogCheckNames() {
		onFake(t, func(tb testing.TB) {
			if skipped := lifecycletest.CheckLogOn(tb, name, bare); skipped != "" {
				reasons[name] = skipped
			}
		}).silent(t)
	}
	require.Equal(t, map[string]string{
		"batches":                   "the log is no lifecycle.BatchLog",
		"exclusive":                 "LogPlace.Exclusive is not set: the log does not say that it refuses a second opener",
		"reads while appending":     "LogPlace.ReadsWhileAppending is not set",
		"crash":                     "LogPlace.Crash is nil: a crash between Append and Sync can't be simulated here",
		"crash after a crash":       "LogPlace.Crash is nil: a crash can't be simulated here",
		"failed write":              "LogPlace.Fail is nil: a failure of the medium can't be simulated here",
		"failed sync":               "LogPlace.Fail is nil: a failure of the medium can't be simulated here",
		"under a host, failed sync": "LogPlace.Fail is nil: a failure of the medium can't be simulated here",
	}, reasons)
}

func TestCheckLogSaysWhatIsWrongWithThePlace(t *testing.T) {
	run := func(check string, change func(p *lifecycletest.LogPlace)) *fakeTB {
		return onFake(t, func(tb testing.TB) {
			lifecycletest.CheckLogOn(tb, check, func(t testing.TB) lifecycletest.LogPlace {
				p := inMemory("", false)(t)
				change(&p)
				return p
			})
		})
	}
	run("order", func(p *lifecycletest.LogPlace) { p.Read = nil }).finds(t, "needs Open and Read")
	run("order", func(p *lifecycletest.LogPlace) {
		p.Open = func() (lifecycle.Log, error) { return nil, nil }
	}).finds(t, "neither a log nor an error")
	run("order", func(p *lifecycletest.LogPlace) {
		p.Open = func() (lifecycle.Log, error) { return nil, syscall.EACCES }
	}).finds(t, "at first, Open fails", "permission denied")
	run("crash", func(p *lifecycletest.LogPlace) {
		p.Crash = func(lifecycle.Log, uint64) error { return syscall.EPERM }
	}).finds(t, "LogPlace.Crash failed", "nothing can be said of the log")
	run("failed sync", func(p *lifecycletest.LogPlace) {
		p.Fail = func(lifecycle.Log, lifecycletest.Op) error { return nil }
	}).finds(t, "LogPlace.Fail does not reach")
	run("order", func(p *lifecycletest.LogPlace) {
		p.Read = func(lifecycle.Log, lifecycle.Offset, func(lifecycle.Offset, []byte)) error {
			panic("index out of range")
		}
	}).finds(t, "can't be read", "index out of range", "checklog_test.go")
}

// The sentences that failures quote stand in the documentation, word for word.
func TestCheckLogQuotesTheContract(t *testing.T) {
	source, err := os.ReadFile(filepath.Join("..", "durability.go"))
	require.NoError(t, err)
	var words []string
	for line := range strings.Lines(string(source)) {
		words = append(words, strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "//"))...)
	}
	text := strings.Join(words, " ")
	for _, rule := range lifecycletest.LogRules() {
		require.Contains(t, text, rule, fmt.Sprintf("durability.go does not say %q", rule))
	}
}
