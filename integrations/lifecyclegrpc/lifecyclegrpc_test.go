package lifecyclegrpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/integrations/lifecyclegrpc"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

// orders is a service whose methods do what the test says.
type orders struct {
	testpb.UnimplementedTestServiceServer
	unary  func(ctx context.Context, body []byte) error
	stream func(stream testpb.TestService_FullDuplexCallServer) error
}

func (o *orders) UnaryCall(ctx context.Context, request *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{}, o.unary(ctx, request.GetPayload().GetBody())
}

func (o *orders) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	return o.stream(stream)
}

// echo answers until the client has ended the stream or gone away.
func echo(stream testpb.TestService_FullDuplexCallServer) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: request.Payload}); err != nil {
			return err
		}
	}
}

func payload(text string) *testpb.Payload { return &testpb.Payload{Body: []byte(text)} }

func put(ctx context.Context, client testpb.TestServiceClient, text string) error {
	_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{Payload: payload(text)})
	return err
}

func newHost(t *testing.T) *lifecycle.Host {
	t.Helper()
	h := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
	t.Cleanup(func() { _ = h.ForceExit(context.Background()) })
	return h
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return listener
}

func isRefused(listener net.Listener) bool {
	connection, err := net.Dial("tcp", listener.Addr().String())
	if err == nil {
		connection.Close()
	}
	return err != nil
}

func dial(t testing.TB, listener net.Listener, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient(listener.Addr().String(), append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	t.Cleanup(func() { connection.Close() })
	return connection
}

// serve is a server of o as the package's documentation has it.
func serve(t *testing.T, h *lifecycle.Host, o *orders, opts ...grpc.ServerOption) (testpb.TestServiceClient, *grpc.ClientConn, net.Listener) {
	t.Helper()
	server := grpc.NewServer(append(opts, lifecyclegrpc.Gate(h)...)...)
	testpb.RegisterTestServiceServer(server, o)
	healthpb.RegisterHealthServer(server, lifecyclegrpc.NewHealth(h))
	listener := listen(t)
	require.NoError(t, lifecyclegrpc.Serve(h, "grpc", server, listener))
	connection := dial(t, listener)
	return testpb.NewTestServiceClient(connection), connection, listener
}

// network is what a test of a forced exit serves on.
type network struct {
	listener net.Listener
	dial     func(ctx context.Context) (net.Conn, error)
	exact    bool // who obeys is never left behind
}

// onSocketAndInBubble runs the test on a socket, where whoever the machine has not
// let run within ForceGrace is left behind though it would obey; and in a bubble, on
// a network in memory, where that time passes only when all who obey have.
func onSocketAndInBubble(t *testing.T, test func(t *testing.T, newNetwork func() network)) {
	t.Run("socket", func(t *testing.T) {
		test(t, func() network {
			listener := listen(t)
			return network{listener: listener, dial: func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
			}}
		})
	})
	t.Run("bubble", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			test(t, func() network {
				listener := bufconn.Listen(1 << 16)
				return network{listener, listener.DialContext, true}
			})
		})
	})
}

func (n network) isRefused(t *testing.T) bool {
	connection, err := n.dial(t.Context())
	if err == nil {
		connection.Close()
	}
	return err != nil
}

// serve is a server of o, and a client of it.
func (n network) serve(t *testing.T, h *lifecycle.Host, o *orders) (testpb.TestServiceClient, *grpc.ClientConn) {
	t.Helper()
	server := grpc.NewServer(lifecyclegrpc.Gate(h)...)
	testpb.RegisterTestServiceServer(server, o)
	require.NoError(t, lifecyclegrpc.Serve(h, "grpc", server, n.listener))
	connection, err := grpc.NewClient("passthrough:network", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return n.dial(ctx) }))
	require.NoError(t, err)
	t.Cleanup(func() { connection.Close() })
	return testpb.NewTestServiceClient(connection), connection
}

func eventually(t testing.TB, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 10*time.Second, time.Millisecond)
}

