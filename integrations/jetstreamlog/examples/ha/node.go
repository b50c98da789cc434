//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/jetstreamlog"
	"github.com/seed080d9131/lifecycle/integrations/jetstreamlog/internal/member"
)

// The stream with the log, and the bucket with the lease.
const (
	stream      = "kv"
	leaseBucket = "kv-lease"
	leaseKey    = "leader"
)

// A lease that nobody has renewed for leaseTTL is anybody's.
const (
	leaseTTL   = 2 * time.Second
	leaseRenew = 500 * time.Millisecond
)

// quorumTimeout is how long a write waits for a quorum. An election takes some seconds; and
// the process that the story stops shall still be trying when it goes on, however long the
// others took to replace it.
const quorumTimeout = 2 * patience

// nodeConfig is what a process is told.
type nodeConfig struct {
	Members []member.Config
	Self    int
	HTTP    string // address
}

func (c nodeConfig) name() string { return c.Members[c.Self].Name }

// event is what a process reports, a line of JSON each.
type event struct {
	Event    string `json:"event"` // ready, active, fenced, ended
	Offset   uint64 `json:"offset,omitempty"`
	Replayed int    `json:"replayed,omitempty"`
	Error    string `json:"error,omitempty"`
}

// node is one process: a member of the NATS cluster, and a candidate that serves when it
// has the lease.
type node struct {
	nodeConfig
	js     jetstream.JetStream
	out    *json.Encoder
	active atomic.Pointer[database]
}

// database is the server while it is the active one.
type database struct {
	host  *lifecycle.Host
	store *store
}

// runNode runs until stdin ends, which it does with the process that started this one.
func runNode(config string) error {
	n := &node{out: json.NewEncoder(os.Stdout)}
	if err := json.Unmarshal([]byte(config), &n.nodeConfig); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", n.HTTP)
	if err != nil {
		return err
	}
	if _, err := member.Start(n.Members[n.Self]); err != nil {
		return err
	}
	n.js, err = connect(n.Members)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	web := &http.Server{Handler: n.handler(), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = web.Serve(listener) }()
	defer web.Close()
	n.report(event{Event: "ready"})
	for ctx.Err() == nil {
		if err := n.candidate(ctx); err != nil && ctx.Err() == nil {
			n.report(event{Event: "ended", Error: err.Error()})
		}
	}
	return nil
}

func connect(members []member.Config) (jetstream.JetStream, error) {
	nc, err := nats.Connect(member.URL(members), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond),
		nats.RetryOnFailedConnect(true), nats.Timeout(time.Second), nats.FlusherTimeout(2*time.Second),
		nats.PingInterval(500*time.Millisecond), nats.MaxPingsOutstanding(2), // a server that hangs is left soon
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return nil, err
	}
	return jetstream.New(nc)
}

func (n *node) report(e event) { _ = n.out.Encode(e) }

// candidate waits for the lease, leads as long as the log lets it, and returns nil if
// another has fenced it.
func (n *node) candidate(ctx context.Context) error {
	lease, err := n.acquire(ctx)
	if err != nil {
		return err
	}
	keeping, stop := context.WithCancel(ctx)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		lease.keep(keeping)
	}()
	defer func() { stop(); <-kept }()
	log, err := jetstreamlog.Open(ctx, n.js, stream, jetstreamlog.Options{
		Timeout: quorumTimeout,
		Fence:   record{kind: kindLead, key: n.name()}.encode(),
	})
	if err != nil {
		return err
	}
	// From here on nobody who opened the log earlier writes to it, whatever the lease says:
	// what is read now is all there is.
	t := newTable(log.First())
	for entry, err := range log.Read(ctx, log.First()) {
		if err == nil {
			err = t.replay(entry.Offset, entry.Data)
		}
		if err != nil {
			return errors.Join(err, log.Close())
		}
	}
	replayed := int(t.next - log.First())
	host := lifecycle.New(log, lifecycle.Options{Name: n.name()})
	d := &database{host, newStore(host.Durability(), t)}
	if err := host.Every("lease", leaseRenew, func(ctx context.Context) error { return lease.check(ctx, d.store) }); err != nil {
		return errors.Join(err, host.Exit(ctx))
	}
	n.active.Store(d)
	n.report(event{Event: "active", Offset: t.next, Replayed: replayed})
	select {
	case <-host.Done():
	case <-ctx.Done():
	}
	n.active.Store(nil)
	err = host.Exit(context.Background())
	if errors.Is(err, jetstreamlog.ErrFenced) {
		n.report(event{Event: "fenced", Offset: host.Durability().Durable(), Error: err.Error()})
		return nil
	}
	return err
}

