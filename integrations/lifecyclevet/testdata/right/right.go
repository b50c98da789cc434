// Package right uses a Host as it is meant to be used. No check may report anything.
package right

import (
	"context"
	"errors"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/server/store"
	"github.com/seed080d9131/lifecycle"
)

type server struct {
	host  *lifecycle.Host
	store *store.Store
	web   http.Server
	wg    sync.WaitGroup
	done  chan struct{}
	group errgroup.Group
	jobs  chan []byte
}

// Tasks and hooks.

func (s *server) start() error {
	return errors.Join(
		s.host.Go("cleanup", s.cleanup),
		s.host.Every("metrics", time.Minute, func(ctx context.Context) error { return s.store.Put(ctx, nil) }),
		s.host.OnExit(lifecycle.PhaseExitModule, "http", s.web.Shutdown),
		s.host.OnExit(lifecycle.PhaseCheckpoint, "last", func(ctx context.Context) error { return s.store.Put(ctx, nil) }),
	)
}

func (s *server) cleanup(ctx context.Context) error {
	for {
		if err := s.store.Put(ctx, nil); err != nil {
			s.host.Fail(err)
			return err
		}
	}
}

// Goroutines that don't append.

func (s *server) watch(ctx context.Context) {
	go s.host.Exit(ctx)
	go func() {
		<-s.host.Exiting()
		s.host.Fail(nil)
		_ = s.host.ForceExit(ctx)
		<-s.host.Done()
		_ = s.host.Report()
	}()
	go func() {
		_ = s.host.Durability().Wait(ctx, s.host.Durability().Durable())
		_ = s.store.Len()
	}()
	go func() { _ = s.host.Go("cleanup", s.cleanup) }()
	go func() { _ = s.start() }()
	go func() { _ = s.web.ListenAndServe() }()
	time.AfterFunc(time.Second, func() { s.host.Fail(nil) })
}

// Goroutines that the function awaits.

func (s *server) parallel(ctx context.Context) error {
	var group errgroup.Group
	for range 3 {
		group.Go(func() error { return s.store.Put(ctx, nil) })
	}
	return group.Wait()
}

func (s *server) parallelUnder(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for range 3 {
		group.Go(func() error { return s.store.Put(ctx, nil) })
	}
	return group.Wait()
}

func (s *server) waitGroup(ctx context.Context) {
	var wg sync.WaitGroup
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = s.store.Put(ctx, nil)
		}()
	}
	wg.Wait()
}

func (s *server) waitGroupGo(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 3 {
		wg.Go(func() { _ = s.store.Put(ctx, nil) })
	}
}

func worker(ctx context.Context, s *store.Store, wg *sync.WaitGroup) {
	defer wg.Done()
	_ = s.Put(ctx, nil)
}

func (s *server) workers(ctx context.Context) {
	wg := &sync.WaitGroup{}
	for range 3 {
		wg.Add(1)
		go worker(ctx, s.store, wg)
	}
	wg.Wait()
}

func (s *server) result(ctx context.Context) error {
	result := make(chan error, 1)
	go func() { result <- s.store.Put(ctx, nil) }()
	return <-result
}

func (s *server) results(ctx context.Context) (failed error) {
	results := make(chan error)
	for range 3 {
		go func() { results <- s.store.Put(ctx, nil) }()
	}
	for range 3 {
		failed = errors.Join(failed, <-results)
	}
	return failed
}

func (s *server) closed(ctx context.Context, fails func() error) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.store.Put(ctx, nil)
	}()
	defer func() { <-ended }()
	return fails()
}

func (s *server) selected(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() {
		err := s.store.Put(ctx, nil)
		ended <- err
	}()
	for {
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Second):
			s.host.Fail(nil)
		}
	}
}

func (s *server) cancelledThenAwaited(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.store.Put(ctx, nil) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		cancel()
		<-ended
		return ctx.Err()
	}
}

func (s *server) stopper(ctx context.Context) {
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(ended)
		_ = s.cleanup(ctx)
	}()
	stop := func() {
		cancel()
		<-ended
	}
	defer stop()
}

