package explore

import (
	"context"
	"errors"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// scenarios are the worlds that are explored. Each that appends has an append that
// nobody waits for: where every task waits for its own, a missing drain goes unseen.
var scenarios = []Scenario{
	{Name: "one task", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "two tasks", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.committer("b")
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "three tasks", Quiet: true, Big: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.lastWords("b")
		w.lastWords("c")
		w.Client("exit", func() { w.Exit(background) })
	}},

	// Admission: whoever comes while the exit begins is taken and awaited, or refused.
	{Name: "go", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Client("go", func() {
			w.Go("late", func(context.Context) error {
				w.Append(background, "late1")
				return nil
			})
		})
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "two goes", Quiet: true, Big: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		for _, name := range []string{"late", "later"} {
			w.Client("go "+name, func() {
				w.Go(name, func(context.Context) error {
					w.Append(background, name+"1")
					return nil
				})
			})
		}
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "a task starts a task", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Go("parent", func(context.Context) error {
			w.Go("child", func(ctx context.Context) error {
				w.Append(background, "child1")
				return nil
			})
			w.Append(background, "parent1")
			return nil
		})
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "enter", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Client("call", func() { w.Call(func(lifecycle.Call) { w.Append(background, "call1") }) })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "two calls", Quiet: true, Big: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Client("call", func() { w.Call(func(lifecycle.Call) { w.Commit(background, "call1") }) })
		w.Client("other", func() { w.Call(func(lifecycle.Call) { w.Append(background, "other1") }) })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "a ticker", Quiet: true, Ticks: 1, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.every("ticker", tickLength/2)
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "every", Quiet: true, Big: true, Ticks: 2, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.every("ticker", tickLength/2)
		w.Client("late", func() { w.every("late ticker", time.Hour) })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "hooks", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.hook(lifecycle.PhaseExitModule, "stop")
		w.hook(lifecycle.PhaseCheckpoint, "checkpoint")
		w.OnExit(lifecycle.PhaseRelease, "release", func(context.Context) error { return nil })
		w.Client("register", func() { w.hook(lifecycle.PhaseCheckpoint, "late") })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "two registrations", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Client("x", func() { w.hook(lifecycle.PhaseCheckpoint, "x") })
		w.Client("y", func() { w.hook(lifecycle.PhaseCheckpoint, "y") })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "a hook fails", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.hook(lifecycle.PhaseCheckpoint, "checkpoint")
		w.OnExit(lifecycle.PhaseCheckpoint, "failing", func(context.Context) error { return errHook })
		w.Client("append", func() { w.Append(background, "a1") })
		w.Client("exit", func() { w.Exit(background) })
	}, Check: want(errHook)},

	// A client that is none of the host's, beside the seal.
	{Name: "append at the seal", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Client("append", func() { w.Append(background, "x1"); w.Append(background, "x2") })
		w.Client("commit", func() { w.Commit(background, "y1") })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "wait for the future", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Client("wait", func() { w.Wait(background, 1) })
		w.Client("append", func() { w.Append(background, "x1"); w.Append(background, "x2") })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "a full queue", Setup: func(w *World) {
		w.New(lifecycle.Options{QueueBytes: 40})
		w.Client("x", func() { w.Append(background, "x1"); w.Append(background, "x2") })
		w.Client("y", func() { w.Commit(background, "y1") })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "a full queue and a context that ends", Big: true, Setup: func(w *World) {
		w.New(lifecycle.Options{QueueBytes: 40})
		ctx, cancel := context.WithCancel(background)
		w.Client("x", func() { w.Append(background, "x1"); w.Append(ctx, "x2") })
		w.Client("y", func() { w.Append(background, "y1") })
		w.Client("cancel", func() { w.Pause("cancel"); cancel() })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "in memory", Quiet: true, Setup: func(w *World) {
		w.Log = nil
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.Client("wait", func() { w.Wait(background, 0) })
		w.Client("append", func() { w.Append(background, "x1") })
		w.Client("exit", func() { w.Exit(background) })
	}},

	// One exit, whoever waits for it and for how long.
	{Name: "an expired caller", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.lastWords("a")
		ctx, cancel := context.WithCancel(background)
		w.Client("exit", func() { w.Exit(ctx); w.Exit(background) })
		w.Client("cancel", func() { w.Pause("cancel"); cancel() })
	}},
	{Name: "two exits, one expired", Quiet: true, Big: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.lastWords("a")
		ctx, cancel := context.WithCancel(background)
		w.Client("exit", func() { w.Exit(background) })
		w.Client("expired", func() { w.Exit(ctx); w.Exit(background) })
		w.Client("cancel", func() { w.Pause("cancel"); cancel() })
	}},
	{Name: "three exits", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Append(background, "a1")
		w.Client("one", func() { w.Exit(background) })
		w.Client("two", func() { w.Exit(background) })
		w.Client("done", func() { w.Exit(canceled); w.Exit(background) })
	}},
	{Name: "an exit from inside", Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Go("a", func(ctx context.Context) error { w.Exit(ctx); return nil })
		w.OnExit(lifecycle.PhaseExitModule, "stop", func(ctx context.Context) error { w.ForceExit(ctx); return nil })
		w.Client("call", func() { w.Call(func(c lifecycle.Call) { w.Exit(c.Context(background)) }) })
		w.Client("exit", func() { w.Exit(background) })
	}},

	// Failures.
	{Name: "a task fails", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Go("failing", func(context.Context) error { w.Append(background, "f1"); return errTask })
		w.lastWords("a")
		w.Client("exit", func() { w.Exit(background) })
	}, Check: want(errTask)},
	{Name: "Fail beside Exit", Quiet: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.Client("fail", func() { w.Pause("fail"); w.Host.Fail(errTask) })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "the log fails to append", Quiet: true, Setup: func(w *World) {
		w.Log.FailAppend = 2
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.committer("b")
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "the log fails to sync", Quiet: true, Setup: func(w *World) {
		w.Log.FailSync = 1
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.committer("b")
		w.Client("exit", func() { w.Exit(background) })
	}, Check: want(errLog)},
	{Name: "the log fails to sync later", Quiet: true, Big: true, Setup: func(w *World) {
		w.Log.FailSync = 2
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.committer("b")
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "the log fails beside a full queue", Setup: func(w *World) {
		w.Log.FailSync = 1
		w.New(lifecycle.Options{QueueBytes: 40})
		w.Client("x", func() { w.Append(background, "x1"); w.Append(background, "x2") })
		w.Client("y", func() { w.Commit(background, "y1") })
		w.Client("exit", func() { w.Exit(background) })
	}},
	{Name: "the log fails to close", Setup: func(w *World) {
		w.Log.FailClose = 1
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.Client("exit", func() { w.Exit(background) })
	}, Check: want(errLog)},

	// Force.
	{Name: "force beside exit", Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.lastWords("a")
		w.Client("exit", func() { w.Exit(background) })
		w.Client("force", func() { w.ForceExit(background) })
	}},
	{Name: "force, and a task that does not obey", Big: true, Ticks: 1, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Go("deaf", func(context.Context) error {
			w.Append(background, "deaf1")
			w.Pause("deaf")
			w.Append(background, "deaf2")
			return nil
		})
		w.Client("force", func() { w.ForceExit(background) })
	}},
	{Name: "force, a call and a hook that do not obey", Ticks: 1, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.Client("call", func() { w.Call(func(lifecycle.Call) { w.Pause("deaf"); w.Append(background, "call1") }) })
		w.OnExit(lifecycle.PhaseCheckpoint, "checkpoint", func(context.Context) error {
			w.Pause("deaf")
			w.Append(background, "checkpoint1")
			return nil
		})
		w.hook(lifecycle.PhaseExitModule, "stop")
		w.Client("force", func() { w.ForceExit(background) })
	}, Check: func(w *World) { // nobody else has begun the exit
		for _, p := range w.Host.Report().Phases {
			for _, k := range p.Hooks {
				if !k.Skipped {
					w.Broken("P7: the hook %q of a forced exit has run", k.Hook)
				}
			}
		}
	}},
	{Name: "force, and a slow log", Big: true, Ticks: 1, Setup: func(w *World) {
		w.Log.Slow = true
		w.New(lifecycle.Options{})
		w.Append(background, "a1")
		w.Client("append", func() { w.Commit(background, "x1") })
		w.Client("force", func() { w.ForceExit(canceled) })
	}},
	{Name: "force whose time ends while the log is slow", Big: true, Ticks: 1, Setup: func(w *World) {
		w.Log.Slow = true
		w.New(lifecycle.Options{})
		w.Client("append", func() { w.Append(background, "x1"); w.Wait(background, 0) })
		ctx, cancel := context.WithCancel(background)
		w.Client("force", func() { w.ForceExit(ctx) })
		w.Client("cancel", func() { w.Pause("cancel"); cancel() })
	}},
	{Name: "force, and an observer that hangs on the actor", Big: true, Ticks: 1, Setup: func(w *World) {
		w.New(lifecycle.Options{Observer: lifecycle.Observer{Synced: func(lifecycle.SyncEvent) { w.Pause("observer") }}})
		w.Client("append", func() { w.Append(background, "x1"); w.Append(background, "x2") })
		w.Client("force", func() { w.ForceExit(background) })
	}},
	{Name: "two forces", Ticks: 1, Big: true, Setup: func(w *World) {
		w.New(lifecycle.Options{})
		w.OnExit(lifecycle.PhaseRelease, "release", func(context.Context) error { w.Pause("deaf"); return nil })
		w.Client("one", func() { w.ForceExit(background) })
		w.Client("two", func() { w.ForceExit(canceled) })
	}},
}

// lastWords is a task that appends once it is cancelled, and does not wait.
func (w *World) lastWords(name string) {
	w.Go(name, func(ctx context.Context) error {
		<-ctx.Done()
		w.Append(background, name+"1")
		return nil
	})
}

// committer is a task that commits once while it lives, and once it is cancelled.
func (w *World) committer(name string) {
	w.Go(name, func(ctx context.Context) error {
		w.Commit(background, name+"1")
		<-ctx.Done()
		w.Commit(background, name+"2")
		return nil
	})
}

// hook is one that appends and does not wait.
func (w *World) hook(p lifecycle.Phase, name string) {
	w.OnExit(p, name, func(context.Context) error {
		w.Append(background, name+"1")
		return nil
	})
}

// want is the check that the exit returned err.
func want(err error) func(w *World) {
	return func(w *World) {
		for name, result := range w.results {
			if !errors.Is(result, err) {
				w.Broken("P5: %s was told %v and not %v", name, result, err)
			}
		}
	}
}
