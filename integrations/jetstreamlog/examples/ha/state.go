//go:build unix

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/seed080d9131/lifecycle"
)

// store is the state machine of the kvserver example, without what that one has for
// expiry and snapshots: a table of keys that is what the durable part of the log replays
// to. A writer appends its record and queues it in the log's order under one lock; whoever
// looks at the table first applies what has become durable.
type store struct {
	durability *lifecycle.Durability

	mu      sync.Mutex // guards what follows
	table   *table
	pending []pendingRecord

	turn chan struct{} // held across Append, which may wait for room; not mu
}

type pendingRecord struct {
	offset uint64
	record record
}

func newStore(durability *lifecycle.Durability, t *table) *store {
	return &store{durability: durability, table: t, turn: make(chan struct{}, 1)}
}

// commit writes one record. Without an error it is durable and visible. An error that is
// lifecycle.ErrUnknown came after it was accepted, at the offset returned; after any other
// nothing was written.
func (s *store) commit(ctx context.Context, r record) (uint64, error) {
	p, err := s.append(ctx, r)
	if err != nil {
		return 0, err
	}
	return p.Offset(), p.Wait(ctx)
}

func (s *store) append(ctx context.Context, r record) (lifecycle.Pending, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return lifecycle.Pending{}, ctx.Err()
	}
	defer func() { <-s.turn }()
	p, err := s.durability.Append(ctx, r.encode())
	if err == nil {
		s.mu.Lock()
		s.pending = append(s.pending, pendingRecord{p.Offset(), r})
		s.mu.Unlock()
	}
	return p, err
}

// get returns what a key holds, and the offset that wrote it.
func (s *store) get(key string) (item, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	durable := s.durability.Durable()
	for len(s.pending) > 0 && s.pending[0].offset < durable {
		s.table.apply(s.pending[0].offset, s.pending[0].record)
		s.pending = s.pending[1:]
	}
	it, found := s.table.items[key]
	return it, found
}

// table is the state. The same records make the same table.
type table struct {
	next  uint64 // offset of the record to apply next
	items map[string]item
}

type item struct {
	value   string
	version uint64 // offset of the record that wrote it
}

func newTable(first uint64) *table { return &table{next: first, items: map[string]item{}} }

func (t *table) apply(offset uint64, r record) {
	t.next = offset + 1
	switch r.kind {
	case kindPut:
		t.items[r.key] = item{r.value, offset}
	case kindDelete:
		delete(t.items, r.key)
	}
}

// replay applies one entry of the log.
func (t *table) replay(offset uint64, tx []byte) error {
	if offset != t.next {
		return fmt.Errorf("offset %d follows %d", offset, t.next)
	}
	r, err := decodeRecord(tx)
	if err != nil {
		return fmt.Errorf("offset %d: %w", offset, err)
	}
	t.apply(offset, r)
	return nil
}

// record is one transaction. Its bytes: the kind, the length of the key as two bytes,
// little-endian, the key, the value.
type record struct {
	kind       byte
	key, value string
}

const (
	kindPut    = 1
	kindDelete = 2
	kindLead   = 3 // changes nothing: the fence of whoever takes over, whose name is the key
)

func (r record) encode() []byte {
	b := append(make([]byte, 0, 3+len(r.key)+len(r.value)), r.kind)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.key)))
	return append(append(b, r.key...), r.value...)
}

func decodeRecord(b []byte) (record, error) {
	if len(b) < 3 || len(b)-3 < int(binary.LittleEndian.Uint16(b[1:])) {
		return record{}, fmt.Errorf("a record of %d bytes", len(b))
	}
	if b[0] < kindPut || b[0] > kindLead {
		return record{}, errors.New("a record of an unknown kind")
	}
	rest := string(b[3:])
	length := binary.LittleEndian.Uint16(b[1:])
	return record{b[0], rest[:length], rest[length:]}, nil
}
