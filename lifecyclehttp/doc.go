// Package lifecyclehttp shows a host's life over HTTP: a status page for people
// ([Status]), and two probes for an orchestrator ([Ready], [Live]); and it makes an
// http.Server part of a host: [Serve] runs one until the exit, [Shutdown] is the hook
// that ends it, and [Gate] has the exit await its requests.
//
// The page and the probes are needed most while the exit runs. So they belong on
// a listener of their own, which no hook of PhaseExitModule shuts down:
//
//	debug := http.NewServeMux()
//	debug.Handle("/debug/lifecycle", lifecyclehttp.Status(host))
//	debug.Handle("/readyz", lifecyclehttp.Ready(host))
//	debug.Handle("/livez", lifecyclehttp.Live(host))
//	debugServer := &http.Server{Addr: "localhost:6060", Handler: debug}
//	go debugServer.ListenAndServe()
//
//	listener, err := net.Listen("tcp", ":8080")
//	server := &http.Server{Handler: lifecyclehttp.Gate(host, api)}
//	err = lifecyclehttp.Serve(host, "http", server, listener)
//
//	err = lifecycle.Run(ctx, host, lifecycle.RunOptions{})
//	debugServer.Close() // the last to go
//
// A server of the many hosts of a Controller outlives each of them: its handlers
// Enter the host that they need, and when Run has returned, Shutdown(server)(ctx)
// ends it.
//
// Like net/http/pprof the page shows stacks, names and errors to whoever can
// reach it: keep it off public addresses.
package lifecyclehttp
