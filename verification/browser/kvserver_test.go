package browser

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The page of a real server, kvserver as a process of its own, while its exit waits
// for a task that ignores its context.
func TestThePageOfAKvserverNamesTheTaskThatKeepsItsExitWaiting(t *testing.T) {
	b := open(t)
	program := filepath.Join(t.TempDir(), "kvserver")
	out, err := exec.Command("go", "build", "-C", "../..", "-trimpath", "-o", program, "./examples/kvserver").CombinedOutput()
	require.NoError(t, err, "%s", out)

	server := exec.Command(program, "-addr", "127.0.0.1:0", "-debug", "127.0.0.1:0", "-dir", t.TempDir(), "-stuck", "-grace", "1h")
	stderr, err := server.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	address := ""
	for lines := bufio.NewScanner(stderr); address == "" && lines.Scan(); {
		if found := regexp.MustCompile(`url=(http://\S+)`).FindStringSubmatch(lines.Text()); found != nil {
			address = found[1]
		}
	}
	require.NotEmpty(t, address, "it did not say where its status page is")
	go func() { // so that it never waits for us to read
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
		}
	}()

	b.navigate(t, address)
	b.shows(t, "kvserver", "running", "index rebuild", "view cleanup", "disk metrics", "tx metrics")
	require.NoError(t, server.Process.Signal(syscall.SIGTERM))
	b.shows(t, "await tasks for", "Waiting for 1 task", "index rebuild", "main.rebuildIndex")
	b.picture(t, "kvserver")
	b.isQuiet(t, address)

	require.NoError(t, server.Process.Signal(syscall.SIGTERM)) // forces it at once
	b.shows(t, "No answer since")
	require.Error(t, server.Wait(), "a forced exit is no success")
}
