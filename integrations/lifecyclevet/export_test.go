package lifecyclevet

import (
	"fmt"
	"go/types"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/passes/ctrlflow"
	"golang.org/x/tools/go/analysis/passes/inspect"
	"golang.org/x/tools/go/ast/inspector"
	"golang.org/x/tools/go/packages"
	"golang.org/x/tools/go/ssa"
)

// All is all analyzers in one, so that a test's packages are loaded once.
var All = &analysis.Analyzer{
	Name:     "all",
	Doc:      "all checks",
	Requires: []*analysis.Analyzer{reach},
	Run: func(pass *analysis.Pass) (any, error) {
		for _, a := range Analyzers() {
			its := *pass
			its.Analyzer = a
			if _, err := a.Run(&its); err != nil {
				return nil, err
			}
		}
		return nil, nil
	},
}

// Exercise asks about each value and each call of a package all that the checks ask
// about those that have to do with a host. It returns how many it asked about.
func Exercise(pkg *packages.Package) (asked int, err error) {
	pass := &analysis.Pass{
		Fset: pkg.Fset, Files: pkg.Syntax, Pkg: pkg.Types, TypesInfo: pkg.TypesInfo, TypesSizes: pkg.TypesSizes,
		ResultOf:         map[*analysis.Analyzer]any{inspect.Analyzer: inspector.New(pkg.Syntax)},
		ImportObjectFact: func(types.Object, analysis.Fact) bool { return false },
		ExportObjectFact: func(types.Object, analysis.Fact) {},
		Report:           func(analysis.Diagnostic) {},
	}
	pass.Analyzer = ctrlflow.Analyzer
	cfgs, err := ctrlflow.Analyzer.Run(pass)
	if err != nil {
		return 0, fmt.Errorf("ctrlflow of %s: %w", pkg.PkgPath, err)
	}
	pass.ResultOf[ctrlflow.Analyzer] = cfgs
	p := newProgram(pass)
	for _, fn := range p.funcs {
		for instr := range instructions(fn) {
			asked++
			if v, ok := instr.(ssa.Value); ok {
				p.placeOf(v, nil)
				p.key(v, nil)
				p.funcsOf(v)
				p.rootsOf(v)
				p.holds(v.Type())
			}
			call, ok := instr.(ssa.CallInstruction)
			if !ok {
				continue
			}
			signals := map[any]bool{}
			p.isGuarded(fn, call)
			if p.startedBy(call) != nil {
				signals = p.signalsOf(call)
				p.awaitedBefore(call, signals)
				p.awaitedByHook(signals)
				p.isLast(fn, call)
				p.startReaches(call)
			}
			p.posOf(call)
			for _, arg := range call.Common().Args {
				p.isOwnGroup(arg)
				p.mayChange(instr, p.placeOf(arg, nil), 0)
			}
			if value, ok := instr.(*ssa.Call); ok {
				u := callUses{program: p, fn: fn, seen: map[ssa.Value]bool{}}
				u.value(value)
				everyPath(value, func(from, to *ssa.BasicBlock) bool { return p.selected(from, to, signals) },
					func(ssa.Instruction) verdict { return pathGoesOn })
			}
		}
		p.stepsOf(fn)
		s := selfExit{program: p, seen: map[*ssa.Function]bool{}}
		s.find(fn, nil, true)
	}
	r := newReport(pass, true)
	for _, look := range []func(*program, report){lookForGoroutines, lookForAppends, lookForSelfExits, lookForCalls} {
		look(p, r)
	}
	return asked, nil
}
