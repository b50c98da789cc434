package pebblelog

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

// logger is silent. Its Fatalf returns, as no Logger's should: what that would hide
// the log must see by itself.
type logger struct{ fatal *atomic.Int64 }

func (l logger) Infof(string, ...any)  {}
func (l logger) Errorf(string, ...any) {}
func (l logger) Fatalf(string, ...any) { l.fatal.Add(1) }

// machine is a computer in memory: its files outlive processes, and what was not
// synced does not outlive a loss of power.
type machine struct {
	files *vfs.MemFS
	fails atomic.Int64 // the kind of operation on the write-ahead log that fails next, once; -1: none
	fatal atomic.Int64
}

var errInjected = errors.New("injected fault")

func newMachine() *machine {
	m := &machine{files: vfs.NewCrashableMem()}
	m.fails.Store(-1)
	return m
}

func (m *machine) MaybeError(op errorfs.Op) error {
	if filepath.Ext(op.Path) != ".log" {
		return nil
	}
	kind := op.Kind
	switch kind {
	case errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
		kind = errorfs.OpFileSync
	}
	if m.fails.CompareAndSwap(int64(kind), -1) {
		return errInjected
	}
	return nil
}

func (m *machine) String() string { return "machine" }

func (m *machine) open() (*pebble.DB, error) {
	return pebble.Open("db", &pebble.Options{FS: errorfs.Wrap(m.files, m), Logger: logger{&m.fatal}})
}

func (m *machine) mustOpen(t testing.TB) *pebble.DB {
	t.Helper()
	db, err := m.open()
	require.NoError(t, err)
	return db
}

func (m *machine) openLog(opts Options) (*Log, error) {
	db, err := m.open()
	if err != nil {
		return nil, err
	}
	opts.CloseDB = true
	log, err := Open(db, opts)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return log, nil
}

func (m *machine) mustOpenLog(t testing.TB) *Log {
	t.Helper()
	log, err := m.openLog(Options{Prefix: "log/"})
	require.NoError(t, err)
	return log
}

// crash loses what was not synced, but for a share of it.
func (m *machine) crash(percent int, seed uint64) {
	m.files = m.files.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(seed, 7))})
	m.fails.Store(-1)
}

func visit(log lifecycle.Log, from lifecycle.Offset, visit func(lifecycle.Offset, []byte)) error {
	for entry, err := range log.(*Log).Read(from) {
		if err != nil {
			return err
		}
		visit(entry.Offset, entry.Data)
	}
	return nil
}

func place(commitBytes int) func(testing.TB) lifecycletest.LogPlace {
	return func(testing.TB) lifecycletest.LogPlace {
		m := newMachine()
		return lifecycletest.LogPlace{
			Open: func() (lifecycle.Log, error) {
				return m.openLog(Options{Prefix: "log/", commitBytes: commitBytes})
			},
			Read:                visit,
			Exclusive:           true,
			ReadsWhileAppending: true,
			Crash: func(log lifecycle.Log, seed uint64) error {
				switch seed {
				case 0:
					m.crash(0, seed)
				case 1:
					m.crash(100, seed)
				default:
					m.crash(50, seed)
				}
				_ = log.Close() // in a world that the clone has left
				return nil
			},
			Fail: func(_ lifecycle.Log, op lifecycletest.Op) error {
				if op == lifecycletest.Append {
					m.fails.Store(int64(errorfs.OpFileWrite))
				} else {
					m.fails.Store(int64(errorfs.OpFileSync))
				}
				return nil
			},
		}
	}
}

func TestTheLogIsWhatAHostTakesItFor(t *testing.T) {
	lifecycletest.CheckLog(t, place(0))
}

// Batches that are too large for Pebble are committed in parts before Sync.
func TestTheLogIsWhatAHostTakesItForWhereItCommitsEarly(t *testing.T) {
	lifecycletest.CheckLog(t, place(500))
}

