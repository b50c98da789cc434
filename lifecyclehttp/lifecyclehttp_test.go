package lifecyclehttp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecyclehttp"
)

func newHost(t *testing.T, name string) *lifecycle.Host {
	t.Helper()
	h := lifecycle.New(nil, lifecycle.Options{Name: name})
	t.Cleanup(func() { _ = h.ForceExit(context.Background()) })
	return h
}

// stuckInFlush is the task that does not obey: its frame must be shown.
func stuckInFlush(begun chan<- struct{}, release <-chan struct{}) func(context.Context) error {
	return func(context.Context) error { close(begun); <-release; return nil }
}

// goStuck starts the task that does not obey, and returns when its frame is in a stack.
func goStuck(t *testing.T, h *lifecycle.Host, name string, release <-chan struct{}) {
	t.Helper()
	begun := make(chan struct{})
	require.NoError(t, h.Go(name, stuckInFlush(begun, release)))
	<-begun
}

func get(handler http.Handler, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w
}

func snapshot(t *testing.T, handler http.Handler, query string) lifecyclehttp.Snapshot {
	t.Helper()
	w := get(handler, "/debug/lifecycle?format=json"+query)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	var s lifecyclehttp.Snapshot
	decoder := json.NewDecoder(w.Body)
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&s))
	return s
}

// Probes.

func TestReadyEndsWhenTheExitBeginsAndLiveWhenItHasEnded(t *testing.T) {
	controller := lifecycle.NewController[string](lifecycle.ControllerOptions{})
	launched, err := controller.Launch(t.Context(), "a", func(context.Context) (*lifecycle.Host, error) {
		return newHost(t, "a"), nil
	})
	require.NoError(t, err)
	testProbes(t, "controller", controller, launched)
	alone := newHost(t, "b")
	testProbes(t, "host", alone, alone)
}

func testProbes(t *testing.T, name string, exiter lifecycle.Exiter, host *lifecycle.Host) {
	t.Helper()
	ready, live := lifecyclehttp.Ready(exiter), lifecyclehttp.Live(exiter)
	answers := func(readyCode, liveCode int) {
		t.Helper()
		for _, answer := range []*httptest.ResponseRecorder{get(ready, "/readyz"), get(live, "/livez")} {
			require.Equal(t, "no-store", answer.Header().Get("Cache-Control"), name)
			require.NotEmpty(t, answer.Body.String())
		}
		require.Equal(t, readyCode, get(ready, "/readyz").Code, name)
		require.Equal(t, liveCode, get(live, "/livez").Code, name)
	}
	call, err := host.Enter()
	require.NoError(t, err)
	answers(200, 200)

	done := make(chan error, 1)
	go func() { done <- exiter.Exit(context.Background()) }()
	<-exiter.Exiting()
	answers(503, 200) // a graceful exit must not be taken for death
	call.Leave()
	require.NoError(t, <-done)
	answers(503, 503)
}

// Gate.

func TestTheExitAwaitsARequestBehindTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		finish := make(chan struct{})
		gate := lifecyclehttp.Gate(h, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-finish
			_, err := h.Durability().Commit(r.Context(), []byte("late"))
			require.NoError(t, err)
			io.WriteString(w, "committed")
		}))
		answer := make(chan *httptest.ResponseRecorder)
		go func() { answer <- get(gate, "/") }()
		synctest.Wait()
		exited := make(chan error, 1)
		go func() { exited <- h.Exit(context.Background()) }()
		time.Sleep(time.Hour) // of the bubble
		require.Empty(t, exited)
		close(finish)
		require.Equal(t, "committed", (<-answer).Body.String())
		require.NoError(t, <-exited)
	})
}

