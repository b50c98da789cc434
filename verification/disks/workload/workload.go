// Package workload is what the suites of package disks put a log under, and how they
// judge what is left of it: transactions whose whole content follows from a name, so
// that a lost, altered, doubled, reordered or invented one is recognised; committers
// that write them to a host; the messages by which a process tells of its
// acknowledgements; and a judge.
package workload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// ID names a transaction: the Serial-th, from 0, that a committer appended in a life
// of the log, which is from its opening to its end.
type ID struct{ Life, Committer, Serial uint32 }

func (id ID) String() string {
	return fmt.Sprintf("life %d, committer %d, serial %d", id.Life, id.Committer, id.Serial)
}

const idBytes = 12

// Shape decides what the transactions look like.
type Shape struct {
	Seed  uint64
	Small int // most transactions have up to so many bytes
	Large int // and one in 32 up to so many
}

// Tx returns the content of a transaction: its name, and bytes that follow from it.
func (s Shape) Tx(id ID) []byte {
	rng := rand.NewPCG(s.Seed, uint64(id.Life)<<40^uint64(id.Committer)<<32^uint64(id.Serial))
	limit := s.Small
	if rng.Uint64()%32 == 0 {
		limit = s.Large
	}
	n := idBytes + int(rng.Uint64()%uint64(limit+1))
	tx := make([]byte, 0, n+8)
	tx = binary.LittleEndian.AppendUint32(tx, id.Life)
	tx = binary.LittleEndian.AppendUint32(tx, id.Committer)
	tx = binary.LittleEndian.AppendUint32(tx, id.Serial)
	for len(tx) < n {
		tx = binary.LittleEndian.AppendUint64(tx, rng.Uint64())
	}
	return tx[:n]
}

// Parse returns the name of a transaction, and an error if it is not, to the last
// byte, one that Tx makes.
func (s Shape) Parse(tx []byte) (ID, error) {
	if len(tx) < idBytes {
		return ID{}, fmt.Errorf("%d bytes are too few", len(tx))
	}
	id := ID{
		Life:      binary.LittleEndian.Uint32(tx),
		Committer: binary.LittleEndian.Uint32(tx[4:]),
		Serial:    binary.LittleEndian.Uint32(tx[8:]),
	}
	if !bytes.Equal(tx, s.Tx(id)) {
		return id, fmt.Errorf("it is named %v, but its content is another", id)
	}
	return id, nil
}