func (s *server) pipeline(ctx context.Context, txs [][]byte) {
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for tx := range s.jobs {
				_ = s.store.Put(ctx, tx)
			}
		})
	}
	for _, tx := range txs {
		s.jobs <- tx
	}
	close(s.jobs)
	wg.Wait()
	_ = s.host.Exit(ctx)
}

// Before it exits the host, even on the path that ends the process.
func (s *server) process(ctx context.Context) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.cleanup(ctx)
	}()
	if s.jobs == nil {
		os.Exit(1)
	}
	<-ended
}

// A pool like those of other modules: its Wait is in another function.
type pool struct{ wg sync.WaitGroup }

func (p *pool) Go(f func()) { p.wg.Go(f) }
func (p *pool) Wait()       { p.wg.Wait() }

func (s *server) pooled(ctx context.Context) {
	var p pool
	p.Go(func() { _ = s.store.Put(ctx, nil) })
	p.Wait()
	s.group.Go(func() error { return s.store.Put(ctx, nil) }) // wait is where it is waited for
}

func (s *server) wait() error { return s.group.Wait() }

// Goroutines that a hook or a task awaits.

func (s *server) awaitedByAHook(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(s.done)
		_ = s.cleanup(ctx)
	}()
	return s.host.OnExit(lifecycle.PhaseExitModule, "cleanup", func(ctx context.Context) error {
		cancel()
		select {
		case <-s.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func (s *server) handmade() error {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		_ = s.cleanup(context.Background())
	}()
	return s.host.OnExit(lifecycle.PhaseCheckpoint, "workers", s.stopWorkers)
}

func (s *server) stopWorkers(context.Context) error {
	s.wg.Wait()
	return nil
}

func (s *server) awaitedByATask() error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.cleanup(context.Background())
	}()
	return s.host.Go("cleanup", func(context.Context) error { <-ended; return nil })
}

// Goroutines that are calls.

func (s *server) serve(ctx context.Context) error {
	call, err := s.host.Enter()
	if err != nil {
		return err
	}
	defer call.Leave()
	return s.store.Put(call.Context(ctx), nil)
}

func (s *server) calls(ctx context.Context) {
	go s.serve(ctx)
	go func() {
		for {
			if err := s.serve(ctx); err != nil {
				return
			}
		}
	}()
	call, err := s.host.Enter()
	if err != nil {
		return
	}
	go func() {
		defer call.Leave()
		_ = s.store.Put(ctx, nil)
	}()
}

// begin enters a call for others.
func (s *server) begin() (leave func(), err error) {
	call, err := s.host.Enter()
	return call.Leave, err
}

func (s *server) entersInHelpers(ctx context.Context) {
	go func() {
		leave, err := s.begin()
		if err != nil {
			return
		}
		defer leave()
		_ = s.store.Put(ctx, nil)
	}()
	go func() {
		call, err := s.enter()
		if err != nil {
			return
		}
		defer call.Leave()
		_ = s.store.Put(ctx, nil)
	}()
	go func() {
		call, err := s.store.Enter()
		if err != nil {
			return
		}
		defer call.Leave()
		_ = s.store.Put(ctx, nil)
	}()
}

type request struct {
	call lifecycle.Call
	tx   []byte
}

func (s *server) handle(ctx context.Context, r request) {
	defer func() {
		_ = recover()
		r.call.Leave()
	}()
	_ = s.store.Put(ctx, r.tx)
}

func (s *server) accept(ctx context.Context) error {
	call, err := s.host.Enter()
	if err != nil {
		return err
	}
	go s.handle(ctx, request{call: call})
	return nil
}

// Goroutines that have a host of their own.

func ownHosts(ctx context.Context, names []string, open func(string) (*lifecycle.Host, error)) {
	for _, name := range names {
		go func() {
			host := lifecycle.New(nil, lifecycle.Options{Name: name})
			_, _ = host.Durability().Commit(ctx, nil)
			_ = host.Exit(ctx)
		}()
		go func() {
			s := store.Open(name)
			_ = s.Put(ctx, nil)
			_ = s.Close(ctx)
		}()
		go func() {
			if host, err := open(name); err == nil {
				_, _ = host.Durability().Commit(ctx, nil)
				_ = host.Exit(ctx)
			}
		}()
	}
}

