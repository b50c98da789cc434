// Package store is another package's: what the checks know of it they have from facts.
package store

import (
	"context"
	"sync"

	"github.com/seed080d9131/lifecycle"
)

type Store struct {
	host *lifecycle.Host
	mu   sync.Mutex
	wg   sync.WaitGroup
	stop chan struct{}
	jobs chan []byte
	done chan struct{}
}

// Open makes a host of its own.
func Open(name string) *Store {
	return &Store{host: lifecycle.New(nil, lifecycle.Options{Name: name})}
}

// On uses its caller's.
func On(host *lifecycle.Host) *Store { return &Store{host: host} }

func (s *Store) Host() *lifecycle.Host { return s.host }

func (s *Store) Put(ctx context.Context, tx []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit(ctx, tx)
}

func (s *Store) commit(ctx context.Context, tx []byte) error {
	_, err := s.host.Durability().Commit(ctx, tx)
	return err
}

func (s *Store) Enter() (lifecycle.Call, error) { return s.host.Enter() }

func (s *Store) Len() int { return int(s.host.Durability().Durable()) }

func (s *Store) Close(ctx context.Context) error { return s.host.Exit(ctx) }

// Each calls f.
func Each(n int, f func(i int) error) error {
	for i := range n {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

// Start starts workers. Whoever calls it has Stop called by a hook of PhaseExitModule.
func (s *Store) Start() {
	for range 4 {
		s.wg.Add(1)
		go s.work()
	}
}

func (s *Store) work() {
	defer s.wg.Done()
	for {
		select {
		case tx := <-s.jobs:
			_ = s.Put(context.Background(), tx)
		case <-s.stop:
			return
		}
	}
}

// Stop waits for the workers.
func (s *Store) Stop(context.Context) error {
	close(s.stop)
	s.wg.Wait()
	return nil
}

// Flush starts a goroutine that Wait waits for.
func (s *Store) Flush() {
	done := make(chan struct{})
	s.done = done
	go func() {
		defer close(done)
		_ = s.Put(context.Background(), nil)
	}()
}

func (s *Store) Wait(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Reopen has another host.
func (s *Store) Reopen() { s.host = lifecycle.New(nil, lifecycle.Options{}) }

// Job is a call that somebody else has entered.
type Job struct {
	Call lifecycle.Call
	Tx   []byte
}

func (j *Job) Finish() { j.Call.Leave() }

// Shared is a host that may be replaced.
type Shared struct{ Current *lifecycle.Host }

func (s *Shared) Reopen() { s.Current = lifecycle.New(nil, lifecycle.Options{}) }

// AsCall runs f as a call.
func (s *Store) AsCall(f func() error) error {
	call, err := s.host.Enter()
	if err != nil {
		return err
	}
	defer call.Leave()
	return f()
}

// Tasks are tasks of a host, behind the methods of a group.
type Tasks struct{ host *lifecycle.Host }

func NewTasks(host *lifecycle.Host) *Tasks { return &Tasks{host} }

func (t *Tasks) Go(f func(ctx context.Context) error) error { return t.host.Go("task", f) }

func (t *Tasks) Wait() { <-t.host.Done() }
