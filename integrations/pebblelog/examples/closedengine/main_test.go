package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	if order := os.Getenv(childVariable); order != "" {
		os.Exit(child(order, os.Args[1]))
	}
	os.Exit(m.Run())
}

func TestWithoutAHostTheProcessDiesAndWithItNever(t *testing.T) {
	const rounds = 5
	// How often a cancelled cleanup is caught in the middle is chance: until it is.
	const most = 500
	for _, order := range orders {
		r := result{order: order}
		for r.rounds < rounds || order == "cancel, then close" && r.dead == 0 && r.rounds < most {
			r.rounds++
			_, err := r.round()
			require.NoError(t, err)
		}
		require.NotZero(t, r.acknowledged)
		require.Zero(t, r.lost, order)
		switch order {
		case "close":
			require.Equal(t, r.rounds, r.dead)
			require.NotZero(t, r.closed)
		case "cancel, then close":
			require.NotZero(t, r.dead)
		default:
			require.Zero(t, r.dead)
		}
	}
}

func TestTheTableHasALineForEachOrder(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(&out, 1))
	for _, order := range orders {
		require.Equal(t, 1, strings.Count(out.String(), "\n"+strings.Repeat(" ", len("cancel, then close")-len(order))+"  "+order), out.String())
	}
}
