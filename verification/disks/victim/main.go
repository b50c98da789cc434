// Victim is the process that the suite of package disks kills: a host on a log under
// load, which tells on its standard output, in messages of package workload, what was
// acknowledged.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys"
	"github.com/seed080d9131/lifecycle/verification/disks/workload"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "victim:", err)
		os.Exit(1)
	}
}

func run() error {
	var shape workload.Shape
	dir := flag.String("dir", "", "`directory` of the log")
	flag.Uint64Var(&shape.Seed, "seed", 1, "of the transactions")
	flag.IntVar(&shape.Small, "small", 100, "`bytes` of most transactions")
	flag.IntVar(&shape.Large, "large", 10000, "`bytes` of the others")
	life := flag.Uint("life", 0, "`number` of this life of the log")
	committers := flag.Uint("committers", 4, "`number` of committers")
	segment := flag.Int64("segment", 32<<10, "`bytes` of a file of the log")
	operations := flag.Bool("operations", false, "tell of each file operation")
	truncate := flag.Bool("truncate", false, "truncate the log now and then")
	exitAfter := flag.Int64("exit-after", 0, "begin the exit after so many acknowledgements (0: never)")
	early := flag.Bool("early", false, "acknowledge what is only accepted: wrong, to see that it is found")
	flag.Parse()

	tell := func(m workload.Message) {
		if err := m.Send(os.Stdout); err != nil {
			os.Exit(3) // nobody listens
		}
	}
	fs := fsys.OS
	if *operations {
		fs = &workload.Tap{FS: fs, Before: func(string, string) { tell(workload.Message{Kind: workload.Operation}) }}
	}
	tell(workload.Message{Kind: workload.Opening})
	log, err := commitlog.Open(*dir, commitlog.Options{SegmentBytes: *segment, FS: fs})
	if err != nil {
		return err
	}
	host := lifecycle.New(log, lifecycle.Options{Name: "victim"})
	tell(workload.Message{Kind: workload.Serving})

	var acknowledged atomic.Int64
	enough := make(chan struct{})
	acknowledge := func(offset uint64, id workload.ID) {
		tell(workload.Message{Kind: workload.Acknowledged, ID: id, Offset: offset})
		if acknowledged.Add(1) == *exitAfter {
			close(enough)
		}
	}
	load := &workload.Load{Shape: shape, Life: uint32(*life), Committers: uint32(*committers), Acknowledged: acknowledge}
	if *early {
		load.Accepted, load.Acknowledged = acknowledge, func(uint64, workload.ID) {}
	}
	if *truncate {
		load.Truncate = func(keep uint64) {
			before := host.Durability().Durable()
			before -= min(keep, before)
			tell(workload.Message{Kind: workload.Truncating, Offset: before})
			if err := log.TruncateBefore(before); err != nil {
				host.Fail(err)
			}
		}
	}
	if err := load.Start(host); err != nil {
		return err
	}
	select {
	case <-enough:
	case <-host.Exiting(): // by itself: that is a failure
	}
	tell(workload.Message{Kind: workload.Exiting})
	if err := host.Exit(context.Background()); err != nil {
		return err
	}
	tell(workload.Message{Kind: workload.Exited, Offset: host.Durability().Accepted()})
	return nil
}
