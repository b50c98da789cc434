package lifecyclevet_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/tools/go/packages"

	"github.com/seed080d9131/lifecycle/integrations/lifecyclevet"
)

var (
	in       = flag.String("in", ".", "the module from which the packages of -exercise are seen")
	exercise = flag.String("exercise", "", "a pattern of packages that are looked at as well, to see that none makes the checks panic")
)

// vettool builds the command that users install.
func vettool(t *testing.T) string {
	tool := filepath.Join(t.TempDir(), "lifecyclevet.exe")
	command(t, ".", "go", "build", "-o", tool, "./cmd/lifecyclevet")
	return tool
}

func command(t *testing.T, dir, name string, args ...string) (output string) {
	c := exec.Command(name, args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%v in %s:\n%s", c.Args, dir, out)
	return string(out)
}

func TestNothingInThisRepositoryIsReported(t *testing.T) {
	tool := vettool(t)
	for _, module := range []string{"../..", "../../verification", "../bboltlog", "."} {
		require.Empty(t, command(t, module, "go", "vet", "-vettool="+tool, "./..."), module)
	}
}

// The library's own tests make every mistake on purpose, to see what comes of it.
func TestTheFlagTestsBringsTheTestFilesIn(t *testing.T) {
	vet := exec.Command("go", "vet", "-vettool="+vettool(t), "-hostgo.tests", "-afterexit.tests", "-selfexit.tests", "-lostcall.tests", ".")
	vet.Dir = "../.."
	out, err := vet.CombinedOutput()
	require.Error(t, err)
	for _, mistake := range []string{"this goroutine appends", "this Append comes after", "of its own host", "the Call of this Enter"} {
		require.Regexp(t, `_test\.go:\d+:\d+: .*`+mistake, string(out))
	}
}

const scratch = `package main

import (
	"context"

	"github.com/seed080d9131/lifecycle"
)

func main() {
	ctx := context.Background()
	host := lifecycle.New(nil, lifecycle.Options{Name: "scratch"})
	go host.Durability().Append(ctx, nil)
	host.OnExit(lifecycle.PhaseRelease, "itself", host.Exit)
	host.Enter()
	host.Exit(ctx)
	host.Durability().Append(ctx, nil)
	host.Durability().Append(ctx, nil) //lifecyclevet:ignore to see the refusal
	host.Durability().Append(ctx, nil) //lifecyclevet:ignore
}
`

func TestTheVetToolReportsExactlyWhatIsWrongInAModuleOfSomebodyElse(t *testing.T) {
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("main.go", scratch)
	write("go.mod", "module scratch\n\ngo 1.25.0\n\nrequire github.com/seed080d9131/lifecycle v0.0.0\n\nreplace github.com/seed080d9131/lifecycle => "+root+"\n")
	tool := vettool(t)
	vet := exec.Command("go", "vet", "-vettool="+tool, ".")
	vet.Dir = dir
	vet.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
	var out bytes.Buffer
	vet.Stderr = &out
	require.Error(t, vet.Run())
	alone := exec.Command(tool, ".")
	alone.Dir, alone.Env = vet.Dir, vet.Env
	byItself, err := alone.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, strings.Count(out.String(), "main.go:"), strings.Count(string(byItself), "main.go:"), "%s", byItself)
	var reports []string
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "#") {
			reports = append(reports, strings.TrimPrefix(strings.TrimSpace(line), "./"))
		}
	}
	require.ElementsMatch(t, []string{
		"main.go:12:2: this goroutine appends (Durability.Append), and no Exit awaits it: start it with host.Go, or wait for it on every path before the function returns or exits the host",
		"main.go:13:2: this hook calls Exit of its own host, which is refused with ErrSelfExit and begins nothing: call Fail, which begins the exit and waits for nothing",
		"main.go:14:2: the Call of this Enter is discarded, so the exit waits for it for ever: keep it and defer its Leave",
		"main.go:16:2: this Append comes after the Exit of the same host at line 15, which has sealed the channel, or is about to: append first",
		"main.go:18:2: this Append comes after the Exit of the same host at line 15, which has sealed the channel, or is about to: append first",
		"main.go:18:37: //lifecyclevet:ignore without a reason suppresses nothing: say why the report is wrong here",
	}, reports, out.String())
}

