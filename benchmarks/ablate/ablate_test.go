package main

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEveryPatchStillApplies(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	require.NoError(t, err)
	patches, err := filepath.Glob("*.patch")
	require.NoError(t, err)
	require.NotEmpty(t, patches)
	for _, path := range patches {
		t.Run(path, func(t *testing.T) {
			a, err := load(root, path)
			require.NoError(t, err)
			_, err = a.overlay(t.TempDir())
			require.NoError(t, err)
		})
	}
}

func TestOfSeveralCasesTheOneThatGainsMostIsJudged(t *testing.T) {
	for name, c := range map[string]struct {
		unit, table, best string
		gain              float64
	}{
		"fewer is better, and what may be chance is none": {
			"sec/op",
			"pkg: x\n,without,,with,,,\n,sec/op,CI,sec/op,CI,vs base,P\nA-2,2,1%,1,1%,~,p=0.200 n=6\nB-2,4,1%,3,2%,-25.00%,p=0.002 n=6\ngeomean,2,,1,,-50%,\n",
			"B-2", 0.25,
		},
		"more is better": {
			"commits/s",
			",without,,with,,,\n,commits/s,CI,commits/s,CI,vs base,P\nA-2,100,1%,110,1%,+10.00%,p=0.002 n=6\nB-2,100,1%,60,1%,-40.00%,p=0.002 n=6\n",
			"A-2", 0.10,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := ablation{unit: c.unit}
			best, err := a.best(c.table)
			require.NoError(t, err)
			require.Equal(t, c.best, best.name)
			require.InDelta(t, c.gain, best.gain, 1e-9)
		})
	}
	_, err := new(ablation).best("goos: linux\n")
	require.ErrorContains(t, err, "no value")
}
