package peers

import (
	"context"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
)

type ours struct{ host *lifecycle.Host }

// openOurs uses the zero Options of both: they are what everybody gets.
func openOurs(dir string) (Committer, error) {
	log, err := commitlog.Open(dir, commitlog.Options{})
	if err != nil {
		return nil, err
	}
	return ours{lifecycle.New(log, lifecycle.Options{})}, nil
}

func (o ours) Commit(b []byte) error {
	_, err := o.host.Durability().Commit(context.Background(), b)
	return err
}

func (o ours) Submit(b []byte) error {
	_, err := o.host.Durability().Append(context.Background(), b)
	return err
}

func (o ours) Drain() error {
	d := o.host.Durability()
	return d.Wait(context.Background(), d.Accepted()-1)
}

func (o ours) Close() error { return o.host.Exit(context.Background()) }

func readOurs(dir string, yield func([]byte)) error {
	log, err := commitlog.Open(dir, commitlog.Options{})
	if err != nil {
		return err
	}
	defer log.Close()
	for entry, err := range log.Read(log.First()) {
		if err != nil {
			return err
		}
		yield(entry.Data)
	}
	return nil
}
