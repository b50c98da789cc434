package peers

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// gated is a log whose writes wait to be let go, one by one, each with an outcome.
type gated struct {
	outcome chan error
	written [][]string
	closed  bool
}

func (g *gated) WriteBatch(records [][]byte) error {
	var batch []string
	for _, r := range records {
		batch = append(batch, string(r))
	}
	err := <-g.outcome
	g.written = append(g.written, batch)
	return err
}

func (g *gated) Close() error {
	g.closed = true
	return nil
}

// Nobody returns before the batch that holds its record has been written, everybody gets that batch's error and no
// other's, and what comes while a batch is written makes up the next one.
func TestAGroupAnswersWhenItsBatchIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &gated{outcome: make(chan error)}
		g := newGroup(log)
		var mu sync.Mutex
		returned := map[string]error{}
		commit := func(name string) {
			go func() {
				record := []byte(name)
				err := g.Commit(record)
				clear(record)
				mu.Lock()
				defer mu.Unlock()
				returned[name] = err
			}()
			synctest.Wait()
		}
		answered := func() map[string]error {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			defer clear(returned)
			copied := map[string]error{}
			for name, err := range returned {
				copied[name] = err
			}
			return copied
		}
		failure := errors.New("no")

		commit("first")
		for i := range 3 {
			commit(fmt.Sprint("second", i))
		}
		require.Empty(t, answered())
		log.outcome <- nil
		require.Equal(t, map[string]error{"first": nil}, answered())
		commit("third")
		log.outcome <- failure
		require.Equal(t, map[string]error{"second0": failure, "second1": failure, "second2": failure}, answered())

		commit("fourth")
		closing := make(chan error)
		go func() { closing <- g.Close() }()
		synctest.Wait()
		require.False(t, log.closed, "two batches are still to be written")
		log.outcome <- nil
		log.outcome <- nil
		require.NoError(t, <-closing)
		require.True(t, log.closed)
		require.Equal(t, map[string]error{"third": nil, "fourth": nil}, answered())
		require.Equal(t, [][]string{{"first"}, {"second0", "second1", "second2"}, {"third"}, {"fourth"}}, sorted(log.written))
		require.ErrorIs(t, g.Commit([]byte("late")), errClosed)
	})
}

func sorted(batches [][]string) [][]string {
	for _, b := range batches {
		slices.Sort(b)
	}
	return batches
}