// lease says who may try to lead. It protects nothing: clocks differ, and a process may
// stand still for any time between a look at it and a write. The log's fence does.
type lease struct {
	kv       jetstream.KeyValue
	name     string
	revision uint64
	lost     atomic.Bool // another may have it
}

// acquire waits until the lease is free, and takes it.
func (n *node) acquire(ctx context.Context) (*lease, error) {
	ticker := time.NewTicker(leaseRenew / 2)
	defer ticker.Stop()
	for {
		kv, err := n.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: leaseBucket, TTL: leaseTTL, Replicas: len(n.Members)})
		for err == nil {
			var revision uint64
			if revision, err = kv.Create(ctx, leaseKey, []byte(n.name())); err == nil {
				return &lease{kv: kv, name: n.name(), revision: revision}, nil
			}
			if errors.Is(err, jetstream.ErrKeyExists) {
				err = nil
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		select { // no quorum yet, or not now
		case <-ticker.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// keep renews the lease until ctx ends: also while the log is being opened, which may
// take an election.
func (l *lease) keep(ctx context.Context) {
	ticker := time.NewTicker(leaseRenew)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		revision, err := l.kv.Update(ctx, leaseKey, []byte(l.name), l.revision)
		if errors.Is(err, jetstream.ErrKeyExists) { // or it has run out
			revision, err = l.kv.Create(ctx, leaseKey, []byte(l.name))
		}
		if err == nil {
			l.revision = revision
		}
		l.lost.Store(err != nil)
	}
}

// check is a task of the host. Where the lease may be another's, a record that changes
// nothing asks the log who leads: if it is another, this host ends by itself.
func (l *lease) check(ctx context.Context, s *store) error {
	if !l.lost.Load() {
		return nil
	}
	_, err := s.commit(ctx, record{kind: kindLead, key: l.name})
	return err
}

// offsetHeader carries the offset of a write that was acknowledged, or of the one that a
// value comes from.
const offsetHeader = "Kv-Offset"

func (n *node) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /kv/{key}", n.serve(func(w http.ResponseWriter, r *http.Request, d *database) {
		value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		offset, err := d.store.commit(r.Context(), record{kindPut, r.PathValue("key"), string(value)})
		switch {
		case err == nil:
			w.Header().Set(offsetHeader, strconv.FormatUint(offset, 10))
			w.WriteHeader(http.StatusNoContent)
		case errors.Is(err, lifecycle.ErrUnknown):
			http.Error(w, fmt.Sprintf("outcome unknown: %v", err), http.StatusInternalServerError)
		default:
			http.Error(w, "refused, nothing was written: "+err.Error(), http.StatusServiceUnavailable)
		}
	}))
	mux.HandleFunc("GET /kv/{key}", n.serve(func(w http.ResponseWriter, r *http.Request, d *database) {
		it, found := d.store.get(r.PathValue("key"))
		if !found {
			http.Error(w, "no such key", http.StatusNotFound)
			return
		}
		w.Header().Set(offsetHeader, strconv.FormatUint(it.version, 10))
		_, _ = io.WriteString(w, it.value)
	}))
	return mux
}

// serve passes a request through the active host's gate, or says that this process is a
// standby.
func (n *node) serve(f func(http.ResponseWriter, *http.Request, *database)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		d := n.active.Load()
		if d == nil {
			http.Error(w, "standby", http.StatusServiceUnavailable)
			return
		}
		call, err := d.host.Enter()
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer call.Leave()
		f(w, r, d)
	}
}
