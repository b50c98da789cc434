package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
)

// A storm has so many databases, and each client so many keys in each of them.
const (
	stormDatabases = 6
	stormKeys      = 3
)

// stormRun serves a directory and drives the server over HTTP with clients that
// launch, exit, write and read a handful of databases at random. It ends the server
// with a signal while they go on, opens every directory again and compares each
// log with what the clients were told. It fails if anything that was acknowledged
// is lost, anything that was refused is there, a launch met a locked log, an exit
// was not clean, or a goroutine of the library is left.
//
// What it can say is exact, since each key has one client, which has one request in
// flight, and no value is written twice. After a write of unknown outcome (its
// client has gone, or its connection) the client takes another key.
func stormRun(c config, logger *slog.Logger, stdout io.Writer) (err error) {
	if c.dir == "" {
		if c.dir, err = os.MkdirTemp("", "exitmodule-"); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = fmt.Errorf("%w; the directory is kept: %s", err, c.dir)
			} else {
				err = os.RemoveAll(c.dir)
			}
		}()
	}
	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return err
	}
	server := newServer(c, logger)
	st := newStorm("http://"+listener.Addr().String(), c.clients)

	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	early := make(chan os.Signal, 1) // a signal sent before Run listens must not kill the process
	signal.Notify(early, syscall.SIGTERM)
	defer signal.Stop(early)
	timer := time.AfterFunc(c.storm, func() { terminate(server.controller, cancel) })
	defer timer.Stop()
	st.start(stdout)
	exitErr := server.serve(ctx, listener, c)
	st.end()

	left := goroutinesLeft(5 * time.Second)
	v := st.verify(server)
	fmt.Fprintf(stdout, "launches %d, exits %d (requests answered clean %d, after the deadline %d)\n",
		server.opened.Load(), server.exited.Load(), v.counts.exited, v.counts.late)
	fmt.Fprintf(stdout, "writes: acknowledged %d, refused %d, unknown %d; reads %d\n", v.counts.acknowledged, v.counts.refused, v.counts.unknown, v.counts.reads)
	fmt.Fprintf(stdout, "reopened %d databases: verified %d writes, lost %d, wrong %d\n", v.databases, v.verified, len(v.lost), len(v.wrong))
	fmt.Fprintf(stdout, "lock conflicts %d, goroutines left %d\n", server.locked.Load(), len(left))
	printFirst(stdout, v.lost)
	printFirst(stdout, v.wrong)
	printFirst(stdout, left)

	var found error
	switch {
	case len(v.lost)+len(v.wrong)+len(left) > 0 || server.locked.Load() > 0:
		found = fmt.Errorf("%d lost, %d wrong, %d lock conflicts, %d goroutines left", len(v.lost), len(v.wrong), server.locked.Load(), len(left))
	case server.opened.Load() != server.exited.Load():
		found = fmt.Errorf("%d launches and %d exits", server.opened.Load(), server.exited.Load())
	case v.verified == 0 || v.counts.exited == 0:
		found = errors.New("no write was acknowledged, or no exit: so nothing was shown")
	}
	return errors.Join(exitErr, found)
}

// terminate sends the process the signal that ends it. Windows has none to send,
// and where Run does not listen yet it is lost: then the context of Run ends.
func terminate(e lifecycle.Exiter, cancel context.CancelCauseFunc) {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Signal(syscall.SIGTERM)
	}
	if err == nil {
		select {
		case <-e.Exiting():
		case <-time.After(time.Second):
		}
	}
	cancel(errors.New("the end of the storm"))
}

func printFirst(w io.Writer, lines []string) {
	const most = 10
	for i, line := range lines {
		if i == most {
			fmt.Fprintf(w, "  and %d more\n", len(lines)-most)
			return
		}
		fmt.Fprintf(w, "  %s\n", line)
	}
}

