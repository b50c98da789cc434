// Package lifecyclegrpc makes a grpc.Server part of a lifecycle.Host: the host's exit
// refuses new calls, awaits those in flight, and names what keeps it waiting.
//
//	server := grpc.NewServer(lifecyclegrpc.Gate(host)...)
//	orderspb.RegisterOrdersServer(server, orders)
//	healthpb.RegisterHealthServer(server, lifecyclegrpc.NewHealth(host))
//	listener, err := net.Listen("tcp", ":9090")
//	err = lifecyclegrpc.Serve(host, "grpc", server, listener)
//
//	err = lifecycle.Run(ctx, host, lifecycle.RunOptions{})
//
// [Gate] counts each RPC as a call of the host and refuses it once the exit has begun;
// [Serve] runs the server as a task, until GracefulStop, or Stop where the exit is
// forced; [Health] is the standard health service, NOT_SERVING from the moment the exit
// begins.
//
// # What an exit looks like to a client
//
// In this order:
//
//  1. Health says NOT_SERVING, and every Watch of it is told so and ends.
//  2. An RPC that arrives is refused with UNAVAILABLE. Its handler was not called: see
//     [Refused].
//  3. The hook's turn: connections get a GOAWAY, new ones are refused. Clients connect
//     elsewhere; what they send on an old connection after the GOAWAY they send again by
//     themselves, for gRPC knows that no server has seen it.
//  4. RPCs in flight end as they would have, their commits durable.
//  5. Where the exit is forced: connections are closed, and RPCs in flight fail at the
//     client with UNAVAILABLE, outcome unknown, and have their contexts cancelled.
//
// UNAVAILABLE is the code that gRPC's conventions give a server that shuts down, and
// the one that clients retry, with a backoff: those of grpc-go only if their service
// config has a retryPolicy with that code among retryableStatusCodes. Of a connection
// that broke the same code says that nobody knows whether the server acted, so who
// retries on it what must not happen twice has to look at [Refused] first.
//
// # Streams
//
// A graceful exit waits for streams too, as GracefulStop does. A handler that streams
// without end has to watch Host.Exiting and return, or it keeps the exit waiting until
// it is forced:
//
//	select {
//	case <-host.Exiting():
//		return status.Error(codes.Unavailable, "exiting")
//	case <-stream.Context().Done():
//		…
//
// The stragglers then are the hook, whose stack stands in GracefulStop, and the calls in
// flight, with their number.
//
// A unary RPC is a call from its message on. Until that has come grpc-go calls no
// interceptor, and the straggler is the hook alone.
//
// # Many hosts
//
// A server of the many hosts of a Controller outlives each of them. [GateFor] enters the
// host that an RPC is for, [NewHealth] takes the Controller, and nobody's hook ends the
// server: when lifecycle.Run has returned, GracefulStop(server)(ctx) does.
package lifecyclegrpc
