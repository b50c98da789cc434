package lifecycletest_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// fakeTB is a T whose failures are the test's material.
type fakeTB struct {
	testing.TB
	name string

	mu       sync.Mutex
	errors   []string
	logged   []string
	cleanups []func()
}

// onFake runs f with a fake T, then its cleanups, and returns what it has failed
// with.
func onFake(t *testing.T, f func(t testing.TB)) (fake *fakeTB) {
	fake = &fakeTB{TB: t, name: "TestOfAUser"}
	in := func(f func()) {
		done := make(chan struct{})
		go func() { defer close(done); f() }()
		<-done
	}
	in(func() { f(fake) })
	for {
		fake.mu.Lock()
		n := len(fake.cleanups)
		if n == 0 {
			fake.mu.Unlock()
			return fake
		}
		cleanup := fake.cleanups[n-1]
		fake.cleanups = fake.cleanups[:n-1]
		fake.mu.Unlock()
		in(cleanup)
	}
}

func (f *fakeTB) Name() string { return f.name }
func (f *fakeTB) Helper()      {}

func (f *fakeTB) Cleanup(cleanup func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cleanups = append(f.cleanups, cleanup)
}

func (f *fakeTB) Errorf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errors = append(f.errors, fmt.Sprintf(format, args...))
}

func (f *fakeTB) Error(args ...any) { f.Errorf("%s", fmt.Sprintln(args...)) }

func (f *fakeTB) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	runtime.Goexit()
}

func (f *fakeTB) FailNow() { runtime.Goexit() }

func (f *fakeTB) Logf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logged = append(f.logged, fmt.Sprintf(format, args...))
}

func (f *fakeTB) failures() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.errors)
}

func (f *fakeTB) logs() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.logged, "\n")
}

// silent checks that nothing was found.
func (f *fakeTB) silent(t *testing.T) {
	t.Helper()
	require.Empty(t, strings.Join(f.failures(), "\n\n"))
}

// finds checks that something was found, and that one of the findings contains all
// of these.
func (f *fakeTB) finds(t *testing.T, parts ...string) string {
	t.Helper()
	all := f.failures()
	require.NotEmpty(t, all, "nothing was found")
	for _, failure := range all {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(failure, part) }) {
			t.Log(failure)
			return failure
		}
	}
	require.Fail(t, "it was not found", "%q in:\n%s", parts, strings.Join(all, "\n\n"))
	return ""
}
