// Package server is the program kvserver, for a main of one line, or for another
// main that adds to it what the library itself does not depend on, such as metrics:
//
//	os.Exit(server.Main(os.Args[1:], os.Stdout, os.Stderr, server.Options{
//		NewHost: metrics.NewHost,
//		Debug:   map[string]http.Handler{"GET /metrics": metrics},
//	}))
package server

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// Options are what a main adds to the program. The zero value adds nothing.
type Options struct {
	// NewHost makes the host, as lifecycle.New does, which is what nil stands for. An
	// observer is added by joining it to the one that opts has:
	//
	//	func(log lifecycle.Log, opts lifecycle.Options) *lifecycle.Host {
	//		opts.Observer = lifecycle.MultiObserver(opts.Observer, mine)
	//		return lifecycle.New(log, opts)
	//	}
	NewHost func(log lifecycle.Log, opts lifecycle.Options) *lifecycle.Host
	// Debug are handlers for the listener of -debug, which serves until the exit has
	// ended, by http.ServeMux's patterns. Main panics on one that http.ServeMux
	// would panic on, or that is taken: /debug/lifecycle, /readyz and /livez are.
	Debug map[string]http.Handler
	// Stuck is the task of the flag -stuck, which ignores its context. nil: there is no
	// such flag.
	Stuck func(ctx context.Context) error
}

type config struct {
	Options
	addr, debug, dir           string
	grace, flush               time.Duration
	cleanup, metrics, snapshot time.Duration
	maxValue, segment          int64
	stuck, verbose             bool

	load          time.Duration
	clients, keys int
}

// parse returns the configuration, or what is wrong with the arguments.
func parse(args []string, stderr io.Writer, opts Options) (config, error) {
	c := config{Options: opts}
	flags := flag.NewFlagSet("kvserver", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.addr, "addr", "127.0.0.1:8080", "`address` to serve at; a load run takes a free port of 127.0.0.1 instead")
	flags.StringVar(&c.debug, "debug", "", "`address` of the status page and the probes, such as 127.0.0.1:8081; keep it off public ones (default: none)")
	flags.StringVar(&c.dir, "dir", "", "data `directory`, made if need be (default \"kvserver-data\"; for a load run a temporary one)")
	flags.DurationVar(&c.grace, "grace", 25*time.Second, "how long an exit may wait for calls and tasks before it is forced")
	flags.DurationVar(&c.flush, "flush", 5*time.Second, "how long a forced exit may take to write what was accepted")
	flags.DurationVar(&c.cleanup, "cleanup", 0, "`interval` at which expired keys are deleted (default 1s; for a load run 50ms)")
	flags.DurationVar(&c.metrics, "metrics", time.Second, "`interval` at which the metrics are taken")
	flags.DurationVar(&c.snapshot, "snapshot", 0, "`interval` at which the state is written to a snapshot, and the log before it is given up (default 1m; for a load run 500ms)")
	flags.Int64Var(&c.maxValue, "max-value", 1<<20, "the largest value, in `bytes`")
	flags.Int64Var(&c.segment, "segment", 0, "`bytes` of a file of the log, which is given up as a whole (default 64 MiB; for a load run 1 MiB)")
	if c.Stuck != nil {
		flags.BoolVar(&c.stuck, "stuck", false, "run a background task that ignores its context and never ends, to see what becomes of the exit")
	}
	flags.BoolVar(&c.verbose, "v", false, "log more")
	flags.DurationVar(&c.load, "load", 0, "put the server under load for so long, end it with a SIGTERM in the middle of that, reopen the directory and verify every write that was acknowledged")
	flags.IntVar(&c.clients, "clients", 32, "`number` of clients of a load run")
	flags.IntVar(&c.keys, "keys", 100, "`number` of keys of each client of a load run")
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	invalid := ""
	switch {
	case flags.NArg() > 0:
		invalid = fmt.Sprintf("unexpected argument %q", flags.Arg(0))
	case c.grace <= 0 || c.flush <= 0:
		invalid = "-grace and -flush must be positive"
	case c.load < 0:
		invalid = "-load can't be negative"
	case c.cleanup < 0 || c.metrics <= 0 || c.snapshot < 0:
		invalid = "-cleanup, -metrics and -snapshot must be positive"
	case c.maxValue < 0 || c.maxValue > maxValueBytes:
		invalid = fmt.Sprintf("-max-value must be between 0 and %d", maxValueBytes)
	case c.segment < 0:
		invalid = "-segment can't be negative"
	case c.clients < 1 || c.keys < 1:
		invalid = "-clients and -keys must be positive"
	}
	if invalid != "" {
		fmt.Fprintf(stderr, "kvserver: %s; see -help\n", invalid)
		return config{}, errors.New(invalid)
	}
	return c, nil
}

