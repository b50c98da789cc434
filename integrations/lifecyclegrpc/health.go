package lifecyclegrpc

import (
	"context"
	"reflect"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/seed080d9131/lifecycle"
)

// Source is whose exit a Health tells of: a *lifecycle.Host, or a *lifecycle.Controller
// of any key.
type Source interface {
	Exiting() <-chan struct{} // closed when the exit has begun
}

var (
	_ Source                = (*lifecycle.Host)(nil)
	_ Source                = (*lifecycle.Controller[string])(nil)
	_ healthpb.HealthServer = (*Health)(nil)
)

// Health is the standard health service, grpc.health.v1, until src's exit begins: from
// that moment on each service that it knows is NOT_SERVING, whatever is set, and every
// Watch is told so and then ended with codes.Unavailable, since GracefulStop would wait
// for it as for any stream.
//
// Until then it is what health.NewServer returns: "" is SERVING, and SetServingStatus
// sets others. A server that is not ready yet should set "" to NOT_SERVING first.
//
// It owns no goroutine but one for each Watch, which ends with it.
//
// New connections are refused from GracefulStop on. Probes that make one each time, and
// are to tell an exit from a death, need the service on a server of its own that is
// stopped after lifecycle.Run has returned.
type Health struct {
	*health.Server
	exiting <-chan struct{}
}

// NewHealth returns the health service of src. It panics if that is nil, or a pointer
// that is.
func NewHealth(src Source) *Health {
	if isNil(src) {
		panic("lifecyclegrpc: NewHealth: a nil source")
	}
	return &Health{health.NewServer(), src.Exiting()}
}

// Check answers NOT_SERVING where it would answer SERVING if the exit had not begun.
func (s *Health) Check(ctx context.Context, request *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	answer, err := s.Server.Check(ctx, request)
	if err == nil && isClosed(s.exiting) {
		answer = &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}
	}
	return answer, err
}

// List is Check of every service.
func (s *Health) List(ctx context.Context, request *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	answer, err := s.Server.List(ctx, request)
	if err == nil && isClosed(s.exiting) {
		for service := range answer.Statuses {
			answer.Statuses[service] = &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}
		}
	}
	return answer, err
}

// Watch sends each change of the service's status until the client goes away or the
// exit begins, which a service that is known hears of as NOT_SERVING. A Watch that comes
// later is refused without a message, so that its client backs off.
func (s *Health) Watch(request *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	refused := status.Error(codes.Unavailable, "the server is exiting")
	if isClosed(s.exiting) {
		return refused
	}
	ctx, cancel := context.WithCancel(stream.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-s.exiting:
			cancel()
		case <-ctx.Done():
		}
	}()
	watched := &watch{stream, ctx, s.exiting, healthpb.HealthCheckResponse_UNKNOWN}
	err := s.Server.Watch(request, watched)
	cancel()
	<-ended
	if !isClosed(s.exiting) || stream.Context().Err() != nil {
		return err
	}
	last, err := s.Check(stream.Context(), request)
	if err == nil && last.Status != watched.last {
		if err := stream.Send(last); err != nil {
			return err
		}
	}
	return refused
}

// watch is the stream of a Watch under a context that the exit's beginning cancels.
type watch struct {
	grpc.ServerStreamingServer[healthpb.HealthCheckResponse]
	ctx     context.Context
	exiting <-chan struct{}
	last    healthpb.HealthCheckResponse_ServingStatus // that was sent
}

func (w *watch) Context() context.Context { return w.ctx }

func (w *watch) Send(answer *healthpb.HealthCheckResponse) error {
	if answer.Status == healthpb.HealthCheckResponse_SERVING && isClosed(w.exiting) {
		answer = &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}
	}
	w.last = answer.Status
	return w.ServerStreamingServer.Send(answer)
}

// isNil reports whether v is nil, or a pointer that is.
func isNil(v any) bool {
	value := reflect.ValueOf(v)
	return !value.IsValid() || value.Kind() == reflect.Pointer && value.IsNil()
}

func isClosed(channel <-chan struct{}) bool {
	select {
	case <-channel:
		return true
	default:
		return false
	}
}
