package lifecycletest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

// inAndOut runs a test in a bubble and outside.
func inAndOut(t *testing.T, test func(t *testing.T)) {
	t.Run("outside", test)
	t.Run("bubble", func(t *testing.T) { synctest.Test(t, test) })
}

func TestNewIsSilentOnAHostThatDoesWell(t *testing.T) {
	inAndOut(t, func(t *testing.T) {
		for _, log := range []lifecycle.Log{nil, &lifecycletest.Log{}, &lifecycletest.Log{First: 7}} {
			var host *lifecycle.Host
			onFake(t, func(tb testing.TB) {
				host = lifecycletest.New(tb, log)
				require.NoError(t, host.Go("task", func(ctx context.Context) error {
					<-ctx.Done()
					_, err := host.Durability().Append(background, []byte("cleanup"))
					return err
				}))
				call, err := host.Enter()
				require.NoError(t, err)
				defer call.Leave()
				_, err = host.Durability().Commit(background, []byte("call"))
				require.NoError(t, err)
			}).silent(t)
			require.Equal(t, "clean", host.Report().Outcome)
			if log, ok := log.(*lifecycletest.Log); ok {
				require.Equal(t, [][]byte{[]byte("call"), []byte("cleanup")}, log.Synced())
			}
		}
	})
}

func TestNewExitsInTheBubbleOfItsTest(t *testing.T) {
	var host *lifecycle.Host
	synctest.Test(t, func(t *testing.T) {
		host = lifecycletest.New(t, &lifecycletest.Log{})
		require.NoError(t, host.Every("metrics", time.Hour, func(ctx context.Context) error {
			_, err := host.Durability().Commit(ctx, nil)
			return err
		}))
		require.NoError(t, host.Go("slow", func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(9 * time.Second)
			return nil
		}))
		time.Sleep(24 * time.Hour)
	})
	require.Equal(t, "clean", host.Report().Outcome)
	require.GreaterOrEqual(t, host.Durability().Durable(), lifecycle.Offset(23))
}

func TestNewExitsBeforeWhatWasRegisteredEarlierIsCleanedUp(t *testing.T) {
	onFake(t, func(tb testing.TB) {
		var host *lifecycle.Host
		tb.Cleanup(func() { <-host.Done() })
		host = lifecycletest.New(tb, nil)
		tb.Cleanup(func() {
			select {
			case <-host.Exiting():
				t.Error("the exit begins too early")
			default:
			}
		})
	}).silent(t)
}

func TestNewNamesHostsAfterTheirTest(t *testing.T) {
	onFake(t, func(tb testing.TB) {
		require.Equal(t, "TestOfAUser", lifecycletest.New(tb, nil).Status().Host)
		require.Equal(t, "TestOfAUser#2", lifecycletest.New(tb, nil).Status().Host)
		require.Equal(t, "orders", lifecycletest.New(tb, nil, lifecycletest.WithOptions(lifecycle.Options{Name: "orders"})).Status().Host)
	}).silent(t)
	onFake(t, func(tb testing.TB) {
		require.Equal(t, "TestOfAUser", lifecycletest.New(tb, nil).Status().Host)
	}).silent(t)
}

func TestAResultThatIsNotNilFailsTheTestUnlessItIsExpected(t *testing.T) {
	inAndOut(t, func(t *testing.T) {
		boom := errors.New("boom")
		run := func(fail bool, opts ...lifecycletest.HostOption) *fakeTB {
			return onFake(t, func(tb testing.TB) {
				host := lifecycletest.New(tb, nil, opts...)
				require.NoError(t, host.Go("importer", func(context.Context) error {
					if fail {
						return boom
					}
					return nil
				}))
			})
		}
		run(true).finds(t, `task "importer"`, "boom", "should be nil")
		run(true, lifecycletest.ExpectError()).silent(t)
		run(true, lifecycletest.ExpectError(boom)).silent(t)
		run(true, lifecycletest.ExpectError(syscall.EIO)).finds(t, "boom", syscall.EIO.Error())
		run(false, lifecycletest.ExpectError(boom)).finds(t, "ExpectError", "is nil")
	})
}

func TestALogThatFailsMayBeExpected(t *testing.T) {
	inAndOut(t, func(t *testing.T) {
		run := func(opts ...lifecycletest.HostOption) *fakeTB {
			return onFake(t, func(tb testing.TB) {
				log := &lifecycletest.Log{}
				log.FailAt(lifecycletest.Sync, 1, syscall.EIO)
				host := lifecycletest.New(tb, log, opts...)
				_, err := host.Durability().Commit(background, nil)
				require.ErrorIs(t, err, lifecycle.ErrUnknown)
			})
		}
		run(lifecycletest.ExpectError(syscall.EIO)).silent(t)
		run().finds(t, "The log's sync has failed")
	})
}

func TestAnExitThatHangsEndsWithTheStragglersAndTheirStacks(t *testing.T) {
	inAndOut(t, func(t *testing.T) {
		begun, release := make(chan struct{}), make(chan struct{})
		fake := onFake(t, func(tb testing.TB) {
			host := lifecycletest.New(tb, nil, lifecycletest.Within(50*time.Millisecond))
			require.NoError(t, host.Go("importer", func(context.Context) error { hear(begun, release); return nil }))
			<-begun
		})
		close(release)
		fake.finds(t, "did not end within 50ms", `task "importer"`, "lifecycletest_test.hear")
		require.Len(t, fake.failures(), 1)
	})
}

// hear waits for c. Once begun is closed, its frame is in a stack.
//
//go:noinline
func hear(begun, c chan struct{}) {
	close(begun)
	<-c
}

