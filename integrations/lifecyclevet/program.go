package lifecyclevet

import (
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/passes/ctrlflow"
	"golang.org/x/tools/go/ssa"
)

// program is a package in SSA form, and what is known of its functions.
type program struct {
	pass  *analysis.Pass  // reach's
	funcs []*ssa.Function // of the source
	made  []*ssa.Function // by the compiler: method values, promoted methods, instances

	owned []ssa.CallInstruction // of Go, Every and OnExit

	closures  map[*ssa.Function]*ssa.MakeClosure // where a func literal captures its variables
	summaries map[*ssa.Function]*summary
	guards    map[*ssa.Function]guards
	holders   map[types.Type]bool
	awaits    map[ssa.Instruction]bool
	waits     map[question]bool // of the signals that are asked about
}

// reach makes the program, and for other packages the facts about its functions.
//
// A package that imports lifecycle nowhere in its dependencies has neither: most
// packages that vet looks at for facts only are like that, the standard library first.
var reach = &analysis.Analyzer{
	Name:       "lifecyclereach",
	Doc:        "find the functions that append to a lifecycle.Durability, and through what they reach it",
	URL:        home,
	Requires:   []*analysis.Analyzer{ctrlflow.Analyzer},
	ResultType: reflect.TypeFor[*program](),
	FactTypes:  []analysis.Fact{(*appendsFact)(nil)},
	Run: func(pass *analysis.Pass) (any, error) {
		if !imports(pass.Pkg, map[*types.Package]bool{}) {
			return (*program)(nil), nil
		}
		return newProgram(pass), nil
	},
}

func newProgram(pass *analysis.Pass) *program {
	p := &program{
		pass:      pass,
		closures:  map[*ssa.Function]*ssa.MakeClosure{},
		summaries: map[*ssa.Function]*summary{},
		guards:    map[*ssa.Function]guards{},
		holders:   map[types.Type]bool{},
		awaits:    map[ssa.Instruction]bool{},
	}
	p.build()
	p.summarize()
	return p
}

const libraryPath = "github.com/seed080d9131/lifecycle"

// isLibrary knows the library under the names that it has in its own tests as well.
func isLibrary(pkg *types.Package) bool {
	if pkg == nil {
		return false
	}
	path, _, _ := strings.Cut(pkg.Path(), " ")
	return path == libraryPath
}

func imports(pkg *types.Package, seen map[*types.Package]bool) bool {
	if isLibrary(pkg) {
		return true
	}
	if seen[pkg] {
		return false
	}
	seen[pkg] = true
	return slices.ContainsFunc(pkg.Imports(), func(dep *types.Package) bool { return imports(dep, seen) })
}

// build is what the buildssa analyzer does, which can't be had for some packages only.
func (p *program) build() {
	cfgs := p.pass.ResultOf[ctrlflow.Analyzer].(*ctrlflow.CFGs)
	prog := ssa.NewProgram(p.pass.Fset, ssa.BuilderMode(0))
	prog.SetNoReturn(cfgs.NoReturn)
	for _, dep := range p.pass.Pkg.Imports() {
		prog.CreatePackage(dep, nil, nil, true)
	}
	pkg := prog.CreatePackage(p.pass.Pkg, p.pass.Files, p.pass.TypesInfo, false)
	pkg.Build()

	var add func(fn *ssa.Function)
	add = func(fn *ssa.Function) {
		p.funcs = append(p.funcs, fn)
		for instr := range instructions(fn) {
			switch instr := instr.(type) {
			case *ssa.MakeClosure:
				if inner := instr.Fn.(*ssa.Function); inner.Parent() != nil {
					p.closures[inner] = instr
				}
			case ssa.CallInstruction:
				if isOwned(instr.Common()) {
					p.owned = append(p.owned, instr)
				}
			}
		}
		for _, inner := range fn.AnonFuncs {
			add(inner)
		}
	}
	for _, file := range p.pass.Files {
		for _, decl := range file.Decls {
			if decl, ok := decl.(*ast.FuncDecl); ok {
				if object, ok := p.pass.TypesInfo.Defs[decl.Name].(*types.Func); ok {
					if fn := prog.FuncValue(object); fn != nil {
						add(fn)
					}
				}
			}
		}
	}
	if init := pkg.Func("init"); init != nil { // func literals in package variables
		add(init)
	}
	seen := map[*ssa.Function]bool{}
	for _, fn := range p.funcs {
		seen[fn] = true
	}
	for all := p.funcs; len(all) > 0; {
		var more []*ssa.Function
		for _, fn := range all {
			for instr := range instructions(fn) {
				for _, operand := range instr.Operands(nil) {
					if f, ok := (*operand).(*ssa.Function); ok && !seen[f] && len(f.Blocks) > 0 {
						seen[f] = true
						more = append(more, f)
					}
				}
			}
		}
		p.made = append(p.made, more...)
		all = more
	}
}

