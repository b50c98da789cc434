// Package lifecyclehttp shows a host's life over HTTP: a status page for people
// ([Status]), two probes for an orchestrator ([Ready], [Live]), and a gate for
// handlers whose requests the exit is to await ([Gate]).
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
//	server := &http.Server{Addr: ":8080", Handler: lifecyclehttp.Gate(host, api)}
//	host.OnExit(lifecycle.PhaseExitModule, "http", server.Shutdown)
//
//	err := lifecycle.Run(ctx, host, lifecycle.RunOptions{})
//	debugServer.Close() // the last to go
//
// Like net/http/pprof the page shows stacks, names and errors to whoever can
// reach it: keep it off public addresses.
package lifecyclehttp
