package bboltlog

import (
	"errors"
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

// database is one of them. databases.mu guards what comes before updates.
type database struct {
	buckets map[string]bool
	failure error // an update failed: what the database shows may not be durable

	updates sync.Mutex // held by the log whose update runs, until it is known how it ended
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
		return nil, e.refusal()
	}
	if e.buckets[bucket] {
		return nil, ErrLocked
	}
	e.buckets[bucket] = true
	return &hold{key, e, bucket}, nil
}

// update is one Update. After one that bbolt could not commit, or in which it has
// panicked, everything is refused, in all logs of the database. Their updates run one
// after another here as well as in bbolt: bbolt lets the next one in before anybody
// knows that the last one has failed.
func (h *hold) update(db *bbolt.DB, change func(*bbolt.Tx) error) error {
	h.database.updates.Lock()
	defer h.database.updates.Unlock()
	if err := h.poisoned(); err != nil {
		return err
	}
	failure, inDoubt := errors.New("it has not ended"), false
	defer func() {
		if inDoubt {
			h.poison(failure)
		}
	}()
	failure = db.Update(func(tx *bbolt.Tx) error {
		inDoubt = true
		err := change(tx)
		inDoubt = err == nil // else bbolt commits nothing
		return err
	})
	inDoubt = inDoubt && failure != nil
	return failure
}

func (h *hold) poison(err error) {
	databases.mu.Lock()
	defer databases.mu.Unlock()
	if h.database.failure == nil {
		h.database.failure = err
	}
}

// poisoned is what everything is refused with, if a log's update has failed.
func (h *hold) poisoned() error {
	databases.mu.Lock()
	defer databases.mu.Unlock()
	return h.database.refusal()
}

func (d *database) refusal() error {
	if d.failure == nil {
		return nil
	}
	return fmt.Errorf("refused, since an update of this database has failed, and what it shows may not be durable: open the database again: %w", d.failure)
}

func (h *hold) release() {
	databases.mu.Lock()
	defer databases.mu.Unlock()
	delete(h.database.buckets, h.bucket)
	if len(h.database.buckets) == 0 && h.database.failure == nil {
		delete(databases.byDB, h.db)
	}
}
