package jetstreamlog

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/seed080d9131/lifecycle/integrations/jetstreamlog/internal/member"
	"github.com/stretchr/testify/require"
)

// The tests' servers are processes of their own, so that they can be killed as a machine's
// failure kills them. They are this test binary, started with this in the environment.
const serverVariable = "JETSTREAMLOG_TEST_SERVER"

func TestMain(m *testing.M) {
	if text, ok := os.LookupEnv(serverVariable); ok {
		os.Exit(serve(text))
	}
	// Most of the tests that run side by side wait for elections.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	code := m.Run()
	shared.stop()
	os.Exit(code)
}

// serve runs a server until stdin ends, which it does with the process that holds it.
func serve(text string) int {
	var c member.Config
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		_, err = member.Start(c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// cluster is three servers, on which each test has a stream of its own.
type cluster struct {
	once    sync.Once
	err     error
	dir     string
	members []member.Config
	servers map[string]*process // by name; those that run
}

type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   io.Reader
}

var shared cluster

// theCluster returns the cluster of the tests that harm no server. What the test leaves in
// it is deleted at the test's end.
func theCluster(t testing.TB) *cluster {
	t.Helper()
	shared.once.Do(func() {
		if shared.err = shared.plan(); shared.err == nil {
			shared.startAll(t)
			shared.ready(t)
		}
	})
	require.NoError(t, shared.err)
	js, name := shared.connect(t), streamOf(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, name := range []string{name, name + partsSuffix} {
			if err := js.DeleteStream(ctx, name); !errors.Is(err, jetstream.ErrStreamNotFound) {
				require.NoError(t, err)
			}
		}
	})
	return &shared
}

// newCluster returns a cluster of the test's own.
func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{}
	t.Cleanup(c.stop)
	require.NoError(t, c.plan())
	c.startAll(t)
	c.ready(t)
	return c
}

// ready waits until the servers have a leader, without which nothing can be made.
func (c *cluster) ready(t testing.TB) {
	js := c.connect(t)
	eventually(t, "a leader", func(ctx context.Context) error {
		_, err := js.AccountInfo(ctx)
		return err
	})
}

func (c *cluster) plan() (err error) {
	c.servers = map[string]*process{}
	if c.dir, err = os.MkdirTemp("", "jetstreamlog"); err == nil {
		c.members, err = member.Plan(c.dir, 3)
	}
	return err
}

func (c *cluster) stop() {
	for name := range c.servers {
		_ = c.kill(name)
	}
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
}

func (c *cluster) startAll(t testing.TB) {
	t.Helper()
	for _, m := range c.members {
		if c.servers[m.Name] != nil {
			continue
		}
		text, err := json.Marshal(m)
		require.NoError(t, err)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), serverVariable+"="+string(text))
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		c.servers[m.Name] = &process{cmd, stdin, out}
	}
	for name, p := range c.servers {
		if p.out != nil {
			_, err := io.ReadFull(p.out, make([]byte, len("ready\n")))
			require.NoError(t, err, "server %s", name)
			p.out = nil
		}
	}
}

// kill ends a server as a crash does.
func (c *cluster) kill(name string) error {
	p := c.servers[name]
	if p == nil {
		return fmt.Errorf("no server %q", name)
	}
	delete(c.servers, name)
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = p.cmd.Wait() // says that it was killed
	return nil
}

// connect returns a connection to the cluster, or to an address, that goes on for ever.
func (c *cluster) connect(t testing.TB, address ...string) jetstream.JetStream {
	t.Helper()
	url := member.URL(c.members)
	options := []nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond), nats.FlusherTimeout(time.Second),
		nats.RetryOnFailedConnect(true), nats.Timeout(time.Second),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}
	if len(address) > 0 {
		url, options = "nats://"+address[0], append(options, nats.IgnoreDiscoveredServers())
	}
	nc, err := nats.Connect(url, options...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return js
}

// open opens a log for the test, with the options' Timeout long enough for an election.
func (c *cluster) open(t testing.TB, js jetstream.JetStream, options Options) *Log {
	t.Helper()
	l, err := Open(t.Context(), js, streamOf(t), options)
	require.NoError(t, err)
	return l
}

// streams are the names of the tests' own streams. A test that runs again has another.
var streams = struct {
	mu   sync.Mutex
	made int
	of   map[testing.TB]string
}{of: map[testing.TB]string{}}

// streamOf returns the name of the test's own stream.
func streamOf(t testing.TB) string {
	streams.mu.Lock()
	defer streams.mu.Unlock()
	if streams.of[t] == "" {
		streams.made++
		streams.of[t] = fmt.Sprintf("%s-%d", strings.NewReplacer("/", "_", ".", "_", " ", "_").Replace(t.Name()), streams.made)
	}
	return streams.of[t]
}

// place returns the leader of the test's stream and the followers.
func place(t testing.TB, js jetstream.JetStream) (leader string, followers []string) {
	t.Helper()
	eventually(t, "a stream leader", func(ctx context.Context) error {
		s, err := js.Stream(ctx, streamOf(t))
		if err != nil {
			return err
		}
		info := s.CachedInfo().Cluster
		if info == nil || info.Leader == "" {
			return fmt.Errorf("no leader: %+v", info)
		}
		leader, followers = info.Leader, nil
		for _, r := range info.Replicas {
			followers = append(followers, r.Name)
		}
		return nil
	})
	return leader, followers
}

// healthy waits until each server has all of the test's stream.
func healthy(t testing.TB, js jetstream.JetStream) {
	t.Helper()
	eventually(t, "three replicas, none behind", func(ctx context.Context) error {
		s, err := js.Stream(ctx, streamOf(t))
		if err != nil {
			return err
		}
		info := s.CachedInfo().Cluster
		if info == nil || info.Leader == "" || len(info.Replicas) != 2 {
			return fmt.Errorf("%+v", info)
		}
		for _, r := range info.Replicas {
			if !r.Current || r.Offline || r.Lag > 0 {
				return fmt.Errorf("%+v", r)
			}
		}
		return nil
	})
}

// eventually asks until there is no error.
func eventually(t testing.TB, what string, ask func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, try(ctx, func(ctx context.Context) (bool, error) { return false, ask(ctx) }), what)
}
