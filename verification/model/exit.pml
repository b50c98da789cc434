/* The exit of a lifecycle.Host as a model for spin: everyone who takes part is a
 * process, a section under a lock or an atomic instruction of the Go code is one
 * atomic step, and whatever stands between two of them can be interleaved with
 * everyone else's steps. Each part names the Go function that it stands for.
 *
 * Go's channels that are only ever closed are bools here (closeChannel also checks
 * that none is closed twice, which panics in Go). Time is nondeterminism: a timer or
 * a context may end at every moment from its start.
 *
 * What is left out: the texts of errors, logger, pprof labels, Every (a task like
 * others to the exit), Wait for an offset of the future, which histories and storms
 * cover, and the chunks of the queue: a transaction is its offset, and the queue a
 * range of them.
 *
 * A world is chosen with -D; model_test.go has the ones that are checked. */

#ifndef BUG
#define BUG 0           /* a seeded mistake; 0: none. model_test.go says what each is */
#endif
#ifndef TASKS
#define TASKS 1         /* tasks that somebody tries to start */
#endif
#ifndef SPAWN
#define SPAWN 0         /* 1: task 0 tries to start another */
#endif
#ifndef CALLS
#define CALLS 0         /* client calls that try to enter */
#endif
#ifndef CLIENTS
#define CLIENTS 0       /* those who append without being a task, a call or a hook */
#endif
#ifndef HOOKS
#define HOOKS 0         /* 1: a hook in each phase that takes some */
#endif
#ifndef EXITS
#define EXITS 1         /* callers of Exit */
#endif
#ifndef EXPIRE
#define EXPIRE 0        /* 1: contexts of callers and of clients' appends may end */
#endif
#ifndef FORCE
#define FORCE 0         /* callers of ForceExit */
#endif
#ifndef FAIL
#define FAIL 0          /* callers of Fail */
#endif
#ifndef TASKFAIL
#define TASKFAIL 0      /* 1: a task may return an error */
#endif
#ifndef LOGFAIL
#define LOGFAIL 0       /* 1: a call of the log may fail */
#endif
#ifndef OBSERVER
#define OBSERVER 0      /* 1: the observer of syncs may hang, for a while or for good */
#endif
#ifndef STUCKTASK
#define STUCKTASK 0     /* 1: task 0 never ends */
#endif
#ifndef STUCKCALL
#define STUCKCALL 0     /* 1: a call may never leave */
#endif
#ifndef STUCKHOOK
#define STUCKHOOK 0     /* 1: a hook may never return */
#endif
#ifndef STUCKLOG
#define STUCKLOG 0      /* 1: a call of the log may never return */
#endif
#ifndef ROOM
#define ROOM 2          /* Options.QueueBytes, in transactions */
#endif

#if CALLS
#define SHARDS    2   /* of the gate's count */
#else
#define SHARDS    1
#endif
#define APPENDERS (TASKS+SPAWN+CALLS+CLIENTS+3*HOOKS)
#define MOST      (2*TASKS+SPAWN+CALLS+CLIENTS+2*HOOKS+1)  /* transactions, and one */

/* The host: host.go, exit.go */
bool begun;             /* h.exit != nil */
bool forced;            /* e.forced */
bool exited;            /* h.state == Exited */
bool exiting, done;     /* h.exiting, h.done */
bool graceEnd, flushEnd;
bool cancelled;         /* the tasks' context */
bool unclean;           /* e.failure, or one of e.failures */
bool leftCalls, leftTasks, leftHooks, leftLog, skipped; /* e.left, e.leftIn */
#define NONE   0
#define CLEAN  1
#define FAILED 2
#define FORCED 3
byte result;            /* e.outcome */
bool hookDone[8];       /* callout.done, by phase */

/* The tasks: tasks.go */
bool refusing, idle, awaited; /* awaited: ts.idle != nil */
byte alive;

/* The gate: gate.go */
byte word[SHARDS];      /* count<<1 | closed */
bool allLeft;