// What the library's names are to the checks.

// libraryCall is the name of the library's method that a call calls, as
// "Durability.Append", or the function's, as "New". withReceiver has its arguments.
func libraryCall(c *ssa.CallCommon) string {
	fn := c.StaticCallee()
	if fn == nil {
		return ""
	}
	return libraryFunc(fn)
}

func libraryFunc(fn *ssa.Function) string {
	object := objectOf(fn)
	if object == nil || !isLibrary(object.Pkg()) {
		return ""
	}
	return nameOf(object)
}

// nameOf is "Type.Method" or "Func".
func nameOf(object *types.Func) string {
	recv := object.Signature().Recv()
	if recv == nil {
		return object.Name()
	}
	if named := namedOf(recv.Type()); named != nil {
		return named.Obj().Name() + "." + object.Name()
	}
	return object.Name()
}

// isExit says whether a call waits for the end of a host, and which argument is that.
func isExit(c *ssa.CallCommon) (host ssa.Value, ok bool) {
	switch libraryCall(c) {
	case "Host.Exit", "Host.ForceExit":
		return withReceiver(c)[0], true
	case "Run":
		if m, ok := c.Args[1].(*ssa.MakeInterface); ok && isLibraryType(m.X.Type(), "Host") {
			return m.X, true
		}
	}
	return nil, false
}

// isAppend says whether a call appends, and to which Durability: also through an
// interface, if its Append returns a Pending.
func isAppend(c *ssa.CallCommon) (durability ssa.Value, name string, ok bool) {
	switch name := libraryCall(c); name {
	case "Durability.Append", "Durability.Commit":
		return withReceiver(c)[0], name, true
	}
	if c.IsInvoke() && c.Method.Name() == "Append" {
		results := c.Method.Signature().Results()
		if results.Len() == 2 && isLibraryType(results.At(0).Type(), "Pending") {
			return c.Value, "Durability.Append", true
		}
	}
	return nil, "", false
}

// isEnter says whether a call enters a call: also through an interface, if its Enter
// returns a Call.
func isEnter(c *ssa.CallCommon) bool {
	if c.IsInvoke() && c.Method.Name() == "Enter" {
		results := c.Method.Signature().Results()
		return results.Len() == 2 && isLibraryType(results.At(0).Type(), "Call")
	}
	return libraryCall(c) == "Host.Enter"
}

// isOwned says whether a call hands a func, its last argument, to a host, which then
// accounts for it.
func isOwned(c *ssa.CallCommon) bool {
	switch libraryCall(c) {
	case "Host.Go", "Host.Every", "Host.OnExit":
		return true
	}
	return false
}

func isLibraryType(t types.Type, name string) bool {
	named := namedOf(t)
	return named != nil && named.Obj().Name() == name && isLibrary(named.Obj().Pkg())
}

func namedOf(t types.Type) *types.Named {
	t = types.Unalias(t)
	if pointer, ok := t.(*types.Pointer); ok {
		t = types.Unalias(pointer.Elem())
	}
	named, _ := t.(*types.Named)
	return named
}

// objectOf is a function's declaration: of an instance, the generic one's.
func objectOf(fn *ssa.Function) *types.Func {
	if origin := fn.Origin(); origin != nil {
		fn = origin
	}
	object, _ := fn.Object().(*types.Func)
	if object != nil {
		object = object.Origin()
	}
	return object
}