func lastWord(ctx context.Context, host *lifecycle.Host, signals chan os.Signal) {
	go func() {
		<-signals
		_, _ = host.Durability().Append(ctx, nil)
		_ = host.Exit(ctx)
	}()
}

// Appends before an exit, or to another host.

func before(ctx context.Context, host *lifecycle.Host) (err error) {
	defer func() { err = errors.Join(err, host.Exit(ctx)) }()
	_, err = host.Durability().Commit(ctx, nil)
	return err
}

func deferred(ctx context.Context, host *lifecycle.Host) {
	defer host.Exit(ctx)
	defer host.Durability().Append(ctx, nil)
	_, _ = host.Durability().Append(ctx, nil)
}

func either(ctx context.Context, host *lifecycle.Host, exit bool) {
	if exit {
		_ = host.Exit(ctx)
		return
	}
	_, _ = host.Durability().Append(ctx, nil)
}

func maybe(ctx context.Context, host *lifecycle.Host, exit bool) {
	if exit {
		_ = host.Exit(ctx)
	} else {
		_, _ = host.Durability().Append(ctx, nil)
	}
	_ = host.Durability().Durable()
	_ = host.Durability().Wait(ctx, 0)
}

func again(ctx context.Context) {
	host := lifecycle.New(nil, lifecycle.Options{})
	_ = host.Exit(ctx)
	host = lifecycle.New(nil, lifecycle.Options{})
	_, _ = host.Durability().Append(ctx, nil)
	_ = host.Exit(ctx)
}

func rounds(ctx context.Context) {
	for host := range hosts() {
		_, _ = host.Durability().Append(ctx, nil)
		_ = host.Exit(ctx)
	}
	host := lifecycle.New(nil, lifecycle.Options{})
	for range 3 {
		_, _ = host.Durability().Append(ctx, nil)
		_ = host.Exit(ctx)
		host = lifecycle.New(nil, lifecycle.Options{})
	}
}

func hosts() func(func(*lifecycle.Host) bool) {
	return func(yield func(*lifecycle.Host) bool) { yield(lifecycle.New(nil, lifecycle.Options{})) }
}

func capturedAgain(ctx context.Context) {
	host := lifecycle.New(nil, lifecycle.Options{})
	reopen := func() { host = lifecycle.New(nil, lifecycle.Options{}) }
	_ = host.Exit(ctx)
	reopen()
	_, _ = host.Durability().Append(ctx, nil)
}

func (s *server) reopen() { s.host = lifecycle.New(nil, lifecycle.Options{}) }

func (s *server) restart(ctx context.Context, swap func()) {
	_ = s.host.Exit(ctx)
	s.reopen()
	_, _ = s.host.Durability().Append(ctx, nil)
	_ = s.host.Exit(ctx)
	s.host = lifecycle.New(nil, lifecycle.Options{})
	_, _ = s.host.Durability().Append(ctx, nil)
	_ = s.host.Exit(ctx)
	swap()
	_, _ = s.host.Durability().Append(ctx, nil)
	_ = s.host.Exit(ctx)
	*s = server{host: lifecycle.New(nil, lifecycle.Options{})}
	_, _ = s.host.Durability().Append(ctx, nil)
}

func others(ctx context.Context, a, b *lifecycle.Host, all map[string]*lifecycle.Host) {
	_ = a.Exit(ctx)
	_, _ = b.Durability().Append(ctx, nil)
	_ = all["a"].Exit(ctx)
	_, _ = all["b"].Durability().Append(ctx, nil)
}

// Exits of other hosts, or by nobody that the exit waits for.

func parents(parent *lifecycle.Host, children []*lifecycle.Host) {
	for _, child := range children {
		_ = parent.OnExit(lifecycle.PhaseExitModule, "child", child.Exit)
		_ = parent.Go("child", func(ctx context.Context) error { return child.Exit(ctx) })
	}
	_ = parent.Go("begins it", func(context.Context) error { parent.Fail(nil); return nil })
	_ = parent.Go("lets others", func(context.Context) error {
		go parent.Exit(context.Background())
		return nil
	})
	<-parent.Done()
	_ = parent.Exit(context.Background())
}

