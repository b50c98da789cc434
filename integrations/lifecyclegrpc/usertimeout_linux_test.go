package lifecyclegrpc_test

import (
	"context"
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/seed080d9131/lifecycle/integrations/lifecyclegrpc"
)

// A client that vanishes would keep an exit waiting for TCP's quarter of an hour.
func TestAConnectionHasTheUserTimeoutThatGrpcGivesItOrThatOfTheListener(t *testing.T) {
	h := newHost(t)
	timeoutOf := func(listener net.Listener, serve func(*grpc.Server) error) int {
		t.Helper()
		seen := &accepted{insecure.NewCredentials(), make(chan net.Conn, 1)}
		server := grpc.NewServer(grpc.Creds(seen))
		testpb.RegisterTestServiceServer(server, &orders{unary: func(context.Context, []byte) error { return nil }})
		require.NoError(t, serve(server))
		require.NoError(t, put(t.Context(), testpb.NewTestServiceClient(dial(t, listener)), "")) // all is set by then
		raw, err := (<-seen.connections).(syscall.Conn).SyscallConn()
		require.NoError(t, err)
		var milliseconds int
		var failed error
		require.NoError(t, raw.Control(func(fd uintptr) {
			milliseconds, failed = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		}))
		require.NoError(t, failed)
		return milliseconds
	}
	served := func(listener net.Listener) func(*grpc.Server) error {
		return func(server *grpc.Server) error { return lifecyclegrpc.Serve(h, "grpc", server, listener) }
	}

	plain, ended := listen(t), make(chan error, 1)
	grpcs := timeoutOf(plain, func(server *grpc.Server) error {
		t.Cleanup(func() { server.Stop(); require.NoError(t, <-ended) })
		go func() { ended <- server.Serve(plain) }()
		return nil
	})
	ours := listen(t)
	require.Equal(t, grpcs, timeoutOf(ours, served(ours)))

	own := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if failed := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 7000)
		}); failed != nil {
			return failed
		}
		return err
	}}
	set, err := own.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.Equal(t, 7000, timeoutOf(set, served(set)))
	require.NoError(t, h.Exit(t.Context()))
}