func TestTheLogIsWhatAHostTakesItForOnRealFiles(t *testing.T) {
	lifecycletest.CheckLog(t, func(t testing.TB) lifecycletest.LogPlace {
		dir := t.TempDir()
		return lifecycletest.LogPlace{
			Open: func() (lifecycle.Log, error) {
				db, err := pebble.Open(dir, &pebble.Options{Logger: logger{new(atomic.Int64)}})
				if err != nil {
					return nil, err
				}
				return Open(db, Options{Prefix: "log/", CloseDB: true})
			},
			Read:                visit,
			Exclusive:           true,
			ReadsWhileAppending: true,
			LargestTransaction:  largest(),
		}
	})
}

var large = flag.Bool("large", false, "try transactions of up to MaxTransactionBytes")

// largest is more than a memory table of Pebble's holds.
func largest() int {
	if *large {
		return MaxTransactionBytes
	}
	return 8 << 20
}

func commitAll(t testing.TB, log *Log, txs ...string) {
	t.Helper()
	for _, tx := range txs {
		require.NoError(t, log.Append([][]byte{[]byte(tx)}))
	}
	require.NoError(t, log.Sync())
}

func contents(log *Log, from uint64) (txs []string, err error) {
	for entry, err := range log.Read(from) {
		if err != nil {
			return txs, err
		}
		txs = append(txs, fmt.Sprintf("%d %s", entry.Offset, entry.Data))
	}
	return txs, nil
}

func requireContents(t testing.TB, log *Log, want ...string) {
	t.Helper()
	txs, err := contents(log, log.First())
	require.NoError(t, err)
	require.Equal(t, want, txs)
}

func isDamage(err error) bool {
	var damage *DamageError
	return errors.As(err, &damage)
}

func TestTheLogLivesBesideWhatTheServerKeeps(t *testing.T) {
	m := newMachine()
	db := m.mustOpen(t)
	neighbours := []string{"log.", "log/", "log0", "lo", "a", "z", "\xff\xff"}
	for _, key := range neighbours[2:] {
		require.NoError(t, db.Set([]byte(key), []byte("mine"), pebble.Sync))
	}
	require.NoError(t, db.Set([]byte("log."), []byte("mine"), pebble.Sync))
	log, err := Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	commitAll(t, log, "a", "b", "c")
	require.NoError(t, log.TruncateBefore(2))
	requireContents(t, log, "2 c")
	require.NoError(t, log.Close())

	// The engine is the server's, and open.
	for _, key := range append(neighbours[2:], "log.") {
		value, closer, err := db.Get([]byte(key))
		require.NoError(t, err, key)
		require.Equal(t, "mine", string(value))
		require.NoError(t, closer.Close())
	}
	require.NoError(t, db.Close())
}

func TestAPrefixOfHighBytesHasAnEnd(t *testing.T) {
	require.Equal(t, []byte("b"), after([]byte("a")))
	require.Equal(t, []byte("b"), after([]byte("a\xff\xff")))
	require.Nil(t, after([]byte("\xff\xff")))
	m := newMachine()
	db := m.mustOpen(t)
	for range 2 {
		log, err := Open(db, Options{Prefix: "\xff\xff"})
		require.NoError(t, err)
		commitAll(t, log, "a")
		require.NoError(t, log.Close())
	}
	require.NoError(t, db.Close())
}

// Databases come and go: that a log overlaps another is told when it is made, and not
// by the other one's damage when that is opened again.
func TestANewLogDoesNotOverlapOneThatIsClosed(t *testing.T) {
	for _, prefixes := range [][2]string{{"tenant1", "tenant10"}, {"a", "a\x03"}, {"\xff", "\xff\xff"}} {
		for _, txs := range [][]string{nil, {"x", "y"}} {
			m := newMachine()
			db := m.mustOpen(t)
			outer, err := Open(db, Options{Prefix: prefixes[0]})
			require.NoError(t, err)
			commitAll(t, outer, txs...)
			require.NoError(t, outer.Close())
			_, err = Open(db, Options{Prefix: prefixes[1]})
			require.ErrorContains(t, err, fmt.Sprintf("the prefix begins with %q, in which there is a log", prefixes[0]))
			outer, err = Open(db, Options{Prefix: prefixes[0]})
			require.NoError(t, err)
			require.EqualValues(t, len(txs), outer.Next())
			require.NoError(t, outer.Close())

			inner, err := Open(db, Options{Prefix: "x" + prefixes[1]})
			require.NoError(t, err)
			require.NoError(t, inner.Close())
			_, err = Open(db, Options{Prefix: "x" + prefixes[0]})
			require.ErrorContains(t, err, "somebody else's")
			require.NoError(t, db.Close())
		}
	}
}

