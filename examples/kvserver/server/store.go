package server

import (
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"sync"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// The limits of a key, in bytes, and of -max-value. A record of both is far below
// what the log takes.
const (
	maxKeyBytes   = 512
	maxValueBytes = 32 << 20
)

// store is the key-value state of the server. It is exactly what the durable part
// of the log replays to, at every moment at which somebody looks:
//
//  1. A writer takes the turn, appends its record, puts it at the end of pending,
//     and gives the turn back. So pending is in the order of the offsets, without
//     gaps, whoever wrote.
//  2. The writer waits until its record is durable.
//  3. Whoever looks at the table, that writer among them, first applies what has
//     become durable, in order, under mu.
//
// So two writes to one key end as their offsets say, live as in a replay. No read
// ever shows what a crash could take back. And a write is visible before it is
// acknowledged.
type store struct {
	durability *lifecycle.Durability

	// turn holds one token, for the writer that appends. It is a channel, since
	// Append may wait for room in the queue: those behind can leave when their
	// context ends.
	turn chan struct{}

	mu      sync.Mutex // guards what follows; held for maps and slices only, never for a wait
	table   *table
	pending []pendingRecord // accepted and not yet applied
}

type pendingRecord struct {
	offset uint64
	record record
}

func newStore(durability *lifecycle.Durability, t *table) *store {
	return &store{durability: durability, turn: make(chan struct{}, 1), table: t}
}

// commit writes one record. Without an error it is durable, and visible. An error
// that is lifecycle.ErrUnknown came after it was accepted, at the offset returned;
// after any other nothing was written.
func (s *store) commit(ctx context.Context, r record) (uint64, error) {
	p, err := s.append(ctx, r)
	if err != nil {
		return 0, err
	}
	return p.Offset(), s.wait(ctx, p)
}

// append is the first step: the record is accepted when it returns nil.
func (s *store) append(ctx context.Context, r record) (lifecycle.Pending, error) {
	tx := r.encode()
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return lifecycle.Pending{}, ctx.Err()
	}
	defer func() { <-s.turn }()
	p, err := s.durability.Append(ctx, tx)
	if err != nil {
		return lifecycle.Pending{}, err
	}
	s.mu.Lock()
	s.pending = append(s.pending, pendingRecord{p.Offset(), r})
	s.mu.Unlock()
	return p, nil
}

// wait is the second and third step.
func (s *store) wait(ctx context.Context, p lifecycle.Pending) error {
	if err := p.Wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.applyDurable()
	s.mu.Unlock()
	return nil
}

// applyDurable is called with mu held.
func (s *store) applyDurable() {
	durable := s.durability.Durable()
	n := 0
	for n < len(s.pending) && s.pending[n].offset < durable {
		s.table.apply(s.pending[n].offset, s.pending[n].record)
		n++
	}
	clear(s.pending[:n]) // so that the values can be collected
	if s.pending = s.pending[n:]; len(s.pending) == 0 {
		s.pending = nil
	}
}

// get returns what the key holds. A value whose time has passed is gone for
// readers, even while the cleanup has yet to delete it.
func (s *store) get(key string, now time.Time) (value []byte, version uint64, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyDurable()
	it := s.table.get(key)
	if it == nil || it.due(now.UnixNano()) {
		return nil, 0, false
	}
	return it.value, it.version, true
}

// expired returns the records that delete what has expired, at most so many. They
// name the version they are meant for: if a key is written meanwhile, they do
// nothing.
func (s *store) expired(now time.Time, most int) []record {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyDurable()
	var records []record
	for _, it := range s.table.expiry.due(now.UnixNano(), most) {
		records = append(records, record{kind: kindExpire, key: it.key, version: it.version})
	}
	return records
}

// freeze returns an image of the state as it is now. It costs the same however
// much the state holds; see table.shard.
func (s *store) freeze() image {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyDurable()
	return s.table.freeze()
}

// size returns how many keys there are, and their bytes with those of the values.
func (s *store) size() (keys int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applyDurable()
	return s.table.keys, s.table.bytes
}

// table is the state machine. It knows no clock and no chance: the same records
// make the same table.
type table struct {
	next   uint64 // offset of the record to apply next
	keys   int
	bytes  int64 // of keys and values
	seed   maphash.Seed
	shards [shardCount]shard
	expiry expiryQueue
}

const shardCount = 256

// shard is a part of the keys. When an image of the table is taken, the shard is
// frozen: its map is the image's from then on, and the first write after that
// goes on with a copy. So taking an image stops writers for one shard's copy at a
// time, and never for that of the whole table.
type shard struct {
	items  map[string]*item
	frozen bool
}

// item is what a key holds. Only index ever changes, and only the table looks at
// it, so images share the items.
type item struct {
	key     string
	value   []byte
	version uint64 // offset of the record that wrote it
	expires int64  // Unix nanoseconds; 0: never
	index   int    // in the expiry queue; -1: not there
}

func (it *item) due(now int64) bool { return it.expires != 0 && it.expires <= now }

func newTable() *table { return &table{seed: maphash.MakeSeed()} }

func (t *table) shard(key string) *shard {
	return &t.shards[maphash.String(t.seed, key)%shardCount]
}

func (t *table) get(key string) *item { return t.shard(key).items[key] }

// apply carries out the record at an offset. It keeps the record's value.
func (t *table) apply(offset uint64, r record) {
	t.next = offset + 1
	switch old := t.get(r.key); {
	case r.kind == kindPut:
		t.put(&item{key: r.key, value: r.value, version: offset, expires: r.expires})
	case r.kind == kindDelete && old != nil:
		t.remove(old)
	case r.kind == kindExpire && old != nil && old.version == r.version:
		t.remove(old)
	}
}

