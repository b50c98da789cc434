package peers

import (
	"context"
	"errors"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
)

type ours struct{ host *lifecycle.Host }

// openOurs uses the zero Options of both: they are what everybody gets.
func openOurs(dir string) (Committer, error) { return OpenOurs(dir, 0) }

// OpenOurs opens ours with segments that together hold that many bytes and have been written before; see Recycled. 0 is a new log.
func OpenOurs(dir string, recycled int64) (Submitter, error) {
	log, err := Recycled(dir, recycled)
	if err != nil {
		return nil, err
	}
	return ours{lifecycle.New(log, lifecycle.Options{})}, nil
}

// Recycled opens a log as it is after a checkpoint: it has written that many bytes, given them up with
// TruncateBefore, and kept their files, to be written over. With 0 bytes it is a new log with the zero Options.
func Recycled(dir string, bytes int64) (*commitlog.Log, error) {
	spares := 0
	if bytes > 0 {
		spares = int(bytes/commitlog.DefaultSegmentBytes) + 2 // a warm-up takes some of the first
	}
	log, err := commitlog.Open(dir, commitlog.Options{SpareSegments: spares})
	if err != nil || bytes == 0 {
		return log, err
	}
	if err := writeAndTruncate(log, bytes); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return log, nil
}

// writeAndTruncate writes so many bytes and what comes on top: the segments before the first full one, which are not kept,
// and the last, which is not given up.
func writeAndTruncate(log *commitlog.Log, bytes int64) error {
	batch := [][]byte{make([]byte, 64<<10)}
	for written := int64(0); written < bytes+4*commitlog.DefaultSegmentBytes; written += int64(len(batch[0])) {
		if err := log.Append(batch); err != nil {
			return err
		}
	}
	if err := log.Sync(); err != nil {
		return err
	}
	return log.TruncateBefore(log.Next())
}

// OpenCheckpointed opens ours, with the zero Options, in a server that has made its first checkpoint and makes another after
// every 64 MiB: it gives the log before up, and the log writes over those files.
func OpenCheckpointed(dir string) (Committer, error) {
	log, err := commitlog.Open(dir, commitlog.Options{})
	if err != nil {
		return nil, err
	}
	if err := writeAndTruncate(log, 2*commitlog.DefaultSegmentBytes); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	due, since := make(chan struct{}, 1), 0
	host := lifecycle.New(log, lifecycle.Options{Observer: lifecycle.Observer{Synced: func(e lifecycle.SyncEvent) {
		if since += e.Bytes; since >= 64<<20 {
			since = 0
			select {
			case due <- struct{}{}:
			default:
			}
		}
	}}})
	err = host.Go("checkpoint", func(ctx context.Context) error {
		for {
			select {
			case <-due:
			case <-ctx.Done():
				return nil
			}
			if err := log.TruncateBefore(host.Durability().Durable()); err != nil {
				return err
			}
		}
	})
	return ours{host}, err
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
