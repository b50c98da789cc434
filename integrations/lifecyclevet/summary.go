package lifecyclevet

import (
	"go/types"
	"slices"
	"strings"

	"golang.org/x/tools/go/ssa"
)

// summary is what calling a function comes to.
type summary struct {
	appends bool  // it appends to a host that it has not made and does not exit itself
	through roots // from which of its parameters or captured variables it has that host
	calls   roots // which of them are funcs that it calls
	returns roots // from which of them a host comes that it returns
	enters  bool  // it enters a call, and returns that or a func that leaves it
	leaves  bool  // it leaves a call that it has not entered
	via     string
}

// roots are parameters (by index), captured variables (by -1-index) and globals
// that a value comes from. A value without any was made by the function itself.
type roots map[int]bool

const global = 1 << 20

func (r roots) add(more roots) (grown bool) {
	for root := range more {
		if !r[root] {
			r[root], grown = true, true
		}
	}
	return grown
}

// appendsFact is a summary for other packages.
type appendsFact struct {
	Appends, Enters, Leaves bool
	Through, Calls, Returns []int
	Via                     string
}

func (*appendsFact) AFact() {}

func (f *appendsFact) String() string {
	if !f.Appends {
		return "calls"
	}
	return "appends: " + f.Via
}

// summarize fills in the summaries of all functions: again and again, until none
// grows any more.
func (p *program) summarize() {
	all := slices.Concat(p.funcs, p.made)
	p.findEntering(all) // first: where a call is entered, an append is no matter
	p.findLeaving(all)
	for range 50 {
		grown := false
		clear(p.awaits) // what a goroutine does before its signal may be known by now
		for _, fn := range all {
			if p.grow(fn, p.summaryOf(fn)) {
				grown = true
			}
		}
		if !grown {
			break
		}
	}
	if isLibrary(p.pass.Pkg) {
		return // its names are what the checks begin with
	}
	for _, fn := range p.funcs {
		object, s := objectOf(fn), p.summaries[fn]
		if object == nil || object.Pkg() != p.pass.Pkg || fn.Parent() != nil || !s.appends && !s.enters && !s.leaves && len(s.calls)+len(s.returns) == 0 {
			continue
		}
		p.pass.ExportObjectFact(object, &appendsFact{s.appends, s.enters, s.leaves, s.through.sorted(), s.calls.sorted(), s.returns.sorted(), s.via})
	}
}

func (r roots) sorted() []int {
	var all []int
	for root := range r {
		all = append(all, root)
	}
	slices.Sort(all)
	return all
}

func rootsFrom(all []int) roots {
	r := roots{}
	for _, root := range all {
		r[root] = true
	}
	return r
}

// summaryOf is what is known of fn so far: of another package's, its fact.
func (p *program) summaryOf(fn *ssa.Function) *summary {
	if origin := fn.Origin(); origin != nil && len(fn.Blocks) == 0 {
		fn = origin
	}
	if s := p.summaries[fn]; s != nil {
		return s
	}
	s := &summary{through: roots{}, calls: roots{}, returns: roots{}}
	p.summaries[fn] = s
	if len(fn.Blocks) > 0 {
		return s
	}
	var fact appendsFact
	if object := objectOf(fn); object != nil && !isLibrary(object.Pkg()) && object.Pkg() != p.pass.Pkg && p.pass.ImportObjectFact(object, &fact) {
		s.appends, s.enters, s.leaves, s.via = fact.Appends, fact.Enters, fact.Leaves, fact.Via
		s.through, s.calls, s.returns = rootsFrom(fact.Through), rootsFrom(fact.Calls), rootsFrom(fact.Returns)
	}
	return s
}

// grow looks at a function once.
func (p *program) grow(fn *ssa.Function, s *summary) (grown bool) {
	if len(fn.Blocks) == 0 {
		return false
	}
	for instr := range instructions(fn) {
		switch instr := instr.(type) {
		case *ssa.Call, *ssa.Defer, *ssa.Go:
			at := instr.(ssa.CallInstruction)
			e := p.effectOf(at)
			if !e.appends && len(e.calls) == 0 || p.isGuarded(fn, at) {
				continue
			}
			if e.appends && !s.appends {
				s.appends, s.via, grown = true, e.via, true
			}
			grown = s.through.add(e.through) || grown
			grown = s.calls.add(e.calls) || grown
		case *ssa.Return:
			for _, result := range instr.Results {
				if p.holds(result.Type()) {
					grown = s.returns.add(p.rootsOf(result)) || grown
				}
			}
		}
	}
	return grown
}