func TestLogsOfOneEngineAreApart(t *testing.T) {
	m := newMachine()
	db := m.mustOpen(t)
	defer db.Close()
	orders, err := Open(db, Options{Prefix: "log/orders/"})
	require.NoError(t, err)
	users, err := Open(db, Options{Prefix: "log/users/"})
	require.NoError(t, err)
	for _, prefix := range []string{"log/orders/", "log/", "log/orders/2020/", "l"} {
		_, err := Open(db, Options{Prefix: prefix})
		require.ErrorIs(t, err, ErrLocked, prefix)
	}
	_, err = Open(db, Options{})
	require.ErrorContains(t, err, "Options.Prefix is empty")
	_, err = Open(nil, Options{Prefix: "orders/"})
	require.ErrorContains(t, err, "no engine")
	commitAll(t, orders, "apples")
	commitAll(t, users, "ann", "bob")
	requireContents(t, orders, "0 apples")
	requireContents(t, users, "0 ann", "1 bob")
	require.NoError(t, orders.Close())
	require.ErrorIs(t, orders.Close(), ErrClosed)
	_, err = Open(db, Options{Prefix: "log/users/"})
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, users.Close())

	_, err = Open(db, Options{Prefix: "log/"})
	require.ErrorContains(t, err, "somebody else's")
}

func TestTruncationOutlivesACrash(t *testing.T) {
	m := newMachine()
	log := m.mustOpenLog(t)
	require.NoError(t, log.TruncateBefore(5)) // of nothing
	for i := range 10 {
		commitAll(t, log, fmt.Sprint("tx", i))
	}
	require.NoError(t, log.Append([][]byte{[]byte("tx10")}))
	require.NoError(t, log.TruncateBefore(4))
	require.NoError(t, log.TruncateBefore(3))
	require.Equal(t, uint64(4), log.First())
	_, err := contents(log, 3)
	require.ErrorIs(t, err, ErrTruncated)
	m.crash(0, 1)
	_ = log.Close()

	log = m.mustOpenLog(t)
	require.Equal(t, uint64(4), log.First())
	require.Equal(t, uint64(10), log.Next())
	require.NoError(t, log.TruncateBefore(100)) // no further than what there is
	require.Equal(t, uint64(10), log.First())
	requireContents(t, log)
	m.crash(0, 1)
	_ = log.Close()

	log = m.mustOpenLog(t) // the offsets go on, though nothing is left
	require.Equal(t, uint64(10), log.First())
	commitAll(t, log, "next")
	requireContents(t, log, "10 next")
	require.NoError(t, log.Close())
}

func TestReadersGoOnThroughATruncation(t *testing.T) {
	log := newMachine().mustOpenLog(t)
	for i := range 20 {
		commitAll(t, log, fmt.Sprint("tx", i))
	}
	var seen []uint64
	for entry, err := range log.Read(0) {
		require.NoError(t, err)
		seen = append(seen, entry.Offset)
		if entry.Offset == 5 {
			require.NoError(t, log.TruncateBefore(15))
			commitAll(t, log, "later")
		}
	}
	require.Len(t, seen, 20)
	_, err := contents(log, 14)
	require.ErrorIs(t, err, ErrTruncated)
	txs, err := contents(log, 19)
	require.NoError(t, err)
	require.Equal(t, []string{"19 tx19", "20 later"}, txs)
	require.NoError(t, log.Close())
}