/* The durability actor: durability.go */
bool sealed, failed, givenUp, quiet, parked, over;
bool drained, closing, closed;
bool inCall;            /* d.call != nil */
bool observing;         /* callouts.activeNow(inSynced) > 0 */
byte generation;
byte accepted, durable;
byte queue;             /* the first in the queue, which ends at accepted */
byte flight, flightEnd; /* the actor's flight; empty: both the same */
byte bytes;             /* accepted, not written */
bool settled[MOST];     /* the channel that this offset's batch closes */
chan wake = [1] of { bit };
chan room = [APPENDERS+1] of { byte };  /* d.room: who waits, in the order of arrival */
bool listed[APPENDERS+1];
#define WAITS   0
#define ADMITTED 1
#define REFUSED 2
#define EXPIRED 3
#define LATER   4
byte ready[APPENDERS+1];    /* roomWaiter.ready, with what was decided */
byte offsetOf[APPENDERS+1]; /* roomWaiter.offset */

/* The log under the actor */
byte logEnd;            /* records written */
byte logSynced;         /* records that a power failure leaves */
bool logFailed, logClosed, logStuck;
bool logBusy;           /* somebody is in a call */

/* What only the assertions look at */
byte liveTasks, liveCalls, liveHooks; /* users' funcs that run */
bool taskFailed;
#define DURABLE 1
#define UNKNOWN 2
bool toldUnknown[MOST]; /* somebody was told that of this offset */
byte running;           /* processes that must end and have not */

inline closeChannel(c) { d_step { assert(!c); c = true } }

/* ---- gate.go ---- */

/* gate.check */
inline checkGate() {
  k = 0;
  do
  :: atomic { k < SHARDS && word[k] == 1 -> k++ }
  :: atomic { k < SHARDS && word[k] != 1 -> break }
  :: atomic { k == SHARDS ->
       assert(liveCalls == 0);  /* finding all zero means that every call has left */
       allLeft = true; k = 0; break }
  od;
  k = 0
}

/* gate.leave */
inline leaveGate() {
  atomic { word[s] = word[s] - 2; k = word[s] };
  if
  :: k == 1 -> checkGate()
  :: else -> k = 0
  fi
}

/* ---- host.go ---- */

/* Host.begin; failing: with a cause or a failure (Host.fail adds it, if others began) */
inline begin(force, failing) {
  atomic {
    if
    :: !begun ->
       begun = true; first = true;
       if :: force -> forced = true; quiet = true :: else fi;
       if :: failing -> unclean = true :: else fi
    :: else -> first = false
    fi
  };
  if
  :: first ->
     refusing = true;                           /* EndTasks: tasks.refuse */
#if BUG == 22
     closeChannel(exiting);
#endif
     k = 0;                                     /* EndCalls: gate.close */
     do
     :: k < SHARDS -> d_step { word[k] = word[k] | 1; k++ }
     :: else -> k = 0; break
     od;
     checkGate();
#if BUG != 22
     closeChannel(exiting);                     /* Announce */
#endif
     run Runner()
  :: else ->
     exiting;
     if
     :: failing -> atomic { if :: !exited -> unclean = true :: else fi }  /* e.addFailure */
     :: else
     fi
  fi;
  first = false
}

/* Host.Exit. A caller whose context ends calls again, as often as that happens. */
proctype Exit() {
  byte k; bool first; bool expired;
again:
  begin(false, false);
#if BUG == 10
  goto ended;  /* the follower's error in some hand-made shutdowns: "already exiting" is nil */
#endif
  if
  :: done
#if EXPIRE
  :: !expired ->
     expired = true;
     if
     :: done
     :: else ->
#if BUG == 9
        atomic { if :: !graceEnd -> graceEnd = true :: else fi };
#endif
        goto again      /* e.unended */
     fi
#endif
  fi;
#if BUG == 10
ended:
#endif
  assert(done && result != NONE);  /* P6: one result, when it has ended */
  d_step { running--; expired = false }
}

