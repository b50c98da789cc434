// Package lifecycle is the ordered shutdown of a database host.
//
// A [Host] owns the two things that must end in order: a group of background
// tasks, and a durability actor, the one goroutine that turns accepted
// transactions into synced records of a [Log]. [Host.Exit] cancels every task
// and awaits it before it closes the durability channel, each step a [Phase] of
// its own. So no task can ever commit into a closed channel, and nothing that
// was accepted is lost.
//
// The bug that it exists for is a database that closes its durability channel
// while a cleanup task still runs: the task commits and the process dies
// (SpacetimeDB pull request 4581, dgraph 1939, badger 2249, prometheus 4262).
// Cancelling is not enough, for the commit may run where no cancellation
// reaches; only awaiting makes the order true. What can't be awaited because it
// never returns is named, with its stack, and only [Host.ForceExit] leaves it
// behind.
//
// A host in a server:
//
//	log, err := commitlog.Open(dir, commitlog.Options{})
//	if err != nil { … }
//	host := lifecycle.New(log, lifecycle.Options{Name: "orders", Logger: slog.Default()})
//	host.Every("view cleanup", time.Minute, func(ctx context.Context) error {
//		_, err := host.Durability().Commit(ctx, expired())
//		return err
//	})
//	host.OnExit(lifecycle.PhaseExitModule, "http", server.Shutdown)
//	…
//	err = host.Exit(ctx) // nil: every phase ended clean, everything accepted is durable
package lifecycle

import (
	"fmt"
	"strconv"

	"github.com/seed080d9131/lifecycle/internal/seam"
)

// Phase is one step of the exit. The phases run one at a time, in the order of
// their numbers, and each starts only when the one before has ended.
type Phase int

const (
	// PhaseExitModule refuses new calls and new tasks, runs its hooks (stop
	// listeners, …) and waits for the calls in flight.
	PhaseExitModule Phase = 1 + iota
	// PhaseCancelTasks cancels every task's context with the exit's cause.
	PhaseCancelTasks
	// PhaseAwaitTasks waits until every task has returned.
	PhaseAwaitTasks
	// PhaseCheckpoint runs its hooks, which may write the last records while no
	// task and no call writes any more.
	PhaseCheckpoint
	// PhaseCloseDurability seals the durability channel, then drains and syncs
	// all that was accepted.
	PhaseCloseDurability
	// PhaseCloseLog closes the Log, which gives up its files and its lock.
	PhaseCloseLog
	// PhaseRelease runs its hooks, which give back the rest (gauges,
	// registrations, …).
	PhaseRelease
)

// phase is a row of the table below.
type phase struct {
	Phase
	hooks bool          // OnExit takes hooks for it; they run first, last registered first
	step  func(e *exit) // what the phase does and waits for once its hooks have run; nil: nothing
}

// phases is the order of the exit: exit.run walks it from top to bottom, and no
// other place encodes it. (It is filled in by init because the steps refer back
// to the runner.)
var phases [7]phase

func init() {
	seam.LogOf = func(host any) any { return host.(*Host).durability.log }
	phases = [...]phase{
		{PhaseExitModule, true, (*exit).awaitCalls},
		{PhaseCancelTasks, false, (*exit).cancelTasks},
		{PhaseAwaitTasks, false, (*exit).awaitTasks},
		{PhaseCheckpoint, true, nil},
		{PhaseCloseDurability, false, (*exit).closeDurability},
		{PhaseCloseLog, false, (*exit).closeLog},
		{PhaseRelease, true, nil},
	}
}

// takesHooks says whether OnExit takes hooks for p.
func (p Phase) takesHooks() bool {
	for _, row := range phases {
		if row.Phase == p {
			return row.hooks
		}
	}
	return false
}

var phaseNames = [...]string{
	0:                    "none",
	PhaseExitModule:      "exit module",
	PhaseCancelTasks:     "cancel tasks",
	PhaseAwaitTasks:      "await tasks",
	PhaseCheckpoint:      "checkpoint",
	PhaseCloseDurability: "close durability",
	PhaseCloseLog:        "close log",
	PhaseRelease:         "release",
}

// String returns the phase's name, "none" for 0 and "phase(n)" for what is no
// phase.
func (p Phase) String() string {
	if p < 0 || int(p) >= len(phaseNames) {
		return "phase(" + strconv.Itoa(int(p)) + ")"
	}
	return phaseNames[p]
}

// MarshalText returns the phase's name. The error is ErrInvalid for what is no
// phase.
func (p Phase) MarshalText() ([]byte, error) {
	if p < 0 || int(p) >= len(phaseNames) {
		return nil, fmt.Errorf("lifecycle: %w: %v", ErrInvalid, p)
	}
	return []byte(p.String()), nil
}

// UnmarshalText takes what MarshalText returns. Anything else is ErrInvalid.
func (p *Phase) UnmarshalText(text []byte) error {
	for i, name := range phaseNames {
		if name == string(text) {
			*p = Phase(i)
			return nil
		}
	}
	return fmt.Errorf("lifecycle: %w: no phase is named %q", ErrInvalid, text)
}

// State is where a host stands in its one life: Running, Exiting, Exited, in
// this order and never back.
type State int

const (
	Running State = iota // takes work
	Exiting              // the exit has begun: new calls, tasks and hooks are refused
	Exited               // the exit has ended: Done is closed and the result is known
)

var stateNames = [...]string{Running: "running", Exiting: "exiting", Exited: "exited"}

// String returns "running", "exiting" or "exited", and "state(n)" for what is no
// state.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return "state(" + strconv.Itoa(int(s)) + ")"
	}
	return stateNames[s]
}

// MarshalText returns the state's name. The error is ErrInvalid for what is no
// state.
func (s State) MarshalText() ([]byte, error) {
	if s < 0 || int(s) >= len(stateNames) {
		return nil, fmt.Errorf("lifecycle: %w: %v", ErrInvalid, s)
	}
	return []byte(s.String()), nil
}

// UnmarshalText takes what MarshalText returns. Anything else is ErrInvalid.
func (s *State) UnmarshalText(text []byte) error {
	for i, name := range stateNames {
		if name == string(text) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("lifecycle: %w: no state is named %q", ErrInvalid, text)
}
