package lifecycletest

import (
	"testing"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// ExitEverywhereOn is ExitEverywhere that tells another T what it finds. A moment
// stands for PointVariable, a watchdog for the time that a run may take.
func ExitEverywhereOn[S any](tb testing.TB, t *testing.T, moment string, watchdog time.Duration, open func(t testing.TB) (S, *lifecycle.Host, error), drive func(t testing.TB, server S) error, opts ...ExitOption) {
	k := newKit(tb, t, opts)
	if moment != "" {
		k.only = moment
	}
	if watchdog > 0 {
		k.watchdog = watchdog
	}
	k.open = func(t testing.TB) (*lifecycle.Host, func(testing.TB) error, error) {
		server, host, err := open(t)
		return host, func(t testing.TB) error { return drive(t, server) }, err
	}
	k.everywhere()
}

// AllRuns is the default of Runs without -short.
const AllRuns = defaultRuns