func (t *table) put(it *item) {
	sh := t.writable(it.key)
	if old := sh.items[it.key]; old != nil {
		t.unlink(old)
	}
	sh.items[it.key] = it
	t.keys++
	t.bytes += int64(len(it.key) + len(it.value))
	it.index = -1
	if it.expires != 0 {
		heap.Push(&t.expiry, it)
	}
}

func (t *table) remove(it *item) {
	delete(t.writable(it.key).items, it.key)
	t.unlink(it)
}

// unlink takes an item out of the sums and the expiry queue.
func (t *table) unlink(it *item) {
	t.keys--
	t.bytes -= int64(len(it.key) + len(it.value))
	if it.index >= 0 {
		heap.Remove(&t.expiry, it.index)
	}
}

// writable returns the key's shard, with a map that no image has.
func (t *table) writable(key string) *shard {
	sh := t.shard(key)
	switch {
	case sh.items == nil:
		sh.items = map[string]*item{}
	case sh.frozen:
		sh.items = maps.Clone(sh.items)
	}
	sh.frozen = false
	return sh
}

// image is a table as it was before the record at next. Nothing in it changes.
type image struct {
	next   uint64
	keys   int
	shards [shardCount]map[string]*item
}

func (t *table) freeze() image {
	im := image{next: t.next, keys: t.keys}
	for i := range t.shards {
		im.shards[i] = t.shards[i].items
		t.shards[i].frozen = true
	}
	return im
}

// all yields every item.
func (im *image) all(yield func(*item) bool) {
	for _, items := range im.shards {
		for _, it := range items {
			if !yield(it) {
				return
			}
		}
	}
}

// expiryQueue is a heap of the items that expire, the first to do so on top.
type expiryQueue []*item

func (q expiryQueue) Len() int           { return len(q) }
func (q expiryQueue) Less(i, j int) bool { return q[i].expires < q[j].expires }
func (q expiryQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *expiryQueue) Push(x any) {
	it := x.(*item)
	it.index = len(*q)
	*q = append(*q, it)
}

func (q *expiryQueue) Pop() any {
	last := len(*q) - 1
	it := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	it.index = -1
	return it
}

// due returns items that are due, at most so many, and changes nothing. Below an
// item that is not due, none is.
func (q expiryQueue) due(now int64, most int) []*item {
	var found []*item
	for next := []int{0}; len(next) > 0 && len(found) < most; {
		i := next[0]
		next = next[1:]
		if i < len(q) && q[i].due(now) {
			found = append(found, q[i])
			next = append(next, 2*i+1, 2*i+2)
		}
	}
	return found
}

// record is one transaction of the log. Its bytes, integers little-endian:
//
//	1        kind: 1 put, 2 delete, 3 expire
//	2        length of the key
//	n        the key
//	8        put: when it expires in Unix nanoseconds, 0 for never
//	         expire: the version that it deletes, and no other
//	the rest put: the value
type record struct {
	kind    byte
	key     string
	value   []byte // of a put
	expires int64  // of a put
	version uint64 // of an expire
}

const (
	kindPut    = 1
	kindDelete = 2
	kindExpire = 3
)

func (r record) encode() []byte {
	b := make([]byte, 0, 1+2+len(r.key)+8+len(r.value))
	b = append(b, r.kind)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.key)))
	b = append(b, r.key...)
	switch r.kind {
	case kindPut:
		b = binary.LittleEndian.AppendUint64(b, uint64(r.expires))
		b = append(b, r.value...)
	case kindExpire:
		b = binary.LittleEndian.AppendUint64(b, r.version)
	}
	return b
}

// decodeRecord is the inverse of encode. It keeps nothing of b.
func decodeRecord(b []byte) (record, error) {
	if len(b) < 3 {
		return record{}, fmt.Errorf("a record of %d bytes", len(b))
	}
	r := record{kind: b[0]}
	keyBytes := int(binary.LittleEndian.Uint16(b[1:]))
	rest := b[3:]
	if keyBytes == 0 || keyBytes > maxKeyBytes || keyBytes > len(rest) {
		return record{}, fmt.Errorf("a key of %d bytes in a record of %d", keyBytes, len(b))
	}
	r.key, rest = string(rest[:keyBytes]), rest[keyBytes:]
	switch {
	case r.kind == kindPut && len(rest) >= 8:
		r.expires = int64(binary.LittleEndian.Uint64(rest))
		r.value = append([]byte{}, rest[8:]...)
	case r.kind == kindDelete && len(rest) == 0:
	case r.kind == kindExpire && len(rest) == 8:
		r.version = binary.LittleEndian.Uint64(rest)
	case r.kind == kindPut || r.kind == kindDelete || r.kind == kindExpire:
		return record{}, fmt.Errorf("%d bytes after the key of a record of kind %d", len(rest), r.kind)
	default:
		return record{}, fmt.Errorf("a record of unknown kind %d: was it written by a later version?", r.kind)
	}
	return r, nil
}

var errGap = errors.New("an offset is missing")

// replay applies a log's entries from the table's next offset on.
func (t *table) replay(l reader) error {
	for entry, err := range l.Read(t.next) {
		if err != nil {
			return err
		}
		if entry.Offset != t.next {
			return fmt.Errorf("replay: offset %d follows %d: %w", entry.Offset, t.next, errGap)
		}
		r, err := decodeRecord(entry.Data)
		if err != nil {
			return fmt.Errorf("replay: offset %d: %w", entry.Offset, err)
		}
		t.apply(entry.Offset, r)
	}
	return nil
}