/* Host.ForceExit */
proctype ForceExit() {
  byte k; bool first;
  begin(true, false);
  if
  :: done -> goto ended
  :: else
  fi;
  atomic { if :: !forced && !exited -> forced = true; quiet = true :: else fi };  /* setForced */
  cancelled = true;                             /* tasks.cancel, cancelHooks */
  if
  :: done
  :: !done ->                                   /* its context ends */
     atomic { if :: !flushEnd -> flushEnd = true :: else fi };  /* EndFlush */
     done
  fi;
ended:
  assert(done && result != NONE);
  running--
}

/* e.graceTimer */
proctype Grace() {
end_unforced:
  if
#if BUG == 25
  :: atomic { forced && false -> closeChannel(graceEnd) }
#elif BUG == 9
  :: atomic { forced -> graceEnd = true }
#else
  :: forced -> closeChannel(graceEnd)
#endif
  :: exited
  fi
}

/* Host.Fail */
proctype Fail() {
  byte k; bool first;
  begin(false, true);
  running--
}

/* ---- durability.go: Append, Wait ---- */

/* Durability.push, and the wake-up in admit; under mu */
inline push(o) {
  o = accepted;
  assert(o < MOST-1);
  accepted++; bytes++;
  assert(!sealed && !failed)
}

#define HASROOM (bytes == 0 || bytes < ROOM)

/* Durability.Append by appender me: got becomes ADMITTED (at offset), REFUSED, or
 * EXPIRED if mayExpire */
inline append(mayExpire) {
  woke = false;
  atomic {                                      /* accept */
    if
    :: sealed || failed -> got = REFUSED
    :: else ->
       if
       :: len(room) == 0 && HASROOM -> push(offset); got = ADMITTED; woke = parked; parked = false
       :: else -> got = LATER
       fi
    fi
  };
  if
  :: got == LATER ->
     atomic {                                   /* acceptLater */
       if
       :: sealed || failed -> got = REFUSED
       :: else ->
          if
          :: len(room) == 0 && HASROOM -> push(offset); got = ADMITTED; woke = parked; parked = false
          :: else -> room!me; listed[me] = true; ready[me] = WAITS
          fi
       fi
    }
  :: else
  fi;
  if
  :: woke -> wake!1; woke = false
  :: else
  fi;
  if
  :: got == LATER ->                            /* awaitRoom */
     if
     :: ready[me] != WAITS
     :: mayExpire ->
        atomic {                                /* TakeBack */
          if
          :: listed[me] -> room??eval(me); listed[me] = false; got = EXPIRED
#if BUG == 23
          :: else -> got = EXPIRED
#else
          :: else
#endif
          fi;
          assert(got != EXPIRED || ready[me] == WAITS)  /* P2: not accepted */
        }
     fi;
     if
     :: got == LATER -> atomic { ready[me] != WAITS -> got = ready[me]; offset = offsetOf[me]; ready[me] = WAITS; offsetOf[me] = 0 }
     :: else
     fi
  :: else
  fi
}

/* Durability.outcome: under mu; seen becomes NONE, DURABLE or UNKNOWN */
inline look() {
  atomic {
    if
    :: offset < durable -> seen = DURABLE;
       assert(offset < logSynced);              /* P4: acknowledged, so synced */
       assert(!toldUnknown[offset])             /* P3: one outcome */
    :: offset >= durable && (givenUp || failed) -> seen = UNKNOWN;
       assert(givenUp || exiting)               /* whoever sees the log's error finds the exit begun */
    :: else -> seen = NONE
    fi;
    if
    :: seen == UNKNOWN -> toldUnknown[offset] = true
    :: else
    fi
  }
}

/* Durability.await */
inline await() {
  look();
  if
  :: seen == NONE -> settled[offset]; look(); assert(seen != NONE)
  :: else
  fi;
  seen = NONE
}

