// Exitmodule is a server of many databases, each of which can be ended and launched
// again while the others go on: what a host's exit_module handler does.
//
//	go run ./examples/exitmodule -stuck reports          # serve until SIGTERM or Ctrl-C
//	curl -X PUT localhost:8081/db/orders                 # 201: launched; 200: it runs already
//	curl -X PUT -d shipped localhost:8081/db/orders/1    # 204 when durable; 404: no such database
//	curl localhost:8081/db/orders/1
//	curl localhost:8081/db                               # what each database does
//	curl -X POST -H 'Accept: text/plain' localhost:8081/db/orders/exit
//	curl -X PUT localhost:8081/db/orders                 # and back, with all that was written
//
// An exit is answered when it has ended, with its report, or when ?within=5s has
// passed: then with 504 and whom it waits for, while it goes on. Asking again goes
// on waiting. ?force=true leaves behind who never ends. To see it, end the database
// that -stuck names:
//
//	curl -X PUT localhost:8081/db/reports
//	curl -X POST -H 'Accept: text/plain' 'localhost:8081/db/reports/exit?within=2s'
//	curl -X POST -H 'Accept: text/plain' 'localhost:8081/db/reports/exit?force=true'
//	curl -X PUT localhost:8081/db/reports
//
// An answer of 503 or 404 to a write says that nothing was written; 500, that it
// can't be told whether it was.
//
//	go run -race ./examples/exitmodule -storm 10s        # launches, exits and writes at random, verified
package main

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
	"os"
	"time"

	"github.com/seed080d9131/lifecycle"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

type config struct {
	addr, dir    string
	grace, flush time.Duration
	every        time.Duration // the interval of the background tasks
	stuck        string

	storm   time.Duration
	clients int
}

func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	flags := flag.NewFlagSet("exitmodule", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.addr, "addr", "127.0.0.1:8081", "`address` to serve at; a storm takes a free port of 127.0.0.1 instead")
	flags.StringVar(&c.dir, "dir", "", "`directory` of the databases, made if need be (default \"exitmodule-data\"; for a storm a temporary one)")
	flags.DurationVar(&c.grace, "grace", 25*time.Second, "how long the exit of all may wait for calls and tasks before it is forced")
	flags.DurationVar(&c.flush, "flush", 5*time.Second, "how long a forced exit may take to write what was accepted")
	flags.DurationVar(&c.every, "every", 0, "`interval` of the databases' background tasks (default 1s; for a storm 5ms)")
	flags.StringVar(&c.stuck, "stuck", "", "`name` of a database that gets a task which never ends")
	flags.DurationVar(&c.storm, "storm", 0, "drive the server over loopback for so long, end it with a SIGTERM, open every directory again and verify it")
	flags.IntVar(&c.clients, "clients", 16, "`number` of clients of a storm")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	invalid := ""
	switch {
	case flags.NArg() > 0:
		invalid = fmt.Sprintf("unexpected argument %q", flags.Arg(0))
	case c.grace <= 0 || c.flush <= 0:
		invalid = "-grace and -flush must be positive"
	case c.storm < 0 || c.every < 0:
		invalid = "-storm and -every can't be negative"
	case c.clients < 1:
		invalid = "-clients must be positive"
	}
	if invalid != "" {
		fmt.Fprintf(stderr, "exitmodule: %s; see -help\n", invalid)
		return config{}, errors.New(invalid)
	}
	directory, every := "exitmodule-data", time.Second
	if c.storm > 0 {
		directory, every = "", 5*time.Millisecond
		c.addr = "127.0.0.1:0"
	}
	c.dir = cmp.Or(c.dir, directory)
	c.every = cmp.Or(c.every, every)
	return c, nil
}

// run is the program. It returns the exit code: 0 only if all went well, 2 for
// arguments that make no sense.
func run(args []string, stdout, stderr io.Writer) int {
	c, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if c.storm > 0 {
		// Hundreds of launches are no news there, nor are those whose client has gone.
		err = stormRun(c, slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError})), stdout)
	} else {
		err = serveUntilSignal(c, slog.New(slog.NewTextHandler(stderr, nil)), stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "exitmodule: %v\n", err)
		return 1
	}
	return 0
}

func serveUntilSignal(c config, logger *slog.Logger, stdout io.Writer) error {
	s := newServer(c, logger)
	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return err
	}
	logger.Info("serving", "addr", listener.Addr().String(), "dir", c.dir)
	err = s.serve(context.Background(), listener, c)
	for _, host := range s.lastHosts() {
		fmt.Fprint(stdout, host.Report())
	}
	return err
}

// serve serves until a signal comes, or ctx ends, and all databases have exited.
//
// The listener outlives them: whoever asks while they exit gets a 503 from the
// gate of a database, or from the Controller, and not a closed port.
func (s *server) serve(ctx context.Context, listener net.Listener, c config) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	web := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      readTimeout + maxWithin + 5*time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { // ends with the listener
		err := web.Serve(listener)
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		served <- err
		cancel(err) // nobody can reach the databases any more
	}()
	err := lifecycle.Run(ctx, s.controller, lifecycle.RunOptions{Grace: c.grace, Flush: c.flush, Logger: s.logger})

	// What is left are answers on their way, and connections without a request.
	last, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	if web.Shutdown(last) != nil {
		_ = web.Close()
	}
	return errors.Join(err, <-served)
}
