package model

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	ci    = flag.Bool("ci", false, "check all worlds and all seeded bugs, not only the quick ones")
	trail = flag.Bool("trail", false, "print the way into each seeded bug")
)

// world is a choice of who takes part, as definitions of exit.pml.
type world struct {
	name    string
	defines string
	quick   bool // in the default size
	live    bool // termination is checked as well, which costs some ten times as much
	big     bool // the verifier is optimised, which pays from about a million states on
}

var worlds = []world{
	{"a task, two Exits that expire", "-DTASKS=1 -DEXITS=2 -DEXPIRE=1", true, false, false},
	{"a task and an Exit", "-DTASKS=1", false, true, false},
	{"two tasks", "-DTASKS=2", false, false, true},
	{"a task that starts another and fails, Fail", "-DTASKS=1 -DSPAWN=1 -DTASKFAIL=1 -DFAIL=1", false, false, true},
	{"a task that fails", "-DTASKS=1 -DTASKFAIL=1", false, true, false},
	{"a call", "-DTASKS=0 -DCALLS=1", false, true, false},
	{"two calls", "-DTASKS=0 -DCALLS=2", false, false, true},
	{"hooks and a task", "-DTASKS=1 -DHOOKS=1", false, false, false},
	{"a log that fails", "-DTASKS=0 -DCLIENTS=1 -DLOGFAIL=1", true, true, false},
	{"hooks and a log that fails", "-DTASKS=0 -DHOOKS=1 -DLOGFAIL=1", false, false, false},
	{"a log that fails under a task and a client", "-DTASKS=1 -DCLIENTS=1 -DLOGFAIL=1", false, false, true},
	{"no room, contexts that end", "-DTASKS=0 -DCLIENTS=2 -DROOM=1 -DEXPIRE=1", true, false, false},
	{"three for the room of one", "-DTASKS=0 -DCLIENTS=3 -DROOM=1", false, false, true},
	{"ForceExit, a stuck task", "-DTASKS=1 -DEXITS=0 -DFORCE=1 -DSTUCKTASK=1", true, true, false},
	{"Exit and ForceExit, a stuck task", "-DTASKS=1 -DFORCE=1 -DSTUCKTASK=1", false, false, true},
	{"ForceExit, hooks, a stuck task", "-DTASKS=1 -DEXITS=0 -DFORCE=1 -DHOOKS=1 -DSTUCKTASK=1", false, false, true},
	{"ForceExit, a call and hooks that may be stuck", "-DTASKS=0 -DCALLS=1 -DSTUCKCALL=1 -DHOOKS=1 -DSTUCKHOOK=1 -DFORCE=1 -DEXITS=0", false, false, true},
	{"ForceExit, a log that may hang", "-DTASKS=0 -DCLIENTS=1 -DEXITS=0 -DFORCE=1 -DSTUCKLOG=1", true, true, false},
	{"Exit and ForceExit, a log that may hang or fail", "-DTASKS=0 -DCLIENTS=1 -DLOGFAIL=1 -DFORCE=1 -DSTUCKLOG=1", false, false, true},
	{"two ForceExits, a log that may hang", "-DTASKS=0 -DCLIENTS=1 -DEXITS=0 -DFORCE=2 -DSTUCKLOG=1", false, false, true},
	{"ForceExit, an observer that may hang", "-DTASKS=0 -DCLIENTS=2 -DEXITS=0 -DFORCE=1 -DOBSERVER=1", false, false, true},
	{"ForceExit, an observer that may hang, a log that fails", "-DTASKS=0 -DCLIENTS=1 -DEXITS=0 -DFORCE=1 -DOBSERVER=1 -DLOGFAIL=1", false, true, false},
}

// bug is a mistake seeded into exit.pml, and a world of those above in which it shows.
type bug struct {
	n     int
	what  string
	world string
	quick bool
	live  bool // it shows as a cycle without progress
}

var bugs = []bug{
	{1, "the order of SpacetimeDB pull request 4581: durability closed before the tasks are down", "a task, two Exits that expire", true, false},
	{2, "tasks are cancelled, not awaited", "a task and an Exit", true, false},
	{3, "tasks: admission and registration are two steps", "a task and an Exit", true, false},
	{4, "the actor stops at the seal without draining", "a log that fails", false, false},
	{5, "acknowledged before it is synced", "a log that fails", true, false},
	{6, "Exit does not wait for the drain and the close", "a log that fails", false, false},
	{7, "a failed sync is tried again", "a log that fails", false, false},
	{8, "who waits for room is not refused at the seal", "no room, contexts that end", false, false},
	{9, "a caller whose context ends makes the exit go on without those it waits for", "a task, two Exits that expire", false, false},
	{10, "who finds the exit begun does not wait for its end", "a task, two Exits that expire", false, false},
	{11, "ForceExit seals without saying whom it left", "ForceExit, a stuck task", true, false},
	{12, "a sync that returns after the drain was given up moves the durable offset", "ForceExit, a log that may hang", true, false},
	{13, "a second actor takes over from one that has a flight", "ForceExit, an observer that may hang", false, false},
	{14, "calls are not awaited", "a call", false, false},
	{15, "the checkpoint hook runs before the tasks are down", "hooks and a task", false, false},
	{16, "the gate: check and count are two steps", "a call", false, false},
	{17, "a task is taken off before its failure is recorded", "a task that fails", false, false},
	{18, "the actor parks after it has released the lock", "a log that fails", false, false},
	{19, "the log's failure settles nobody", "a log that fails", false, false},
	{20, "the log's failure is told before the exit has begun", "a log that fails", false, false},
	{21, "the runner closes the log itself", "ForceExit, a log that may hang", false, false},
	{22, "Exiting is announced before calls are refused", "a call", false, false},
	{23, "an append is taken back that has been accepted", "no room, contexts that end", false, false},
	{24, "ForceExit asks for ever whether the stuck have ended", "ForceExit, a stuck task", true, true},
	{25, "ForceExit has no end of its grace", "ForceExit, a stuck task", false, false},
}

