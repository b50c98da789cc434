// Package lifecycleotel makes the exit of a lifecycle.Host a trace of OpenTelemetry, and
// what the host does metrics.
//
//	telemetry, err := lifecycleotel.New(lifecycleotel.Options{TracerProvider: traces, MeterProvider: meters})
//	host := telemetry.NewHost(log, lifecycle.Options{Name: "orders"})
//	…
//	err = lifecycle.Run(ctx, host, lifecycle.RunOptions{})
//	telemetry.Shutdown(ctx1) // ends the last spans, counts the last counts
//	traces.Shutdown(ctx2)    // exports them
//	meters.Shutdown(ctx3)    // and them
//
// It needs the API packages of OpenTelemetry alone; exporters and the SDK are the
// server's choice. Without a provider it does nothing.
//
// # The trace of an exit
//
//	exit                          root: host, cause, outcome, offsets, what was lost
//	├─ exit module
//	│  └─ hook http               a span for each hook, inside its phase
//	├─ cancel tasks
//	├─ await tasks                events: each straggler, each time that it is reported
//	├─ checkpoint
//	│  └─ hook snapshot
//	├─ close durability
//	├─ close log
//	└─ release
//
// The spans are of kind internal. Their attributes are the constants of this package.
// Status is unset where nothing failed, and else Error with the error's text and
// error.type. An exception event (type, message, stack where there is one) is on the
// span of a hook for its failure, and on the root for each failure of a task, for that of
// the log, and for the cause that was given to Fail. Whom ForceExit left behind is an
// event of the root; a hook that it skipped or left behind has a span that says so.
//
// LinkExit links the trace to the request that asks for the exit.
//
// # Who makes the spans, and when
//
// The observer notes what happens and when, and never calls the tracer. A goroutine of
// the Telemetry, one for each exit that runs, makes the spans, with those times. So a
// processor that is slow, hangs or panics holds up no exit and fails none: the first
// two hold up that goroutine, and the last is an error of OpenTelemetry's error handler
// and costs that one span.
//
// The MeterProvider is excepted from this. The histograms of batches are recorded on the
// durability actor, where the SDK's instruments take part of a microsecond. They run the
// attribute filters of its views, though, and if one of those blocks, commits and the
// exit wait for it; if one panics, so does the observer.
//
// That goroutine begins with the exit and ends when the exit has ended (Host.Done) and
// its root span has, so it outlives the host by what the span processors take for the
// last spans: microseconds with the SDK's batcher. It is none of the host's goroutines,
// of which Exit leaves none; Shutdown waits for it. A host that does not exit has none.
//
//   - The span of a phase ends when the phase has, and that of a hook when the hook has.
//     Of a process that is killed while a phase hangs, the spans of what was over have
//     been handed to the processors; that of the phase, with its events, and the root
//     have not. (Run does not let it come to that: it forces the exit before.)
//   - The root ends when the exit has, by whoever and however: Exit, ForceExit, Fail, a
//     task, the log. What observers were not told, as in a forced exit whose observers
//     have had their time, comes from the host's report. After a forced exit too the
//     trace has all seven phases and all hooks.
//   - Shutdown ends the spans of an exit that runs as they are, as errors, with the
//     outcome "unfinished" and those whom the exit waits for.
//
// Times are those at which the observer was told. A phase's span begins after
// the one before has ended.
//
// # Metrics
//
//	lifecycle.transaction.accepted  counter         {transaction}
//	lifecycle.transaction.durable   counter         {transaction}
//	lifecycle.queue.usage           up-down counter By             accepted and not yet written
//	lifecycle.call.active           up-down counter {call}
//	lifecycle.task.active           up-down counter {task}         lifecycle.task.name
//	lifecycle.task.ticks            counter         {tick}         lifecycle.task.name
//	lifecycle.task.failed_ticks     counter         {tick}         lifecycle.task.name
//	lifecycle.host.count            up-down counter {host}         lifecycle.host.state, lifecycle.phase.name while it exits
//	lifecycle.sync.duration         histogram       s              error.type where it failed
//	lifecycle.sync.transactions     histogram       {transaction}  of a batch
//	lifecycle.sync.size             histogram       By             of a batch
//	lifecycle.phase.duration        histogram       s              lifecycle.phase.name, error.type where something failed
//	lifecycle.exit.duration         histogram       s              lifecycle.exit.outcome
//
// Each carries what Options.Attributes returns beside the attributes that are named
// here, lifecycle.host.name if that is nil. The db.client metrics of the semantic
// conventions are those of a database's clients, so none of them fits here.
//
// The counters and up-down counters are observable: a collection asks each host for its
// Status, which takes no goroutine profile. They count what this process did, from 0,
// go on where a host ends and another with the same attributes begins, and include what
// was done between the last collection and the host's end: all that was accepted and
// became durable, and the ticks that had ended when PhaseExitModule had, unless ForceExit
// came before. Shutdown has them stand still, for the collection that the MeterProvider's
// own Shutdown makes.
//
// The number of series is bounded. Of a host 100 names of tasks have one of their own
// (a name that ticks keeps it) and the others share the name "_OTHER". The first 1000
// attribute sets of a Telemetry have series of their own, whether their hosts live or
// have ended, and the hosts of all later sets are counted under lifecycle.host.name
// "_OTHER" from their birth. So nothing is counted twice. Beyond 2000 series an
// instrument (those of phases have seven a host) the SDK itself puts what follows into
// one: a server of so many databases should return fewer different Options.Attributes.
//
// A batch costs three recordings in histograms on the durability actor, and no
// allocation. After ForceExit the host no longer reports its batches.
package lifecycleotel