func done(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestUnaryCallsInFlightAreAwaitedAndTheirCommitsDurable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	log, err := commitlog.Open(dir, commitlog.Options{})
	require.NoError(t, err)
	h := lifecycle.New(log, lifecycle.Options{Name: "orders"})
	finish := make(chan struct{})
	client, _, listener := serve(t, h, &orders{unary: func(ctx context.Context, body []byte) error {
		<-finish
		_, err := h.Durability().Commit(ctx, body)
		return err
	}})
	const calls = 10
	answered := make(chan error, calls)
	for i := range calls {
		go func() { answered <- put(context.Background(), client, fmt.Sprint("order ", i)) }()
	}
	eventually(t, func() bool { return h.Status().Calls == calls })

	exited := make(chan error, 1)
	go func() { exited <- h.Exit(context.Background()) }()
	eventually(t, func() bool { return isRefused(listener) })
	require.Empty(t, exited)
	require.Empty(t, answered)
	require.Equal(t, codes.Unavailable, status.Code(put(t.Context(), client, "too late")))
	close(finish)
	require.NoError(t, <-exited)
	for range calls {
		require.NoError(t, <-answered)
	}

	log, err = commitlog.Open(dir, commitlog.Options{})
	require.NoError(t, err)
	all := map[string]bool{}
	for entry, err := range log.Read(0) {
		require.NoError(t, err)
		all[string(entry.Data)] = true
	}
	require.NoError(t, log.Close())
	require.Len(t, all, calls)
	require.NotContains(t, all, "too late")
}

func TestAStreamThatIsOpenKeepsTheExitWaitingByNameAndAForcedExitEndsIt(t *testing.T) {
	onSocketAndInBubble(t, func(t *testing.T, newNetwork func() network) {
		h := newHost(t)
		var ended error
		n := newNetwork()
		client, _ := n.serve(t, h, &orders{stream: func(stream testpb.TestService_FullDuplexCallServer) error {
			ended = echo(stream)
			return ended
		}})
		stream, err := client.FullDuplexCall(t.Context())
		require.NoError(t, err)
		echoes := func(text string) {
			t.Helper()
			require.NoError(t, stream.Send(&testpb.StreamingOutputCallRequest{Payload: payload(text)}))
			answer, err := stream.Recv()
			require.NoError(t, err)
			require.Equal(t, text, string(answer.Payload.Body))
		}
		echoes("before")

		var waits *lifecycle.ExitError
		kinds := map[string]lifecycle.Straggler{}
		eventually(t, func() bool { // the hook is on its way at first
			clear(kinds)
			if errors.As(h.Exit(done(t)), &waits) {
				for _, s := range waits.Stragglers {
					kinds[s.Kind] = s
				}
			}
			return strings.Contains(kinds["hook"].Stack, "(*Server).GracefulStop")
		})
		require.Equal(t, lifecycle.PhaseExitModule, waits.Phase)
		require.Equal(t, "grpc", kinds["hook"].Name)
		require.Equal(t, 1, kinds["call"].Count)
		echoes("during the exit")

		err = h.ForceExit(t.Context())
		require.ErrorIs(t, err, lifecycle.ErrForced)
		_, told := stream.Recv()
		require.Equal(t, codes.Unavailable, status.Code(told))
		require.False(t, lifecyclegrpc.Refused(told), "an outcome that is unknown is taken for a refusal")
		if !n.exact {
			return
		}
		require.ErrorContains(t, err, "connections were closed")
		require.Error(t, ended)
		require.Equal(t, "failed", h.Report().Outcome) // nobody was left behind
		for _, phase := range h.Report().Phases {
			require.Empty(t, phase.Abandoned)
		}
	})
}

func TestAStreamThatItsClientEndsLetsTheExitEndClean(t *testing.T) {
	h := newHost(t)
	client, _, listener := serve(t, h, &orders{stream: echo})
	stream, err := client.FullDuplexCall(t.Context())
	require.NoError(t, err)
	eventually(t, func() bool { return h.Status().Calls == 1 })
	h.Fail(nil)
	eventually(t, func() bool { return isRefused(listener) })
	require.Equal(t, lifecycle.Exiting, h.Status().State)
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, h.Exit(t.Context()))
}

