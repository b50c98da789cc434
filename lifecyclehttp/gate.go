package lifecyclehttp

import (
	"io"
	"net/http"

	"github.com/seed080d9131/lifecycle"
)

// Gate counts each request that next serves as a call of h, so that the exit
// waits for it before anything that it needs is taken down. The call lasts until
// next has returned, panicked (http.ErrAbortHandler and any other value pass
// through) or called runtime.Goexit.
//
// Once the exit has begun next is not called: the answer is 503 with Retry-After,
// and with Connection: close, so that the client asks again on another connection,
// which a load balancer may bring to another process. (Over HTTP/2 net/http makes a
// GOAWAY of it.)
//
// The request's context is marked as the call's: an Exit of h under it is refused
// with ErrSelfExit rather than wait for itself. It is not cancelled by the exit;
// a handler that streams without end has to watch h.Exiting() and return, or it
// keeps the exit waiting.
//
// next gets the ResponseWriter as it is, so that Flush, Hijack and
// http.ResponseController work. A handler that hijacks the connection and returns
// has left: what goes on with the connection should be a task (Host.Go) or a call
// (Host.Enter) of its own.
//
// Gate panics if h or next is nil, or next a HandlerFunc that is.
func Gate(h *lifecycle.Host, next http.Handler) http.Handler {
	f, isFunc := next.(http.HandlerFunc)
	switch {
	case h == nil:
		panic("lifecyclehttp: Gate: a nil host")
	case next == nil || isFunc && f == nil:
		panic("lifecyclehttp: Gate: a nil handler")
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call, err := h.Enter()
		if err != nil {
			refuse(w)
			return
		}
		defer call.Leave()
		next.ServeHTTP(w, r.WithContext(call.Context(r.Context())))
	})
}

// refuse does not say why the exit began: that is for the status page, not for
// clients.
func refuse(w http.ResponseWriter) {
	plain(w)
	w.Header().Set("Retry-After", "1")
	w.Header().Set("Connection", "close")
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, "exiting\n")
}
