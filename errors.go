package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Sentinels. Every error of this package that stands for one of them says more
// in its text: which host, what was asked, and why.
var (
	// ErrExiting: the exit has begun, so Go, Every, Enter, OnExit or Launch
	// refused. It is also the cause (context.Cause) that tasks see in a plain
	// exit.
	ErrExiting = errors.New("the exit has begun")
	// ErrClosed: the durability channel is sealed or the log has failed, so
	// Append refused; or Wait was asked for an offset that will never be
	// accepted.
	ErrClosed = errors.New("the durability channel is closed")
	// ErrSelfExit: Exit or ForceExit was called from inside one of the host's
	// own tasks, calls or hooks, and would wait for its caller. Fail begins the
	// exit without waiting.
	ErrSelfExit = errors.New("an exit can't be awaited from inside the host: it would wait for its own caller")
	// ErrForced: ForceExit left something behind, skipped it or lost it. It is
	// also the cause that hooks see when ForceExit cancels them, and tasks when it
	// began the exit.
	ErrForced = errors.New("the exit was forced")
	// ErrUnknown: the transaction was accepted, but whether it is durable can't
	// be told. The log shows it when it is opened again.
	ErrUnknown = errors.New("accepted, outcome unknown")
	// ErrGoexit: a task, hook or log called runtime.Goexit.
	ErrGoexit = errors.New("runtime.Goexit was called")
	// ErrTooLarge: the transaction is longer than MaxTransactionBytes.
	ErrTooLarge = errors.New("the transaction is too large")
	// ErrInvalid: an argument that can't be meant; the text says which.
	ErrInvalid = errors.New("invalid argument")
	// ErrNoHost: no host is registered under that key.
	ErrNoHost = errors.New("no such host")
)

// refusal is what admission answers. It unwraps to ErrExiting or ErrClosed.
type refusal struct {
	host  *Host
	what  string // `Go "view cleanup"`
	phase Phase
	cause string // why the exit began; "": plain
	is    error
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("lifecycle: host %q: %s refused: %v", r.host.name, r.what, r.is)
	if r.phase != 0 {
		text += fmt.Sprintf(" (phase %q", r.phase.String())
		if r.cause != "" {
			text += ", because of: " + r.cause
		}
		text += ")"
	}
	return text
}

func (r *refusal) Unwrap() error { return r.is }

// refuse makes the refusal of what, with the phase and cause of the moment.
func (h *Host) refuse(what string, is error) error {
	if is == ErrExiting {
		<-h.exiting // a moment: until everything new is refused
	}
	phase, cause := h.whereAndWhy()
	return &refusal{host: h, what: what, phase: phase, cause: cause, is: is}
}

func (h *Host) invalid(what, why string) error {
	return fmt.Errorf("lifecycle: host %q: %s: %w: %s", h.name, what, ErrInvalid, why)
}

// unknown is an error that came after a transaction was accepted: the log's, or
// that of the context under which somebody waited.
type unknown struct {
	host   string
	offset Offset
	err    error
}

func (u *unknown) Error() string {
	why := fmt.Sprint(u.err)
	if failed, ok := u.err.(*LogError); ok {
		why = failed.what() // the host is named already
	}
	return fmt.Sprintf("lifecycle: host %q: transaction %d: %v: %s", u.host, u.offset, ErrUnknown, why)
}

func (u *unknown) Unwrap() error        { return u.err }
func (u *unknown) Is(target error) bool { return target == ErrUnknown }

// TaskError is the failure of a task of Go.
type TaskError struct {
	Task  string
	Err   error  // what it returned, a *PanicError, or ErrGoexit
	Stack []byte // of the panic or Goexit; nil: it returned
	host  string
}

func (e *TaskError) Error() string {
	return fmt.Sprintf("lifecycle: %stask %q: %v", hostText(e.host), e.Task, e.Err)
}

func (e *TaskError) Unwrap() error { return e.Err }

// HookError is the failure of a hook.
type HookError struct {
	Phase Phase
	Hook  string
	Err   error  // what it returned, a *PanicError, or ErrGoexit
	Stack []byte // of the panic or Goexit; nil: it returned
	host  string
}

func (e *HookError) Error() string {
	return fmt.Sprintf("lifecycle: %s%v: hook %q: %v", hostText(e.host), e.Phase, e.Hook, e.Err)
}

func (e *HookError) Unwrap() error { return e.Err }

