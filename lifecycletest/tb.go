package lifecycletest

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// runTB is the testing.TB of one run of a workload. What fails in it fails the
// run, and ExitEverywhere tells the test. Its cleanups run at the end of the run.
type runTB struct {
	testing.TB // the test's, for what is the same in every run

	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex // guards what follows
	failed   bool
	told     bool // that it failed
	skipped  bool
	failures []string
	logged   []string
	cleanups []func()
}

func newRunTB(t testing.TB) *runTB {
	r := &runTB{TB: t}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

func (r *runTB) Helper() {}

func (r *runTB) Context() context.Context { return r.ctx }

func (r *runTB) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

// runCleanups runs them last registered first, those that they register among
// them.
func (r *runTB) runCleanups() {
	r.cancel()
	for {
		r.mu.Lock()
		n := len(r.cleanups)
		if n == 0 {
			r.mu.Unlock()
			return
		}
		f := r.cleanups[n-1]
		r.cleanups = r.cleanups[:n-1]
		r.mu.Unlock()
		f()
	}
}

func (r *runTB) log(text string, fails bool) {
	at := ""
	if s := userSite(); s.function != "" && !strings.Contains(text, "Error Trace:") { // as testify says
		at = s.short() + ": "
	}
	text = at + strings.TrimSpace(text)
	r.mu.Lock()
	defer r.mu.Unlock()
	if fails {
		r.failed = true
		r.failures = append(r.failures, text)
	} else if len(r.logged) < 100 {
		r.logged = append(r.logged, text)
	}
}

func (r *runTB) Log(args ...any)                 { r.log(fmt.Sprintln(args...), false) }
func (r *runTB) Logf(format string, args ...any) { r.log(fmt.Sprintf(format, args...), false) }
func (r *runTB) Error(args ...any)               { r.log(fmt.Sprintln(args...), true) }
func (r *runTB) Errorf(format string, args ...any) {
	r.log(fmt.Sprintf(format, args...), true)
}

func (r *runTB) Fatal(args ...any) {
	r.log(fmt.Sprintln(args...), true)
	runtime.Goexit()
}

func (r *runTB) Fatalf(format string, args ...any) {
	r.log(fmt.Sprintf(format, args...), true)
	runtime.Goexit()
}

func (r *runTB) Fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *runTB) FailNow() {
	r.Fail()
	runtime.Goexit()
}

func (r *runTB) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *runTB) Skip(args ...any)                 { r.Log(args...); r.SkipNow() }
func (r *runTB) Skipf(format string, args ...any) { r.Logf(format, args...); r.SkipNow() }

func (r *runTB) SkipNow() {
	r.mu.Lock()
	r.skipped = true
	r.mu.Unlock()
	runtime.Goexit()
}

func (r *runTB) Skipped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.skipped
}

// TempDir is a new directory, removed at the end of the run.
func (r *runTB) TempDir() string {
	dir, err := os.MkdirTemp("", "lifecycletest-")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			r.Errorf("TempDir: %v", err)
		}
	})
	return dir
}

// takeFailures returns what has failed since it was last asked, "" if nothing.
func (r *runTB) takeFailures() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	said := strings.Join(r.failures, "\n")
	if r.failed && !r.told && said == "" {
		said = "it called Fail or FailNow"
	}
	r.told = r.told || r.failed
	r.failures = nil
	return said
}

func (r *runTB) logs() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.logged, "\n")
}
