package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Exiter is what Run runs: a Host, or a Controller of many.
type Exiter interface {
	Exit(context.Context) error
	ForceExit(context.Context) error
	Exiting() <-chan struct{}
	Done() <-chan struct{}
}

var (
	_ Exiter = (*Host)(nil)
	_ Exiter = (*Controller[string])(nil)
)

// Controller is the registry of a server's hosts, one a key: what the handlers of
// exit_module call. All its methods may be called at any time, by any number of
// goroutines.
//
// A key is free, launching, or taken by a host. A host keeps its key until its
// exit has ended, whoever began it, and a Launch for that key waits until then: two
// hosts never hold one log (SpacetimeDB pull request 5573). A launch that fails is
// taken back: a host that it made all the same is exited before the key is free
// (pull request 5601).
//
// Each launch runs in a goroutine of its own, which ends when open has returned and
// what is to be taken back has exited. Beside those a Controller has one goroutine
// while it exits, and none otherwise.
type Controller[K comparable] struct {
	logger  guardedLogger
	exiting chan struct{}
	done    chan struct{}
	result  error // set before done closes
	refusal error // ErrExiting, as the cause with which this Controller's exit, and nobody else, cancels open's context

	graceEnd chan struct{} // closed when a forced exit leaves launches behind

	mu      sync.Mutex // guards what follows, and what entry says that it does
	begun   bool       // the exit has
	forced  bool
	entries map[K]*entry
}

// entry is a key that is not free.
type entry struct {
	name     string // of the key, in errors
	start    time.Time
	cancel   context.CancelCauseFunc // of open's context
	launched chan struct{}           // closed when the launch has ended, with what follows set
	host     *Host                   // nil: the launch failed
	err      error                   // of the launch
	exitErr  error                   // of the host that was taken back
	retry    bool                    // the launch failed because the context of who led it ended

	// Guarded by Controller.mu.
	running *Host  // host, as soon as it is registered
	leaving *Host  // a host that is being taken back
	wanted  wanted // by those who could not wait for the launch
}

// wanted is what is to become of a host once it has been launched.
type wanted int

const (
	wantedToRun wanted = iota
	wantedToExit
	wantedToExitForced
)

// ControllerOptions configure a Controller. The zero value is good.
type ControllerOptions struct {
	// Logger gets what becomes of launches; nil: silent. A record that is not
	// written within ForceGrace is left behind, and what comes before it has been is
	// not logged.
	Logger *slog.Logger
}

// NewController makes a Controller without hosts. It owns no goroutine and needs no
// Exit while it has no host.
func NewController[K comparable](opts ControllerOptions) *Controller[K] {
	return &Controller[K]{
		logger:   guardedLogger{logger: opts.Logger},
		exiting:  make(chan struct{}),
		done:     make(chan struct{}),
		graceEnd: make(chan struct{}),
		refusal:  fmt.Errorf("lifecycle: controller: %w", ErrExiting),
		entries:  map[K]*entry{},
	}
}

