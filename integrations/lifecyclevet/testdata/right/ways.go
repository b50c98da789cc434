package right

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"

	"example.com/server/store"
	"github.com/seed080d9131/lifecycle"
)

// Ways to wait for a goroutine.

func (s *server) throughACloser(ctx context.Context) error {
	var wg sync.WaitGroup
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = s.store.Put(ctx, nil)
		}()
	}
	all := make(chan struct{})
	go func() {
		wg.Wait()
		close(all)
	}()
	select {
	case <-all:
		return nil
	case <-ctx.Done():
		<-all
		return ctx.Err()
	}
}

func (s *server) throughAHooksCloser() error {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		_ = s.cleanup(context.Background())
	}()
	return s.host.OnExit(lifecycle.PhaseExitModule, "workers", func(ctx context.Context) error {
		all := make(chan struct{})
		go func() {
			defer close(all)
			s.wg.Wait()
		}()
		select {
		case <-all:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func (s *server) keptForAHook(ctx context.Context) error {
	done := make(chan struct{})
	s.done = done
	go func() {
		defer close(done)
		_ = s.cleanup(ctx)
	}()
	return s.host.OnExit(lifecycle.PhaseExitModule, "cleanup", func(context.Context) error { <-s.done; return nil })
}

func (s *server) onlyIfStarted(ctx context.Context, async bool) error {
	var ended chan error
	if async {
		ended = make(chan error, 1)
		go func() { ended <- s.store.Put(ctx, nil) }()
	}
	if ended != nil {
		return <-ended
	}
	return nil
}

func (s *server) collected(ctx context.Context) {
	var all []chan struct{}
	named := map[int]chan struct{}{}
	for i := range 3 {
		ended, other := make(chan struct{}), make(chan struct{})
		all, named[i] = append(all, ended), other
		go func() {
			defer close(ended)
			_ = s.store.Put(ctx, nil)
		}()
		go func() {
			defer close(other)
			_ = s.store.Put(ctx, nil)
		}()
	}
	for _, ended := range all {
		<-ended
	}
	for _, other := range named {
		<-other
	}
}

func (s *server) bySemaphore(ctx context.Context) error {
	slots, weights := make(chan struct{}, 4), semaphore.NewWeighted(4)
	for range 10 {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			_ = s.store.Put(ctx, nil)
		}()
		if err := weights.Acquire(ctx, 1); err != nil {
			break
		}
		go func() {
			_ = s.store.Put(ctx, nil)
			weights.Release(1)
		}()
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
	return weights.Acquire(context.Background(), 4)
}

func (s *server) byCondition(ctx context.Context) {
	var mu sync.Mutex
	ended, cond := false, sync.NewCond(&mu)
	go func() {
		_ = s.store.Put(ctx, nil)
		mu.Lock()
		defer mu.Unlock()
		ended = true
		cond.Broadcast()
	}()
	mu.Lock()
	defer mu.Unlock()
	for !ended {
		cond.Wait()
	}
}

func (s *server) byContext(ctx context.Context) {
	ended, end := context.WithCancel(context.Background())
	go func() {
		defer end()
		_ = s.store.Put(ctx, nil)
	}()
	<-ended.Done()
}

func (s *server) byMethodValues(ctx context.Context) {
	var wg sync.WaitGroup
	wait := wg.Wait
	for range 3 {
		wg.Add(1)
		go s.putThen(ctx, wg.Done)
	}
	wg.Add(1)
	go func() {
		done := wg.Done
		defer done()
		_ = s.store.Put(ctx, nil)
	}()
	wait()
}

func (s *server) putThen(ctx context.Context, then func()) {
	defer then()
	_ = s.store.Put(ctx, nil)
}

// What has methods Go and Wait may run its funcs as tasks.
func (s *server) byTasks() {
	all := store.NewTasks(s.host)
	_ = all.Go(s.cleanup)
}

// Goroutines that are calls: a function enters for its func, and a Leave is handed over.

func (s *server) asCall(f func() error) error {
	call, err := s.host.Enter()
	if err != nil {
		return err
	}
	defer call.Leave()
	return f()
}

func (s *server) asCalls(ctx context.Context) {
	go s.asCall(func() error { return s.store.Put(ctx, nil) })
	go func() {
		_ = s.store.AsCall(func() error { return s.store.Put(ctx, nil) })
	}()
}

func (s *server) handOver(ctx context.Context) error {
	call, err := s.host.Enter()
	if err != nil {
		return err
	}
	go s.putThen(ctx, call.Leave)
	call, err = s.host.Enter()
	if err != nil {
		return err
	}
	leave := call.Leave
	go func() {
		defer leave()
		_ = s.store.Put(ctx, nil)
	}()
	end, err := s.begin()
	if err != nil {
		return err
	}
	go func() {
		defer end()
		_ = s.store.Put(ctx, nil)
	}()
	return nil
}

type gate interface {
	Enter() (lifecycle.Call, error)
}

func (s *server) throughAGate(ctx context.Context, g gate) {
	go func() {
		call, err := g.Enter()
		if err != nil {
			return
		}
		defer call.Leave()
		_ = s.store.Put(ctx, nil)
	}()
}

// Calls whose error is looked at by functions of one's own.

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("enter: %w", err)
}

func admitted(err error) bool { return err == nil }

func leftUnlessRefused(host *lifecycle.Host, do func()) error {
	call, err := host.Enter()
	if err := wrap(err); err != nil {
		return err
	}
	do()
	call.Leave()
	call, err = host.Enter()
	if !admitted(err) {
		return err
	}
	do()
	call.Leave()
	call, err = host.Enter()
	if err != nil {
		err = fmt.Errorf("third: %w", err)
	}
	if err != nil {
		return err
	}
	do()
	leave := call.Leave
	leave()
	return nil
}

// Exits of the host that a field held before, and exits that may be refused.

func (s *server) replace(ctx context.Context, next *lifecycle.Host) error {
	old := s.host
	s.host = next
	if err := s.host.OnExit(lifecycle.PhaseRelease, "old", old.Exit); err != nil {
		return err
	}
	if err := s.host.Go("old", func(ctx context.Context) error { return old.Exit(ctx) }); err != nil {
		return err
	}
	if err := old.Exit(ctx); err != nil {
		return err
	}
	_, err := s.host.Durability().Commit(ctx, nil)
	return err
}

func (s *server) exitOrFail(ctx context.Context, inside bool) error {
	if inside {
		s.host.Fail(nil)
		return nil
	}
	return s.host.Exit(ctx)
}

func (s *server) triesToExit() error {
	return errors.Join(
		s.host.Go("asks", func(ctx context.Context) error {
			err := s.host.Exit(ctx)
			if errors.Is(err, lifecycle.ErrSelfExit) {
				go s.host.Exit(context.Background())
			}
			return err
		}),
		s.host.Go("fails", func(ctx context.Context) error {
			if err := s.host.Exit(ctx); err != nil {
				s.host.Fail(err)
			}
			return nil
		}),
		s.host.Go("knows", func(ctx context.Context) error { return s.exitOrFail(ctx, true) }),
	)
}

func appendsIfRefused(ctx context.Context, host *lifecycle.Host) error {
	err := host.Exit(ctx)
	if errors.Is(err, lifecycle.ErrSelfExit) {
		_, err = host.Durability().Append(ctx, nil)
	}
	return err
}
