// Kvserver is a small database server on the embedded log: keys and values over
// HTTP, each write acknowledged when it is durable, state rebuilt from a snapshot
// and the log, and an exit that loses nothing.
//
//	go run ./examples/kvserver                 # serve until SIGTERM or Ctrl-C
//	curl -T file 'localhost:8080/kv/a?ttl=1m'  # 204, and the offset in Kv-Offset
//	curl localhost:8080/kv/a
//	curl -X DELETE localhost:8080/kv/a
//	curl localhost:8080/status localhost:8080/metrics
//	go run ./examples/kvserver -debug 127.0.0.1:8081 # and the status page, at /debug/lifecycle there
//	go run ./examples/kvserver -load 3s        # show that an exit in mid-load loses nothing
//	go run ./examples/kvserver -stuck          # with a task that never ends: what SIGTERM makes of that
//
// A key is one path segment, escaped where need be: a%2Fb is the key "a/b". An
// answer of 503 says that nothing was written; 500 to a write, that it can't be
// told whether it was.
//
// The program is the package server, so that another main can add to it.
package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/seed080d9131/lifecycle/examples/kvserver/server"
)

func main() {
	// Ctrl-C ends "kvserver | tee file" as a whole: a log that nobody reads any more must not end the exit.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(server.Main(os.Args[1:], os.Stdout, os.Stderr, server.Options{Stuck: rebuildIndex}))
}
