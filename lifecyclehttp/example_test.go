package lifecyclehttp_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecyclehttp"
)

// A server that ends with its host: the exit awaits what is in flight.
func ExampleServe() {
	host := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		offset, err := host.Durability().Commit(r.Context(), []byte("an order"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "durable at", offset)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: lifecyclehttp.Gate(host, api)}
	if err := lifecyclehttp.Serve(host, "http", server, listener); err != nil {
		panic(err)
	}

	answer, err := http.Post("http://"+listener.Addr().String(), "", nil)
	if err != nil {
		panic(err)
	}
	io.Copy(os.Stdout, answer.Body)
	answer.Body.Close()
	http.DefaultClient.CloseIdleConnections()

	fmt.Println("exit:", host.Exit(context.Background())) // in a server: lifecycle.Run(ctx, host, …)
	// Output:
	// durable at 0
	// exit: <nil>
}
