package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
)

// run is the program as it is without what a main may add.
func run(args []string, stdout, stderr io.Writer) int { return Main(args, stdout, stderr, Options{}) }

var silent = slog.New(slog.DiscardHandler)

// testConfig has tasks that never tick on their own.
func testConfig(t *testing.T) config {
	return config{
		addr: "127.0.0.1:0", dir: t.TempDir(), grace: time.Minute, flush: time.Minute,
		cleanup: time.Hour, metrics: time.Hour, snapshot: time.Hour, maxValue: 100,
	}
}

// newServer is a server without a listener, on any log.
func newServer(t *testing.T, log lifecycle.Log) *server {
	t.Helper()
	host := lifecycle.New(log, lifecycle.Options{Name: "test"})
	s := newStore(host.Durability(), newTable())
	return &server{host: host, store: s, metrics: &metrics{store: s}, maxValue: 100, logger: silent}
}

func ask(s *server, ctx context.Context, method, target, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, target, strings.NewReader(body)))
	return w
}

func TestKeysAndValuesOverHTTP(t *testing.T) {
	d, err := start(testConfig(t), silent)
	require.NoError(t, err)
	base := "http://" + d.addr.String()
	send := func(method, target, body string) (int, string, string) {
		request, err := http.NewRequest(method, base+target, strings.NewReader(body))
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		b, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(b), response.Header.Get(offsetHeader)
	}
	offset := 0
	for _, key := range []string{"a", "a/b", "a b", "ü", "%", "?ttl=1s", "#", "%2F", strings.Repeat("k", maxKeyBytes)} {
		target := "/kv/" + url.PathEscape(key)
		code, _, _ := send("GET", target, "")
		require.Equal(t, 404, code, key)
		for _, value := range []string{"", "value of " + key[:1], "\x00\xff"} {
			code, _, at := send("PUT", target, value)
			require.Equal(t, 204, code, key)
			require.Equal(t, strconv.Itoa(offset), at)
			code, body, version := send("GET", target, "")
			require.Equal(t, 200, code, key)
			require.Equal(t, value, body)
			require.Equal(t, at, version)
			offset++
		}
	}
	code, _, _ := send("GET", "/kv/%2E%2E", "")
	require.Equal(t, 404, code, "a key of dots, escaped")
	for range 2 { // a delete of nothing is one too
		code, _, at := send("DELETE", "/kv/a", "")
		require.Equal(t, 204, code)
		require.Equal(t, strconv.Itoa(offset), at)
		offset++
		code, _, _ = send("GET", "/kv/a", "")
		require.Equal(t, 404, code)
	}

	for name, c := range map[string]struct {
		method, target, body string
		code                 int
	}{
		"a value that is too long":  {"PUT", "/kv/b", strings.Repeat("v", 101), 413},
		"the longest value":         {"PUT", "/kv/b", strings.Repeat("v", 100), 204},
		"a key that is too long":    {"PUT", "/kv/" + strings.Repeat("k", maxKeyBytes+1), "", 414},
		"no key":                    {"PUT", "/kv/", "", 404},
		"a ttl that is none":        {"PUT", "/kv/b?ttl=soon", "", 400},
		"a ttl of nothing":          {"PUT", "/kv/b?ttl=0s", "", 400},
		"a ttl below nothing":       {"PUT", "/kv/b?ttl=-1s", "", 400},
		"a ttl beyond all bounds":   {"PUT", "/kv/b?ttl=2000000h", "", 400},
		"the longest ttl":           {"PUT", "/kv/b?ttl=" + maxTTL.String(), "", 204},
		"another method":            {"POST", "/kv/b", "", 405},
		"another path":              {"GET", "/", "", 404},
		"headers that are too long": {"GET", "/kv/" + strings.Repeat("k", 2*maxHeaderBytes), "", 431},
	} {
		code, body, _ := send(c.method, c.target, c.body)
		require.Equal(t, c.code, code, "%s: %s", name, body)
	}

	code, body, _ := send("GET", "/status", "")
	require.Equal(t, 200, code)
	var status lifecycle.Status
	require.NoError(t, json.Unmarshal([]byte(body), &status))
	require.Equal(t, 1, status.Calls, "the one that asks")
	require.Len(t, status.Tasks, 5)
	code, body, _ = send("GET", "/metrics", "")
	require.Equal(t, 200, code)
	require.Contains(t, body, "\nkvserver_commits_total "+strconv.Itoa(offset+2)+"\n")

	http.DefaultClient.CloseIdleConnections()
	require.NoError(t, d.host.Exit(t.Context()))
}

