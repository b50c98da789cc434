package lifecyclehttp

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// Snapshot is what Status answers as JSON. Field names are stable; durations are
// nanoseconds, states and phases their names ("exiting", "await tasks").
type Snapshot struct {
	Time   time.Time      `json:"time"`   // when it was taken
	Counts Counts         `json:"counts"` // of all hosts of the source
	Hosts  []HostSnapshot `json:"hosts"`  // those that were asked for: exiting ones first, then failed and forced, running, clean; by name
}

// Counts is how many hosts are in which state; of those that have exited, with
// which outcome.
type Counts struct {
	Running int `json:"running"`
	Exiting int `json:"exiting"`
	Clean   int `json:"clean"`
	Failed  int `json:"failed"`
	Forced  int `json:"forced"`
}

// HostSnapshot is one host.
type HostSnapshot struct {
	Status lifecycle.Status `json:"status"`
	// Report is null until the exit begins. It may be null as well for one of
	// very many hosts that exit at once; ?host=NAME asks for that one's.
	Report *lifecycle.Report `json:"report"`
}

// The work of a snapshot is bounded. A report of a host that exits takes a
// goroutine profile, for which the world stops:
const (
	freshFor    = time.Second            // a snapshot serves every request of so long,
	maxReports  = 100                    // has so many of these reports,
	reportsTime = 250 * time.Millisecond // and begins none after so long
)

// snapshots takes them when they are asked for.
//
// One request takes a snapshot, the others that come meanwhile wait for it, and
// those of the next second get the same: what a page costs the process does not
// depend on how many look at it.
type snapshots struct {
	hosts func() []*lifecycle.Host

	mu     sync.Mutex // guards what follows
	last   *taking
	wanted map[string]bool // hosts whose report was asked for and is not in last
}

// taking is a snapshot, taken or being taken.
type taking struct {
	done chan struct{} // closed when it is, with what follows set
	all  *Snapshot     // nil: it panicked
	at   time.Time     // when it was ready
}

var errNotTaken = errors.New("the snapshot could not be taken")

// get returns a snapshot that is not older than freshFor. It waits for one that is
// being taken until ctx ends.
func (s *snapshots) get(ctx context.Context) (*taking, error) {
	s.mu.Lock()
	t := s.last
	takes := t == nil || isClosed(t.done) && (t.all == nil || time.Since(t.at) >= freshFor)
	var wanted map[string]bool
	if takes {
		t = &taking{done: make(chan struct{})}
		s.last = t
		wanted, s.wanted = s.wanted, nil
	}
	s.mu.Unlock()
	if takes {
		func() {
			defer close(t.done) // a panic goes to whoever runs into it, and the others get an error
			all := take(s.hosts(), wanted)
			t.all, t.at = all, time.Now()
		}()
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if t.all == nil {
		return nil, errNotTaken
	}
	return t, nil
}

// getWith is get for one host's sake: while its report is a victim of the bounds, it
// waits for the next snapshot, in which that comes first.
func (s *snapshots) getWith(ctx context.Context, name string) (*taking, error) {
	for tries := 1; ; tries++ {
		t, err := s.get(ctx)
		if err != nil || tries == 3 || !t.all.lacksReport(name) {
			return t, err
		}
		s.mu.Lock()
		if s.wanted == nil {
			s.wanted = map[string]bool{}
		}
		s.wanted[name] = true
		s.mu.Unlock()
		timer := time.NewTimer(time.Until(t.at.Add(freshFor)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

func (s *Snapshot) lacksReport(name string) bool {
	return slices.ContainsFunc(s.Hosts, func(h HostSnapshot) bool {
		return h.Status.Host == name && h.Status.State == lifecycle.Exiting && h.Report == nil
	})
}

// take asks every host. The reports of those in wanted are taken first.
func take(hosts []*lifecycle.Host, wanted map[string]bool) *Snapshot {
	type asked struct {
		host *lifecycle.Host
		HostSnapshot
	}
	start := time.Now()
	all := make([]asked, len(hosts))
	for i, h := range hosts {
		all[i] = asked{h, HostSnapshot{Status: h.Status()}}
		if all[i].Status.State == lifecycle.Exited { // its report is complete, and costs no profile
			report := h.Report()
			all[i].Report = &report
		}
	}
	var exiting []*asked
	for i := range all {
		if all[i].Status.State == lifecycle.Exiting {
			exiting = append(exiting, &all[i])
		}
	}
	first := func(a *asked) int {
		if wanted[a.Status.Host] {
			return 0
		}
		return 1
	}
	slices.SortFunc(exiting, func(a, b *asked) int {
		return cmp.Or(cmp.Compare(first(a), first(b)), cmp.Compare(a.Status.Host, b.Status.Host))
	})
	begun := time.Now()
	for i, a := range exiting {
		if i == maxReports || i > 0 && time.Since(begun) > reportsTime {
			break
		}
		report := a.host.Report()
		a.Report = &report
		if report.Outcome != "" { // it has ended since
			a.Status = a.host.Status()
		}
	}
	slices.SortFunc(all, func(a, b asked) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(a.Status.Host, b.Status.Host))
	})

	s := &Snapshot{Time: start.Round(0).UTC(), Hosts: make([]HostSnapshot, len(all))}
	for i, a := range all {
		s.Hosts[i] = a.HostSnapshot
		s.Counts.add(a.HostSnapshot)
	}
	return s
}

// outcome is "running", "exiting", or how the exit ended.
func (h HostSnapshot) outcome() string {
	if h.Status.State == lifecycle.Exited && h.Report != nil {
		return h.Report.Outcome
	}
	return h.Status.State.String()
}

// rank is where the host stands on the page: those first that need a look.
func (h HostSnapshot) rank() int {
	return slices.Index([]string{"exiting", "failed", "forced", "running", "clean"}, h.outcome())
}

func (c *Counts) add(h HostSnapshot) {
	switch h.outcome() {
	case "running":
		c.Running++
	case "exiting":
		c.Exiting++
	case "clean":
		c.Clean++
	case "failed":
		c.Failed++
	case "forced":
		c.Forced++
	}
}

func isClosed(channel <-chan struct{}) bool {
	select {
	case <-channel:
		return true
	default:
		return false
	}
}