func TestAStreamThatWatchesExitingEndsWithTheExit(t *testing.T) {
	h := newHost(t)
	client, _, _ := serve(t, h, &orders{stream: func(stream testpb.TestService_FullDuplexCallServer) error {
		select {
		case <-h.Exiting():
			return status.Error(codes.Unavailable, "exiting")
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}})
	stream, err := client.FullDuplexCall(t.Context())
	require.NoError(t, err)
	eventually(t, func() bool { return h.Status().Calls == 1 })
	require.NoError(t, h.Exit(t.Context()))
	_, err = stream.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
}

func TestAForcedExitThatSkipsTheHookStopsTheServer(t *testing.T) {
	onSocketAndInBubble(t, func(t *testing.T, newNetwork func() network) {
		h := newHost(t)
		n := newNetwork()
		client, _ := n.serve(t, h, &orders{stream: echo})
		stream, err := client.FullDuplexCall(t.Context())
		require.NoError(t, err)
		eventually(t, func() bool { return h.Status().Calls == 1 })
		require.ErrorIs(t, h.ForceExit(t.Context()), lifecycle.ErrForced)
		_, err = stream.Recv()
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.True(t, n.isRefused(t)) // the server closes its listeners before its connections
		phases := h.Report().Phases
		require.True(t, phases[0].Hooks[0].Skipped)
		if !n.exact {
			return
		}
		for _, phase := range phases {
			require.Empty(t, phase.Abandoned)
		}
	})
}

// As a server of many hosts uses it, whose Serve is no host's task.
func TestTheHookAloneStopsAServerWhenItsContextEnds(t *testing.T) {
	h := newHost(t)
	server := grpc.NewServer(lifecyclegrpc.Gate(h)...)
	testpb.RegisterTestServiceServer(server, &orders{stream: echo})
	listener := listen(t)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	stream, err := testpb.NewTestServiceClient(dial(t, listener)).FullDuplexCall(t.Context())
	require.NoError(t, err)
	eventually(t, func() bool { return h.Status().Calls == 1 })

	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- lifecyclegrpc.GracefulStop(server)(ctx) }()
	eventually(t, func() bool { return isRefused(listener) })
	require.Empty(t, stopped)
	patience := errors.New("patience is over")
	cancel(patience)
	require.ErrorIs(t, <-stopped, patience)
	require.NoError(t, <-served)
	_, err = stream.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.Zero(t, h.Status().Calls)
}

// Its client is gone, and it does not notice: GracefulStop still waits for it.
func TestAHandlerThatIgnoresItsContextIsLeftBehindByName(t *testing.T) {
	onSocketAndInBubble(t, func(t *testing.T, newNetwork func() network) {
		h := newHost(t)
		release := make(chan struct{})
		defer close(release)
		n := newNetwork()
		client, connection := n.serve(t, h, &orders{unary: func(context.Context, []byte) error {
			<-release
			return nil
		}})
		go put(context.Background(), client, "deaf")
		eventually(t, func() bool { return h.Status().Calls == 1 })
		h.Fail(nil)
		eventually(t, func() bool { return n.isRefused(t) })
		connection.Close()
		var forced *lifecycle.ExitError
		require.ErrorAs(t, h.ForceExit(t.Context()), &forced)
		require.ErrorIs(t, forced, lifecycle.ErrForced)
		kinds := map[string]string{}
		for _, s := range forced.Stragglers {
			kinds[s.Kind] = s.Name
		}
		if !n.exact {
			delete(kinds, "task")
		}
		require.Equal(t, map[string]string{"hook": "grpc", "call": "Enter"}, kinds)
	})
}

func TestOnceTheExitHasBegunCallsAreRefusedAndNothingIsDone(t *testing.T) {
	h := newHost(t)
	client, _, _ := serve(t, h, &orders{
		unary:  func(context.Context, []byte) error { return nil },
		stream: func(testpb.TestService_FullDuplexCallServer) error { t.Error("called"); return nil },
	})
	require.NoError(t, put(t.Context(), client, "connects"))
	// Another hook, which runs before the server's: the server still listens.
	var unary, streaming error
	require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "client", func(context.Context) error {
		unary = put(t.Context(), client, "too late")
		stream, err := client.FullDuplexCall(t.Context())
		if err == nil {
			_, err = stream.Recv()
		}
		streaming = err
		return nil
	}))
	h.Fail(errors.New("a secret"))
	require.Error(t, h.Exit(t.Context()))
	for _, err := range []error{unary, streaming} {
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.True(t, lifecyclegrpc.Refused(err))
		require.True(t, lifecyclegrpc.Refused(fmt.Errorf("put: %w", err)))
		require.NotContains(t, err.Error(), "secret")
	}
	require.False(t, lifecyclegrpc.Refused(nil))
	require.False(t, lifecyclegrpc.Refused(status.Error(codes.Unavailable, "connection reset")))
}

func TestARefusalThatAHandlerPassesOnIsNoneOfItsOwn(t *testing.T) {
	down := newHost(t)
	gated := grpc.NewServer(lifecyclegrpc.Gate(down)...)
	testpb.RegisterTestServiceServer(gated, &orders{})
	listener := listen(t)
	served := make(chan error, 1)
	go func() { served <- gated.Serve(listener) }() // it goes on when its host has exited
	t.Cleanup(func() { gated.Stop(); require.NoError(t, <-served) })
	further := testpb.NewTestServiceClient(dial(t, listener))
	require.NoError(t, down.Exit(t.Context()))

	h := newHost(t)
	commitThenCall := func(ctx context.Context) error {
		if _, err := h.Durability().Commit(ctx, []byte("debit")); err != nil {
			return err
		}
		err := put(ctx, further, "")
		require.True(t, lifecyclegrpc.Refused(err))
		return fmt.Errorf("ledger: %w", err)
	}
	client, _, _ := serve(t, h, &orders{
		unary:  func(ctx context.Context, _ []byte) error { return commitThenCall(ctx) },
		stream: func(stream testpb.TestService_FullDuplexCallServer) error { return commitThenCall(stream.Context()) },
	})
	unary := put(t.Context(), client, "")
	stream, err := client.FullDuplexCall(t.Context())
	require.NoError(t, err)
	_, streaming := stream.Recv()
	for _, err := range []error{unary, streaming} {
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.ErrorContains(t, err, "another server, which was called, refused: ledger: ")
		require.False(t, lifecyclegrpc.Refused(err), "what was committed is taken for refused")
	}
	require.EqualValues(t, 2, h.Durability().Durable())
	require.NoError(t, h.Exit(t.Context()))
}

