package seam_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/internal/seam"
)

func TestAHostIsWatchedByTheFirstWatcherThatWantsIt(t *testing.T) {
	require.Nil(t, seam.Of("a"))
	var told []string
	watcher := func(name, host string) seam.Watcher {
		return func(h any) seam.Watch {
			if h != host {
				return nil
			}
			return func(step seam.Step, what string) { told = append(told, name+" "+step.String()+" "+what) }
		}
	}
	removeFirst := seam.Install(watcher("first", "a"))
	removeSecond := seam.Install(watcher("second", "b"))
	removeThird := seam.Install(watcher("third", "a"))
	seam.Of("a")(seam.Go, "task")
	seam.Of("b")(seam.Append, "")
	require.Nil(t, seam.Of("c"))
	removeFirst()
	seam.Of("a")(seam.Seal, "")
	removeThird()
	removeSecond()
	require.Nil(t, seam.Of("a"))
	require.Equal(t, []string{"first Go task", "second Append ", "third Seal "}, told)
}

func TestEveryStepHasAName(t *testing.T) {
	seen := map[string]bool{}
	for step := seam.Append; step <= seam.CloseLog; step++ {
		name := step.String()
		require.False(t, seen[name] || strings.HasSuffix(name, "?"), "step %d: %s", step, name)
		seen[name] = true
	}
	require.Equal(t, "Step?", (seam.CloseLog + 1).String())
	require.Equal(t, "Step?", seam.Step(0).String())
}

func TestLogOfIsTheHostsLog(t *testing.T) {
	host := lifecycle.New(nil, lifecycle.Options{})
	require.Nil(t, seam.LogOf(host))
	require.NoError(t, host.Exit(t.Context()))
}
