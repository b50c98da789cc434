package lifecycletest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/internal/seam"
)

// New makes a host that belongs to the test. When the test ends, before what it
// registered with t.Cleanup earlier and after what it registers later, the host
// exits, unless the test has exited it, and the test fails if
//
//   - the exit does not end within a limit (10 s; Within): whoever is alive is named,
//     with its stack, and left behind by ForceExit so that the test ends;
//   - its result is not nil (ExpectError: not the error that is expected);
//   - not all phases have run, in order;
//   - something accepted is not durable, or not in the log, if that is a *Log or
//     has its method Synced;
//   - the log was not called as its contract says, if it is a *Log;
//   - a call has left twice;
//   - a goroutine of the host is left, or one that its tasks or hooks started
//     (IgnoreGoroutines).
//
// The log may be nil, as for lifecycle.New. In a bubble of testing/synctest, New
// belongs inside it, with the bubble's own T.
func New(t testing.TB, log lifecycle.Log, opts ...HostOption) *lifecycle.Host {
	t.Helper()
	c := newConfig()
	for _, o := range opts {
		o.setHost(&c)
	}
	release := func() {}
	if c.options.Name == "" {
		c.options.Name, release = names.take(t.Name())
	}
	before := hostLabels()
	m := newMonitor()
	m.opener, m.bubble = goroutine()
	remove := seam.Install(func(host any) seam.Watch {
		if id, _ := goroutine(); id != m.opener {
			return nil
		}
		h := host.(*lifecycle.Host)
		return func(step seam.Step, name string) { m.saw(h, step, name) }
	})
	host := lifecycle.New(log, c.options)
	remove()
	t.Cleanup(func() {
		t.Helper()
		defer release()
		problems, result := m.exit(host, c)
		if problems == nil {
			problems = m.judge(host, log, result, c.wrong(result))
			if !leftBehind(host) {
				problems = append(problems, leak(remaining(host.Status().Host, before, c.ignored), "the host's own, or started by its tasks or hooks")...)
			}
		}
		for _, p := range problems {
			t.Errorf("lifecycletest: host %q: %s", host.Status().Host, p.text)
		}
	})
	return host
}

// wrong says what is wrong with the result of New's host.
func (c config) wrong(result error) string {
	switch {
	case !c.expects && result != nil:
		return explain(result)
	case c.expects && result == nil:
		return "the exit's result should be an error (ExpectError), and is nil."
	}
	for _, target := range c.expected {
		if !errors.Is(result, target) {
			return fmt.Sprintf("the exit's result should be %q (ExpectError), and is:\n%s", target, indent(result.Error()))
		}
	}
	return ""
}

// leftBehind: ForceExit has left somebody behind, so goroutines may be left.
func leftBehind(h *lifecycle.Host) bool {
	for _, p := range h.Report().Phases {
		if len(p.Abandoned) > 0 {
			return true
		}
	}
	return false
}

// names of hosts that New has named and that live.
var names = nameList{taken: map[string]bool{}}

type nameList struct {
	mu    sync.Mutex
	taken map[string]bool
}

func (n *nameList) take(test string) (name string, release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name = test
	for i := 2; n.taken[name]; i++ {
		name = fmt.Sprintf("%s#%d", test, i)
	}
	n.taken[name] = true
	return name, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.taken, name)
	}
}

// Reopens checks that a log, opened again, goes on where its host has ended: its
// Next is the host's Accepted. It exits the host first, and closes what open
// returns. It works with every Log; a *Log, New checks by itself.
func Reopens(t testing.TB, host *lifecycle.Host, open func() (lifecycle.Log, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), DefaultLimit)
	defer cancel()
	if err := host.Exit(ctx); err != nil {
		t.Errorf("lifecycletest: host %q: before the log can be opened again its host must exit clean:\n%s", host.Status().Host, indent(err.Error()))
		return
	}
	log, err := open()
	if err != nil {
		t.Errorf("lifecycletest: host %q: after a clean exit the log can't be opened again: %s", host.Status().Host, strings.TrimSpace(err.Error()))
		return
	}
	next, accepted := log.Next(), host.Durability().Accepted()
	if next != accepted {
		t.Errorf("lifecycletest: host %q: the log, opened again after a clean exit, goes on at offset %d, but the host has accepted up to %d, and reported all of it durable. The Log has lost what it had acknowledged, or it was not the host's log that was opened.", host.Status().Host, next, accepted)
	}
	if err := log.Close(); err != nil {
		t.Errorf("lifecycletest: host %q: the log that was opened again can't be closed: %v", host.Status().Host, err)
	}
}
