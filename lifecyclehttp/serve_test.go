package lifecyclehttp_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/seam"
	"github.com/seed080d9131/lifecycle/lifecyclehttp"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

func listen(t testing.TB) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return listener
}

// requireRefused: nobody listens at the listener's address.
func requireRefused(t testing.TB, listener net.Listener) {
	t.Helper()
	connection, err := net.Dial("tcp", listener.Addr().String())
	if err == nil {
		connection.Close()
	}
	require.Error(t, err)
}

func isRefused(listener net.Listener) bool {
	connection, err := net.Dial("tcp", listener.Addr().String())
	if err == nil {
		connection.Close()
	}
	return err != nil
}

func newClient(t testing.TB) *http.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func eventually(t testing.TB, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 10*time.Second, time.Millisecond)
}

// waitsForStream is the handler that streams for as long as its client is there: its
// frame is looked for.
func waitsForStream(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, "first")
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// openStream returns the answer of a handler that has written "first".
func openStream(t *testing.T, client *http.Client, url string) *bufio.Reader {
	t.Helper()
	answer, err := client.Get(url)
	require.NoError(t, err)
	t.Cleanup(func() { answer.Body.Close() })
	lines := bufio.NewReader(answer.Body)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "first\n", line)
	return lines
}

func TestARequestInFlightIsAnsweredAndItsCommitDurable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	log, err := commitlog.Open(dir, commitlog.Options{})
	require.NoError(t, err)
	h := lifecycle.New(log, lifecycle.Options{Name: "orders"})
	finish := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/idle", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/commit", func(w http.ResponseWriter, r *http.Request) {
		<-finish
		offset, err := h.Durability().Commit(r.Context(), []byte("late"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, offset)
	})
	listener := listen(t)
	require.NoError(t, lifecyclehttp.Serve(h, "http", &http.Server{Handler: lifecyclehttp.Gate(h, mux)}, listener))
	url := "http://" + listener.Addr().String()

	// A connection that is kept alive and idle keeps no exit waiting.
	idle, err := newClient(t).Get(url + "/idle")
	require.NoError(t, err)
	idle.Body.Close()

	type response struct {
		text string
		err  error
	}
	answered := make(chan response, 1)
	client := newClient(t)
	go func() {
		answer, err := client.Get(url + "/commit")
		if err != nil {
			answered <- response{err: err}
			return
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		answered <- response{answer.Status + ": " + string(text), err}
	}()
	eventually(t, func() bool { return h.Status().Calls == 1 })

	exited := make(chan error, 1)
	go func() { exited <- h.Exit(context.Background()) }()
	eventually(t, func() bool { return isRefused(listener) })
	require.Empty(t, exited)
	require.Empty(t, answered)
	close(finish)
	require.NoError(t, <-exited)
	got := <-answered
	require.NoError(t, got.err)
	require.Equal(t, "200 OK: 0", got.text)

	log, err = commitlog.Open(dir, commitlog.Options{})
	require.NoError(t, err)
	var all []string
	for entry, err := range log.Read(0) {
		require.NoError(t, err)
		all = append(all, string(entry.Data))
	}
	require.Equal(t, []string{"late"}, all)
	require.NoError(t, log.Close())
}

// network is what a test of a forced exit serves on.
type network struct {
	listener net.Listener
	client   *http.Client
	exact    bool // who obeys is never left behind
}

// onSocketAndInBubble runs the test on a socket, where whoever the machine has not
// let run within ForceGrace is left behind though it would obey; and in a bubble, on
// a network in memory, where that time passes only when all who obey have.
func onSocketAndInBubble(t *testing.T, test func(t *testing.T, n network)) {
	t.Run("socket", func(t *testing.T) { test(t, network{listener: listen(t), client: newClient(t)}) })
	t.Run("bubble", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := pipes{make(chan net.Conn), make(chan struct{}), new(sync.Once)}
			client := newClient(t)
			client.Transport.(*http.Transport).DialContext = p.dial
			test(t, network{p, client, true})
		})
	})
}

// pipes is a listener of net.Pipe.
type pipes struct {
	accepted chan net.Conn
	closed   chan struct{}
	once     *sync.Once
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case connection := <-p.accepted:
		return connection, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p pipes) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

