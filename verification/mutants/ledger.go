package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const promiseCount = 10

// mutant is a seeded fault and the test that has to notice it.
type mutant struct {
	name    string // its file's, without the suffix
	promise string // "P4"
	fault   string // a sentence
	test    string // the one that kills it
	pkg     string // of that, from the module's root: "./commitlog"
	module  string // of that, a folder from the repository's root; ".": the library's own
	race    bool   // only the race detector kills it
	file    string // that it changes, from the repository's root
	diff    string
	// Instead of diff, of a family that is built once: how the file changes, and the
	// variable that chooses.
	family func(old string) (string, error)
	env    string

	limit time.Duration // of the test; baseline's
}

func (m *mutant) where() string {
	if m.module == "." {
		return m.pkg
	}
	return m.pkg + " of " + m.module
}

// header is what stands above the diff.
func (m *mutant) header() string {
	text := fmt.Sprintf("Promise: %s\nFault: %s\nKilled by: %s in %s\n", m.promise, m.fault, m.test, m.pkg)
	if m.module != "." {
		text += "Module: " + m.module + "\n"
	}
	if m.race {
		text += "Race: yes\n"
	}
	return text
}

// load reads the ledger, and makes the family of swapped phases.
func load(o options) ([]*mutant, error) {
	files, err := filepath.Glob(filepath.Join(o.ledger, "*.patch"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var all []*mutant
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m, err := parse(strings.TrimSuffix(filepath.Base(file), ".patch"), string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
		all = append(all, m)
	}
	if o.phases != "" {
		source, err := os.ReadFile(filepath.Join(o.root, o.phases))
		if err != nil {
			return nil, err
		}
		family, err := swaps(o.phases, string(source))
		if err != nil {
			return nil, err
		}
		all = append(all, family...)
	}
	if o.run != nil {
		all = slices.DeleteFunc(all, func(m *mutant) bool {
			return !o.run.MatchString(m.name + "\n" + m.promise + "\n" + m.fault)
		})
	}
	if len(all) == 0 {
		return nil, errors.New("the ledger has no such fault")
	}
	return all, nil
}

var (
	promisePattern = regexp.MustCompile(`^P([1-9]|10)$`)
	killerPattern  = regexp.MustCompile(`^(Test\w+) in (\.(?:/[\w./-]+)?)$`)
)

// parse takes a patch with its header apart.
func parse(name, text string) (*mutant, error) {
	m := &mutant{name: name, module: "."}
	header, diff, found := strings.Cut(text, "\n--- a/")
	if !found {
		return nil, errors.New("no diff")
	}
	m.diff = "--- a/" + diff
	m.file, _, _ = strings.Cut(diff, "\n")
	if rest, _, _ := strings.Cut(diff, "\n@@"); !strings.HasSuffix(rest, "\n+++ b/"+m.file) {
		return nil, fmt.Errorf("the diff is not one of %s alone, with its name unchanged", m.file)
	}
	if strings.Contains(m.diff, "\n--- a/") {
		return nil, errors.New("a diff of more than one file")
	}
	for line := range strings.SplitSeq(header, "\n") {
		key, value, ok := strings.Cut(line, ": ")
		if !ok || strings.HasPrefix(line, "diff ") {
			continue
		}
		switch value = strings.TrimSpace(value); key {
		case "Promise":
			m.promise = value
		case "Fault":
			m.fault = value
		case "Module":
			m.module = value
		case "Race":
			if value != "yes" {
				return nil, fmt.Errorf("the line Race says %q, not yes", value)
			}
			m.race = true
		case "Killed by":
			match := killerPattern.FindStringSubmatch(value)
			if match == nil {
				return nil, fmt.Errorf("the line Killed by says %q, which is not of the form TestName in ./package", value)
			}
			m.test, m.pkg = match[1], match[2]
		default:
			return nil, fmt.Errorf("an unknown line %q", line)
		}
	}
	switch {
	case !promisePattern.MatchString(m.promise):
		return nil, fmt.Errorf("the line Promise says %q, which is none", m.promise)
	case m.fault == "":
		return nil, errors.New("no line Fault")
	case m.test == "":
		return nil, errors.New("no line Killed by")
	}
	return m, nil
}

// Who kills a swap of two phases: what each phase does is looked at, not the names
// in the table.
const swapKiller = "TestEachPhaseFindsTheWorldAsThePhasesBeforeItLeaveIt"

var phaseRow = regexp.MustCompile(`(?m)^\t\t\{Phase(\w+), .*\},\n`)

// swaps is a mutant for each pair of rows of the table of phases. They share one
// binary, in which the table's init swaps the rows that the environment names.
func swaps(file, source string) ([]*mutant, error) {
	rows := phaseRow.FindAllStringSubmatchIndex(source, -1)
	if len(rows) != 7 {
		return nil, fmt.Errorf("%s: the table of phases has %d rows", file, len(rows))
	}
	name := func(i int) string { return source[rows[i][2]:rows[i][3]] }
	var all []*mutant
	for i := range rows {
		for j := i + 1; j < len(rows); j++ {
			all = append(all, &mutant{
				name:    fmt.Sprintf("swap-%s-%s", name(i), name(j)),
				promise: "P1",
				fault:   fmt.Sprintf("The phases %s and %s are swapped.", name(i), name(j)),
				test:    swapKiller, pkg: ".", module: ".", file: file,
				family: swapped, env: fmt.Sprintf("MUTANT_SWAP=%d %d", i, j),
			})
		}
	}
	return all, nil
}

// swapped makes the source's init swap two rows of its table.
func swapped(source string) (string, error) {
	const end, imports = "\t}\n", "\t\"fmt\"\n"
	rows := phaseRow.FindAllStringIndex(source, -1)
	at := rows[len(rows)-1][1]
	if !strings.HasPrefix(source[at:], end) || strings.Count(source, imports) != 1 {
		return "", errors.New("the table of phases has no end, or its file does not import fmt")
	}
	at += len(end)
	changed := source[:at] + `
	var i, j int
	if n, _ := fmt.Sscan(os.Getenv("MUTANT_SWAP"), &i, &j); n != 2 {
		panic("MUTANT_SWAP")
	}
	phases[i], phases[j] = phases[j], phases[i]
` + source[at:]
	return strings.Replace(changed, imports, imports+"\t\"os\"\n", 1), nil
}