// rawly connects to listener and writes text.
func rawly(t *testing.T, listener net.Listener, text string) net.Conn {
	t.Helper()
	return writes(t, func(context.Context) (net.Conn, error) { return net.Dial("tcp", listener.Addr().String()) }, text)
}

func writes(t *testing.T, dial func(ctx context.Context) (net.Conn, error), text string) net.Conn {
	t.Helper()
	connection, err := dial(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { connection.Close() })
	_, err = io.WriteString(connection, text)
	require.NoError(t, err)
	return connection
}

// greeted waits for the server's SETTINGS, which come before it reads a byte.
func greeted(t *testing.T, connection net.Conn) net.Conn {
	t.Helper()
	_, err := io.ReadFull(connection, make([]byte, 9))
	require.NoError(t, err)
	return connection
}

// heard is a listener whose connections tell when they are read from again, and so
// what was read before has been taken in.
type heard struct {
	net.Listener
	again chan struct{}
}

func (l heard) Accept() (net.Conn, error) {
	connection, err := l.Listener.Accept()
	return &heardConn{Conn: connection, again: l.again}, err
}

type heardConn struct {
	net.Conn
	reads int
	again chan struct{}
}

func (c *heardConn) Read(p []byte) (int, error) {
	if c.reads++; c.reads == 2 {
		close(c.again)
	}
	return c.Conn.Read(p)
}

func requireClosed(t *testing.T, connection net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, connection) // nil: EOF
	if err != nil {
		require.ErrorContains(t, err, "reset")
	}
}

const never = time.Hour // that a test lets a handshake take: who waits for it fails

func TestAConnectionThatSaysNothingKeepsNoExitWaiting(t *testing.T) {
	h := newHost(t)
	server := grpc.NewServer(append(lifecyclegrpc.Gate(h), grpc.ConnectionTimeout(never))...)
	testpb.RegisterTestServiceServer(server, &orders{unary: func(context.Context, []byte) error { return nil }})
	var silent []net.Conn
	for range 2 { // the hook of one ends the other's, too
		listener := listen(t)
		require.NoError(t, lifecyclegrpc.Serve(h, "grpc", server, listener))
		silent = append(silent, greeted(t, rawly(t, listener, "")), rawly(t, listener, ""))
		require.NoError(t, put(t.Context(), testpb.NewTestServiceClient(dial(t, listener)), ""))
	}
	require.NoError(t, h.Exit(t.Context()))
	for _, connection := range silent {
		requireClosed(t, connection)
	}
}

func TestAForcedExitClosesWhatIsInItsHandshake(t *testing.T) {
	onSocketAndInBubble(t, func(t *testing.T, newNetwork func() network) {
		h := newHost(t)
		server := grpc.NewServer(append(lifecyclegrpc.Gate(h), grpc.ConnectionTimeout(never))...)
		var half []net.Conn
		exact := false
		for range 2 {
			n := newNetwork()
			exact = n.exact
			listener := heard{n.listener, make(chan struct{})}
			require.NoError(t, lifecyclegrpc.Serve(h, "grpc", server, listener))
			half = append(half, writes(t, n.dial, "PRI * HTTP/2.0\r\n"))
			<-listener.again
		}
		require.ErrorIs(t, h.ForceExit(t.Context()), lifecycle.ErrForced)
		for _, connection := range half {
			requireClosed(t, connection)
		}
		if !exact {
			return
		}
		for _, phase := range h.Report().Phases {
			require.Empty(t, phase.Abandoned)
		}
	})
}