func TestOnceTheExitHasBegunTheGateAnswers503AndDoesNotCallTheHandler(t *testing.T) {
	h := newHost(t, "orders")
	gate := lifecyclehttp.Gate(h, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("called") }))
	h.Fail(errors.New("a secret"))
	w := get(gate, "/")
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	require.Equal(t, "close", w.Header().Get("Connection"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.NotContains(t, w.Body.String(), "secret")
}

func TestAnExitUnderTheContextOfARequestIsRefusedAsASelfExit(t *testing.T) {
	h := newHost(t, "orders")
	gate := lifecyclehttp.Gate(h, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.ErrorIs(t, h.Exit(r.Context()), lifecycle.ErrSelfExit)
		require.Equal(t, "kept", r.Context().Value("key"))
		require.Equal(t, 1, h.Status().Calls)
	}))
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	//lint:ignore SA1029 any key does
	gate.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithValue(r.Context(), "key", "kept")))
	require.Equal(t, lifecycle.Running, h.Status().State)
}

func TestAPanicOrGoexitBehindTheGateLeavesAndGoesOn(t *testing.T) {
	for _, value := range []any{http.ErrAbortHandler, "boom"} {
		h := newHost(t, "orders")
		gate := lifecyclehttp.Gate(h, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(value) }))
		require.PanicsWithValue(t, value, func() { get(gate, "/") })
		require.Zero(t, h.Status().Calls)
		require.NoError(t, h.Exit(t.Context()))
	}
	h := newHost(t, "orders")
	gate := lifecyclehttp.Gate(h, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { runtime.Goexit() }))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		get(gate, "/")
	}()
	<-ended
	require.NoError(t, h.Exit(t.Context()))
}

func TestAbortHandlerBehindTheGateCutsTheConnection(t *testing.T) {
	h := newHost(t, "orders")
	server := httptest.NewServer(lifecyclehttp.Gate(h, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})))
	defer server.Close()
	answer, err := http.Get(server.URL)
	require.NoError(t, err)
	defer answer.Body.Close()
	_, err = io.ReadAll(answer.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NoError(t, h.Exit(t.Context()))
}

func TestHandlersStreamAndHijackBehindTheGate(t *testing.T) {
	h := newHost(t, "orders")
	mux := http.NewServeMux()
	mux.HandleFunc("/stream", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "first")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-h.Exiting()
		fmt.Fprintln(w, "last")
	})
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		connection, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer connection.Close()
		<-h.Exiting()
		io.WriteString(connection, "bye\n")
	})
	server := httptest.NewServer(lifecyclehttp.Gate(h, mux))
	defer server.Close()

	stream, err := http.Get(server.URL + "/stream")
	require.NoError(t, err)
	defer stream.Body.Close()
	lines := bufio.NewReader(stream.Body)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "first\n", line)

	connection, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	defer connection.Close()
	fmt.Fprintf(connection, "GET /hijack HTTP/1.1\r\nHost: x\r\n\r\n")
	require.Eventually(t, func() bool { return h.Status().Calls == 2 }, 10*time.Second, time.Millisecond)

	require.NoError(t, h.Exit(t.Context()))
	line, err = lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "last\n", line)
	said, err := io.ReadAll(connection)
	require.NoError(t, err)
	require.Equal(t, "bye\n", string(said))

	answer, err := http.Get(server.URL + "/stream")
	require.NoError(t, err)
	answer.Body.Close()
	require.Equal(t, http.StatusServiceUnavailable, answer.StatusCode)
	require.True(t, answer.Close, "the connection stays open")
}

func TestNoRequestIsInsideTheGateWhenTheLogCloses(t *testing.T) {
	for range 50 {
		h := newHost(t, "orders")
		var inside, answered, refused atomic.Int64
		gate := lifecyclehttp.Gate(h, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			inside.Add(1)
			defer inside.Add(-1)
			if _, err := h.Durability().Commit(r.Context(), []byte("x")); err != nil {
				w.WriteHeader(http.StatusInternalServerError)
			}
		}))
		require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "look", func(context.Context) error {
			if n := inside.Load(); n != 0 {
				return fmt.Errorf("%d inside", n)
			}
			return nil
		}))
		var clients sync.WaitGroup
		begun := make(chan struct{}, 8)
		for range 8 {
			clients.Go(func() {
				for i := 0; ; i++ {
					switch code := get(gate, "/").Code; code {
					case http.StatusOK:
						answered.Add(1)
					case http.StatusServiceUnavailable:
						refused.Add(1)
						return
					default:
						t.Errorf("answered %d", code)
						return
					}
					if i == 0 {
						begun <- struct{}{}
					}
				}
			})
		}
		<-begun
		require.NoError(t, h.Exit(t.Context()))
		clients.Wait()
		require.EqualValues(t, answered.Load(), h.Durability().Durable())
		require.EqualValues(t, 8, refused.Load())
	}
}