// Without the flag the package store is silent, as the test of the analyzers says.
func TestTheFlagStrictReportsGoroutinesThatOnlyAMethodWaitsFor(t *testing.T) {
	dir := testdata(t)
	vet := exec.Command("go", "vet", "-vettool="+vettool(t), "-hostgo.strict", "./store")
	vet.Dir = dir
	out, err := vet.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 2, strings.Count(string(out), "and no Exit awaits it"), "%s", out)
	require.Contains(t, string(out), "this goroutine appends (Store.work → Store.Put → Store.commit → Durability.Commit)")
}

// layers is a package of so many layers of funcs, each of which calls many of the next
// and awaits a goroutine.
func layers(count, width, calls int, group, body string) string {
	var b strings.Builder
	b.WriteString("package layers\n\nimport (\n\t\"context\"\n\t\"sync\"\n\n\t\"github.com/seed080d9131/lifecycle\"\n)\n\n" +
		"type S struct {\n\th *lifecycle.Host\n\tn int\n\twg sync.WaitGroup\n}\n")
	for layer := range count {
		for i := range width {
			fmt.Fprintf(&b, "\nfunc (s *S) f%d_%d(ctx context.Context) {\n\t%s.Add(1)\n\tgo func() { defer wg.Done(); %s }()\n", layer, i, group, body)
			for k := range calls {
				if layer+1 < count {
					fmt.Fprintf(&b, "\ts.f%d_%d(context.WithValue(ctx, s, nil))\n", layer+1, (i*7+k*13)%width)
				}
			}
			b.WriteString("\twg.Wait()\n}\n")
		}
	}
	return b.String()
}

// Where every way through them is gone, each of these takes hours.
func TestManyWaysThroughAPackageAreNotAllGone(t *testing.T) {
	dir := testdata(t)
	for name, text := range map[string]string{
		"nothing": layers(8, 60, 15, "var wg sync.WaitGroup; wg", "s.n++"),
		"local":   layers(8, 60, 15, "var wg sync.WaitGroup; wg", "s.h.Durability().Append(ctx, nil)"),
		"field":   layers(8, 30, 15, "wg := &s.wg; wg", "s.h.Durability().Append(ctx, nil)"),
	} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name, "layers.go"), []byte(text), 0o600))
	}
	tool := vettool(t)
	for _, name := range []string{"nothing", "local", "field"} {
		require.Empty(t, command(t, dir, "go", "vet", "-vettool="+tool, "./"+name))
	}
}

func TestNoPackageMakesTheChecksPanic(t *testing.T) {
	load := func(dir string, patterns ...string) {
		all, err := packages.Load(&packages.Config{
			Dir: dir,
			Mode: packages.NeedName | packages.NeedFiles | packages.NeedCompiledGoFiles | packages.NeedSyntax | packages.NeedTypes |
				packages.NeedTypesInfo | packages.NeedTypesSizes | packages.NeedImports | packages.NeedDeps | packages.NeedExportFile,
		}, patterns...)
		require.NoError(t, err)
		require.NotEmpty(t, all)
		total, whole := 0, 0
		for _, pkg := range all {
			if len(pkg.Errors) == 0 && !pkg.IllTyped {
				asked, err := lifecyclevet.Exercise(pkg)
				require.NoError(t, err)
				total, whole = total+asked, whole+1
			}
		}
		require.Positive(t, total)
		t.Logf("%s %v: %d packages, %d instructions", dir, patterns, whole, total)
	}
	load(".", "slices", "database/sql", "golang.org/x/sync/errgroup",
		"github.com/seed080d9131/lifecycle/integrations/lifecyclevet")
	if *exercise != "" {
		load(*in, *exercise)
	}
}