// goroutinesLeft returns the stacks of goroutines that are in the library. Those
// that are on their last steps get a moment.
func goroutinesLeft(patience time.Duration) []string {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		var profile bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
			return []string{err.Error()}
		}
		var left []string
		for _, paragraph := range strings.Split(profile.String(), "\n\n") {
			const library = "\tgithub.com/seed080d9131/lifecycle"
			if strings.Contains(paragraph, library+".") || strings.Contains(paragraph, library+"/commitlog.") {
				left = append(left, paragraph)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// storm owns a goroutine for each client and one that prints the progress; end ends
// them.
type storm struct {
	base    string
	prefix  string // of the keys of this run: the directories may hold others
	http    *http.Client
	clients []*stormClient
	ended   chan struct{}
	group   sync.WaitGroup

	mu     sync.Mutex // guards what follows
	counts stormCounts
}

type stormCounts struct{ acknowledged, refused, unknown, reads, exited, late int }

func newStorm(base string, clients int) *storm {
	st := &storm{
		base:   base,
		prefix: fmt.Sprintf("%x-", rand.Uint64()),
		http:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients, DisableCompression: true}, Timeout: time.Minute},
		ended:  make(chan struct{}),
	}
	for i := range clients {
		c := &stormClient{storm: st, id: i, random: rand.New(rand.NewPCG(uint64(i), rand.Uint64())), unknown: map[string]bool{}}
		for db := range stormDatabases {
			for range stormKeys {
				c.newKey(fmt.Sprintf("storm-%d", db))
			}
		}
		st.clients = append(st.clients, c)
	}
	return st
}

func (st *storm) start(stdout io.Writer) {
	for _, c := range st.clients {
		st.group.Go(c.run)
	}
	st.group.Go(func() {
		began := time.Now()
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-st.ended:
				return
			case <-ticker.C:
			}
			st.mu.Lock()
			n := st.counts
			st.mu.Unlock()
			fmt.Fprintf(stdout, "%5.1fs  acknowledged %7d  refused %6d  unknown %4d  reads %6d  exits %5d\n",
				time.Since(began).Seconds(), n.acknowledged, n.refused, n.unknown, n.reads, n.exited)
		}
	})
}

// end stops the clients, and returns when they have ended.
func (st *storm) end() {
	close(st.ended)
	st.group.Wait()
	st.http.CloseIdleConnections()
}

func (st *storm) count(f func(n *stormCounts)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	f(&st.counts)
}

// stormClient is one client. Its fields are its goroutine's, until that has ended.
type stormClient struct {
	storm    *storm
	id       int
	random   *rand.Rand
	keys     []*stormKey // those that it writes and reads
	retired  []*stormKey // those with a write of unknown outcome
	sequence int

	acknowledged []acknowledgement
	unknown      map[string]bool // values
	wrong        []string
}

type stormKey struct {
	db, name string
	acked    *acknowledgement // the last; nil: none
	maybe    string           // the value whose outcome is unknown; "": none
}

type acknowledgement struct {
	db, key, value string
	offset         uint64
}

func (c *stormClient) newKey(db string) {
	c.sequence++
	c.keys = append(c.keys, &stormKey{db: db, name: fmt.Sprintf("%s%d-%d", c.storm.prefix, c.id, c.sequence)})
}

func (c *stormClient) run() {
	for !isClosed(c.storm.ended) {
		i := c.random.IntN(len(c.keys))
		db := c.keys[i].db
		served := true
		switch n := c.random.IntN(1000); {
		case n < 20:
			c.exit(db)
		case n < 60:
			c.launch(db)
		case n < 250:
			served = c.read(c.keys[i])
		default:
			served = c.write(i)
		}
		if served {
			continue
		}
		if c.random.IntN(2) == 0 {
			c.launch(db)
		}
		select {
		case <-c.storm.ended:
		case <-time.After(time.Duration(c.random.IntN(5)) * time.Millisecond):
		}
	}
}