func (p pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.accepted <- there:
		return here, nil
	case <-p.closed:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// requireRefused: nobody listens any more.
func (n network) requireRefused(t *testing.T) {
	t.Helper()
	if p, ok := n.listener.(pipes); ok {
		_, err := p.dial(t.Context(), "", "")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		return
	}
	requireRefused(t, n.listener)
}

func (n network) url() string { return "http://" + n.listener.Addr().String() }

func TestAStreamWithoutEndKeepsTheExitWaitingByNameAndAForcedExitClosesIt(t *testing.T) {
	onSocketAndInBubble(t, func(t *testing.T, n network) {
		h := newHost(t, "orders")
		server := &http.Server{Handler: lifecyclehttp.Gate(h, http.HandlerFunc(waitsForStream))}
		require.NoError(t, lifecyclehttp.Serve(h, "front door", server, n.listener))
		lines := openStream(t, n.client, n.url())

		over, cancel := context.WithCancel(t.Context())
		cancel()
		var waits *lifecycle.ExitError
		eventually(t, func() bool { // the hook is on its way at first
			return errors.As(h.Exit(over), &waits) && len(waits.Stragglers) == 2 &&
				strings.Contains(waits.Stragglers[0].Stack+waits.Stragglers[1].Stack, "net/http.(*Server).Shutdown")
		})
		require.Equal(t, lifecycle.PhaseExitModule, waits.Phase)
		kinds := map[string]lifecycle.Straggler{}
		for _, s := range waits.Stragglers {
			kinds[s.Kind] = s
		}
		require.Equal(t, "front door", kinds["hook"].Name)
		require.Contains(t, kinds["hook"].Stack, "net/http.(*Server).Shutdown")
		require.Equal(t, 1, kinds["call"].Count)

		err := h.ForceExit(t.Context())
		require.ErrorIs(t, err, lifecycle.ErrForced)
		_, readErr := lines.ReadString('\n')
		require.ErrorIs(t, readErr, io.ErrUnexpectedEOF)
		if n.exact {
			require.ErrorContains(t, err, "connections were closed")
			require.Equal(t, "failed", h.Report().Outcome) // it obeyed: nobody was left behind
			for _, phase := range h.Report().Phases {
				require.Empty(t, phase.Abandoned)
			}
		}
	})
}

func TestAForcedExitThatSkipsTheHookClosesTheServer(t *testing.T) {
	onSocketAndInBubble(t, func(t *testing.T, n network) {
		h := newHost(t, "orders")
		require.NoError(t, lifecyclehttp.Serve(h, "http", &http.Server{Handler: lifecyclehttp.Gate(h, http.HandlerFunc(waitsForStream))}, n.listener))
		lines := openStream(t, n.client, n.url())
		require.ErrorIs(t, h.ForceExit(t.Context()), lifecycle.ErrForced)
		_, err := lines.ReadString('\n')
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		n.requireRefused(t) // the server closes its listeners before its connections
		phases := h.Report().Phases
		require.True(t, phases[0].Hooks[0].Skipped)
		if n.exact {
			for _, phase := range phases {
				require.Empty(t, phase.Abandoned)
			}
		}
	})
}

func TestAHandlerThatIgnoresItsCancellationIsLeftBehindByName(t *testing.T) {
	onSocketAndInBubble(t, func(t *testing.T, n network) {
		h := newHost(t, "orders")
		begun, release := make(chan struct{}), make(chan struct{})
		defer close(release)
		server := &http.Server{Handler: lifecyclehttp.Gate(h, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			close(begun)
			<-release
		}))}
		require.NoError(t, lifecyclehttp.Serve(h, "http", server, n.listener))
		go func() {
			if answer, err := n.client.Get(n.url()); err == nil {
				answer.Body.Close()
			}
		}()
		<-begun
		var forced *lifecycle.ExitError
		require.ErrorAs(t, h.ForceExit(t.Context()), &forced)
		var kinds []string
		for _, s := range forced.Stragglers {
			kinds = append(kinds, s.Kind)
		}
		require.Contains(t, kinds, "call")
		if n.exact {
			require.Len(t, kinds, 1)
		}
	})
}

func TestAServerThatStopsServingByItselfFailsItsHost(t *testing.T) {
	for name, stop := range map[string]func(*http.Server, net.Listener){
		"the listener fails": func(_ *http.Server, listener net.Listener) { listener.Close() },
		"closed elsewhere":   func(server *http.Server, _ net.Listener) { server.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "orders")
			listener := listen(t)
			server := &http.Server{}
			require.NoError(t, lifecyclehttp.Serve(h, "http", server, listener))
			stop(server, listener)
			<-h.Done()
			err := h.Exit(t.Context())
			var failed *lifecycle.TaskError
			require.ErrorAs(t, err, &failed)
			require.Equal(t, "http", failed.Task)
			require.ErrorContains(t, err, "serve "+listener.Addr().String())
			if name == "closed elsewhere" {
				require.ErrorIs(t, err, http.ErrServerClosed)
			} else {
				require.ErrorIs(t, err, net.ErrClosed)
			}
		})
	}
}