// Status.

func TestTheJSONIsStatusAndReportUnderStableNames(t *testing.T) {
	h := newHost(t, "orders")
	release := make(chan struct{})
	goStuck(t, h, "view cleanup", release)
	_, err := h.Durability().Commit(t.Context(), []byte("x"))
	require.NoError(t, err)

	status := lifecyclehttp.Status(h)
	s := snapshot(t, status, "")
	require.Equal(t, lifecyclehttp.Counts{Running: 1}, s.Counts)
	require.Len(t, s.Hosts, 1)
	require.Nil(t, s.Hosts[0].Report)
	require.Equal(t, "view cleanup", s.Hosts[0].Status.Tasks[0].Name)
	require.EqualValues(t, 1, s.Hosts[0].Status.Durable)

	h.Fail(errors.New("told to"))
	require.Eventually(t, func() bool { return h.Status().Phase == lifecycle.PhaseAwaitTasks }, 10*time.Second, time.Millisecond)
	status = lifecyclehttp.Status(h) // its snapshots are its own
	s = snapshot(t, status, "")
	require.Equal(t, lifecyclehttp.Counts{Exiting: 1}, s.Counts)
	require.Equal(t, lifecycle.Exiting, s.Hosts[0].Status.State)
	require.Equal(t, "told to", s.Hosts[0].Report.Cause)
	last := s.Hosts[0].Report.Phases[2]
	require.Equal(t, lifecycle.PhaseAwaitTasks, last.Phase)
	require.Contains(t, last.Stragglers[0].Stack, "stuckInFlush")

	close(release)
	require.Error(t, h.Exit(t.Context()))
	s = snapshot(t, lifecyclehttp.Status(h), "")
	require.Equal(t, lifecyclehttp.Counts{Failed: 1}, s.Counts)
	require.Equal(t, "failed", s.Hosts[0].Report.Outcome)

	var raw map[string]any
	require.NoError(t, json.Unmarshal(get(status, "/?format=json").Body.Bytes(), &raw))
	require.ElementsMatch(t, []string{"time", "counts", "hosts"}, keys(raw))
	require.ElementsMatch(t, []string{"running", "exiting", "clean", "failed", "forced"}, keys(raw["counts"].(map[string]any)))
	require.ElementsMatch(t, []string{"status", "report"}, keys(raw["hosts"].([]any)[0].(map[string]any)))
}

func keys(m map[string]any) []string {
	var all []string
	for key := range m {
		all = append(all, key)
	}
	return all
}

func TestThePageShowsTheTrackTheStragglersAndTheirStacks(t *testing.T) {
	h := newHost(t, "orders")
	release := make(chan struct{})
	defer close(release)
	goStuck(t, h, "view cleanup", release)
	require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "listener", func(context.Context) error { return errors.New("port is stuck") }))
	body := get(lifecyclehttp.Status(h), "/").Body.String()
	require.Contains(t, body, "orders: running")
	for _, phase := range []string{"exit module", "cancel tasks", "await tasks", "checkpoint", "close durability", "close log", "release"} {
		require.Contains(t, body, phase)
	}
	h.Fail(nil)
	require.Eventually(t, func() bool { return h.Status().Phase == lifecycle.PhaseAwaitTasks }, 10*time.Second, time.Millisecond)
	body = get(lifecyclehttp.Status(h), "/").Body.String()
	for _, want := range []string{"orders: await tasks", `class="now" aria-current="step"`, "Waiting for 1 task", "view cleanup", "stuckInFlush", "port is stuck"} {
		require.Contains(t, body, want)
	}
	require.Equal(t, 1, strings.Count(body, "port is stuck"), "it stands beside its hook, and only there")

	require.ErrorIs(t, h.ForceExit(t.Context()), lifecycle.ErrForced)
	body = get(lifecyclehttp.Status(h), "/").Body.String()
	for _, want := range []string{"orders: forced", "Left behind", "stuckInFlush"} {
		require.Contains(t, body, want)
	}
}

