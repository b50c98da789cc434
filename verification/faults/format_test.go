package faults

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

// What follows reads segments by what commitlog's documentation says of their format, and shares nothing with
// its code: it tells the suites where a frame stands and what it proves.

const (
	segmentHeader = 4096
	frameHeader   = 48
)

// frame is a frame as it stands in a file.
type frame struct {
	kind     string
	position int64
	end      int64 // of the records
	first    uint64
	count    uint32
	synced   uint64
	link     uint32
	sum      uint32
	txs      []string
}

// frames returns the chain of frames in a segment, up to a mark or to where no frame continues it.
func frames(file []byte) (base uint64, chain []frame, err error) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	le := binary.LittleEndian
	if len(file) < segmentHeader || string(file[:8]) != "LCLOGSEG" || le.Uint32(file[8:]) != 1 || le.Uint32(file[12:]) != segmentHeader {
		return 0, nil, fmt.Errorf("no segment header")
	}
	link := le.Uint32(file[4092:])
	if crc32.Checksum(file[:4092], castagnoli) != link {
		return 0, nil, fmt.Errorf("the segment header's sum is wrong")
	}
	base = le.Uint64(file[32:])
	seed := crc32.Checksum(file[16:40], castagnoli)
	next := base
	for p := int64(segmentHeader); p+frameHeader <= int64(len(file)); {
		h := file[p : p+frameHeader]
		f := frame{
			kind: string(h[:4]), position: p, end: p + frameHeader + int64(le.Uint32(h[4:])),
			count: le.Uint32(h[8:]), link: le.Uint32(h[12:]), first: le.Uint64(h[16:]), synced: le.Uint64(h[24:]), sum: le.Uint32(h[44:]),
		}
		start := seed ^ uint32(p/8)
		if crc32.Update(start, castagnoli, h[:44]) != f.sum || f.link != link || f.first != next || f.end > int64(len(file)) {
			break
		}
		if f.kind == "CLE1" || f.kind == "CLN1" {
			chain = append(chain, f)
			break
		}
		records := file[p+frameHeader : f.end]
		if f.kind != "CLF1" || crc32.Update(start, castagnoli, records) != le.Uint32(h[40:]) {
			break
		}
		for len(records) >= 4 {
			n := le.Uint32(records)
			f.txs = append(f.txs, string(records[4:4+n]))
			records = records[4+n:]
		}
		if len(records) != 0 || len(f.txs) != int(f.count) {
			return base, chain, fmt.Errorf("the records of the frame at %d do not add up", p)
		}
		chain = append(chain, f)
		link, next = f.sum, next+uint64(f.count)
		p = (f.end + 7) &^ 7
	}
	return base, chain, nil
}

// What the documentation says of the format is enough to read a log.
func TestTheFormatIsAsDocumented(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		fs, h := faultfs.New(), &history{}
		require.NoError(t, h.life(fs))
		synctest.Wait()
		var first uint64
		var got []string
		marks := ""
		for i, path := range segmentPaths(fs) {
			file, err := fs.ReadFile(path)
			require.NoError(t, err)
			base, chain, err := frames(file)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("%s/%020d.log", dir, base), path)
			if i == 0 {
				first = base
			}
			require.EqualValues(t, first+uint64(len(got)), base)
			for _, f := range chain {
				got = append(got, f.txs...)
				if f.count == 0 {
					marks += f.kind
					require.Equal(t, f.first, f.synced)
				}
			}
		}
		require.Equal(t, h.txs[first:], got)
		require.True(t, strings.HasSuffix(marks, "CLE1"), marks)
		t.Logf("counts: transactions %d, marks %s", len(got), marks)
	})
}

// segmentPaths is the segments' files, in order.
func segmentPaths(fs *faultfs.FS) (paths []string) {
	for _, path := range fs.Names() {
		if strings.HasSuffix(path, ".log") {
			paths = append(paths, path)
		}
	}
	return paths
}
