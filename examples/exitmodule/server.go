package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
)

const (
	readTimeout   = 10 * time.Second // for a request, body and all
	launchTimeout = 10 * time.Second // for a launch, and for the exit before it
	defaultWithin = 10 * time.Second // for an exit to be answered
	maxWithin     = time.Minute
	maxKeyBytes   = 512
	maxValueBytes = 1 << 20
)

// offsetHeader carries the offset of a write.
const offsetHeader = "Db-Offset"

// server is the databases, and what HTTP does with them.
type server struct {
	config     config
	logger     *slog.Logger
	controller *lifecycle.Controller[string]

	lease chan error // what the task of -stuck waits for: nobody sends

	opened, exited, locked atomic.Int64 // hosts made, hosts gone, launches that met a foreign lock

	mu    sync.Mutex // guards what follows
	names map[string]lives
}

// lives is what the server remembers of a name beside the Controller, which knows
// the hosts that run and nothing else: the state that goes with a host, and the
// reports of those that have exited. Of several lives of a name each begins only
// when the one before has ended.
type lives struct {
	newest *database       // launched last; it may have exited
	before *lifecycle.Host // the one that had the name before
}

func newServer(c config, logger *slog.Logger) *server {
	return &server{
		config:     c,
		logger:     logger,
		controller: lifecycle.NewController[string](lifecycle.ControllerOptions{Logger: logger}),
		lease:      make(chan error),
		names:      map[string]lives{},
	}
}

// dirOf is the directory of a database. The prefix keeps it off names that mean
// something to the system, such as "nul".
func (s *server) dirOf(name string) string { return filepath.Join(s.config.dir, "db-"+name) }

func (s *server) index(name string, d *database) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := lives{newest: d}
	if old := s.names[name].newest; old != nil {
		l.before = old.host
	}
	s.names[name] = l
}

// exitOf returns the host that an exit of that name was about: while one goes on,
// the host that exits; otherwise the last one that has exited. nil: there is none.
func (s *server) exitOf(name string, goesOn bool) *lifecycle.Host {
	s.mu.Lock()
	l := s.names[name]
	s.mu.Unlock()
	if l.newest == nil {
		return nil
	}
	host := l.newest.host
	exited := isClosed(host.Done())
	switch {
	case goesOn && (exited || !isClosed(host.Exiting())):
		return nil
	case goesOn || exited:
		return host
	}
	return l.before
}

// lastHosts returns the newest host of each name, by name.
func (s *server) lastHosts() []*lifecycle.Host {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*lifecycle.Host
	for _, l := range s.names {
		all = append(all, l.newest.host)
	}
	slices.SortFunc(all, func(a, b *lifecycle.Host) int {
		return strings.Compare(a.Status().Host, b.Status().Host)
	})
	return all
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /db", s.list)
	mux.HandleFunc("PUT /db/{name}", s.launch)
	mux.HandleFunc("POST /db/{name}/exit", s.exit)
	mux.HandleFunc("GET /db/{name}/{key}", s.get)
	mux.HandleFunc("PUT /db/{name}/{key}", s.put)
	return mux
}

