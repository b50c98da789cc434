package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed080d9131/lifecycle"
)

// loadValueBytes is the largest value that a load run writes.
const loadValueBytes = 1 << 10

// loadRun serves a directory, drives the server over HTTP, ends it with a signal
// while the clients go on, opens the directory again and verifies what is there.
// It fails if the exit did, or if anything that was acknowledged is lost.
//
// What it can say is exact, because each key has one client, which has one request
// in flight at a time, and writes no value twice:
//
//   - A write answered with 204 is there, at the offset that the answer gave.
//   - One answered with 503, or whose connection was refused, was never written.
//   - Any other has an unknown outcome, as when the server closes a connection that
//     it takes for idle: it may be there, or not, or come to be there while the
//     client goes on. So the client never touches that key again, and the
//     key ends as the last acknowledged write left it, or as the unknown one does.
//   - A value with a time to live may be gone from the earliest moment at which it
//     can have expired on, and must be from the latest.
func loadRun(c config, logger *slog.Logger, stdout io.Writer) (err error) {
	temporary := c.dir == ""
	if temporary {
		if c.dir, err = os.MkdirTemp("", "kvserver-"); err != nil {
			return err
		}
	}
	keep := false
	defer func() {
		switch {
		case temporary && keep:
			err = fmt.Errorf("%w; the directory is kept: %s", err, c.dir)
		case temporary:
			err = errors.Join(err, os.RemoveAll(c.dir))
		}
	}()
	d, err := start(c, logger)
	if err != nil {
		return err
	}
	l := newLoad(c, d)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	early := make(chan os.Signal, 1) // a signal sent before Run listens must not kill the process
	signal.Notify(early, syscall.SIGTERM)
	defer signal.Stop(early)
	timer := time.AfterFunc(c.load, func() { terminate(d.host, cancel) })
	defer timer.Stop()
	l.start(c.clients, c.keys, stdout)
	exitErr := d.untilExit(ctx, c, logger)
	l.end()
	fmt.Fprint(stdout, d.host.Report())

	v, err := l.verify(c)
	fmt.Fprint(stdout, v)
	if errors.Is(exitErr, lifecycle.ErrForced) {
		fmt.Fprintln(stdout, "the exit was forced: that alone makes this run a failure, even where nothing is lost")
	}
	err = errors.Join(err, v.err())
	keep = err != nil
	return errors.Join(exitErr, err)
}

// terminate sends the process the signal that ends it. Windows has none to send,
// and where Run does not listen yet it is lost: then the context of Run ends.
func terminate(host *lifecycle.Host, cancel context.CancelCauseFunc) {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Signal(syscall.SIGTERM)
	}
	if err == nil {
		select {
		case <-host.Exiting():
		case <-time.After(time.Second):
		}
	}
	cancel(errors.New("the end of the load"))
}

// load is a load run. It owns a goroutine for each client and one that prints the
// progress; end ends them.
type load struct {
	url     string
	prefix  string // of the keys of this run: the directory may hold others
	others  map[string]*item
	client  *http.Client
	clients []*loadClient
	seed    maphash.Seed

	ended chan struct{}
	group sync.WaitGroup

	mu     sync.Mutex // guards what follows
	counts loadCounts
	recent []time.Duration // the writes acknowledged since the last line of progress
}

type loadCounts struct{ acknowledged, refused, unknown, reads int }

func newLoad(c config, d *database) *load {
	l := &load{
		url:    "http://" + d.addr.String() + "/kv/",
		prefix: fmt.Sprintf("load-%x/", rand.Uint64()),
		others: map[string]*item{},
		seed:   maphash.MakeSeed(),
		ended:  make(chan struct{}),
	}
	im := d.store.freeze()
	for it := range im.all {
		l.others[it.key] = it
	}
	transport := &http.Transport{MaxIdleConnsPerHost: c.clients, DisableCompression: true}
	l.client = &http.Client{Transport: transport, Timeout: writeTimeout + 5*time.Second}
	return l
}

