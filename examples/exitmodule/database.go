package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
)

// database is one life of a database: its host, and the state that its log
// replays to.
type database struct {
	host      *lifecycle.Host
	dir       string
	diskBytes atomic.Int64 // as last measured

	mu    sync.Mutex // guards what follows
	items map[string]item
	bytes int    // of the values
	usage record // the newest of its kind
}

type item struct {
	offset uint64
	value  []byte
}

// open is what Controller.Launch calls for a database that does not run. It makes
// the directory if there is none.
//
// On an error before there is a host, it closes the log itself. After that the log
// is the host's: open returns the host beside the error, and Launch exits it.
func (s *server) open(ctx context.Context, name string) (*lifecycle.Host, error) {
	dir := s.dirOf(name)
	log, err := commitlog.Open(dir, commitlog.Options{})
	if err != nil {
		return nil, err
	}
	d := &database{dir: dir, items: map[string]item{}}
	if err := d.replay(ctx, log); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	d.host = lifecycle.New(log, lifecycle.Options{Name: name, Logger: s.logger})
	s.opened.Add(1)
	if err := d.start(s); err != nil {
		return d.host, err
	}
	s.index(name, d)
	return d.host, nil
}

// replay rebuilds the state. It ends early if ctx does: whoever asked has gone.
func (d *database) replay(ctx context.Context, log *commitlog.Log) error {
	for entry, err := range log.Read(log.First()) {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r, err := decodeRecord(entry.Data)
		if err != nil {
			return fmt.Errorf("replay %s: offset %d: %w", d.dir, entry.Offset, err)
		}
		d.apply(entry.Offset, r)
	}
	return nil
}

// start gives the host what it does in the background and at its end.
func (d *database) start(s *server) error {
	var stuck error
	if d.host.Status().Host == s.config.stuck {
		stuck = d.host.Go("lease renewal", s.renewLease)
	}
	return errors.Join(
		stuck,
		d.host.Every("usage recorder", s.config.every, d.recordUsage),
		d.host.Every("disk metrics", s.config.every, d.measureDisk),
		// Nobody writes beside it or after it, so this is the log's last record.
		d.host.OnExit(lifecycle.PhaseCheckpoint, "last usage", func(ctx context.Context) error { return d.commitUsage(ctx, kindEnd) }),
		d.host.OnExit(lifecycle.PhaseRelease, "count", func(context.Context) error { s.exited.Add(1); return nil }),
	)
}

// put writes a value and returns when it is durable and visible. An error that is
// lifecycle.ErrUnknown came after the write was accepted; after any other nothing
// was written.
//
// ctx bounds only the wait for room in the queue. What was accepted is awaited
// without it, since it has to be applied even if its client has gone; and every
// outcome comes, if by a forced exit.
func (d *database) put(ctx context.Context, key string, value []byte) (uint64, error) {
	r := record{kind: kindPut, key: key, value: value}
	p, err := d.host.Durability().Append(ctx, r.encode())
	if err != nil {
		return 0, err
	}
	if err := p.Wait(context.Background()); err != nil {
		return p.Offset(), err
	}
	d.apply(p.Offset(), r)
	return p.Offset(), nil
}

// apply carries out a durable record. Records may come in any order: of two for one
// key, that with the higher offset stays, as in a replay. (So nothing may ever be
// deleted here: the next record for the key might be an older one.)
func (d *database) apply(offset uint64, r record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch r.kind {
	case kindPut:
		old, found := d.items[r.key]
		if found && old.offset > offset {
			return
		}
		d.items[r.key] = item{offset, r.value}
		d.bytes += len(r.value) - len(old.value)
	default:
		d.usage = r
	}
}

func (d *database) get(key string) (item, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	it, found := d.items[key]
	return it, found
}

// The background tasks. The first one commits, as the view cleanup does that a
// database's exit has to await; the other one only reads.

func (d *database) recordUsage(ctx context.Context) error { return d.commitUsage(ctx, kindUsage) }

func (d *database) commitUsage(ctx context.Context, kind byte) error {
	d.mu.Lock()
	r := record{kind: kind, keys: uint64(len(d.items)), bytes: uint64(d.bytes)}
	same := kind == kindUsage && r.keys == d.usage.keys && r.bytes == d.usage.bytes
	d.mu.Unlock()
	if same {
		return nil
	}
	offset, err := d.host.Durability().Commit(ctx, r.encode())
	if err == nil {
		d.apply(offset, r)
	}
	return err
}

func (d *database) measureDisk(ctx context.Context) error {
	var total int64
	err := filepath.WalkDir(d.dir, func(_ string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil && entry.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				total += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) { // renamed meanwhile
			return nil
		}
		return err
	})
	if err == nil {
		d.diskBytes.Store(total)
	}
	return err
}

// renewLease is the task of -stuck: the answer that it waits for never comes, and
// it does not look at its context.
func (s *server) renewLease(context.Context) error { return <-s.lease }

// record is one transaction of the log. Its bytes, integers little-endian:
//
//	1        kind: 1 put, 2 usage, 3 end
//	put:
//	2        length of the key
//	n        the key
//	the rest the value
//	usage, and end, the one that an exit writes last:
//	8        number of keys
//	8        bytes of their values
type record struct {
	kind        byte
	key         string // of a put
	value       []byte // of a put
	keys, bytes uint64 // of the others
}

const (
	kindPut   = 1
	kindUsage = 2
	kindEnd   = 3
)

func (r record) encode() []byte {
	b := []byte{r.kind}
	if r.kind == kindPut {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(r.key)))
		b = append(b, r.key...)
		return append(b, r.value...)
	}
	b = binary.LittleEndian.AppendUint64(b, r.keys)
	return binary.LittleEndian.AppendUint64(b, r.bytes)
}

// decodeRecord is the inverse of encode. It keeps nothing of b.
func decodeRecord(b []byte) (record, error) {
	if len(b) == 0 {
		return record{}, errors.New("an empty record")
	}
	r, rest := record{kind: b[0]}, b[1:]
	switch {
	case r.kind == kindPut && len(rest) >= 2:
		n := int(binary.LittleEndian.Uint16(rest))
		if rest = rest[2:]; n > len(rest) {
			return record{}, fmt.Errorf("a key of %d bytes in a record of %d", n, len(b))
		}
		r.key, r.value = string(rest[:n]), append([]byte{}, rest[n:]...)
	case (r.kind == kindUsage || r.kind == kindEnd) && len(rest) == 16:
		r.keys, r.bytes = binary.LittleEndian.Uint64(rest), binary.LittleEndian.Uint64(rest[8:])
	default:
		return record{}, fmt.Errorf("a record of kind %d and %d bytes", r.kind, len(b))
	}
	return r, nil
}