// setDefaults gives a value to what depends on -load: such a run is short, so its
// intervals are too, and its files small. So it meets cleanups, snapshots and
// truncations all the same.
func (c *config) setDefaults() {
	directory, cleanup, snapshot, segment := "kvserver-data", time.Second, time.Minute, int64(0)
	if c.load > 0 {
		directory, cleanup, snapshot, segment = "", 50*time.Millisecond, 500*time.Millisecond, 1<<20
		c.addr = "127.0.0.1:0"
		c.maxValue = max(c.maxValue, loadValueBytes)
	}
	c.dir = cmp.Or(c.dir, directory)
	c.cleanup = cmp.Or(c.cleanup, cleanup)
	c.snapshot = cmp.Or(c.snapshot, snapshot)
	c.segment = cmp.Or(c.segment, segment)
}

const usage = `Kvserver is a small database server on an embedded, durable log.

  GET, PUT, DELETE /kv/{key}   the body is the value; PUT takes ?ttl=30s
  GET /status, GET /metrics    what the host does, and how much
  at -debug: GET /debug/lifecycle, the status page, and /readyz and /livez for probes

SIGTERM or Ctrl-C ends it in order, within -grace; a second one, or the end of
-grace, forces the exit, within -flush. It prints the exit as a timeline. Its exit
code is 0 only if nothing failed.

Flags:
`

// Main is the program: it serves until the process gets SIGTERM or SIGINT, or the
// host fails, and returns when the exit has ended. args are the command line's
// without the program's name. It returns the exit code: 0 only if all went well, 2
// for arguments that make no sense, with nothing begun.
func Main(args []string, stdout, stderr io.Writer, opts Options) int {
	c, err := parse(args, stderr, opts)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	c.setDefaults()
	level := slog.LevelInfo
	if c.verbose {
		level = slog.LevelDebug
	}
	logger := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if c.load > 0 {
		err = loadRun(c, logger, stdout)
	} else {
		err = serveUntilSignal(c, logger, stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "kvserver: %v\n", err)
		return 1
	}
	return 0
}

func serveUntilSignal(c config, logger *slog.Logger, stdout io.Writer) error {
	d, err := start(c, logger)
	if err != nil {
		return err
	}
	if c.debug != "" {
		debug, err := serveDebug(c.debug, d.host, c.Debug, logger)
		if err != nil {
			return errors.Join(err, exitNow(d.host, c, logger))
		}
		defer debug.close()
		logger.Info("status page", "url", "http://"+debug.addr.String()+"/debug/lifecycle")
	}
	err = d.untilExit(context.Background(), c, logger)
	fmt.Fprint(stdout, d.host.Report())
	return err
}

// database is the server, running.
type database struct {
	host  *lifecycle.Host
	store *store
	addr  net.Addr
}

// start opens the directory, rebuilds the state and serves it. On error nothing is
// left: no goroutine, no port, no lock.
//
// The port comes last: whoever can connect is served.
func start(c config, logger *slog.Logger) (_ *database, err error) {
	began := time.Now()
	state, err := openState(c.dir, c.segment)
	if err != nil {
		return nil, err
	}
	keys, next, recovery := state.table.keys, state.table.next, time.Since(began)
	m := &metrics{first: next}
	newHost := c.NewHost
	if newHost == nil {
		newHost = lifecycle.New
	}
	host := newHost(state.log, lifecycle.Options{
		Name:     "kvserver",
		Logger:   logger,
		Observer: lifecycle.Observer{Synced: m.synced},
	})
	defer func() {
		if err != nil { // the log is the host's now, so the way back is its exit
			err = errors.Join(err, exitNow(host, c, logger))
		}
	}()
	m.store = newStore(host.Durability(), state.table)
	background := &tasks{
		host:      host,
		store:     m.store,
		snapshots: &snapshotter{dir: snapshotDir(c.dir), store: m.store, truncate: state.log.TruncateBefore, last: state.snapshot},
		metrics:   m,
		dir:       c.dir,
		logger:    logger,
	}
	if err := background.start(c); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return nil, err
	}
	web := &server{host: host, store: m.store, metrics: m, maxValue: c.maxValue, logger: logger}
	if err := web.serve(listener); err != nil {
		return nil, err
	}
	logger.Info("serving", "addr", listener.Addr().String(), "dir", c.dir, "keys", keys,
		"snapshot", state.snapshot, "next", next, "recovery", recovery)
	return &database{host, m.store, listener.Addr()}, nil
}

// exitNow is untilExit without the waiting.
func exitNow(host *lifecycle.Host, c config, logger *slog.Logger) error {
	ended, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("the server did not start"))
	return lifecycle.Run(ended, host, lifecycle.RunOptions{Grace: c.grace, Flush: c.flush, Logger: logger})
}

// untilExit waits for a signal, for ctx to end, or until the host begins its exit
// by itself, and then for the end of the exit, whose result it returns.
func (d *database) untilExit(ctx context.Context, c config, logger *slog.Logger) error {
	return lifecycle.Run(ctx, d.host, lifecycle.RunOptions{Grace: c.grace, Flush: c.flush, Logger: logger})
}