func (l *load) start(clients, keys int, stdout io.Writer) {
	for i := range clients {
		client := &loadClient{load: l, random: rand.New(rand.NewPCG(uint64(i), 1))}
		for j := range keys {
			client.keys = append(client.keys, &loadKey{name: fmt.Sprintf("%sclient %d/key %d", l.prefix, i, j)})
		}
		l.clients = append(l.clients, client)
		l.group.Go(client.run)
	}
	l.group.Go(func() { l.showProgress(stdout) })
}

// end stops the clients, and returns when everything has ended.
func (l *load) end() {
	close(l.ended)
	l.group.Wait()
	l.client.CloseIdleConnections()
}

func (l *load) hasEnded() bool {
	select {
	case <-l.ended:
		return true
	default:
		return false
	}
}

const progressEvery = 200 * time.Millisecond

func (l *load) showProgress(stdout io.Writer) {
	began := time.Now()
	last, lastOps := began, 0
	ticker := time.NewTicker(progressEvery)
	defer ticker.Stop()
	for {
		select {
		case <-l.ended:
			return
		case <-ticker.C:
		}
		l.mu.Lock()
		n, recent := l.counts, l.recent
		l.recent = nil
		l.mu.Unlock()
		slices.Sort(recent)
		quantile := func(q float64) string {
			if len(recent) == 0 {
				return "-"
			}
			return recent[int(q*float64(len(recent)-1))].Round(10 * time.Microsecond).String()
		}
		now, ops := time.Now(), n.acknowledged+n.reads
		fmt.Fprintf(stdout, "%5.1fs %8d ops %7.0f ops/s   write p50 %8s p99 %8s   refused %d unknown %d\n",
			now.Sub(began).Seconds(), ops, float64(ops-lastOps)/now.Sub(last).Seconds(), quantile(0.5), quantile(0.99), n.refused, n.unknown)
		last, lastOps = now, ops
	}
}

// loadClient is one client. Its fields are its goroutine's, until that has ended.
type loadClient struct {
	load     *load
	random   *rand.Rand
	keys     []*loadKey // those that it still writes and reads
	retired  []*loadKey // those with a write of unknown outcome
	expiring *loadKey   // one of them, to be overwritten when its time has come
	sequence int

	acknowledged []acknowledgement
	unknown      []uint64 // digests
	wrong        []string
}

type acknowledgement struct{ offset, digest uint64 }

type loadKey struct {
	name  string
	acked keyState  // by the last acknowledged write
	maybe *keyState // by the write of unknown outcome, if there is one
}

// keyState is what a write makes of a key. The zero value is a key never written.
type keyState struct {
	present        bool
	value          []byte
	offset         uint64
	ttl            time.Duration // 0: for ever
	sent, answered time.Time
}

// explains reports whether a read that began and ended at two moments can have
// found what it did, if the key was in that state.
func (s *keyState) explains(found bool, value []byte, began, ended time.Time) bool {
	expires := s.present && s.ttl > 0
	if !found {
		return !s.present || expires && !ended.Before(s.sent.Add(s.ttl))
	}
	return s.present && bytes.Equal(value, s.value) && !(expires && !began.Before(s.answered.Add(s.ttl)))
}