// Credentials that look for the peer's process, say, need the connection itself.
func TestCredentialsFindTheConnectionThatWasAccepted(t *testing.T) {
	h := newHost(t)
	seen := &accepted{insecure.NewCredentials(), make(chan net.Conn, 1)}
	client, _, listener := serve(t, h, &orders{unary: func(context.Context, []byte) error { return nil }}, grpc.Creds(seen))
	require.NoError(t, put(t.Context(), client, ""))
	connection := <-seen.connections
	raw, err := connection.(syscall.Conn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(uintptr) {}))
	inner := connection.(interface{ NetConn() net.Conn }).NetConn()
	require.IsType(t, &net.TCPConn{}, inner)
	require.Equal(t, listener.Addr(), inner.LocalAddr())
	require.NoError(t, h.Exit(t.Context()))
}

type accepted struct {
	credentials.TransportCredentials
	connections chan net.Conn
}

func (a *accepted) ServerHandshake(connection net.Conn) (net.Conn, credentials.AuthInfo, error) {
	a.connections <- connection
	return a.TransportCredentials.ServerHandshake(connection)
}

func TestAHandshakeThatDoesNotEndIsWaitedForAsLongAsTheServersOptionSays(t *testing.T) {
	h := newHost(t)
	server := grpc.NewServer(append(lifecyclegrpc.Gate(h), grpc.ConnectionTimeout(50*time.Millisecond))...)
	listener := heard{listen(t), make(chan struct{})}
	require.NoError(t, lifecyclegrpc.Serve(h, "grpc", server, listener))
	half := rawly(t, listener, "PRI * HTTP/2.0\r\n")
	<-listener.again
	require.NoError(t, h.Exit(t.Context()))
	requireClosed(t, half)
}

func TestAClientWithARetryPolicyGoesToAnotherServer(t *testing.T) {
	leaving, staying := newHost(t), newHost(t)
	served := func(h *lifecycle.Host) (net.Listener, *atomic.Int64) {
		n := new(atomic.Int64)
		server := grpc.NewServer(lifecyclegrpc.Gate(h)...)
		testpb.RegisterTestServiceServer(server, &orders{unary: func(context.Context, []byte) error { n.Add(1); return nil }})
		listener := listen(t)
		require.NoError(t, lifecyclegrpc.Serve(h, "grpc", server, listener))
		return listener, n
	}
	// Both behind one address, of which connections go to the first while it listens.
	first, _ := served(leaving)
	second, n := served(staying)
	dialer := func(ctx context.Context, _ string) (net.Conn, error) {
		connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", first.Addr().String())
		if err != nil {
			connection, err = (&net.Dialer{}).DialContext(ctx, "tcp", second.Addr().String())
		}
		return connection, err
	}
	client := testpb.NewTestServiceClient(dial(t, first, grpc.WithContextDialer(dialer), grpc.WithDefaultServiceConfig(`{"methodConfig": [{
		"name": [{}], "waitForReady": true,
		"retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.01s", "maxBackoff": "0.1s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}
	}]}`)))
	require.NoError(t, put(t.Context(), client, "first"))
	refused := make(chan error, 1)
	require.NoError(t, leaving.OnExit(lifecycle.PhaseExitModule, "client", func(context.Context) error {
		go func() { refused <- put(context.Background(), client, "second") }()
		return nil
	}))
	require.NoError(t, leaving.Exit(t.Context()))
	require.NoError(t, <-refused)
	require.EqualValues(t, 1, n.Load())
}

func TestAnExitUnderTheContextOfACallIsRefusedAsASelfExit(t *testing.T) {
	h := newHost(t)
	selfExits := make(chan error, 2)
	client, _, _ := serve(t, h, &orders{
		unary: func(ctx context.Context, _ []byte) error {
			selfExits <- h.Exit(ctx)
			h.Fail(nil)
			return nil
		},
		stream: func(stream testpb.TestService_FullDuplexCallServer) error {
			selfExits <- h.Exit(stream.Context())
			return nil
		},
	})
	stream, err := client.FullDuplexCall(t.Context())
	require.NoError(t, err)
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, put(t.Context(), client, "the last"))
	require.NoError(t, h.Exit(t.Context()))
	for range 2 {
		require.ErrorIs(t, <-selfExits, lifecycle.ErrSelfExit)
	}
}

func TestAPanicBehindTheGateLeavesAndGoesOnToWhoRecoversIt(t *testing.T) {
	h := newHost(t)
	recovers := grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
		defer func() {
			if v := recover(); v != nil {
				err = status.Errorf(codes.Internal, "%v, %d calls", v, h.Status().Calls)
			}
		}()
		return handler(ctx, request)
	})
	client, _, _ := serve(t, h, &orders{unary: func(context.Context, []byte) error { panic("boom") }}, recovers)
	err := put(t.Context(), client, "")
	require.Equal(t, codes.Internal, status.Code(err))
	require.ErrorContains(t, err, "boom, 0 calls")
	require.NoError(t, h.Exit(t.Context()))
}

