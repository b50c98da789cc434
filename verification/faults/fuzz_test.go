package faults

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

// A valid log, made by a program of the fuzzer's, whose files are then damaged by edits of the fuzzer's. (In commitlog,
// FuzzRecover opens arbitrary frames, and FuzzAppendRead runs programs without damage.)
//
// The property. Let want be the transactions that were in the log, A of them acknowledged, when it stopped: closed,
// killed, or without power. Then Open either fails with a *DamageError, having changed nothing, or shows a log
//
//   - that begins where it began, and whose transactions are the beginning of want: none is invented, changed, moved
//     or twice;
//   - that is shorter than A only if no frame header that the edits left alone in the last segment was written after
//     a sync of the first transaction missing: with its proofs gone, a transaction can't be missed;
//   - that, appended to, synced, closed and opened again, has all that it showed and what was appended.
//
// Without edits there is no damage, and all of A is there.
func FuzzRecoverDamaged(f *testing.F) {
	f.Add([]byte{10, 240, 60, 241, 200, 240, 200, 241, 30}, uint8(0), []byte{0, 0, 16, 200, 1})
	f.Add([]byte{100, 240, 100, 240, 100, 240, 244, 90, 240, 242, 20, 240}, uint8(1), []byte{1, 1, 20, 0, 3, 2, 0, 17, 1, 1})
	f.Add([]byte{239, 239, 240, 239, 239, 240, 239, 244, 5, 243, 70, 240}, uint8(2), []byte{3, 0, 18, 3, 9, 4, 1, 0, 0, 0})
	f.Add([]byte{50, 240, 245, 60, 240, 245, 70, 240, 246, 80, 240}, uint8(0), []byte{5, 0, 0, 7, 200})
	f.Add([]byte{239, 240, 239, 240, 239, 240, 239, 240}, uint8(3), []byte{0, 2, 31, 255, 128, 4, 0, 1, 0, 0})
	f.Add([]byte{50, 240, 50, 249, 50, 240, 50, 240}, uint8(0), []byte{8, 0, 20, 0, 0})
	f.Fuzz(func(t *testing.T, program []byte, ending uint8, edits []byte) {
		synctest.Test(t, func(t *testing.T) {
			fs, h, closed := runProgram(t, program[:min(len(program), 120)], ending)
			before := map[string][]byte{}
			for _, path := range segmentPaths(fs) {
				before[path], _ = fs.ReadFile(path)
			}
			files := edit(maps.Clone(before), closed, edits[:min(len(edits), 200)])
			edited := len(before) != len(files)
			for path := range files {
				edited = edited || !slices.Equal(files[path], before[path])
			}
			for path, data := range files {
				if edited {
					fs.WriteFile(path, data)
				}
			}

			l, err := commitlog.Open(dir, options(fs))
			if err != nil {
				require.True(t, edited && isDamage(err), "edited: %v: %v", edited, err)
				for path, data := range files {
					now, err := fs.ReadFile(path)
					require.NoError(t, err)
					require.Equal(t, data, now, "Open refused and changed %s", path)
				}
				return
			}
			first, txs, err := contents(l)
			require.NoError(t, err)
			var base uint64
			if len(before) > 0 {
				paths := slices.Sorted(maps.Keys(before))
				base, _, err = frames(before[paths[0]])
				require.NoError(t, err)
			}
			require.Equal(t, base, first)
			require.LessOrEqual(t, l.Next(), uint64(len(h.txs)), "invented")
			require.True(t, slices.Equal(h.txs[first:l.Next()], txs), "not what was appended: %.60q", txs)
			if l.Next() < h.acknowledged {
				require.True(t, edited)
				require.False(t, proofLeft(before, files, l.Next()), "silently %d transactions, acknowledged are %d", l.Next(), h.acknowledged)
			}

			h = &history{txs: h.txs[:l.Next():l.Next()], acknowledged: l.Next(), truncated: first, count: h.count + 1000}
			require.NoError(t, h.append(l, 100, 0))
			require.NoError(t, h.sync(l))
			require.NoError(t, h.close(l))
			fs.PowerFail(faultfs.KeepNone)
			l, err = reopen(fs, h)
			require.NoError(t, err)
			require.NoError(t, l.Close())
		})
	})
}

