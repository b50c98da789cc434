package lifecycletest

import "testing"

// CheckLogOn runs one of CheckLog's checks and tells t what it finds. skipped is
// why it can't run.
func CheckLogOn(t testing.TB, name string, open func(t testing.TB) LogPlace) (skipped string) {
	for _, check := range logChecks {
		if check.name == name {
			return check.on(t, open)
		}
	}
	panic("no check " + name)
}

// LogCheckNames are the names of CheckLog's checks.
func LogCheckNames() (names []string) {
	for _, check := range logChecks {
		names = append(names, check.name)
	}
	return names
}

// LogRules are the sentences that CheckLog's failures quote.
func LogRules() []string { return rules }
