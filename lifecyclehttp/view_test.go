package lifecyclehttp

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDurationsSizesAndCountsReadAsAPersonSaysThem(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second:                    "0 s",
		0:                               "0 s",
		500 * time.Nanosecond:           "0.5 µs",
		123 * time.Microsecond:          "123 µs",
		2340 * time.Microsecond:         "2.3 ms",
		2 * time.Second:                 "2 s",
		2001 * time.Millisecond:         "2.0 s",
		59 * time.Second:                "59 s",
		61 * time.Second:                "1 min 1 s",
		40 * time.Minute:                "40 min",
		26*time.Hour + 5*time.Minute:    "26 h 5 min",
		100*time.Hour + 59*time.Minute:  "4 d 4 h",
		72*time.Hour + time.Millisecond: "3 d",
	} {
		require.Equal(t, want, strings.ReplaceAll(elapsed(d), "\u00a0", " "))
	}
	for bytes, want := range map[int]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 16 << 20: "16.0 MiB", 1 << 30: "1.0 GiB"} {
		value, unit := size(bytes)
		require.Equal(t, want, value+" "+unit)
	}
	require.Equal(t, "999", grouped(999))
	require.Equal(t, "18,446,744,073,709,551,615", grouped(1<<64-1))
	require.Equal(t, "1 host", plural(1, "host"))
	require.Equal(t, "0 hosts", plural(0, "host"))
}

func TestTextsAreCutBetweenCharacters(t *testing.T) {
	require.Equal(t, "ééé", shorten("ééé", 3))
	require.Equal(t, "éé… (3 characters)", shorten("ééé", 2))
	require.Equal(t, "\xff\xfe… (3 characters)", shorten("\xff\xfe\xfd", 2))
}

func TestAStackIsTakenApartAndTheProgramsOwnFramesAreMarked(t *testing.T) {
	stack := "(it waits inside Exit: for itself)\n" +
		"runtime.gopark\n\t/go/proc.go:1\n" +
		"main.cleanup\n\t/src/main.go:42\n" +
		"example.org/db.(*Views).run\n\t/src/views.go:7\n" +
		"github.com/seed080d9131/lifecycle.(*task).main\n\t/src/tasks.go:9\n"
	require.Equal(t, []frame{
		{Func: "(it waits inside Exit: for itself)"},
		{Func: "runtime.gopark", At: "/go/proc.go:1"},
		{Func: "main.cleanup", At: "/src/main.go:42", Own: true},
		{Func: "example.org/db.(*Views).run", At: "/src/views.go:7", Own: true},
		{Func: "github.com/seed080d9131/lifecycle.(*task).main", At: "/src/tasks.go:9"},
	}, frames(stack))
	require.Empty(t, frames(""))
	require.NotPanics(t, func() { frames("\n\t\n\t\t\n") })
}