// runProgram makes a log, a step per byte: below 240 an append, else what it says. The ending is a close, a killed
// process, or a power failure that keeps nothing or some. It also returns the files as they were at the last close
// before the end.
func runProgram(t *testing.T, program []byte, ending uint8) (_ *faultfs.FS, _ *history, closed map[string][]byte) {
	fs, h := faultfs.New(), &history{}
	closed = map[string][]byte{}
	l, err := reopen(fs, h)
	require.NoError(t, err)
	again := func() {
		l, err = reopen(fs, h)
		require.NoError(t, err)
	}
	for _, step := range program {
		switch {
		case step < 240:
			require.NoError(t, h.append(l, int(step)*12, int(step)%5*int(step)))
		case step < 244:
			require.NoError(t, h.sync(l))
		case step < 248:
			require.NoError(t, h.truncate(l, h.acknowledged))
		case step < 252:
			require.NoError(t, h.close(l))
			clear(closed)
			for _, path := range segmentPaths(fs) {
				closed[path], _ = fs.ReadFile(path)
			}
			again()
		case step < 254:
			fs.Restart()
			again()
		default:
			fs.PowerFail(faultfs.KeepRandom(uint64(len(h.txs))))
			again()
		}
	}
	switch ending % 4 {
	case 0:
		require.NoError(t, h.close(l))
		fs.Restart()
	case 1:
		fs.Restart()
	case 2:
		fs.PowerFail(faultfs.KeepNone)
	case 3:
		fs.PowerFail(faultfs.KeepRandom(uint64(ending)))
	}
	return fs, h, closed
}

// edit damages files, five bytes an edit: what, which file, a position in units of 256 bytes, more of it, and a value.
// None takes a file away: that the oldest are gone looks like a truncation.
func edit(files, closed map[string][]byte, edits []byte) map[string][]byte {
	paths := slices.Sorted(maps.Keys(files))
	for ; len(edits) >= 5 && len(paths) > 0; edits = edits[5:] {
		path := paths[int(edits[1])%len(paths)]
		data := slices.Clone(files[path])
		at := min(int(edits[2])<<8+int(edits[3]), max(len(data)-1, 0))
		value := edits[4]
		switch edits[0] % 9 {
		case 0: // flip
			if len(data) > 0 {
				data[at] ^= value
			}
		case 1: // cut
			data = data[:at]
		case 2: // a sector of zeros
			lo := at / faultfs.SectorBytes * faultfs.SectorBytes
			clear(data[lo:min(lo+faultfs.SectorBytes, len(data))])
		case 3: // a block twice
			if len(data) > 0 {
				to := min(int(value)<<5, len(data)-1)
				copy(data[to:], slices.Clone(data[at:min(at+2*faultfs.SectorBytes, len(data))]))
			}
		case 4: // two files swapped
			other := paths[int(value)%len(paths)]
			files[path], files[other] = files[other], files[path]
			continue
		case 5: // garbage behind it
			for i := range int(value) {
				data = append(data, byte(i*7)^value)
			}
		case 6: // the same place of another file
			other := files[paths[int(value)%len(paths)]]
			if at < len(other) && at < len(data) {
				copy(data[at:], other[at:min(at+faultfs.SectorBytes, len(other))])
			}
		case 7: // some bytes of a value
			for i := at; i < min(at+40, len(data)); i++ {
				data[i] = value
			}
		case 8: // sectors whose last writes the disk lost
			old := closed[path]
			lo := at / faultfs.SectorBytes * faultfs.SectorBytes
			if hi := min(lo+(1+int(value)%3)*faultfs.SectorBytes, len(old), len(data)); lo < hi {
				copy(data[lo:hi], old[lo:])
			}
		}
		files[path] = data
	}
	return files
}