func TestWhatServeRefusesIsNotServedAndItsListenerClosed(t *testing.T) {
	running, exited := newHost(t, "running"), newHost(t, "exited")
	require.NoError(t, exited.Exit(t.Context()))
	for name, test := range map[string]struct {
		host   *lifecycle.Host
		name   string
		server *http.Server
		is     error
	}{
		"no host":       {nil, "http", &http.Server{}, lifecycle.ErrInvalid},
		"no server":     {running, "http", nil, lifecycle.ErrInvalid},
		"no name":       {running, "", &http.Server{}, lifecycle.ErrInvalid},
		"a host's end":  {exited, "http", &http.Server{}, lifecycle.ErrExiting},
		"no name, late": {exited, "", &http.Server{}, lifecycle.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			listener := listen(t)
			require.ErrorIs(t, lifecyclehttp.Serve(test.host, test.name, test.server, listener), test.is)
			requireRefused(t, listener)
			listener = listen(t)
			require.ErrorIs(t, lifecyclehttp.ServeTLS(test.host, test.name, test.server, listener, "", ""), test.is)
			requireRefused(t, listener)
		})
	}
	for _, nothing := range []net.Listener{nil, (*net.TCPListener)(nil)} {
		require.ErrorIs(t, lifecyclehttp.Serve(running, "http", &http.Server{}, nothing), lifecycle.ErrInvalid)
		require.ErrorIs(t, lifecyclehttp.Serve(nil, "", nil, nothing), lifecycle.ErrInvalid)
	}
	require.Panics(t, func() { lifecyclehttp.Shutdown(nil) })
	require.NoError(t, running.Exit(t.Context()))
	require.Empty(t, running.Report().Phases[0].Hooks, "a hook of what was refused")
}

func TestAnExitThatBeginsBetweenTheHookAndTheTaskClosesTheListener(t *testing.T) {
	var h *lifecycle.Host
	remove := seam.Install(func(host any) seam.Watch {
		return func(step seam.Step, name string) {
			if step == seam.Go && name == "caught between" {
				h.Fail(nil)
			}
		}
	})
	h = lifecycle.New(nil, lifecycle.Options{})
	remove()
	listener := listen(t)
	require.ErrorIs(t, lifecyclehttp.Serve(h, "caught between", &http.Server{}, listener), lifecycle.ErrExiting)
	requireRefused(t, listener)
	require.NoError(t, h.Exit(t.Context()))
	require.Len(t, h.Report().Phases[0].Hooks, 1)
}

func TestWhateverMomentAnExitBeginsAtNothingIsLeftOfTheServer(t *testing.T) {
	type world struct {
		host     *lifecycle.Host
		listener net.Listener
	}
	lifecycletest.ExitEverywhere(t,
		func(t testing.TB) (*world, *lifecycle.Host, error) {
			h := lifecycle.New(&lifecycletest.Log{}, lifecycle.Options{})
			return &world{h, listen(t)}, h, nil
		},
		func(t testing.TB, w *world) error {
			server := &http.Server{Handler: lifecyclehttp.Gate(w.host, http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
				if _, err := w.host.Durability().Commit(r.Context(), []byte("tx")); err != nil {
					http.Error(out, err.Error(), http.StatusInternalServerError)
				}
			}))}
			if err := lifecyclehttp.Serve(w.host, "http", server, w.listener); err != nil {
				requireRefused(t, w.listener)
				return err
			}
			// One connection a request: a request that meets an idle connection
			// while that is closed is another story.
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			for range 3 {
				answer, err := client.Get("http://" + w.listener.Addr().String())
				if err != nil {
					return nil // nobody listens any more
				}
				answer.Body.Close()
				if answer.StatusCode == http.StatusInternalServerError {
					return errors.New("a request that was admitted did not commit")
				}
			}
			return nil
		}, lifecycletest.RealTime())
}

func TestAnExitThatAHandlerBeginsAwaitsItsAnswer(t *testing.T) {
	h := newHost(t, "orders")
	listener := listen(t)
	server := &http.Server{Handler: lifecyclehttp.Gate(h, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h.Exit(r.Context()); !errors.Is(err, lifecycle.ErrSelfExit) {
			t.Error("an exit that waits for its caller:", err)
		}
		h.Fail(nil)
		eventually(t, func() bool { return isRefused(listener) }) // the hook is at work
		io.WriteString(w, "begun")
	}))}
	require.NoError(t, lifecyclehttp.Serve(h, "http", server, listener))
	answer, err := newClient(t).Get("http://" + listener.Addr().String())
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, "begun", string(text))
	require.NoError(t, h.Exit(t.Context()))
}

