package bboltlog

import (
	"fmt"
	"sync"
	"weak"

	"go.etcd.io/bbolt"
)

// databases is who holds what in which database of this process. bbolt's own lock keeps other
// processes out.
var databases = struct {
	mu   sync.Mutex
	byDB map[weak.Pointer[bbolt.DB]]*database
}{byDB: map[weak.Pointer[bbolt.DB]]*database{}}

// database is one of them. databases.mu guards it.
type database struct {
	buckets map[string]bool
	failure error // an update failed: what the database shows may not be durable
}

// hold is a bucket that a Log has to itself.
type hold struct {
	db       weak.Pointer[bbolt.DB]
	database *database
	bucket   string
}

func take(db *bbolt.DB, bucket string) (*hold, error) {
	key := weak.Make(db)
	databases.mu.Lock()
	defer databases.mu.Unlock()
	for other := range databases.byDB { // those that are gone
		if other.Value() == nil {
			delete(databases.byDB, other)
		}
	}
	e := databases.byDB[key]
	if e == nil {
		e = &database{buckets: map[string]bool{}}
		databases.byDB[key] = e
	}
	if e.failure != nil {
		return nil, fmt.Errorf("an update of this database has failed, and what it shows may not be durable: open the database again: %w", e.failure)
	}
	if e.buckets[bucket] {
		return nil, ErrLocked
	}
	e.buckets[bucket] = true
	return &hold{key, e, bucket}, nil
}

func (h *hold) poison(err error) {
	databases.mu.Lock()
	defer databases.mu.Unlock()
	if h.database.failure == nil {
		h.database.failure = err
	}
}

func (h *hold) poisoned() error {
	databases.mu.Lock()
	defer databases.mu.Unlock()
	return h.database.failure
}

func (h *hold) release() {
	databases.mu.Lock()
	defer databases.mu.Unlock()
	delete(h.database.buckets, h.bucket)
	if len(h.database.buckets) == 0 && h.database.failure == nil {
		delete(databases.byDB, h.db)
	}
}