func TestAnExpiredKeyIsGone(t *testing.T) {
	s := newServer(t, nil)
	require.Equal(t, 204, ask(s, t.Context(), "PUT", "/kv/a?ttl=1h", "v").Code)
	_, err := s.store.commit(t.Context(), record{kind: kindPut, key: "b", expires: time.Now().UnixNano()})
	require.NoError(t, err)
	require.Equal(t, 200, ask(s, t.Context(), "GET", "/kv/a", "").Code)
	require.Equal(t, 404, ask(s, t.Context(), "GET", "/kv/b", "").Code)

	background := &tasks{host: s.host, store: s.store, metrics: s.metrics, logger: silent}
	require.NoError(t, background.cleanUp(t.Context()))
	keys, _ := s.store.size()
	require.Equal(t, 1, keys)
	require.EqualValues(t, 1, s.metrics.cleaned.Load())
	require.NoError(t, s.host.Exit(t.Context()))
}

func TestTheTasksMeasure(t *testing.T) {
	c := testConfig(t)
	state, err := openState(c.dir, 0)
	require.NoError(t, err)
	s := newServer(t, state.log)
	background := &tasks{host: s.host, store: s.store, metrics: s.metrics, dir: c.dir, logger: silent}
	require.NoError(t, background.measureDisk(t.Context()))
	require.Positive(t, s.metrics.disk.Load().logBytes)
	meter := background.transactionMeter()
	require.Equal(t, 204, ask(s, t.Context(), "PUT", "/kv/a", "v").Code)
	require.NoError(t, meter(t.Context()))
	require.Positive(t, s.metrics.transactions.Load().perSecond)
	require.Zero(t, s.metrics.transactions.Load().lag)
	s.metrics.synced(lifecycle.SyncEvent{Txs: 7})
	s.metrics.synced(lifecycle.SyncEvent{Txs: 7, Err: errors.New("not durable")})
	require.EqualValues(t, 1, s.metrics.syncs.Load())
	body := ask(s, t.Context(), "GET", "/metrics", "").Body.String()
	for _, name := range []string{"keys", "commits_total", "commits_per_second", "durable_lag", "log_bytes", "snapshot_bytes"} {
		require.Contains(t, body, "\nkvserver_"+name+" ")
	}
	require.NoError(t, s.host.Exit(t.Context()))
}