func TestACallThatNeverLeavesIsFoundWhereItEntered(t *testing.T) {
	inAndOut(t, func(t *testing.T) {
		onFake(t, func(tb testing.TB) {
			host := lifecycletest.New(tb, nil, lifecycletest.Within(50*time.Millisecond))
			_, err := host.Enter()
			require.NoError(t, err)
		}).finds(t, `call "Enter"`, "entered at lifecycletest_test.TestACallThatNeverLeaves", "host_test.go:")
	})
}

func TestALeaveTooManyIsFoundEvenWhileAnotherCallIsInFlight(t *testing.T) {
	inAndOut(t, func(t *testing.T) {
		run := func(twice bool) *fakeTB {
			return onFake(t, func(tb testing.TB) {
				host := lifecycletest.New(tb, nil, lifecycletest.ExpectError())
				other, err := host.Enter()
				require.NoError(t, err)
				var wg sync.WaitGroup
				wg.Go(func() {
					call, err := host.Enter()
					if err == nil {
						call.Leave()
						if twice {
							call.Leave()
						}
					}
				})
				wg.Wait()
				other.Leave()
				host.Fail(errors.New("so that there is an error either way"))
			})
		}
		run(true).finds(t, "one call has left twice", "3 times for 2 calls", "host_test.go:")
		run(false).silent(t)
	})
}

func TestACallMayLeaveInAnotherGoroutine(t *testing.T) {
	onFake(t, func(tb testing.TB) {
		host := lifecycletest.New(tb, nil)
		call, err := host.Enter()
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(call.Leave)
		wg.Wait()
		_ = host.Exit(background)
		_, err = host.Enter()
		require.ErrorIs(t, err, lifecycle.ErrExiting)
	}).silent(t)
}

func TestAGoroutineThatATaskLeavesIsFound(t *testing.T) {
	inAndOut(t, func(t *testing.T) {
		run := func(opts ...lifecycletest.HostOption) *fakeTB {
			begun, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
			fake := onFake(t, func(tb testing.TB) {
				host := lifecycletest.New(tb, nil, opts...)
				require.NoError(t, host.Go("importer", func(context.Context) error {
					go func() { defer close(ended); hear(begun, release) }()
					return nil
				}))
				<-begun
			})
			close(release)
			<-ended
			return fake
		}
		run().finds(t, "1 goroutine is left", "lifecycletest_test.hear")
		run(lifecycletest.IgnoreGoroutines("lifecycletest_test.hear")).silent(t)
	})
}

func TestAGoroutineOfAnOlderHostOfTheSameNameIsNotThisOnes(t *testing.T) {
	release, ended := make(chan struct{}), make(chan struct{})
	name := lifecycletest.WithOptions(lifecycle.Options{Name: `a "name"`})
	start := func(tb testing.TB) {
		host := lifecycletest.New(tb, nil, name)
		require.NoError(t, host.Go("importer", func(context.Context) error {
			go func() { defer close(ended); hear(make(chan struct{}), release) }()
			return nil
		}))
	}
	onFake(t, start).finds(t, "1 goroutine is left")
	onFake(t, func(tb testing.TB) { lifecycletest.New(tb, nil, name) }).silent(t)
	close(release)
	<-ended
}

func TestATransactionThatTheLogLosesIsFoundByNew(t *testing.T) {
	inAndOut(t, func(t *testing.T) {
		onFake(t, func(tb testing.TB) {
			host := lifecycletest.New(tb, &forgetful{})
			_, err := host.Durability().Append(background, []byte("cleaned")) // and nobody waits for it
			require.NoError(t, err)
		}).finds(t, "the log holds 0 of the 1 transactions")
	})
}

func TestALogThatSomebodyElseUsesIsFound(t *testing.T) {
	onFake(t, func(tb testing.TB) {
		log := &lifecycletest.Log{}
		lifecycletest.New(tb, log)
		require.NoError(t, log.Sync())
	}).finds(t, "Sync 1 has nothing to sync")
}

func TestAForcedExitMayBeExpected(t *testing.T) {
	inAndOut(t, func(t *testing.T) {
		release := make(chan struct{})
		onFake(t, func(tb testing.TB) {
			host := lifecycletest.New(tb, &lifecycletest.Log{}, lifecycletest.ExpectError(lifecycle.ErrForced))
			require.NoError(t, host.Go("importer", func(context.Context) error { hear(make(chan struct{}), release); return nil }))
			require.ErrorIs(t, host.ForceExit(background), lifecycle.ErrForced)
		}).silent(t)
		close(release)
	})
}

func TestReopensComparesTheLogWithTheHost(t *testing.T) {
	run := func(open func(log *lifecycletest.Log) (lifecycle.Log, error)) *fakeTB {
		return onFake(t, func(tb testing.TB) {
			log := &lifecycletest.Log{}
			host := lifecycletest.New(tb, log)
			for n := range 3 {
				_, err := host.Durability().Append(background, fmt.Append(nil, n))
				require.NoError(t, err)
			}
			lifecycletest.Reopens(tb, host, func() (lifecycle.Log, error) { return open(log) })
		})
	}
	run(func(log *lifecycletest.Log) (lifecycle.Log, error) { return log.Reopen(), nil }).silent(t)
	run(func(*lifecycletest.Log) (lifecycle.Log, error) { return &lifecycletest.Log{First: 2}, nil }).
		finds(t, "goes on at offset 2", "accepted up to 3")
	run(func(*lifecycletest.Log) (lifecycle.Log, error) { return nil, syscall.EACCES }).
		finds(t, "can't be opened again", syscall.EACCES.Error())
}
