// Exittrace runs a small database host for a moment, exits it, and prints the spans of
// the exit: what ran when, for how long, and who was waited for.
//
//	go run ./examples/exittrace
//	go run ./examples/exittrace -force     # a task that never ends, left behind by force
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/integrations/lifecycleotel"
)

func main() {
	force := flag.Bool("force", false, "run a task that never ends, so that Run forces the exit")
	flag.Parse()
	dir, err := os.MkdirTemp("", "exittrace")
	if err == nil {
		err = run(dir, *force, &table{to: os.Stdout})
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil && !(*force && errors.Is(err, lifecycle.ErrForced)) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run is a server's main, from the start of its telemetry to its end.
func run(dir string, force bool, exporter sdktrace.SpanExporter) error {
	traces := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	telemetry, err := lifecycleotel.New(lifecycleotel.Options{TracerProvider: traces})
	if err != nil {
		return err
	}

	served := serve(telemetry, dir, force) // returns when the exit has ended

	flush, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(served,
		telemetry.Shutdown(flush), // ends the last spans
		traces.Shutdown(flush))    // exports what there is
}

func serve(telemetry *lifecycleotel.Telemetry, dir string, force bool) error {
	log, err := commitlog.Open(dir, commitlog.Options{})
	if err != nil {
		return err
	}
	host := telemetry.NewHost(log, lifecycle.Options{Name: "orders", StuckAfter: 200 * time.Millisecond})
	commit := func(ctx context.Context, what string) error {
		_, err := host.Durability().Commit(ctx, []byte(what))
		return err
	}
	work := func(d time.Duration) { time.Sleep(d) }
	err = errors.Join(
		host.Every("view cleanup", 5*time.Millisecond, func(ctx context.Context) error {
			return commit(ctx, "expired views")
		}),
		host.Go("compaction", func(ctx context.Context) error {
			<-ctx.Done()
			work(300 * time.Millisecond) // a step that can't be left half-way
			return commit(context.Background(), "compacted")
		}),
		host.OnExit(lifecycle.PhaseExitModule, "http", func(context.Context) error {
			work(20 * time.Millisecond) // requests in flight
			return nil
		}),
		host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(ctx context.Context) error {
			work(150 * time.Millisecond)
			return commit(ctx, "snapshot")
		}),
		host.OnExit(lifecycle.PhaseRelease, "gauges", func(context.Context) error { return nil }),
	)
	if force {
		err = errors.Join(err, host.Go("deaf", func(context.Context) error { select {} }))
	}
	if err != nil {
		host.Fail(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond) // instead of SIGTERM
	defer cancel()
	return lifecycle.Run(ctx, host, lifecycle.RunOptions{Grace: time.Second})
}
