// Package lifecyclevet finds wrong uses of a lifecycle.Host before they run:
//
//	go install github.com/seed080d9131/lifecycle/integrations/lifecyclevet/cmd/lifecyclevet@latest
//	go vet -vettool=$(which lifecyclevet) ./...
//
// [HostGo] finds goroutines that append and that no Exit awaits, [AfterExit]
// appends after the exit of the same host, [SelfExit] tasks and hooks that wait
// for their own host's exit, [LostCall] calls that Enter admitted and nobody
// leaves. [Ignores] finds comments that suppress a report and don't say why.
//
// Each of them reports what it can follow: through variables, fields, closures,
// method values, calls, and, by facts, into other packages. It keeps silent about
// what it can't: a func that comes in through a field or an interface. The README
// has an example of each report, and what none of them sees.
//
// Files whose names end in _test.go are looked at where the analyzer's flag
// "tests" is set (-hostgo.tests, …): tests append after Exit on purpose.
package lifecyclevet

import (
	"fmt"
	"go/ast"
	"go/token"
	"path/filepath"
	"strings"

	"golang.org/x/tools/go/analysis"
)

const home = "https://github.com/seed080d9131/lifecycle/tree/main/integrations/lifecyclevet"

// Analyzers returns all analyzers of this package in a slice of the caller's own,
// for unitchecker, multichecker, or a linter that runs others' analyzers.
func Analyzers() []*analysis.Analyzer {
	return []*analysis.Analyzer{HostGo, AfterExit, SelfExit, LostCall, Ignores}
}

// newAnalyzer makes an analyzer that looks at a package's functions through what
// the reach analyzer knows of them.
func newAnalyzer(name, doc string, look func(*program, report)) *analysis.Analyzer {
	a := &analysis.Analyzer{
		Name:     name,
		Doc:      doc,
		URL:      home + "#" + name,
		Requires: []*analysis.Analyzer{reach},
	}
	tests := a.Flags.Bool("tests", false, "look at _test.go files as well")
	a.Run = func(pass *analysis.Pass) (any, error) {
		if p := pass.ResultOf[reach].(*program); p != nil {
			look(p, newReport(pass, *tests))
		}
		return nil, nil
	}
	return a
}

// report is where an analyzer tells what it found.
type report struct {
	pass  *analysis.Pass
	tests bool
	found map[token.Pos]bool
	quiet map[line]bool
}

type line struct {
	file   string
	number int
}

func newReport(pass *analysis.Pass, tests bool) report {
	r := report{pass: pass, tests: tests, found: map[token.Pos]bool{}, quiet: map[line]bool{}}
	for _, file := range pass.Files {
		for _, c := range ignores(file) {
			if c.reason != "" {
				at := pass.Fset.Position(c.pos)
				r.quiet[line{at.Filename, at.Line}] = true
				if c.alone(pass.Fset, file) {
					r.quiet[line{at.Filename, at.Line + 1}] = true
				}
			}
		}
	}
	return r
}

// addf reports once a place.
func (r report) addf(pos token.Pos, format string, args ...any) {
	at := r.pass.Fset.Position(pos)
	switch {
	case !pos.IsValid(), r.found[pos], r.quiet[line{at.Filename, at.Line}]:
		return
	case !r.tests && strings.HasSuffix(at.Filename, "_test.go"):
		return
	}
	r.found[pos] = true
	r.pass.Report(analysis.Diagnostic{
		Pos:      pos,
		Category: r.pass.Analyzer.Name,
		URL:      r.pass.Analyzer.URL,
		Message:  fmt.Sprintf(format, args...),
	})
}

// atLine is how a message names another place of its file.
func (r report) atLine(pos token.Pos) string {
	return fmt.Sprintf("line %d", r.pass.Fset.Position(pos).Line)
}

// fileLine is how a message names a place of another file.
func (r report) fileLine(pos token.Pos) string {
	at := r.pass.Fset.Position(pos)
	return fmt.Sprintf("%s:%d", filepath.Base(at.Filename), at.Line)
}

const ignoreDirective = "//lifecyclevet:ignore"

type ignore struct {
	pos    token.Pos
	reason string
}

func ignores(file *ast.File) []ignore {
	var all []ignore
	for _, group := range file.Comments {
		for _, c := range group.List {
			rest, ok := strings.CutPrefix(c.Text, ignoreDirective)
			if ok && (rest == "" || rest[0] == ' ' || rest[0] == '\t') {
				all = append(all, ignore{c.Pos(), strings.TrimSpace(rest)})
			}
		}
	}
	return all
}

// alone says whether there is nothing but the comment in its line. Only then is
// it about the next one.
func (c ignore) alone(fset *token.FileSet, file *ast.File) bool {
	alone, at := true, fset.Position(c.pos).Line
	ast.Inspect(file, func(n ast.Node) bool {
		switch n.(type) {
		case nil, *ast.File, *ast.Comment, *ast.CommentGroup:
			return alone
		}
		if first := fset.Position(n.Pos()); first.Line == at && n.Pos() < c.pos {
			alone = false
		}
		if last := fset.Position(n.End() - 1); last.Line == at && n.End() <= c.pos {
			alone = false
		}
		return alone
	})
	return alone
}

// Ignores reports a //lifecyclevet:ignore comment without a reason. Such a comment
// suppresses nothing.
var Ignores = &analysis.Analyzer{
	Name: "ignorereason",
	Doc:  "report //lifecyclevet:ignore comments that give no reason",
	URL:  home + "#ignorereason",
	Run: func(pass *analysis.Pass) (any, error) {
		r := newReport(pass, true)
		for _, file := range pass.Files {
			for _, c := range ignores(file) {
				if c.reason == "" {
					r.addf(c.pos, "%s without a reason suppresses nothing: say why the report is wrong here", ignoreDirective)
				}
			}
		}
		return nil, nil
	},
}
