package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

func putAll(t *testing.T, s *store, from, to int) {
	t.Helper()
	var last lifecycle.Pending
	for i := from; i < to; i++ {
		var err error
		last, err = s.append(t.Context(), record{kind: kindPut, key: fmt.Sprint("key ", i%50), value: fmt.Appendf(nil, "%0100d", i), expires: int64(i % 3)})
		require.NoError(t, err)
	}
	require.NoError(t, s.wait(t.Context(), last))
}

// snapshots returns a snapshotter as start makes one.
func snapshots(dir string, s *store, state opened) *snapshotter {
	return &snapshotter{dir: snapshotDir(dir), store: s, truncate: state.log.TruncateBefore, last: state.snapshot}
}

func TestASnapshotAndTheLogBehindItAreTheState(t *testing.T) {
	dir := t.TempDir()
	s, host, state := openStore(t, dir)
	keeper := snapshots(dir, s, state)
	for round := range 3 {
		putAll(t, s, 500*round, 500*round+400)
		require.NoError(t, keeper.take(t.Context()))
		putAll(t, s, 500*round+400, 500*round+500)
		require.Greater(t, state.log.First(), uint64(0), "the log was truncated")
		offsets, err := listSnapshots(snapshotDir(dir))
		require.NoError(t, err)
		require.Equal(t, []uint64{uint64(500*round + 400)}, offsets, "one is kept")

		want := content(s.table)
		require.NoError(t, host.Exit(t.Context()))
		s, host, state = openStore(t, dir)
		keeper = snapshots(dir, s, state)
		require.Equal(t, want, content(s.table))
		require.EqualValues(t, 500*round+500, s.table.next)
	}
}

func TestASnapshotIsNotTakenTwice(t *testing.T) {
	dir := t.TempDir()
	s, _, state := openStore(t, dir)
	keeper := snapshots(dir, s, state)
	require.NoError(t, keeper.take(t.Context()))
	require.Empty(t, files(t, snapshotDir(dir)), "there is nothing to write down")
	putAll(t, s, 0, 10)
	require.NoError(t, keeper.take(t.Context()))
	path := snapshotPath(snapshotDir(dir), 10)
	before, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, keeper.take(t.Context()))
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
}

func TestTheLogIsGivenUpToTheSnapshotAndNoFurther(t *testing.T) {
	dir := t.TempDir()
	s, _, state := openStore(t, dir)
	keeper := snapshots(dir, s, state)
	putAll(t, s, 0, 500)
	var given []uint64
	keeper.truncate = func(before uint64) error {
		require.FileExists(t, snapshotPath(snapshotDir(dir), before))
		given = append(given, before)
		return nil
	}
	require.NoError(t, keeper.take(t.Context()))
	require.Equal(t, []uint64{500}, given)
}

func TestASnapshotThatIsCancelledLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s, _, state := openStore(t, dir)
	putAll(t, s, 0, 10)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(lifecycle.ErrExiting)
	require.ErrorIs(t, snapshots(dir, s, state).take(ctx), lifecycle.ErrExiting)
	require.Empty(t, files(t, snapshotDir(dir)))
}

func TestWhatAnInterruptedSnapshotLeftIsRemoved(t *testing.T) {
	dir := t.TempDir()
	_, host, _ := openStore(t, dir)
	left := filepath.Join(snapshotDir(dir), "123"+temporarySuffix)
	require.NoError(t, os.WriteFile(left, []byte("half"), 0o600))
	reopen(t, dir, host)
	require.NoFileExists(t, left)
}

func TestEveryBitOfASnapshotIsChecked(t *testing.T) {
	table := newTable()
	for i := range 5 {
		table.apply(uint64(i), record{kind: kindPut, key: fmt.Sprint(i), value: []byte("value")})
	}
	dir := t.TempDir()
	require.NoError(t, writeSnapshot(t.Context(), dir, table.freeze()))
	path := snapshotPath(dir, 5)
	back, err := readSnapshot(path, 5)
	require.NoError(t, err)
	require.Equal(t, content(table), content(back))

	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	check := func(b []byte, what string, at int) {
		require.NoError(t, os.WriteFile(path, b, 0o600))
		_, err := readSnapshot(path, 5)
		require.ErrorContains(t, err, "is damaged", "%s %d", what, at)
	}
	for i := range whole {
		b := append([]byte{}, whole...)
		b[i] ^= 1 << (i % 8)
		check(b, "flipped", i)
		check(whole[:i], "cut at", i)
	}
	check(append(whole, 0), "longer by", 1)
	require.NoError(t, os.WriteFile(path, whole, 0o600))
	_, err = readSnapshot(path, 6)
	require.ErrorContains(t, err, "taken at offset 5", "a file under another's name")
}

func TestADirectoryThatCantBeRebuiltSaysWhatToDo(t *testing.T) {
	damage := func(t *testing.T, dir string) string {
		offsets, err := listSnapshots(snapshotDir(dir))
		require.NoError(t, err)
		path := snapshotPath(snapshotDir(dir), offsets[len(offsets)-1])
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		b[len(b)/2] ^= 1
		require.NoError(t, os.WriteFile(path, b, 0o600))
		return path
	}
	for name, c := range map[string]struct {
		writes int
		spoil  func(t *testing.T, dir string)
		says   string
	}{
		"a damaged snapshot, the log whole":     {10, func(t *testing.T, dir string) { damage(t, dir) }, "the log still holds everything from its beginning: move"},
		"a damaged snapshot, the log truncated": {500, func(t *testing.T, dir string) { damage(t, dir) }, "is in this file only: restore it from a copy"},
		"no snapshot, the log truncated": {500, func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(snapshotDir(dir)))
		}, "what lies between is missing"},
		"a snapshot, and another log": {500, func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(logDir(dir)))
		}, "taken at offset 500, but the log goes only to 0"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, host, state := openStore(t, dir)
			putAll(t, s, 0, c.writes)
			require.NoError(t, snapshots(dir, s, state).take(t.Context()))
			require.Equal(t, c.writes > 10, state.log.First() > 0)
			require.NoError(t, host.Exit(t.Context()))
			c.spoil(t, dir)
			for range 2 { // so the error leaves the directory unlocked, too
				_, err := openState(dir, 0)
				require.ErrorContains(t, err, c.says)
			}
		})
	}

	t.Run("a damaged snapshot, the one before it there", func(t *testing.T) {
		dir := t.TempDir()
		s, host, state := openStore(t, dir)
		putAll(t, s, 0, 500)
		require.NoError(t, snapshots(dir, s, state).take(t.Context()))
		putAll(t, s, 500, 510)
		require.NoError(t, writeSnapshot(t.Context(), snapshotDir(dir), s.freeze())) // as if the power failed then
		want := content(s.table)
		require.NoError(t, host.Exit(t.Context()))
		path := damage(t, dir)
		_, err := openState(dir, 0)
		require.ErrorContains(t, err, "the snapshot before it, at offset 500, and the log hold everything: move "+path+" away")

		require.NoError(t, os.Remove(path)) // what it says works
		s, _, _ = openStore(t, dir)
		require.Equal(t, want, content(s.table))
	})
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}
