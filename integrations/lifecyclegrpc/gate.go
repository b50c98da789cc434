package lifecyclegrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/seed080d9131/lifecycle"
)

// Gate returns the options of a server whose RPCs, unary and streaming, are calls of h,
// so that the exit waits for each before anything that it needs is taken down. The call
// lasts until the handler has returned, panicked or called runtime.Goexit.
//
// Once the exit has begun handlers are not called: the answer is codes.Unavailable, with
// what Refused looks for.
//
// The RPC's context is marked as the call's: an Exit of h under it is refused with
// ErrSelfExit rather than wait for itself. It is not cancelled by the exit, only by a
// forced one, when that closes the connection.
//
// Two are interceptors of a chain, and their place in it is where the options stand
// among others of grpc.ChainUnaryInterceptor and grpc.ChainStreamInterceptor. Handlers
// of the standard health service pass, for they answer during the exit, too.
//
// An error that a handler returns and that is itself a Gate's refusal, of a call that it
// made to another server, loses the details by which Refused knows it: that server did
// nothing, but this one may have.
//
// A third option is grpc.ConnectionTimeout of 10 s in place of grpc-go's 120 s, since the
// server's end waits so long for connections that don't end their handshake. Another one
// after it replaces it.
//
// A panic goes on: without an interceptor that recovers it, it ends the process, as
// grpc-go has it. A Goexit leaves the RPC without an answer, as grpc-go has it too:
// GracefulStop, and so the exit, then waits until the client has gone away.
func Gate(h *lifecycle.Host) []grpc.ServerOption {
	if h == nil {
		panic("lifecyclegrpc: Gate: a nil host")
	}
	return GateFor(func(context.Context, string) (*lifecycle.Host, error) { return h, nil })
}

// handshakeTimeout is short of lifecycle.Run's Grace.
const handshakeTimeout = 10 * time.Second

// GateFor is Gate for a server of many hosts: choose returns whose call an RPC is, by
// its context, which has the client's metadata, and its method, "/package.Service/Method".
// What choose needs from the request's message it can't see: there handlers Enter by
// themselves.
//
// If choose returns no host and no error, the RPC is nobody's call and its handler is
// called as it is. An error is the RPC's answer: one that is lifecycle.ErrNoHost as
// codes.NotFound, one that is ErrExiting as Gate refuses, another as grpc-go takes it.
// choose is not asked about the health service.
func GateFor(choose func(ctx context.Context, method string) (*lifecycle.Host, error)) []grpc.ServerOption {
	if choose == nil {
		panic("lifecyclegrpc: GateFor: a nil func")
	}
	enter := func(ctx context.Context, method string) (lifecycle.Call, error) {
		if strings.HasPrefix(method, "/grpc.health.v1.Health/") {
			return lifecycle.Call{}, nil
		}
		h, err := choose(ctx, method)
		if err == nil && h != nil {
			var call lifecycle.Call
			if call, err = h.Enter(); err == nil {
				return call, nil
			}
		}
		switch {
		case errors.Is(err, lifecycle.ErrExiting):
			err = refusal
		case errors.Is(err, lifecycle.ErrNoHost):
			err = status.Error(codes.NotFound, err.Error())
		}
		return lifecycle.Call{}, err
	}
	return []grpc.ServerOption{
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			call, err := enter(ctx, info.FullMethod)
			if err != nil {
				return nil, err
			}
			defer call.Leave()
			answer, err := handler(call.Context(ctx), request)
			return answer, withoutRefusal(err)
		}),
		grpc.ChainStreamInterceptor(func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			call, err := enter(stream.Context(), info.FullMethod)
			if err != nil {
				return err
			}
			defer call.Leave()
			return withoutRefusal(handler(server, &streamOf{stream, call.Context(stream.Context())}))
		}),
	}
}

// streamOf is a stream with another context.
type streamOf struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *streamOf) Context() context.Context { return s.ctx }

// The google.rpc.ErrorInfo in a refusal's details, by which clients in any language can
// tell it from a connection that broke: a domain that is the sender's, and a reason that
// is constant in it.
const (
	Domain        = "github.com/seed080d9131/lifecycle"
	ReasonExiting = "EXITING"
)

// refusal does not say which host it was and why its exit began: that is not for
// clients.
var refusal = func() error {
	s := status.New(codes.Unavailable, "the server is exiting; nothing was done")
	with, err := s.WithDetails(&errdetails.ErrorInfo{Domain: Domain, Reason: ReasonExiting})
	if err != nil {
		panic(fmt.Sprint("lifecyclegrpc: ", err)) // only if s were OK, or the message no message
	}
	return with.Err()
}()

// withoutRefusal returns what a handler answers who got err: one that was called can't
// answer that nothing was done.
func withoutRefusal(err error) error {
	if !Refused(err) {
		return err
	}
	s := status.Convert(err)
	return status.Error(s.Code(), "another server, which was called, refused: "+s.Message())
}

// Refused reports whether err, as a client got it, is the answer of a Gate whose exit
// had begun: the handler was not called, so the call may be made again elsewhere
// whatever it does. (Of any other error with codes.Unavailable that can't be said.)
//
// A Gate's server strips the details of refusals that its handlers pass on. One without a
// Gate that calls others has to do that itself, or its clients take theirs for its own.
func Refused(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Domain == Domain && info.Reason == ReasonExiting {
			return true
		}
	}
	return false
}