/* room.refuse; under mu. (Go wakes them after the lock is released; until then they
 * can only wait for that.) */
inline refuseRoom() {
  do
  :: len(room) > 0 -> room?w; listed[w] = false; ready[w] = REFUSED
  :: else -> w = 0; break
  od
}

/* closing the channels of the batches from a to b: each exactly once */
inline closeSettled(a, b) {
  d_step {
    do
    :: a < b -> assert(!settled[a]); settled[a] = true; a++
    :: else -> break
    od;
    a = 0; b = 0
  }
}

/* ---- tasks.go ---- */

/* tasks.spawn, by whoever has a local named refused */
inline spawn(id) {
#if BUG == 3
  if
  :: refusing -> refused = true
  :: else -> alive++; atomic { liveTasks++; running++; run Task(id) }
  fi
#else
  atomic {
    if
    :: refusing -> refused = true               /* P2: a refused func is not called */
    :: else ->
       assert(!exiting);                        /* P2: after Exiting everything is refused */
       alive++; liveTasks++; running++; run Task(id)
    fi
  }
#endif
}

/* A task. It appends without waiting for the outcome; once it is cancelled it writes
 * one last transaction and waits until that is durable, as a view's cleanup does. */
proctype Task(byte me) {
  byte offset, got, seen, k; bool woke, first, refused;
  append(false);
  assert(got != REFUSED || failed || leftTasks);  /* P1: it does not meet the seal, unless left behind */
#if SPAWN
  if
  :: me == 0 -> spawn(TASKS); refused = false
  :: else
  fi;
#endif
#if STUCKTASK
  if
  :: me == 0 -> running--;
end_stuck:
     false
  :: else
  fi;
#endif
  if
  :: cancelled
  :: me != 0 -> goto returns                    /* it may also end by itself */
  fi;
#if SPAWN
  if
  :: me == TASKS -> goto returns
  :: else
  fi;
#endif
  append(false);
  assert(got != REFUSED || failed || leftTasks);
  if
  :: got == ADMITTED -> await()
  :: else
  fi;
returns:
#if BUG == 17
  atomic { alive--; liveTasks--; first = (alive == 0 && refusing && awaited); if :: first -> awaited = false :: else fi };
  if :: first -> closeChannel(idle); first = false :: else fi;
#endif
#if TASKFAIL
  if                                            /* task.end: its failure is recorded … */
  :: taskFailed = true; begin(false, true)
  :: skip
  fi;
#endif
#if BUG != 17
  /* task.leave: … before it is taken off */
  atomic { alive--; liveTasks--; first = (alive == 0 && refusing && awaited); if :: first -> awaited = false :: else fi };
  if :: first -> closeChannel(idle); first = false :: else fi;
#endif
  d_step { running--; offset = 0; got = 0 }
}

/* Host.Go by somebody outside */
proctype Starter(byte id) {
  bool refused;
  spawn(id);
  d_step { running--; refused = false }
}

/* A client's call: Host.Enter, an append, Call.Leave */
proctype Call(byte me) {
  byte offset, got, s, k; bool woke;
  if :: s = 0 :: s = SHARDS-1 fi;               /* gate.shard */
#if BUG == 16
  if
  :: word[s] & 1 -> k = 1
  :: else -> skip; d_step { word[s] = word[s] + 2; k = 0 }
  fi;
  if
  :: k == 0 -> liveCalls++
#else
  atomic {                                      /* gate.enter */
    k = word[s] & 1;
    word[s] = word[s] + 2;
    if
    :: k == 0 -> liveCalls++; assert(!exiting)  /* P2 */
    :: else
    fi
  };
  if
  :: k == 0 ->
#endif
     append(false);
     assert(got != REFUSED || failed || leftCalls);
#if STUCKCALL
     if
     :: skip
     :: running--;
end_stuck:
        false
     fi;
#endif
     liveCalls--;
     leaveGate()
#if BUG == 16
  :: else
#else
  :: else -> leaveGate()                        /* refused */
#endif
  fi;
  d_step { running--; offset = 0; got = 0; s = 0; k = 0 }
}

