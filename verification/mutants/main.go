// Command mutants breaks the library on purpose, one fault at a time, and has the
// tests find each.
//
// The ledger is the folder's *.patch files: each a seeded fault in the library's
// own code, a unified diff of one file, under a header that says which promise it
// breaks (P1 to P10 of the README), how, and which test has to notice. The
// twenty-one ways to swap two rows of the table of phases are a family of their
// own, made from the table itself, in one binary.
//
// The program copies the tree, as git would commit it now, and runs every test that
// the ledger names once on the copy as it is: there they must pass. Then, for each
// fault, it applies the patch, builds the test binary and runs the one test in it.
//
//	killed    the test failed: by an assertion, a panic, a data race or its -timeout
//	survived  the test passed: nothing would have noticed the fault
//	stale     the patch does not apply: the code has moved on
//	invalid   the faulty code does not compile, so it says nothing about the tests
//	skipped   its turn did not come in the time of -for
//
// It ends with the counts, and non-zero unless all that had their turn were killed.
//
//	go run ./mutants                    # from the module's root
//	go run ./mutants -run 'sync|drain'  # those whose name, promise or fault matches
//	go run ./mutants -for 3m            # as many as begin in three minutes, in random order
//	go run ./mutants -update            # after the code has moved: make the diffs anew
//
// A build runs with -trimpath, so that the copies share the build cache with one
// another and with the next run.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"time"
)

type options struct {
	root    string // of the repository
	ledger  string // folder of the patches
	run     *regexp.Regexp
	workers int
	timeout time.Duration
	lasts   time.Duration // no fault begins later; 0: all have their turn
	phases  string        // the file with the table of phases, from the root; "": no family
}

func main() {
	run := flag.String("run", "", "only faults whose file, promise or sentence matches this `regexp`")
	workers := flag.Int("p", 2, "how many to run at a time")
	timeout := flag.Duration("timeout", 5*time.Second, "how long a killing test may take beyond ten times what it takes without a fault")
	lasts := flag.Duration("for", 0, "begin no fault after this long, and take them in random order; 0: all, in the ledger's")
	update := flag.Bool("update", false, "rewrite the patches for the code as it is now, with less context to match, and run nothing")
	list := flag.Bool("list", false, "print the ledger and run nothing")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	root, err := output(ctx, "", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		fatal(err)
	}
	root = strings.TrimSpace(root)
	expression, err := regexp.Compile(*run)
	if err != nil {
		fatal(err)
	}
	o := options{
		root: root, ledger: root + "/verification/mutants", run: expression,
		workers: *workers, timeout: *timeout, lasts: *lasts, phases: "lifecycle.go",
	}
	switch {
	case *list:
		mutants, err := load(o)
		if err != nil {
			fatal(err)
		}
		for _, m := range mutants {
			fmt.Printf("%-3s %-44s %s\n", m.promise, m.name, m.fault)
		}
	case *update:
		if err := rewrite(ctx, os.Stdout, o); err != nil {
			fatal(err)
		}
	default:
		counts, err := judgeAll(ctx, os.Stdout, o)
		if err != nil {
			fatal(err)
		}
		if !counts.good() {
			os.Exit(1)
		}
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "mutants:", err)
	os.Exit(2)
}

// counts is how many came to what.
type counts map[verdict]int

func (c counts) total() (n int) {
	for _, k := range c {
		n += k
	}
	return n
}

// good reports that all that had their turn were killed, and that there were any.
func (c counts) good() bool { return c[killed] > 0 && c[killed]+c[skipped] == c.total() }

func (c counts) String() string {
	text := fmt.Sprintf("mutants %d: killed %d, survived %d, stale %d, invalid %d",
		c.total(), c[killed], c[survived], c[stale], c[invalid])
	if n := c[skipped]; n > 0 {
		text += fmt.Sprintf(", skipped %d", n)
	}
	return text
}

// judgeAll runs the ledger and prints a line a fault, in the order in which they have their turn. An
// error means that there is no result: the tests fail without a fault, say.
func judgeAll(ctx context.Context, out io.Writer, o options) (counts, error) {
	start := time.Now()
	mutants, err := load(o)
	if err != nil {
		return nil, err
	}
	if o.lasts > 0 {
		rand.Shuffle(len(mutants), func(i, j int) { mutants[i], mutants[j] = mutants[j], mutants[i] })
	}
	trees, err := copies(ctx, o, o.workers)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, t := range trees {
			t.remove()
		}
	}()
	tests, err := baseline(ctx, trees, mutants, o.timeout)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "%d killing tests pass without a fault (%.0fs)\n", tests, time.Since(start).Seconds())

	jobs := make(chan int)
	results := make([]chan result, len(mutants))
	for i := range results {
		results[i] = make(chan result, 1)
	}
	var workers sync.WaitGroup
	for _, t := range trees {
		workers.Go(func() {
			for i := range jobs {
				if o.lasts > 0 && time.Since(start) > o.lasts {
					results[i] <- result{verdict: skipped}
				} else {
					results[i] <- t.judge(ctx, mutants[i])
				}
			}
		})
	}
	go func() {
		for i := range mutants {
			jobs <- i
		}
		close(jobs)
	}()
	defer workers.Wait()

	promises := map[string]int{}
	verdicts := counts{}
	for i, m := range mutants {
		r := <-results[i]
		if r.err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%s: %w", m.name, r.err)
		}
		verdicts[r.verdict]++
		if r.verdict == skipped {
			continue
		}
		promises[m.promise]++
		fmt.Fprintf(out, "%-8s %-3s %-44s %s in %s: %s\n", r.verdict, m.promise, m.name, m.test, m.where(), r.how)
		if r.verdict != killed && r.log != "" {
			fmt.Fprintf(out, "  %s\n", strings.ReplaceAll(tail(r.log, 20), "\n", "\n  "))
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	fmt.Fprint(out, "by promise:")
	for n := 1; n <= promiseCount; n++ {
		promise := fmt.Sprint("P", n)
		fmt.Fprintf(out, " %s %d", promise, promises[promise])
	}
	fmt.Fprintf(out, " (%.0fs)\n%v\n", time.Since(start).Seconds(), verdicts)
	return verdicts, nil
}

// tail is the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
