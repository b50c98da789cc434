package lifecycletest

import (
	"time"

	"github.com/seed080d9131/lifecycle"
)

// HostOption is an option of New.
type HostOption interface{ setHost(*config) }

// ExitOption is an option of ExitEverywhere.
type ExitOption interface{ setExit(*config) }

// Option is an option of both New and ExitEverywhere.
type Option interface {
	HostOption
	ExitOption
}

type config struct {
	options lifecycle.Options
	within  time.Duration
	ignored []string

	expects  bool    // an error
	expected []error // all of them

	allowed     []error // any of them
	realTime    bool
	afterOpen   bool
	lateAppends bool
	runs        int
	seed        uint64
}

func newConfig() config {
	return config{within: DefaultLimit, runs: defaultRuns, seed: 1}
}

type (
	hostOption func(*config)
	exitOption func(*config)
	bothOption func(*config)
)

func (o hostOption) setHost(c *config) { o(c) }
func (o exitOption) setExit(c *config) { o(c) }
func (o bothOption) setHost(c *config) { o(c) }
func (o bothOption) setExit(c *config) { o(c) }

// DefaultLimit is how long an exit may take where Within does not say.
const DefaultLimit = 10 * time.Second

// Within says how long an exit may take; in a bubble, of the bubble's time. What is
// alive then is named, with its stack, and left behind by ForceExit, so that the
// test ends.
func Within(limit time.Duration) Option {
	return bothOption(func(c *config) { c.within = limit })
}

// IgnoreGoroutines excuses goroutines that are left after the exit if their stack
// contains one of these texts, such as "net/http.(*persistConn)".
func IgnoreGoroutines(stackContains ...string) Option {
	return bothOption(func(c *config) { c.ignored = append(c.ignored, stackContains...) })
}

// WithOptions gives New's host its options. If Name is "" the host is named after
// the test. Goroutines that are left are recognised by the host's name: hosts of
// tests that run at the same time should not share one.
func WithOptions(options lifecycle.Options) HostOption {
	return hostOption(func(c *config) { c.options = options })
}

// ExpectError says that the host's exit must fail, with an error that is each of
// these (errors.Is); with none of them, any error will do. Where it is a *LogError
// or ErrForced, nothing is said any more about what became durable.
func ExpectError(targets ...error) HostOption {
	return hostOption(func(c *config) {
		c.expects = true
		c.expected = append(c.expected, targets...)
	})
}

// AllowError says that an exit may fail with an error that is one of these
// (errors.Is), and that drive may return one.
func AllowError(targets ...error) ExitOption {
	return exitOption(func(c *config) { c.allowed = append(c.allowed, targets...) })
}

// RealTime runs the workload outside a bubble. It is for workloads that wait for
// what a bubble can't wait for: sockets, other processes, a mutex that is held
// across a wait. Files are fine in a bubble. Runs take as long as they take, fewer
// schedules are seen, and goroutines that are left are found only if they carry the
// host's labels: its own, and those that its tasks and hooks started.
func RealTime() ExitOption {
	return exitOption(func(c *config) { c.realTime = true })
}

// AfterOpen begins no exit before open has returned: for an open that can't be
// refused anything.
func AfterOpen() ExitOption {
	return exitOption(func(c *config) { c.afterOpen = true })
}

// AllowLateAppends excuses goroutines that append after the seal, where they are
// known to take ErrClosed for an answer. Hooks that append when the log is closed
// are not excused.
func AllowLateAppends() ExitOption {
	return exitOption(func(c *config) { c.lateAppends = true })
}

// Runs says how many runs there may be at most. The default is 400, and 60 with
// go test -short. If the workload has more moments than that, half of the runs go
// to moments that are spread evenly and half to others drawn by lot.
func Runs(limit int) ExitOption {
	return exitOption(func(c *config) { c.runs = max(limit, 1) })
}

const (
	defaultRuns = 400
	shortRuns   = 60
)

// Seed changes the lot of Runs. The default is 1: every time the same.
func Seed(seed uint64) ExitOption {
	return exitOption(func(c *config) { c.seed = seed })
}