func TestReadersTruncationsAndAppendsAtOnce(t *testing.T) {
	log := newMachine().mustOpenLog(t)
	var stop atomic.Bool
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				next := log.First()
				for entry, err := range log.Read(next) {
					if errors.Is(err, ErrTruncated) {
						break
					}
					if err == nil && (entry.Offset != next || string(entry.Data) != fmt.Sprint("tx", next)) {
						err = fmt.Errorf("%d %s, and not %d", entry.Offset, entry.Data, next)
					}
					if err != nil {
						errs <- err
						return
					}
					next++
				}
			}
		})
	}
	wg.Go(func() {
		for !stop.Load() {
			if err := log.TruncateBefore(max(log.Next(), 10) - 10); err != nil {
				errs <- err
				return
			}
		}
	})
	for i := range 400 {
		commitAll(t, log, fmt.Sprint("tx", i))
	}
	stop.Store(true)
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.NoError(t, log.Close())
}

func TestWhatIsMissingIsDamage(t *testing.T) {
	keys := newKeyspace("log/")
	for name, test := range map[string]struct {
		harm func(db *pebble.DB) error
		open string // what Open says; "": it opens
		read string // what Read says
	}{
		"the last one":     {func(db *pebble.DB) error { return db.Delete(keys.tx(9), pebble.Sync) }, "the last transaction in the engine is another", ""},
		"the first one":    {func(db *pebble.DB) error { return db.Delete(keys.tx(2), pebble.Sync) }, "the first transaction in the engine is another", ""},
		"one in between":   {func(db *pebble.DB) error { return db.Delete(keys.tx(5), pebble.Sync) }, "", "damage at offset 5"},
		"all":              {func(db *pebble.DB) error { return db.DeleteRange(keys.tx(0), keys.tx(100), pebble.Sync) }, "the first transaction in the engine is another", ""},
		"the number next":  {func(db *pebble.DB) error { return db.Delete(keys.next, pebble.Sync) }, `the key "next" is missing`, ""},
		"half of first":    {func(db *pebble.DB) error { return db.Set(keys.first, []byte("1234"), pebble.Sync) }, `the key "first" is missing, or is no number`, ""},
		"one too many":     {func(db *pebble.DB) error { return db.Set(keys.tx(10), nil, pebble.Sync) }, "the last transaction in the engine is another", ""},
		"first after next": {func(db *pebble.DB) error { return db.Set(keys.first, number(11), pebble.Sync) }, "begins at 11 and ends before 10", ""},
		"not an offset": {func(db *pebble.DB) error {
			return db.Set(append(bytes.Clone(keys.tx(4)), 'x'), nil, pebble.Sync)
		}, "", "damage at offset 5"},
		"not empty": {func(db *pebble.DB) error {
			return db.Set(keys.first, number(10), pebble.Sync)
		}, "the log is empty, but", ""},
		"another version": {func(db *pebble.DB) error { return db.Set(keys.header, []byte("pebblelog\x02"), pebble.Sync) }, "another version's", ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine()
			log := m.mustOpenLog(t)
			for i := range 10 {
				commitAll(t, log, fmt.Sprint("tx", i))
			}
			require.NoError(t, log.TruncateBefore(2))
			require.NoError(t, log.Close())
			db := m.mustOpen(t)
			require.NoError(t, test.harm(db))
			require.NoError(t, db.Close())

			log, err := m.openLog(Options{Prefix: "log/"})
			if test.open != "" {
				require.ErrorContains(t, err, test.open)
				require.Equal(t, name != "another version", isDamage(err))
				return
			}
			require.NoError(t, err)
			_, err = contents(log, log.First())
			require.ErrorContains(t, err, test.read)
			require.True(t, isDamage(err))
			require.NoError(t, log.Close())
		})
	}
}

