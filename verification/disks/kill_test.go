package disks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/verification/disks/workload"
)

// A moment is when a process is killed.
type moment int

const (
	underLoad moment = iota // at the n-th acknowledgement
	inOpening               // at the n-th file operation since the start
	inExit                  // at the n-th file operation since the exit began
	never                   // it exits in order
)

var moments = []string{"under load", "in opening", "in exit", "never"}

// A plan is one life of a process.
type plan struct {
	moment    moment
	n         int
	exitAfter int // acknowledgements
	truncate  bool
}

func (p plan) String() string {
	return fmt.Sprintf("%s, n %d, exit after %d, truncate %t", moments[p.moment], p.n, p.exitAfter, p.truncate)
}

func draw(rng *rand.Rand) plan {
	p := plan{truncate: rng.IntN(3) == 0}
	switch r := rng.IntN(20); {
	case r < 11:
		p.moment, p.n = underLoad, 1+rng.IntN(600)
	case r < 15:
		p.moment, p.n = inOpening, rng.IntN(25)
	case r < 18:
		p.moment, p.n, p.exitAfter = inExit, rng.IntN(10), 1+rng.IntN(300)
	default:
		p.moment, p.exitAfter = never, 1+rng.IntN(300)
	}
	return p
}

// killer runs victims, one after another, on one log.
type killer struct {
	t      *testing.T
	victim string
	dir    string
	judge  *workload.Judge
	early  bool // the victims acknowledge too early
	life   uint32

	killed [never]int
	owed   uint64 // accepted before an exit that returned nil
	exited int
}

const killSegmentBytes = 32 << 10

func newKiller(t *testing.T, seed uint64, early bool) *killer {
	const committers = 4
	return &killer{
		t:      t,
		victim: build(t, "./victim"),
		dir:    filepath.Join(t.TempDir(), "log"),
		early:  early,
		judge: &workload.Judge{
			Shape:      workload.Shape{Seed: seed, Small: 100, Large: 10000},
			Committers: committers + 1,
		},
	}
}

// live runs a victim to its end and tells the judge what it said.
func (k *killer) live(p plan) {
	t := k.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, k.victim,
		"-dir", k.dir,
		"-seed", strconv.FormatUint(k.judge.Seed, 10),
		"-small", strconv.Itoa(k.judge.Small), "-large", strconv.Itoa(k.judge.Large),
		"-segment", strconv.Itoa(killSegmentBytes),
		"-life", strconv.FormatUint(uint64(k.life), 10),
		"-committers", strconv.FormatUint(uint64(k.judge.Committers-1), 10),
		"-exit-after", strconv.Itoa(p.exitAfter),
		fmt.Sprintf("-operations=%t", p.moment == inOpening || p.moment == inExit),
		fmt.Sprintf("-truncate=%t", p.truncate),
		fmt.Sprintf("-early=%t", k.early))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	said, err := cmd.StdoutPipe()
	require.NoError(t, err)
	k.judge.Begin(k.life)
	k.life++
	require.NoError(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()

	shot, count := false, 0
	shoot := func() {
		if !shot {
			shot = true
			require.NoError(t, cmd.Process.Kill())
		}
	}
	if p.moment == inOpening && p.n == 0 {
		shoot()
	}
	var accepted uint64
	exiting, exited := false, false
	// Message by message, so that the shot is not late by a buffer of them.
	for {
		m, err := workload.Receive(said)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		counts := false
		switch m.Kind {
		case workload.Acknowledged:
			k.judge.Acknowledge(m.Offset, m.ID)
			counts = p.moment == underLoad
		case workload.Operation:
			counts = p.moment == inOpening || p.moment == inExit && exiting
		case workload.Truncating:
			k.judge.Truncating(m.Offset)
		case workload.Exiting:
			exiting = true
			if p.moment == inExit && p.n == 0 {
				shoot()
			}
		case workload.Exited:
			exited, accepted = true, m.Offset
		}
		if counts {
			if count++; count >= p.n {
				shoot()
			}
		}
	}
	err = cmd.Wait()
	require.NoError(t, ctx.Err(), "life %d (%v) did not end\n%s", k.life-1, p, &stderr)
	if shot && err != nil && stderr.Len() == 0 { // it would say why it ended by itself
		k.killed[p.moment]++
	} else {
		require.NoError(t, err, "life %d (%v) ended by itself\n%s", k.life-1, p, &stderr)
		require.True(t, exited)
		k.exited++
	}
	if exited {
		k.owed = max(k.owed, accepted)
	}
}

// check opens the log here and has it judged.
func (k *killer) check() []string {
	k.t.Helper()
	log, err := commitlog.Open(k.dir, commitlog.Options{SegmentBytes: killSegmentBytes})
	require.NoError(k.t, err)
	findings := k.judge.Check(log)
	if next := log.Next(); next < k.owed {
		findings = append(findings, fmt.Sprintf("lost: an exit returned nil with %d transactions accepted, but the log ends at offset %d", k.owed, next))
	}
	require.NoError(k.t, log.Close())
	return findings
}

func (k *killer) kills() (n int) {
	for _, of := range k.killed {
		n += of
	}
	return n
}

func TestNoKillLosesWhatWasAcknowledged(t *testing.T) {
	rng, seed := random(t)
	k := newKiller(t, seed, false)
	wanted := size(*kills, 20, 250)
	for next := draw(rng); k.kills() < wanted; {
		p := next
		k.live(p)
		// A victim that is to be killed while it recovers gets the log as the kill left
		// it, and not as a Close after that.
		if next = draw(rng); next.moment == inOpening && p.moment != inOpening {
			continue
		}
		require.Empty(t, k.check(), "after life %d (%v)", k.life-1, p)
	}
	require.Empty(t, k.check())
	require.Positive(t, k.judge.Acknowledged)
	t.Logf("counts: kills %d (under load %d, in opening %d, in exit %d), exits in order %d, acknowledged %d, recovered beside %d",
		k.kills(), k.killed[underLoad], k.killed[inOpening], k.killed[inExit], k.exited, k.judge.Acknowledged, k.judge.Recovered)
}

// The control: were it acknowledged when it is accepted, kills would show it.
func TestAKillShowsWhatIsAcknowledgedBeforeItIsWritten(t *testing.T) {
	rng, seed := random(t)
	k := newKiller(t, seed, true)
	for k.kills() < 100 {
		k.live(plan{moment: underLoad, n: 1 + rng.IntN(600)})
		if findings := k.check(); len(findings) > 0 {
			require.Contains(t, findings[0], "lost: ")
			t.Logf("counts: kills %d until the first loss was found", k.kills())
			return
		}
	}
	require.Fail(t, "nothing was found")
}
