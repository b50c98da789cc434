package bboltlog

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

var large = flag.Bool("large", false, "try transactions of up to MaxTransactionBytes")

func largest() int {
	if *large {
		return MaxTransactionBytes
	}
	return 2 << 20
}

func mustOpenDB(t testing.TB, path string) *bbolt.DB {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 10 * time.Second})
	require.NoError(t, err)
	return db
}

func mustOpen(t testing.TB, path string) *Log {
	t.Helper()
	log, err := Open(mustOpenDB(t, path), Options{Bucket: "log", CloseDB: true})
	require.NoError(t, err)
	return log
}

func newPath(t testing.TB) string { return filepath.Join(t.TempDir(), "server.db") }

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

func TestLogsOfOneDatabaseAreApartAndBesideWhatTheServerKeeps(t *testing.T) {
	db := mustOpenDB(t, newPath(t))
	require.NoError(t, db.Update(func(tx *bbolt.Tx) error {
		table, err := tx.CreateBucket([]byte("table"))
		if err != nil {
			return err
		}
		return table.Put([]byte("key"), []byte("mine"))
	}))
	orders, err := Open(db, Options{Bucket: "orders"})
	require.NoError(t, err)
	users, err := Open(db, Options{Bucket: "users"})
	require.NoError(t, err)
	_, err = Open(db, Options{Bucket: "orders"})
	require.ErrorIs(t, err, ErrLocked)
	_, err = Open(db, Options{})
	require.ErrorContains(t, err, "Options.Bucket is empty")
	_, err = Open(nil, Options{Bucket: "orders"})
	require.ErrorContains(t, err, "no database")
	_, err = Open(db, Options{Bucket: "table"})
	require.ErrorContains(t, err, "somebody else's")
	commitAll(t, orders, "apples")
	commitAll(t, users, "ann", "bob")
	requireContents(t, orders, "0 apples")
	requireContents(t, users, "0 ann", "1 bob")
	require.NoError(t, orders.Close())
	require.ErrorIs(t, orders.Close(), ErrClosed)
	orders, err = Open(db, Options{Bucket: "orders"})
	require.NoError(t, err)
	commitAll(t, orders, "pears")
	requireContents(t, orders, "0 apples", "1 pears")
	require.NoError(t, orders.Close())
	_, err = Open(db, Options{Bucket: "users"})
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, users.Close())

	// The database is the server's, and open.
	require.NoError(t, db.View(func(tx *bbolt.Tx) error {
		require.Equal(t, "mine", string(tx.Bucket([]byte("table")).Get([]byte("key"))))
		return nil
	}))
	require.NoError(t, db.Close())
}

func TestADatabaseThatCantKeepItIsRefused(t *testing.T) {
	path := newPath(t)
	db := mustOpenDB(t, path)
	db.NoSync = true
	_, err := Open(db, Options{Bucket: "log"})
	require.ErrorContains(t, err, "NoSync")
	require.NoError(t, db.Close())
	_, err = Open(db, Options{Bucket: "log"})
	require.Error(t, err)
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	require.NoError(t, err)
	_, err = Open(db, Options{Bucket: "log"})
	require.ErrorIs(t, err, bbolterrors.ErrDatabaseReadOnly)
	_, err = Open(db, Options{Bucket: "log"})
	require.NotErrorIs(t, err, ErrLocked, "the refused one still holds it")
	require.NoError(t, db.Close())
}

func TestTruncation(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	log := mustOpen(t, path)
	require.NoError(t, log.TruncateBefore(5)) // of nothing
	for range 2 {
		txs := make([][]byte, 12_000) // more than one Update deletes
		for i := range txs {
			txs[i] = fmt.Append(nil, log.Next()+uint64(i))
		}
		require.NoError(t, log.Append(txs))
	}
	require.NoError(t, log.Sync())
	require.NoError(t, log.Append([][]byte{[]byte("24000")}))
	require.NoError(t, log.TruncateBefore(23_998))
	require.NoError(t, log.TruncateBefore(3))
	require.Equal(t, uint64(23_998), log.First())
	requireContents(t, log, "23998 23998", "23999 23999")
	_, err := contents(log, 23_997)
	require.ErrorIs(t, err, ErrTruncated)
	require.NoError(t, log.Close())

	log = mustOpen(t, path)
	requireContents(t, log, "23998 23998", "23999 23999", "24000 24000")
	require.NoError(t, log.TruncateBefore(1_000_000)) // no further than what there is
	requireContents(t, log)
	require.NoError(t, log.Close())

	log = mustOpen(t, path) // the offsets go on, though nothing is left
	require.Equal(t, uint64(24_001), log.First())
	commitAll(t, log, "next")
	requireContents(t, log, "24001 next")
	require.NoError(t, log.Close())
}