// Launch returns the key's host. If it has none, Launch calls open and registers
// the host that it returns; open must not return one of another key. Those who call
// it for the same key at the same time share one call of open. If the key's host is
// exiting, or one that was launched in vain is on its way back, Launch waits until
// that has ended.
//
// Launch blocks for open, or for such an exit, and returns ctx's error when ctx
// ends first. open's context is the caller's whose Launch calls it, and is cancelled
// too when the Controller's exit begins.
//
// If open returns an error, that is returned to all who share the call, nothing
// stays registered, and a host that open returned beside it is exited first. A
// panic or Goexit in open is a *PanicError, a nil host without an error ErrInvalid,
// and a host whose exit has begun already the error of that exit. Those who wait for
// a caller whose own context ended try again themselves. Once the Controller's exit
// has begun, Launch refuses with ErrExiting, and what a call under way had opened is
// exited. A Launch from inside open for the same key, or from inside the key's own
// host while that exits, is ErrSelfExit. open's context ends when open has
// returned: nothing that is to live longer may hang on it.
func (c *Controller[K]) Launch(ctx context.Context, key K, open func(ctx context.Context) (*Host, error)) (*Host, error) {
	if err := checkKey("Launch", key); err != nil {
		return nil, err
	}
	name := fmt.Sprint(key)
	switch {
	case ctx == nil:
		return nil, fmt.Errorf("lifecycle: Launch %q: %w: a nil context", name, ErrInvalid)
	case open == nil:
		return nil, fmt.Errorf("lifecycle: Launch %q: %w: a nil func", name, ErrInvalid)
	case ctx.Value(launchMarker[K]{c, key}) != nil:
		return nil, c.selfExit("Launch", name)
	}
	// Before the key is taken: making a context runs methods of ctx, which may panic.
	openCtx, cancel := context.WithCancelCause(context.WithValue(context.WithValue(ctx,
		launchMarker[K]{c, key}, true), controllerMarker[K]{c}, true))
	leads := false
	defer func() {
		if !leads { // or else endLaunch does
			cancel(nil)
		}
	}()
	for {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("lifecycle: Launch %q: %w", name, err)
		}
		done := ctx.Done()
		c.mu.Lock()
		if c.begun {
			c.mu.Unlock()
			return nil, fmt.Errorf("lifecycle: Launch %q: %w", name, ErrExiting)
		}
		e := c.entries[key]
		leads = e == nil
		if leads {
			e = &entry{name: name, start: time.Now(), cancel: cancel, launched: make(chan struct{})}
			c.entries[key] = e
		}
		host, shares := e.running, e.leaving == nil
		c.mu.Unlock()

		wait := (<-chan struct{})(e.launched)
		switch {
		case leads:
			go c.launch(openCtx, key, e, open)
		case host != nil && !isClosed(host.exiting):
			return host, nil
		case host != nil:
			if ctx.Value(marker{host}) != nil { // from inside the host that it would wait for
				return nil, c.selfExit("Launch", name)
			}
			wait = host.done
		}
		select {
		case <-wait:
		case <-done:
			if !isClosed(wait) {
				return nil, fmt.Errorf("lifecycle: Launch %q: %w", name, endOf(ctx))
			}
		}
		if host == nil && shares && (leads || !e.retry) {
			return e.host, e.err
		}
	}
}

// checkKey refuses a key that can't be one: where K is an interface, a value that
// has no hash; and one that is not equal to itself, which would never be found.
func checkKey[K comparable](op string, key K) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("lifecycle: controller: %s: %w: the key: %v", op, ErrInvalid, v)
		}
	}()
	if _, found := map[K]bool{key: true}[key]; !found {
		return fmt.Errorf("lifecycle: controller: %s: %w: the key %v is not equal to itself", op, ErrInvalid, key)
	}
	return nil
}

// launchMarker marks the context of a key's open, controllerMarker that of any.
type (
	launchMarker[K comparable] struct {
		c   *Controller[K]
		key K
	}
	controllerMarker[K comparable] struct{ c *Controller[K] }
)

// launch is the goroutine of a launch; ctx is open's.
func (c *Controller[K]) launch(ctx context.Context, key K, e *entry, open func(ctx context.Context) (*Host, error)) {
	var host *Host
	_, err := protect(func() (err error) {
		host, err = open(ctx)
		return err
	}, func(err error, stack []byte) {
		c.endLaunch(ctx, key, e, nil, &PanicError{Value: err, Stack: stack})
	})
	c.endLaunch(ctx, key, e, host, err)
}

