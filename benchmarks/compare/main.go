// Command compare measures the library against its peers and against what the machine can do, all in one run and in
// alternation, and says which bars are met. Its exit status is 1 if one is missed and 2 if something could not be
// measured.
//
//	go run ./compare                  everything, some minutes
//	go run ./compare -quick           everything smaller, under a minute: a check that it works, no verdict
//	go run ./compare -run '^commit-'  some bars
//	go run ./compare -plot DIR        draws curves beside it; with -run '^$' nothing else is done
//	go run ./compare -json FILE       one JSON object per line beside the table
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
)

func main() {
	if os.Getenv(raceVariable) != "" {
		racer()
		return
	}
	var (
		quick    = flag.Bool("quick", false, "smaller and shorter, with the most telling peers only")
		jsonFile = flag.String("json", "", "write one object per line to this `file`")
		run      = flag.String("run", "", "measure the bars that this `regexp` matches")
		dir      = flag.String("dir", "", "make the logs under this `directory`, whose disk is measured; the system's place for temporary files if empty")
		rounds   = flag.Int("rounds", 0, "how often everything is measured; 0: 5, or 3 with -quick")
		plots    = flag.String("plot", "", "draw the curves as well, into this `directory`; takes some minutes more")
		list     = flag.Bool("list", false, "print the bars and measure nothing")
	)
	flag.Parse()
	pattern, err := regexp.Compile(*run)
	if err != nil || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "compare:", errors.Join(err, fmt.Errorf("unexpected arguments: %q", flag.Args())))
		os.Exit(2)
	}
	if *list {
		for _, b := range bars {
			fmt.Printf("%-12s %s\n", b.id, b.what)
		}
		return
	}
	missed, err := compare(*dir, *jsonFile, *plots, pattern, *quick, *rounds)
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(2)
	}
	if missed > 0 {
		os.Exit(1)
	}
}

// bar is one line of the table of bars.
type bar struct {
	id, what string
	measure  func(*env) error
}

var bars = []bar{
	{"commit-1", "durable commits/s, one committer, 128 B and 1 KiB", commits(1)},
	{"commit-8", "durable commits/s, 8 committers, 128 B", commits(8)},
	{"commit-64", "durable commits/s, 64 committers, 128 B", commits(64)},
	{"commit-512", "durable commits/s, 512 committers, 128 B", commits(512)},
	{"commit-4096", "durable commits/s, 4096 committers, 128 B", commits(4096)},
	{"commit-1k", "durable commits/s, 8, 64 and 512 committers, 1 KiB", commits1k},
	{"latency", "p50 and p99 of a commit, in a closed loop and with thinking committers", latency},
	{"submit", "append 128 B without waiting, then drain, one producer", submit},
	{"append", "Append of 128 B to a log that does nothing", appends},
	{"go", "Host.Go of a task that returns at once", spawn},
	{"enter", "Enter and Leave", enter},
	{"exit-100k", "Exit of idle tasks", exitTasks},
	{"exit-drain", "Exit with everything accepted and nothing written", exitDrain},
	{"fleet", "Controller.Exit of many hosts", fleet},
	{"recover", "commitlog.Open of a long log", recovery},
	{"stuck", "the report of an exit that waits for many tasks", stuck},
	{"close-race", "writers race with the end of their log", closeRace},
}

// env is what a measure needs to know, and where it leaves its rows.
type env struct {
	dir             string
	quick           bool
	rounds          int
	warmup, measure time.Duration
	bar             string // the one under way
	rows            []row
	errs            []error
	terminal        bool
	shown           string
}

// row is one comparison: ours with one peer, or with a limit, in one case of a bar.
type row struct {
	Bar      string   `json:"bar"`
	Case     string   `json:"case"`
	Unit     string   `json:"unit"`
	Ours     float64  `json:"ours"`
	Peer     string   `json:"peer"`
	Theirs   float64  `json:"theirs"`
	Ratio    float64  `json:"ratio"` // median of the ratios within a round
	Low      float64  `json:"low"`   // the smallest of them
	High     float64  `json:"high"`  // the largest
	Rounds   int      `json:"rounds"`
	Sense    string   `json:"sense,omitempty"`    // of required: ">=" or "<="
	Required *float64 `json:"required,omitempty"` // absent: shown, no bar
	Met      *bool    `json:"met,omitempty"`
}

// bound is what a bar asks of a ratio; the zero bound asks nothing.
type bound struct {
	sense string
	value float64
}

func atLeast(v float64) bound { return bound{">=", v} }
func atMost(v float64) bound  { return bound{"<=", v} }

func (b bound) apply(r *row) {
	if b.sense == "" {
		return
	}
	met := b.sense == ">=" && r.Ratio >= b.value || b.sense == "<=" && r.Ratio <= b.value
	r.Sense, r.Required, r.Met = b.sense, &b.value, &met
}

// add compares two columns of samples.
func (e *env) add(name, unit, peer string, ours, theirs []float64, required bound) {
	ratio := harness.Paired(ours, theirs)
	if ratio.Pairs == 0 {
		e.errs = append(e.errs, fmt.Errorf("%s, %s: no round in which both %s and ours could be measured", e.bar, name, peer))
		return
	}
	r := row{Bar: e.bar, Case: name, Unit: unit, Ours: harness.Median(finite(ours)), Peer: peer, Theirs: harness.Median(finite(theirs)),
		Ratio: ratio.Median, Low: ratio.Low, High: ratio.High, Rounds: ratio.Pairs}
	required.apply(&r)
	e.rows = append(e.rows, r)
}

