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