// endLaunch registers the host, or takes it back.
func (c *Controller[K]) endLaunch(ctx context.Context, key K, e *entry, host *Host, err error) {
	defer e.cancel(nil)
	switch {
	case err == nil && host == nil:
		err = fmt.Errorf("%w: open returned no host and no error", ErrInvalid)
	case err == nil && isClosed(host.exiting):
		err = errors.New("the host that open returned is exiting")
	}
	gone := ctx.Err()
	if context.Cause(ctx) == c.refusal {
		gone = nil
	}
	if err == nil && gone != nil {
		err = gone
	}

	c.mu.Lock()
	if err == nil && c.begun {
		err = ErrExiting
	}
	wanted := e.wanted
	if err == nil {
		e.running = host
	} else if host != nil {
		e.leaving = host
		if c.forced {
			wanted = wantedToExitForced
		}
	}
	c.mu.Unlock()

	if err == nil {
		e.host = host
		host.whenExited(func() { c.free(key) })
		c.logger.log(slog.LevelInfo, "launched", "key", e.name, "took", time.Since(e.start))
		switch wanted {
		case wantedToExit:
			host.begin(nil, nil, false)
		case wantedToExitForced:
			forceAtOnce(host)
		}
		close(e.launched)
		return
	}
	if host != nil { // its exit is awaited before the key is free
		if wanted == wantedToExitForced {
			forceAtOnce(host)
		}
		if e.exitErr = host.Exit(context.Background()); e.exitErr != nil {
			err = errors.Join(err, e.exitErr)
		}
	}
	e.err = fmt.Errorf("lifecycle: Launch %q: %w", e.name, err)
	e.retry = gone != nil
	c.logger.log(slog.LevelWarn, "launch failed", "key", e.name, "took", time.Since(e.start), "err", message{err})
	c.mu.Lock()
	delete(c.entries, key)
	c.mu.Unlock()
	close(e.launched)
}

// forceAtOnce is ForceExit under a context that is done, without the wait.
func forceAtOnce(h *Host) {
	e, _ := h.begin(nil, nil, true)
	e.force()
	e.endFlush()
}

// free is called when a host's exit has ended, before its Done closes.
func (c *Controller[K]) free(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.begun { // or else the Controller's exit has yet to ask for its result
		delete(c.entries, key)
	}
}

// Host returns the key's host, which may be exiting. The error is ErrNoHost if
// there is none, or if it is still being launched. It does not block.
func (c *Controller[K]) Host(key K) (*Host, error) {
	if err := checkKey("Host", key); err != nil {
		return nil, err
	}
	c.mu.Lock()
	var host *Host
	if e := c.entries[key]; e != nil {
		host = e.running
	}
	c.mu.Unlock()
	if host == nil {
		return nil, fmt.Errorf("lifecycle: key %q: %w", fmt.Sprint(key), ErrNoHost)
	}
	return host, nil
}

// Keys returns the keys that have a host, in no order.
func (c *Controller[K]) Keys() []K {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys := make([]K, 0, len(c.entries))
	for key, e := range c.entries {
		if e.running != nil {
			keys = append(keys, key)
		}
	}
	return keys
}

// Hosts returns the hosts that Keys returns the keys of, in no order.
func (c *Controller[K]) Hosts() []*Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	hosts := make([]*Host, 0, len(c.entries))
	for _, e := range c.entries {
		if e.running != nil {
			hosts = append(hosts, e.running)
		}
	}
	return hosts
}

// ExitHost exits the key's host as Host.Exit does, and returns what that does. Of
// a key that is being launched it waits for the launch first; when ctx ends before
// that does, the host's exit begins as soon as there is a host. For a key that is
// not registered it returns nil.
func (c *Controller[K]) ExitHost(ctx context.Context, key K) error {
	return c.exitHost(ctx, key, "ExitHost", wantedToExit, (*Host).Exit)
}

// ForceExitHost is ExitHost with Host.ForceExit.
func (c *Controller[K]) ForceExitHost(ctx context.Context, key K) error {
	return c.exitHost(ctx, key, "ForceExitHost", wantedToExitForced, (*Host).ForceExit)
}

