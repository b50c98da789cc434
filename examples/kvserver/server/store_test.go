package server

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	for _, r := range []record{
		{kind: kindPut, key: "a", value: []byte{}},
		{kind: kindPut, key: "a/b\x00ü", value: []byte("value"), expires: math.MaxInt64},
		{kind: kindPut, key: string(make([]byte, maxKeyBytes)), value: make([]byte, 1<<20), expires: 1},
		{kind: kindDelete, key: "a"},
		{kind: kindExpire, key: "a", version: math.MaxUint64},
	} {
		got, err := decodeRecord(r.encode())
		require.NoError(t, err)
		require.Equal(t, r, got)
	}
}

func TestARecordThatIsNoneIsAnError(t *testing.T) {
	whole := map[string][]byte{
		"put":    record{kind: kindPut, key: "key", expires: 7}.encode(),
		"delete": record{kind: kindDelete, key: "key"}.encode(),
		"expire": record{kind: kindExpire, key: "key", version: 7}.encode(),
	}
	for name, b := range whole {
		for n := range b {
			_, err := decodeRecord(b[:n])
			require.Error(t, err, "%s, %d of its %d bytes", name, n, len(b))
		}
	}
	for name, b := range map[string][]byte{
		"nothing":                  nil,
		"an empty key":             {kindDelete, 0, 0},
		"a key that is too long":   record{kind: kindDelete, key: string(make([]byte, maxKeyBytes+1))}.encode(),
		"an unknown kind":          {9, 1, 0, 'k'},
		"more after a delete":      append(whole["delete"], 0),
		"more after an expiration": append(whole["expire"], 0),
	} {
		_, err := decodeRecord(b)
		require.Error(t, err, name)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(record{kind: kindPut, key: "key", value: []byte("value"), expires: 7}.encode())
	f.Add(record{kind: kindDelete, key: "key"}.encode())
	f.Add(record{kind: kindExpire, key: "key", version: 7}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil {
			require.Equal(t, b, r.encode())
		}
	})
}

// content is what a table holds, so that two can be compared.
func content(t *table) map[string]item {
	all := map[string]item{}
	im := t.freeze()
	for it := range im.all {
		all[it.key] = item{key: it.key, value: it.value, version: it.version, expires: it.expires}
	}
	return all
}

// openStore opens a store on a log in dir, behind a host that the test's end ends.
func openStore(t *testing.T, dir string) (*store, *lifecycle.Host, opened) {
	t.Helper()
	state, err := openState(dir, 8<<10)
	require.NoError(t, err)
	host := lifecycle.New(state.log, lifecycle.Options{})
	t.Cleanup(func() { require.NoError(t, host.Exit(context.Background())) })
	return newStore(host.Durability(), state.table), host, state
}

// reopen ends the host and returns what the directory holds.
func reopen(t *testing.T, dir string, host *lifecycle.Host) opened {
	t.Helper()
	require.NoError(t, host.Exit(t.Context()))
	state, err := openState(dir, 8<<10)
	require.NoError(t, err)
	require.NoError(t, state.log.Close())
	return state
}