// Lower case, since on some file systems "A" and "a" are one directory.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// launch answers 201 if this request launched the database, 200 if it runs already
// or another one did.
func (s *server) launch(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !nameForm.MatchString(name) {
		http.Error(w, "a name is 1 to 64 characters of a-z, 0-9, _ and -, and begins with one of the first two", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), launchTimeout)
	defer cancel()
	launched := false // written by open, which has ended if Launch returns a host
	host, err := s.controller.Launch(ctx, name, func(ctx context.Context) (*lifecycle.Host, error) {
		launched = true
		return s.open(ctx, name)
	})
	switch {
	case err == nil && launched:
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "%s: launched, %d records\n", name, host.Report().First)
	case err == nil:
		fmt.Fprintf(w, "%s: runs\n", name)
	case errors.Is(err, commitlog.ErrLocked): // by another process: here the exit is awaited
		s.locked.Add(1)
		s.logger.Error("locked by another process", "database", name, "err", err)
		refuse(w, err)
	case errors.Is(err, lifecycle.ErrExiting), ctx.Err() != nil: // the server exits; or the database still does
		refuse(w, err)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// exit is the exit_module handler. It answers 200 if the exit ended clean, 500 if
// it ended otherwise, 504 if it goes on; each with the report, 404 for a database
// that has not run since the server began.
//
// It enters no gate: the exit would wait for this very request.
func (s *server) exit(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	within, force := defaultWithin, false
	query := r.URL.Query()
	var err error
	if query.Has("within") {
		if within, err = time.ParseDuration(query.Get("within")); err == nil && (within <= 0 || within > maxWithin) {
			err = fmt.Errorf("%v is not between 0 and %v", within, maxWithin)
		}
	}
	if err == nil && query.Has("force") {
		force, err = strconv.ParseBool(query.Get("force"))
	}
	if err != nil {
		http.Error(w, "within or force: "+err.Error(), http.StatusBadRequest)
		return
	}

	ctx, cancel := context.WithTimeout(r.Context(), within)
	defer cancel()
	if force {
		err = s.controller.ForceExitHost(ctx, name) // within is for the flush here
	} else {
		err = s.controller.ExitHost(ctx, name)
	}
	goesOn := err != nil && ctx.Err() != nil
	host := s.exitOf(name, goesOn)
	switch {
	case host == nil && goesOn: // it is still being launched, or has ended this moment
		http.Error(retryLater(w), err.Error(), http.StatusGatewayTimeout)
	case host == nil:
		http.Error(w, noDatabase, http.StatusNotFound)
	default:
		s.writeExit(w, r, host, err)
	}
}

// writeExit writes the report of an exit: the timeline if the client prefers text,
// or else JSON. err is what came of waiting for it.
func (s *server) writeExit(w http.ResponseWriter, r *http.Request, host *lifecycle.Host, err error) {
	code, message := http.StatusOK, ""
	report := host.Report()
	if report.Outcome != "" { // it may have ended only after the wait
		<-host.Done()                // a moment
		err = host.Exit(r.Context()) // its result, the same whoever asks
	}
	switch {
	case report.Outcome == "":
		code = http.StatusGatewayTimeout
		message = fmt.Sprintf("the exit goes on; ask again to go on waiting, with ?force=true to leave behind who never ends: %v", err)
	case err != nil:
		code, message = http.StatusInternalServerError, err.Error()
	}
	if strings.HasPrefix(r.Header.Get("Accept"), "text/plain") {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		if message != "" {
			message += "\n"
		}
		_, err = io.WriteString(w, message+report.String())
	} else {
		err = writeJSON(w, code, exitAnswer{report, message})
	}
	if err != nil {
		s.logger.Debug("answer an exit", "err", err)
	}
}

// exitAnswer is the report, and beside its fields what went wrong.
type exitAnswer struct {
	lifecycle.Report
	Error string `json:"error,omitempty"`
}

// enter makes a request a call of its database's host, which the exit of that
// database waits for, or answers why not. ctx is the call's.
func (s *server) enter(w http.ResponseWriter, r *http.Request) (_ *database, _ lifecycle.Call, ctx context.Context, ok bool) {
	name := r.PathValue("name")
	_, err := s.controller.Host(name)
	switch {
	case isClosed(s.controller.Exiting()):
		refuse(w, fmt.Errorf("the server: %w", lifecycle.ErrExiting))
		return
	case err != nil:
		http.Error(w, noDatabase, http.StatusNotFound)
		return
	}
	s.mu.Lock()
	d := s.names[name].newest // of that host, or of the one that has taken its place this moment
	s.mu.Unlock()
	call, err := d.host.Enter()
	if err != nil {
		refuse(w, err)
		return
	}
	return d, call, call.Context(r.Context()), true
}

func (s *server) get(w http.ResponseWriter, r *http.Request) {
	d, call, _, ok := s.enter(w, r)
	if !ok {
		return
	}
	defer call.Leave()
	it, found := d.get(r.PathValue("key"))
	if !found {
		http.Error(w, noKey, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set(offsetHeader, strconv.FormatUint(it.offset, 10))
	if _, err := w.Write(it.value); err != nil {
		s.logger.Debug("answer a GET", "err", err)
	}
}

// put reads the value before it enters: a slow client is no call in flight.
func (s *server) put(w http.ResponseWriter, r *http.Request) {
	key := r.PathValue("key")
	if key == "" || len(key) > maxKeyBytes {
		http.Error(w, fmt.Sprintf("a key has 1 to %d bytes", maxKeyBytes), http.StatusBadRequest)
		return
	}
	value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxValueBytes))
	if err != nil {
		http.Error(w, "read the value: "+err.Error(), http.StatusBadRequest)
		return
	}
	d, call, ctx, ok := s.enter(w, r)
	if !ok {
		return
	}
	defer call.Leave()
	offset, err := d.put(ctx, key, value)
	switch {
	case err == nil:
		w.Header().Set(offsetHeader, strconv.FormatUint(offset, 10))
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, lifecycle.ErrUnknown):
		http.Error(w, fmt.Sprintf("outcome unknown: the write was accepted at offset %d, and may be there or not: %v", offset, err), http.StatusInternalServerError)
	default:
		refuse(w, err)
	}
}

// list shows what each database does.
func (s *server) list(w http.ResponseWriter, _ *http.Request) {
	type shown struct {
		lifecycle.Status
		Keys      int   `json:"keys"`
		Bytes     int   `json:"bytes"`
		DiskBytes int64 `json:"disk_bytes"`
	}
	all := []shown{}
	names := s.controller.Keys()
	slices.Sort(names)
	for _, name := range names {
		s.mu.Lock()
		d := s.names[name].newest
		s.mu.Unlock()
		d.mu.Lock()
		keys, bytes := len(d.items), d.bytes
		d.mu.Unlock()
		all = append(all, shown{d.host.Status(), keys, bytes, d.diskBytes.Load()})
	}
	if err := writeJSON(w, http.StatusOK, all); err != nil {
		s.logger.Debug("answer a list", "err", err)
	}
}

// The two kinds of 404.
const (
	noDatabase = "no such database runs"
	noKey      = "no such key"
)

// refuse answers a request that left no trace.
func refuse(w http.ResponseWriter, err error) {
	http.Error(retryLater(w), "refused, nothing was written: "+err.Error(), http.StatusServiceUnavailable)
}

func retryLater(w http.ResponseWriter) http.ResponseWriter {
	w.Header().Set("Retry-After", "1")
	return w
}

func writeJSON(w http.ResponseWriter, code int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

func isClosed(channel <-chan struct{}) bool {
	select {
	case <-channel:
		return true
	default:
		return false
	}
}