/* Somebody that the host does not know appends and waits. */
proctype Client(byte me) {
  byte offset, got, seen; bool woke;
  append(EXPIRE);
  if
  :: got == ADMITTED -> await()
  :: else
  fi;
  d_step { running--; offset = 0; got = 0 }
}

/* A hook, which exit.call runs in a goroutine of its own */
proctype Hook(byte me; byte phase) {
  byte offset, got, seen; bool woke;
  if
  :: phase == 4 ->
     /* with no one else writing */
     assert((liveTasks == 0 || leftTasks) && (liveCalls == 0 || leftCalls));
     append(false);
     if
     :: got == ADMITTED -> await()
     :: else -> assert(failed || leftHooks)
     fi
  :: phase == 1 -> append(false); assert(got != REFUSED || failed || leftHooks)
  :: else -> append(false); assert(got == REFUSED)
  fi;
#if STUCKHOOK
  if
  :: skip
  :: running--;
end_stuck:
     false
  fi;
#endif
  d_step { liveHooks--; hookDone[phase] = true; running--; offset = 0; got = 0 }
}

/* ---- durability.go: the actor ---- */

/* Durability.enter and .left around a call into the log; they never overlap */
inline enterLog() { d_step { inCall = true; assert(!logBusy && !logClosed); logBusy = true } }
inline leaveLog() { d_step { logBusy = false; inCall = false } }

/* the call may never return */
#if STUCKLOG
#define MAYHANG(label) if :: skip :: logStuck = true; label: false fi;
#else
#define MAYHANG(label)
#endif

/* Durability.main */
proctype Actor(byte own) {
  byte k, w, from, to; bool first, bad;
  do
  ::
     /* take */
     atomic {
       if
       :: generation != own -> goto superseded
       :: else ->
          if
#if BUG == 4
          :: sealed -> over = true; goto drain
#endif
          :: queue < accepted && !givenUp ->
             flight = queue; flightEnd = accepted; queue = accepted;
             first = true                       /* took */
          :: (queue == accepted || givenUp) && sealed -> over = true; goto drain
          :: else ->
             first = false;
#if BUG != 18
             parked = true
#endif
          fi
       fi
     };
     if
     :: !first ->
#if BUG == 18
        parked = true;
#endif
        wake?_                                  /* Park */
     :: else ->
        first = false;
        /* fly: Write */
        from = flight; to = flightEnd;
#if BUG == 5
        d_step { durable = to; k = from };
        closeSettled(k, to);
        to = flightEnd;
#endif
        enterLog();
        MAYHANG(end_append)
        if
        :: assert(from == logEnd && !logFailed);  /* offset order, no gaps; nothing after a failure */
           logEnd = to; bad = false
#if LOGFAIL
        :: !logFailed -> logFailed = true; bad = true
#endif
        fi;
        leaveLog();
        if
        :: !bad ->
           atomic {                             /* written */
             bytes = bytes - (to - from);
             if :: givenUp -> bytes = 0 :: else fi;
             do
             :: len(room) > 0 && HASROOM -> room?w; listed[w] = false; push(offsetOf[w]); ready[w] = ADMITTED
             :: else -> w = 0; break
             od
           };
           if
           :: !givenUp ->                       /* Sync */
              enterLog();
              MAYHANG(end_sync)
              if
              :: logSynced = logEnd; bad = false
#if LOGFAIL
              :: !logFailed -> logFailed = true; bad = true
#endif
              fi;
              leaveLog();
#if BUG == 7
              if
              :: bad -> bad = false             /* again, and it says yes to what is gone */
              :: else
              fi
#endif
           :: else
           fi
        :: else
        fi;
        /* land */
        if
        :: !bad ->
           atomic {                             /* settle */
#if BUG == 5
             flight = 0; flightEnd = 0; from = 0; to = 0
#else
             if
#if BUG == 12
             :: false
#else
             :: givenUp -> from = 0; to = 0
#endif
             :: else ->
                assert(!givenUp);               /* P7: durable never moves again */
                assert(to <= logSynced);        /* P4: only after a Sync that returned nil */
                assert(to > durable && from == durable);
                durable = to
             fi;
             flight = 0; flightEnd = 0
#endif
           };
           closeSettled(from, to)
        :: else ->                              /* poison */
#if BUG != 20
           begin(false, true);
#endif
           atomic {
             if
             :: givenUp -> from = 0; to = 0
             :: else -> failed = true; to = accepted; queue = accepted; bytes = 0; refuseRoom()
             fi;
             flight = 0; flightEnd = 0
           };
#if BUG == 19
           from = 0; to = 0;
#endif
           closeSettled(from, to);
#if BUG == 20
           begin(false, true);
#endif
           bad = false
        fi;
        from = 0; to = 0;
#if OBSERVER
        observing = true;
        if
        :: !quiet ->
           if
           :: skip
           :: logStuck = true;                  /* it never returns: this goroutine is gone */
end_observer: false
           fi
        :: quiet
        fi;
        observing = false
#endif
     fi
  od;
drain:
  closeChannel(drained);
  closing;
#if BUG != 21
  enterLog();                                   /* Durability.close */
  MAYHANG(end_close)
#if LOGFAIL
  if
  :: begin(false, true)
  :: skip
  fi;
#endif
  d_step { assert(!logClosed); logClosed = true };
  leaveLog();
  closeChannel(closed);
#endif
superseded:
  skip
}

