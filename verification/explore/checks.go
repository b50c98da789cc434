package explore

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/seed080d9131/lifecycle"
)

// check looks at a state in which every goroutine is at rest.
func (w *World) check() {
	d, s := w.Host.Durability(), w.state()
	durable, accepted := d.Durable(), d.Accepted()
	before := w.durable
	switch {
	case durable < before:
		w.Broken("P4: the durable offset went back from %d to %d", before, durable)
	case durable > accepted:
		w.Broken("P4: durable %d, but accepted %d", durable, accepted)
	case w.Log != nil && durable > uint64(len(w.Log.durable())):
		w.Broken("P4: durable %d, but the log has synced %q", durable, w.Log.durable())
	case s.GivenUp && durable != before && w.gaveUp:
		w.Broken("P7: the durable offset moved after the rest had been settled as unknown")
	}
	if w.sealed && accepted != w.offered {
		w.Broken("P2: something was accepted after the seal")
	}
	w.durable, w.offered, w.gaveUp, w.sealed = durable, accepted, s.GivenUp, s.Sealed
	if s.Sealed {
		w.sealedOver("the channel was sealed")
	}
}

// sealedOver says that P1 is broken if anybody is alive for whom a plain exit waits.
func (w *World) sealedOver(what string) {
	if w.state().Forced {
		return
	}
	w.mu.Lock()
	var alive []string
	for who, n := range w.inside {
		if n > 0 && !strings.HasPrefix(who, "release ") {
			alive = append(alive, who)
		}
	}
	w.mu.Unlock()
	if len(alive) > 0 {
		slices.Sort(alive)
		w.Broken("P1: %s while alive: %q", what, alive)
	}
}

// checkEnd looks at a run in which nobody can go on.
func (w *World) checkEnd() {
	h, d := w.Host, w.Host.Durability()
	report := h.Report()
	forced, givenUp := w.state().Forced, w.state().GivenUp
	w.mu.Lock()
	accepted, refused := maps.Clone(w.accepted), maps.Clone(w.refused)
	results := maps.Clone(w.results)
	w.mu.Unlock()

	if !isClosed(h.Done()) {
		w.Broken("P6: the exit has not ended")
		return
	}
	if uint64(len(accepted)) != d.Accepted() {
		w.Broken("P3: %d appends were told that they were accepted, and the host counts %d", len(accepted), d.Accepted())
	}
	offsets := map[lifecycle.Offset]string{}
	for tx, offset := range accepted {
		if other, taken := offsets[offset]; taken {
			w.Broken("P3: offset %d was given to %s and to %s", offset, tx, other)
		}
		offsets[offset] = tx
	}
	if w.Log != nil {
		held := w.Log.durable()
		for offset, tx := range held {
			if refused[tx] {
				w.Broken("P2: %s was refused, and is in the log", tx)
			}
			if uint64(offset) < d.Durable() && offsets[uint64(offset)] != tx {
				w.Broken("P3: the log holds %s at %d, where %q was accepted", tx, offset, offsets[uint64(offset)])
			}
		}
		if !w.Log.failed() && !givenUp && uint64(len(held)) != d.Accepted() {
			w.Broken("P3: nothing has failed, %d were accepted and the log holds %q", d.Accepted(), held)
		}
		if !w.Log.closed && !forced {
			w.Broken("P5: the exit has ended and the log is open")
		}
	}
	for offset := range d.Accepted() {
		p := d.Wait(canceled, offset)
		switch {
		case p == nil && w.Log != nil && !w.Log.holds(offset, offsets[offset]):
			w.Broken("P4: %d is said to be durable, and the log holds %q", offset, w.Log.durable())
		case p != nil && !errors.Is(p, lifecycle.ErrUnknown):
			w.Broken("P3: %d was accepted, and its outcome is %v", offset, p)
		case p != nil && !w.Log.failed() && !givenUp:
			w.Broken("P3: nothing has failed, and the outcome of %d is %v", offset, p)
		}
	}

	names := slices.Sorted(maps.Keys(results))
	for _, name := range names {
		err, other := results[name], results[names[0]]
		if (err == nil) != (other == nil) || err != nil && err.Error() != other.Error() {
			w.Broken("P6: %s was told %v, and %s %v", name, err, names[0], other)
		}
		if (err == nil) != (report.Outcome == "clean") {
			w.Broken("P5: %s was told %v, and the outcome is %q", name, err, report.Outcome)
		}
		if err == nil {
			if report.Lost != 0 || d.Durable() != d.Accepted() || w.Log.failed() {
				w.Broken("P5: a clean exit with %d lost, the log's failure: %t", report.Lost, w.Log.failed())
			}
			for who, n := range w.inside {
				if n > 0 {
					w.Broken("P5: a clean exit while %s is alive", who)
				}
			}
		}
	}
	order := lifecycle.Phase(0)
	for _, p := range report.Phases {
		if p.Phase != order+1 || !p.Ended {
			w.Broken("P1: the phases in the report: %v after %v, ended: %t", p.Phase, order, p.Ended)
		}
		order = p.Phase
		if len(p.Abandoned) > 0 && report.Outcome != "forced" {
			w.Broken("P7: %v was left behind, and the outcome is %q", p.Abandoned, report.Outcome)
		}
	}
	if order != lifecycle.PhaseRelease {
		w.Broken("P1: the last phase was %v", order)
	}
	w.tell("outcome %s, accepted %d, durable %d, log %s", report.Outcome, d.Accepted(), d.Durable(), w.Log.fingerprint())
}
