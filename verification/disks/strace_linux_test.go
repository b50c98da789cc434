//go:build !386 && !arm

package disks

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An injection is a system call of the log that fails. Its number counts per thread, and the
// goroutine that writes moves from one to another, so the moment is not exact.
type injection struct {
	call  string
	errno syscall.Errno
	name  string // of errno
	when  [2]int // the number is one of these, or between them
	more  string // "+": and every later one
	path  string // of what it is called for, below the server's directory; "": anything
}

var injections = []injection{
	{"fdatasync", syscall.EIO, "EIO", [2]int{5, 60}, "", ""}, // once: the next one would say OK
	{"fdatasync", syscall.EIO, "EIO", [2]int{5, 60}, "+", ""},
	{"fdatasync", syscall.ENOSPC, "ENOSPC", [2]int{5, 60}, "", ""},
	{"pwrite64", syscall.EIO, "EIO", [2]int{5, 60}, "", ""},
	{"pwrite64", syscall.ENOSPC, "ENOSPC", [2]int{5, 60}, "+", ""},
	{"fsync", syscall.EIO, "EIO", [2]int{3, 5}, "", "log"}, // of the directory, when a segment gets its name
	{"renameat", syscall.EIO, "EIO", [2]int{3, 5}, "", ""}, // the name itself
}

// A server is a kvserver that runs as a process of its own, perhaps under strace.
type server struct {
	t      *testing.T
	cmd    *exec.Cmd
	base   string // of its URLs
	stdout bytes.Buffer
	stderr bytes.Buffer
	served chan string   // its address
	ended  chan struct{} // the process has, and cmd's state and stderr may be looked at
}

// launch starts a program, and serves when it says that it does.
func launch(t *testing.T, name string, args ...string) *server {
	t.Helper()
	s := &server{t: t, cmd: exec.Command(name, args...), served: make(chan string, 1), ended: make(chan struct{})}
	s.cmd.Stdout = &s.stdout
	// One group, so that whatever strace leaves behind ends with it.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := s.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, s.cmd.Start())
	go func() {
		defer close(s.ended)
		address := regexp.MustCompile(`msg=serving addr=(\S+)`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&s.stderr, lines.Text())
			if found := address.FindStringSubmatch(lines.Text()); found != nil {
				s.served <- found[1]
			}
		}
		_ = s.cmd.Wait() // the exit code says more
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.ended
	})
	select {
	case addr := <-s.served:
		s.base = "http://" + addr
	case <-s.ended:
		require.Fail(t, "it does not serve", "%s", &s.stderr)
	case <-time.After(programTimeout):
		require.Fail(t, "it does not serve")
	}
	return s
}

// exitCode waits for the end of the process.
func (s *server) exitCode() int {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(programTimeout):
		require.Fail(s.t, "it does not end")
	}
	return s.cmd.ProcessState.ExitCode()
}

// puts are the requests of clients, and their outcomes.
type puts struct {
	mu      sync.Mutex
	acked   map[string]string // value by key
	refused map[string]string // 500 or 503
	broken  map[string]string // no answer
	wrong   []string
}

const (
	putClients = 6
	maxPuts    = 3000 // of each: far more than the server should live to see
)

// put has clients put keys, each one after another, until the server is gone.
func (s *server) put(seed uint64) *puts {
	p := &puts{acked: map[string]string{}, refused: map[string]string{}, broken: map[string]string{}}
	ctx, cancel := context.WithTimeout(s.t.Context(), programTimeout)
	defer cancel()
	var group sync.WaitGroup
	for c := range putClients {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(c)))
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for i := range maxPuts {
				key := fmt.Sprintf("client-%d-key-%d", c, i)
				value := strings.Repeat(fmt.Sprintf("%s-%d ", key, rng.Uint64()), 1+rng.IntN(60))
				request, err := http.NewRequestWithContext(ctx, http.MethodPut, s.base+"/kv/"+key, strings.NewReader(value))
				if err != nil {
					panic(err)
				}
				response, err := client.Do(request)
				if err == nil {
					_, _ = io.Copy(io.Discard, response.Body)
					response.Body.Close()
				}
				p.mu.Lock()
				switch {
				case err != nil:
					p.broken[key] = value
				case response.StatusCode == http.StatusNoContent:
					p.acked[key] = value
				case response.StatusCode == http.StatusInternalServerError, response.StatusCode == http.StatusServiceUnavailable:
					p.refused[key] = value
				default:
					p.wrong = append(p.wrong, fmt.Sprintf("%s was answered with %s", key, response.Status))
				}
				p.mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	group.Wait()
	return p
}

