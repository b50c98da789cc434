package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecyclehttp"
)

// How long a client may take. A request that was admitted ends within writeTimeout,
// which is less than the default -grace: no client alone can turn an exit into a
// forced one.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second                            // header and body
	commitTimeout     = 10 * time.Second                            // until a write is durable
	writeTimeout      = readTimeout + commitTimeout + 2*time.Second // everything
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 16 << 10
)

// offsetHeader carries the offset of a write that was acknowledged, or of the one
// that a value comes from.
const offsetHeader = "Kv-Offset"

// maxTTL is the longest that a key may live, if it is not to live for ever.
const maxTTL = 100 * 365 * 24 * time.Hour

// server is the HTTP side.
type server struct {
	host     *lifecycle.Host
	store    *store
	metrics  *metrics
	maxValue int64
	logger   *slog.Logger
}

func (s *server) http() *http.Server {
	return &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelWarn),
	}
}

// serve answers requests until the host's exit.
func (s *server) serve(listener net.Listener) error {
	return lifecyclehttp.Serve(s.host, "http", s.http(), listener)
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /kv/{key}", s.get)
	mux.HandleFunc("PUT /kv/{key}", s.put)
	mux.HandleFunc("DELETE /kv/{key}", s.delete)
	mux.HandleFunc("GET /metrics", s.showMetrics)
	mux.HandleFunc("GET /status", s.showStatus)
	return lifecyclehttp.Gate(s.host, mux)
}

func (s *server) get(w http.ResponseWriter, r *http.Request) {
	key, ok := requestKey(w, r)
	if !ok {
		return
	}
	value, version, found := s.store.get(key, time.Now())
	if !found {
		http.Error(w, "no such key", http.StatusNotFound)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Length", strconv.Itoa(len(value)))
	header.Set(offsetHeader, strconv.FormatUint(version, 10))
	if _, err := w.Write(value); err != nil {
		s.logger.Debug("answer a GET", "err", err)
	}
}

func (s *server) put(w http.ResponseWriter, r *http.Request) {
	key, ok := requestKey(w, r)
	if !ok {
		return
	}
	expires, err := expiry(r, time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.maxValue))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		http.Error(w, fmt.Sprintf("a value has at most %d bytes", tooLarge.Limit), http.StatusRequestEntityTooLarge)
		return
	case err != nil:
		http.Error(w, "read the value: "+err.Error(), http.StatusBadRequest)
		return
	}
	s.commit(w, r, record{kind: kindPut, key: key, value: value, expires: expires})
}

// delete writes a record whether the key is there or not: that is known only when
// the record's turn comes.
func (s *server) delete(w http.ResponseWriter, r *http.Request) {
	if key, ok := requestKey(w, r); ok {
		s.commit(w, r, record{kind: kindDelete, key: key})
	}
}

// commit answers when the outcome is known, or known to be unknown.
func (s *server) commit(w http.ResponseWriter, r *http.Request, rec record) {
	ctx, cancel := context.WithTimeout(r.Context(), commitTimeout)
	defer cancel()
	offset, err := s.store.commit(ctx, rec)
	switch {
	case err == nil:
		w.Header().Set(offsetHeader, strconv.FormatUint(offset, 10))
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, lifecycle.ErrUnknown):
		if r.Context().Err() == nil { // somebody is there to be told
			s.logger.Warn("outcome unknown", "offset", offset, "err", err)
		}
		http.Error(w, fmt.Sprintf("outcome unknown: the write was accepted at offset %d, but it can't be told whether it is, or will be, durable; "+
			"read the key later, and do not take the write as failed: %v", offset, err), http.StatusInternalServerError)
	default:
		refuse(w, err)
	}
}

// refuse answers a request that left no trace.
func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Retry-After", "1")
	w.Header().Set("Connection", "close") // the next try is better made elsewhere
	http.Error(w, "refused, nothing was written: "+err.Error(), http.StatusServiceUnavailable)
}

// requestKey returns the key, or answers that it is none.
func requestKey(w http.ResponseWriter, r *http.Request) (string, bool) {
	key := r.PathValue("key")
	switch {
	case key == "":
		http.Error(w, "an empty key", http.StatusBadRequest)
	case len(key) > maxKeyBytes:
		http.Error(w, fmt.Sprintf("a key has at most %d bytes", maxKeyBytes), http.StatusRequestURITooLong)
	default:
		return key, true
	}
	return "", false
}

// expiry returns when a put expires, in Unix nanoseconds; 0: never.
func expiry(r *http.Request, now time.Time) (int64, error) {
	query := r.URL.Query()
	if !query.Has("ttl") {
		return 0, nil
	}
	ttl, err := time.ParseDuration(query.Get("ttl"))
	if err != nil {
		return 0, fmt.Errorf("ttl: %w", err)
	}
	if ttl <= 0 || ttl > maxTTL {
		return 0, fmt.Errorf("ttl: %v is not between 0 and %v", ttl, maxTTL)
	}
	return now.Add(ttl).UnixNano(), nil
}

// showStatus is for while the server runs. During the exit the status page is the
// one to ask: see debugServer.
func (s *server) showStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(s.host.Status()); err != nil {
		s.logger.Debug("answer a status", "err", err)
	}
}

func (s *server) showMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if _, err := io.WriteString(w, s.metrics.String()); err != nil {
		s.logger.Debug("answer the metrics", "err", err)
	}
}