// A reader that stands still holds nothing of bbolt: appends go on, also where the
// file has to grow, for which bbolt waits until nobody reads.
func TestASlowReaderDelaysNobody(t *testing.T) {
	t.Parallel()
	log := mustOpen(t, newPath(t))
	commitAll(t, log, "a", "b", "c")
	seen := 0
	for entry, err := range log.Read(0) {
		require.NoError(t, err)
		if entry.Offset == 1 {
			for range 8 {
				commitAll(t, log, strings.Repeat("x", 4<<20))
			}
			require.NoError(t, log.TruncateBefore(2))
		}
		seen++
	}
	require.Equal(t, 3, seen)
	require.NoError(t, log.Close())
}

func TestCloseWaitsForWhoIsInTheDatabase(t *testing.T) {
	db := mustOpenDB(t, newPath(t))
	log, err := Open(db, Options{Bucket: "log"})
	require.NoError(t, err)
	require.NoError(t, log.enter("read")) // as a reader does
	closed := make(chan error, 1)
	go func() { closed <- log.Close() }()
	for !log.isClosed() { // then it waits
		runtime.Gosched()
	}
	_, err = Open(db, Options{Bucket: "log"})
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorIs(t, log.enter("read"), ErrClosed)
	log.users.Done()
	require.NoError(t, <-closed)
	log, err = Open(db, Options{Bucket: "log"})
	require.NoError(t, err)
	require.NoError(t, log.Close())
	require.NoError(t, db.Close())
}