// effect is what one call comes to, in terms of the function that it is in.
type effect struct {
	appends        bool
	through, calls roots
	via            string
}

// effectOf is the effect of a call on the goroutine that makes it: nothing, if it
// only hands a func to a host, or to a goroutine that it does not await.
func (p *program) effectOf(at ssa.CallInstruction) effect {
	c := at.Common()
	none := effect{}
	if isOwned(c) {
		return none
	}
	if f := p.startedBy(at); f != nil {
		if e := p.effectOfStart(at); (e.appends || len(e.calls) > 0) && p.isAwaited(at) {
			return e
		}
		return none
	}
	return p.effectOfCall(c)
}

// effectOfStart is the effect of what a goroutine runs.
func (p *program) effectOfStart(at ssa.CallInstruction) effect {
	if _, ok := at.(*ssa.Go); ok {
		return p.effectOfCall(at.Common())
	}
	e := effect{through: roots{}, calls: roots{}}
	p.callValue(&e, p.startedBy(at))
	return e
}

func (p *program) effectOfCall(c *ssa.CallCommon) effect {
	e := effect{through: roots{}, calls: roots{}}
	if d, name, ok := isAppend(c); ok {
		if from := p.rootsOf(d); len(from) > 0 { // otherwise it has made the host, and exits it
			e.appends, e.through, e.via = true, from, name
		}
		return e
	}
	if libraryCall(c) != "" {
		return e
	}
	callees := p.callees(c)
	for _, callee := range callees {
		s := p.summaryOf(callee.fn)
		p.apply(&e, s, callee, argsOf(c))
		for root := range s.calls {
			if root >= 0 && root < len(c.Args) && !c.IsInvoke() {
				p.callValue(&e, c.Args[root])
			} else if i := -1 - root; root < 0 && i < len(callee.bindings) {
				p.callValue(&e, callee.bindings[i])
			}
		}
	}
	if len(callees) == 0 && !c.IsInvoke() {
		e.calls.add(p.rootsOf(c.Value)) // a func that came in
	}
	runs := runsItsFuncs(c)
	for _, arg := range c.Args {
		if m, ok := arg.(*ssa.MakeClosure); ok && (runs || m.Fn.(*ssa.Function).Synthetic == "range-over-func yield") {
			p.callValue(&e, arg)
		}
	}
	return e
}

// callValue adds the effect of calling a func value.
func (p *program) callValue(e *effect, v ssa.Value) {
	funcs := p.funcsOf(v)
	for _, f := range funcs {
		s := p.summaryOf(f.fn)
		p.apply(e, s, f, nil)
		for root := range s.calls {
			if i := -1 - root; root < 0 && i < len(f.bindings) {
				e.calls.add(p.rootsOf(f.bindings[i]))
			}
		}
	}
	if len(funcs) == 0 {
		e.calls.add(p.rootsOf(v))
	}
}

// apply adds what a callee appends to, as the caller sees it. Without args, what
// the callee has from its parameters is unknown, and left out.
func (p *program) apply(e *effect, s *summary, callee closure, args []ssa.Value) {
	if !s.appends {
		return
	}
	from := roots{}
	for root := range s.through {
		switch i := -1 - root; {
		case root == global:
			from[global] = true
		case root >= 0 && root < len(args):
			from.add(p.rootsOf(args[root]))
		case root < 0 && i < len(callee.bindings):
			from.add(p.rootsOf(callee.bindings[i]))
		}
	}
	e.through.add(from)
	if len(from) > 0 && !e.appends {
		e.appends, e.via = true, viaOf(callee.fn, s)
	}
}

// viaOf is the way to the append through fn, as a message names it.
func viaOf(fn *ssa.Function, s *summary) string {
	object := objectOf(fn)
	if object == nil || fn.Synthetic != "" && len(fn.Blocks) > 0 || strings.Count(s.via, "→") > 2 {
		return s.via
	}
	return nameOf(object) + " → " + s.via
}

// guards are what a function does about an exit.
type guards struct {
	enters []ssa.Instruction
	exits  []place // of these hosts
	leaves bool    // a call that somebody else has entered
}

func (p *program) guardsOf(fn *ssa.Function) guards {
	if known, ok := p.guards[fn]; ok {
		return known
	}
	g := guards{}
	for instr := range instructions(fn) {
		call, ok := instr.(ssa.CallInstruction)
		if !ok {
			continue
		}
		c := call.Common()
		if p.enters(c) {
			g.enters = append(g.enters, instr)
		}
		if host, ok := isExit(c); ok {
			g.exits = append(g.exits, p.placeOf(host, nil))
		}
		g.leaves = g.leaves || p.leavesOthers(fn, c)
		if _, ok := instr.(*ssa.Defer); ok && !g.leaves { // defer func() { …; call.Leave() }()
			if inner := c.StaticCallee(); inner != nil && inner.Parent() == fn {
				g.leaves = p.guardsOf(inner).leaves
			}
		}
	}
	p.guards[fn] = g
	return g
}

