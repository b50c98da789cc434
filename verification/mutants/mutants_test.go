package main

import (
	"bytes"
	"context"
	"go/format"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const repository = "../.."

// The ledger itself: what it must cover, and that every patch applies to the code
// as it is. (That each is killed is the program's to show.)
func TestTheLedgerCoversEveryPromiseAndApplies(t *testing.T) {
	o := options{root: repository, ledger: ".", phases: "lifecycle.go"}
	mutants, err := load(o)
	require.NoError(t, err)
	o.root, err = filepath.Abs(repository)
	require.NoError(t, err)
	trees, err := copies(context.Background(), o, 1)
	require.NoError(t, err)
	defer trees[0].remove()
	promises, swapped := map[string]int{}, 0
	names := map[string]string{}
	for _, m := range mutants {
		if m.family != nil {
			swapped++
		} else {
			promises[m.promise]++
		}
		short := strings.TrimLeft(m.name, "0123456789-")
		require.Empty(t, names[short], "%s", m.name)
		names[short] = m.name
		require.True(t, strings.HasSuffix(m.fault, "."), "%s: %s", m.name, m.fault)
		old, err := trees[0].apply(context.Background(), m, 0)
		require.NoError(t, err, m.name)
		changed, err := os.ReadFile(filepath.Join(trees[0].dir, m.file))
		require.NoError(t, err)
		require.NotEqual(t, string(old), string(changed), m.name)
		require.NoError(t, trees[0].restore(m, old))
	}
	require.Equal(t, 21, swapped)
	require.Len(t, promises, promiseCount)
	require.Greater(t, len(mutants)-swapped, 40)
	t.Logf("counts: mutants %d, of them swaps of phases %d, promises %d", len(mutants), swapped, len(promises))
}

func TestAPatchIsReadWithItsHeader(t *testing.T) {
	const diff = "--- a/gate.go\n+++ b/gate.go\n@@ -1,1 +1,1 @@\n-old\n+new\n"
	const header = "Promise: P10\nFault: It leaks: badly.\nKilled by: TestIt in ./commitlog\n"
	m, err := parse("01-leak", header+"Race: yes\nModule: verification\n\n"+diff)
	require.NoError(t, err)
	require.Equal(t, mutant{name: "01-leak", promise: "P10", fault: "It leaks: badly.", test: "TestIt", pkg: "./commitlog",
		module: "verification", race: true, file: "gate.go", diff: diff}, *m)
	again, err := parse("01-leak", m.header()+"\n"+m.diff)
	require.NoError(t, err)
	require.Equal(t, m, again)

	for why, text := range map[string]string{
		"no diff":            header,
		"which is none":      strings.Replace(header, "P10", "P11", 1) + "\n" + diff,
		"no line Fault":      "Promise: P1\nKilled by: TestIt in .\n\n" + diff,
		"no line Killed by":  "Promise: P1\nFault: x.\n\n" + diff,
		"not of the form":    "Promise: P1\nFault: x.\nKilled by: TestIt\n\n" + diff,
		"an unknown line":    header + "Promises: P2\n\n" + diff,
		"the line Race":      header + "Race: no\n\n" + diff,
		"more than one file": header + "\n" + diff + strings.ReplaceAll(diff, "gate", "exit"),
		"its name unchanged": header + "\n" + strings.Replace(diff, "b/gate", "b/exit", 1),
	} {
		_, err := parse("x", text)
		require.ErrorContains(t, err, why)
	}
}

func TestTheFamilyOfSwapsHasEveryPairOnce(t *testing.T) {
	source := "package p\n\nimport (\n\t\"fmt\"\n)\n\nfunc init() {\n\tphases = [...]phase{\n"
	for _, name := range strings.Split("A B C D E F G", " ") {
		source += "\t\t{Phase" + name + ", true, nil},\n"
	}
	source += "\t}\n}\n"
	all, err := swaps("lifecycle.go", source)
	require.NoError(t, err)
	require.Len(t, all, 21)
	seen := map[string]bool{}
	for _, m := range all {
		require.False(t, seen[m.env], m.name)
		seen[m.env] = true
	}
	require.Equal(t, "MUTANT_SWAP=0 1", all[0].env)
	require.Equal(t, "swap-F-G", all[20].name)
	changed, err := all[0].family(source)
	require.NoError(t, err)
	formatted, err := format.Source([]byte(changed))
	require.NoError(t, err)
	require.Contains(t, string(formatted), "phases[i], phases[j] = phases[j], phases[i]\n}\n")
	_, err = swaps("lifecycle.go", "no table")
	require.Error(t, err)
}

func TestHowATestFailedIsRead(t *testing.T) {
	for how, log := range map[string]string{
		"data race":           "WARNING: DATA RACE\n    x_test.go:1: \n",
		"failed assertion":    "    x_test.go:12: \n\tError Trace:\npanic: deadlock: main bubble goroutine has exited but blocked goroutines remain\n",
		"timeout":             "panic: test timed out after 10s\n",
		"deadlock":            "panic: deadlock: all goroutines in bubble are blocked\n",
		"panic: close of nil": "panic: close of nil\n",
		"fatal error: x":      "fatal error: x\n",
		"failed":              "--- FAIL: TestX (0.00s)\n",
	} {
		require.Equal(t, how, howFailed(log))
	}
	took, ok := passed("=== RUN   TestX\n--- PASS: TestX (1.25s)\nPASS\n", "TestX")
	require.True(t, ok)
	require.Equal(t, 1250*time.Millisecond, took)
	for _, log := range []string{"--- PASS: TestXY (0.00s)\nPASS\n", "--- SKIP: TestX (0.00s)\nPASS\n", "    --- PASS: TestX (0.00s)\n", ""} {
		_, ok := passed(log, "TestX")
		require.False(t, ok, log)
	}
}

// world makes a repository with a small module and a ledger for it.
func world(t *testing.T, patches map[string]string) options {
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	write("go.mod", "module example.org/sum\n\ngo 1.25.0\n")
	write("sum.go", "package sum\n\n// Sum adds.\nfunc Sum(a, b int) int {\n\treturn a + b\n}\n")
	write("sum_test.go", "package sum\n\nimport \"testing\"\n\nfunc TestSum(t *testing.T) {\n\tif Sum(2, 2) != 4 {\n\t\tt.Error(\"2 + 2\")\n\t}\n}\n")
	for name, text := range patches {
		write("ledger/"+name+".patch", text)
	}
	_, err := output(context.Background(), dir, "git", "init", "-q")
	require.NoError(t, err)
	return options{root: dir, ledger: filepath.Join(dir, "ledger"), workers: 2, timeout: 10 * time.Second}
}

func sumPatch(test, from, to string) string {
	return "Promise: P1\nFault: It does not add.\nKilled by: " + test + " in .\n\n--- a/sum.go\n+++ b/sum.go\n" +
		"@@ -3,4 +3,4 @@\n // Sum adds.\n func Sum(a, b int) int {\n-\t" + from + "\n+\t" + to + "\n }\n"
}

func TestTheProgramTellsKilledSurvivedStaleAndInvalidApart(t *testing.T) {
	o := world(t, map[string]string{
		"01-difference": sumPatch("TestSum", "return a + b", "return a - b"),
		"02-product":    sumPatch("TestSum", "return a + b", "return a * b"), // 2 × 2 is 4 too
		"03-gone":       sumPatch("TestSum", "return a ^ b", "return a"),
		"04-text":       sumPatch("TestSum", "return a + b", "return \"a + b\""),
		"05-panic":      sumPatch("TestSum", "return a + b", "panic(\"no\")"),
		"06-exit":       sumPatch("TestSum", "return a + b", "select {}"),
	})
	var out bytes.Buffer
	o.timeout = time.Second
	got, err := judgeAll(context.Background(), &out, o)
	require.NoError(t, err)
	require.Equal(t, "mutants 6: killed 3, survived 1, stale 1, invalid 1", got.String())
	require.False(t, got.good())
	for _, line := range []string{
		`killed +P1 +01-difference +TestSum in \.: failed assertion`,
		`survived +P1 +02-product .*the test passes`,
		`stale +P1 +03-gone `,
		`invalid +P1 +04-text .*it does not compile`,
		`killed +P1 +05-panic .*panic: no`,
		`killed +P1 +06-exit .*: `,
		`by promise: P1 6 P2 0 `,
	} {
		require.Regexp(t, "(?m)^"+line, out.String())
	}

	o.run = regexp.MustCompile("difference|panic")
	got, err = judgeAll(context.Background(), &out, o)
	require.NoError(t, err)
	require.True(t, got.good())
	o.lasts = time.Nanosecond
	got, err = judgeAll(context.Background(), &out, o)
	require.NoError(t, err)
	require.Equal(t, "mutants 2: killed 0, survived 0, stale 0, invalid 0, skipped 2", got.String())
	require.False(t, got.good(), "nothing was shown")
	o.lasts, o.run = 0, regexp.MustCompile("no such")
	_, err = judgeAll(context.Background(), &out, o)
	require.Error(t, err)
}

func TestAKillingTestThatFailsOrIsMissingWithoutAFaultIsAnError(t *testing.T) {
	o := world(t, map[string]string{"01-x": sumPatch("TestNone", "return a + b", "return a")})
	_, err := judgeAll(context.Background(), &bytes.Buffer{}, o)
	require.ErrorContains(t, err, "TestNone in . does not pass without a fault")
}

func TestAPatchIsMadeAnewWhenTheCodeAroundItHasChanged(t *testing.T) {
	o := world(t, map[string]string{"01-difference": sumPatch("TestSum", "return a + b", "return a - b")})
	path := filepath.Join(o.root, "sum.go")
	source, err := os.ReadFile(path)
	require.NoError(t, err)
	moved := strings.Replace(string(source), "package sum\n", "// Package sum sums.\npackage sum\n", 1)
	require.NoError(t, os.WriteFile(path, []byte(strings.Replace(moved, "// Sum adds.", "// Sum adds up.", 1)), 0o644))
	var out bytes.Buffer
	got, err := judgeAll(context.Background(), &out, o)
	require.NoError(t, err)
	require.Equal(t, 1, got[stale])
	require.NoError(t, rewrite(context.Background(), &out, o))
	require.Contains(t, out.String(), "rewritten 01-difference")
	got, err = judgeAll(context.Background(), &out, o)
	require.NoError(t, err)
	require.True(t, got.good())
}