func TestReadersTruncationsAndAppendsAtOnce(t *testing.T) {
	t.Parallel()
	log := mustOpen(t, newPath(t))
	var stop atomic.Bool
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	padding := strings.Repeat("x", 10_000) // so that readers come more than once
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				next := log.First()
				for entry, err := range log.Read(next) {
					if errors.Is(err, ErrTruncated) {
						break
					}
					if err == nil && (entry.Offset != next || string(entry.Data) != fmt.Sprint("tx", next, padding)) {
						err = fmt.Errorf("%d %.20s, and not %d", entry.Offset, entry.Data, next)
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
			if err := log.TruncateBefore(max(log.Next(), 60) - 60); err != nil {
				errs <- err
				return
			}
		}
	})
	for i := range 300 {
		commitAll(t, log, fmt.Sprint("tx", i, padding))
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
	type buckets struct{ root, txs *bbolt.Bucket }
	for name, test := range map[string]struct {
		harm func(b buckets) error
		open string // what Open says; "": it opens
		read string // what Read says
	}{
		"the last one":     {func(b buckets) error { return b.txs.Delete(number(9)) }, "the last transaction in the database has the key 0000000000000008", ""},
		"the first one":    {func(b buckets) error { return b.txs.Delete(number(2)) }, "the first transaction in the database has the key 0000000000000003", ""},
		"one in between":   {func(b buckets) error { return b.txs.Delete(number(5)) }, "", "damage at offset 5"},
		"all":              {func(b buckets) error { return b.root.DeleteBucket(transactions) }, `the bucket "transactions" is missing`, ""},
		"the number first": {func(b buckets) error { return b.root.Delete(firstKey) }, `or the key "first"`, ""},
		"half of first":    {func(b buckets) error { return b.root.Put(firstKey, []byte("1234")) }, "or it is no number", ""},
		"one too many":     {func(b buckets) error { return b.txs.Put(number(10), nil) }, "the last transaction in the database has", ""},
		"first after next": {func(b buckets) error { return b.root.Put(firstKey, number(11)) }, "begins at 11 and ends before 10", ""},
		"not an offset":    {func(b buckets) error { return b.txs.Put(append(number(4), 'x'), nil) }, "", "damage at offset 5"},
		"not empty":        {func(b buckets) error { return b.root.Put(firstKey, number(10)) }, "the log is empty, but", ""},
		"next":             {func(b buckets) error { return b.txs.SetSequence(8) }, "the last transaction in the database has", ""},
		"another version":  {func(b buckets) error { return b.root.Put(versionKey, []byte{2}) }, "the log's version is 02", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			log := mustOpen(t, path)
			commitAll(t, log, strings.Split("0123456789", "")...)
			require.NoError(t, log.TruncateBefore(2))
			require.NoError(t, log.Close())
			db := mustOpenDB(t, path)
			defer db.Close()
			require.NoError(t, db.Update(func(tx *bbolt.Tx) error {
				root := tx.Bucket([]byte("log"))
				return test.harm(buckets{root, root.Bucket(transactions)})
			}))
			log, err := Open(db, Options{Bucket: "log"})
			if test.open != "" {
				require.ErrorContains(t, err, test.open)
				require.Equal(t, name != "another version", isDamage(err))
				_, again := Open(db, Options{Bucket: "log"})
				require.Equal(t, err, again, "Open has changed something")
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

func TestABucketThatIsGoneIsAnError(t *testing.T) {
	db := mustOpenDB(t, newPath(t))
	log, err := Open(db, Options{Bucket: "log"})
	require.NoError(t, err)
	commitAll(t, log, "a")
	require.NoError(t, db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("log")) }))
	_, err = contents(log, 0)
	require.True(t, isDamage(err), "%v", err)
	require.NoError(t, log.Append([][]byte{[]byte("b")}))
	require.True(t, isDamage(log.Sync()))
	require.True(t, isDamage(log.Sync()))
	require.ErrorContains(t, log.TruncateBefore(1), "refused")
	require.NoError(t, log.Close())
	_, err = Open(db, Options{Bucket: "other"})
	require.ErrorContains(t, err, "open the database again")
	require.NoError(t, db.Close())
}

func TestWhatDoesNotFitIsRefusedAndNothingIsLost(t *testing.T) {
	log := mustOpen(t, newPath(t))
	commitAll(t, log, "a")
	record := func(tx string) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, uint32(len(tx))), tx...)
	}
	b := record("b")
	tooLarge := make([]byte, len(b)+4+MaxTransactionBytes+1)
	binary.LittleEndian.PutUint32(tooLarge[copy(tooLarge, b):], MaxTransactionBytes+1)
	require.ErrorIs(t, log.Append([][]byte{[]byte("b"), tooLarge[len(b)+4:]}), ErrTooLarge)
	for says, batch := range map[string][]byte{
		"ends in record 2 of 2": append(record("b"), 9, 0, 0, 0, 'c'),
		"ends in record 1 of 2": {1, 0},
		"follow the batch's 2":  append(append(record("b"), record("c")...), 7),
		"too large":             tooLarge,
	} {
		require.ErrorContains(t, log.AppendBatch(batch, 2), says)
	}
	require.Equal(t, uint64(1), log.Next())
	require.NoError(t, log.AppendBatch(append(record("b"), record("")...), 2))
	require.NoError(t, log.Sync())
	requireContents(t, log, "0 a", "1 b", "2 ")
	require.NoError(t, log.Append([][]byte{[]byte("c")}))
	path := log.db.Path()
	require.NoError(t, log.Close())
	require.ErrorIs(t, log.Append(nil), ErrClosed)
	require.ErrorIs(t, log.AppendBatch(nil, 0), ErrClosed)
	require.ErrorIs(t, log.Sync(), ErrClosed)
	require.ErrorIs(t, log.TruncateBefore(1), ErrClosed)
	_, err := contents(log, 0)
	require.ErrorIs(t, err, ErrClosed)

	log = mustOpen(t, path) // Close has synced what was appended
	requireContents(t, log, "0 a", "1 b", "2 ", "3 c")
	require.NoError(t, log.Close())
}

func TestADatabaseThatIsClosedTooEarlyIsAnError(t *testing.T) {
	db := mustOpenDB(t, newPath(t))
	log, err := Open(db, Options{Bucket: "log"})
	require.NoError(t, err)
	host := lifecycletest.New(t, log, lifecycletest.ExpectError(bbolterrors.ErrDatabaseNotOpen))
	_, err = host.Durability().Commit(t.Context(), []byte("a"))
	require.NoError(t, err)
	require.NoError(t, db.Close())
	_, err = host.Durability().Commit(t.Context(), []byte("b"))
	require.ErrorIs(t, err, bbolterrors.ErrDatabaseNotOpen)
	require.ErrorIs(t, err, lifecycle.ErrUnknown)
}

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

