// Package lifecycletest is what a program tests its own shutdown with.
//
// [New] makes a host for a test: it exits when the test ends, and the exit is
// judged. [Log] is a log in memory that fails, blocks or panics where it is told
// to, and loses what was not synced when it is told to crash. [ExitEverywhere]
// runs a workload again and again, and begins the exit at another moment of it
// each time: before each append, each start of a task, each tick, each call.
// [CheckLog] checks that a lifecycle.Log of your own is what a host takes it for.
//
//	func TestOrders(t *testing.T) {
//		log := &lifecycletest.Log{}
//		log.FailAt(lifecycletest.Sync, 3, syscall.EIO)
//		host := lifecycletest.New(t, log, lifecycletest.ExpectError(syscall.EIO))
//		…
//	}
//
//	func TestOrdersMayExitAtAnyMoment(t *testing.T) {
//		lifecycletest.ExitEverywhere(t,
//			func(t testing.TB) (*Orders, *lifecycle.Host, error) { // a fresh world
//				orders, err := Open(&lifecycletest.Log{})
//				if err != nil {
//					return nil, nil, err
//				}
//				return orders, orders.Host(), nil
//			},
//			func(t testing.TB, orders *Orders) error { // what its clients do
//				return orders.Put("apples", 3)
//			})
//	}
//
// All of it works inside a bubble of testing/synctest as well as outside, except
// ExitEverywhere, which makes bubbles of its own.
package lifecycletest
