// Command ablate takes the library's optimisations out again, one at a time, and
// measures what each is worth: one that gains less than 5 % has no place.
//
// The *.patch files beside it are the ledger: each takes one optimisation out, under
// a header that says which, the benchmark that it is for, and the unit in which it is
// to gain. The program builds that benchmark with it and without, runs the two in
// turns, a process each, and has benchstat compare them. The patched files are an
// overlay; nothing in the tree is changed.
//
// It ends with a line for each, and non-zero unless each gains 5 % in a case of its
// benchmark, with p < 0.05.
//
//	cd benchmarks
//	go run ./ablate               # half an hour on a quiet machine
//	go run ./ablate -run gather   # those whose file matches
//	go run ./ablate -rounds 1     # do they apply, build and run? too few for a verdict
package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

const benchstat = "golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da"

// least is the gain, of what it is without, for which an optimisation stays.
const least = 0.05

func main() {
	run := flag.String("run", "", "only patches whose file name matches this `regexp`")
	rounds := flag.Int("rounds", 10, "how often each benchmark is run, with and without in turns; benchstat needs at least 6 for a verdict")
	flag.Parse()
	if err := ablate(*run, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "ablate:", err)
		os.Exit(1)
	}
}

func ablate(run string, rounds int) error {
	wanted, err := regexp.Compile(run)
	if err != nil {
		return err
	}
	root, err := output("", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	root = strings.TrimSpace(root)
	patches, err := filepath.Glob(filepath.Join(root, "benchmarks", "ablate", "*.patch"))
	if err != nil {
		return err
	}
	var table []string
	little, judged := 0, 0
	for _, path := range patches {
		if !wanted.MatchString(filepath.Base(path)) {
			continue
		}
		a, err := load(root, path)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
		fmt.Printf("== %s: %s\n", a.name, a.what)
		best, err := a.measure(rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		verdict := "worth it"
		if judged++; best.gain < least {
			verdict = "LITTLE"
			little++
		}
		table = append(table, fmt.Sprintf("%-8s  %-20s  %-34s  %s", verdict, a.name, best.name, best))
	}
	fmt.Printf("\n%s\n", strings.Join(table, "\n"))
	fmt.Printf("optimisations %d: worth it %d, little %d\n", judged, judged-little, little)
	if little > 0 {
		return fmt.Errorf("%d gain less than %.0f %%, or not for sure", little, 100*least)
	}
	return nil
}

// ablation is an entry of the ledger.
type ablation struct {
	root      string
	name      string // of its file
	what      string
	benchmark string // as -test.bench takes it
	pkg       string
	time      string // as -test.benchtime takes it
	unit      string
	diff      string
}

var header = regexp.MustCompile(`(?s)^Optimisation: ([^\n]+)\nBenchmark: (\S+) in (\S+), (\S+)\nUnit: (\S+)\n\n(.*)$`)

func load(root, path string) (*ablation, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := header.FindStringSubmatch(string(text))
	if m == nil {
		return nil, errors.New("it does not begin with the lines Optimisation: …, Benchmark: … in …, …, Unit: … and an empty one")
	}
	name := strings.TrimSuffix(filepath.Base(path), ".patch")
	return &ablation{root, name, m[1], m[2], m[3], m[4], m[5], m[6]}, nil
}

// measure runs the benchmark with the optimisation and without, prints what benchstat
// makes of it, and returns the case that gains most.
func (a *ablation) measure(rounds int) (best gain, err error) {
	dir, err := os.MkdirTemp("", "ablate-")
	if err != nil {
		return gain{}, err
	}
	defer os.RemoveAll(dir)
	overlay, err := a.overlay(dir)
	if err != nil {
		return gain{}, err
	}
	sides := [2]string{"without", "with"}
	var results [2]bytes.Buffer
	for i, flags := range [2][]string{{"-overlay", overlay}, nil} {
		args := append([]string{"test", "-c", "-o", filepath.Join(dir, sides[i])}, flags...)
		if _, err := output(a.root, "go", append(args, a.pkg)...); err != nil {
			return gain{}, err
		}
	}
	for round := range rounds {
		for j := range sides {
			i := (round + j) % 2
			text, err := output(filepath.Join(a.root, a.pkg), filepath.Join(dir, sides[i]),
				"-test.run", "^$", "-test.bench", "^Benchmark"+a.benchmark, "-test.benchtime", a.time, "-test.benchmem")
			if err != nil {
				return gain{}, err
			}
			results[i].WriteString(text)
		}
	}
	compare := []string{"run", benchstat}
	files := make([]string, len(sides))
	for i, side := range sides {
		path := filepath.Join(dir, side+".txt")
		if err := os.WriteFile(path, results[i].Bytes(), 0o644); err != nil {
			return gain{}, err
		}
		files[i] = side + "=" + path
	}
	filter := []string{"-filter", ".unit:" + strconv.Quote(a.unit)}
	text, err := output("", "go", append(append(compare, filter...), files...)...)
	if err != nil {
		return gain{}, err
	}
	fmt.Println(text)
	table, err := output("", "go", append(append(append(compare, filter...), "-format", "csv"), files...)...)
	if err != nil {
		return gain{}, err
	}
	return a.best(table)
}

// overlay applies the patch to copies of its files below dir, and returns the file
// that tells the compiler to take those.
func (a *ablation) overlay(dir string) (string, error) {
	replace := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^--- a/(\S+)$`).FindAllStringSubmatch(a.diff, -1) {
		from, to := filepath.Join(a.root, m[1]), filepath.Join(dir, m[1])
		source, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, source, 0o644)); err != nil {
			return "", err
		}
		replace[from] = to
	}
	if len(replace) == 0 {
		return "", errors.New("it changes no file")
	}
	apply := exec.Command("git", "apply", "--whitespace=nowarn")
	apply.Dir, apply.Stdin = dir, strings.NewReader(a.diff)
	apply.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir)) // whatever is above, it is not about that
	if text, err := apply.CombinedOutput(); err != nil {
		return "", fmt.Errorf("it does not apply, the code has moved on: %s", bytes.TrimSpace(text))
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	path := filepath.Join(dir, "overlay.json")
	return path, errors.Join(err, os.WriteFile(path, text, 0o644))
}

// gain is what the optimisation changes in a case of its benchmark.
type gain struct {
	name          string
	without, with float64
	unit          string
	gain          float64 // positive: for the better; 0: it can't be told from chance
	p             string
}

func (g gain) String() string {
	return fmt.Sprintf("%.4g -> %.4g %s (%+.1f %%, %s)", g.without, g.with, g.unit, 100*(g.with/g.without-1), g.p)
}

// best reads benchstat's table in CSV: lines of a name, a value and its spread without,
// the same with, the change and its p.
func (a *ablation) best(table string) (best gain, err error) {
	r := csv.NewReader(strings.NewReader(table))
	r.FieldsPerRecord = -1
	for {
		fields, err := r.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return gain{}, err
		}
		if len(fields) < 7 || fields[0] == "" || fields[0] == "geomean" {
			continue
		}
		g := gain{name: fields[0], unit: a.unit, p: fields[6]}
		var errs [2]error
		g.without, errs[0] = strconv.ParseFloat(fields[1], 64)
		g.with, errs[1] = strconv.ParseFloat(fields[3], 64)
		if err := errors.Join(errs[:]...); err != nil {
			return gain{}, err
		}
		if fields[5] != "~" {
			g.gain = g.with/g.without - 1
			if !higherIsBetter(a.unit) {
				g.gain = 1 - g.with/g.without
			}
		}
		if best.name == "" || g.gain > best.gain {
			best = g
		}
	}
	if best.name == "" {
		return gain{}, fmt.Errorf("the benchmark has no value in %s", a.unit)
	}
	return best, nil
}

func higherIsBetter(unit string) bool {
	return strings.HasSuffix(unit, "/s") || strings.HasPrefix(unit, "of-")
}

// output runs a command and returns what it writes to its standard output.
func output(dir, name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.Dir = dir
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, out.Bytes(), errs.Bytes())
	}
	return out.String(), nil
}