func TestWritersThatRaceForTheSameKeysLeaveWhatTheLogReplaysTo(t *testing.T) {
	dir := t.TempDir()
	s, host, _ := openStore(t, dir)
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 2))
			for j := range 300 {
				key := fmt.Sprint("key ", random.IntN(5))
				r := record{kind: kindPut, key: key, value: fmt.Appendf(nil, "%d %d", i, j)}
				switch random.IntN(4) {
				case 0:
					r = record{kind: kindDelete, key: key}
				case 1:
					r.expires = time.Now().UnixNano() // at once
				case 2:
					for _, r := range s.expired(time.Now(), 10) {
						if _, err := s.commit(t.Context(), r); err != nil {
							t.Error(err)
						}
					}
				}
				if _, err := s.commit(t.Context(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	live := s.freeze()
	state := reopen(t, dir, host)
	require.Equal(t, live.next, state.table.next)
	require.Equal(t, content(s.table), content(state.table))
	require.Equal(t, s.table.keys, state.table.keys)
	require.Equal(t, s.table.bytes, state.table.bytes)
	require.Equal(t, len(s.table.expiry), len(state.table.expiry))
}

func TestWritesAreAppliedInTheOrderOfTheirOffsets(t *testing.T) {
	dir := t.TempDir()
	s, host, _ := openStore(t, dir)
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			var last lifecycle.Pending
			for j := range 3000 {
				var err error
				if last, err = s.append(t.Context(), record{kind: kindPut, key: "key", value: fmt.Appendf(nil, "%d %d", i, j)}); err != nil {
					t.Error(err)
				}
				s.mu.Lock()
				for n := 1; n < len(s.pending); n++ {
					if s.pending[n].offset != s.pending[n-1].offset+1 {
						t.Error("pending is out of order")
					}
				}
				s.applyDurable()
				s.mu.Unlock()
			}
			if err := s.wait(t.Context(), last); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	require.EqualValues(t, 8*3000, s.freeze().next)
	require.Equal(t, content(s.table), content(reopen(t, dir, host).table))
}

func TestAWriteIsVisibleOnceItIsAcknowledgedAndNotBeforeItIsDurable(t *testing.T) {
	log := newHeldLog()
	host := lifecycle.New(log, lifecycle.Options{})
	s := newStore(host.Durability(), newTable())

	p, err := s.append(t.Context(), record{kind: kindPut, key: "key", value: []byte("1")})
	require.NoError(t, err)
	<-log.syncing
	_, _, found := s.get("key", time.Now())
	require.False(t, found, "it is not durable")
	log.release <- nil
	require.NoError(t, s.wait(t.Context(), p))
	value, version, found := s.get("key", time.Now())
	require.True(t, found)
	require.Equal(t, "1", string(value))
	require.Zero(t, version)

	// A writer that has gone does not keep its write from becoming visible.
	ctx, cancel := context.WithCancel(t.Context())
	p, err = s.append(ctx, record{kind: kindPut, key: "key", value: []byte("2")})
	require.NoError(t, err)
	<-log.syncing
	cancel()
	require.ErrorIs(t, s.wait(ctx, p), lifecycle.ErrUnknown)
	log.release <- nil
	require.NoError(t, host.Durability().Wait(t.Context(), p.Offset()))
	value, _, _ = s.get("key", time.Now())
	require.Equal(t, "2", string(value))
	require.NoError(t, host.Exit(t.Context()))
}

func TestAWriterBehindOneThatWaitsForRoomLeavesWhenItsContextEnds(t *testing.T) {
	log := newHeldLog()
	host := lifecycle.New(log, lifecycle.Options{QueueBytes: 1})
	s := newStore(host.Durability(), newTable())
	first, err := s.append(t.Context(), record{kind: kindDelete, key: "key"})
	require.NoError(t, err)
	<-log.syncing
	second, err := s.append(t.Context(), record{kind: kindDelete, key: "key"})
	require.NoError(t, err)

	s.turn <- struct{}{} // as a writer does that waits for room
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.commit(ctx, record{kind: kindDelete, key: "key"})
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, lifecycle.ErrUnknown, "nothing was written")
	<-s.turn

	log.release <- nil
	<-log.syncing
	log.release <- nil
	require.NoError(t, s.wait(t.Context(), first))
	require.NoError(t, s.wait(t.Context(), second))
	require.NoError(t, host.Exit(t.Context()))
	require.EqualValues(t, 2, host.Durability().Accepted())
}

func TestAnExpirationDeletesTheVersionItWasMeantForAndNoOther(t *testing.T) {
	dir := t.TempDir()
	s, host, _ := openStore(t, dir)
	now := time.Now()
	put := func(key, value string, expires time.Time) {
		_, err := s.commit(t.Context(), record{kind: kindPut, key: key, value: []byte(value), expires: expires.UnixNano()})
		require.NoError(t, err)
	}
	put("left alone", "old", now)
	put("overwritten", "old", now)
	put("later", "old", now.Add(time.Hour))

	_, _, found := s.get("left alone", now)
	require.False(t, found, "it is gone for readers at once")
	stale := s.expired(now, 10)
	require.Len(t, stale, 2)
	require.Len(t, s.expired(now, 1), 1)

	put("overwritten", "new", now.Add(time.Hour))
	for _, r := range stale {
		_, err := s.commit(t.Context(), r)
		require.NoError(t, err)
	}
	require.Empty(t, s.expired(now, 10))
	value, _, found := s.get("overwritten", now)
	require.True(t, found)
	require.Equal(t, "new", string(value))

	all := content(s.table)
	require.Len(t, all, 2)
	require.NotContains(t, all, "left alone")
	require.Equal(t, all, content(reopen(t, dir, host).table))
}

func TestTheFirstToExpireAreFoundFirst(t *testing.T) {
	table := newTable()
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 1000 {
		key := fmt.Sprint(random.IntN(300))
		if random.IntN(3) == 0 {
			table.apply(uint64(i), record{kind: kindDelete, key: key})
		} else {
			table.apply(uint64(i), record{kind: kindPut, key: key, expires: random.Int64N(100)})
		}
		for j, it := range table.expiry {
			require.Equal(t, j, it.index)
		}
	}
	for now := range int64(100) {
		var want, got []string
		for key, it := range content(table) {
			if it.due(now) {
				want = append(want, key)
			}
		}
		for _, it := range table.expiry.due(now, 1000) {
			got = append(got, it.key)
		}
		require.ElementsMatch(t, want, got)
	}
}

func TestAnImageSeesNoLaterWrite(t *testing.T) {
	table := newTable()
	for i := range 2000 {
		table.apply(uint64(i), record{kind: kindPut, key: fmt.Sprint(i), value: []byte("old")})
	}
	im := table.freeze()
	writing := make(chan struct{})
	go func() {
		defer close(writing)
		for i := range 3000 {
			r := record{kind: kindPut, key: fmt.Sprint(i), value: []byte("new")}
			if i%3 == 0 {
				r = record{kind: kindDelete, key: r.key}
			}
			table.apply(uint64(2000+i), r)
		}
	}()
	n := 0
	for it := range im.all {
		n++
		require.Equal(t, "old", string(it.value))
	}
	require.Equal(t, 2000, n)
	require.Equal(t, 2000, im.keys)
	<-writing
	require.Equal(t, 2000, table.keys)
}

// heldLog is a log whose Sync waits until the test gives it a result.
type heldLog struct {
	syncing chan struct{}
	release chan error
}

func newHeldLog() *heldLog {
	return &heldLog{syncing: make(chan struct{}), release: make(chan error)}
}

func (l *heldLog) Next() uint64          { return 0 }
func (l *heldLog) Append([][]byte) error { return nil }
func (l *heldLog) Close() error          { return nil }

func (l *heldLog) Sync() error {
	l.syncing <- struct{}{}
	return <-l.release
}