// get returns the value of a key.
func (s *server) get(key string) (value string, found bool) {
	s.t.Helper()
	response, err := http.Get(s.base + "/kv/" + key)
	require.NoError(s.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(s.t, err)
	if response.StatusCode == http.StatusNotFound {
		return "", false
	}
	require.Equal(s.t, http.StatusOK, response.StatusCode)
	return string(body), true
}

// A system call of a running kvserver fails. The server ends by itself and says why, every
// write that it answered with yes is there when it runs again, and one that it answered with an
// error is there whole or not at all.
func TestAServerWhoseSystemCallFailsEndsByItselfAndLosesNothing(t *testing.T) {
	if out, err := try("strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fsync", "true"); err != nil {
		t.Skipf("skipped: needs strace, and ptrace: %v: %s", err, out)
	}
	rng, seed := random(t)
	program := build(t, "github.com/seed080d9131/lifecycle/examples/kvserver")
	acked, refused, broken, rounds := 0, 0, 0, size(0, 1, 4)
	for round := range rounds {
		for i, inject := range injections {
			when := inject.when[0] + rng.IntN(inject.when[1]-inject.when[0]+1)
			how := fmt.Sprintf("inject=%s:error=%s:when=%d%s", inject.call, inject.name, when, inject.more)
			t.Run(fmt.Sprintf("round %d %s", round, how), func(t *testing.T) {
				data := filepath.Join(t.TempDir(), "data")
				trace := []string{"-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=" + inject.call, "-e", how}
				if inject.path != "" {
					trace = append(trace, "-P", filepath.Join(data, inject.path))
				}
				args := []string{"-addr", "127.0.0.1:0", "-dir", data, "-segment", "32768"}
				s := launch(t, "strace", append(append(trace, program), args...)...)
				p := s.put(seed + uint64(round*len(injections)+i))
				require.Empty(t, p.wrong)
				require.Len(t, p.broken, putClients, "the server does not end")
				require.Equal(t, 1, s.exitCode(), "%s", &s.stderr)
				require.Contains(t, s.stderr.String(), "kvserver: lifecycle: ")
				require.Contains(t, s.stderr.String(), inject.errno.Error())
				require.Contains(t, s.stdout.String(), "exit of host kvserver: failed in")
				require.NotEmpty(t, p.acked)
				// Somebody waited for what failed, and was told.
				require.NotEmpty(t, p.refused)

				s = launch(t, program, args...)
				for key, want := range p.acked {
					got, found := s.get(key)
					require.True(t, found, "lost: %s", key)
					require.Equal(t, want, got, key)
				}
				for _, unknown := range []map[string]string{p.refused, p.broken} {
					for key, want := range unknown {
						if got, found := s.get(key); found {
							require.Equal(t, want, got, key)
						}
					}
				}
				require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
				require.Zero(t, s.exitCode(), "%s", &s.stderr)
				acked, refused, broken = acked+len(p.acked), refused+len(p.refused), broken+len(p.broken)
			})
		}
	}
	if t.Failed() {
		return
	}
	t.Logf("counts: injected errors %d, puts acknowledged %d, answered with an error %d, without an answer %d",
		rounds*len(injections), acked, refused, broken)
}
