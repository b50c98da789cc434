//go:build unix

// Ha is the kvserver example's state machine as three processes, each a member of a NATS
// cluster and a candidate to serve. It tells a story and ends by itself: clients write;
// the active process is killed, and another takes over log and state; that one is stopped
// in the middle of its work, the third takes over, and the stopped one, back and unaware,
// is fenced by the first thing that it writes.
//
//	go run ./examples/ha
//	go run ./examples/ha -writes 5000 -clients 32
//
// Its exit status is 0 only if no acknowledged write was lost or doubled and the old one
// was fenced.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/seed080d9131/lifecycle/integrations/jetstreamlog/internal/member"
)

func main() {
	config := flag.String("node", "", "run as one of the three processes, with this `configuration` in JSON; for the program itself")
	writes := flag.Int("writes", 500, "how many `writes` are to be acknowledged between two incidents")
	clients := flag.Int("clients", 8, "`number` of clients")
	flag.Parse()
	var err error
	switch {
	case *config != "":
		err = runNode(*config)
	case flag.NArg() > 0 || *writes < 1 || *clients < 1:
		err = errors.New("no arguments, and -writes and -clients at least 1; see -help")
	default:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = story(ctx, os.Stdout, *writes, *clients)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ha:", err)
		os.Exit(1)
	}
}

// patience is how long the story waits for each thing that has to happen.
const patience = time.Minute

func story(ctx context.Context, out io.Writer, writes, clients int) (err error) {
	dir, err := os.MkdirTemp("", "lifecycle-ha")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(out, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	processes, err := plan(dir)
	if err != nil {
		return err
	}
	defer func() {
		for _, p := range processes {
			p.kill()
		}
	}()
	for _, p := range processes {
		if err := p.start(); err != nil {
			return err
		}
	}
	for _, p := range processes {
		if _, err := p.await(ctx, "ready"); err != nil {
			return err
		}
	}
	say("three processes, each a NATS server and a candidate: %s", member.URL(processes[0].config.Members))

	load := newLoad(processes)
	killed, fenced := 0, 0
	first, e, err := awaitActive(ctx, processes, nil)
	if err != nil {
		return err
	}
	say("%s is active, at offset %d", first.name(), e.Offset)
	stop := load.run(ctx, clients)
	defer stop()
	if err := load.more(ctx, writes); err != nil {
		return err
	}

	say("%d writes are acknowledged; %s is killed (SIGKILL), its NATS server with it", load.count(), first.name())
	incident := time.Now()
	first.kill()
	killed++
	second, e, err := awaitActive(ctx, processes, first)
	if err != nil {
		return err
	}
	say("%s is active after %.1fs: it replayed %d records, and its fence is at offset %d", second.name(), time.Since(incident).Seconds(), e.Replayed, e.Offset-1)
	if err := load.more(ctx, writes); err != nil {
		return err
	}
	if err := first.start(); err != nil {
		return err
	}
	if _, err := first.await(ctx, "ready"); err != nil {
		return err
	}
	if err := awaitReplicas(ctx, processes); err != nil {
		return err
	}
	say("%s is back as a standby, and has all of the stream", first.name())

	say("%d writes are acknowledged; %s is stopped in the middle of its work (SIGSTOP)", load.count(), second.name())
	incident = time.Now()
	if err := second.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	third, e, err := awaitActive(ctx, processes, second)
	if err != nil {
		return err
	}
	say("%s is active after %.1fs: it replayed %d records, and its fence is at offset %d", third.name(), time.Since(incident).Seconds(), e.Replayed, e.Offset-1)
	fence := e.Offset - 1
	if err := load.more(ctx, writes); err != nil {
		return err
	}
	say("%s goes on (SIGCONT): it knows of nothing, and still serves", second.name())
	if err := second.signal(syscall.SIGCONT); err != nil {
		return err
	}
	e, err = second.await(ctx, "fenced")
	if err != nil {
		return err
	}
	fenced++
	say("%s is fenced: %s", second.name(), e.Error)
	if e.Offset > fence {
		return fmt.Errorf("%s had offset %d acknowledged, behind the fence at %d", second.name(), e.Offset-1, fence)
	}
	if err := load.more(ctx, writes); err != nil {
		return err
	}
	stop()
	r, err := load.verify(ctx)
	if err != nil {
		return err
	}
	say("counts: acknowledged %d, unknown %d (%d of them in the log), in the log %d, killed %d, fenced %d, lost = %d, doubled = %d, wrong = %d",
		r.acknowledged, r.unknown, r.unknownThere, r.records, killed, fenced, r.lost, r.doubled, r.wrong)
	if r.lost+r.doubled+r.wrong > 0 {
		return errors.New("acknowledged writes were lost or doubled, or read wrong")
	}
	return nil
}
