package lifecyclehttp

import (
	"fmt"
	"reflect"

	"github.com/seed080d9131/lifecycle"
)

// Source is whose life is shown: a *lifecycle.Host, or a *lifecycle.Controller of
// any key. Ready and Live take anything else with these methods as well, and Status
// what also has a Controller's method Hosts, which it calls about once a second
// while somebody looks.
type Source interface {
	Exiting() <-chan struct{} // closed when the exit has begun
	Done() <-chan struct{}    // closed when the exit has ended
}

var (
	_ Source = (*lifecycle.Host)(nil)
	_ Source = (*lifecycle.Controller[string])(nil)
)

// isNil reports whether v is nil, or a pointer that is, as a variable is that nothing
// was assigned to.
func isNil(v any) bool {
	value := reflect.ValueOf(v)
	return !value.IsValid() || value.Kind() == reflect.Pointer && value.IsNil()
}

func mustHave(src Source, op string) {
	if isNil(src) {
		panic("lifecyclehttp: " + op + ": a nil source")
	}
}

// hostsOf returns a func that lists src's hosts. It panics if src has none to
// list.
func hostsOf(src Source) func() []*lifecycle.Host {
	switch src := src.(type) {
	case *lifecycle.Host:
		return func() []*lifecycle.Host { return []*lifecycle.Host{src} }
	case interface{ Hosts() []*lifecycle.Host }:
		return src.Hosts
	}
	panic(fmt.Sprintf("lifecyclehttp: Status: a %T is no Host and has no method Hosts", src))
}