func chain(all []*lifecycle.Host) {
	var last *lifecycle.Host
	for _, host := range all {
		if before := last; before != nil {
			_ = host.OnExit(lifecycle.PhaseRelease, "next", before.Exit)
		}
		last = host
	}
}

// Calls.

func (s *server) enter() (lifecycle.Call, error) { return s.host.Enter() }

func (s *server) entered() (call lifecycle.Call, err error) {
	if call, err = s.host.Enter(); err != nil {
		return call, err
	}
	return call, nil
}

func refused(err error) bool { return err != nil }

func leaves(host *lifecycle.Host, do func() error) error {
	call, err := host.Enter()
	if refused(err) {
		return err
	}
	if err := do(); err != nil {
		call.Leave()
		return err
	}
	call.Leave()
	return nil
}

func leavesInALiteral(host *lifecycle.Host, do func()) (err error) {
	var call lifecycle.Call
	defer func() { call.Leave() }()
	call, err = host.Enter()
	if err != nil {
		return err
	}
	do()
	return nil
}

func switches(host *lifecycle.Host) {
	call, err := host.Enter()
	switch {
	case errors.Is(err, lifecycle.ErrExiting):
		return
	case err != nil:
		panic(err)
	}
	defer call.Leave()
}

func onlyIfEntered(host *lifecycle.Host) {
	if call, err := host.Enter(); err == nil {
		call.Leave()
	}
}

func inALoop(host *lifecycle.Host, do func()) error {
	for {
		call, err := host.Enter()
		if err != nil {
			return err
		}
		do()
		call.Leave()
	}
}

func inTheFirstRound(host *lifecycle.Host) error {
	call, err := host.Enter()
	if err != nil {
		return err
	}
	for range 2 {
		call.Leave()
		call = lifecycle.Call{}
	}
	return nil
}

func handedOver(host *lifecycle.Host, queue chan<- lifecycle.Call, later func(func())) {
	if call, err := host.Enter(); err == nil {
		queue <- call
	}
	if call, err := host.Enter(); err == nil {
		later(call.Leave)
	}
	if call, err := host.Enter(); err == nil {
		later(func() { call.Leave() })
	}
}

func optional(host *lifecycle.Host, entering bool) error {
	var call lifecycle.Call
	if entering {
		var err error
		if call, err = host.Enter(); err != nil {
			return err
		}
	}
	defer call.Leave()
	return nil
}

func panics(host *lifecycle.Host, do func() error) {
	call, err := host.Enter()
	if err != nil {
		panic(err)
	}
	if err := do(); err != nil {
		panic(err)
	}
	call.Leave()
}

// A method leaves the call that somebody else has entered: of another package, and of
// this one, deferred in a func literal.
type work struct{ call lifecycle.Call }

func (w *work) finish() { w.call.Leave() }

func (s *server) startFinishing(ctx context.Context, jobs chan *store.Job, works chan *work) {
	go func() {
		for j := range jobs {
			_ = s.store.Put(ctx, j.Tx)
			j.Finish()
		}
	}()
	go func() {
		w := <-works
		defer func() { w.finish() }()
		_ = s.store.Put(ctx, nil)
	}()
}

// Another package puts another host into a field that is its own.
type sharer struct{ shared *store.Shared }

func (s *sharer) restart(ctx context.Context) error {
	if err := s.shared.Current.Exit(ctx); err != nil {
		return err
	}
	s.shared.Reopen()
	_, err := s.shared.Current.Durability().Commit(ctx, nil)
	return err
}

func (s *sharer) reopen() { s.shared.Reopen() }

func (s *sharer) restartInAMethod(ctx context.Context) error {
	if err := s.shared.Current.Exit(ctx); err != nil {
		return err
	}
	s.reopen()
	_, err := s.shared.Current.Durability().Commit(ctx, nil)
	return err
}
