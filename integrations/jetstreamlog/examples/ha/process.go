//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/seed080d9131/lifecycle/integrations/jetstreamlog/internal/member"
)

// process is one of the three, as the story sees it.
type process struct {
	config nodeConfig
	cmd    *exec.Cmd
	stdin  io.Closer
	events chan event // closed when the process has ended
}

// plan gives each process its addresses and directory.
func plan(dir string) ([]*process, error) {
	members, err := member.Plan(dir, 3)
	if err != nil {
		return nil, err
	}
	addrs, err := member.FreeAddrs(len(members))
	if err != nil {
		return nil, err
	}
	var processes []*process
	for i := range members {
		processes = append(processes, &process{config: nodeConfig{Members: members, Self: i, HTTP: addrs[i]}})
	}
	return processes, nil
}

func (p *process) name() string { return p.config.name() }

// start starts this program as the process, and after a kill starts it again.
func (p *process) start() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	text, err := json.Marshal(p.config)
	if err != nil {
		return err
	}
	p.cmd = exec.Command(program, "-node", string(text))
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	events := make(chan event, 1000)
	p.events = events
	go func() {
		defer close(events)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				events <- e
			}
		}
	}()
	return nil
}

func (p *process) signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// kill ends the process as a crash does, and returns when it is gone.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	for range p.events {
	}
	_ = p.cmd.Wait() // says that it was killed
	p.cmd = nil
}

// await returns the process's next event of a kind.
func (p *process) await(ctx context.Context, kind string) (event, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last := event{Event: "nothing"}
	for {
		select {
		case e, ok := <-p.events:
			if !ok {
				return e, fmt.Errorf("%s has ended; its last event was %+v", p.name(), last)
			}
			if last = e; e.Event == kind {
				return e, nil
			}
		case <-ctx.Done():
			return event{}, fmt.Errorf("%s: no event %q; its last one was %+v: %w", p.name(), kind, last, ctx.Err())
		}
	}
}

// awaitActive returns the process that is the next to be active. It may be any but one.
func awaitActive(ctx context.Context, processes []*process, but *process) (*process, event, error) {
	type result struct {
		p   *process
		e   event
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result, len(processes))
	asked := 0
	for _, p := range processes {
		if p != but {
			asked++
			go func() {
				e, err := p.await(ctx, "active")
				results <- result{p, e, err}
			}()
		}
	}
	var found result
	var errs error
	for range asked {
		r := <-results
		switch {
		case r.err == nil && found.p == nil:
			found = r
			cancel() // the others' events stay for whoever asks next
		case r.err != nil:
			errs = errors.Join(errs, r.err)
		}
	}
	cancel()
	if found.p == nil {
		return nil, event{}, errs
	}
	return found.p, found.e, nil
}

// awaitReplicas waits until each member has all of the stream.
func awaitReplicas(ctx context.Context, processes []*process) error {
	js, err := connect(processes[0].config.Members)
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		current := 0
		if s, err := js.Stream(ctx, stream); err == nil && s.CachedInfo().Cluster != nil {
			for _, r := range s.CachedInfo().Cluster.Replicas {
				if r.Current && !r.Offline {
					current++
				}
			}
		}
		if current == len(processes)-1 {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("the stream has %d replicas that are current beside its leader: %w", current, ctx.Err())
		}
	}
}