func (c *Controller[K]) exitHost(ctx context.Context, key K, op string, want wanted, exit func(*Host, context.Context) error) error {
	if err := checkKey(op, key); err != nil {
		return err
	}
	switch {
	case ctx == nil:
		return fmt.Errorf("lifecycle: %s %q: %w: a nil context", op, fmt.Sprint(key), ErrInvalid)
	case ctx.Value(launchMarker[K]{c, key}) != nil:
		return c.selfExit(op, fmt.Sprint(key))
	}
	c.mu.Lock()
	e := c.entries[key]
	var host *Host
	if e != nil {
		host = e.running
	}
	c.mu.Unlock()
	switch {
	case e == nil:
		return nil
	case host != nil:
		return exit(host, ctx)
	}
	select {
	case <-e.launched:
	case <-ctx.Done():
		c.mu.Lock()
		e.wanted = max(e.wanted, want)
		host = e.running
		c.mu.Unlock()
		if host == nil {
			return c.launchError(e, endOf(ctx))
		}
		return exit(host, ctx)
	}
	if e.host == nil {
		return nil
	}
	return exit(e.host, ctx)
}

// Exit ends the Controller: Launch refuses from now on, every host's exit begins at
// once, and Exit waits until all have ended, and every launch under way has. It
// returns their errors, joined. As with Host.Exit all callers share one run and one
// result, and ctx bounds only this caller's wait: when it ends first, the errors
// are an *ExitError for each host that has not ended (the first 64, the others are
// counted). One stuck host keeps no other from exiting. Under a context of one of
// the hosts, or of open, it is refused with ErrSelfExit.
func (c *Controller[K]) Exit(ctx context.Context) error {
	if err := c.checkCaller("Exit", ctx); err != nil {
		return err
	}
	c.begin(false)
	if isClosed(c.done) {
		return c.result
	}
	defer reportInside(ctx, c.inner)()
	select {
	case <-c.done:
	case <-ctx.Done():
		if !isClosed(c.done) {
			return c.unended(endOf(ctx))
		}
	}
	return c.result
}

// ForceExit is Host.ForceExit for every host at once. A launch whose open does not
// return within ForceGrace, though its context is cancelled, is left behind; what
// it returns later is exited by force.
func (c *Controller[K]) ForceExit(ctx context.Context) error {
	if err := c.checkCaller("ForceExit", ctx); err != nil {
		return err
	}
	c.begin(true)
	hosts, _ := c.all()
	c.mu.Lock()
	already := c.forced
	c.forced = true
	c.mu.Unlock()
	if !already {
		grace := time.AfterFunc(ForceGrace, func() { close(c.graceEnd) })
		defer grace.Stop()
	}
	var exits []*exit
	force := func(hosts []*Host) {
		for _, h := range hosts {
			e, _ := h.begin(nil, nil, true)
			e.force()
			exits = append(exits, e)
		}
	}
	force(hosts)
	hosts, _ = c.all() // also those that were on their way when forced was set
	force(hosts)
	select {
	case <-c.done:
	case <-ctx.Done():
		for _, e := range exits {
			e.endFlush()
		}
		<-c.done
	}
	return c.result
}

// Exiting returns a channel that is closed when the exit has begun: Launch refuses,
// and every host's exit has begun.
func (c *Controller[K]) Exiting() <-chan struct{} { return c.exiting }

// Done returns a channel that is closed when the exit has ended.
func (c *Controller[K]) Done() <-chan struct{} { return c.done }

// The exits of many hosts begin so many at once, and all at once after maxPauses.
const (
	beginAtOnce = 16
	maxPauses   = 50 * time.Millisecond
)

// begin starts the exit unless it has begun.
func (c *Controller[K]) begin(force bool) {
	c.mu.Lock()
	first := !c.begun
	c.begun = true
	entries := slices.Collect(maps.Values(c.entries))
	var cancels []context.CancelCauseFunc
	var hosts []*Host
	for _, e := range entries {
		if e.running != nil {
			hosts = append(hosts, e.running)
		} else {
			cancels = append(cancels, e.cancel)
		}
	}
	c.mu.Unlock()
	if !first {
		<-c.exiting // a moment
		return
	}
	for _, cancel := range cancels {
		cancel(c.refusal)
	}
	start := time.Now()
	for i, h := range hosts {
		h.begin(nil, nil, force)
		// A moment for those that have begun, as long as what they need is in the
		// processor's caches. Where it is a long one, others need the processor.
		if i%beginAtOnce == beginAtOnce-1 && time.Since(start) < maxPauses {
			runtime.Gosched()
		}
	}
	close(c.exiting)
	go c.await(entries)
}