func TestStatusAnswersInTheFormatThatIsAskedFor(t *testing.T) {
	status := lifecyclehttp.Status(newHost(t, "orders"))
	for accept, want := range map[string]string{
		"":                                  "text/html",
		"*/*":                               "text/html",
		"text/html,application/json;q=0.9":  "text/html",
		"application/json":                  "application/json",
		"application/json, text/html;q=0.5": "application/json",
		"text/html;q=0.5 , Application/JSON; q=1": "application/json",
	} {
		w := get(status, "/", "Accept", accept)
		require.Contains(t, w.Header().Get("Content-Type"), want, accept)
		require.Equal(t, "Accept", w.Header().Get("Vary"))
		require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	}
	require.Contains(t, get(status, "/?format=html", "Accept", "application/json").Header().Get("Content-Type"), "text/html")
	require.Equal(t, http.StatusBadRequest, get(status, "/?format=xml").Code)
}

func TestStatusTakesGetAndHeadAndNothingElse(t *testing.T) {
	status := lifecyclehttp.Status(newHost(t, "orders"))
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		w := httptest.NewRecorder()
		status.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
		require.Equal(t, http.StatusMethodNotAllowed, w.Code)
		require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	}
	w := httptest.NewRecorder()
	status.ServeHTTP(w, httptest.NewRequest(http.MethodHead, "/", nil))
	require.Equal(t, http.StatusOK, w.Code)
	require.Zero(t, w.Body.Len())
	require.NotEqual(t, "0", w.Header().Get("Content-Length"))
}

func TestHostileNamesAreEscapedAndCutShort(t *testing.T) {
	hostile := `</script><script>alert(1)</script>"'` + "`\n\x00${x}{{.}}" + strings.Repeat("é", 5<<10)
	h := newHost(t, hostile)
	require.NoError(t, h.Go(hostile, func(ctx context.Context) error { <-ctx.Done(); return errors.New(hostile) }))
	require.NoError(t, h.OnExit(lifecycle.PhaseRelease, hostile, func(context.Context) error { panic(hostile) }))
	h.Fail(errors.New(hostile))
	<-h.Done()

	status := lifecyclehttp.Status(h)
	body := get(status, "/").Body.String()
	require.Equal(t, 1, strings.Count(body, "<script>"), "the page's own")
	require.NotContains(t, body, "alert(1)</script>")
	require.Contains(t, body, "&lt;script&gt;")
	require.Less(t, len(body), 60<<10)

	s := snapshot(t, status, "&host="+url.QueryEscape(hostile))
	require.Len(t, s.Hosts, 1)
	require.Equal(t, hostile, s.Hosts[0].Status.Host, "JSON has it whole")
	require.Equal(t, http.StatusOK, get(status, "/?host="+url.QueryEscape(hostile)).Code)

	body = get(status, "/?host="+url.QueryEscape("<script>nobody")).Body.String()
	require.NotContains(t, body, "<script>nobody")
	body = get(status, "/?find="+url.QueryEscape(`"><script>nobody`)).Body.String()
	require.NotContains(t, body, "<script>nobody")
}