func TestWhatVanishesFromAnOpenLogIsDamage(t *testing.T) {
	db := newMachine().mustOpen(t)
	log, err := Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	commitAll(t, log, "a", "b", "c")
	require.NoError(t, db.Delete(log.keys.tx(2), pebble.Sync))
	txs, err := contents(log, 0)
	require.ErrorContains(t, err, "damage at offset 2: it is missing")
	require.True(t, isDamage(err))
	require.Equal(t, []string{"0 a", "1 b"}, txs)
	require.NoError(t, log.Close())
	require.NoError(t, db.Close())
}

func TestCloseSyncsWhatWasAppended(t *testing.T) {
	m := newMachine()
	log := m.mustOpenLog(t)
	commitAll(t, log, "a")
	require.NoError(t, log.Append([][]byte{[]byte("b")}))
	require.NoError(t, log.Close())
	m.crash(0, 1)
	log = m.mustOpenLog(t)
	requireContents(t, log, "0 a", "1 b")
	require.NoError(t, log.Close())
}

func TestWhatDoesNotFitIsRefusedAndNothingIsLost(t *testing.T) {
	log := newMachine().mustOpenLog(t)
	commitAll(t, log, "a")
	huge := make([]byte, MaxTransactionBytes+1)
	require.ErrorIs(t, log.Append([][]byte{[]byte("b"), huge}), ErrTooLarge)
	require.Equal(t, uint64(1), log.Next())
	require.NoError(t, log.Append([][]byte{[]byte("b"), {}}))
	require.NoError(t, log.Sync())
	requireContents(t, log, "0 a", "1 b", "2 ")
	require.NoError(t, log.Close())
	require.ErrorIs(t, log.Append(nil), ErrClosed)
	require.ErrorIs(t, log.Sync(), ErrClosed)
	require.ErrorIs(t, log.TruncateBefore(1), ErrClosed)
	_, err := contents(log, 0)
	require.ErrorIs(t, err, ErrClosed)
}

// A commit that failed is visible in the engine, and not durable. Nobody may count
// on it, not even if the log is closed and opened again in the same engine.
func TestAFailedCommitPoisonsTheLogAndTheEngine(t *testing.T) {
	m := newMachine()
	db := m.mustOpen(t)
	log, err := Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	commitAll(t, log, "a")
	require.NoError(t, log.Append([][]byte{[]byte("b")}))
	m.fails.Store(int64(errorfs.OpFileSync))
	failure := log.Sync()
	require.ErrorIs(t, failure, errInjected)
	require.Zero(t, m.fatal.Load(), "Fatalf was called: with another Logger the process would be gone")

	require.ErrorIs(t, log.Sync(), errInjected)
	require.ErrorContains(t, log.Append([][]byte{[]byte("c")}), "refused, since the log has failed before")
	require.ErrorContains(t, log.TruncateBefore(1), "refused")
	requireContents(t, log, "0 a") // what is durable can still be read
	_, closer, err := db.Get(log.keys.tx(1))
	require.NoError(t, err, "Pebble has changed: this test is about a failed commit that is visible")
	require.NoError(t, closer.Close())
	require.NoError(t, log.Close())
	_, err = Open(db, Options{Prefix: "log/"})
	require.ErrorIs(t, err, errInjected)
	require.ErrorContains(t, err, "open the engine again")
	_, err = Open(db, Options{Prefix: "other/"})
	require.ErrorIs(t, err, errInjected)

	m.crash(0, 1)
	_ = db.Close()
	log = m.mustOpenLog(t)
	requireContents(t, log, "0 a")
	commitAll(t, log, "b2")
	requireContents(t, log, "0 a", "1 b2")
	require.NoError(t, log.Close())
}

const refused = "refused, since a commit in this engine has failed"