func TestOnceTheExitHasBegunRequestsAreRefused(t *testing.T) {
	s := newServer(t, nil)
	call, err := s.host.Enter() // holds the exit in its first phase
	require.NoError(t, err)
	s.host.Fail(nil)
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		w := ask(s, t.Context(), method, "/kv/a", "v")
		require.Equal(t, 503, w.Code)
		require.NotEmpty(t, w.Header().Get("Retry-After"))
	}
	require.Equal(t, 503, ask(s, t.Context(), "GET", "/metrics", "").Code)
	require.Equal(t, 503, ask(s, t.Context(), "GET", "/status", "").Code)

	debug, err := serveDebug("127.0.0.1:0", s.host, map[string]http.Handler{
		"GET /more": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a main's own") }),
	}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer debug.close()
	get := func(path string) (int, string) {
		response, err := http.Get("http://" + debug.addr.String() + path)
		require.NoError(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(body)
	}
	code, page := get("/debug/lifecycle")
	require.Equal(t, 200, code)
	require.Contains(t, page, "exit module")
	code, _ = get("/readyz")
	require.Equal(t, 503, code)
	code, _ = get("/livez")
	require.Equal(t, 200, code)
	code, more := get("/more")
	require.Equal(t, 200, code)
	require.Equal(t, "a main's own", more)
	call.Leave()
	require.NoError(t, s.host.Exit(t.Context()))
	code, _ = get("/livez")
	require.Equal(t, 503, code)
	require.Zero(t, s.host.Durability().Accepted())
}

func TestARequestInFlightIsAwaitedAndAnswered(t *testing.T) {
	log := newHeldLog()
	s := newServer(t, log)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, s.serve(listener))
	answered := make(chan int)
	go func() {
		request, err := http.NewRequest("PUT", "http://"+listener.Addr().String()+"/kv/a", strings.NewReader("v"))
		if err != nil {
			panic(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			panic(err)
		}
		response.Body.Close()
		answered <- response.StatusCode
	}()
	<-log.syncing
	s.host.Fail(nil)
	require.Equal(t, 1, s.host.Status().Calls)
	log.release <- nil
	require.Equal(t, 204, <-answered)
	require.NoError(t, s.host.Exit(t.Context()))
	_, err = net.Dial("tcp", listener.Addr().String())
	require.Error(t, err)
}

func TestAnUnknownOutcomeIsCalledUnknown(t *testing.T) {
	log := newHeldLog()
	s := newServer(t, log)
	answered := make(chan *httptest.ResponseRecorder)
	go func() { answered <- ask(s, t.Context(), "PUT", "/kv/a", "v") }()
	<-log.syncing
	log.release <- errors.New("the disk is gone")
	w := <-answered
	require.Equal(t, 500, w.Code)
	require.Contains(t, w.Body.String(), "outcome unknown: the write was accepted at offset 0")
	require.Contains(t, w.Body.String(), "the disk is gone")
	require.Empty(t, w.Header().Get(offsetHeader))

	<-s.host.Exiting() // by itself
	require.Equal(t, 503, ask(s, t.Context(), "PUT", "/kv/a", "v").Code)
	var failed *lifecycle.LogError
	require.ErrorAs(t, s.host.Exit(t.Context()), &failed)
}

func TestTheHostThatFailsEndsTheProgram(t *testing.T) {
	s := newServer(t, nil)
	broken := errors.New("broken")
	require.NoError(t, s.host.Go("task", func(context.Context) error { return broken }))
	d := &database{host: s.host}
	require.ErrorIs(t, d.untilExit(t.Context(), testConfig(t), silent), broken)
}

func TestTheEndOfGraceForcesTheExit(t *testing.T) {
	s := newServer(t, nil)
	c := testConfig(t)
	c.grace = 1
	_, err := s.host.Enter() // and never leaves
	require.NoError(t, err)
	s.host.Fail(nil)
	d := &database{host: s.host}
	require.ErrorIs(t, d.untilExit(t.Context(), c, silent), lifecycle.ErrForced)
}

func TestAStartThatFailsLeavesNothingLocked(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	c := testConfig(t)
	var stderr bytes.Buffer
	require.Equal(t, 1, run([]string{"-addr", taken.Addr().String(), "-dir", c.dir}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), "listen tcp "+taken.Addr().String())

	d, err := start(c, silent)
	require.NoError(t, err)
	stderr.Reset()
	require.Equal(t, 1, run([]string{"-addr", "127.0.0.1:0", "-dir", c.dir}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), c.dir+" is in use by another server")
	_, err = start(c, silent)
	require.ErrorIs(t, err, commitlog.ErrLocked)
	require.NoError(t, d.host.Exit(t.Context()))
}

func TestArguments(t *testing.T) {
	var out bytes.Buffer
	require.Equal(t, 0, run([]string{"-help"}, &out, &out))
	require.Contains(t, out.String(), "-load")
	for _, args := range [][]string{
		{"-nonsense"}, {"more"}, {"-load", "-1s"}, {"-grace", "-1s"}, {"-grace", "0"}, {"-flush", "0"}, {"-cleanup", "-1s"}, {"-metrics", "0"}, {"-max-value", "1000000000"}, {"-segment", "-1"}, {"-clients", "0"},
	} {
		require.Equal(t, 2, run(args, io.Discard, io.Discard), args)
	}
}

// underLoad runs the program until a run has shown something. Whether the machine and its
// disk come to a write in the time of one is their affair.
func underLoad(t *testing.T, opts Options, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	for {
		var out, err syncBuffer
		code := Main(append([]string{"-load"}, args...), &out, &err, opts)
		if !strings.Contains(err.String(), "\nkvserver: verification: no write was acknowledged, so nothing was shown") {
			return code, out.String(), err.String()
		}
		require.Contains(t, out.String(), "lost 0, wrong 0")
	}
}

func TestALoadRunLosesNothing(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // the second finds what the first has left
		code, stdout, stderr := underLoad(t, Options{}, "700ms", "-clients", "8", "-keys", "20", "-dir", dir, "-segment", "65536", "-snapshot", "100ms")
		require.Zero(t, code, "%s\n%s", stdout, stderr)
		require.Contains(t, stdout, "lost 0, wrong 0")
		require.Contains(t, stdout, ": clean in")
		require.Contains(t, stderr, `why="signal terminated"`)
	}
}

