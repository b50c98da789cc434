package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

func TestNamesAreForgottenWhoseTasksHaveEndedInAnyOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		for i := range 500 {
			// Of three tasks the places are 1, 2 of 2; of five, 1, 2, 2 of 4.
			var ends []chan struct{}
			for range 3 + i%3 {
				end := make(chan struct{})
				ends = append(ends, end)
				require.NoError(t, h.Go(fmt.Sprint("task ", i), func(context.Context) error { <-end; return nil }))
			}
			require.Equal(t, len(ends), h.Status().Tasks[0].Count)
			for j := range ends {
				close(ends[(j+i)%len(ends)])
				synctest.Wait()
			}
			require.Empty(t, h.Status().Tasks)
		}
		require.LessOrEqual(t, lifecycle.GroupsOf(h), 129)
		require.NoError(t, h.Exit(background))
	})
}

func TestATaskThatPanicsIsCaughtThoughItsObserverCallsGoexit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		told := 0
		h := lifecycle.New(nil, lifecycle.Options{Observer: lifecycle.Observer{TaskEnd: func(lifecycle.TaskEvent) {
			told++
			runtime.Goexit()
		}}})
		require.NoError(t, h.Go("cleanup", func(context.Context) error { panic("boom") }))
		err := h.Exit(background)
		var failed *lifecycle.TaskError
		require.ErrorAs(t, err, &failed)
		require.Contains(t, string(failed.Stack), "TestATaskThatPanicsIsCaughtThoughItsObserverCallsGoexit")
		var caught *lifecycle.PanicError
		require.ErrorAs(t, err, &caught)
		require.Equal(t, "boom", caught.Value)
		require.Equal(t, 1, told)
	})
}

// Tasks of few names come and go from many goroutines while others ask who runs; at a
// moment of its own choice somebody exits. What was admitted has run to its end when
// Exit returns, and nothing else has run.
func TestAdmittedTasksAreAllAwaitedHoweverTheyComeAndGo(t *testing.T) {
	for round := range 8 {
		h := lifecycle.New(nil, lifecycle.Options{})
		var admitted, ended atomic.Int64
		var group sync.WaitGroup
		for g := range 4 {
			group.Go(func() {
				for i := 0; ; i++ {
					err := h.Go(fmt.Sprint("task ", (g+i)%(3+97*(round%2))), func(ctx context.Context) error {
						if i%7 == 0 {
							<-ctx.Done()
						}
						ended.Add(1)
						return nil
					})
					if errors.Is(err, lifecycle.ErrExiting) {
						return
					}
					admitted.Add(1)
				}
			})
		}
		group.Go(func() {
			for h.Status().State == lifecycle.Running {
				for _, task := range h.Status().Tasks {
					if task.Count < 1 || task.Age < 0 {
						panic(fmt.Sprintf("%+v", task))
					}
				}
			}
		})
		for ended.Load() < int64(500*(1+round%4)) {
			runtime.Gosched()
		}
		require.NoError(t, h.Exit(background))
		done := ended.Load()
		group.Wait()
		require.Equal(t, admitted.Load(), done)
		require.Equal(t, done, ended.Load())
		require.Empty(t, h.Status().Tasks)
	}
}
