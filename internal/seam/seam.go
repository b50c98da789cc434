// Package seam is where this module's test kits stand between the steps of a
// host: lifecycletest, which starts an exit at each of them, and the explorer,
// which chooses who takes the next one.
//
// A kit installs a Watcher. Each host asks once, when it is made, whether
// somebody watches it, and keeps the answer for its life: in production that is
// nil, and a step costs the comparison with it. Since the answer belongs to the
// host, kits in parallel tests do not see each other's.
package seam

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Step is what a goroutine is about to do, unless it says that it is done. It is
// announced on the goroutine that does it, with no lock held, so a Watch may
// block, look at the host and its stack, and call any method of it.
type Step uint8

const (
	// What users ask for, before anything is done about it; the arguments have
	// been checked.
	Append    Step = iota + 1 // of Append and Commit
	Wait                      // of Wait, Commit and Pending: before each wait
	Go                        // name: the task's
	Every                     // name: the task's
	Enter                     //
	Leave                     //
	OnExit                    // name: the hook's
	Exit                      //
	ForceExit                 //
	Fail                      //

	// Refused says that the host has answered no because of its exit; name: the
	// method.
	Refused

	// Users' code that the host runs, on its goroutine. The ends are announced
	// once it has returned or panicked, and not after a Goexit.
	TaskBegin // name: the task's
	TaskEnd   // name: the task's
	TickBegin // name: the task's
	TickEnd   // name: the task's
	HookBegin // name: the hook's
	HookEnd   // name: the hook's

	// The host's own: each stands before a lock, a channel operation or a call
	// into the Log.
	Begin      // whoever begins the exit: publishing it
	EndTasks   // refusing tasks
	EndCalls   // refusing calls
	Announce   // closing Exiting
	Phase      // the runner: starting a phase; name: its
	Seal       // the runner: refusing appends
	CheckDrain // the runner: comparing accepted and durable
	LetClose   // the runner: letting the actor close the log
	Force      // ForceExit: cancelling everything
	EndFlush   // ForceExit: ending the time for the drain
	GiveUp     // the runner, forced: settling what is left as unknown
	TakeOver   // the runner, forced: starting another actor
	Finish     // the runner: publishing the result
	Done       // the runner: closing Done
	TaskLeave  // a task: taking itself off
	Room       // Append: waiting for room in the queue
	TakeBack   // Append: its context ended while it waited for room
	Take       // the actor: looking for work
	Park       // the actor: waiting for it
	Write      // the actor: calling Log.Append
	Written    // the actor: letting in who waits for room
	Sync       // the actor: calling Log.Sync
	Settle     // the actor: publishing that a batch is durable
	Poison     // the actor: publishing that the log has failed
	CloseLog   // the actor: calling Log.Close
)

var stepNames = [...]string{
	Append: "Append", Wait: "Wait", Go: "Go", Every: "Every", Enter: "Enter", Leave: "Leave",
	OnExit: "OnExit", Exit: "Exit", ForceExit: "ForceExit", Fail: "Fail", Refused: "Refused",
	TaskBegin: "TaskBegin", TaskEnd: "TaskEnd", TickBegin: "TickBegin", TickEnd: "TickEnd",
	HookBegin: "HookBegin", HookEnd: "HookEnd",
	Begin: "Begin", EndTasks: "EndTasks", EndCalls: "EndCalls", Announce: "Announce", Phase: "Phase",
	Seal: "Seal", CheckDrain: "CheckDrain", LetClose: "LetClose", Force: "Force", EndFlush: "EndFlush",
	GiveUp: "GiveUp", TakeOver: "TakeOver", Finish: "Finish", Done: "Done", TaskLeave: "TaskLeave",
	Room: "Room", TakeBack: "TakeBack", Take: "Take", Park: "Park", Write: "Write", Written: "Written",
	Sync: "Sync", Settle: "Settle", Poison: "Poison", CloseLog: "CloseLog",
}

// String returns the step's name as it stands in this package.
func (s Step) String() string {
	if int(s) < len(stepNames) && stepNames[s] != "" {
		return stepNames[s]
	}
	return "Step?"
}

// Watch is told of each step of one host.
type Watch func(step Step, name string)

// Watcher is asked, on the goroutine that makes it, whether it watches a host;
// nil: it does not. host is a *lifecycle.Host that is not ready for use yet.
type Watcher func(host any) Watch

// State is what the explorer sees of a host beside its public methods.
type State struct {
	Phase                   string // that runs; "": none yet
	Sealed, Forced, GivenUp bool
	Text                    string // all that the host's future depends on, apart from where its goroutines stand
}

// StateOf returns the State of a *lifecycle.Host, whose goroutines must be at rest.
// The root package sets it when it is initialised.
var StateOf func(host any) State

// LogOf returns the log that a *lifecycle.Host was made with; nil: none. The root
// package sets it when it is initialised.
var LogOf func(host any) any

var (
	installed atomic.Pointer[[]*Watcher]
	mu        sync.Mutex // held to change installed
)

// Install makes hosts that are made from now on ask w, until remove is called.
func Install(w Watcher) (remove func()) {
	change(func(all []*Watcher) []*Watcher { return append(all, &w) })
	return func() {
		change(func(all []*Watcher) []*Watcher {
			return slices.DeleteFunc(all, func(other *Watcher) bool { return other == &w })
		})
	}
}

func change(f func([]*Watcher) []*Watcher) {
	mu.Lock()
	defer mu.Unlock()
	var all []*Watcher
	if current := installed.Load(); current != nil {
		all = slices.Clone(*current)
	}
	all = f(all)
	if len(all) == 0 {
		installed.Store(nil)
		return
	}
	installed.Store(&all)
}

// Of returns who watches host: the first Watcher that does, or nil.
func Of(host any) Watch {
	all := installed.Load()
	if all == nil {
		return nil
	}
	for _, w := range *all {
		if watch := (*w)(host); watch != nil {
			return watch
		}
	}
	return nil
}