// LogError is the first failure of a host's Log. After it nothing is accepted
// any more, so it also is ErrClosed.
type LogError struct {
	Op   string // "next", "append", "sync" or "close"
	Err  error  // what the log returned, or a *PanicError (its Value is ErrGoexit if it called runtime.Goexit)
	host string
	text string // of Err, made when the host met it
}

func (e *LogError) Error() string {
	return "lifecycle: " + hostText(e.host) + e.what()
}

func (e *LogError) what() string {
	why := e.text
	if why == "" {
		why = fmt.Sprint(e.Err)
	}
	return "log: " + e.Op + ": " + why
}

func newLogError(host, op string, err error, stack []byte) *LogError {
	if err == ErrGoexit && stack != nil {
		err = &PanicError{Value: ErrGoexit, Stack: stack}
	}
	return &LogError{Op: op, Err: err, host: host, text: text(err)}
}

func (e *LogError) Unwrap() error { return e.Err }

// Is makes a LogError an ErrClosed as well.
func (e *LogError) Is(target error) bool { return target == ErrClosed }

// PanicError is a panic that was caught.
type PanicError struct {
	Value any    // what panic was called with
	Stack []byte // of the goroutine that panicked, as debug.Stack formats it
}

func (e *PanicError) Error() string {
	if e.Value == ErrGoexit {
		return ErrGoexit.Error()
	}
	return fmt.Sprintf("panic: %v", e.Value)
}

// Unwrap returns Value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// ExitError says that an exit has not ended for this caller yet (Err is the
// caller's context error, and the exit goes on), or that it was forced (Err is
// ErrForced, joined with ErrUnknown and the failures beside the cause where there
// are any). It unwraps to Cause and Err.
type ExitError struct {
	Host       string
	Phase      Phase       // that waits, or in which the first was left behind
	Stragglers []Straggler // who is waited for, or who was left behind
	Cause      error       // what began the exit; nil: a plain exit
	Err        error
}

// The text of an ExitError names so many stragglers and counts the others.
const maxNamed = 8

func (e *ExitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "lifecycle: host %q: %v: ", e.Host, e.Phase)
	switch n := len(e.Stragglers); n {
	case 0:
	case 1:
		b.WriteString("1 straggler: ")
	default:
		fmt.Fprintf(&b, "%d stragglers: ", n)
	}
	for i, s := range e.Stragglers {
		if i == maxNamed {
			fmt.Fprintf(&b, "and %d more; ", len(e.Stragglers)-i)
			break
		}
		b.WriteString(s.String())
		if i < len(e.Stragglers)-1 {
			b.WriteString(", ")
		} else {
			b.WriteString("; ")
		}
	}
	fmt.Fprintf(&b, "%v", e.Err)
	if e.Cause != nil {
		fmt.Fprintf(&b, " (the exit began because of: %v)", e.Cause)
	}
	return b.String()
}

func (e *ExitError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Err}
	}
	return []error{e.Err, e.Cause}
}

// Straggler is whoever an exit waits for. Those of one kind and name are one
// straggler.
type Straggler struct {
	Kind  string        `json:"kind"` // "call", "task", "hook" or "log"
	Name  string        `json:"name"`
	Count int           `json:"count"`
	Age   time.Duration `json:"age"` // of the oldest, since it began; a call's is at least this
	// Stack is that of one of them, its own; one of over 128 frames, whose root a
	// profile cuts off, may be that of a goroutine which it has started. "": it is not
	// to be had, because it is not among the oldest 64, or replaced the profiler
	// labels that its context carries. Calls have no goroutine that the host knows: theirs shows who waits
	// inside Exit, since one of those may hold a call.
	Stack string `json:"stack"`
}

// String returns kind, name, count and age in a few words.
func (s Straggler) String() string {
	text := s.Kind
	if s.Name != "" {
		text += " " + strconv.Quote(s.Name)
	}
	if s.Count > 1 {
		text += " × " + strconv.Itoa(s.Count)
	}
	return text + " (" + shortDuration(s.Age) + ")"
}

// failures is what went wrong in an exit: the first maxFailures as they are, the
// others counted.
type failures struct {
	errs    []error
	dropped int
}

const maxFailures = 100

func (f *failures) add(err error) {
	if len(f.errs) == maxFailures {
		f.dropped++
		return
	}
	f.errs = append(f.errs, err)
}

// join returns nil if there were none.
func (f *failures) join(host string) error {
	if f.dropped == 0 {
		return errors.Join(f.errs...)
	}
	return errors.Join(append(f.errs[:len(f.errs):len(f.errs)],
		fmt.Errorf("lifecycle: host %q: and %d more failures", host, f.dropped))...)
}

