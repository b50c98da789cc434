// Kvserver is the root module's examples/kvserver with metrics: what its host does,
// and the process, at GET /metrics of its -debug listener, which serves until the
// exit has ended.
//
//	go run ./examples/kvserver -debug 127.0.0.1:8081
//	curl 127.0.0.1:8081/metrics
//	go run ./examples/kvserver -debug 127.0.0.1:8081 -stuck # and Ctrl-C: after 5 s the metrics name the task that the exit waits for
//
// All its other flags are that one's, see -help. The server's own GET /metrics, beside
// the keys and values, has what only the server knows.
package main

import (
	"context"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/seed080d9131/lifecycle/examples/kvserver/server"
	"github.com/seed080d9131/lifecycle/integrations/lifecycleprom"
)

func main() {
	hosts := lifecycleprom.NewCollector(lifecycleprom.Options{})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(hosts, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	os.Exit(server.Main(os.Args[1:], os.Stdout, os.Stderr, server.Options{
		NewHost: hosts.NewHost,
		Debug: map[string]http.Handler{
			"GET /metrics": promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry, EnableOpenMetrics: true}),
		},
		Stuck: rebuildIndex,
	}))
}

// rebuildIndex is the task of -stuck: it waits for an answer that never comes, and
// does not look at its context meanwhile.
func rebuildIndex(context.Context) error {
	answer := make(chan error)
	return <-answer
}
