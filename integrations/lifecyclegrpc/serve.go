package lifecyclegrpc

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc"

	"github.com/seed080d9131/lifecycle"
)

// Serve runs server.Serve(listener) as a task of h, beside the hook of PhaseExitModule
// that ends it, GracefulStop(server). Both have the given name. It does not block. The
// server should have been made with Gate(h).
//
// In an exit the hook refuses connections and RPCs and waits for those in flight.
// Connections that have not said a byte are closed; those in the midst of their
// handshake are waited for as grpc.ConnectionTimeout says, 10 s with Gate. A forced exit
// that skips the hook or cuts it short closes all and stops the server, by the task's
// cancellation or the hook's.
//
// The RPC counts from its first message on where it is unary: until that has come grpc-go
// calls no interceptor, and what keeps the exit waiting is the hook, but no call.
//
// What the server's credentials see as the connection is one of this package, whose
// method NetConn returns the one that listener has accepted. It hides from grpc-go that
// this is one of TCP, so on Linux Serve sets TCP_USER_TIMEOUT in its place, to 20 s, the
// default of keepalive.ServerParameters.Timeout; where another time is to hold, set it on
// the listener's socket (net.ListenConfig.Control), whose value is kept.
//
// If the server stops to serve while h runs, h fails: with the error of its Accept,
// say, or because somebody else has stopped it or had before. A host that nobody can
// reach is not left running.
//
// The hook has its place among the others of its phase, which run one after another,
// last registered first: what the handlers need until they have answered should be
// registered before, what should happen while the server still listens after. For
// another listener of the same server Serve is called again.
//
// It returns an error that is ErrInvalid if h, server or listener is nil or name is
// empty, and ErrExiting once h's exit has begun. Nothing is served then, and the
// listener is closed.
func Serve(h *lifecycle.Host, name string, server *grpc.Server, listener net.Listener) error {
	missing := ""
	switch {
	case isNil(listener):
		return fmt.Errorf("lifecyclegrpc: Serve: %w: a nil listener", lifecycle.ErrInvalid)
	case h == nil:
		missing = "host"
	case server == nil:
		missing = "server"
	}
	if missing != "" {
		return errors.Join(fmt.Errorf("lifecyclegrpc: Serve: %w: a nil %s", lifecycle.ErrInvalid, missing), listener.Close())
	}
	// The hook first: a server must not run for a moment without one.
	kept := newListener(listener)
	err := h.OnExit(lifecycle.PhaseExitModule, name, GracefulStop(server))
	if err == nil {
		err = h.Go(name, func(ctx context.Context) error { return serveUntilExit(ctx, h, server, kept) })
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	return nil
}

// serveUntilExit is the task. A graceful exit has stopped the server before it cancels
// ctx.
func serveUntilExit(ctx context.Context, h *lifecycle.Host, server *grpc.Server, listener *listener) error {
	stopped := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(stopped)
		listener.closeAll() // Stop waits for those in their handshake
		server.Stop()
	})
	defer func() {
		if !cancel() {
			<-stopped
		}
	}()
	err := server.Serve(listener)
	if err == nil || errors.Is(err, grpc.ErrServerStopped) {
		select {
		case <-h.Exiting():
			return nil
		default:
			err = errors.Join(errors.New("stopped by somebody else than the host's exit"), err)
		}
	}
	return fmt.Errorf("serve %s: %w", listener.Addr(), err)
}

// GracefulStop returns the hook that ends server, for PhaseExitModule; Serve registers
// it by itself. The hook calls server.GracefulStop, which closes the listeners, sends
// every client a GOAWAY, and waits until the RPCs in flight have ended, streams among
// them. When its context ends, which the exit's own does only by ForceExit, the hook
// calls server.Stop, which closes the connections and so cancels the contexts of the
// RPCs, waits for their handlers, and returns an error that says so, and is the
// context's cause.
//
// A handler that ignores its context keeps the hook waiting even then: a forced exit
// leaves both behind, by name.
//
// Alone, without Serve, it also waits for every connection that has not ended its
// handshake, and Stop does, as long as grpc.ConnectionTimeout allows: 120 s unless the
// server has an option that says less, 10 s with Gate or GateFor. One connection that
// says nothing is enough.
func GracefulStop(server *grpc.Server) func(ctx context.Context) error {
	if server == nil {
		panic("lifecyclegrpc: GracefulStop: a nil server")
	}
	return func(ctx context.Context) error {
		stopped := make(chan struct{})
		cancel := context.AfterFunc(ctx, func() {
			defer close(stopped)
			server.Stop()
		})
		server.GracefulStop()
		if cancel() {
			return nil
		}
		<-stopped
		return fmt.Errorf("connections were closed before their calls had ended: %w", context.Cause(ctx))
	}
}
