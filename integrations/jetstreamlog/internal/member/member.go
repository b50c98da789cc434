// Package member runs NATS servers, each in a process of its own, as one cluster on this
// machine: for the tests and the example.
package member

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Config is one member of a cluster.
type Config struct {
	Name   string // of the server
	Dir    string // where it stores its streams
	Client string // address for clients
	Routes []string
	Route  string // its address for the other members, one of Routes
}

// Plan returns the members of a cluster of n servers, with free ports of 127.0.0.1 and
// directories below dir.
func Plan(dir string, n int) ([]Config, error) {
	members := make([]Config, n)
	addrs, err := FreeAddrs(2 * n)
	if err != nil {
		return nil, err
	}
	routes := addrs[n:]
	for i := range members {
		name := fmt.Sprintf("n%d", i+1)
		members[i] = Config{Name: name, Dir: filepath.Join(dir, name), Client: addrs[i], Route: routes[i], Routes: routes}
	}
	return members, nil
}

// FreeAddrs returns n addresses that nobody listens at. Their ports are below those that
// systems give to outgoing connections: one of these might take the port while its server
// is down, or, of a client that tries again and again, connect to itself. Processes begin
// at different ports.
func FreeAddrs(n int) ([]string, error) {
	var addrs []string
	for len(addrs) < n {
		port := int(nextPort.Add(1))
		if port > lastPort {
			return nil, errors.New("no free port is left")
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue // somebody's
		}
		addrs = append(addrs, l.Addr().String())
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	return addrs, nil
}

const (
	firstPort = 10_000
	lastPort  = 32_000
)

var nextPort = func() *atomic.Int64 {
	var next atomic.Int64
	next.Store(firstPort + int64(os.Getpid()%200)*100)
	return &next
}()

// URL returns the members' address list for nats.Connect.
func URL(members []Config) string {
	var addrs []string
	for _, m := range members {
		addrs = append(addrs, "nats://"+m.Client)
	}
	return strings.Join(addrs, ",")
}

// Start starts the server in this process, and returns when it takes connections. Each
// write is synced before it is acknowledged.
func Start(c Config) (*server.Server, error) {
	client, err := split(c.Client)
	if err != nil {
		return nil, err
	}
	route, err := split(c.Route)
	if err != nil {
		return nil, err
	}
	options := &server.Options{
		ServerName: c.Name,
		Host:       client.host, Port: client.port,
		JetStream: true, StoreDir: c.Dir,
		SyncAlways: true,
		Cluster:    server.ClusterOpts{Name: "lifecycle", Host: route.host, Port: route.port},
		NoLog:      true, NoSigs: true,
	}
	for _, address := range c.Routes {
		options.Routes = append(options.Routes, &url.URL{Scheme: "nats-route", Host: address})
	}
	s, err := server.NewServer(options)
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		s.Shutdown()
		return nil, fmt.Errorf("server %s does not take connections at %s", c.Name, c.Client)
	}
	return s, nil
}

type address struct {
	host string
	port int
}

func split(hostPort string) (address, error) {
	a, err := net.ResolveTCPAddr("tcp", hostPort)
	if err != nil {
		return address{}, err
	}
	return address{a.IP.String(), a.Port}, nil
}
