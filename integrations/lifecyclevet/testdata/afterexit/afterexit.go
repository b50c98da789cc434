package afterexit

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/seed080d9131/lifecycle"
)

type server struct{ host *lifecycle.Host }

func straight(ctx context.Context, host *lifecycle.Host) error {
	err := host.Exit(ctx)
	_, late := host.Durability().Append(ctx, nil) // want `this Append comes after the Exit of the same host at line 15, which has sealed the channel, or is about to: append first`
	return errors.Join(err, late)
}

func keptChannel(ctx context.Context, host *lifecycle.Host) {
	d := host.Durability()
	_, _ = d.Append(ctx, nil)
	_ = host.ForceExit(ctx)
	_, _ = d.Commit(ctx, nil) // want `this Commit comes after the ForceExit of the same host`
}

func branches(ctx context.Context, host *lifecycle.Host, last bool) {
	if err := host.Exit(ctx); err != nil {
		fmt.Println(err)
	}
	if last {
		_, _ = host.Durability().Append(ctx, nil) // want `this Append comes after the Exit`
	}
	for range 3 {
		_, _ = host.Durability().Append(ctx, nil) // want `this Append comes after the Exit`
	}
}

func (s *server) field(ctx context.Context) {
	err := s.host.Exit(ctx)
	fmt.Println("exited", err)
	_, _ = s.host.Durability().Append(ctx, nil) // want `this Append comes after the Exit`
}

func (s *server) getter() *lifecycle.Durability { return s.host.Durability() }

func (s *server) throughAGetter(ctx context.Context) {
	_ = s.host.Exit(ctx)
	_, _ = s.getter().Append(ctx, nil) // want `this Append comes after the Exit`
}

func deferredAppend(ctx context.Context, host *lifecycle.Host) error {
	defer host.Durability().Append(ctx, nil) // want `this Append comes after the Exit`
	return host.Exit(ctx)
}

func deferredBoth(ctx context.Context, host *lifecycle.Host) {
	defer func() {
		_, _ = host.Durability().Append(ctx, nil) // want `this Append comes after the Exit`
	}()
	defer host.Exit(ctx)
}

func captured(ctx context.Context) {
	host := lifecycle.New(nil, lifecycle.Options{})
	write := func() {
		_, _ = host.Durability().Append(ctx, nil) // want `this Append comes after the Exit`
	}
	func() { _ = host.Exit(ctx) }()
	write()
}

func eachOfMany(ctx context.Context, hosts []*lifecycle.Host) {
	for _, host := range hosts {
		_ = host.Exit(ctx)
		_, _ = host.Durability().Append(ctx, nil) // want `this Append comes after the Exit`
	}
}

func run(ctx context.Context, host *lifecycle.Host) error {
	err := lifecycle.Run(ctx, host, lifecycle.RunOptions{})
	_, late := host.Durability().Append(ctx, nil) // want `this Append comes after the Run of the same host`
	return errors.Join(err, late)
}

// What another package is given does not lead to the host.
func (s *server) givesAway(ctx context.Context, log *strings.Builder) {
	err := s.host.Exit(ctx)
	fmt.Fprintln(log, err, s.host.Exiting())
	log.WriteString("exited")
	_, _ = s.host.Durability().Append(ctx, nil) // want `this Append comes after the Exit`
}

func methodValues(ctx context.Context, host *lifecycle.Host) {
	exit, put := host.Exit, host.Durability().Append
	_ = exit(ctx)
	_, _ = put(ctx, nil) // want `this Append comes after the Exit`
}

func (s *server) readBefore(ctx context.Context) {
	old := s.host
	_ = old.Exit(ctx)
	_, _ = s.host.Durability().Append(ctx, nil) // want `this Append comes after the Exit`
}