func TestHooksAreOrderedAroundTheServer(t *testing.T) {
	h := newHost(t, "orders")
	listener := listen(t)
	var seen []string
	look := func(name string) func(context.Context) error {
		return func(context.Context) error {
			seen = append(seen, fmt.Sprintf("%s: refused %t", name, isRefused(listener)))
			return nil
		}
	}
	require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "before", look("before")))
	require.NoError(t, lifecyclehttp.Serve(h, "http", &http.Server{Handler: http.NotFoundHandler()}, listener))
	require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "after", func(ctx context.Context) error {
		answer, err := newClient(t).Get("http://" + listener.Addr().String())
		if err != nil {
			return err
		}
		answer.Body.Close()
		seen = append(seen, "after: "+answer.Status)
		return nil
	}))
	require.NoError(t, h.Exit(t.Context()))
	require.Equal(t, []string{"after: 404 Not Found", "before: refused true"}, seen)
}

func TestAServerOnTwoListenersIsServedTwiceAndEndedOnce(t *testing.T) {
	h := newHost(t, "orders")
	server := &http.Server{Handler: lifecyclehttp.Gate(h, http.NotFoundHandler())}
	listeners := []net.Listener{listen(t), listen(t)}
	for _, listener := range listeners {
		require.NoError(t, lifecyclehttp.Serve(h, "http", server, listener))
	}
	for _, listener := range listeners {
		answer, err := newClient(t).Get("http://" + listener.Addr().String())
		require.NoError(t, err)
		answer.Body.Close()
		require.Equal(t, http.StatusNotFound, answer.StatusCode)
	}
	require.NoError(t, h.Exit(t.Context()))
	for _, listener := range listeners {
		requireRefused(t, listener)
	}
}

func TestAHijackedConnectionThatIsATaskIsAwaited(t *testing.T) {
	h := newHost(t, "orders")
	listener := listen(t)
	server := &http.Server{Handler: lifecyclehttp.Gate(h, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		connection, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		if h.Go("socket", func(ctx context.Context) error {
			defer connection.Close()
			<-ctx.Done()
			_, err := io.WriteString(connection, "bye")
			return err
		}) != nil {
			connection.Close()
		}
	}))}
	require.NoError(t, lifecyclehttp.Serve(h, "http", server, listener))
	connection, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer connection.Close()
	fmt.Fprintf(connection, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	eventually(t, func() bool {
		return slices.ContainsFunc(h.Status().Tasks, func(s lifecycle.TaskStatus) bool { return s.Name == "socket" })
	})
	require.NoError(t, h.Exit(t.Context()))
	said, err := io.ReadAll(connection)
	require.NoError(t, err)
	require.Equal(t, "bye", string(said))
}

func TestAHandlerThatPanicsOrCallsGoexitDoesNotKeepTheExitWaiting(t *testing.T) {
	h := newHost(t, "orders")
	mux := http.NewServeMux()
	mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/goexit", func(http.ResponseWriter, *http.Request) { runtime.Goexit() })
	listener := listen(t)
	require.NoError(t, lifecyclehttp.Serve(h, "http", &http.Server{Handler: lifecyclehttp.Gate(h, mux)}, listener))
	for _, path := range []string{"/panic", "/goexit"} {
		_, err := newClient(t).Get("http://" + listener.Addr().String() + path)
		require.ErrorIs(t, err, io.EOF)
	}
	require.NoError(t, h.Exit(t.Context()))
}

func TestTLSIsServedAndABadCertificateFailsTheHost(t *testing.T) {
	borrowed := httptest.NewTLSServer(nil)
	defer borrowed.Close()
	h := newHost(t, "orders")
	listener := listen(t)
	server := &http.Server{
		Handler:   lifecyclehttp.Gate(h, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })),
		TLSConfig: &tls.Config{Certificates: borrowed.TLS.Certificates},
	}
	require.NoError(t, lifecyclehttp.ServeTLS(h, "https", server, listener, "", ""))
	transport := borrowed.Client().Transport.(*http.Transport).Clone()
	transport.ForceAttemptHTTP2 = true
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport}).Get("https://" + listener.Addr().String())
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, "HTTP/2.0", string(text))
	require.NoError(t, h.Exit(t.Context()))
	requireRefused(t, listener)

	h = newHost(t, "orders")
	listener = listen(t)
	require.NoError(t, lifecyclehttp.ServeTLS(h, "https", &http.Server{}, listener, "no such file", "no such file"))
	<-h.Done()
	require.ErrorContains(t, h.Exit(t.Context()), "no such file")
	requireRefused(t, listener)
}