func TestTheHostIsMadeAsAMainWantsIt(t *testing.T) {
	var txs, syncs atomic.Int64
	var host *lifecycle.Host
	newHost := func(log lifecycle.Log, opts lifecycle.Options) *lifecycle.Host {
		opts.Observer = lifecycle.MultiObserver(opts.Observer, lifecycle.Observer{Synced: func(e lifecycle.SyncEvent) {
			txs.Add(int64(e.Txs))
			syncs.Add(1)
		}})
		txs.Store(0)
		syncs.Store(0)
		host = lifecycle.New(log, opts)
		return host
	}
	code, stdout, stderr := underLoad(t, Options{NewHost: newHost}, "200ms", "-clients", "4")
	require.Zero(t, code, "%s\n%s", stdout, stderr)
	require.Positive(t, txs.Load())
	require.EqualValues(t, host.Durability().Durable(), txs.Load())
	// The server's own observer was told as well.
	require.Contains(t, stderr, fmt.Sprintf("commits=%d syncs=%d ", txs.Load(), syncs.Load()))
}

func TestAForcedExitInMidLoadLosesNothing(t *testing.T) {
	code, stdout, stderr := underLoad(t, Options{}, "300ms", "-clients", "8", "-keys", "20", "-grace", "1ns")
	require.Contains(t, stdout, "lost 0, wrong 0")
	// It may have been too quick to be forced; what counts is that all say the same.
	forced := strings.Contains(stdout, ": forced in")
	require.Equal(t, forced, code == 1, "%s\n%s", stdout, stderr)
	require.Equal(t, forced, strings.Contains(stdout, "the exit was forced: that alone"))
}

func TestALoadThatEndsBeforeItBeganEndsAll(t *testing.T) {
	var stdout, stderr syncBuffer
	code := run([]string{"-load", "1ns", "-clients", "1"}, &stdout, &stderr)
	require.NotContains(t, stdout.String(), "lost 1", "%s\n%s", &stdout, &stderr)
	require.Contains(t, stdout.String(), ": clean in")
	if code != 0 {
		require.Contains(t, stderr.String(), "no write was acknowledged, so nothing was shown")
	}
}

// syncBuffer takes what several goroutines write.
type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