func TestThePolicyAllowsThePagesOwnScriptAndStyleAndNothingElse(t *testing.T) {
	w := get(lifecyclehttp.Status(newHost(t, "orders")), "/")
	policy := w.Header().Get("Content-Security-Policy")
	body := w.Body.String()
	require.Contains(t, policy, "default-src 'none'")
	require.NotContains(t, policy, "unsafe")
	for _, tag := range []string{"script", "style"} {
		text := regexp.MustCompile(`(?s)<` + tag + `>(.*?)</` + tag + `>`).FindStringSubmatch(body)
		require.NotNil(t, text)
		require.Regexp(t, tag+"-src "+regexp.QuoteMeta(lifecyclehttp.HashSource(text[1]))+"(;|$)", policy)
	}
	require.NotRegexp(t, `(?i)\s(src|style|on[a-z]+)\s*=`, regexp.MustCompile(`(?s)<(script|style)>.*?</(script|style)>`).ReplaceAllString(body, ""))
	require.NotContains(t, body, "http://")
	require.NotContains(t, body, "https://")
}

func TestHoweverManyLookTheHostsAreAskedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		release := make(chan struct{})
		goStuck(t, h, "stuck", release)
		h.Fail(nil)
		synctest.Wait()
		asked := &counting{Host: h}
		status := lifecyclehttp.Status(asked)
		for second := 1; second <= 3; second++ {
			var clients sync.WaitGroup
			for range 100 {
				clients.Go(func() { get(status, "/"); get(status, "/?format=json&host=host") })
			}
			clients.Wait()
			require.EqualValues(t, second, asked.times.Load())
			time.Sleep(time.Second - time.Nanosecond)
			get(status, "/")
			require.EqualValues(t, second, asked.times.Load())
			time.Sleep(time.Nanosecond)
		}
		close(release)
		<-h.Done()
	})
}

// counting is a source of its own making.
type counting struct {
	*lifecycle.Host
	times atomic.Int64
	hold  chan struct{} // nil: do not wait
	panic bool
}

func (c *counting) Hosts() []*lifecycle.Host {
	c.times.Add(1)
	if c.hold != nil {
		<-c.hold
	}
	if c.panic {
		panic("no hosts")
	}
	return []*lifecycle.Host{c.Host}
}

func TestARequestWaitsForASnapshotNoLongerThanItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lifecycle.New(nil, lifecycle.Options{})
		source := &counting{Host: h, hold: make(chan struct{})}
		status := lifecyclehttp.Status(source)
		first := make(chan int, 1)
		go func() { first <- get(status, "/").Code }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w := httptest.NewRecorder()
		status.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil))
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		close(source.hold)
		require.Equal(t, http.StatusOK, <-first)
		require.NoError(t, h.Exit(t.Context()))
	})
}

func TestASourceThatPanicsKeepsNobodyWaiting(t *testing.T) {
	h := newHost(t, "orders")
	source := &counting{Host: h, panic: true}
	status := lifecyclehttp.Status(source)
	require.Panics(t, func() { get(status, "/") })
	source.panic = false
	require.Equal(t, http.StatusOK, get(status, "/").Code)
}

func TestStatusTakesAControllerOfAnyKey(t *testing.T) {
	type key struct{ tenant, shard int }
	controller := lifecycle.NewController[key](lifecycle.ControllerOptions{})
	require.Contains(t, get(lifecyclehttp.Status(controller), "/").Body.String(), "No host is registered.")
	for i := range 3 {
		_, err := controller.Launch(t.Context(), key{1, i}, func(context.Context) (*lifecycle.Host, error) {
			return newHost(t, fmt.Sprintf("tenant-1/%d", i)), nil
		})
		require.NoError(t, err)
	}
	s := snapshot(t, lifecyclehttp.Status(controller), "")
	require.Equal(t, lifecyclehttp.Counts{Running: 3}, s.Counts)
	require.Equal(t, "tenant-1/0", s.Hosts[0].Status.Host)
	require.NoError(t, controller.ExitHost(t.Context(), key{1, 0}))
	s = snapshot(t, lifecyclehttp.Status(controller), "&find=NANT-1")
	require.Len(t, s.Hosts, 2)
	require.Equal(t, http.StatusNotFound, get(lifecyclehttp.Status(controller), "/?host=tenant-1/0").Code)
	require.NoError(t, controller.Exit(t.Context()))
}