func TestAHandlerThatCallsGoexitHasLeftAndTheExitEndsWhenItsClientGoes(t *testing.T) {
	h := newHost(t)
	var entered atomic.Int64
	goexit := func() error {
		entered.Add(1)
		runtime.Goexit()
		return nil
	}
	client, _, _ := serve(t, h, &orders{
		unary:  func(context.Context, []byte) error { return goexit() },
		stream: func(testpb.TestService_FullDuplexCallServer) error { return goexit() },
	})
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 2)
	go func() { answered <- put(ctx, client, "") }()
	go func() {
		stream, err := client.FullDuplexCall(ctx)
		if err == nil {
			_, err = stream.Recv()
		}
		answered <- err
	}()
	eventually(t, func() bool { return entered.Load() == 2 })
	// What the exit waits for is the hook alone: the calls have left.
	eventually(t, func() bool {
		var waits *lifecycle.ExitError
		return errors.As(h.Exit(done(t)), &waits) && len(waits.Stragglers) == 1 && waits.Stragglers[0].Kind == "hook"
	})
	cancel()
	require.NoError(t, h.Exit(t.Context()))
	for range 2 {
		require.Error(t, <-answered)
	}
}

func TestAServerThatStopsServingByItselfFailsItsHost(t *testing.T) {
	for name, stop := range map[string]func(*grpc.Server, net.Listener){
		"the listener fails": func(_ *grpc.Server, listener net.Listener) { listener.Close() },
		"stopped elsewhere":  func(server *grpc.Server, _ net.Listener) { server.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			server := grpc.NewServer(lifecyclegrpc.Gate(h)...)
			listener := listen(t)
			require.NoError(t, lifecyclegrpc.Serve(h, "grpc", server, listener))
			stop(server, listener)
			<-h.Done()
			err := h.Exit(t.Context())
			var failed *lifecycle.TaskError
			require.ErrorAs(t, err, &failed)
			require.ErrorContains(t, failed, "serve "+listener.Addr().String())
			require.True(t, isRefused(listener))
		})
	}
}

func TestAServerOnTwoListenersIsServedTwiceAndEndedOnce(t *testing.T) {
	h := newHost(t)
	server := grpc.NewServer(lifecyclegrpc.Gate(h)...)
	testpb.RegisterTestServiceServer(server, &orders{unary: func(context.Context, []byte) error { return nil }})
	listeners := []net.Listener{listen(t), listen(t)}
	for _, listener := range listeners {
		require.NoError(t, lifecyclegrpc.Serve(h, "grpc", server, listener))
	}
	for _, listener := range listeners {
		require.NoError(t, put(t.Context(), testpb.NewTestServiceClient(dial(t, listener)), "tx"))
	}
	require.NoError(t, h.Exit(t.Context()))
	for _, listener := range listeners {
		require.True(t, isRefused(listener))
	}
}

func TestWhatServeRefusesIsNotServedAndItsListenerClosed(t *testing.T) {
	running, exited := newHost(t), newHost(t)
	require.NoError(t, exited.Exit(t.Context()))
	for name, test := range map[string]struct {
		host   *lifecycle.Host
		name   string
		server *grpc.Server
		is     error
	}{
		"no host":      {nil, "grpc", grpc.NewServer(), lifecycle.ErrInvalid},
		"no server":    {running, "grpc", nil, lifecycle.ErrInvalid},
		"no name":      {running, "", grpc.NewServer(), lifecycle.ErrInvalid},
		"a host's end": {exited, "grpc", grpc.NewServer(), lifecycle.ErrExiting},
	} {
		t.Run(name, func(t *testing.T) {
			listener := listen(t)
			require.ErrorIs(t, lifecyclegrpc.Serve(test.host, test.name, test.server, listener), test.is)
			require.True(t, isRefused(listener))
		})
	}
	for _, nothing := range []net.Listener{nil, (*net.TCPListener)(nil)} {
		require.ErrorIs(t, lifecyclegrpc.Serve(running, "grpc", grpc.NewServer(), nothing), lifecycle.ErrInvalid)
		require.ErrorIs(t, lifecyclegrpc.Serve(nil, "", nil, nothing), lifecycle.ErrInvalid)
	}
	require.Panics(t, func() { lifecyclegrpc.GracefulStop(nil) })
	require.Panics(t, func() { lifecyclegrpc.Gate(nil) })
	require.Panics(t, func() { lifecyclegrpc.GateFor(nil) })
	require.Panics(t, func() { lifecyclegrpc.NewHealth(nil) })
	require.Panics(t, func() { lifecyclegrpc.NewHealth((*lifecycle.Host)(nil)) })
	require.PanicsWithValue(t, "lifecyclegrpc: NewHealth: a nil source", func() { lifecyclegrpc.NewHealth((*lifecycle.Controller[string])(nil)) })
	require.NoError(t, running.Exit(t.Context()))
	require.Empty(t, running.Report().Phases[0].Hooks, "a hook of what was refused")
}

