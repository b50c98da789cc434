package peers

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"go.etcd.io/bbolt"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

var bucket = []byte("log")

type boltDB struct {
	db   *bbolt.DB
	next atomic.Uint64
}

// openBoltDB: NoFreelistSync and FreelistMapType, which spare work and no durability, since Open finds the free
// pages again; InitialMmapSize 4 GiB, so that no commit waits for a new mapping; FillPercent 1 (below), since
// keys only grow. NoGrowSync stays false: without it ext4 may lose the file's growth.
func openBoltDB(dir string) (*boltDB, error) {
	db, err := bbolt.Open(filepath.Join(dir, "bolt"), 0o600, &bbolt.Options{
		NoFreelistSync:  true,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: 4 << 30,
	})
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &boltDB{db: db}, nil
}

func (b *boltDB) put(tx *bbolt.Tx, n uint64, record []byte) error {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], n)
	log := tx.Bucket(bucket)
	log.FillPercent = 1
	return log.Put(key[:], record)
}

func (b *boltDB) Close() error { return b.db.Close() }

func readBolt(dir string, yield func([]byte)) error {
	db, err := bbolt.Open(filepath.Join(dir, "bolt"), 0o600, nil)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(_, v []byte) error { yield(v); return nil })
	})
}

type boltBatch struct{ *boltDB }

// openBoltBatch is bbolt's own group commit: DB.Batch with MaxBatchSize 1,000 and MaxBatchDelay 10 ms, its defaults.
func openBoltBatch(dir string) (Committer, error) {
	db, err := openBoltDB(dir)
	if err != nil {
		return nil, err
	}
	return boltBatch{db}, nil
}

func (b boltBatch) Commit(record []byte) error {
	n := b.next.Add(1)
	return b.db.Batch(func(tx *bbolt.Tx) error { return b.put(tx, n, record) })
}

type boltUpdate struct{ *boltDB }

// openBolt is one DB.Update a batch, without the delay.
func openBolt(dir string) (batcher, error) {
	db, err := openBoltDB(dir)
	if err != nil {
		return nil, err
	}
	return boltUpdate{db}, nil
}

func (b boltUpdate) WriteBatch(records [][]byte) error {
	return b.db.Update(func(tx *bbolt.Tx) error {
		for _, r := range records {
			if err := b.put(tx, b.next.Add(1), r); err != nil {
				return err
			}
		}
		return nil
	})
}

type badgerDB struct {
	db   *badger.DB
	next atomic.Uint64
}

// openBadger: WithSyncWrites; what costs time and does nothing for durability is off: WithDetectConflicts,
// WithMetricsEnabled, WithCompactL0OnClose. It has a group commit of its own, for which DB.Update is the way in, and
// which writes many transactions together but syncs for each one.
func openBadger(dir string) (Committer, error) {
	db, err := badger.Open(badger.DefaultOptions(dir).WithSyncWrites(true).
		WithDetectConflicts(false).WithMetricsEnabled(false).WithCompactL0OnClose(false).WithLogger(nil))
	if err != nil {
		return nil, err
	}
	return &badgerDB{db: db}, nil
}

func (b *badgerDB) Commit(record []byte) error {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], b.next.Add(1))
	return b.db.Update(func(tx *badger.Txn) error { return tx.Set(key[:], record) })
}

func (b *badgerDB) Close() error { return b.db.Close() }

func readBadger(dir string, yield func([]byte)) (err error) {
	db, err := badger.Open(badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *badger.Txn) error {
		it := tx.NewIterator(badger.DefaultIteratorOptions)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if err := it.Item().Value(func(v []byte) error { yield(v); return nil }); err != nil {
				return err
			}
		}
		return nil
	})
}

type sqlite struct {
	db     *sql.DB
	conn   *sql.Conn
	insert *sql.Stmt
}

// openSQLite: journal_mode=WAL with synchronous=FULL, which syncs the WAL at each commit (NORMAL does not);
// locking_mode=EXCLUSIVE, which does without shared memory; one connection and a prepared statement, one transaction a
// batch; wal_autocheckpoint as it is, 1,000 pages.
func openSQLite(dir string) (batcher, error) {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "sqlite")+
		"?_pragma=locking_mode(EXCLUSIVE)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return nil, err
	}
	s := &sqlite{db: db}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *sqlite) prepare() (err error) {
	ctx := context.Background()
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return err
	}
	var mode, synchronous string
	if err := s.conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return err
	}
	if err := s.conn.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&synchronous); err != nil {
		return err
	}
	if mode != "wal" || synchronous != "2" {
		return fmt.Errorf("sqlite: journal_mode is %s, synchronous is %s", mode, synchronous)
	}
	if _, err := s.conn.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, data BLOB)"); err != nil {
		return err
	}
	s.insert, err = s.conn.PrepareContext(ctx, "INSERT INTO log (data) VALUES (?)")
	return err
}

func (s *sqlite) WriteBatch(records [][]byte) error {
	ctx := context.Background()
	if len(records) == 1 { // a statement alone is its own transaction
		_, err := s.insert.ExecContext(ctx, records[0])
		return err
	}
	if _, err := s.conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, r := range records {
		if _, err := s.insert.ExecContext(ctx, r); err != nil {
			_, undone := s.conn.ExecContext(ctx, "ROLLBACK")
			return errors.Join(err, undone)
		}
	}
	_, err := s.conn.ExecContext(ctx, "COMMIT")
	return err
}

func (s *sqlite) Close() error {
	return errors.Join(s.insert.Close(), s.conn.Close(), s.db.Close())
}

func readSQLite(dir string, yield func([]byte)) error {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "sqlite"))
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.Query("SELECT data FROM log ORDER BY id")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return err
		}
		yield(b)
	}
	return rows.Err()
}