// calleeName is "pkg.Type.Method" or "pkg.Func" of a static callee of another
// package, with the package's path.
func calleeName(c *ssa.CallCommon) (path, name string) {
	fn := c.StaticCallee()
	if fn == nil {
		return "", ""
	}
	object := objectOf(fn)
	if object == nil || object.Pkg() == nil {
		return "", ""
	}
	return object.Pkg().Path(), nameOf(object)
}

// holds says whether a value of type t can lead to a host: it is one, or a
// Durability, or a Controller, or holds one in a field, an element or a type argument.
func (p *program) holds(t types.Type) bool {
	seen := map[types.Type]bool{}
	held := p.leadsToHost(t, seen)
	if !held {
		for t := range seen { // all that t leads to
			p.holders[t] = false
		}
	}
	return held
}

func (p *program) leadsToHost(t types.Type, seen map[types.Type]bool) bool {
	if known, ok := p.holders[t]; ok || seen[t] {
		return known
	}
	seen[t] = true
	held := false
	switch t := types.Unalias(t).(type) {
	case *types.Named:
		if isLibrary(t.Obj().Pkg()) {
			switch t.Obj().Name() {
			case "Host", "Durability", "Controller":
				held = true
			}
			break
		}
		for arg := range t.TypeArgs().Types() {
			held = held || p.leadsToHost(arg, seen)
		}
		held = held || p.leadsToHost(t.Underlying(), seen)
	case *types.Pointer:
		held = p.leadsToHost(t.Elem(), seen)
	case *types.Slice:
		held = p.leadsToHost(t.Elem(), seen)
	case *types.Array:
		held = p.leadsToHost(t.Elem(), seen)
	case *types.Chan:
		held = p.leadsToHost(t.Elem(), seen)
	case *types.Map:
		held = p.leadsToHost(t.Key(), seen) || p.leadsToHost(t.Elem(), seen)
	case *types.Struct:
		for field := range t.Fields() {
			held = held || p.leadsToHost(field.Type(), seen)
		}
	case *types.Tuple:
		for v := range t.Variables() {
			held = held || p.leadsToHost(v.Type(), seen)
		}
	case *types.Interface:
		for method := range t.Methods() {
			results := method.Signature().Results()
			held = held || results.Len() > 0 && (isLibraryType(results.At(0).Type(), "Pending") ||
				isLibraryType(results.At(0).Type(), "Host") || isLibraryType(results.At(0).Type(), "Durability"))
		}
	}
	if held {
		p.holders[t] = true
	}
	return held
}

// instructions of a function, in the order of its blocks.
func instructions(fn *ssa.Function) func(func(ssa.Instruction) bool) {
	return func(yield func(ssa.Instruction) bool) {
		for _, b := range fn.Blocks {
			for _, instr := range b.Instrs {
				if !yield(instr) {
					return
				}
			}
		}
	}
}

// phaseOf is the constant phase of a call of OnExit, or -1.
func phaseOf(c *ssa.CallCommon) int64 {
	if k, ok := withReceiver(c)[1].(*ssa.Const); ok && k.Value != nil {
		if n, exact := constant.Int64Val(k.Value); exact {
			return n
		}
	}
	return -1
}

// before says whether a is executed before b whenever b is: it dominates it.
func before(a, b ssa.Instruction) bool {
	if a.Block() != b.Block() {
		return a.Block().Dominates(b.Block())
	}
	return indexOf(a) < indexOf(b)
}

func indexOf(instr ssa.Instruction) int { return slices.Index(instr.Block().Instrs, instr) }

// posOf is where a call, or a go or defer statement, begins.
func (p *program) posOf(instr ssa.CallInstruction) token.Pos {
	pos := instr.Pos() // a call's is its parenthesis
	call, ok := instr.(*ssa.Call)
	if !ok {
		return pos
	}
	if begin := p.callAt(call.Parent(), pos); begin.IsValid() {
		return begin
	}
	return pos
}

// callAt is where the call begins whose parenthesis is at lparen.
func (p *program) callAt(fn *ssa.Function, lparen token.Pos) (begin token.Pos) {
	if fn.Syntax() == nil {
		return token.NoPos
	}
	ast.Inspect(fn.Syntax(), func(n ast.Node) bool {
		if c, ok := n.(*ast.CallExpr); ok && c.Lparen == lparen {
			begin = c.Pos()
		}
		return !begin.IsValid()
	})
	return begin
}
