// Package lifecycleprom shows hosts to Prometheus: a [prometheus.Collector] for any
// number of them, those of a lifecycle.Controller too.
//
//	hosts := lifecycleprom.NewCollector(lifecycleprom.Options{})
//	prometheus.MustRegister(hosts)
//	…
//	host := hosts.NewHost(log, lifecycle.Options{Name: "orders"}) // in place of lifecycle.New
//
// Under a Controller, NewHost is called where open makes the host. Nothing has to be
// said when a host exits.
//
// Serve the metrics on a listener that PhaseExitModule does not shut down: an exit
// that hangs is when they are needed. A scrape never waits for a host, and takes no
// goroutine profile.
//
// # Hosts of one name
//
// The label "host" is the host's name. What hosts of one name have done is added up:
// those that live at the same time, and those that were launched one after another.
// So no counter falls when a host has exited, and none is lost when hosts come and
// go between two scrapes. A name stays for as long as the Collector does; where names
// are many, or do not come back, Options.Label makes fewer of them.
//
// # What is exact
//
//   - Accepted, durable and lost transactions, log failures, phases, hooks and outcomes
//     of exits: each is counted once, whatever a forced exit passes over. They are taken
//     from the host itself, at the scrape. The outcome, what was lost, and the phases and
//     hooks that a forced exit did not announce, count from the first scrape after
//     Host.Done has closed.
//   - Syncs and batches: each that was announced by the observer, which a forced
//     exit stops. Only those that succeeded: the one that failed, the host's last, is
//     a log failure.
//   - Ticks: those that had ended at a scrape, or when PhaseExitModule ended. One that
//     ends later, while the exit awaits it, is not counted, nor, where ForceExit comes
//     before the end of that phase, are those since the last scrape.
//   - Failures of tasks: each that was announced. A forced exit may pass over some.
//   - Stragglers are as the host last reported them: none before a phase has waited for
//     lifecycle.Options.StuckAfter, then at most that old, and none once the phase has ended.
//   - Everything else is as Host.Status says at the scrape.
package lifecycleprom