func TestWhateverMomentAnExitBeginsAtNothingIsLeftOfTheServer(t *testing.T) {
	type world struct {
		host     *lifecycle.Host
		listener *bufconn.Listener
	}
	lifecycletest.ExitEverywhere(t,
		func(t testing.TB) (*world, *lifecycle.Host, error) {
			h := lifecycle.New(&lifecycletest.Log{}, lifecycle.Options{})
			return &world{h, bufconn.Listen(1 << 16)}, h, nil
		},
		func(t testing.TB, w *world) error {
			server := grpc.NewServer(lifecyclegrpc.Gate(w.host)...)
			testpb.RegisterTestServiceServer(server, &orders{
				unary: func(ctx context.Context, body []byte) error {
					_, err := w.host.Durability().Commit(ctx, body)
					return err
				},
				stream: echo,
			})
			if err := lifecyclegrpc.Serve(w.host, "grpc", server, w.listener); err != nil {
				return err
			}
			connection, err := grpc.NewClient("passthrough:bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return w.listener.DialContext(ctx) }))
			require.NoError(t, err)
			defer connection.Close()
			client := testpb.NewTestServiceClient(connection)
			for _, text := range []string{"one", "two"} {
				if err := put(context.Background(), client, text); status.Code(err) != codes.Unavailable && err != nil {
					return err // an RPC that was admitted failed
				}
			}
			stream, err := client.FullDuplexCall(context.Background())
			if err == nil {
				require.NoError(t, stream.CloseSend())
				_, err = stream.Recv()
			}
			if !errors.Is(err, io.EOF) && status.Code(err) != codes.Unavailable {
				return err
			}
			return nil
		}, lifecycletest.RealTime())
}

// Health.

func watch(t *testing.T, connection *grpc.ClientConn, service string) healthpb.Health_WatchClient {
	t.Helper()
	stream, err := healthpb.NewHealthClient(connection).Watch(t.Context(), &healthpb.HealthCheckRequest{Service: service})
	require.NoError(t, err)
	return stream
}

func requireStatus(t *testing.T, stream healthpb.Health_WatchClient, want healthpb.HealthCheckResponse_ServingStatus) {
	t.Helper()
	answer, err := stream.Recv()
	require.NoError(t, err)
	require.Equal(t, want, answer.Status)
}

func TestHealthIsNotServingFromTheMomentTheExitBegins(t *testing.T) {
	h := newHost(t)
	_, connection, listener := serve(t, h, &orders{})
	client := healthpb.NewHealthClient(connection)
	check := func() (*healthpb.HealthCheckResponse, error) {
		return client.Check(context.Background(), &healthpb.HealthCheckRequest{})
	}
	answer, err := check()
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_SERVING, answer.Status)
	known, unknown := watch(t, connection, ""), watch(t, connection, "nobody's")
	requireStatus(t, known, healthpb.HealthCheckResponse_SERVING)
	requireStatus(t, unknown, healthpb.HealthCheckResponse_SERVICE_UNKNOWN)
	require.Zero(t, h.Status().Calls, "probes are calls")

	// In another hook, before that of the server.
	type seen struct {
		check    *healthpb.HealthCheckResponse
		list     *healthpb.HealthListResponse
		checkErr error
		listErr  error
		watchErr error
		told     bool
		listens  bool
	}
	var during seen
	require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "prober", func(context.Context) error {
		during.check, during.checkErr = check()
		during.list, during.listErr = client.List(context.Background(), &healthpb.HealthListRequest{})
		answer, err := known.Recv()
		during.told = err == nil && answer.Status == healthpb.HealthCheckResponse_NOT_SERVING
		late, err := client.Watch(context.Background(), &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = late.Recv()
		}
		during.watchErr = err
		during.listens = !isRefused(listener)
		return nil
	}))
	require.NoError(t, h.Exit(t.Context())) // the Watches do not keep it waiting
	require.NoError(t, during.checkErr)
	require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, during.check.Status)
	require.NoError(t, during.listErr)
	require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, during.list.Statuses[""].Status)
	require.True(t, during.told, "a Watch is not told")
	require.Equal(t, codes.Unavailable, status.Code(during.watchErr))
	require.True(t, during.listens, "the server was stopped first")
	for _, stream := range []healthpb.Health_WatchClient{known, unknown} {
		_, err := stream.Recv()
		require.Equal(t, codes.Unavailable, status.Code(err))
	}
}

