package lifecycletest_test

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

func txs(all ...string) [][]byte {
	var txs [][]byte
	for _, tx := range all {
		txs = append(txs, []byte(tx))
	}
	return txs
}

func TestALogKeepsWhatWasSyncedApartFromWhatWasWritten(t *testing.T) {
	log := &lifecycletest.Log{First: 10}
	require.Equal(t, lifecycle.Offset(10), log.Next())
	batch := txs("a", "b")
	require.NoError(t, log.Append(batch))
	batch[0][0] = 'x' // the log has its own copy
	require.Empty(t, log.Synced())
	require.NoError(t, log.Sync())
	require.NoError(t, log.Append(txs("c")))
	require.Equal(t, txs("a", "b"), log.Synced())
	require.Equal(t, txs("a", "b", "c"), log.Written())
	require.Equal(t, lifecycle.Offset(13), log.Next())
	require.NoError(t, log.Close())
	require.Empty(t, log.Misuse())

	again := log.Reopen()
	require.Equal(t, lifecycle.Offset(12), again.Next())
	require.Equal(t, txs("a", "b"), again.Synced())
	require.NoError(t, again.Append(txs("d")))
	require.NoError(t, again.Sync())
	require.Equal(t, txs("a", "b", "d"), again.Synced())
	require.Equal(t, txs("a", "b"), log.Synced())
}

func TestALogFailsPanicsAndEndsItsGoroutineAtTheCallItIsToldTo(t *testing.T) {
	log := &lifecycletest.Log{}
	log.FailAt(lifecycletest.Append, 2, syscall.ENOSPC)
	log.PanicAt(lifecycletest.Sync, 2, "boom")
	log.GoexitAt(lifecycletest.Close, 1)
	log.FailAt(lifecycletest.Next, 1, syscall.EIO)
	require.PanicsWithValue(t, syscall.EIO, func() { log.Next() })
	require.NoError(t, log.Append(txs("a")))
	require.NoError(t, log.Sync())
	require.ErrorIs(t, log.Append(txs("b")), syscall.ENOSPC)
	require.PanicsWithValue(t, "boom", func() { _ = log.Sync() })
	returned := false
	var wg sync.WaitGroup
	wg.Go(func() { _ = log.Close(); returned = true })
	wg.Wait()
	require.False(t, returned)
	require.Equal(t, txs("a"), log.Written())

	calls := log.Calls()
	require.Equal(t, lifecycletest.Call{Op: lifecycletest.Append, N: 1, Txs: txs("a"), Ended: true}, calls[1])
	require.Equal(t, lifecycletest.Call{Op: lifecycletest.Append, N: 2, Txs: txs("b"), Ended: true, Err: syscall.ENOSPC, Failed: true}, calls[3])
	for _, i := range []int{0, 4, 5} {
		require.True(t, calls[i].Failed, "call %d", i)
	}
	require.Equal(t, 2, log.Count(lifecycletest.Append))
	require.Equal(t, 1, log.Count(lifecycletest.Close))
}

func TestALogBlocksUntilItIsReleased(t *testing.T) {
	log := &lifecycletest.Log{}
	reached, release := log.BlockAt(lifecycletest.Sync, 1)
	log.FailAt(lifecycletest.Sync, 1, syscall.EIO)
	host := lifecycletest.New(t, log, lifecycletest.ExpectError(syscall.EIO))
	pending, err := host.Durability().Append(background, []byte("a"))
	require.NoError(t, err)
	<-reached
	require.Equal(t, lifecycle.Offset(0), host.Durability().Durable())
	require.False(t, log.Calls()[2].Ended)
	release()
	release()
	require.ErrorIs(t, pending.Wait(background), syscall.EIO)
}

func TestALogSaysHowItWasMisused(t *testing.T) {
	boom := errors.New("boom")
	for name, test := range map[string]struct {
		misuse func(log *lifecycletest.Log)
		says   string
	}{
		"sync of nothing":      {func(l *lifecycletest.Log) { _ = l.Sync() }, "Sync 1 has nothing to sync"},
		"append of nothing":    {func(l *lifecycletest.Log) { _ = l.Append(nil) }, "Append 1 has no transactions"},
		"append after a close": {func(l *lifecycletest.Log) { _ = l.Close(); _ = l.Append(txs("a")) }, "Append 1 came after Close"},
		"close after a close":  {func(l *lifecycletest.Log) { _ = l.Close(); _ = l.Close() }, "Close 2 came after Close"},
		"append after a failure": {func(l *lifecycletest.Log) {
			l.FailAt(lifecycletest.Append, 1, boom)
			_ = l.Append(txs("a"))
			_ = l.Append(txs("b"))
		}, "Append 2 came after a failure"},
		"sync after a failure": {func(l *lifecycletest.Log) {
			l.FailAt(lifecycletest.Sync, 1, boom)
			_ = l.Append(txs("a"))
			_ = l.Sync()
			_ = l.Sync()
		}, "Sync 2 came after a failure"},
		"calls that overlap": {func(l *lifecycletest.Log) {
			reached, release := l.BlockAt(lifecycletest.Append, 1)
			var wg sync.WaitGroup
			wg.Go(func() { _ = l.Append(txs("a")) })
			<-reached
			_ = l.Close()
			release()
			wg.Wait()
		}, "Close 1 began while Append ran"},
		"bytes that change": {func(l *lifecycletest.Log) {
			reached, release := l.BlockAt(lifecycletest.Append, 1)
			batch := txs("a")
			var wg sync.WaitGroup
			wg.Go(func() { _ = l.Append(batch) })
			<-reached
			batch[0][0] = 'b'
			release()
			wg.Wait()
		}, "the bytes of Append 1 changed while it ran"},
	} {
		t.Run(name, func(t *testing.T) {
			log := &lifecycletest.Log{}
			test.misuse(log)
			require.Contains(t, fmt.Sprint(log.Misuse()), test.says)
		})
	}
}

func TestALogThatCrashesForgetsWhatWasNotSynced(t *testing.T) {
	log := &lifecycletest.Log{}
	reached, release := log.BlockAt(lifecycletest.Sync, 2)
	host := lifecycletest.New(t, log, lifecycletest.ExpectError(lifecycletest.ErrCrashed))
	_, err := host.Durability().Commit(background, []byte("a"))
	require.NoError(t, err)
	pending, err := host.Durability().Append(background, []byte("b"))
	require.NoError(t, err)
	<-reached
	again := log.Crash()
	release()
	require.ErrorIs(t, pending.Wait(background), lifecycletest.ErrCrashed)
	require.Equal(t, lifecycle.Offset(1), again.Next())
	require.Equal(t, txs("a"), again.Synced())

	next := lifecycletest.New(t, again)
	offset, err := next.Durability().Commit(background, []byte("c"))
	require.NoError(t, err)
	require.Equal(t, lifecycle.Offset(1), offset)
}

func TestALogRefusesWhatATestCantMean(t *testing.T) {
	log := &lifecycletest.Log{}
	require.Panics(t, func() { log.FailAt(0, 1, nil) })
	require.Panics(t, func() { log.FailAt(lifecycletest.Sync, 0, nil) })
	require.Panics(t, func() { log.Reopen() })
	require.NoError(t, log.Append(txs("a")))
	require.Panics(t, func() { log.BlockAt(lifecycletest.Append, 1) })
	log.FailAt(lifecycletest.Append, 2, syscall.EIO)
	require.Zero(t, log.Count(0))
	require.Zero(t, log.Count(99))
	require.Equal(t, "Op(99)", lifecycletest.Op(99).String())
	require.Equal(t, "Append", lifecycletest.Append.String())
}
