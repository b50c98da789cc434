package disks

import (
	"context"
	"flag"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	ci     = flag.Bool("ci", false, "run at the size of the continuous integration")
	kills  = flag.Int("kills", 0, "kill so many processes (0: 20, or 250 with -ci)")
	images = flag.Int("images", 0, "make so many images of a disk after a power failure (0: 5, or 120 with -ci)")
	seed   = flag.Uint64("seed", 0, "of what is random (0: a new one each time, and printed)")
)

// size returns what a flag says, if it was given, or the size that goes with -ci.
func size(given, small, large int) int {
	switch {
	case given > 0:
		return given
	case *ci:
		return large
	default:
		return small
	}
}

// random returns a source of random numbers and its seed, which it prints. The same seed
// makes the same plan, but no two runs of a kernel are the same.
func random(t *testing.T) (*rand.Rand, uint64) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed %d", s)
	return rand.New(rand.NewPCG(s, 0)), s
}

// programTimeout is how long a program may run that should end by itself.
const programTimeout = time.Minute

// build builds a main package of this module or the one above.
func build(t *testing.T, pkg string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*programTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, pkg).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return path
}
