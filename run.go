package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"time"
)

// RunOptions configure Run. The zero value is good.
type RunOptions struct {
	// Grace is how long the exit may take before it is forced. 0: 25 s.
	Grace time.Duration
	// Flush is how long a forced exit may take to write what was accepted. 0: 5 s.
	// Grace + Flush, and a moment, is what a supervisor has to allow
	// (terminationGracePeriodSeconds, TimeoutStopSec). The moment is ForceGrace for
	// those who obey, and as much for each release hook, observer or logger that
	// takes it.
	Flush time.Duration
	// Signals begin the exit; a second one forces it, whoever has begun it. nil:
	// SIGINT and SIGTERM. Empty, but not nil: none, as it must be in a bubble of
	// testing/synctest, into which signals don't come.
	Signals []os.Signal
	// Logger gets what begins the exit, how long it may take at worst, and what
	// forces it. nil: silent. A record that is not written within ForceGrace is left
	// behind, and what comes before it has been is not logged.
	Logger *slog.Logger
}

// Run is the life of a server's process: it waits for a signal, for e to begin its
// exit by itself, or for ctx to end, and then calls e.Exit. If that has not ended
// within Grace, or a second signal comes, it calls e.ForceExit, which has Flush to
// write what was accepted.
//
// It returns what the exit returned, nil if it was clean, whoever began it; if it
// was forced, the error says by what. Otherwise Run returns only, with nothing begun,
// ErrInvalid for a nil ctx or e or a negative duration, at once, and ErrSelfExit if
// ctx descends from e, when it would exit. Signals are caught
// while Run runs and not otherwise.
// A signal that comes earlier, while a long recovery runs, say, does what it does
// without Run: it ends the process, or ends the context of a signal.NotifyContext,
// which Run may be given as ctx.
//
// Ctrl-C ends all of "server | tee file", and the pipe's reader first. The Go runtime
// then ends the process with SIGPIPE as it writes its next line of log, in the midst
// of the exit, unless the program has called signal.Ignore(syscall.SIGPIPE).
func Run(ctx context.Context, e Exiter, opts RunOptions) error {
	switch {
	case ctx == nil:
		return fmt.Errorf("lifecycle: Run: %w: a nil context", ErrInvalid)
	case isNil(e):
		return fmt.Errorf("lifecycle: Run: %w: nothing to run", ErrInvalid)
	case opts.Grace < 0 || opts.Flush < 0:
		return fmt.Errorf("lifecycle: Run: %w: a negative Grace or Flush", ErrInvalid)
	}
	if opts.Grace == 0 {
		opts.Grace = 25 * time.Second
	}
	if opts.Flush == 0 {
		opts.Flush = 5 * time.Second
	}
	if opts.Signals == nil {
		opts.Signals = []os.Signal{os.Interrupt, syscall.SIGTERM}
	}
	logger := guardedLogger{logger: opts.Logger}
	signals := make(chan os.Signal, 2) // room for the one that begins the exit and the one that forces it
	if len(opts.Signals) > 0 {         // Notify takes none for all
		signal.Notify(signals, opts.Signals...)
		defer signal.Stop(signals)
	}

	var why string
	came := 0
	select {
	case s := <-signals:
		came++
		why = "signal " + s.String()
	case <-e.Exiting():
		why = "it began by itself"
	case <-ctx.Done():
		why = text(context.Cause(ctx))
	}
	atWorst := opts.Grace + min(opts.Flush, math.MaxInt64-opts.Grace)
	logger.log(slog.LevelInfo, "exit", "why", why, "grace", opts.Grace, "flush", opts.Flush, "at_worst", atWorst)

	// Their own contexts: ctx may be done. What it says of whose it is, they say too.
	grace, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), opts.Grace,
		fmt.Errorf("it did not end within %v", opts.Grace))
	defer cancel()
	grace, force := context.WithCancelCause(grace)
	watching := make(chan struct{})
	go func() { // ends with grace
		defer close(watching)
		for {
			select {
			case s := <-signals:
				if came++; came == 2 {
					force(fmt.Errorf("a second signal, %v, came", s))
					return
				}
				logger.log(slog.LevelInfo, "a signal while the exit is under way; another one forces it", "signal", s.String())
			case <-grace.Done():
				return
			}
		}
	}()
	err := e.Exit(grace)
	// When grace has ended, ErrSelfExit is not this caller's refusal: the exit's cause may be somebody else's.
	refused := grace.Err() == nil && errors.Is(err, ErrSelfExit)
	force(nil)
	<-watching
	switch {
	case err == nil || refused:
		return err
	case isClosed(e.Done()):
		return e.Exit(context.WithoutCancel(ctx)) // err may be of the moment before
	}
	because := context.Cause(grace)
	if err != nil {
		logger.log(slog.LevelWarn, "exit is forced", "because", because.Error(), "err", text(err))
	}
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), opts.Flush)
	defer cancel()
	if err := e.ForceExit(flush); err != nil {
		return fmt.Errorf("lifecycle: Run: the exit was forced since %w: %w", because, err)
	}
	return nil
}

// isNil reports whether e is nil, or a nil *Host or *Controller.
func isNil(e Exiter) bool {
	v := reflect.ValueOf(e)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}