/* ---- exit.go: the runner ---- */

/* exit.runHook, exit.call */
inline runHook(phase, id) {
#if HOOKS
  hookForced = forced;                          /* isForced */
  if
  :: hookForced && phase != 7 -> skipped = true
  :: else ->
     atomic { liveHooks++; running++; run Hook(APPENDERS-3+id, phase) };
     if
     :: hookDone[phase]
     :: (hookForced || graceEnd) && !hookDone[phase] -> leftHooks = true  /* patience has ended */
     fi
  fi;
  hookForced = false
#else
  skip
#endif
}

inline exitModule() {
  runHook(1, 0);
#if BUG != 14
  do                                            /* awaitCalls: awaitOrLeave */
  :: allLeft -> break
  :: graceEnd && !allLeft ->
     if
     :: word[0] > 1 || word[SHARDS-1] > 1 -> leftCalls = true; break
     :: else
     fi
  od
#else
  skip
#endif
}

inline cancelTasks() { cancelled = true }

inline awaitTasks() {
#if BUG != 2
  atomic { awaited = true; noneAlive = (alive == 0) };  /* tasks.await */
  if :: noneAlive -> closeChannel(idle) :: else fi;
  do                                            /* awaitOrLeave */
  :: idle -> break
  :: graceEnd && !idle ->
     if
#if BUG == 24
     :: false
#elif BUG == 11
     :: alive > 0 -> break
#else
     :: alive > 0 -> leftTasks = true; break
#endif
     :: else
     fi
  od
#else
  skip
#endif
}

/* What must be true when the durability channel is sealed */
inline assertOrder() {
  assert(liveTasks == 0 || leftTasks);          /* P1, and P7: who is alive is named */
  assert(liveCalls == 0 || leftCalls);
  assert(liveHooks == 0 || leftHooks);
  assert(!(leftTasks || leftCalls || leftHooks) || forced)
}

