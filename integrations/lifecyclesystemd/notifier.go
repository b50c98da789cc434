package lifecyclesystemd

import (
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/seed080d9131/lifecycle"
)

// Source is whose life is told: a *lifecycle.Host, a *lifecycle.Controller of any key, or
// anything else with these methods and a Controller's method Hosts.
type Source interface {
	Exiting() <-chan struct{} // closed when the exit has begun
	Done() <-chan struct{}    // closed when the exit has ended
}

var (
	_ Source = (*lifecycle.Host)(nil)
	_ Source = (*lifecycle.Controller[string])(nil)
)

// Options configure a Notifier. The zero value is good.
type Options struct {
	// Still is how long an exit may stand still: when it makes progress, systemd is
	// asked for so much time from then on (EXTEND_TIMEOUT_USEC). At least 1 s; 0: 30 s.
	Still time.Duration
}

const (
	defaultStill = 30 * time.Second
	maxLook      = time.Second // between two looks at an exit
)

// patience is how long a message waits for room in systemd's socket. (SdNotify of
// go-systemd waits for ever, so the few lines that send are this package's own.)
const patience = 100 * time.Millisecond

// Notifier tells systemd. It owns one goroutine from Start until the exit of its source
// has ended, through which every message goes, so that they arrive in order; none if
// there is no systemd to tell. Nothing of it keeps an exit waiting or fails it. All its
// methods may be called at any time, by any number of goroutines.
type Notifier struct {
	source   Source
	hosts    func() []*lifecycle.Host
	send     func(message string) error // nil: nobody listens
	still    time.Duration
	watchdog time.Duration // 0: not asked for
	marks    atomic.Uint64 // calls of Progress
	requests chan request
	ended    chan struct{} // closed when the goroutine has ended
	failed   failures      // the goroutine's until then
}

// request is a message that somebody else wants told, by the goroutine.
type request struct {
	message string
	reply   chan error // has room for one
}

// Start returns the Notifier of src, which from now on tells systemd when src's exit
// begins and makes progress. It does not block.
//
// Whether there is a systemd, and where, it reads from the environment (NOTIFY_SOCKET,
// WATCHDOG_USEC, WATCHDOG_PID). The error is ErrInvalid if src is nil, or a pointer that
// is, or has no hosts to look at, if Still is too short, or if the environment can't be meant.
func Start(src Source, opts Options) (*Notifier, error) {
	send, err := sender(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return nil, err
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, fmt.Errorf("lifecyclesystemd: Start: %w: %w", lifecycle.ErrInvalid, err)
	}
	return start(src, opts, send, watchdog)
}

func start(src Source, opts Options, send func(string) error, watchdog time.Duration) (*Notifier, error) {
	n := &Notifier{
		source:   src,
		send:     send,
		still:    opts.Still,
		watchdog: watchdog,
		requests: make(chan request),
		ended:    make(chan struct{}),
	}
	if v := reflect.ValueOf(src); v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, invalid("a nil %T", src)
	}
	switch src := src.(type) {
	case *lifecycle.Host:
		n.hosts = func() []*lifecycle.Host { return []*lifecycle.Host{src} }
	case interface{ Hosts() []*lifecycle.Host }:
		n.hosts = src.Hosts
	default:
		return nil, invalid("a %T is no Host and has no method Hosts", src)
	}
	switch {
	case n.still == 0:
		n.still = defaultStill
	case n.still < time.Second:
		return nil, invalid("Still is %v, less than a second", n.still)
	}
	if send == nil {
		close(n.ended)
		return n, nil
	}
	go n.run()
	return n, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("lifecyclesystemd: Start: %w: %s", lifecycle.ErrInvalid, fmt.Sprintf(format, args...))
}

// sender returns the func that sends one message to a socket, nil if there is none.
func sender(socket string) (func(message string) error, error) {
	switch {
	case socket == "":
		return nil, nil
	case socket[0] != '/' && socket[0] != '@': // an absolute path or an abstract name
		return nil, invalid("NOTIFY_SOCKET is %q, no path of a socket", socket)
	}
	address := &net.UnixAddr{Net: "unixgram", Name: socket}
	return func(message string) error {
		connection, err := net.DialUnix(address.Net, nil, address)
		if err != nil {
			return err
		}
		defer connection.Close()
		if err := connection.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		_, err = connection.Write([]byte(message))
		return err
	}, nil
}

