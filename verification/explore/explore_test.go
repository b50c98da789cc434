package explore

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	big      = flag.Bool("big", false, "explore the big scenarios too")
	schedule = flag.String("schedule", "", "replay one schedule of the scenario that -run names, as a failure prints it")
	every    = flag.Bool("every", false, "replay it with every step as a choice")
)

// Under the race detector, which sees nothing here that the storms don't, only so
// many schedules of a scenario are walked.
const mostUnderRace = 200

func TestEveryInterleaving(t *testing.T) {
	var mu sync.Mutex
	var walks, schedules, steps, states, ends, divergences, conflicts int
	t.Cleanup(func() { // when the parallel ones have ended
		t.Logf("counts: scenarios %d, schedules %d, steps %d, states %d, ends %d, divergences %d, conflicts %d",
			walks, schedules, steps, states, ends, divergences, conflicts)
	})
	for _, sc := range scenarios {
		t.Run(sc.Name, func(t *testing.T) {
			if *schedule != "" {
				r, steps := Replay(t, sc, strings.Split(*schedule, ","), *every)
				t.Logf("%s", strings.Join(steps, "\n"))
				require.Zero(t, r.Divergences, "this is no schedule of this scenario")
				require.Empty(t, r.Broken)
				return
			}
			if sc.Big && !*big {
				t.Skip("skipped: a big scenario; go test ./explore -big")
			}
			t.Parallel()
			most := 0
			if underRace {
				most = mostUnderRace
			}
			r := Walk(t, sc, Options{Prune: true, Most: most})
			if underRace && r.Schedules == most {
				t.Logf("the first %d schedules only, under the race detector", most)
			}
			mu.Lock()
			walks, schedules, steps, states, ends = walks+1, schedules+r.Schedules, steps+r.Steps, states+len(r.States), ends+len(r.Ends)
			divergences, conflicts = divergences+r.Divergences, conflicts+r.Conflicts
			mu.Unlock()
			r.require(t, sc)
		})
	}
}

// require fails the test if something broke, with what replays it.
func (r *Result) require(t *testing.T, sc Scenario) {
	t.Helper()
	t.Logf("counts: schedules %d, steps %d, states %d, ends %d, longest %d, divergences %d, conflicts %d",
		r.Schedules, r.Steps, len(r.States), len(r.Ends), r.Longest, r.Divergences, r.Conflicts)
	replay := fmt.Sprintf("replay: go test ./explore -v -run '^TestEveryInterleaving$/^%s$' -schedule '%s' -every=%t",
		strings.ReplaceAll(sc.Name, " ", "_"), strings.Join(r.Schedule, ","), r.everyStep)
	require.Empty(t, r.Broken, replay)
	require.Zero(t, r.Divergences, replay)
	require.Zero(t, r.Conflicts)
}

// The pruned walk is worth what the full one is: both see the same states and the
// same ends.
func TestPruningMissesNoState(t *testing.T) {
	names := []string{"one task", "in memory", "the log fails to close", "two registrations"}
	if *big {
		names = append(names, "enter")
	}
	for _, name := range names {
		sc := named(t, name)
		t.Run(sc.Name, func(t *testing.T) {
			if underRace {
				t.Skip("skipped: hundreds of thousands of schedules, under the race detector")
			}
			t.Parallel()
			pruned, full := Walk(t, sc, Options{Prune: true}), Walk(t, sc, Options{})
			pruned.require(t, sc)
			full.require(t, sc)
			require.Equal(t, full.States, pruned.States)
			require.Equal(t, full.Ends, pruned.Ends)
		})
	}
}

// Steps that are no choices lead to no end that is not found without them.
func TestStepsThatAreNoChoicesHideNoEnd(t *testing.T) {
	names := []string{"one task", "go", "enter", "a hook fails", "the log fails to close"}
	if *big {
		names = append(names, "force beside exit", "force, a call and a hook that do not obey", "append at the seal", "hooks", "three exits", "the log fails to append", "the log fails to sync")
	}
	for _, name := range names {
		sc := named(t, name)
		t.Run(sc.Name, func(t *testing.T) {
			if underRace {
				t.Skip("skipped: tens of thousands of schedules, under the race detector")
			}
			t.Parallel()
			some, all := Walk(t, sc, Options{Prune: true}), Walk(t, sc, Options{Prune: true, EveryStep: true})
			some.require(t, sc)
			all.require(t, sc)
			require.Greater(t, len(all.States), len(some.States))
			require.Equal(t, slices.Sorted(maps.Keys(all.Ends)), slices.Sorted(maps.Keys(some.Ends)))
		})
	}
}

func named(t *testing.T, name string) Scenario {
	i := slices.IndexFunc(scenarios, func(sc Scenario) bool { return sc.Name == name })
	require.GreaterOrEqual(t, i, 0, name)
	return scenarios[i]
}
