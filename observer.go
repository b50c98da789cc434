package lifecycle

import "time"

// Observer is told what a host does. Each func may be nil. Whoever did it waits for
// the func, so a slow one slows that down. One that panics or calls runtime.Goexit
// changes nothing: the first time is logged with its stack and noted in the
// report. One that hangs is a straggler of kind "hook", named "observer PhaseStart"
// and so on, which ForceExit leaves behind and does not call again; after ForceExit
// all of them together have ForceGrace, and are passed over then. They may be called
// at the same time.
type Observer struct {
	// PhaseStart is invoked before a phase does anything. Duration and Err are
	// zero.
	PhaseStart func(PhaseEvent)
	// PhaseEnd is invoked after a phase has ended.
	PhaseEnd func(PhaseEvent)
	// HookEnd is invoked after a hook has returned, was skipped or was left
	// behind by ForceExit.
	HookEnd func(HookEvent)
	// TaskEnd is invoked after a task has returned and before it stops to count
	// as alive.
	TaskEnd func(TaskEvent)
	// Stuck is invoked every Options.StuckAfter while a phase waits.
	Stuck func(StuckEvent)
	// Synced is invoked by the durability actor after each batch, when all who
	// waited for it have been woken; the next batch waits for it to return. A
	// forced exit no longer invokes it, so sums of its events may fall short of
	// Durability.Durable.
	Synced func(SyncEvent)
}

// PhaseEvent is the start or the end of a phase.
type PhaseEvent struct {
	Host     string
	Phase    Phase
	Duration time.Duration
	Err      error // what failed while the phase ran, joined; nil: nothing
}

// HookEvent is the end of a hook.
type HookEvent struct {
	Host      string
	Phase     Phase
	Hook      string
	Duration  time.Duration
	Err       error // a *HookError; ErrForced if it was skipped or abandoned; nil: it returned nil
	Skipped   bool  // by ForceExit, before it began
	Abandoned bool  // by ForceExit, while it ran
}

// TaskEvent is the end of a task.
type TaskEvent struct {
	Host     string
	Task     string
	Duration time.Duration
	Err      error // a *TaskError if the task failed; nil if it ended well or because it was cancelled
}

// StuckEvent says that a phase still waits, and for whom.
type StuckEvent struct {
	Host        string
	Phase       Phase
	Age         time.Duration // since the phase began
	Stragglers  []Straggler   // one at least; Stack holds the top frames only
	QueuedBytes int           // as in Status
}

// SyncEvent is a batch that the durability actor has written and synced, or
// failed to.
type SyncEvent struct {
	Host     string
	Txs      int
	Bytes    int           // of the transactions themselves
	Durable  Offset        // after this batch
	Duration time.Duration // of the log's Append and Sync
	Err      error         // a *LogError; nil: the batch is durable
}

// MultiObserver returns an Observer that tells each of the given ones, in that
// order: where one panics or calls runtime.Goexit the rest are told all the same.
// Whoever waits for a func of it waits for all of them: where one hangs, those
// behind it are not told, and once ForceExit has left it behind none is called for
// that kind of event again. A func that none of them has is nil.
func MultiObserver(observers ...Observer) Observer {
	var all struct {
		phaseStart, phaseEnd []func(PhaseEvent)
		hookEnd              []func(HookEvent)
		taskEnd              []func(TaskEvent)
		stuck                []func(StuckEvent)
		synced               []func(SyncEvent)
	}
	for _, o := range observers {
		all.phaseStart = appendFunc(all.phaseStart, o.PhaseStart)
		all.phaseEnd = appendFunc(all.phaseEnd, o.PhaseEnd)
		all.hookEnd = appendFunc(all.hookEnd, o.HookEnd)
		all.taskEnd = appendFunc(all.taskEnd, o.TaskEnd)
		all.stuck = appendFunc(all.stuck, o.Stuck)
		all.synced = appendFunc(all.synced, o.Synced)
	}
	return Observer{
		PhaseStart: inOrder(all.phaseStart),
		PhaseEnd:   inOrder(all.phaseEnd),
		HookEnd:    inOrder(all.hookEnd),
		TaskEnd:    inOrder(all.taskEnd),
		Stuck:      inOrder(all.stuck),
		Synced:     inOrder(all.synced),
	}
}

func appendFunc[E any](funcs []func(E), f func(E)) []func(E) {
	if f == nil {
		return funcs
	}
	return append(funcs, f)
}

// inOrder returns one func that calls all of them. It nests them: each has the rest
// deferred, so that they run even if it never returns.
func inOrder[E any](funcs []func(E)) func(E) {
	switch len(funcs) {
	case 0:
		return nil
	case 1:
		return funcs[0]
	}
	first, rest := funcs[0], inOrder(funcs[1:])
	return func(event E) {
		defer rest(event)
		first(event)
	}
}

// The names under which observer funcs and the logger count as stragglers.
const (
	inPhaseStart = "observer PhaseStart"
	inPhaseEnd   = "observer PhaseEnd"
	inHookEnd    = "observer HookEnd"
	inTaskEnd    = "observer TaskEnd"
	inStuck      = "observer Stuck"
	inSynced     = "observer Synced"
	inLogger     = "logger"
)
