package lifecyclegrpc_test

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/lifecyclegrpc"
)

type ledger struct {
	testpb.UnimplementedTestServiceServer
	host *lifecycle.Host
}

func (l *ledger) UnaryCall(ctx context.Context, request *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	offset, err := l.host.Durability().Commit(ctx, request.GetPayload().GetBody())
	if err != nil {
		return nil, err
	}
	return &testpb.SimpleResponse{Username: fmt.Sprint("durable at ", offset)}, nil
}

// A server that ends with its host: the exit awaits what is in flight.
func ExampleServe() {
	host := lifecycle.New(nil, lifecycle.Options{Name: "ledger"})
	server := grpc.NewServer(lifecyclegrpc.Gate(host)...)
	testpb.RegisterTestServiceServer(server, &ledger{host: host})
	healthpb.RegisterHealthServer(server, lifecyclegrpc.NewHealth(host))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	if err := lifecyclegrpc.Serve(host, "grpc", server, listener); err != nil {
		panic(err)
	}

	connection, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	answer, err := testpb.NewTestServiceClient(connection).UnaryCall(context.Background(), &testpb.SimpleRequest{})
	fmt.Println(answer.GetUsername(), err)

	fmt.Println("exit:", host.Exit(context.Background())) // in a server: lifecycle.Run(ctx, host, …)
	// Output:
	// durable at 0 <nil>
	// exit: <nil>
}