// absolute stands in the peer's place where a figure of ours is held against the bound itself. Theirs is 1 then.
const absolute = "(absolute)"

// value adds a figure of ours that is held against a bound itself, not by way of a ratio.
func (e *env) value(name, unit string, ours []float64, required bound) {
	ours = finite(ours)
	if len(ours) == 0 {
		e.errs = append(e.errs, fmt.Errorf("%s, %s: could not be measured", e.bar, name))
		return
	}
	one := make([]float64, len(ours))
	for i := range one {
		one[i] = 1
	}
	e.add(name, unit, absolute, ours, one, required)
}

func finite(values []float64) []float64 {
	var kept []float64
	for _, v := range values {
		if v == v {
			kept = append(kept, v)
		}
	}
	return kept
}

// interleave is harness.Interleave with this run's rounds, its progress line, and a place for its errors.
func (e *env) interleave(name string, candidates []harness.Candidate) map[string][]float64 {
	if !e.terminal {
		e.progress("%s, %s", e.bar, name)
	}
	samples, err := harness.Interleave(e.rounds, candidates, func(round int, who string) {
		if e.terminal {
			e.progress("%s, %s: round %d of %d, %s", e.bar, name, round+1, e.rounds, who)
		}
	})
	if err != nil {
		e.errs = append(e.errs, fmt.Errorf("%s, %s: %w", e.bar, name, err))
	}
	return samples
}

// progress overwrites its line on a terminal, and writes another one elsewhere.
func (e *env) progress(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if e.terminal {
		fmt.Fprintf(os.Stderr, "\r%-*s", len(e.shown), line)
		e.shown = line
	} else if line != "" {
		fmt.Fprintln(os.Stderr, line)
	}
}

// fresh calls use with a new directory and removes it afterwards.
func (e *env) fresh(use func(dir string) (float64, error)) (float64, error) {
	dir, err := os.MkdirTemp(e.dir, "log-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	return use(dir)
}

func compare(dir, jsonFile, plots string, pattern *regexp.Regexp, quick bool, rounds int) (missed int, err error) {
	work, err := os.MkdirTemp(dir, "compare-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	e := &env{dir: work, quick: quick, rounds: 5, warmup: 200 * time.Millisecond, measure: 500 * time.Millisecond}
	if quick {
		e.rounds, e.warmup, e.measure = 3, 20*time.Millisecond, 60*time.Millisecond
	}
	if rounds > 0 {
		e.rounds = rounds
	}
	if info, err := os.Stderr.Stat(); err == nil {
		e.terminal = info.Mode()&os.ModeCharDevice != 0
	}
	start := time.Now()
	for _, b := range bars {
		if !pattern.MatchString(b.id) {
			continue
		}
		e.bar = b.id
		if err := b.measure(e); err != nil {
			e.errs = append(e.errs, fmt.Errorf("%s: %w", b.id, err))
		}
	}
	if plots != "" {
		e.bar = "plot"
		if err := e.plot(plots); err != nil {
			e.errs = append(e.errs, fmt.Errorf("plot: %w", err))
		}
	}
	e.progress("")
	if e.terminal {
		fmt.Fprint(os.Stderr, "\r")
	}
	print(os.Stdout, e.rows)
	met := 0
	for _, r := range e.rows {
		if r.Met != nil && *r.Met {
			met++
		} else if r.Met != nil {
			missed++
		}
	}
	fmt.Printf("\n%d met, %d missed; %d rounds in %.0f s; %s, %d processors, %s\n", met, missed, e.rounds, time.Since(start).Seconds(),
		runtime.Version(), runtime.GOMAXPROCS(0), runtime.GOOS+"/"+runtime.GOARCH)
	if wide := unsettled(e.rows); wide > 0 {
		fmt.Printf("%d of %d ratios moved by more than a factor of two between rounds: other work ran on this machine, or the rounds were too short; measure again\n", wide, len(e.rows))
	}
	if jsonFile != "" {
		e.errs = append(e.errs, writeJSON(jsonFile, e.rows))
	}
	return missed, errors.Join(e.errs...)
}

// unsettled counts the rows whose spread is too wide for a verdict, whatever it says.
func unsettled(rows []row) (n int) {
	for _, r := range rows {
		if r.High > 2*r.Low && r.Peer != absolute {
			n++
		}
	}
	return n
}

func print(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "bar\tcase\tours\t\tpeer or limit\ttheirs\tratio\tspread\trequired\t")
	for _, r := range rows {
		verdict := ""
		if r.Met != nil {
			verdict = fmt.Sprintf("%s %.4g\tmet", r.Sense, *r.Required)
			if !*r.Met {
				verdict = fmt.Sprintf("%s %.4g\tMISSED", r.Sense, *r.Required)
			}
		}
		theirs := figure(r.Theirs)
		if r.Peer == absolute {
			theirs = ""
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.2f–%.2f\t%s\n", r.Bar, r.Case, figure(r.Ours), r.Unit, r.Peer, theirs, r.Ratio, r.Low, r.High, verdict)
	}
	t.Flush()
}

// figure writes three digits that count, or the whole number where it has more, with a comma before each three.
func figure(v float64) string {
	if v < 1000 {
		return fmt.Sprintf("%.3g", v)
	}
	s := fmt.Sprintf("%.0f", v)
	var b strings.Builder
	for i, digit := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(digit)
	}
	return b.String()
}

func writeJSON(name string, rows []row) error {
	file, err := os.Create(filepath.Clean(name))
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(file)
	encoder.SetEscapeHTML(false)
	for _, r := range rows {
		err = errors.Join(err, encoder.Encode(r))
	}
	return errors.Join(err, file.Close())
}
