package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A frame is the unit of writing and of checking: a header and then the records of one batch. Marks
// are frames without records. The layout is in the package documentation.
const (
	frameHeaderBytes = 48
	frameAlign       = 8
	recordHeader     = 4

	kindData = 0x31464c43 // "CLF1": a batch of records
	kindEnd  = 0x31454c43 // "CLE1": the log was closed here, and all before it is synced
	kindNext = 0x314e4c43 // "CLN1": the log goes on in the next segment
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type frameHeader struct {
	kind       uint32
	length     uint32 // of the records with their lengths, without padding
	count      uint32
	link       uint32 // sum of the data frame before, or of the segment header
	first      uint64
	synced     uint64 // every offset below it had been synced when the frame was written
	session    uint64 // drawn by the Open under which the frame was written
	payloadSum uint32
	sum        uint32 // of the 44 bytes before it
}

// end returns the position behind the frame's last byte, given that of its first.
func (h *frameHeader) end(position int64) int64 {
	return position + frameHeaderBytes + int64(h.length)
}

// seal writes the header to dst, and sets sum.
func (h *frameHeader) seal(dst []byte, start uint32) {
	dst = dst[:frameHeaderBytes]
	le := binary.LittleEndian
	le.PutUint32(dst[0:], h.kind)
	le.PutUint32(dst[4:], h.length)
	le.PutUint32(dst[8:], h.count)
	le.PutUint32(dst[12:], h.link)
	le.PutUint64(dst[16:], h.first)
	le.PutUint64(dst[24:], h.synced)
	le.PutUint64(dst[32:], h.session)
	le.PutUint32(dst[40:], h.payloadSum)
	h.sum = crc32.Update(start, castagnoli, dst[:44])
	le.PutUint32(dst[44:], h.sum)
}

// open reads the header from src, which has at least frameHeaderBytes, and reports whether its kind is
// known and its sum right. The fields mean nothing otherwise.
func (h *frameHeader) open(src []byte, start uint32) bool {
	src = src[:frameHeaderBytes]
	le := binary.LittleEndian
	h.kind = le.Uint32(src[0:])
	if !isKind(h.kind) {
		return false
	}
	h.sum = le.Uint32(src[44:])
	if crc32.Update(start, castagnoli, src[:44]) != h.sum {
		return false
	}
	h.length = le.Uint32(src[4:])
	h.count = le.Uint32(src[8:])
	h.link = le.Uint32(src[12:])
	h.first = le.Uint64(src[16:])
	h.synced = le.Uint64(src[24:])
	h.session = le.Uint64(src[32:])
	h.payloadSum = le.Uint32(src[40:])
	return true
}

func isKind(k uint32) bool { return k == kindData || k == kindEnd || k == kindNext }

// sumStart is what both sums of a frame start from. The seed stands for the log's identity and the
// segment's base. The position enters by exclusive or, so that the same bytes at two positions of a
// segment have different sums for certain (up to 32 GiB), and not just very likely.
func sumStart(seed uint32, position int64) uint32 {
	return seed ^ uint32(position/frameAlign)
}

func align(position int64) int64 {
	return (position + frameAlign - 1) &^ (frameAlign - 1)
}

var errMalformed = errors.New("malformed batch")

// recordChecker goes over the records of a batch piece by piece and makes sure that they are as many as
// was said, and that nothing else is there.
type recordChecker struct {
	count   int // given
	seen    int
	skip    int     // bytes of the last record that are still to come
	partial [4]byte // of a length that is cut by the end of a piece
	have    int     // how much of it
}

// check takes the next piece of a batch; after is how many bytes follow it.
func (c *recordChecker) check(piece []byte, after int) error {
	for len(piece) > 0 {
		if c.skip >= len(piece) {
			c.skip -= len(piece)
			break
		}
		piece = piece[c.skip:]
		c.skip = 0
		var size uint32
		if c.have == 0 && len(piece) >= recordHeader {
			size = binary.LittleEndian.Uint32(piece)
			piece = piece[recordHeader:]
		} else {
			n := copy(c.partial[c.have:], piece)
			c.have += n
			piece = piece[n:]
			if c.have < recordHeader {
				break
			}
			size, c.have = binary.LittleEndian.Uint32(c.partial[:]), 0
		}
		c.seen++
		if size > MaxTransactionBytes {
			return fmt.Errorf("record %d of %d has %d bytes: %w", c.seen, c.count, size, ErrTooLarge)
		}
		if c.skip = int(size); c.skip > len(piece)+after {
			return fmt.Errorf("%w: record %d has %d bytes, but %d follow", errMalformed, c.seen, size, len(piece)+after)
		}
	}
	if after == 0 && (c.seen != c.count || c.have > 0) {
		return fmt.Errorf("%w: %d records, where %d were said to be", errMalformed, c.seen, c.count)
	}
	return nil
}
