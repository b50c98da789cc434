package jetstreamlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// proxy stands between a client and a server.
type proxy struct {
	address string

	mu    sync.Mutex
	links map[*link]bool
}

// link is one connection through the proxy.
type link struct {
	client, server net.Conn

	mu      sync.Mutex
	deaf    bool         // what the server says is dropped
	hold    bool         // what the client says is kept,
	held    bytes.Buffer // here
	pongs   int          // how many the server has said
	awaited int          // how many it should have said at last
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{address: listener.Addr().String(), links: map[*link]bool{}}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), "tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			l := &link{client: client, server: server}
			p.mu.Lock()
			p.links[l] = true
			p.mu.Unlock()
			running.Go(l.up)
			running.Go(l.down)
		}
	})
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		p.each(func(l *link) { l.client.Close(); l.server.Close() })
		running.Wait()
	})
	return p
}

func (p *proxy) each(f func(*link)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		f(l)
	}
}

func (l *link) up() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := l.client.Read(buffer)
		l.mu.Lock()
		if l.hold {
			l.held.Write(buffer[:n])
			n = 0
		}
		if err != nil {
			held := l.hold
			l.mu.Unlock()
			if !held { // what is held is for the server still
				l.server.Close()
			}
			return
		}
		l.mu.Unlock()
		if _, err := l.server.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// down goes on when the client has gone: what the server is sent counts.
func (l *link) down() {
	buffer := make([]byte, 64<<10)
	for gone := false; ; {
		n, err := l.server.Read(buffer)
		if err != nil {
			l.client.Close()
			return
		}
		l.mu.Lock()
		l.pongs += bytes.Count(buffer[:n], []byte("PONG\r\n"))
		deaf := l.deaf
		l.mu.Unlock()
		if !gone && !deaf {
			_, err = l.client.Write(buffer[:n])
			gone = err != nil
		}
	}
}

// dropAnswers makes the client hear nothing any more on its present connections.
func (p *proxy) dropAnswers() {
	p.each(func(l *link) { l.mu.Lock(); l.deaf = true; l.mu.Unlock() })
}

// holdRequests keeps what the client sends on its present connections.
func (p *proxy) holdRequests() {
	p.each(func(l *link) { l.mu.Lock(); l.hold = true; l.mu.Unlock() })
}

// awaitHeld waits until something is kept that has all of text in it.
func (p *proxy) awaitHeld(t testing.TB, text string) {
	eventually(t, "a request that is held", func(context.Context) error {
		found := false
		p.each(func(l *link) {
			l.mu.Lock()
			found = found || bytes.Contains(l.held.Bytes(), []byte(text))
			l.mu.Unlock()
		})
		if !found {
			return errors.New("not yet")
		}
		return nil
	})
}

// cut ends the client's side of its present connections. The client connects anew.
func (p *proxy) cut() {
	p.each(func(l *link) { l.client.Close() })
}

// release lets the server have what was kept, however late, and returns when it has
// read all of it.
func (p *proxy) release(t testing.TB) (copies int) {
	p.each(func(l *link) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.held.Len() == 0 {
			return
		}
		copies += bytes.Count(l.held.Bytes(), []byte(jetstream.ExpectedLastSeqHeader))
		l.held.WriteString("PING\r\n")
		l.awaited = l.pongs + bytes.Count(l.held.Bytes(), []byte("PING\r\n"))
		_, err := l.server.Write(l.held.Bytes())
		require.NoError(t, err)
		l.held.Reset()
	})
	eventually(t, "the servers' answers to the pings", func(context.Context) (err error) {
		p.each(func(l *link) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.pongs < l.awaited {
				err = fmt.Errorf("%d answers of %d", l.pongs, l.awaited)
			}
		})
		return err
	})
	return copies
}