func (c *loadClient) run() {
	for !c.load.hasEnded() && len(c.keys) > 0 {
		i, n := c.random.IntN(len(c.keys)), c.random.IntN(100)
		if key := c.expiring; key != nil && !wallClock().Before(key.acked.sent.Add(key.acked.ttl)) {
			// The cleanup is about to delete it, and must not delete this write.
			if c.expiring = nil; slices.Contains(c.keys, key) {
				i, n = slices.Index(c.keys, key), 99
			}
		}
		served := true
		switch {
		case n < 20:
			served = c.read(c.keys[i])
		case n < 30:
			served = c.write(i, http.MethodDelete, keyState{})
		default:
			c.sequence++
			s := keyState{present: true, value: c.value()}
			switch {
			case n < 35:
				s.ttl = time.Duration(20+c.random.IntN(800)) * time.Millisecond
			case n < 45:
				s.ttl = time.Hour
			}
			served = c.write(i, http.MethodPut, s)
		}
		if !served {
			select {
			case <-c.load.ended:
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// value returns one that no client has written before.
func (c *loadClient) value() []byte {
	b := make([]byte, 64+c.random.IntN(loadValueBytes-128))
	for i := range b {
		b[i] = byte(c.random.Uint32())
	}
	return append(strconv.AppendInt(nil, int64(c.sequence), 10), b...)
}

// write sends a write and takes down what came of it. It returns false if the
// server did not serve it.
func (c *loadClient) write(i int, method string, s keyState) bool {
	key := c.keys[i]
	digest := c.load.digest(method == http.MethodPut, key.name, s.value)
	target := c.load.url + url.PathEscape(key.name)
	if s.ttl > 0 {
		target += "?ttl=" + s.ttl.String()
	}
	s.sent = wallClock()
	answer, err := c.load.send(method, target, s.value)
	s.answered = wallClock()

	c.load.mu.Lock()
	defer c.load.mu.Unlock()
	n := &c.load.counts
	switch {
	case err == nil && answer.code == http.StatusNoContent:
		if s.offset, err = strconv.ParseUint(answer.offset, 10, 64); err != nil {
			c.wrong = append(c.wrong, fmt.Sprintf("%s: acknowledged without an offset: %v", key.name, err))
		}
		key.acked = s
		if 0 < s.ttl && s.ttl < time.Second {
			c.expiring = key
		}
		c.acknowledged = append(c.acknowledged, acknowledgement{s.offset, digest})
		n.acknowledged++
		c.load.recent = append(c.load.recent, s.answered.Sub(s.sent))
		return true
	case err == nil && answer.code == http.StatusServiceUnavailable, neverSent(err):
		n.refused++
		return false
	case err == nil && answer.code != http.StatusInternalServerError:
		c.wrong = append(c.wrong, fmt.Sprintf("%s: %s was answered with %d", key.name, method, answer.code))
	}
	n.unknown++
	key.maybe = &s
	c.unknown = append(c.unknown, digest)
	c.keys = slices.Delete(c.keys, i, i+1)
	c.retired = append(c.retired, key)
	return false
}

// read reads a key, and takes down if it is not as this client left it. It returns
// false if the server did not serve it.
func (c *loadClient) read(key *loadKey) bool {
	began := wallClock()
	answer, err := c.load.send(http.MethodGet, c.load.url+url.PathEscape(key.name), nil)
	ended := wallClock()
	if err != nil || answer.code == http.StatusServiceUnavailable {
		return false
	}
	found := answer.code == http.StatusOK
	right := found || answer.code == http.StatusNotFound
	right = right && key.acked.explains(found, answer.body, began, ended)
	right = right && (!found || answer.offset == strconv.FormatUint(key.acked.offset, 10))
	if !right {
		c.wrong = append(c.wrong, fmt.Sprintf("%s: a read found %d at %q, after the write at %d", key.name, answer.code, answer.offset, key.acked.offset))
	}
	c.load.mu.Lock()
	c.load.counts.reads++
	c.load.mu.Unlock()
	return true
}

type answer struct {
	code   int
	offset string
	body   []byte
}

func (l *load) send(method, target string, body []byte) (answer, error) {
	request, err := http.NewRequest(method, target, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	response, err := l.client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	return answer{response.StatusCode, response.Header.Get(offsetHeader), b}, nil
}

// neverSent reports whether a request failed before it had a connection.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// wallClock is the time as the server sees it: Round takes away the monotonic
// reading, by which times would be compared otherwise.
func wallClock() time.Time { return time.Now().Round(0) }

// digest stands for a write. Values are unique, so it is the write's own, but for
// deletes of one key.
func (l *load) digest(put bool, key string, value []byte) uint64 {
	return maphash.Comparable(l.seed, struct {
		put        bool
		key, value string
	}{put, key, string(value)})
}

// verdict is what the verification found.
type verdict struct {
	counts      loadCounts
	keys        int // whose state is right
	records     int // acknowledged writes that were found in the log, at their offset
	lost, wrong []string
}

func (v *verdict) err() error {
	switch {
	case len(v.lost)+len(v.wrong) > 0:
		return fmt.Errorf("verification: %d lost, %d wrong", len(v.lost), len(v.wrong))
	case v.counts.acknowledged == 0:
		return errors.New("verification: no write was acknowledged, so nothing was shown")
	}
	return nil
}

func (v *verdict) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "writes: acknowledged %d, refused %d, unknown %d; reads %d\n", v.counts.acknowledged, v.counts.refused, v.counts.unknown, v.counts.reads)
	fmt.Fprintf(&b, "reopened: verified %d keys and %d records that the log still holds, lost %d, wrong %d\n", v.keys, v.records, len(v.lost), len(v.wrong))
	const most = 20
	for i, line := range slices.Concat(v.lost, v.wrong) {
		if i == most {
			fmt.Fprintf(&b, "  and %d more\n", len(v.lost)+len(v.wrong)-most)
			break
		}
		fmt.Fprintf(&b, "  %s\n", line)
	}
	return b.String()
}

// verify opens the directory again, as a server does, and compares it with what
// the clients were told.
func (l *load) verify(c config) (_ *verdict, err error) {
	v := &verdict{counts: l.counts}
	state, err := openState(c.dir, c.segment)
	if err != nil {
		return v, fmt.Errorf("open the directory again: %w", err)
	}
	defer func() { err = errors.Join(err, state.log.Close()) }()

	acknowledged := map[uint64]uint64{} // digests by offset
	unknown := map[uint64]bool{}        // by digest
	sent := map[uint64]bool{}           // by digest: what can be there
	for _, client := range l.clients {
		v.wrong = append(v.wrong, client.wrong...)
		for _, a := range client.acknowledged {
			if _, twice := acknowledged[a.offset]; twice {
				v.wrong = append(v.wrong, fmt.Sprintf("offset %d was given to two writes", a.offset))
			}
			acknowledged[a.offset] = a.digest
			sent[a.digest] = true
		}
		for _, digest := range client.unknown {
			unknown[digest], sent[digest] = true, true
		}
	}

	// The log's records, as far as no snapshot has made them superfluous.
	for entry, err := range state.log.Read(state.log.First()) {
		if err != nil {
			return v, err
		}
		r, err := decodeRecord(entry.Data)
		if err != nil {
			return v, fmt.Errorf("offset %d: %w", entry.Offset, err)
		}
		digest, wasAcknowledged := acknowledged[entry.Offset]
		is := l.digest(r.kind == kindPut, r.key, r.value)
		ours := r.kind != kindExpire && strings.HasPrefix(r.key, l.prefix)
		switch {
		case wasAcknowledged && ours && is == digest:
			v.records++
		case wasAcknowledged:
			v.lost = append(v.lost, fmt.Sprintf("offset %d holds another record than the write that was acknowledged there", entry.Offset))
		case ours && !unknown[is]:
			v.wrong = append(v.wrong, fmt.Sprintf("offset %d holds a write to %s that no client made, or that was refused", entry.Offset, r.key))
		}
	}
	for offset := range acknowledged {
		if offset >= state.log.Next() {
			v.lost = append(v.lost, fmt.Sprintf("offset %d was acknowledged, but the log ends before %d", offset, state.log.Next()))
		}
	}

	// The keys of this run, each as its client left it.
	known := map[string]bool{}
	for _, client := range l.clients {
		for _, key := range slices.Concat(client.keys, client.retired) {
			known[key.name] = true
			began := wallClock()
			it := state.table.get(key.name)
			found := it != nil && !it.due(began.UnixNano())
			var value []byte
			if found {
				value = it.value
			}
			switch {
			case key.acked.explains(found, value, began, began) && (!found || it.version == key.acked.offset),
				key.maybe != nil && key.maybe.explains(found, value, began, began):
				v.keys++
			case found && !sent[l.digest(true, key.name, value)]:
				v.wrong = append(v.wrong, fmt.Sprintf("%s holds a value that was never written to it", key.name))
			default:
				v.lost = append(v.lost, fmt.Sprintf("%s is not as the write at offset %d left it (found: %t)", key.name, key.acked.offset, found))
			}
		}
	}

	// All other keys, each as it was found at the start.
	im := state.table.freeze()
	for it := range im.all {
		if was := l.others[it.key]; !known[it.key] && (was == nil || was.version != it.version) {
			v.wrong = append(v.wrong, fmt.Sprintf("%s was written by nobody", it.key))
		}
	}
	for key, it := range l.others {
		if state.table.get(key) == nil && it.expires == 0 {
			v.lost = append(v.lost, fmt.Sprintf("%s was there before the run", key))
		}
	}
	return v, nil
}