// causeError gives the cause that the owner passed to Fail the name of the host
// that it failed.
type causeError struct {
	host string
	err  error
}

func (c *causeError) Error() string {
	return fmt.Sprintf("lifecycle: host %q: failed: %v", c.host, c.err)
}

func (c *causeError) Unwrap() error { return c.err }

// onlyEchoes reports whether err says nothing but what is already known: every
// leaf of its tree, and it has one, lies under a node for which known holds. An
// error that wraps context.Canceled *and* something else says something else, and
// so does one whose tree has more than maxNodes nodes, or no end.
func onlyEchoes(err error, known func(error) bool) bool {
	nodes := 0
	var walk func(error) bool
	walk = func(err error) bool {
		if nodes++; err == nil || nodes > maxNodes {
			return false
		}
		if known(err) {
			return true
		}
		switch err := err.(type) {
		case interface{ Unwrap() error }:
			return walk(err.Unwrap())
		case interface{ Unwrap() []error }:
			inner := err.Unwrap()
			for _, e := range inner {
				if !walk(e) {
					return false
				}
			}
			return len(inner) > 0
		}
		return false
	}
	return aside(false, func() bool { return walk(err) })
}

const maxNodes = 1000

// isSame reports whether err is target itself. (What its Is method may say does
// not count: a *LogError is ErrClosed, and yet says more.)
func isSame(err, target error) bool {
	return err != nil && target != nil && reflect.ValueOf(target).Comparable() && err == target
}

// isCancellation reports whether err says only that ctx was cancelled.
func isCancellation(ctx context.Context, err error) bool {
	if ctx.Err() == nil {
		return false
	}
	cause := context.Cause(ctx)
	if err == context.Canceled || isSame(err, cause) {
		return true // by far the most frequent
	}
	return onlyEchoes(err, func(node error) bool {
		is, ok := node.(interface{ Is(error) bool })
		return node == context.Canceled || isSame(node, cause) || ok && is.Is(context.Canceled)
	})
}

// text is err's message.
func text(err error) string {
	if err == nil {
		return ""
	}
	return aside(fmt.Sprintf("a %T whose Error method does not return", err), func() string {
		return fmt.Sprint(err) // which catches a panic
	})
}

// aside calls f, which runs methods of errors that users wrote, in a goroutine of
// its own: not even a Goexit in one reaches the caller, who gets otherwise. Call
// it without a lock.
func aside[T any](otherwise T, f func() T) T {
	result := otherwise
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		result = f()
	}()
	<-done
	return result
}

// guardedLogger writes for Run and Controllers, which have no phase to report a
// handler that hangs in: after ForceGrace it is left behind, and until it returns
// no other record is written. One that panics or calls Goexit changes nothing.
type guardedLogger struct {
	logger *slog.Logger // nil: silent
	left   atomic.Int32 // records that were left behind and have not been written
}

func (l *guardedLogger) log(level slog.Level, message string, attrs ...any) {
	if l.logger == nil || l.left.Load() > 0 {
		return
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer func() { _ = recover() }()
		l.logger.Log(context.Background(), level, message, attrs...)
	}()
	patience := time.NewTimer(ForceGrace)
	defer patience.Stop()
	select {
	case <-written:
	case <-patience.C:
		l.left.Add(1)
		go func() {
			<-written
			l.left.Add(-1)
		}()
	}
}

func hostText(host string) string {
	if host == "" {
		return ""
	}
	return fmt.Sprintf("host %q: ", host)
}

// protect calls f and returns its error. A panic comes back as a *PanicError and
// the stack; the stack is what tells it from an error of that type which f returned.
// A runtime.Goexit can't be stopped: goexit is called with ErrGoexit and the stack
// while the goroutine unwinds, and protect does not return. If a deferred func of f
// panics meanwhile, goexit is called with that.
func protect(f func() error, goexit func(err error, stack []byte)) (stack []byte, err error) {
	unwinding := true
	defer func() {
		if unwinding { // recover has stopped a panic, but not a Goexit below it
			goexit(err, stack)
		}
	}()
	func() {
		returned := false
		defer func() {
			if returned {
				return
			}
			stack, err = debug.Stack(), ErrGoexit
			if v := recover(); v != nil { // panic(nil) has an error of its own (Go 1.21)
				err = &PanicError{Value: v, Stack: stack}
			}
		}()
		err = f()
		returned = true
	}()
	unwinding = false
	return stack, err
}
