package hostgo

import (
	"context"
	"net"
	"sync"

	"github.com/seed080d9131/lifecycle"
)

// Types that lead to each other, and one of them to the host.

type listener struct {
	conns map[*conn]struct{}
	host  *lifecycle.Host
}

type conn struct{ of *listener }

func first(all []listener) listener { return all[0] }

func (l *listener) accept(c net.Conn) *conn { return &conn{l} }

func (c *conn) serve() { _, _ = c.of.host.Durability().Append(background, nil) }

func (l *listener) serve(c net.Conn) {
	go l.accept(c).serve() // want `this goroutine appends`
	go func() {            // want `this goroutine appends`
		_, _ = l.accept(c).of.host.Durability().Append(background, nil)
	}()
}

// Ways that look like waiting.

func (s *server) aCloserThatNobodyWaitsFor() {
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { // want `this goroutine appends`
		defer wg.Done()
		s.flush()
	}()
	all := make(chan struct{})
	go func() {
		wg.Wait()
		close(all)
	}()
}

func (s *server) aTaskThatDoesNotWaitForItsCloser() {
	s.wg.Add(1)
	go func() { // want `this goroutine appends`
		defer s.wg.Done()
		s.flush()
	}()
	_ = s.host.Go("workers", func(context.Context) error {
		go func() { s.wg.Wait() }()
		return nil
	})
}

func (s *server) onlyALimit() {
	slots := make(chan struct{}, 4)
	for range 10 {
		slots <- struct{}{}
		go func() { // want `this goroutine appends`
			defer func() { <-slots }()
			s.flush()
		}()
	}
}

func (s *server) works(jobs chan []byte) {
	go func() { // want `this goroutine appends`
		for {
			s.flush()
			<-jobs
		}
	}()
	jobs <- nil
}

func (s *server) aContextThatOthersEnd(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // want `this goroutine appends`
		defer cancel()
		s.flush()
	}()
	<-ctx.Done()
}

func (s *server) waitsForOthers(others []chan struct{}) {
	var all []chan struct{}
	for range 3 {
		ended := make(chan struct{})
		all = append(all, ended)
		go func() { // want `this goroutine appends`
			defer close(ended)
			s.flush()
		}()
	}
	for _, other := range others {
		<-other
	}
}

func (s *server) onOnePath(fails bool) {
	ended := make(chan struct{})
	go func() { // want `this goroutine appends`
		defer close(ended)
		s.flush()
	}()
	if !fails {
		<-ended
	}
}

func methodValues(host *lifecycle.Host) {
	put := host.Durability().Append
	go put(background, nil) // want `this goroutine appends \(Durability\.Append\)`
	go func() {             // want `this goroutine appends`
		_, _ = put(background, nil)
	}()
}

// Its func is run before and after the call that it enters for itself.
func (s *server) entersInTheMidst(f func()) {
	f()
	if call, err := s.host.Enter(); err == nil {
		f()
		call.Leave()
	}
}

func (s *server) runsInTheMidst() {
	go s.entersInTheMidst(s.flush) // want `this goroutine appends`
}

func (s *server) aContextOfOneThatOthersEnd(ctx context.Context) {
	ended, end := context.WithCancel(context.WithValue(ctx, s, nil))
	go func() { // want `this goroutine appends`
		defer end()
		s.flush()
	}()
	<-ended.Done()
}
