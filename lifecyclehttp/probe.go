package lifecyclehttp

import (
	"io"
	"net/http"
)

// Ready answers whether to send requests here: 200 while src takes calls, 503
// from the moment its exit begins. It never blocks, and never answers 200 again
// after a 503.
//
// Before the first 200 there is no source to ask: a server that is still opening
// its hosts should not listen on the probe's address yet. Ready panics if src is nil,
// or a pointer that is.
func Ready(src Source) http.Handler {
	mustHave(src, "Ready")
	return probe(src.Exiting(), "ready", "exiting")
}

// Live answers whether to leave the process alone: 200 until the exit has ended,
// 503 from then on. It never blocks.
//
// An exit under way is life. A host that fails by itself drains what it accepted
// while the orchestrator still probes it, and a liveness probe that said no at
// that moment would have it killed in the middle of the drain. What bounds an exit
// that hangs is the grace of lifecycle.Run, or the orchestrator's own
// (terminationGracePeriodSeconds), not this probe. After the exit, what remains is
// a process without its database: if it does not end by itself, the 503 has it
// restarted.
//
// Live panics if src is nil, or a pointer that is.
func Live(src Source) http.Handler {
	mustHave(src, "Live")
	return probe(src.Done(), "live", "exited")
}

// probe answers yes with 200 until over is closed, then no with 503.
func probe(over <-chan struct{}, yes, no string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		plain(w)
		select {
		case <-over:
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, no+"\n")
		default:
			io.WriteString(w, yes+"\n")
		}
	})
}

// plain sets the headers of an answer in a word or two, true only now.
func plain(w http.ResponseWriter) {
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
}