// depth is the longest path that the search may follow; one that is cut off makes a
// check fail.
const depth = "2000000"

// slots bounds how many searches run at once.
var slots = make(chan struct{}, 2)

func TestTheProtocolKeepsItsPromises(t *testing.T) {
	needTools(t)
	var checked, terminations, states, transitions atomic.Int64
	t.Run("worlds", func(t *testing.T) {
		for _, w := range worlds {
			if !w.quick && !*ci {
				continue
			}
			check := func(live bool) func(t *testing.T) {
				return func(t *testing.T) {
					t.Parallel()
					found := search(t, w.defines, 0, live, w.big)
					require.Zero(t, found.errors, "%s\n%s", found.why, found.output)
					checked.Add(1)
					if live {
						terminations.Add(1)
					}
					states.Add(found.states)
					transitions.Add(found.transitions)
					t.Logf("%d states, %d transitions, depth %d: %s", found.states, found.transitions, found.depth, w.defines)
				}
			}
			t.Run("safety/"+w.name, check(false))
			if w.live && (*ci || w.name == "a log that fails") {
				t.Run("termination/"+w.name, check(true))
			}
		}
	})
	if t.Failed() {
		return
	}
	t.Logf("counts: worlds %d, with termination %d, states %d, transitions %d, bitstate hashing no",
		checked.Load()-terminations.Load(), terminations.Load(), states.Load(), transitions.Load())
}

func TestEachSeededBugIsFound(t *testing.T) {
	needTools(t)
	var sought, found atomic.Int64
	t.Run("bugs", func(t *testing.T) {
		for _, b := range bugs {
			if !b.quick && !*ci && !*trail {
				continue
			}
			t.Run(fmt.Sprintf("%d %s", b.n, b.what), func(t *testing.T) {
				t.Parallel()
				sought.Add(1)
				result := search(t, definesOf(t, b.world), b.n, b.live, false)
				require.NotZero(t, result.errors, "not found")
				found.Add(1)
				t.Logf("bug %d, %s: %s", b.n, b.what, result.why)
				if *trail {
					t.Log(result.trail)
				}
			})
		}
	})
	t.Logf("counts: seeded bugs %d, found %d", sought.Load(), found.Load())
}

func definesOf(t *testing.T, name string) string {
	for _, w := range worlds {
		if w.name == name {
			return w.defines
		}
	}
	require.Fail(t, "no such world", name)
	return ""
}

func needTools(t *testing.T) {
	for _, tool := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: %s is not installed", tool)
		}
	}
}

// found is what a search came to.
type found struct {
	errors              int
	states, transitions int64
	depth               int64
	why                 string // the violation
	output, trail       string
}

// search makes the verifier for a world and runs it.
func search(t *testing.T, defines string, bug int, live, big bool) found {
	slots <- struct{}{}
	defer func() { <-slots }()
	dir := t.TempDir()
	source, err := os.ReadFile("exit.pml")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "exit.pml"), source, 0o644))

	args := append(strings.Fields(defines), "-DBUG="+strconv.Itoa(bug))
	run(t, dir, "spin", append(append([]string{"-a"}, args...), "exit.pml")...)
	compile, verify := []string{"-w", "-DCOLLAPSE", "-DVECTORSZ=2048", "-o", "pan", "pan.c"}, []string{"-m" + depth}
	if big {
		compile = append(compile, "-O1")
	}
	if live {
		compile, verify = append(compile, "-DNFAIR=4"), append(verify, "-a", "-f")
	} else {
		compile = append(compile, "-DSAFETY", "-DNOCLAIM")
	}
	run(t, dir, "gcc", compile...)
	result := parse(t, run(t, dir, "./pan", verify...))
	if result.errors > 0 && *trail {
		result.trail = run(t, dir, "spin", append(append([]string{"-p", "-g", "-k", "exit.pml.trail"}, args...), "exit.pml")...)
	}
	return result
}

func run(t *testing.T, dir, name string, args ...string) string {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = dir
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	err := command.Run()
	// spin warns about what a world leaves out; what it can't read it does not compile.
	require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), output.String())
	return output.String()
}

var (
	errorsLine      = regexp.MustCompile(`depth reached (\d+), errors: (\d+)`)
	statesLine      = regexp.MustCompile(`(\d+) states, stored`)
	transitionsLine = regexp.MustCompile(`(\d+) transitions`)
	violationLine   = regexp.MustCompile(`(?m)^pan:\d+: (.*)$`)
)

func parse(t *testing.T, output string) found {
	require.NotContains(t, output, "max search depth too small", output)
	require.NotContains(t, output, "out of memory", output)
	number := func(r *regexp.Regexp, group int) int64 {
		match := r.FindStringSubmatch(output)
		require.NotNil(t, match, "no %v in\n%s", r, output)
		n, err := strconv.ParseInt(match[group], 10, 64)
		require.NoError(t, err)
		return n
	}
	result := found{
		errors: int(number(errorsLine, 2)), depth: number(errorsLine, 1),
		states: number(statesLine, 1), transitions: number(transitionsLine, 1), output: output,
	}
	if match := violationLine.FindStringSubmatch(output); match != nil {
		result.why = match[1]
	}
	return result
}
