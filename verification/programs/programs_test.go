package programs

import (
	"flag"
	"os"
	"testing"

	"pgregory.net/rapid"
)

var ci = flag.Bool("ci", false, "the size for CI: 20000 programs, unless -rapid.checks says otherwise")

func TestMain(m *testing.M) {
	flag.Parse()
	checks := "1000"
	if *ci {
		checks = "20000"
	}
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "rapid.checks" {
			checks = f.Value.String()
		}
	})
	if err := flag.Set("rapid.checks", checks); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// The bubble of each program is one of the outer t, which is never failed inside it: rapid finds a failure, and shrinks it,
// by what the property itself says once the bubble is over.
func TestRandomProgramsEndAsTheModelSays(t *testing.T) {
	counts := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		p := drawProgram(rt)
		tr := run(t, p)
		counts["programs"]++
		counts["steps"] += len(p.Steps)
		counts[tr.report.Outcome]++
		counts["accepted"] += int(tr.accepted)
		counts["lost"] += int(tr.accepted - tr.durable)
		if err := judge(p, tr); err != nil {
			rt.Fatalf("%v\n%v", err, p)
		}
	})
	t.Logf("counts: programs %d, steps %d, clean %d, failed %d, forced %d, accepted %d, not durable and said to be unknown %d",
		counts["programs"], counts["steps"], counts["clean"], counts["failed"], counts["forced"], counts["accepted"], counts["lost"])
}
