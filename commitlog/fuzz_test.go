package commitlog

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

// Arbitrary bytes behind a segment's header, as they are and with the checksums made right wherever a frame
// seems to be. Whatever is accepted must be readable and, appended to a new log, come out the same; and to
// cut the input anywhere must never make more be accepted.
func FuzzRecover(f *testing.F) {
	fs := faultfs.New()
	l := mustOpen(f, testDir, small(fs))
	commit(f, l, 2, 20)
	require.NoError(f, l.Append([][]byte{nil, []byte("x")}))
	require.NoError(f, l.Close())
	data, err := fs.ReadFile(segmentPath(0))
	require.NoError(f, err)
	header := segment{base: 0, capacity: minSegmentBytes, allocated: segmentHeaderBytes}
	prefix := header.encodeHeader(l.identity)
	frames := rechain(append(prefix[:segmentHeaderBytes:segmentHeaderBytes], data[segmentHeaderBytes:segmentHeaderBytes+400]...), header.sum)[segmentHeaderBytes:]
	f.Add(frames, uint16(0), false)
	f.Add(frames, uint16(100), true)
	f.Add(frames[:150], uint16(70), false)
	f.Add([]byte{}, uint16(0), true)

	f.Fuzz(func(t *testing.T, frames []byte, cut uint16, repair bool) {
		if repair {
			frames = repaired(frames, &header)
		}
		open := func(frames []byte) (*Log, error) {
			fs := faultfs.New()
			require.NoError(t, fs.Mkdir(testDir))
			fs.WriteFile(segmentPath(0), append(prefix[:segmentHeaderBytes:segmentHeaderBytes], frames...))
			return Open(testDir, small(fs))
		}
		l, err := open(frames)
		if err != nil {
			require.True(t, isDamage(err), "%v", err)
		} else if _, txs, err := contents(l); err != nil {
			require.True(t, repair && isDamage(err), "%v", err) // records that do not add up, with the right sum
			require.NoError(t, l.Close())
		} else {
			next := l.Next()
			require.Equal(t, int(next), len(txs))
			require.NoError(t, l.Close())
			again := mustOpen(t, testDir, small(faultfs.New()))
			for _, tx := range txs {
				require.NoError(t, again.Append([][]byte{[]byte(tx)}))
			}
			require.NoError(t, again.Sync())
			require.Equal(t, len(txs), len(mustContents(t, again)))
			require.NoError(t, again.Close())
			if shorter, err := open(frames[:min(int(cut), len(frames))]); err == nil {
				require.LessOrEqual(t, shorter.Next(), next)
				require.NoError(t, shorter.Close())
			}
		}
	})
}

// repaired gives frames the sums and links that make them count.
func repaired(frames []byte, s *segment) []byte {
	frames = append([]byte(nil), frames...)
	link := s.sum
	for p := int64(0); p+frameHeaderBytes <= int64(len(frames)); {
		position := p + segmentHeaderBytes
		start := sumStart(s.seed, position)
		le := binary.LittleEndian
		h := frameHeader{
			kind: le.Uint32(frames[p:]), length: le.Uint32(frames[p+4:]), count: le.Uint32(frames[p+8:]), link: link,
			first: le.Uint64(frames[p+16:]), synced: le.Uint64(frames[p+24:]), session: le.Uint64(frames[p+32:]),
		}
		end := p + frameHeaderBytes + int64(h.length)
		if end <= int64(len(frames)) {
			h.payloadSum = crc32.Update(start, castagnoli, frames[p+frameHeaderBytes:end])
		}
		h.seal(frames[p:], start)
		if h.kind == kindData {
			link = h.sum
		}
		if end > int64(len(frames)) {
			break
		}
		p = align(end)
	}
	return frames
}

// A program of appends, syncs, truncations, reopenings and power failures, a step per byte.
func FuzzAppendRead(f *testing.F) {
	f.Add([]byte{1, 2, 3, 250, 100, 251, 9, 252, 40, 253, 7, 254, 250, 8, 255})
	f.Add([]byte("00\xff0\xff"))
	f.Fuzz(func(t *testing.T, program []byte) {
		program = program[:min(len(program), 200)]
		fs := faultfs.New()
		h := &history{}
		l := mustOpen(t, testDir, small(fs))
		for _, step := range program {
			switch step {
			case 250:
				require.NoError(t, h.sync(l))
			case 251:
				h.truncated = h.acknowledged
				require.NoError(t, l.TruncateBefore(h.truncated))
			case 252:
				require.NoError(t, l.Close())
				h.acknowledged = uint64(len(h.txs))
				fs.PowerFail(faultfs.KeepNone)
				l = mustOpen(t, testDir, small(fs))
			case 253, 254, 255:
				fs.PowerFail([]func() bool{faultfs.KeepNone, faultfs.KeepAll, faultfs.KeepRandom(uint64(len(h.txs)))}[step-253])
				l = mustOpen(t, testDir, small(fs))
			default:
				require.NoError(t, h.append(l, int(step)*20))
				continue
			}
			if step >= 252 {
				require.NoError(t, h.verify(l))
			}
		}
		require.NoError(t, l.Close())
	})
}