// isGuarded says whether an exit waits for this call anyway: between Enter and
// Leave, or in a function that leaves a call which its caller has entered; or
// nobody else's exit comes: the function itself exits the host.
func (p *program) isGuarded(fn *ssa.Function, at ssa.CallInstruction) bool {
	g := p.guardsOf(fn)
	if g.leaves || slices.ContainsFunc(g.enters, func(enter ssa.Instruction) bool { return before(enter, at) }) {
		return true
	}
	d, _, direct := isAppend(at.Common())
	if !direct {
		return len(g.exits) > 0
	}
	its, known := p.hostOf(d, nil)
	return !known && len(g.exits) > 0 || slices.Contains(g.exits, its)
}

// enters says whether a call enters a call of a host, itself or in a function that
// hands that on.
func (p *program) enters(c *ssa.CallCommon) bool {
	if isEnter(c) {
		return true
	}
	fn := c.StaticCallee()
	return fn != nil && p.summaryOf(fn).enters
}

// leavesOthers says whether a call that fn makes leaves a call of a host that fn has not
// entered: by Leave, by a func that leaves it, or in the function that it calls.
func (p *program) leavesOthers(fn *ssa.Function, c *ssa.CallCommon) bool {
	own := func(call ssa.Value) bool { return p.enteredIn(call) == fn }
	if libraryCall(c) == "Call.Leave" {
		return !own(withReceiver(c)[0])
	}
	if callee := c.StaticCallee(); callee != nil {
		return p.summaryOf(callee).leaves && !slices.ContainsFunc(c.Args, own)
	}
	return !c.IsInvoke() && p.isLeave(c.Value) && !own(c.Value)
}

// isLeave says whether a func is the Leave of a Call, or comes from a function that
// enters one.
func (p *program) isLeave(f ssa.Value) bool {
	return p.enteredIn(f) != nil || slices.ContainsFunc(p.funcsOf(f), func(c closure) bool { return libraryFunc(c.fn) == "Call.Leave" })
}

func (p *program) findLeaving(all []*ssa.Function) {
	for _, fn := range all {
		for instr := range instructions(fn) {
			if call, ok := instr.(ssa.CallInstruction); ok && libraryCall(call.Common()) == "Call.Leave" && p.enteredIn(withReceiver(call.Common())[0]) != fn {
				p.summaryOf(fn).leaves = true
			}
		}
	}
}

func (p *program) findEntering(all []*ssa.Function) {
	for grown := true; grown; {
		grown = false
		for _, fn := range all {
			s := p.summaryOf(fn)
			if s.enters || !handsOn(fn) {
				continue
			}
			for instr := range instructions(fn) {
				if call, ok := instr.(ssa.CallInstruction); ok && p.enters(call.Common()) {
					s.enters, grown = true, true
				}
			}
		}
	}
}

// handsOn says whether fn returns a Call, something that has one, or a func.
func handsOn(fn *ssa.Function) bool {
	for result := range fn.Signature.Results().Variables() {
		switch t := result.Type().Underlying().(type) {
		case *types.Signature:
			return true
		case *types.Struct:
			if isLibraryType(result.Type(), "Call") {
				return true
			}
			for field := range t.Fields() {
				if isLibraryType(field.Type(), "Call") {
					return true
				}
			}
		}
	}
	return false
}

// enteredIn is the function that has entered a Call, or what leaves it, if that can be
// seen.
func (p *program) enteredIn(call ssa.Value) *ssa.Function {
	e, ok := p.placeOf(call, nil).base.(*ssa.Extract)
	if !ok {
		return nil
	}
	from, ok := e.Tuple.(*ssa.Call) // and not a channel or a map
	if !ok || !isLibraryType(e.Type(), "Call") && !p.enters(from.Common()) {
		return nil
	}
	return e.Parent()
}

// runsItsFuncs knows the standard library's functions that call a func argument
// before they return.
func runsItsFuncs(c *ssa.CallCommon) bool {
	switch path, name := calleeName(c); path {
	case "slices", "maps", "sort", "strings", "bytes", "path/filepath", "io/fs":
		return true
	case "sync":
		return name == "Once.Do" || name == "Map.Range"
	case "runtime/pprof":
		return name == "Do"
	case "runtime/trace":
		return name == "WithRegion"
	}
	return false
}