func TestAfterAFailedCommitOfOneLogTheOthersOfTheEngineAreRefused(t *testing.T) {
	m := newMachine()
	db := m.mustOpen(t)
	logs := map[string]*Log{}
	for _, name := range []string{"failing", "appends", "syncs", "truncates", "unsynced", "synced"} {
		log, err := Open(db, Options{Prefix: name})
		require.NoError(t, err)
		commitAll(t, log, "a", "b")
		logs[name] = log
	}
	c := [][]byte{[]byte("c")}
	for _, name := range []string{"failing", "syncs", "unsynced"} {
		require.NoError(t, logs[name].Append(c))
	}
	m.fails.Store(int64(errorfs.OpFileSync))
	require.ErrorIs(t, logs["failing"].Sync(), errInjected)

	for _, err := range []error{
		logs["appends"].Append(c),
		logs["syncs"].Sync(),
		logs["truncates"].TruncateBefore(0),
		logs["truncates"].TruncateBefore(1),
		logs["unsynced"].Close(),
	} {
		require.ErrorIs(t, err, errInjected)
		require.ErrorContains(t, err, refused)
	}
	require.Zero(t, logs["truncates"].First(), "nothing was tried")
	require.ErrorIs(t, logs["appends"].Sync(), errInjected)
	require.NoError(t, logs["synced"].Close())
	delete(logs, "unsynced")
	delete(logs, "synced")
	for name, log := range logs {
		requireContents(t, log, "0 a", "1 b")
		require.NoError(t, log.Close(), name) // its failure is known already
	}

	m.crash(0, 1)
	_ = db.Close()
	log, err := m.openLog(Options{Prefix: "syncs"})
	require.NoError(t, err)
	requireContents(t, log, "0 a", "1 b")
	commitAll(t, log, "c2")
	require.NoError(t, log.Close())
}

func TestAfterAFailedTruncationEverythingIsRefused(t *testing.T) {
	m := newMachine()
	db := m.mustOpen(t)
	log, err := Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	commitAll(t, log, "a", "b", "c")
	m.fails.Store(int64(errorfs.OpFileSync))
	require.ErrorIs(t, log.TruncateBefore(1), errInjected)

	for _, offset := range []uint64{0, 1, 2} {
		require.ErrorContains(t, log.TruncateBefore(offset), refused)
	}
	require.ErrorContains(t, log.Append([][]byte{[]byte("d")}), refused)
	require.ErrorIs(t, log.Sync(), errInjected)
	require.Equal(t, uint64(1), log.First(), "offset 0 may be there or not")
	_, err = contents(log, 0)
	require.ErrorIs(t, err, ErrTruncated)
	requireContents(t, log, "1 b", "2 c")
	require.NoError(t, log.Close())

	m.crash(0, 1)
	_ = db.Close()
	log = m.mustOpenLog(t)
	require.Zero(t, log.First())
	requireContents(t, log, "0 a", "1 b", "2 c")
	commitAll(t, log, "d2")
	require.NoError(t, log.Close())
}

func TestAfterAFailedTruncationCloseTellsWhatItCouldNotSync(t *testing.T) {
	m := newMachine()
	db := m.mustOpen(t)
	log, err := Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	commitAll(t, log, "a", "b")
	require.NoError(t, log.Append([][]byte{[]byte("c")}))
	m.fails.Store(int64(errorfs.OpFileSync))
	require.ErrorIs(t, log.TruncateBefore(1), errInjected)
	require.ErrorContains(t, log.Close(), refused)
	m.crash(0, 1)
	_ = db.Close()
}

// Pebble panics where it is used after Close. Of the log's calls, those that a Host
// makes return an error instead.
func TestAnEngineThatIsClosedTooEarlyIsAnError(t *testing.T) {
	m := newMachine()
	db := m.mustOpen(t)
	log, err := Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	host := lifecycletest.New(t, log, lifecycletest.ExpectError(pebble.ErrClosed))
	_, err = host.Durability().Commit(t.Context(), []byte("a"))
	require.NoError(t, err)
	require.NoError(t, db.Close())
	_, err = host.Durability().Commit(t.Context(), []byte("b"))
	require.ErrorIs(t, err, pebble.ErrClosed)
	require.ErrorIs(t, err, lifecycle.ErrUnknown)

	db = newMachine().mustOpen(t)
	log, err = Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	commitAll(t, log, "a", "b")
	require.NoError(t, db.Close())
	_, err = contents(log, 0)
	require.ErrorIs(t, err, pebble.ErrClosed)
	require.ErrorIs(t, log.TruncateBefore(1), pebble.ErrClosed)
	require.NoError(t, log.Close())
	db = newMachine().mustOpen(t)
	require.NoError(t, db.Close())
	_, err = Open(db, Options{Prefix: "log/"})
	require.ErrorIs(t, err, pebble.ErrClosed)
	require.ErrorContains(t, err, `pebblelog: "log/": open: `)
}