// hurried is the context of a request: of one in so many, one that ends so soon
// that the client may be gone before its answer is there.
func (c *stormClient) hurried(oneIn int) (context.Context, context.CancelFunc) {
	if c.random.IntN(oneIn) > 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), time.Duration(c.random.IntN(3000))*time.Microsecond)
}

func (c *stormClient) launch(db string) {
	ctx, cancel := c.hurried(10)
	defer cancel()
	a, err := c.storm.send(ctx, http.MethodPut, "/db/"+db, "", "")
	switch {
	case err != nil, a.code == http.StatusOK, a.code == http.StatusCreated, a.code == http.StatusServiceUnavailable:
	default:
		c.wrong = append(c.wrong, fmt.Sprintf("%s: a launch was answered with %v", db, a))
	}
}

func (c *stormClient) exit(db string) {
	accept, query := "application/json", ""
	if c.random.IntN(2) == 0 {
		accept = "text/plain"
	}
	if c.random.IntN(3) == 0 {
		query = "?within=1ms"
	}
	a, err := c.storm.send(context.Background(), http.MethodPost, "/db/"+db+"/exit"+query, accept, "")
	clean := strings.Contains(a.body, ": clean in ")
	if accept == "application/json" {
		var report lifecycle.Report
		clean = json.Unmarshal([]byte(a.body), &report) == nil && report.Outcome == "clean" && report.Lost == 0 && report.Host == db
	}
	switch {
	case err != nil, a.code == http.StatusNotFound:
	case a.code == http.StatusOK && clean:
		c.storm.count(func(n *stormCounts) { n.exited++ })
	case a.code == http.StatusGatewayTimeout:
		c.storm.count(func(n *stormCounts) { n.late++ })
	default:
		c.wrong = append(c.wrong, fmt.Sprintf("%s: an exit was answered with %v", db, a))
	}
}

// write sends a write and takes down what came of it. It returns false if the
// server did not serve it.
func (c *stormClient) write(i int) bool {
	key := c.keys[i]
	c.sequence++
	value := fmt.Sprintf("%d-%d-%s", c.id, c.sequence, strings.Repeat("v", c.random.IntN(300)))
	ctx, cancel := c.hurried(200)
	defer cancel()
	a, err := c.storm.send(ctx, http.MethodPut, "/db/"+key.db+"/"+key.name, "", value)
	switch {
	case err == nil && a.code == http.StatusNoContent:
		ack := acknowledgement{key.db, key.name, value, 0}
		if ack.offset, err = strconv.ParseUint(a.offset, 10, 64); err != nil || key.acked != nil && ack.offset <= key.acked.offset {
			c.wrong = append(c.wrong, fmt.Sprintf("%s: acknowledged at offset %q: %v", key.name, a.offset, err))
		}
		key.acked = &ack
		c.acknowledged = append(c.acknowledged, ack)
		c.storm.count(func(n *stormCounts) { n.acknowledged++ })
		return true
	case err == nil && (a.code == http.StatusServiceUnavailable || a.code == http.StatusNotFound), neverSent(err):
		c.storm.count(func(n *stormCounts) { n.refused++ })
		return false
	case err == nil:
		c.wrong = append(c.wrong, fmt.Sprintf("%s: a write was answered with %v", key.name, a))
	}
	c.storm.count(func(n *stormCounts) { n.unknown++ })
	key.maybe = value
	c.unknown[value] = true
	c.retired = append(c.retired, key)
	c.keys[i] = c.keys[len(c.keys)-1]
	c.keys = c.keys[:len(c.keys)-1]
	c.newKey(key.db)
	return true
}

// read reads a key, and takes down if it is not as this client left it. It returns
// false if the server did not serve it.
func (c *stormClient) read(key *stormKey) bool {
	a, err := c.storm.send(context.Background(), http.MethodGet, "/db/"+key.db+"/"+key.name, "", "")
	missing := a.code == http.StatusNotFound && strings.TrimSpace(a.body) == noKey
	switch {
	case err != nil, a.code == http.StatusServiceUnavailable, a.code == http.StatusNotFound && !missing:
		return false
	case key.acked == nil && missing:
	case key.acked != nil && a.code == http.StatusOK && a.body == key.acked.value && a.offset == strconv.FormatUint(key.acked.offset, 10):
	default:
		c.wrong = append(c.wrong, fmt.Sprintf("%s: a read of %s found %v, after %v", key.db, key.name, a, key.acked))
	}
	c.storm.count(func(n *stormCounts) { n.reads++ })
	return true
}