// await is the goroutine of the exit.
func (c *Controller[K]) await(entries []*entry) {
	var failed failures
	for _, e := range entries {
		select {
		case <-e.launched:
		case <-c.graceEnd:
			if !isClosed(e.launched) && c.isOpening(e) {
				failed.add(c.launchError(e, ErrForced))
				continue
			}
			<-e.launched // a host that is being taken back, by force
		}
		err := e.exitErr
		if e.host != nil {
			<-e.host.done
			err = e.host.exit.result
		}
		if err != nil {
			failed.add(err)
		}
	}
	c.result = failed.join("controller")
	c.mu.Lock()
	clear(c.entries)
	c.mu.Unlock()
	close(c.done)
}

func (c *Controller[K]) isOpening(e *entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return e.running == nil && e.leaving == nil
}

// all returns the hosts, those among them that are being taken back, and the
// entries that are launching.
func (c *Controller[K]) all() (hosts []*Host, launching []*entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		switch {
		case e.running != nil:
			hosts = append(hosts, e.running)
		case e.leaving != nil:
			hosts = append(hosts, e.leaving)
		default:
			launching = append(launching, e)
		}
	}
	return hosts, launching
}

// inner is whom the exit waits for, as stragglers of a host around it.
func (c *Controller[K]) inner(seen map[*Host]bool) []found {
	hosts, launching := c.all()
	var all []found
	for _, h := range hosts {
		all = append(all, h.inner(seen)...)
	}
	for _, e := range launching {
		all = append(all, found{Straggler: Straggler{Kind: "hook", Name: e.name + "/launch", Count: 1, Age: time.Since(e.start)}})
	}
	return all
}

// The error of an Exit that has not ended names so many hosts.
const maxUnended = 64

// unended is what a caller gets whose context ended before the exit did. All its
// stacks come from one goroutine profile.
func (c *Controller[K]) unended(err error) error {
	hosts, launching := c.all()
	var failed failures
	exits := []*ExitError{}
	var groups [][]found
	for _, h := range hosts {
		if isClosed(h.done) {
			continue
		}
		if len(exits) == maxUnended {
			failed.dropped++
			continue
		}
		e, _ := h.begin(nil, nil, false)
		phase, _ := h.whereAndWhy()
		exits = append(exits, &ExitError{Host: h.name, Phase: phase, Cause: e.cause, Err: err})
		groups = append(groups, e.stragglers(phase))
	}
	for i, stragglers := range withStacksOf(groups) {
		exits[i].Stragglers = stragglers
		failed.add(exits[i])
	}
	for _, e := range launching {
		failed.add(c.launchError(e, err))
	}
	if joined := failed.join("controller"); joined != nil {
		return joined
	}
	return fmt.Errorf("lifecycle: controller: Exit: %w", err) // the last has just ended
}

// launchError says that an exit waits for a launch, or left it behind.
func (c *Controller[K]) launchError(e *entry, err error) error {
	return &ExitError{Host: e.name, Err: err, Stragglers: []Straggler{
		{Kind: "hook", Name: "launch", Count: 1, Age: time.Since(e.start)},
	}}
}

func (c *Controller[K]) checkCaller(op string, ctx context.Context) error {
	if ctx == nil {
		return fmt.Errorf("lifecycle: controller: %s: %w: a nil context", op, ErrInvalid)
	}
	if ctx.Value(controllerMarker[K]{c}) != nil {
		return fmt.Errorf("lifecycle: controller: %s inside a Launch: %w", op, ErrSelfExit)
	}
	hosts, _ := c.all()
	for _, h := range hosts {
		if err := h.checkCaller(op, ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller[K]) selfExit(op, name string) error {
	return fmt.Errorf("lifecycle: %s %q inside its own launch or host: %w", op, name, ErrSelfExit)
}

func isClosed(channel <-chan struct{}) bool {
	select {
	case <-channel:
		return true
	default:
		return false
	}
}