func TestAForcedExitLeavesASyncThatWaitsForAnUpdate(t *testing.T) {
	db := mustOpenDB(t, newPath(t))
	log, err := Open(db, Options{Bucket: "log"})
	require.NoError(t, err)
	watched := &watched{log, make(chan error, 1)}
	host := lifecycle.New(watched, lifecycle.Options{})
	_, err = host.Durability().Commit(t.Context(), []byte("a"))
	require.NoError(t, err)
	begun, goOn, updated := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		updated <- db.Update(func(*bbolt.Tx) error {
			close(begun)
			<-goOn
			return nil
		})
	}()
	<-begun
	pending, err := host.Durability().Append(t.Context(), []byte("b"))
	require.NoError(t, err)
	for host.Status().QueuedBytes > 0 { // then the log has it
		runtime.Gosched()
	}
	requireContents(t, log, "0 a")

	done, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, host.ForceExit(done), lifecycle.ErrForced)
	<-host.Done()
	require.ErrorIs(t, pending.Wait(t.Context()), lifecycle.ErrUnknown)
	_, err = Open(db, Options{Bucket: "log"})
	require.ErrorIs(t, err, ErrLocked, "the log's call is under way")

	close(goOn)
	require.NoError(t, <-updated)
	require.NoError(t, <-watched.closed)
	log, err = Open(db, Options{Bucket: "log"})
	require.NoError(t, err)
	requireContents(t, log, "0 a", "1 b")
	require.NoError(t, log.Close())
	require.NoError(t, db.Close())
}

// serverVariable makes this test binary a server on the database that it names.
const serverVariable = "BBOLTLOG_SERVER"

func TestMain(m *testing.M) {
	if path := os.Getenv(serverVariable); path != "" {
		if err := serve(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve commits until it is killed, in a database that it writes to as well, and
// prints what is acknowledged.
func serve(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 10 * time.Second})
	if err != nil {
		return err
	}
	log, err := Open(db, Options{Bucket: "log"})
	if err != nil {
		return err
	}
	host := lifecycle.New(log, lifecycle.Options{})
	for client := range 4 {
		err := host.Go("client", func(ctx context.Context) error {
			for i := 0; ; i++ {
				tx := fmt.Sprintf("%d-%d-%d", os.Getpid(), client, i)
				offset, err := host.Durability().Commit(ctx, []byte(tx))
				if err != nil {
					return err
				}
				fmt.Printf("%d %s\n", offset, tx)
			}
		})
		if err != nil {
			return err
		}
	}
	err = host.Go("server", func(ctx context.Context) error {
		for i := 0; ctx.Err() == nil; i++ {
			err := db.Update(func(tx *bbolt.Tx) error {
				table, err := tx.CreateBucketIfNotExists([]byte("table"))
				if err != nil {
					return err
				}
				return table.Put(number(uint64(i)), []byte("mine"))
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	<-host.Exiting()
	return host.Exit(context.Background())
}

func TestAKilledServerLosesNothingThatItAcknowledged(t *testing.T) {
	path := newPath(t)
	acked := map[uint64]string{}
	for round := range 6 {
		self, err := os.Executable()
		require.NoError(t, err)
		command := exec.Command(self)
		command.Env = append(os.Environ(), serverVariable+"="+path)
		command.Stderr = os.Stderr
		out, err := command.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, command.Start())
		lines := bufio.NewScanner(out)
		for seen := 0; lines.Scan(); seen++ {
			offset, tx, found := strings.Cut(lines.Text(), " ")
			n, err := strconv.ParseUint(offset, 10, 64)
			if !found || err != nil || strings.Count(tx, "-") != 2 {
				break // cut by the kill
			}
			require.NotContains(t, acked, n)
			acked[n] = tx
			if seen == 50+37*round {
				require.NoError(t, command.Process.Kill())
			}
		}
		require.Error(t, command.Wait(), "it was not killed")

		log := mustOpen(t, path)
		held := map[string]bool{}
		for entry, err := range log.Read(0) {
			require.NoError(t, err)
			require.False(t, held[string(entry.Data)], "twice: %s", entry.Data)
			held[string(entry.Data)] = true
			if tx, ok := acked[entry.Offset]; ok {
				require.Equal(t, tx, string(entry.Data))
			}
		}
		for offset := range acked {
			require.Less(t, offset, log.Next())
		}
		require.NoError(t, log.Close())
	}
	t.Logf("%d acknowledged in 6 processes that were killed", len(acked))
}