func TestAnEngineWithoutAWriteAheadLogIsRefused(t *testing.T) {
	db, err := pebble.Open("db", &pebble.Options{FS: vfs.NewMem(), DisableWAL: true, Logger: logger{new(atomic.Int64)}})
	require.NoError(t, err)
	_, err = Open(db, Options{Prefix: "log/"})
	require.ErrorContains(t, err, "WAL disabled")
	require.NoError(t, db.Close())
}

func TestCloseWaitsForReaders(t *testing.T) {
	log := newMachine().mustOpenLog(t)
	commitAll(t, log, "a", "b", "c")
	reading, goOn := make(chan struct{}), make(chan struct{})
	var last error
	var wg sync.WaitGroup
	wg.Go(func() {
		for entry, err := range log.Read(0) {
			last = err
			if err == nil && entry.Offset == 0 {
				close(reading)
				<-goOn
			}
		}
	})
	<-reading
	closed := make(chan error, 1)
	go func() { closed <- log.Close() }()
	for !log.isClosed() { // then it waits
		runtime.Gosched()
	}
	select {
	case err := <-closed:
		t.Fatalf("Close has not waited for the reader: %v", err)
	default:
	}
	close(goOn)
	require.NoError(t, <-closed, "the engine complains of an iterator that is open")
	wg.Wait()
	require.ErrorIs(t, last, ErrClosed)
}

// After a forced exit that has left a task behind, the hook leaves the engine open,
// and what the task writes late is an ordinary write.
func TestAForcedExitNeedNotCloseTheEngine(t *testing.T) {
	m := newMachine()
	db := m.mustOpen(t)
	log, err := Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	host := lifecycle.New(log, lifecycle.Options{Name: "server"})
	closed := false
	require.NoError(t, host.OnExit(lifecycle.PhaseRelease, "pebble", func(context.Context) error {
		for _, phase := range host.Report().Phases {
			if len(phase.Abandoned) > 0 {
				return nil
			}
		}
		closed = true
		return db.Close()
	}))
	goOn, wrote := make(chan struct{}), make(chan error, 2)
	require.NoError(t, host.Go("deaf", func(context.Context) error {
		<-goOn
		wrote <- db.Set([]byte("late"), nil, pebble.Sync)
		_, err := host.Durability().Append(context.Background(), []byte("late"))
		wrote <- err
		return nil
	}))
	_, err = host.Durability().Commit(t.Context(), []byte("a"))
	require.NoError(t, err)
	require.ErrorIs(t, host.ForceExit(t.Context()), lifecycle.ErrForced)
	require.False(t, closed)
	close(goOn)
	require.NoError(t, <-wrote)
	require.ErrorIs(t, <-wrote, lifecycle.ErrClosed)

	log, err = Open(db, Options{Prefix: "log/"})
	require.NoError(t, err, "the log was not given up")
	requireContents(t, log, "0 a")
	require.NoError(t, log.Close())
	require.NoError(t, db.Close())
}

// stuck is a fault: syncs of the write-ahead log that do not return.
type stuck struct {
	now     atomic.Bool
	reached chan struct{} // sent to by each sync that is held up
	goOn    chan struct{}
}

func (s *stuck) MaybeError(op errorfs.Op) error {
	isSync := op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo
	if isSync && filepath.Ext(op.Path) == ".log" && s.now.Load() {
		s.reached <- struct{}{}
		<-s.goOn
	}
	return nil
}

