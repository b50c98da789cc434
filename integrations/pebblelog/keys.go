package pebblelog

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// header is the value of the header's key.
var header = []byte("pebblelog\x01")

// keyspace is the keys of one log.
type keyspace struct {
	prefix              string
	header, first, next []byte
	txPrefix            []byte
	end                 []byte // one past the log's keys; nil: to the end of the engine's
}

func newKeyspace(prefix string) keyspace {
	key := func(tag byte) []byte { return append([]byte(prefix), tag) }
	return keyspace{prefix: prefix, header: key(0), first: key(1), next: key(2), txPrefix: key(3), end: after([]byte(prefix))}
}

// after is the smallest key that is larger than all with a prefix; nil: there is
// none.
func after(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			end := slices.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}

// tx is the key of a transaction.
func (k keyspace) tx(offset uint64) []byte {
	key := make([]byte, len(k.txPrefix)+8)
	k.putTx(key, offset)
	return key
}

func (k keyspace) putTx(key []byte, offset uint64) {
	n := copy(key, k.txPrefix)
	binary.BigEndian.PutUint64(key[n:], offset)
}

// offset is what a transaction's key says.
func (k keyspace) offset(key []byte) (offset uint64, ok bool) {
	rest, ok := bytes.CutPrefix(key, k.txPrefix)
	if !ok || len(rest) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(rest), true
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
