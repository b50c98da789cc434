package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// tree is a copy of the repository's files. One worker uses it.
type tree struct {
	dir    string // of the copy; its test binary lies beside it
	family string // that this is of; "": of none
}

// copies makes n of them.
func copies(ctx context.Context, o options, n int) (all []*tree, err error) {
	defer func() {
		if err != nil {
			for _, t := range all {
				t.remove()
			}
		}
	}()
	list, err := output(ctx, o.root, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return nil, err
	}
	for range n {
		temp, err := os.MkdirTemp("", "mutants-")
		if err != nil {
			return all, err
		}
		t := &tree{dir: filepath.Join(temp, "tree")}
		all = append(all, t)
		for name := range strings.SplitSeq(strings.TrimSuffix(list, "\x00"), "\x00") {
			if err := copyFile(filepath.Join(o.root, name), filepath.Join(t.dir, name)); err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

// copyFile passes over what is no regular file, and what is in the index and has
// been deleted.
func copyFile(from, to string) error {
	info, err := os.Lstat(from)
	if errors.Is(err, os.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, info.Mode().Perm()|0o200)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (t *tree) remove() { os.RemoveAll(filepath.Dir(t.dir)) }

// apply changes the mutant's file and returns what it was. git's apply looks for
// the hunks elsewhere in the file too, but takes them only with all their context;
// loose says how many lines of that suffice instead, 0: all.
func (t *tree) apply(ctx context.Context, m *mutant, loose int) (old []byte, err error) {
	path := filepath.Join(t.dir, m.file)
	if old, err = os.ReadFile(path); err != nil {
		return nil, err
	}
	if m.family != nil {
		changed, err := m.family(string(old))
		if err != nil {
			return nil, err
		}
		return old, os.WriteFile(path, []byte(changed), 0o644)
	}
	args := []string{"apply", "--whitespace=nowarn"}
	if loose > 0 {
		args = append(args, "--recount", fmt.Sprintf("-C%d", loose))
	}
	apply := exec.CommandContext(ctx, "git", args...)
	apply.Dir, apply.Stdin = t.dir, strings.NewReader(m.diff)
	apply.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(t.dir)) // whatever is above, it is not about that
	if text, err := apply.CombinedOutput(); err != nil {
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	return old, nil
}

func (t *tree) restore(m *mutant, old []byte) error {
	return os.WriteFile(filepath.Join(t.dir, m.file), old, 0o644)
}

// build makes the test binary of a package. It is not optimized and can't be
// debugged: that halves what most of the time goes into.
func (t *tree) build(ctx context.Context, module, pkg string, race bool) (binary string, err error) {
	binary = t.dir + ".test"
	args := []string{"test", "-c", "-trimpath", "-vet=off", "-gcflags=-N -l", "-ldflags=-s -w", "-o", binary}
	if race {
		args = append(args, "-race")
	}
	_, err = output(ctx, filepath.Join(t.dir, module), "go", append(args, pkg)...)
	return binary, err
}

// runTests runs tests of a binary in their package's folder. An error is theirs
// only if it is an *exec.ExitError.
func (t *tree) runTests(ctx context.Context, binary, module, pkg, tests, env string, timeout time.Duration) (log string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout+30*time.Second) // should the binary's own timeout not end it
	defer cancel()
	run := exec.CommandContext(ctx, binary, "-test.v", "-test.run", tests, "-test.timeout", timeout.String())
	run.Dir = filepath.Join(t.dir, module, pkg)
	run.Env = append(os.Environ(), env)
	run.WaitDelay = 5 * time.Second // for what a test has started and left
	var text bytes.Buffer
	run.Stdout, run.Stderr = &text, &text
	err = run.Run()
	return text.String(), err
}

type suite struct {
	module, pkg string
	race        bool
}

// baseline runs every killing test on the copies as they are. It returns how many
// there are, and gives each mutant its test's limit; all have passed if there is no
// error. The limit allows for the time that the test takes here, so that a slow
// machine does not pass for a test that found something.
func baseline(ctx context.Context, trees []*tree, mutants []*mutant, timeout time.Duration) (tests int, err error) {
	suites := map[suite][]string{}
	for _, m := range mutants {
		s := suite{m.module, m.pkg, m.race}
		if !slices.Contains(suites[s], m.test) {
			suites[s] = append(suites[s], m.test)
			tests++
		}
	}
	free := make(chan *tree, len(trees))
	for _, t := range trees {
		free <- t
	}
	var running sync.WaitGroup
	var mu sync.Mutex // guards err and the mutants' limits
	for s, names := range suites {
		t := <-free
		running.Go(func() {
			defer func() { free <- t }()
			took, e := t.mustPass(ctx, s, names)
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, e)
			for _, m := range mutants {
				if s == (suite{m.module, m.pkg, m.race}) {
					m.limit = timeout + 10*took[m.test]
				}
			}
		})
	}
	running.Wait()
	return tests, err
}

func (t *tree) mustPass(ctx context.Context, s suite, names []string) (took map[string]time.Duration, err error) {
	binary, err := t.build(ctx, s.module, s.pkg, s.race)
	if err != nil {
		return nil, err
	}
	log, err := t.runTests(ctx, binary, s.module, s.pkg, "^("+strings.Join(names, "|")+")$", "", 5*time.Minute)
	took = map[string]time.Duration{}
	for _, name := range names {
		d, ok := passed(log, name)
		if !ok {
			return nil, fmt.Errorf("%s in %s does not pass without a fault (%v):\n%s", name, s.pkg, err, tail(log, 30))
		}
		took[name] = d
	}
	if err != nil {
		return nil, fmt.Errorf("the tests of %s fail without a fault: %w\n%s", s.pkg, err, tail(log, 30))
	}
	return took, nil
}

// verdict is what a mutant came to.
type verdict string

const (
	killed   verdict = "killed"
	survived verdict = "survived"
	stale    verdict = "stale"
	invalid  verdict = "invalid"
	skipped  verdict = "skipped"
)

type result struct {
	verdict verdict
	how     string
	log     string // where it is worth a look
	err     error  // there is no verdict, or the tree is spoilt
}

// judge applies a mutant, runs its test, and puts the tree back.
func (t *tree) judge(ctx context.Context, m *mutant) (r result) {
	old, err := t.apply(ctx, m, 0)
	if err != nil {
		return result{verdict: stale, how: "the patch does not apply", log: err.Error()}
	}
	defer func() {
		if err := t.restore(m, old); err != nil {
			r.err = err
		}
	}()
	binary, err := t.dir+".test", error(nil)
	if t.family == "" || t.family != familyOf(m) {
		binary, err = t.build(ctx, m.module, m.pkg, m.race)
		t.family = familyOf(m)
	}
	if err != nil {
		return result{verdict: invalid, how: "it does not compile", log: err.Error()}
	}
	start := time.Now()
	log, err := t.runTests(ctx, binary, m.module, m.pkg, "^"+m.test+"$", m.env, m.limit)
	took := fmt.Sprintf(" (%.1fs)", time.Since(start).Seconds())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return result{verdict: survived, how: "the test passes" + took, log: log}
	case !errors.As(err, &exit):
		return result{verdict: survived, how: "the test could not be run", log: log, err: err}
	}
	return result{verdict: killed, how: howFailed(log) + took}
}

// familyOf is the family whose binary stands for m; "": m has its own.
func familyOf(m *mutant) string {
	name, _, _ := strings.Cut(m.env, "=")
	return name
}

// passed reports whether a test ran and passed, and how long it took.
func passed(log, test string) (took time.Duration, ok bool) {
	match := regexp.MustCompile(`(?m)^--- PASS: ` + test + ` \((.*)\)$`).FindStringSubmatch(log)
	if match == nil {
		return 0, false
	}
	took, err := time.ParseDuration(match[1])
	return took, err == nil
}

var (
	panicLine     = regexp.MustCompile(`(?m)^(panic|fatal error): (.*)$`)
	assertionLine = regexp.MustCompile(`(?m)^ +[\w.-]+\.go:\d+: `)
)

// howFailed says how a test failed. One that fails by an assertion often leaves
// goroutines that are then found blocked, or runs into its timeout when it cleans
// up, so the assertion comes before those.
func howFailed(log string) string {
	crash := panicLine.FindStringSubmatch(log)
	switch {
	case strings.Contains(log, "WARNING: DATA RACE"):
		return "data race"
	case assertionLine.MatchString(log):
		return "failed assertion"
	case crash != nil && strings.HasPrefix(crash[2], "test timed out"):
		return "timeout"
	case crash != nil && strings.HasPrefix(crash[2], "deadlock"):
		return "deadlock"
	case crash != nil:
		return crash[1] + ": " + crash[2][:min(len(crash[2]), 80)]
	}
	return "failed"
}

// rewrite makes each patch anew for the code as it is. Where a patch does not apply
// any more it is tried with less of its context.
func rewrite(ctx context.Context, out io.Writer, o options) error {
	o.phases = ""
	mutants, err := load(o)
	if err != nil {
		return err
	}
	trees, err := copies(ctx, o, 1)
	if err != nil {
		return err
	}
	t := trees[0]
	defer t.remove()
	var failed error
	for _, m := range mutants {
		diff, err := t.rediff(ctx, m)
		switch {
		case err != nil:
			failed = errors.Join(failed, fmt.Errorf("%s: %w", m.name, err))
		case diff != m.diff:
			if err := os.WriteFile(filepath.Join(o.ledger, m.name+".patch"), []byte(m.header()+"\n"+diff), 0o644); err != nil {
				return err
			}
			fmt.Fprintf(out, "rewritten %s\n", m.name)
		}
	}
	return failed
}

func (t *tree) rediff(ctx context.Context, m *mutant) (string, error) {
	var old []byte
	var err error
	for _, loose := range []int{0, 2, 1} {
		if old, err = t.apply(ctx, m, loose); err == nil {
			break
		}
	}
	if err != nil {
		return "", err
	}
	changed, err := os.ReadFile(filepath.Join(t.dir, m.file))
	if err != nil {
		return "", err
	}
	if err := t.restore(m, old); err != nil {
		return "", err
	}
	return diffOf(ctx, m.file, old, changed)
}

// diffOf is the unified diff of a file, as git makes it.
func diffOf(ctx context.Context, file string, old, changed []byte) (string, error) {
	temp, err := os.MkdirTemp("", "mutants-diff-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	for side, content := range map[string][]byte{"a": old, "b": changed} {
		path := filepath.Join(temp, side, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return "", err
		}
	}
	text, err := output(ctx, temp, "git", "diff", "--no-index", "--no-prefix", "--no-color", "a/"+file, "b/"+file)
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) { // 1: they differ
		return "", err
	}
	i := strings.Index(text, "--- a/")
	if i < 0 {
		return "", errors.New("the patch changes nothing")
	}
	return text[i:], nil
}

// output runs a command and returns what it prints.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(append([]string{name}, args...), " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}
