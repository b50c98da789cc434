package peers

import (
	"errors"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/tidwall/wal"
	etcdwal "go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

type etcd struct {
	w       *etcdwal.WAL
	state   *raftpb.HardState
	entries []*raftpb.Entry
	next    uint64
}

// openEtcd: SegmentSizeBytes as it is, 64 MB that the pipeline preallocates; one Save, so one fdatasync, a batch.
func openEtcd(dir string) (batcher, error) {
	w, err := etcdwal.Create(zap.NewNop(), filepath.Join(dir, "wal"), nil)
	if err != nil {
		return nil, err
	}
	return &etcd{w: w, state: &raftpb.HardState{}, next: 1}, nil
}

func (e *etcd) WriteBatch(records [][]byte) error {
	for len(e.entries) < len(records) {
		e.entries = append(e.entries, &raftpb.Entry{Term: new(uint64(1)), Index: new(uint64)})
	}
	for i, r := range records {
		e.entries[i].Data = r
		*e.entries[i].Index = e.next
		e.next++
	}
	return e.w.Save(e.state, e.entries[:len(records)])
}

func (e *etcd) Close() error { return e.w.Close() }

func readEtcd(dir string, yield func([]byte)) error {
	w, err := etcdwal.Open(zap.NewNop(), filepath.Join(dir, "wal"), &walpb.Snapshot{Index: new(uint64(0)), Term: new(uint64(0))})
	if err != nil {
		return err
	}
	defer w.Close()
	_, _, entries, err := w.ReadAll()
	if err != nil {
		return err
	}
	for _, e := range entries {
		yield(e.Data)
	}
	return nil
}

type raftWAL struct {
	w       *raftwal.WAL
	meta    *metadb.BoltMetaDB // WAL.Close leaves it open, and with it its lock
	entries []*raft.Log
	next    uint64
}

// openRaftWAL: WithSegmentSize as it is, 64 MiB; one StoreLogs, so one fsync, a batch.
func openRaftWAL(dir string) (batcher, error) {
	meta := &metadb.BoltMetaDB{}
	w, err := raftwal.Open(dir, raftwal.WithLogger(hclog.NewNullLogger()), raftwal.WithMetaStore(meta))
	if err != nil {
		return nil, err
	}
	return &raftWAL{w: w, meta: meta, next: 1}, nil
}

func (r *raftWAL) WriteBatch(records [][]byte) error {
	for len(r.entries) < len(records) {
		r.entries = append(r.entries, &raft.Log{Term: 1})
	}
	for i, record := range records {
		r.entries[i].Data = record
		r.entries[i].Index = r.next
		r.next++
	}
	return r.w.StoreLogs(r.entries[:len(records)])
}

func (r *raftWAL) Close() error { return errors.Join(r.w.Close(), r.meta.Close()) }

func readRaftWAL(dir string, yield func([]byte)) error {
	log, err := openRaftWAL(dir)
	if err != nil {
		return err
	}
	defer log.Close()
	w := log.(*raftWAL).w
	first, err := w.FirstIndex()
	if err != nil {
		return err
	}
	last, err := w.LastIndex()
	if err != nil {
		return err
	}
	for i := first; i != 0 && i <= last; i++ {
		var entry raft.Log
		if err := w.GetLog(i, &entry); err != nil {
			return err
		}
		yield(entry.Data)
	}
	return nil
}

type tidwall struct {
	log   *wal.Log
	batch wal.Batch
	next  uint64
}

// openTidwall: NoSync false; Binary; NoCopy, which only reading feels; the segment size as it is, 20 MB; one
// WriteBatch, so one fsync, a batch.
func openTidwall(dir string) (batcher, error) {
	log, err := wal.Open(filepath.Join(dir, "wal"), &wal.Options{NoCopy: true})
	if err != nil {
		return nil, err
	}
	return &tidwall{log: log, next: 1}, nil
}

func (t *tidwall) WriteBatch(records [][]byte) error {
	for _, r := range records {
		t.batch.Write(t.next, r)
		t.next++
	}
	return t.log.WriteBatch(&t.batch)
}

func (t *tidwall) Close() error { return t.log.Close() }

func readTidwall(dir string, yield func([]byte)) error {
	log, err := wal.Open(filepath.Join(dir, "wal"), &wal.Options{})
	if err != nil {
		return err
	}
	defer log.Close()
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	for i := first; i != 0 && i <= last; i++ {
		b, err := log.Read(i)
		if err != nil {
			return err
		}
		yield(b)
	}
	return nil
}
