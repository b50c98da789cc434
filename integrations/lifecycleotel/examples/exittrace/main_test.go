package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

func TestTheExamplePrintsTheExitInOrder(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(t.TempDir(), false, &table{to: &out}))
	requireOrder(t, out.String(), "exit ", "outcome=clean", "lost=0", "  exit module", "    hook http", "  cancel tasks",
		"  await tasks", "  checkpoint", "    hook snapshot",
		"  close durability", "  close log", "  release", "    hook gauges")
}

func TestTheExampleShowsWhoWasLeftBehind(t *testing.T) {
	var out bytes.Buffer
	require.ErrorIs(t, run(t.TempDir(), true, &table{to: &out}), lifecycle.ErrForced)
	requireOrder(t, out.String(), "exit ", "outcome=forced", `lifecycle.abandoned: task "deaf" × 1`, "  exit module", "  cancel tasks",
		"  await tasks", "  checkpoint", "hook snapshot", "error: skipped by ForceExit",
		"  close durability", "  close log", "  release", "    hook gauges")
}

func requireOrder(t *testing.T, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, p := range parts {
		_, after, ok := strings.Cut(rest, p)
		require.True(t, ok, "no %q where it belongs in:\n%s", p, text)
		rest = after
	}
}