// rootsOf finds where a value comes from, in terms of the function that it is in.
func (p *program) rootsOf(v ssa.Value) roots {
	found := roots{}
	p.trace(v, found, map[ssa.Value]bool{})
	return found
}

func (p *program) trace(v ssa.Value, found roots, seen map[ssa.Value]bool) {
	if v == nil || seen[v] {
		return
	}
	seen[v] = true
	follow := func(v ssa.Value) { p.trace(v, found, seen) }
	switch v := v.(type) {
	case *ssa.Parameter:
		found[slices.Index(v.Parent().Params, v)] = true
	case *ssa.FreeVar:
		found[-1-slices.Index(v.Parent().FreeVars, v)] = true
	case *ssa.Global:
		found[global] = true
	case *ssa.Alloc, *ssa.MakeMap, *ssa.MakeChan, *ssa.MakeSlice:
		p.traceMade(v, found, seen)
	case *ssa.Phi:
		for _, edge := range v.Edges {
			follow(edge)
		}
	case *ssa.MakeClosure:
		for _, bound := range v.Bindings {
			follow(bound)
		}
	case *ssa.Select:
		for _, state := range v.States {
			follow(state.Chan)
		}
	case *ssa.Call:
		p.traceCall(v.Common(), found, seen)
	case *ssa.BinOp:
	case *ssa.UnOp:
		follow(v.X)
	case *ssa.FieldAddr:
		if alloc, ok := v.X.(*ssa.Alloc); ok { // of a struct made here, only this field
			if values := fieldStores(alloc, v.Field); len(values) > 0 {
				for _, stored := range values {
					follow(stored)
				}
				return
			}
		}
		follow(v.X)
	default:
		if instr, ok := v.(ssa.Instruction); ok { // fields, elements, conversions, …: of their first operand
			if ops := instr.Operands(nil); len(ops) > 0 {
				follow(*ops[0])
			}
		}
	}
}

// traceMade traces what is put into a variable, a struct, a map or a channel.
func (p *program) traceMade(made ssa.Value, found roots, seen map[ssa.Value]bool) {
	for _, use := range *made.Referrers() {
		switch use := use.(type) {
		case *ssa.Store:
			if use.Addr == made {
				p.trace(use.Val, found, seen)
			}
		case *ssa.FieldAddr, *ssa.IndexAddr:
			for _, inner := range *use.(ssa.Value).Referrers() {
				if s, ok := inner.(*ssa.Store); ok && s.Addr == use.(ssa.Value) && p.holds(s.Val.Type()) {
					p.trace(s.Val, found, seen)
				}
			}
		case *ssa.MapUpdate:
			p.trace(use.Value, found, seen)
		case *ssa.Send:
			p.trace(use.X, found, seen)
		case ssa.CallInstruction:
			if libraryCall(use.Common()) != "" {
				continue
			}
			for _, arg := range use.Common().Args {
				if arg != made && p.holds(arg.Type()) {
					p.trace(arg, found, seen)
				}
			}
		}
	}
}

// traceCall traces the host that a call returns. Through a func that is unknown
// nothing can be seen: it is taken as one that makes it.
func (p *program) traceCall(c *ssa.CallCommon, found roots, seen map[ssa.Value]bool) {
	if name := libraryCall(c); name != "" {
		if name != "New" && len(withReceiver(c)) > 0 {
			p.trace(withReceiver(c)[0], found, seen)
		}
		return
	}
	if c.IsInvoke() {
		if p.holds(c.Value.Type()) {
			p.trace(c.Value, found, seen)
		}
		return
	}
	callees := p.callees(c)
	for _, callee := range callees {
		if path := objectOf(callee.fn); path == nil || len(callee.fn.Blocks) > 0 || p.isAnalyzed(callee.fn) {
			for root := range p.summaryOf(callee.fn).returns {
				switch i := -1 - root; {
				case root == global:
					found[global] = true
				case root >= 0 && root < len(c.Args):
					p.trace(c.Args[root], found, seen)
				case root < 0 && i < len(callee.bindings):
					p.trace(callee.bindings[i], found, seen)
				}
			}
			continue
		}
		for _, arg := range c.Args { // a container of another's: atomic.Pointer, sync.Pool, …
			if p.holds(arg.Type()) {
				p.trace(arg, found, seen)
			}
		}
	}
}

// isAnalyzed says whether a function's package was looked at: it depends on the library.
func (p *program) isAnalyzed(fn *ssa.Function) bool {
	object := objectOf(fn)
	return object != nil && object.Pkg() != nil && imports(object.Pkg(), map[*types.Package]bool{})
}
