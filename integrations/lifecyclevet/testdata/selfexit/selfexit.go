package selfexit

import (
	"context"
	"errors"
	"time"

	"github.com/seed080d9131/lifecycle"
)

type server struct{ host *lifecycle.Host }

func hooks(host *lifecycle.Host) error {
	return errors.Join(
		host.OnExit(lifecycle.PhaseExitModule, "own", func(ctx context.Context) error {
			return host.Exit(ctx) // want `this hook calls Exit of its own host, which is refused with ErrSelfExit and begins nothing: call Fail, which begins the exit and waits for nothing`
		}),
		host.OnExit(lifecycle.PhaseRelease, "background", func(context.Context) error {
			return host.ForceExit(context.Background()) // want `this hook calls ForceExit of its own host, which waits for itself`
		}),
		host.OnExit(lifecycle.PhaseCheckpoint, "method value", host.Exit), // want `this hook calls Exit of its own host`
	)
}

func tasks(host *lifecycle.Host) {
	_ = host.Go("watch", func(ctx context.Context) error {
		<-ctx.Done()
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return host.Exit(short) // want `this task calls Exit of its own host, which is refused with ErrSelfExit`
	})
	_ = host.Every("watch", time.Second, func(context.Context) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		defer host.Exit(ctx) // want `this task calls Exit of its own host, which waits for itself`
		return nil
	})
	_ = host.Go("run", func(ctx context.Context) error {
		return lifecycle.Run(ctx, host, lifecycle.RunOptions{}) // want `this task calls Run of its own host`
	})
}

func (s *server) stop(ctx context.Context) error { return s.host.Exit(ctx) }

func (s *server) shut(ctx context.Context) error { return s.stop(ctx) }

func (s *server) start() {
	_ = s.host.Go("method", s.stop)                            // want `this task calls Exit \(selfexit\.go:43\) of its own host, which is refused with ErrSelfExit, or waits for itself`
	_ = s.host.Go("its method", s.shut)                        // want `this task calls Exit \(selfexit\.go:43\) of its own host`
	_ = s.host.Go("literal", func(ctx context.Context) error { // want `this task calls Exit \(selfexit\.go:43\) of its own host`
		return s.stop(ctx)
	})
	stop := func() { _ = s.host.Exit(context.Background()) } // want `this task calls Exit of its own host, which waits for itself`
	_ = s.host.Go("variable", func(context.Context) error { stop(); return nil })
}

func open() (*server, error) {
	host := lifecycle.New(nil, lifecycle.Options{})
	s := &server{host: host}
	return s, host.OnExit(lifecycle.PhaseRelease, "close", s.stop) // want `this hook calls Exit \(.*\) of its own host`
}

func methodValues(host *lifecycle.Host) {
	on, exit := host.OnExit, host.Exit
	_ = on(lifecycle.PhaseRelease, "itself", exit) // want `this hook calls Exit of its own host`
}

// A Fail before the exit, or where the exit waits for itself, makes nothing right.
func (s *server) failsAsWell(broken func() bool) {
	_ = s.host.Go("watch", func(ctx context.Context) error {
		if broken() {
			s.host.Fail(nil)
			return nil
		}
		return s.host.Exit(ctx) // want `this task calls Exit of its own host, which is refused with ErrSelfExit`
	})
	_ = s.host.Go("watch", func(context.Context) error {
		err := s.host.Exit(context.Background()) // want `this task calls Exit of its own host, which waits for itself`
		s.host.Fail(err)
		return nil
	})
}