func (s *stuck) String() string { return "stuck" }

// watched tells when the log was closed.
type watched struct {
	*Log
	closed chan error
}

func (l *watched) Close() error {
	err := l.Log.Close()
	l.closed <- err
	return err
}

func TestAForcedExitLeavesACommitThatHangs(t *testing.T) {
	disk := &stuck{reached: make(chan struct{}, 10), goOn: make(chan struct{})}
	db, err := pebble.Open("db", &pebble.Options{FS: errorfs.Wrap(vfs.NewMem(), disk), Logger: logger{new(atomic.Int64)}})
	require.NoError(t, err)
	other, err := Open(db, Options{Prefix: "other/"})
	require.NoError(t, err)
	require.NoError(t, other.Append([][]byte{[]byte("a")}))
	log, err := Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	watched := &watched{log, make(chan error, 1)}
	host := lifecycle.New(watched, lifecycle.Options{})
	_, err = host.Durability().Commit(t.Context(), []byte("a"))
	require.NoError(t, err)
	disk.now.Store(true)
	pending, err := host.Durability().Append(t.Context(), []byte("b"))
	require.NoError(t, err)
	<-disk.reached
	requireContents(t, log, "0 a")

	done, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, host.ForceExit(done), lifecycle.ErrForced)
	<-host.Done()
	require.ErrorIs(t, pending.Wait(t.Context()), lifecycle.ErrUnknown)
	_, err = Open(db, Options{Prefix: "log/"})
	require.ErrorIs(t, err, ErrLocked, "the log's call is under way")

	disk.now.Store(false)
	close(disk.goOn)
	require.NoError(t, <-watched.closed)
	require.NoError(t, other.Close())
	log, err = Open(db, Options{Prefix: "log/"})
	require.NoError(t, err)
	requireContents(t, log, "0 a", "1 b")
	require.NoError(t, log.Close())
	require.NoError(t, db.Close())
}

// What a server does: its own keys and the log in one engine, and the hook that
// closes it.
func TestAServerWithEverythingInOneEngine(t *testing.T) {
	m := newMachine()
	want := map[string]string{}
	for round := range 4 {
		db := m.mustOpen(t)
		log, err := Open(db, Options{Prefix: "log/"})
		require.NoError(t, err)
		host := lifecycle.New(log, lifecycle.Options{Name: "server"})
		require.NoError(t, host.OnExit(lifecycle.PhaseRelease, "pebble", func(context.Context) error { return db.Close() }))
		require.NoError(t, host.Go("apply", func(ctx context.Context) error { // puts into the table what is in the log
			for from := uint64(0); ; {
				if host.Durability().Wait(ctx, from) != nil {
					return nil
				}
				for entry, err := range log.Read(from) {
					if err != nil {
						return err
					}
					key, value, _ := strings.Cut(string(entry.Data), "=")
					if err := db.Set([]byte("table/"+key), []byte(value), pebble.NoSync); err != nil {
						return err
					}
					from = entry.Offset + 1
				}
			}
		}))
		var clients sync.WaitGroup
		var mu sync.Mutex
		for client := range 4 {
			clients.Go(func() {
				for i := range 25 {
					key, value := fmt.Sprintf("%d-%d", client, i), fmt.Sprint(round)
					_, err := host.Durability().Commit(context.Background(), []byte(key+"="+value))
					mu.Lock()
					if err == nil {
						want[key] = value
					}
					mu.Unlock()
				}
			})
		}
		clients.Wait()
		require.NoError(t, host.Exit(t.Context()))
		require.Equal(t, lifecycle.Offset(100*(round+1)), host.Durability().Durable())
	}
	log := m.mustOpenLog(t)
	got := map[string]string{}
	for entry, err := range log.Read(0) {
		require.NoError(t, err)
		key, value, _ := strings.Cut(string(entry.Data), "=")
		got[key] = value
	}
	require.Equal(t, want, got)
	require.NoError(t, log.Close())
}
