package peers_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/benchmarks/peers"
)

func everyone() []peers.Peer { return append([]peers.Peer{peers.Ours}, peers.All()...) }

// The test binary run again under strace, with this set, is the one whose syncs are counted.
const traced = "PEERS_TRACED"

// Ten committers, ten records each, which reuse their buffers as the contract allows: closed and opened again,
// every one holds each record once.
func TestWhatWasCommittedIsThereWhenOpenedAgain(t *testing.T) {
	for _, peer := range everyone() {
		t.Run(peer.Name, func(t *testing.T) {
			dir := t.TempDir()
			c, err := peer.Open(dir)
			require.NoError(t, err)
			var want []string
			for i := range 100 {
				want = append(want, text(i))
			}
			var group sync.WaitGroup
			failures := make([]error, 10)
			for worker := range 10 {
				group.Go(func() {
					var b []byte
					for i := range 10 {
						b = append(b[:0], text(10*worker+i)...)
						failures[worker] = errors.Join(failures[worker], c.Commit(b))
						clear(b)
					}
				})
			}
			group.Wait()
			require.NoError(t, errors.Join(failures...))
			require.NoError(t, c.Close())
			var got []string
			require.NoError(t, peer.Read(dir, func(b []byte) { got = append(got, string(b)) }))
			require.ElementsMatch(t, want, got)
		})
	}
}

func text(i int) string {
	return fmt.Sprintf("%03d%s", i, strings.Repeat("x", i))
}

// One committer can't share a sync, so each of its commits needs one. The system calls of a whole process that
// commits n times are counted: fsync, fdatasync and msync with MS_SYNC. (None of them relies on O_DSYNC.)
func TestOneCommitterSyncsEachTime(t *testing.T) {
	const commits = 300
	if name := os.Getenv(traced); name != "" {
		for _, peer := range everyone() {
			if peer.Name != name {
				continue
			}
			c, err := peer.Open(os.Getenv(traced + "_DIR"))
			require.NoError(t, err)
			for i := range commits {
				require.NoError(t, c.Commit([]byte(text(i))))
			}
			require.NoError(t, c.Close())
		}
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("skipped: strace is not installed")
	}
	probe := exec.Command(strace, "-f", "-o", os.DevNull, "true")
	if err := probe.Run(); err != nil {
		t.Skipf("skipped: strace may not trace here: %v", err)
	}
	for _, peer := range everyone() {
		t.Run(peer.Name, func(t *testing.T) {
			dir := t.TempDir()
			out := t.TempDir() + "/trace"
			cmd := exec.Command(strace, "-f", "-qq", "--seccomp-bpf", "-e", "trace=fsync,fdatasync,msync", "-e", "signal=none", "-o", out,
				os.Args[0], "-test.run", "^TestOneCommitterSyncsEachTime$", "-test.count", "1")
			cmd.Env = append(os.Environ(), traced+"="+peer.Name, traced+"_DIR="+dir)
			output, err := cmd.CombinedOutput()
			require.NoError(t, err, string(output))
			trace, err := os.ReadFile(out)
			require.NoError(t, err)
			syncs := countSyncs(trace)
			t.Logf("counts: commits %d, syncs %d", commits, syncs)
			require.GreaterOrEqual(t, syncs, commits)
		})
	}
}

var (
	began   = regexp.MustCompile(`(?m)^\d+ +(?:fsync|fdatasync)\(`)
	mapped  = regexp.MustCompile(`(?m)^\d+ +msync\(.*MS_SYNC`)
	refused = regexp.MustCompile(`(?m)= -1 `)
)

// countSyncs counts the calls that began, without those that failed.
func countSyncs(trace []byte) int {
	return len(began.FindAll(trace, -1)) + len(mapped.FindAll(trace, -1)) - len(refused.FindAll(trace, -1))
}

func TestOnlySyncsThatSucceedAreCounted(t *testing.T) {
	trace := bytes.Join([][]byte{
		[]byte(`10 fdatasync(3) = 0`),
		[]byte(`11 fsync(4 <unfinished ...>`),
		[]byte(`10 fdatasync(3) = -1 EIO (Input/output error)`),
		[]byte(`11 <... fsync resumed>) = 0`),
		[]byte(`12 msync(0x7f0000000000, 4096, MS_SYNC) = 0`),
		[]byte(`12 msync(0x7f0000000000, 4096, MS_ASYNC) = 0`),
	}, []byte("\n"))
	require.Equal(t, 3, countSyncs(trace))
}
