// Command closedengine shows what a background task does to a server that closes
// its engine too early: Pebble panics where a closed engine is used, and a panic in
// a goroutine ends the process.
//
// Each round is a process of its own: clients place orders in a Pebble engine, a
// cleanup of views runs in the background, the clients finish, and the server shuts
// down, in one of three orders. Then the engine is opened again, and every order
// that was acknowledged is looked for.
//
//	close               closes the engine
//	cancel, then close  cancels the cleanup's context, and closes the engine
//	lifecycle.Host      awaits the cleanup, then closes the log, then the engine
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/pebblelog"
)

// The orders of shutdown.
var orders = []string{"close", "cancel, then close", "lifecycle.Host"}

// childVariable tells a child process its order of shutdown.
const childVariable = "CLOSEDENGINE_ORDER"

func main() {
	if order := os.Getenv(childVariable); order != "" {
		os.Exit(child(order, os.Args[1]))
	}
	rounds := flag.Int("rounds", 50, "processes per order of shutdown")
	flag.Parse()
	if err := run(os.Stdout, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "closedengine:", err)
		os.Exit(1)
	}
}

// result is what came of the rounds of one order.
type result struct {
	order                                    string
	rounds, dead, closed, acknowledged, lost int
}

// run runs all orders and prints the table.
func run(out io.Writer, rounds int) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "order of the exit\trounds\tprocess dead\tof \"pebble: closed\"\tacknowledged\tlost\t")
	var first string // what a dead process has said
	for _, order := range orders {
		r := result{order: order, rounds: rounds}
		for range rounds {
			said, err := r.round()
			if err != nil {
				return fmt.Errorf("%s: %w", order, err)
			}
			if first == "" {
				first = said
			}
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\t\n", r.order, r.rounds, r.dead, r.closed, r.acknowledged, r.lost)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if first != "" {
		fmt.Fprintf(out, "\nWhat the first one said:\n%s\n", first)
	}
	return nil
}

// round runs one process, and looks for what it has acknowledged.
func (r *result) round() (said string, err error) {
	dir, err := os.MkdirTemp("", "closedengine-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	var acks, errs bytes.Buffer
	command := exec.Command(self, dir)
	command.Env = append(os.Environ(), childVariable+"="+r.order)
	command.Stdout, command.Stderr = &acks, &errs
	err = command.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.dead++
		said, _, _ = strings.Cut(errs.String(), "\n\ngoroutine")
		if strings.Contains(said, "pebble: closed") {
			r.closed++
		}
	} else if err != nil {
		return "", err
	}
	held, err := placed(dir)
	if err != nil {
		return "", fmt.Errorf("opened again: %w (the process said: %s)", err, said)
	}
	for lines := bufio.NewScanner(&acks); lines.Scan(); {
		r.acknowledged++
		if !held[lines.Text()] {
			r.lost++
		}
	}
	return said, nil
}

const logPrefix = "log/"

// placed is the orders that an engine holds: in its table, or in its log.
func placed(dir string) (map[string]bool, error) {
	db, err := pebble.Open(dir, &pebble.Options{Logger: silent{}})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	held := map[string]bool{}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte("order/"), UpperBound: []byte("order0")})
	if err != nil {
		return nil, err
	}
	for more := it.First(); more; more = it.Next() {
		held[string(it.Key())] = true
	}
	if err := it.Close(); err != nil {
		return nil, err
	}
	log, err := pebblelog.Open(db, pebblelog.Options{Prefix: logPrefix})
	if err != nil {
		return nil, err
	}
	for entry, err := range log.Read(log.First()) {
		if err != nil {
			return nil, err
		}
		held[string(entry.Data)] = true
	}
	return held, log.Close()
}

// child is one server, from start to end. It returns the process's exit code.
func child(order, dir string) int {
	db, err := pebble.Open(dir, &pebble.Options{Logger: silent{}})
	if err == nil {
		err = fill(db)
	}
	if err == nil {
		switch order {
		case "close":
			err = alone(db, false)
		case "cancel, then close":
			err = alone(db, true)
		default:
			err = hosted(db)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// alone is the server without a Host.
func alone(db *pebble.DB, cancels bool) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cleaned := make(chan struct{})
	go func() {
		for ctx.Err() == nil {
			if err := cleanUp(db); err != nil {
				fmt.Fprintln(os.Stderr, "cleanup:", err) // and tries again
			}
		}
		close(cleaned)
	}()
	clients(func(order string) error { return db.Set([]byte(order), nil, pebble.Sync) })

	if cancels {
		cancel()
	}
	_ = db.Close()
	<-cleaned // the rest of the server's shutdown takes its time as well
	return nil
}

// hosted is the same server with a Host.
func hosted(db *pebble.DB) error {
	log, err := pebblelog.Open(db, pebblelog.Options{Prefix: logPrefix})
	if err != nil {
		return err
	}
	host := lifecycle.New(log, lifecycle.Options{Name: "orders"})
	err = errors.Join(
		host.OnExit(lifecycle.PhaseRelease, "pebble", func(context.Context) error { return db.Close() }),
		host.Go("view cleanup", func(ctx context.Context) error {
			for ctx.Err() == nil {
				if err := cleanUp(db); err != nil {
					return err
				}
				if _, err := host.Durability().Append(ctx, []byte("cleaned up")); err != nil {
					return err
				}
			}
			return nil
		}))
	if err != nil {
		return errors.Join(err, host.Exit(context.Background()))
	}
	clients(func(order string) error {
		_, err := host.Durability().Commit(context.Background(), []byte(order))
		return err
	})
	return host.Exit(context.Background())
}

// clients place orders for a while, and print each that is acknowledged.
func clients(place func(order string) error) {
	var wg sync.WaitGroup
	var n atomic.Int64
	until := time.Now().Add(time.Duration(5+rand.IntN(10)) * time.Millisecond)
	for range 4 {
		wg.Go(func() {
			for time.Now().Before(until) {
				order := fmt.Sprintf("order/%06d", n.Add(1))
				if err := place(order); err != nil {
					fmt.Fprintln(os.Stderr, "order:", err)
					return
				}
				fmt.Println(order)
			}
		})
	}
	wg.Wait()
}

const views = 2000

func fill(db *pebble.DB) error {
	b := db.NewBatch()
	for i := range views {
		if err := b.Set(fmt.Appendf(nil, "view/%04d", i), bytes.Repeat([]byte("v"), 100), nil); err != nil {
			return err
		}
	}
	return db.Apply(b, pebble.Sync)
}

// cleanUp looks at all views and refreshes those that have expired, here one in
// ten.
func cleanUp(db *pebble.DB) (err error) {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte("view/"), UpperBound: []byte("view0")})
	if err != nil {
		return err
	}
	b := db.NewBatch()
	for more := it.First(); more; more = it.Next() {
		if rand.IntN(10) == 0 {
			err = errors.Join(err, b.Set(it.Key(), it.Value(), nil))
		}
	}
	if err := errors.Join(err, it.Close()); err != nil {
		return err
	}
	return db.Apply(b, pebble.Sync)
}

// silent is a pebble.Logger that says only what ends the process.
type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
func (silent) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}
