//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed080d9131/lifecycle/integrations/jetstreamlog"
)

// load is clients that write, and what they were told. Each write has a key of its own,
// so that one that was lost, or carried out twice, can be seen.
type load struct {
	processes []*process
	web       *http.Client

	mu      sync.Mutex
	acked   map[string]uint64 // offset by key
	unknown map[string]bool   // writes that may or may not be in the log
	number  int
	changed chan struct{} // closed and made anew at each acknowledgement
}

func newLoad(processes []*process) *load {
	return &load{
		processes: processes,
		web:       &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}},
		acked:     map[string]uint64{}, unknown: map[string]bool{}, changed: make(chan struct{}),
	}
}

func valueOf(key string) string { return "the value of " + key }

// run starts the clients. They go from process to process in search of the active one.
// The func that it returns stops them and waits for them.
func (l *load) run(ctx context.Context, clients int) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			pause := time.NewTicker(50 * time.Millisecond)
			defer pause.Stop()
			for at := i; ctx.Err() == nil; {
				l.mu.Lock()
				l.number++
				key := fmt.Sprintf("key-%d", l.number)
				l.mu.Unlock()
				for told := refused; told == refused && ctx.Err() == nil; {
					if told = l.put(ctx, l.processes[at%len(l.processes)], key); told != acknowledged {
						at++
						<-pause.C
					}
				}
			}
		})
	}
	return func() {
		cancel()
		running.Wait()
		l.web.CloseIdleConnections()
	}
}

// What a client is told.
type outcome int

const (
	refused      outcome = iota // nothing was written
	acknowledged                // it is durable
	unknown                     // writing it once more could double it
)

// put makes one try.
func (l *load) put(ctx context.Context, p *process, key string) outcome {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+p.config.HTTP+"/kv/"+key, strings.NewReader(valueOf(key)))
	if err != nil {
		return refused
	}
	response, err := l.web.Do(request)
	if err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var dial *net.OpError
	switch {
	case err == nil && response.StatusCode == http.StatusNoContent:
		offset, err := strconv.ParseUint(response.Header.Get(offsetHeader), 10, 64)
		if err != nil {
			panic(err) // this program wrote it
		}
		l.acked[key] = offset
		close(l.changed)
		l.changed = make(chan struct{})
		return acknowledged
	case err == nil && response.StatusCode == http.StatusServiceUnavailable, errors.As(err, &dial) && dial.Op == "dial":
		return refused
	}
	l.unknown[key] = true
	return unknown
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// more waits until n more writes are acknowledged.
func (l *load) more(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	until := l.count() + n
	for {
		l.mu.Lock()
		have, changed := len(l.acked), l.changed
		l.mu.Unlock()
		if have >= until {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d writes are acknowledged, of %d: %w", have, until, ctx.Err())
		}
	}
}

// result is what verify found.
type result struct {
	acknowledged, unknown, unknownThere, records, lost, doubled, wrong int
}

// verify reads the log from its beginning, and asks the active process for every key that
// was acknowledged.
func (l *load) verify(ctx context.Context) (result, error) {
	js, err := connect(l.processes[0].config.Members)
	if err != nil {
		return result{}, err
	}
	defer js.Conn().Close()
	log, err := jetstreamlog.Open(ctx, js, stream, jetstreamlog.Options{Timeout: quorumTimeout})
	if err != nil {
		return result{}, err
	}
	defer log.Close()
	var puts []put
	for entry, err := range log.Read(ctx, log.First()) {
		if err != nil {
			return result{}, err
		}
		r, err := decodeRecord(entry.Data)
		if err != nil {
			return result{}, err
		}
		if r.kind == kindPut {
			puts = append(puts, put{entry.Offset, r.key})
		}
	}
	r := judge(l.acked, l.unknown, puts)
	at := 0
	for key, offset := range l.acked {
		value, version, err := l.get(ctx, &at, key)
		if err != nil {
			return r, err
		}
		if value != valueOf(key) || version != strconv.FormatUint(offset, 10) {
			r.wrong++
		}
	}
	return r, nil
}

// put is a record of the log.
type put struct {
	offset uint64
	key    string
}

// judge compares what the clients were told with what is in the log.
func judge(acked map[string]uint64, unknown map[string]bool, puts []put) result {
	r := result{acknowledged: len(acked), unknown: len(unknown), records: len(puts)}
	seen := map[string]uint64{}
	for _, p := range puts {
		if _, twice := seen[p.key]; twice {
			r.doubled++
		}
		seen[p.key] = p.offset
		if unknown[p.key] {
			r.unknownThere++
		}
	}
	for key, offset := range acked {
		switch at, found := seen[key]; {
		case !found:
			r.lost++
		case at != offset:
			r.wrong++
		}
	}
	return r
}

// get asks the process that answered last, and the others while that one is a standby.
func (l *load) get(ctx context.Context, at *int, key string) (value, version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pause := time.NewTicker(50 * time.Millisecond)
	defer pause.Stop()
	for ctx.Err() == nil {
		p := l.processes[*at%len(l.processes)]
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.config.HTTP+"/kv/"+key, nil)
		if err != nil {
			return "", "", err
		}
		response, err := l.web.Do(request)
		if err == nil {
			text, readErr := io.ReadAll(response.Body)
			response.Body.Close()
			if readErr == nil && response.StatusCode != http.StatusServiceUnavailable {
				return string(text), response.Header.Get(offsetHeader), nil
			}
		}
		*at++
		<-pause.C
	}
	return "", "", fmt.Errorf("nobody answers for %s: %w", key, ctx.Err())
}
