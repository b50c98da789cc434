package harness_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
)

// Both loops go around the end of a small file, and each of their syncs is one that the device has seen, as far as
// it tells.
func TestTheDisksLoopsSyncEachTime(t *testing.T) {
	dir := t.TempDir()
	file, err := harness.NewZeroed(dir, 1<<20)
	require.NoError(t, err)
	defer file.Close()
	loops := map[string]func() (harness.Result, error){
		"pages":   func() (harness.Result, error) { return file.Pages(0, 100*time.Millisecond) },
		"records": func() (harness.Result, error) { return file.Records(176, 0, 100*time.Millisecond) },
	}
	for name, loop := range loops {
		before, ok := harness.Flushes(dir)
		result, err := loop()
		require.NoError(t, err)
		require.Positive(t, result.PerSecond)
		after, _ := harness.Flushes(dir)
		if !ok {
			t.Logf("%s: this device does not tell its flushes", name)
			continue
		}
		require.GreaterOrEqual(t, int64(after-before), result.Total, name)
	}
}

func TestAStreamFitsItsFile(t *testing.T) {
	file, err := harness.NewZeroed(t.TempDir(), 3<<20)
	require.NoError(t, err)
	defer file.Close()
	took, err := file.Stream(2<<20 + 1)
	require.NoError(t, err)
	require.Positive(t, took)
	_, err = file.Stream(3<<20 + 1)
	require.Error(t, err)
}
