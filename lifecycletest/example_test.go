package lifecycletest_test

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

// Orders is a server that somebody would write: a table in memory, a log of what
// happened to it, and a task that puts the table's size on record.
type Orders struct {
	host *lifecycle.Host

	mu    sync.Mutex // held across Append: the log has the orders as the table does
	table map[string]int
}

// OpenOrders starts a server. If it fails, nothing is left of it.
func OpenOrders(log lifecycle.Log) (*Orders, error) {
	o := &Orders{host: lifecycle.New(log, lifecycle.Options{Name: "orders"}), table: map[string]int{}}
	err := o.host.Every("census", time.Minute, func(ctx context.Context) error {
		_, err := o.host.Durability().Commit(ctx, o.census())
		return err
	})
	if err == nil {
		err = o.host.OnExit(lifecycle.PhaseCheckpoint, "last census", func(ctx context.Context) error {
			_, err := o.host.Durability().Commit(ctx, o.census())
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(err, o.host.Exit(context.Background()))
	}
	return o, nil
}

// Place takes an order, and returns when it is durable.
func (o *Orders) Place(ctx context.Context, item string) error {
	call, err := o.host.Enter()
	if err != nil {
		return err // the host exits
	}
	defer call.Leave()
	o.mu.Lock()
	pending, err := o.host.Durability().Append(ctx, []byte(item))
	if err == nil {
		o.table[item]++
	}
	o.mu.Unlock()
	if err != nil {
		return err
	}
	return pending.Wait(ctx)
}

func (o *Orders) census() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return []byte{byte(len(o.table))}
}

// In your test file it is called TestOrdersMayExitAtAnyMoment.
func ordersMayExitAtAnyMoment(t *testing.T) {
	lifecycletest.ExitEverywhere(t,
		func(testing.TB) (*Orders, *lifecycle.Host, error) { // a fresh world
			o, err := OpenOrders(&lifecycletest.Log{})
			if err != nil {
				return nil, nil, err
			}
			return o, o.host, nil
		},
		func(t testing.TB, o *Orders) error { // what clients do
			for _, item := range []string{"apples", "pears"} {
				if err := o.Place(t.Context(), item); err != nil {
					return err
				}
			}
			time.Sleep(time.Minute) // a census; the time is virtual
			return nil
		})
}

// And this one TestOrdersRefuseWhenTheDiskIsFull.
func ordersRefuseWhenTheDiskIsFull(t *testing.T) {
	log := &lifecycletest.Log{}
	log.FailAt(lifecycletest.Append, 2, syscall.ENOSPC)
	host := lifecycletest.New(t, log, lifecycletest.ExpectError(syscall.ENOSPC))
	o := &Orders{host: host, table: map[string]int{}}
	if err := o.Place(t.Context(), "apples"); err != nil {
		t.Fatal(err)
	}
	if err := o.Place(t.Context(), "pears"); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("pears: %v", err)
	}
	if synced := log.Crash().Synced(); len(synced) != 1 || string(synced[0]) != "apples" {
		t.Fatalf("after a crash the log holds %q", synced)
	}
}

func Example() {
	// A server, and two tests of it: that it may be told to exit at any moment of
	// its work, and that it tells its clients when the disk is full.
	_ = []func(*testing.T){ordersMayExitAtAnyMoment, ordersRefuseWhenTheDiskIsFull}
}
