package server

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecyclehttp"
)

// debugServer is the status page, the probes and what a main has added, on a
// listener of their own: they are needed most while the exit runs, whose first phase
// shuts the other one down.
type debugServer struct {
	server *http.Server
	addr   net.Addr
	ended  chan struct{}
}

func serveDebug(addr string, host *lifecycle.Host, more map[string]http.Handler, logger *slog.Logger) (*debugServer, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("-debug: %w", err)
	}
	mux := http.NewServeMux()
	for pattern, handler := range more {
		mux.Handle(pattern, handler)
	}
	mux.Handle("/debug/lifecycle", lifecyclehttp.Status(host))
	mux.Handle("/readyz", lifecyclehttp.Ready(host))
	mux.Handle("/livez", lifecyclehttp.Live(host))
	d := &debugServer{
		server: &http.Server{Handler: mux, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes},
		addr:   listener.Addr(),
		ended:  make(chan struct{}),
	}
	go func() {
		defer close(d.ended)
		if err := d.server.Serve(listener); err != http.ErrServerClosed {
			logger.Error("the status page is gone", "err", err) // the database is not
		}
	}()
	return d, nil
}

// close is the last thing that the program does.
func (d *debugServer) close() {
	_ = d.server.Close()
	<-d.ended
}
