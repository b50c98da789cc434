package lifecyclehttp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/seed080d9131/lifecycle"
)

// Serve runs server.Serve(listener) as a task of h, beside the hook of
// PhaseExitModule that ends it, Shutdown(server). Both have the given name. It does
// not block.
//
// In an exit the hook closes the listener and waits until every response is out;
// the requests' handlers should be behind Gate, so that the exit also counts what
// is no connection any more, and refuses what still comes in. A forced exit that
// skips the hook or cuts it short closes the server, by the task's cancellation or
// the hook's.
//
// If the server stops to serve while h runs, h fails: with the error of its Accept,
// say, or with http.ErrServerClosed because somebody else has closed it or had
// before. A host that nobody can reach is not left running.
//
// The hook has its place among the others of its phase, which run one after another,
// last registered first: what the handlers need until they have answered should be
// registered before, what should happen while the server still listens (to tell a
// load balancer, say) after. For another listener of the same server Serve is called
// again.
//
// It returns an error that is ErrInvalid if h, server or listener is nil or name is
// empty, and ErrExiting once h's exit has begun. Nothing is served then, and the
// listener is closed; an exit that begins meanwhile may shut the server down all the same.
func Serve(h *lifecycle.Host, name string, server *http.Server, listener net.Listener) error {
	return serve(h, "Serve", name, server, listener, func() error { return server.Serve(listener) })
}

// ServeTLS is Serve with server.ServeTLS, of which certFile and keyFile are: both may
// be "" if server.TLSConfig has certificates. Files that can't be loaded fail h, as
// anything does that keeps the server from serving.
func ServeTLS(h *lifecycle.Host, name string, server *http.Server, listener net.Listener, certFile, keyFile string) error {
	return serve(h, "ServeTLS", name, server, listener, func() error { return server.ServeTLS(listener, certFile, keyFile) })
}

func serve(h *lifecycle.Host, op, name string, server *http.Server, listener net.Listener, run func() error) error {
	missing := ""
	switch {
	case isNil(listener):
		return fmt.Errorf("lifecyclehttp: %s: %w: a nil listener", op, lifecycle.ErrInvalid)
	case h == nil:
		missing = "host"
	case server == nil:
		missing = "server"
	}
	if missing != "" {
		return errors.Join(fmt.Errorf("lifecyclehttp: %s: %w: a nil %s", op, lifecycle.ErrInvalid, missing), listener.Close())
	}
	// The hook first: a server must not run for a moment without one.
	err := h.OnExit(lifecycle.PhaseExitModule, name, Shutdown(server))
	if err == nil {
		err = h.Go(name, func(ctx context.Context) error { return serveUntilExit(ctx, h, server, listener, run) })
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	return nil
}

// serveUntilExit is the task. A graceful exit has ended run by Shutdown before it
// cancels ctx.
func serveUntilExit(ctx context.Context, h *lifecycle.Host, server *http.Server, listener net.Listener, run func() error) error {
	defer listener.Close() // run leaves it open where it can't load a certificate
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		defer func() { _ = recover() }() // Close calls the listener's, which is the user's
		server.Close()
	})
	defer func() {
		if !stop() {
			<-closed
		}
	}()
	err := run()
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		select {
		case <-h.Exiting():
			return nil
		default:
			return fmt.Errorf("serve %s: closed by somebody else than the host's exit: %w", listener.Addr(), err)
		}
	}
	return fmt.Errorf("serve %s: %w", listener.Addr(), err)
}

// Shutdown returns the hook that ends server, for PhaseExitModule; Serve registers it
// by itself. The hook calls server.Shutdown, which closes the listeners and the
// connections that are idle and waits for the others to become idle; what its context
// cancels, and that only ForceExit does, is the waiting: then the hook closes the
// connections that remain and returns an error that says so, and is the context's
// cause.
//
// A request for ever unanswered keeps the exit waiting. The stragglers then are the
// hook, whose stack stands in Shutdown, and, for handlers behind Gate, the calls in
// flight with their number.
//
// Habits of http.Server.Shutdown that show in an exit:
//
//   - It closes connections that are idle, so a request that is on its way at that
//     moment meets a closed connection, and its client can't tell the outcome. A
//     client of keep-alive connections has to expect that of any server.
//   - It waits up to 5 s for a connection on which no request has come yet.
//   - It looks whether the connections are idle at growing intervals, at last of half
//     a second, so the exit may see the last response that much later.
//   - Hijacked connections (WebSockets) are no longer the server's: it neither waits
//     for them nor closes them. Each should be a task (Host.Go) or a call (Host.Enter)
//     that ends when Host.Exiting is closed.
//   - It does not wait for the funcs of RegisterOnShutdown.
//   - Closing a connection cancels the contexts of its requests, and does not wait for
//     their handlers. Behind Gate the exit does, and names those that it leaves behind.
func Shutdown(server *http.Server) func(ctx context.Context) error {
	if server == nil {
		panic("lifecyclehttp: Shutdown: a nil server")
	}
	return func(ctx context.Context) error {
		err := server.Shutdown(ctx)
		if ctx.Err() == nil {
			return err
		}
		// Also where err is nil: then Serve's task, cancelled as well, may have closed them.
		cut := fmt.Errorf("connections were closed before they were idle: %w", context.Cause(ctx))
		return errors.Join(cut, server.Close())
	}
}
