package lifecyclesystemd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/lifecyclesystemd"
)

// service is set in the environment of a process that is the service of a test.
const service = "LIFECYCLESYSTEMD_SERVICE"

func TestMain(m *testing.M) {
	if os.Getenv(service) != "" {
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve is a service with three calls in flight. At each line of standard input one
// leaves.
func serve() error {
	host := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
	var calls [3]lifecycle.Call
	for i := range calls {
		var err error
		if calls[i], err = host.Enter(); err != nil {
			return err
		}
	}
	notifier, err := lifecyclesystemd.Start(host, lifecyclesystemd.Options{Still: time.Second})
	if err != nil {
		return err
	}
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for _, call := range calls {
			lines.Scan()
			call.Leave()
		}
	}()
	// READY is answered with a SIGTERM, which may come before Run catches any.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if told, err := notifier.Ready("serving"); !told || err != nil {
		return fmt.Errorf("ready: told %t: %w", told, err)
	}
	err = lifecycle.Run(ctx, host, lifecycle.RunOptions{Grace: time.Hour, Signals: []os.Signal{}})
	return errors.Join(err, notifier.Wait())
}

// socket is systemd's end.
func socket(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	// Not t.TempDir: a socket's path is short.
	dir, err := os.MkdirTemp("", "sd")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "notify")
	connection, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	require.NoError(t, err)
	t.Cleanup(func() { connection.Close() })
	return connection, path
}

// receive returns the next message's lines.
func receive(t *testing.T, connection *net.UnixConn) []string {
	t.Helper()
	require.NoError(t, connection.SetReadDeadline(time.Now().Add(20*time.Second)))
	buffer := make([]byte, 4096) // systemd's
	n, err := connection.Read(buffer)
	require.NoError(t, err)
	return strings.Split(string(buffer[:n]), "\n")
}

func TestARealServiceTellsARealSocket(t *testing.T) {
	connection, path := socket(t)
	command := exec.CommandContext(t.Context(), os.Args[0])
	command.Env = append(os.Environ(), service+"=1", "NOTIFY_SOCKET="+path)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())

	require.Equal(t, []string{"READY=1", "STATUS=serving"}, receive(t, connection))
	require.NoError(t, command.Process.Signal(syscall.SIGTERM))
	require.Equal(t, []string{"STOPPING=1", "STATUS=exiting: exit module, 3 calls"}, receive(t, connection))
	for _, left := range []string{"2 calls", "1 call"} {
		fmt.Fprintln(stdin)
		require.Equal(t, []string{"EXTEND_TIMEOUT_USEC=1000000", "STATUS=exiting: exit module, " + left}, receive(t, connection))
	}
	fmt.Fprintln(stdin)
	require.NoError(t, command.Wait())
}

func TestAnAbstractSocketIsOneToo(t *testing.T) {
	name := fmt.Sprintf("@lifecyclesystemd-%d", os.Getpid())
	connection, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	require.NoError(t, err)
	defer connection.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	host := lifecycle.New(nil, lifecycle.Options{})
	notifier, err := lifecyclesystemd.Start(host, lifecyclesystemd.Options{})
	require.NoError(t, err)
	told, err := notifier.Ready("")
	require.NoError(t, err)
	require.True(t, told)
	require.Equal(t, []string{"READY=1"}, receive(t, connection))
	require.NoError(t, host.Exit(t.Context()))
	require.NoError(t, notifier.Wait())
}

func TestWithoutASocketNothingIsDoneAndSaid(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	host := lifecycle.New(nil, lifecycle.Options{})
	notifier, err := lifecyclesystemd.Start(host, lifecyclesystemd.Options{})
	require.NoError(t, err)
	require.NoError(t, notifier.Wait(), "there is nothing to wait for, while the host runs")
	told, err := notifier.Ready("serving")
	require.NoError(t, err)
	require.False(t, told)
	told, err = notifier.Status("serving")
	require.NoError(t, err)
	require.False(t, told)
	notifier.Progress()
	require.NoError(t, host.Exit(t.Context()))
}

func TestASocketThatIsGoneKeepsNoExitWaiting(t *testing.T) {
	connection, path := socket(t)
	t.Setenv("NOTIFY_SOCKET", path)
	host := lifecycle.New(nil, lifecycle.Options{})
	notifier, err := lifecyclesystemd.Start(host, lifecyclesystemd.Options{})
	require.NoError(t, err)
	require.NoError(t, connection.Close())
	told, err := notifier.Ready("")
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.False(t, told)
	require.NoError(t, os.Remove(path))
	_, err = notifier.Ready("")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, host.Exit(t.Context()))
	require.ErrorIs(t, notifier.Wait(), os.ErrNotExist)
}

func TestASocketThatIsFullKeepsNoExitWaiting(t *testing.T) {
	_, path := socket(t)
	filler, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: path})
	require.NoError(t, err)
	defer filler.Close()
	raw, err := filler.SyscallConn()
	require.NoError(t, err)
	var full error
	require.NoError(t, raw.Write(func(fd uintptr) bool {
		for full == nil {
			_, full = syscall.Write(int(fd), []byte("x"))
		}
		return true
	}))
	require.ErrorIs(t, full, syscall.EAGAIN)

	t.Setenv("NOTIFY_SOCKET", path)
	host := lifecycle.New(nil, lifecycle.Options{})
	notifier, err := lifecyclesystemd.Start(host, lifecyclesystemd.Options{})
	require.NoError(t, err)
	told, err := notifier.Ready("")
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.False(t, told)
	require.NoError(t, host.Exit(t.Context()))
	require.ErrorIs(t, notifier.Wait(), os.ErrDeadlineExceeded)
}