func TestAHandlerOfNothingPanicsWhenItIsMade(t *testing.T) {
	h := newHost(t, "orders")
	var noController *lifecycle.Controller[string]
	var noFunc http.HandlerFunc
	for _, nothing := range []lifecyclehttp.Source{nil, (*lifecycle.Host)(nil), noController} {
		require.PanicsWithValue(t, "lifecyclehttp: Status: a nil source", func() { lifecyclehttp.Status(nothing) })
		require.PanicsWithValue(t, "lifecyclehttp: Ready: a nil source", func() { lifecyclehttp.Ready(nothing) })
		require.PanicsWithValue(t, "lifecyclehttp: Live: a nil source", func() { lifecyclehttp.Live(nothing) })
	}
	type bare struct{ lifecyclehttp.Source }
	require.Panics(t, func() { lifecyclehttp.Status(bare{h}) }, "it has no hosts")
	require.PanicsWithValue(t, "lifecyclehttp: Gate: a nil host", func() { lifecyclehttp.Gate(nil, http.NotFoundHandler()) })
	for _, nothing := range []http.Handler{nil, noFunc} {
		require.PanicsWithValue(t, "lifecyclehttp: Gate: a nil handler", func() { lifecyclehttp.Gate(h, nothing) })
	}
}

// many is a source of n hosts, all stuck in their exit from exiting on.
type many struct {
	*lifecycle.Host
	all []*lifecycle.Host
}

func (m *many) Hosts() []*lifecycle.Host { return m.all }

func TestTheReportOfAHostBeyondTheBoundIsThereWhenItIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		source := &many{}
		for i := range 250 {
			h := lifecycle.New(nil, lifecycle.Options{Name: fmt.Sprintf("host-%03d", i)})
			goStuck(t, h, "stuck", release)
			if i >= 10 {
				h.Fail(nil)
			}
			source.all = append(source.all, h)
		}
		source.Host = source.all[0]
		synctest.Wait()
		status := lifecyclehttp.Status(source)
		s := snapshot(t, status, "")
		require.Equal(t, lifecyclehttp.Counts{Running: 10, Exiting: 240}, s.Counts)
		require.Len(t, s.Hosts, 250)
		reports := 0
		for i, h := range s.Hosts {
			require.Equal(t, i < 240, h.Status.State == lifecycle.Exiting, "those that exit come first")
			if h.Report != nil {
				reports++
			}
		}
		require.Equal(t, 100, reports)
		require.Nil(t, s.Hosts[239].Report)

		alone := snapshot(t, status, "&host=host-249")
		require.Len(t, alone.Hosts, 1)
		require.NotNil(t, alone.Hosts[0].Report)
		require.Contains(t, alone.Hosts[0].Report.Phases[2].Stragglers[0].Stack, "stuckInFlush")

		body := get(status, "/").Body.String()
		require.Equal(t, 100, strings.Count(body, "<article"))
		require.Equal(t, 150, strings.Count(body, `<li><a href="?host=`))
		close(release)
		for _, h := range source.all {
			require.NoError(t, h.Exit(t.Context()))
		}
	})
}

func TestThePageOfTenThousandHostsIsBounded(t *testing.T) {
	source := &many{}
	for i := range 10_000 {
		source.all = append(source.all, newHost(t, fmt.Sprintf("host-%05d", i)))
	}
	source.Host = source.all[0]
	source.all[7000].Fail(errors.New("told to"))
	<-source.all[7000].Done()
	body := get(lifecyclehttp.Status(source), "/").Body.Bytes()
	require.Contains(t, string(body), "10,000 hosts")
	require.Contains(t, string(body), "And 8,900 more")
	require.Less(t, bytes.Index(body, []byte("host-07000")), bytes.Index(body, []byte("host-00000")), "the failed one first")
	require.Less(t, len(body), 1<<20)
}
