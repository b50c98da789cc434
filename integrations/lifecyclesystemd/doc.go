// Package lifecyclesystemd tells systemd about the life of a lifecycle.Host, or of a
// Controller of many, by the protocol of sd_notify(3): that the service is ready, that it
// stops, and, while its exit makes progress, that it needs more time.
//
//	notifier, err := lifecyclesystemd.Start(host, lifecyclesystemd.Options{})
//	…
//	notifier.Ready("serving on :8080")
//	err = lifecycle.Run(ctx, host, lifecycle.RunOptions{Grace: time.Hour})
//	if untold := notifier.Wait(); untold != nil {
//		logger.Warn("systemd was not told all", "err", untold) // how the exit ended is in err
//	}
//
// The unit has Type=notify. Where there is no NOTIFY_SOCKET in the
// environment nothing is done.
//
// # The messages
//
//	READY=1                    by Ready
//	STOPPING=1                 the moment the exit begins (Exiting is closed), whoever began it
//	EXTEND_TIMEOUT_USEC=…      every second at most, if the exit has made progress since the last look
//	WATCHDOG=1                 where WATCHDOG_USEC is set, every quarter of it until the exit begins, while no running host's log stands still
//	STATUS=…                   by Ready and Status, and during the exit when there is something new
//
// # Progress
//
// An exit makes progress when, of any host, a phase ends or a hook, a call or a task has
// ended, or transactions were written or became durable; or when Progress is called, as a
// hook does that takes long by itself. Looking costs a Status of each host and, only if
// nothing has moved, the Reports of at most eight, each about a goroutine profile.
//
// Only a Report shows hooks that have ended. So where N > 8 hosts are in a phase with
// hooks they take turns, each asked at every (N/8)th look that sees nothing else move, and
// a hook's end is seen so many looks later at most; twice as many in a phase in which its
// host has not been asked yet. Of 80 hosts with looks every second that is 10 s, or 20 s:
// Still has to be longer, or the hooks call Progress.
//
// # The watchdog
//
// Every quarter of WATCHDOG_USEC the hosts that run are looked at, and WATCHDOG=1 is sent
// unless one of them has, for the third look or more, transactions accepted that are not
// durable, and none of them has become so. A stall shorter than WATCHDOG_USEC therefore
// never gets the process killed, and a log that stands still for good does, between 1¼ and
// 1½ times WATCHDOG_USEC after it stopped. Stalls of several hosts that overlap count as
// one, from the first's beginning to the last's end.
//
// # The arithmetic of timeouts
//
// systemd allows TimeoutStopSec (90 s where nobody has changed it) from its SIGTERM on,
// or from STOPPING=1 if that came first, and kills what is left then with SIGKILL. An
// EXTEND_TIMEOUT_USEC moves that to so many µs from its arrival, if that is later, and
// never nearer. With T = TimeoutStopSec, S = Options.Still and a look every
// L = min(S/10, 1 s), a service whose exit stands still is killed at
//
//	the later of  T after the SIGTERM  and  S after its last progress, give or take 2 L
//
// and one whose exit moves at least every S - 2 L is not killed at all. That needs T > L,
// so that the first look comes in time; T = S has both limits mean the same.
//
// lifecycle.Run has limits of its own: it forces the exit Grace after its beginning, and
// that takes Flush at most, and a moment (100 ms for those who obey, and for each release
// hook). There are two ways to set the four:
//
//   - Grace + Flush and a moment < T. The exit always ends in order, by force at worst,
//     before systemd would kill: what was accepted is drained, and who was left behind is
//     named. The extensions do nothing. Run's defaults (25 s, 5 s) and systemd's (90 s) are
//     of this kind, and it is the better one where an exit has no reason to take long.
//   - Grace longer than any exit that moves may take, an hour say, for a server whose last
//     checkpoint takes as long as it takes. Then T and S bound only how long it may stand
//     still, and one that does is killed by systemd without having been forced: what was
//     accepted and is not durable is unknown, as after any crash.
//
// Extensions go on when the exit is forced, as long as there is progress.
package lifecyclesystemd