// Ready tells systemd that the service has started (READY=1), and what it does
// (STATUS=, as by Status; "": nothing). systemd lets the units that wait for this one
// start then, and with Type=notify gives up on a service that has not said so within
// TimeoutStartSec.
//
// told says whether systemd has been told: false without an error if there is none. The
// error is the socket's, where that has no room for 100 ms (Ready may be called again),
// or ErrExiting once the exit has begun. Messages are told one after another, so Ready
// waits for its turn first: with n of them at once for n times 100 ms at most.
func (n *Notifier) Ready(status string) (told bool, err error) {
	message := daemon.SdNotifyReady
	if status != "" {
		message += "\n" + statusLine(status)
	}
	return n.ask("Ready", message)
}

// Status tells systemd in a line what the service does, for who asks `systemctl status`
// (STATUS=). Line breaks become spaces, and what is longer than 1000 bytes is cut off.
// Once the exit has begun the Notifier sets the status, and Status is refused.
// Results and waiting are as for Ready.
func (n *Notifier) Status(text string) (told bool, err error) {
	return n.ask("Status", statusLine(text))
}

// Progress says that the exit makes progress where the Notifier can't see it: in a hook
// that writes a long checkpoint, say, or the log's own Close. It costs an atomic
// addition.
func (n *Notifier) Progress() { n.marks.Add(1) }

// Wait waits until the exit has ended and everything about it has been told, and then the
// Notifier owns no goroutine. That is the look and the message later that are on their
// way at the exit's end, and for an exit that was shorter than these the first look and
// STOPPING=1, and a message before it: each message 100 ms at most. It returns nil at once
// if there is no systemd. The error is what kept messages from being told, those of
// Ready and Status excepted: no reason to take the exit for failed.
func (n *Notifier) Wait() error {
	<-n.ended
	return n.failed.err()
}

// ask has the goroutine tell a message.
func (n *Notifier) ask(op, message string) (told bool, err error) {
	if n.send == nil {
		return false, nil
	}
	r := request{message, make(chan error, 1)}
	select {
	case n.requests <- r:
		err = <-r.reply
	case <-n.source.Exiting():
		err = lifecycle.ErrExiting
	}
	if err != nil {
		return false, fmt.Errorf("lifecyclesystemd: %s: %w", op, err)
	}
	return true, nil
}

// run is the goroutine.
func (n *Notifier) run() {
	defer close(n.ended)
	n.runUntilExiting()
	n.runUntilDone()
}

func (n *Notifier) runUntilExiting() {
	var tick <-chan time.Time
	if n.watchdog > 0 {
		ticker := time.NewTicker(max(n.watchdog/4, 1))
		defer ticker.Stop()
		tick = ticker.C
	}
	var stalls stalls
	for {
		select {
		case <-n.source.Exiting():
			return
		case r := <-n.requests:
			r.reply <- n.send(r.message)
		case <-tick:
			if stalls.none(n.hosts()) {
				n.tell(daemon.SdNotifyWatchdog)
			}
		}
	}
}

func (n *Notifier) runUntilDone() {
	var progress progress
	progress.look(n.hosts(), n.marks.Load()) // what moves from here on is progress
	status := statusLine(progress.text())
	stopping := n.tell(daemon.SdNotifyStopping + "\n" + status)
	ticker := time.NewTicker(min(n.still/10, maxLook))
	defer ticker.Stop()
	for {
		select {
		case <-n.source.Done():
			return
		case <-ticker.C:
		}
		var lines []string
		if !stopping {
			lines = append(lines, daemon.SdNotifyStopping) // before it there is nothing to extend
		}
		if progress.look(n.hosts(), n.marks.Load()) {
			lines = append(lines, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", n.still.Microseconds()))
		}
		if now := statusLine(progress.text()); now != status || !stopping {
			status = now
			lines = append(lines, status)
		}
		if len(lines) > 0 && n.tell(strings.Join(lines, "\n")) {
			stopping = true
		}
	}
}

func (n *Notifier) tell(message string) bool {
	err := n.send(message)
	if err != nil {
		n.failed.add(message, err)
	}
	return err == nil
}

// failures counts messages that were not told.
type failures struct {
	count int
	first error
}

func (f *failures) add(message string, err error) {
	if f.count == 0 {
		what, _, _ := strings.Cut(message, "\n")
		f.first = fmt.Errorf("%s: %w", what, err)
	}
	f.count++
}

func (f *failures) err() error {
	switch f.count {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("lifecyclesystemd: systemd was not told %w", f.first)
	}
	return fmt.Errorf("lifecyclesystemd: systemd was not told %d messages, the first %w", f.count, f.first)
}

// maxStatus is how long a status may be. systemd drops messages of more than a page, and
// shows a line.
const maxStatus = 1000

// statusLine is a text as a STATUS=, which ends at a line break and must be UTF-8.
func statusLine(text string) string {
	if len(text) > maxStatus {
		text = text[:maxStatus] + "…"
	}
	return "STATUS=" + strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}
