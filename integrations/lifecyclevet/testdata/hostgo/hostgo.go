package hostgo

import (
	"context"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/server/store"
	"github.com/seed080d9131/lifecycle"
)

var background = context.Background()

type server struct {
	host  *lifecycle.Host
	store *store.Store
	log   *lifecycle.Durability
	wg    sync.WaitGroup
	done  chan struct{}
}

func direct(host *lifecycle.Host) {
	go host.Durability().Append(background, nil) // want `this goroutine appends \(Durability\.Append\), and no Exit awaits it: start it with host\.Go, or wait for it on every path before the function returns or exits the host`
	go func() {                                  // want `this goroutine appends \(Durability\.Commit\)`
		_, _ = host.Durability().Commit(background, nil)
	}()
}

func variable(host *lifecycle.Host) {
	d := host.Durability()
	flush := func() { _, _ = d.Append(background, nil) }
	go flush()  // want `this goroutine appends`
	go func() { // want `this goroutine appends`
		for range 3 {
			flush()
		}
	}()
}

func made() {
	host := lifecycle.New(nil, lifecycle.Options{})
	defer host.Exit(background)
	go func() { // want `this goroutine appends`
		_, _ = host.Durability().Append(background, nil)
	}()
}

func (s *server) flush() { _, _ = s.log.Append(background, nil) }

func (s *server) loop() {
	for {
		s.flush()
	}
}

func (s *server) methods() {
	go s.loop() // want `this goroutine appends \(server\.loop → server\.flush → Durability\.Append\)`
	f := s.flush
	go f()                 // want `this goroutine appends`
	go (*server).flush(s)  // want `this goroutine appends`
	go run(s.flush)        // want `this goroutine appends`
	go run(func() { f() }) // want `this goroutine appends`
	go run(func() {})      // nothing in it
	go s.host.Fail(nil)    // begins the exit
	go s.host.Exit(background)
}

func run(f func()) { f() }

func (s *server) otherPackages(host *lifecycle.Host) {
	go s.store.Put(background, nil) // want `this goroutine appends \(Store\.Put → Store\.commit → Durability\.Commit\)`
	go func() {                     // want `this goroutine appends`
		_ = store.On(host).Put(background, nil)
	}()
	go func() { // want `this goroutine appends`
		_, _ = s.store.Host().Durability().Append(background, nil)
	}()
	go store.Each(3, func(int) error { return s.store.Put(background, nil) }) // want `this goroutine appends`
	go func() { _ = s.store.Len() }()
}

// An errgroup in a goroutine that nobody waits for.
func (s *server) nested() {
	go func() { // want `this goroutine appends`
		var group errgroup.Group
		group.Go(func() error { return s.store.Put(background, nil) })
		_ = group.Wait()
	}()
}

func (s *server) forgottenGroup() {
	var group errgroup.Group
	group.Go(func() error { return s.store.Put(background, nil) }) // want `this goroutine appends \(.*\), and the function can return, or exit the host, without waiting for its group: wait for it on every path, or start it with host\.Go`
	var wg sync.WaitGroup
	wg.Go(s.loop) // want `without waiting for its group`
}

func (s *server) leavesEarly(fails func() error) error {
	var wg sync.WaitGroup
	wg.Go(s.flush) // want `without waiting for its group`
	if err := fails(); err != nil {
		return err
	}
	wg.Wait()
	return nil
}

func (s *server) gaveUp(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.store.Put(ctx, nil) }() // want `this goroutine appends`
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *server) exitsFirst(ctx context.Context) error {
	done := make(chan struct{})
	go func() { // want `this goroutine appends`
		defer close(done)
		s.flush()
	}()
	err := s.host.Exit(ctx)
	<-done
	return err
}

func (s *server) onlyKnowsThatItHasBegun() {
	begun := make(chan struct{})
	go func() { // want `this goroutine appends`
		close(begun)
		s.loop()
	}()
	<-begun
}

// Somebody waits for it: after the exit.
func (s *server) handmade() {
	s.wg.Add(1)
	go func() { // want `this goroutine appends`
		defer s.wg.Done()
		s.loop()
	}()
}

func (s *server) close() error {
	err := s.host.Exit(background)
	s.wg.Wait()
	return err
}

// The call that it leaves is its own, and entered after the append.
func (s *server) appendsBeforeItEnters() {
	go func() { // want `this goroutine appends`
		s.flush()
		if call, err := s.host.Enter(); err == nil {
			j := store.Job{Call: call}
			finish(j.Call)
		}
	}()
}

func finish(call lifecycle.Call) { call.Leave() }

func (s *server) waitedForTooLate() {
	go func() { // want `this goroutine appends`
		defer close(s.done)
		s.loop()
	}()
	s.host.OnExit(lifecycle.PhaseRelease, "loop", func(context.Context) error { <-s.done; return nil })
}

func (s *server) timers(ctx context.Context) {
	time.AfterFunc(time.Second, s.flush)         // want `the func of this AfterFunc appends \(.*\) in a goroutine that no Exit awaits: let a task of host\.Go or host\.Every do it`
	context.AfterFunc(ctx, func() { s.flush() }) // want `the func of this AfterFunc appends`
	time.AfterFunc(time.Second, func() { s.host.Fail(nil) })
}

type appender interface {
	Append(ctx context.Context, tx []byte) (lifecycle.Pending, error)
}

type recorder struct{ to appender }

func (r recorder) record() { _, _ = r.to.Append(background, nil) }

func throughAnInterface(host *lifecycle.Host) {
	r := recorder{host.Durability()}
	go r.record() // want `this goroutine appends`
}

type registry struct{ hosts map[string]*lifecycle.Host }

func (r *registry) find(name string) *lifecycle.Host { return r.hosts[name] }

func (r *registry) writesTo(name string) {
	go func() { // want `this goroutine appends`
		_, _ = r.find(name).Durability().Append(background, nil)
	}()
}

func controlled(c *lifecycle.Controller[string]) {
	go func() { // want `this goroutine appends`
		if host, err := c.Host("orders"); err == nil {
			_, _ = host.Durability().Append(background, nil)
		}
	}()
}

var shared *lifecycle.Host

func writeShared() { _, _ = shared.Durability().Append(background, nil) }

func globals() {
	go writeShared() // want `this goroutine appends`
}

func each[T any](all []T, f func(T)) {
	for _, v := range all {
		f(v)
	}
}

func generics(host *lifecycle.Host) {
	go each([]string{"a"}, func(tx string) { // want `this goroutine appends`
		_, _ = host.Durability().Append(background, []byte(tx))
	})
}

// After Leave nobody waits for what comes.
func outsideOfTheCall(host *lifecycle.Host) error {
	call, err := host.Enter()
	if err != nil {
		return err
	}
	defer call.Leave()
	go func() { // want `this goroutine appends`
		_, _ = host.Durability().Append(background, nil)
	}()
	return nil
}

func ranges(host *lifecycle.Host, txs func(yield func([]byte) bool)) {
	go func() { // want `this goroutine appends`
		for tx := range txs {
			_, _ = host.Durability().Append(background, tx)
		}
	}()
}

func serve(host *lifecycle.Host) {
	go http.ListenAndServe("127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = host.Durability().Append(r.Context(), nil) // the server's goroutines, not this one
	}))
}