func TestHealthTellsWhatIsSetWhileTheHostRuns(t *testing.T) {
	h := newHost(t)
	health := lifecyclegrpc.NewHealth(h)
	server := grpc.NewServer(lifecyclegrpc.Gate(h)...)
	healthpb.RegisterHealthServer(server, health)
	listener := listen(t)
	require.NoError(t, lifecyclegrpc.Serve(h, "grpc", server, listener))
	stream := watch(t, dial(t, listener), "views")
	requireStatus(t, stream, healthpb.HealthCheckResponse_SERVICE_UNKNOWN)
	health.SetServingStatus("views", healthpb.HealthCheckResponse_SERVING)
	requireStatus(t, stream, healthpb.HealthCheckResponse_SERVING)
	health.SetServingStatus("views", healthpb.HealthCheckResponse_NOT_SERVING)
	requireStatus(t, stream, healthpb.HealthCheckResponse_NOT_SERVING)
	require.NoError(t, h.Exit(t.Context()))
	_, err := stream.Recv() // it is known already
	require.Equal(t, codes.Unavailable, status.Code(err))
	health.SetServingStatus("views", healthpb.HealthCheckResponse_SERVING)
	health.Resume()
	answer, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "views"})
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, answer.Status)
}

func TestAWatchOfAClientThatGoesAwayEnds(t *testing.T) {
	h := newHost(t)
	_, connection, _ := serve(t, h, &orders{})
	requireStatus(t, watch(t, connection, ""), healthpb.HealthCheckResponse_SERVING)
	connection.Close()
	require.NoError(t, h.Exit(t.Context()))
}

// Many hosts.

func TestAServerOfManyHostsEntersTheOneThatTheCallIsFor(t *testing.T) {
	controller := lifecycle.NewController[string](lifecycle.ControllerOptions{})
	launch := func(key string) *lifecycle.Host {
		h, err := controller.Launch(t.Context(), key, func(context.Context) (*lifecycle.Host, error) {
			return lifecycle.New(nil, lifecycle.Options{Name: "the same name"}), nil
		})
		require.NoError(t, err)
		return h
	}
	launch("a")
	launch("b")
	choose := func(ctx context.Context, method string) (*lifecycle.Host, error) {
		if method == testpb.TestService_EmptyCall_FullMethodName {
			return nil, nil // nobody's
		}
		keys := metadata.ValueFromIncomingContext(ctx, "database")
		if len(keys) != 1 {
			return nil, status.Error(codes.InvalidArgument, "which database?")
		}
		return controller.Host(keys[0])
	}
	server := grpc.NewServer(lifecyclegrpc.GateFor(choose)...)
	entered := func() int {
		n := 0
		for _, h := range controller.Hosts() {
			n += h.Status().Calls
		}
		return n
	}
	testpb.RegisterTestServiceServer(server, &orders{unary: func(ctx context.Context, _ []byte) error {
		if n := entered(); n != 1 {
			return fmt.Errorf("%d calls", n)
		}
		return nil
	}})
	healthpb.RegisterHealthServer(server, lifecyclegrpc.NewHealth(controller))
	listener := listen(t)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	connection := dial(t, listener)
	client := testpb.NewTestServiceClient(connection)
	putTo := func(keys ...string) error {
		ctx := t.Context()
		for _, key := range keys {
			ctx = metadata.AppendToOutgoingContext(ctx, "database", key)
		}
		return put(ctx, client, "tx")
	}
	require.NoError(t, putTo("a"))
	require.NoError(t, putTo("b"))
	require.Equal(t, codes.NotFound, status.Code(putTo("c")))
	require.Equal(t, codes.InvalidArgument, status.Code(putTo()))
	_, err := client.EmptyCall(t.Context(), &testpb.Empty{})
	require.Equal(t, codes.Unimplemented, status.Code(err))

	// One that exits is refused, the others go on; launched again it is served again.
	a, err := controller.Host("a")
	require.NoError(t, err)
	held, err := a.Enter()
	require.NoError(t, err)
	a.Fail(nil)
	require.True(t, lifecyclegrpc.Refused(putTo("a")))
	held.Leave()
	<-a.Done()
	require.Equal(t, codes.NotFound, status.Code(putTo("a")))
	launch("a")
	require.NoError(t, putTo("a"))

	stream := watch(t, connection, "")
	requireStatus(t, stream, healthpb.HealthCheckResponse_SERVING)
	require.NoError(t, controller.Exit(t.Context()))
	requireStatus(t, stream, healthpb.HealthCheckResponse_NOT_SERVING)
	require.NoError(t, lifecyclegrpc.GracefulStop(server)(t.Context()))
	require.NoError(t, <-served)
}