type answer struct {
	code         int
	offset, body string
}

func (st *storm) send(ctx context.Context, method, target, accept, body string) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, st.base+target, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	response, err := st.http.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header.Get(offsetHeader), string(b)}, err
}

// neverSent reports whether a request failed before it had a connection.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// verdict is what the verification found.
type verdict struct {
	counts      stormCounts
	databases   int
	verified    int // acknowledged writes that are in the log, at their offset
	lost, wrong []string
}

func (st *storm) verify(s *server) *verdict {
	v := &verdict{counts: st.counts}
	for _, c := range st.clients {
		v.wrong = append(v.wrong, c.wrong...)
	}
	for db := range stormDatabases {
		name := fmt.Sprintf("storm-%d", db)
		if err := st.verifyDatabase(v, s.dirOf(name), name); err != nil {
			v.wrong = append(v.wrong, fmt.Sprintf("%s: %v", name, err))
		}
	}
	return v
}

// verifyDatabase opens the database's directory, as a launch does, and goes through
// its log.
func (st *storm) verifyDatabase(v *verdict, dir, db string) (err error) {
	acknowledged := map[uint64]acknowledgement{}
	unknown := map[string]bool{}
	for _, c := range st.clients {
		for _, a := range c.acknowledged {
			if a.db != db {
				continue
			}
			if other, twice := acknowledged[a.offset]; twice {
				v.wrong = append(v.wrong, fmt.Sprintf("%s: offset %d was given to %s and %s", db, a.offset, other.key, a.key))
			}
			acknowledged[a.offset] = a
		}
		for value := range c.unknown {
			unknown[value] = true
		}
	}

	log, err := commitlog.Open(dir, commitlog.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	v.databases++
	state := &database{items: map[string]item{}}
	last := record{kind: kindEnd}
	for entry, err := range log.Read(log.First()) {
		if err != nil {
			return err
		}
		if last, err = decodeRecord(entry.Data); err != nil {
			return fmt.Errorf("offset %d: %w", entry.Offset, err)
		}
		state.apply(entry.Offset, last)
		a, wasAcknowledged := acknowledged[entry.Offset]
		switch {
		case wasAcknowledged && last.kind == kindPut && a.key == last.key && a.value == string(last.value):
			v.verified++
			delete(acknowledged, entry.Offset)
		case wasAcknowledged:
		case last.kind == kindPut && strings.HasPrefix(last.key, st.prefix) && !unknown[string(last.value)]:
			v.wrong = append(v.wrong, fmt.Sprintf("%s: offset %d holds a write to %s that was refused", db, entry.Offset, last.key))
		}
	}
	for offset, a := range acknowledged {
		v.lost = append(v.lost, fmt.Sprintf("%s: offset %d does not hold the write to %s that was acknowledged there", db, offset, a.key))
	}
	if last.kind != kindEnd {
		v.wrong = append(v.wrong, fmt.Sprintf("%s: something was written after the last checkpoint", db))
	}

	// And each key holds the last value that was acknowledged, or the unknown one.
	for _, c := range st.clients {
		for _, key := range slices.Concat(c.retired, c.keys) {
			if key.db != db {
				continue
			}
			it, found := state.get(key.name)
			switch {
			case found && key.maybe == string(it.value):
			case key.acked == nil && !found:
			case key.acked != nil && found && string(it.value) == key.acked.value:
			default:
				v.lost = append(v.lost, fmt.Sprintf("%s: %s is not as its client left it (found: %t)", db, key.name, found))
			}
		}
	}
	return nil
}
