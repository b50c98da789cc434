package server

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// process is a kvserver that runs as a process of its own.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	base   string // of its URLs
	stdout syncBuffer
	stderr syncBuffer
	lines  chan string   // of stderr; closed at its end
	ended  chan struct{} // the process has, and state is set
}

// build makes the program.
func build(t *testing.T) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGTERM to send")
	}
	path := filepath.Join(t.TempDir(), "kvserver")
	out, err := exec.Command("go", "build", "-o", path, "..").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return path
}

// launch starts a program with arguments.
func launch(t *testing.T, path string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(path, args...), lines: make(chan string, 10000), ended: make(chan struct{})}
	p.cmd.Stdout = &p.stdout
	read, write := io.Pipe()
	p.cmd.Stderr = io.MultiWriter(&p.stderr, write)
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.lines)
		for scanner := bufio.NewScanner(read); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
	}()
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // the exit code says more
		write.Close()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// line waits for a line of stderr that has all these parts.
func (p *process) line(parts ...string) string {
	p.t.Helper()
next:
	for line := range p.lines {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue next
			}
		}
		return line
	}
	require.Fail(p.t, "no such line", "the process ended without a line with %q\n%s", parts, &p.stderr)
	return ""
}

// durationOf is what a line of the log says of a key.
func durationOf(t *testing.T, line, key string) time.Duration {
	t.Helper()
	found := regexp.MustCompile(` ` + key + `=(\S+)`).FindStringSubmatch(line)
	require.NotNil(t, found, line)
	d, err := time.ParseDuration(found[1])
	require.NoError(t, err)
	return d
}

// serve waits until the process serves.
func (p *process) serve() {
	p.t.Helper()
	line := p.line("msg=serving")
	p.base = "http://" + regexp.MustCompile(`addr=(\S+)`).FindStringSubmatch(line)[1]
}

func (p *process) put(key, value string) {
	p.t.Helper()
	request, err := http.NewRequest("PUT", p.base+"/kv/"+key, strings.NewReader(value))
	require.NoError(p.t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(p.t, err)
	response.Body.Close()
	require.Equal(p.t, http.StatusNoContent, response.StatusCode)
}

func (p *process) terminate() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
}

// exitCode waits for the end of the process.
func (p *process) exitCode(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(within):
		require.Fail(p.t, "too late", "it has not ended within %v\n%s", within, &p.stderr)
	}
	return p.cmd.ProcessState.ExitCode()
}

// The line at which the task of -stuck waits, as logs and reports show it.
var stuckLine = regexp.MustCompile(`rebuildIndex\S* \S*stuck\.go:1[0-9]`)

// requireLeftBehind checks a forced exit's report.
func (p *process) requireLeftBehind() {
	p.t.Helper()
	report := p.stdout.String()
	require.Contains(p.t, report, ": forced in")
	require.Contains(p.t, report, "left behind task \"index rebuild\" (")
	require.NotContains(p.t, report, "left behind task \"http\"", "the listener obeys")
	require.Regexp(p.t, stuckLine, strings.Join(strings.Fields(report), " "))
	require.Contains(p.t, p.stderr.String(), "kvserver: lifecycle: Run: the exit was forced since")
}

func TestAnExitThatATaskHoldsUpSaysWhoItIsAndASecondSignalForcesIt(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("the first report comes after 5 s")
	}
	dir := t.TempDir()
	p := launch(t, build(t), "-stuck", "-addr", "127.0.0.1:0", "-dir", dir)
	p.serve()
	for i := range 20 {
		p.put(fmt.Sprint(i), "value "+fmt.Sprint(i))
	}
	p.terminate()
	line := p.line(`msg="exit waits"`, `name="index rebuild"`)
	require.Contains(t, line, `phase="await tasks"`)
	require.GreaterOrEqual(t, durationOf(t, line, "phase_age"), 5*time.Second)
	require.GreaterOrEqual(t, durationOf(t, line, "age"), durationOf(t, line, "phase_age"))
	require.Regexp(t, stuckLine, line)

	p.terminate()
	require.Equal(t, 1, p.exitCode(3*time.Second), "at once: there were 20 s of grace left")
	p.requireLeftBehind()
	require.Contains(t, p.stderr.String(), "a second signal, terminated, came")
	requireValues(t, dir, 20)
}

func TestAtTheEndOfGraceTheStuckTaskIsLeftBehindAndNothingIsLost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := launch(t, build(t), "-stuck", "-grace", "300ms", "-addr", "127.0.0.1:0", "-dir", dir)
	p.serve()
	for i := range 20 {
		p.put(fmt.Sprint(i), "value "+fmt.Sprint(i))
	}
	p.terminate()
	require.Equal(t, 1, p.exitCode(5*time.Second))
	p.requireLeftBehind()
	require.Contains(t, p.stderr.String(), "it did not end within 300ms")
	require.Contains(t, p.stderr.String(), `msg="left behind"`)
	requireValues(t, dir, 20)
}

func TestAStuckTaskUnderLoadCostsNoAcknowledgedWrite(t *testing.T) {
	t.Parallel()
	path := build(t)
	var p *process
	for p == nil || strings.Contains(p.stdout.String(), "writes: acknowledged 0,") { // until a run has shown something
		p = launch(t, path, "-stuck", "-load", "500ms", "-grace", "300ms", "-clients", "8", "-keys", "20")
		require.Equal(t, 1, p.exitCode(time.Minute))
		p.requireLeftBehind()
		require.Contains(t, p.stdout.String(), "lost 0, wrong 0")
	}
	require.Contains(t, p.stdout.String(), "the exit was forced: that alone makes this run a failure")
	require.NotContains(t, p.stderr.String(), "the directory is kept")
}

// requireValues opens a directory that a process has left, and looks for the values
// that it acknowledged.
func requireValues(t *testing.T, dir string, n int) {
	t.Helper()
	state, err := openState(dir, 0)
	require.NoError(t, err)
	defer func() { require.NoError(t, state.log.Close()) }()
	for i := range n {
		it := state.table.get(fmt.Sprint(i))
		require.NotNil(t, it)
		require.Equal(t, "value "+fmt.Sprint(i), string(it.value))
	}
}