inline closeDurability() {
  atomic {                                      /* Durability.seal */
    assertOrder();
    sealed = true;
#if BUG != 8
    refuseRoom();
#endif
    woke = parked; parked = false
  };
  if
  :: woke -> wake!1; woke = false
  :: else
  fi;
#if BUG != 6
  if
  :: drained
  :: graceEnd && !drained ->
     if                                         /* TakeOver */
     :: observing ->
        atomic {                                /* Durability.takeOver */
          if
#if BUG == 13
          :: !over -> generation++; leftHooks = true; run Actor(generation)
#else
          :: !over && flight == flightEnd -> generation++; leftHooks = true; run Actor(generation)
#endif
          :: else
          fi
        }
     :: else
     fi;
     if
     :: drained
     :: flushEnd && !drained ->
        atomic {                                /* Durability.giveUp */
          if
          :: queue == accepted && flight == flightEnd && !inCall -> woke = true
          :: else ->
             givenUp = true;
             if
             :: flight == flightEnd -> from = queue
             :: else -> from = flight
             fi;
             to = accepted; queue = accepted; bytes = 0;
             refuseRoom()
          fi
        };
        if
        :: woke -> woke = false; drained
        :: else -> closeSettled(from, to); leftLog = true
        fi
     fi
  fi;
#endif
  atomic { if :: !failed && !givenUp && accepted != durable -> unclean = true :: else fi }  /* checkDrained */
}

inline closeLog() {
  closeChannel(closing);
#if BUG == 21
  enterLog(); d_step { logClosed = true }; leaveLog(); closed = true;
#endif
  if
#if BUG == 6
  :: skip
#endif
  :: closed
  :: flushEnd && !closed ->
     if                                         /* patience */
     :: closed
     :: !closed -> if :: !givenUp -> leftLog = true :: else fi
     fi
  fi
}

/* exit.run */
proctype Runner() {
  byte w, from, to; bool woke, noneAlive, hookForced;
#if BUG == 1
  exitModule(); closeDurability(); closeLog(); cancelTasks(); awaitTasks(); runHook(4, 1);
#elif BUG == 15
  exitModule(); cancelTasks(); runHook(4, 1); awaitTasks(); closeDurability(); closeLog();
#else
  exitModule();
  cancelTasks();
  awaitTasks();
  runHook(4, 1);
  closeDurability();
  closeLog();
#endif
  runHook(7, 2);
  atomic {                                      /* finish, conclude */
    if
    :: forced && (leftCalls || leftTasks || leftHooks || leftLog || skipped || durable < accepted) -> result = FORCED
    :: else -> if :: unclean -> result = FAILED :: else -> result = CLEAN fi
    fi;
    exited = true;
    /* P5, P10 */
    assert(result != CLEAN || (liveTasks == 0 && liveCalls == 0 && liveHooks == 0));
    assert(result != CLEAN || (accepted == durable && accepted == logSynced && logClosed));
    assert(result != CLEAN || (!taskFailed && !failed && !logFailed));
    /* P7 */
    assert(result == FORCED || (liveTasks == 0 && liveCalls == 0 && liveHooks == 0));
    /* P3 */
    assert(accepted == durable || failed || givenUp)
  };
  closeChannel(done)
}

init {
  byte i;
  atomic {
    running = TASKS+CALLS+CLIENTS+EXITS+FORCE+FAIL;
    run Actor(0);
    run Grace();
    i = 0; do :: i < TASKS -> run Starter(i); i++ :: else -> break od;
#if CALLS
    i = 0; do :: i < CALLS -> run Call(TASKS+SPAWN+i); i++ :: else -> break od;
#endif
#if CLIENTS
    i = 0; do :: i < CLIENTS -> run Client(TASKS+SPAWN+CALLS+i); i++ :: else -> break od;
#endif
    i = 0; do :: i < EXITS -> run Exit(); i++ :: else -> break od;
#if FORCE
    i = 0; do :: i < FORCE -> run ForceExit(); i++ :: else -> break od;
#endif
#if FAIL
    i = 0; do :: i < FAIL -> run Fail(); i++ :: else -> break od;
#endif
    i = 0
  }
}

/* Everyone returns who is not stuck by a world's choice, and the log gets closed
 * unless it hangs. Deadlocks show as invalid end states as well. */
ltl terminates { <> (running == 0 && done && (closed || logStuck)) }
