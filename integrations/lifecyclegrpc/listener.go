package lifecyclegrpc

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// listener keeps the connections that it has accepted. grpc.Server waits for each that
// is in its handshake, in GracefulStop and in Stop, for as long as grpc.ConnectionTimeout
// allows, and closes none; so the listener, which both close first, closes those that
// have said nothing yet.
type listener struct {
	net.Listener
	mu     sync.Mutex
	closed bool
	open   map[*connection]bool
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, open: map[*connection]bool{}}
}

func (l *listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	setUserTimeout(accepted)
	c := &connection{Conn: accepted, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		accepted.Close()
		return nil, net.ErrClosed
	}
	l.open[c] = true
	return c, nil
}

// Close closes the listener and the connections of which not a byte has been read.
func (l *listener) Close() error {
	err := l.Listener.Close()
	l.closeConnections(func(c *connection) bool { return !c.heard.Load() })
	return err
}

// closeAll closes the connections, those among them that are in their handshake.
func (l *listener) closeAll() {
	l.closeConnections(func(*connection) bool { return true })
}

func (l *listener) closeConnections(which func(*connection) bool) {
	l.mu.Lock()
	l.closed = true
	var chosen []*connection
	for c := range l.open {
		if which(c) {
			chosen = append(chosen, c)
		}
	}
	l.mu.Unlock()
	for _, c := range chosen {
		c.Close()
	}
}

// SyscallConn is the listener's own, for who looks at its socket's options.
func (l *listener) SyscallConn() (syscall.RawConn, error) { return syscallConn(l.Listener) }

// connection knows whether it has been heard of.
type connection struct {
	net.Conn
	listener *listener
	heard    atomic.Bool // a byte was read
}

func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.heard.Load() {
		c.heard.Store(true)
	}
	return n, err
}

func (c *connection) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.open, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// NetConn returns the connection that was accepted, as tls.Conn's does.
func (c *connection) NetConn() net.Conn { return c.Conn }

// SyscallConn is the connection's own.
func (c *connection) SyscallConn() (syscall.RawConn, error) { return syscallConn(c.Conn) }

func syscallConn(of any) (syscall.RawConn, error) {
	if s, ok := of.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
