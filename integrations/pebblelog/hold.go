package pebblelog

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"weak"

	"github.com/cockroachdb/pebble/v2"
)

// engines is who holds what in which engine of this process. The engine's own lock
// keeps other processes out.
var engines = struct {
	mu   sync.Mutex
	byDB map[weak.Pointer[pebble.DB]]*engine
}{byDB: map[weak.Pointer[pebble.DB]]*engine{}}

// engine is one of them. engines.mu guards it.
type engine struct {
	prefixes map[string]bool
	failure  error // a commit failed: what the engine shows may not be durable
}

// hold is a prefix that a Log has to itself.
type hold struct {
	db     weak.Pointer[pebble.DB]
	engine *engine
	prefix string
}

func take(db *pebble.DB, prefix string) (*hold, error) {
	key := weak.Make(db)
	engines.mu.Lock()
	defer engines.mu.Unlock()
	for other := range engines.byDB { // those that are gone
		if other.Value() == nil {
			delete(engines.byDB, other)
		}
	}
	e := engines.byDB[key]
	if e == nil {
		e = &engine{prefixes: map[string]bool{}}
		engines.byDB[key] = e
	}
	if e.failure != nil {
		return nil, e.refusal()
	}
	for other := range e.prefixes {
		if strings.HasPrefix(other, prefix) || strings.HasPrefix(prefix, other) {
			return nil, fmt.Errorf("%q is open: %w", other, ErrLocked)
		}
	}
	e.prefixes[prefix] = true
	return &hold{key, e, prefix}, nil
}

// commit commits b. After a commit that failed, or in which Pebble has panicked,
// everything is refused, in all logs of the engine.
func (h *hold) commit(db *pebble.DB, b *pebble.Batch, o *pebble.WriteOptions) error {
	if err := h.poisoned(); err != nil {
		return errors.Join(err, b.Close())
	}
	failure := errors.New("it has not ended")
	defer func() {
		if failure != nil {
			h.poison(failure)
		}
	}()
	failure = commit(db, b, o)
	return failure
}

func (h *hold) poison(err error) {
	engines.mu.Lock()
	defer engines.mu.Unlock()
	if h.engine.failure == nil {
		h.engine.failure = err
	}
}

// poisoned is what everything is refused with, if a log's commit has failed.
func (h *hold) poisoned() error {
	engines.mu.Lock()
	defer engines.mu.Unlock()
	return h.engine.refusal()
}

func (e *engine) refusal() error {
	if e.failure == nil {
		return nil
	}
	return fmt.Errorf("refused, since a commit in this engine has failed, and what it shows may not be durable: open the engine again: %w", e.failure)
}

func (h *hold) release() {
	engines.mu.Lock()
	defer engines.mu.Unlock()
	delete(h.engine.prefixes, h.prefix)
	if len(h.engine.prefixes) == 0 && h.engine.failure == nil {
		delete(engines.byDB, h.db)
	}
}
