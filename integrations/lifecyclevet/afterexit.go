package lifecyclevet

import (
	"go/types"
	"slices"
	"strings"

	"golang.org/x/tools/go/ssa"
)

// AfterExit reports an Append or Commit that is executed after an Exit or ForceExit
// of the same host whenever it is executed, in one function and the func literals
// that it calls or defers.
var AfterExit = newAnalyzer("afterexit",
	`report appends to a lifecycle.Durability after the exit of its host

After an Exit the durability channel is sealed, or about to be: Append and Commit
are refused with ErrClosed, or, while the exit goes on, by chance not.`,
	lookForAppends)

func lookForAppends(p *program, r report) {
	for _, fn := range p.funcs {
		if asksForSelfExit(fn) {
			continue
		}
		exits, appends := p.stepsOf(fn)
		for _, a := range appends {
			for _, e := range exits {
				if e.host == a.host && comesAfter(e, a) && !p.mayChangeBetween(e, a) {
					r.addf(p.posOf(a.call), "this %s comes after the %s of the same host at %s, which has sealed the channel, or is about to: append first", a.name, e.name, r.atLine(p.posOf(e.call)))
					break
				}
			}
		}
	}
}

// step is an exit or an append that a function makes.
type step struct {
	at       ssa.Instruction // of the function
	call     ssa.CallInstruction
	deferred bool
	host     place
	read     ssa.Instruction // where the function reads the host, which may be long before
	name     string
}

// stepsOf finds a function's own exits and appends, and the unconditional ones of the
// func literals that it calls or defers.
func (p *program) stepsOf(fn *ssa.Function) (exits, appends []step) {
	add := func(at ssa.Instruction, call ssa.CallInstruction, deferred bool) {
		c := call.Common()
		if host, ok := isExit(c); ok {
			name := libraryCall(c)
			exits = append(exits, step{at, call, deferred, p.placeOf(host, nil), p.readAt(host, at), strings.TrimPrefix(name, "Host.")})
		}
		if d, name, ok := isAppend(c); ok {
			if host, known := p.hostOf(d, nil); known {
				appends = append(appends, step{at, call, deferred, host, at, strings.TrimPrefix(name, "Durability.")})
			}
		}
	}
	for instr := range instructions(fn) {
		call, ok := instr.(ssa.CallInstruction)
		if _, isGo := instr.(*ssa.Go); !ok || isGo {
			continue
		}
		_, deferred := instr.(*ssa.Defer)
		add(instr, call, deferred)
		if inner := call.Common().StaticCallee(); inner != nil && inner.Parent() == fn && len(inner.Blocks) > 0 {
			for _, within := range inner.Blocks[0].Instrs {
				if call, ok := within.(*ssa.Call); ok {
					add(instr, call, deferred)
				}
			}
		}
	}
	return exits, appends
}

// comesAfter says whether the append is executed after the exit, whenever both are.
func comesAfter(e, a step) bool {
	switch {
	case e.at == a.at: // of one func literal
		return before(e.call, a.call)
	case !e.deferred && !a.deferred:
		return before(e.at, a.at)
	case !e.deferred: // the append is at the function's end
		return before(e.at, a.at) || before(a.at, e.at)
	case !a.deferred:
		return false
	}
	return before(a.at, e.at) // deferred first, run last
}

// readAt is the instruction that reads the host for at, in the same function: at itself
// unless the host is in a variable that it was put into before.
func (p *program) readAt(host ssa.Value, at ssa.Instruction) ssa.Instruction {
	for range maxDepth {
		switch v := host.(type) {
		case *ssa.FreeVar:
			host = p.binding(v)
			continue
		case *ssa.Alloc:
			host = p.onlyStore(v)
			continue
		case *ssa.UnOp:
			if _, isField := v.X.(*ssa.FieldAddr); !isField && !isGlobal(v.X) {
				host = v.X
				continue
			}
			if v.Parent() == at.Parent() {
				return v
			}
		}
		break
	}
	return at
}

func isGlobal(v ssa.Value) bool {
	_, ok := v.(*ssa.Global)
	return ok
}

// asksForSelfExit says whether a function knows of ErrSelfExit: whether its exit has
// begun anything.
func asksForSelfExit(fn *ssa.Function) bool {
	for instr := range instructions(fn) {
		for _, operand := range instr.Operands(nil) {
			if g, ok := (*operand).(*ssa.Global); ok && g.Name() == "ErrSelfExit" && g.Pkg != nil && isLibrary(g.Pkg.Pkg) {
				return true
			}
		}
	}
	return false
}

// mayChangeBetween says whether the variable or field in which the host is may have
// another between the exit and the append.
func (p *program) mayChangeBetween(e, a step) bool {
	if !e.host.isMemory() {
		return false
	}
	for instr := range instructions(e.at.Parent()) {
		if reaches(e.read, instr) && (a.deferred || reaches(instr, a.at)) && p.mayChange(instr, e.host, 0) {
			return true
		}
	}
	return false
}

func (p *program) mayChange(instr ssa.Instruction, host place, depth int) bool {
	if s, ok := instr.(*ssa.Store); ok {
		return p.storesTo(s.Addr, host)
	}
	call, ok := instr.(ssa.CallInstruction)
	if !ok {
		return false
	}
	c := call.Common()
	if _, builtin := c.Value.(*ssa.Builtin); builtin || libraryCall(c) != "" {
		return false
	}
	if c.IsInvoke() { // an error's text, a context, a logger's handler; but not who knows what
		return c.Method.Pkg() != nil && strings.Contains(c.Method.Pkg().Path(), ".") || c.Method.Pkg() == p.pass.Pkg
	}
	callees := p.callees(c)
	if len(callees) == 0 || depth > 4 {
		return true
	}
	for _, callee := range callees {
		if len(callee.fn.Blocks) == 0 && p.isGiven(c, host, depth) { // what another package does with it can't be seen
			return true
		}
		for instr := range instructions(callee.fn) {
			if p.mayChange(instr, host, depth+1) {
				return true
			}
		}
	}
	return false
}

// isGiven says whether a call is given something that leads to the place: in a function
// that is called, where the place has another name, all that leads to some host.
func (p *program) isGiven(c *ssa.CallCommon, host place, depth int) bool {
	return slices.ContainsFunc(c.Args, func(arg ssa.Value) bool {
		if isLibraryType(arg.Type(), "Host") || isLibraryType(arg.Type(), "Durability") {
			return false
		}
		pl := p.placeOf(arg, nil)
		return pl.base == host.base && strings.HasPrefix(host.path, pl.path) || depth > 0 && p.holds(arg.Type())
	})
}

// storesTo says whether a store to addr may be one to the place: any field of a name
// that is in its path is taken as that field.
func (p *program) storesTo(addr ssa.Value, host place) bool {
	switch addr := addr.(type) {
	case *ssa.FieldAddr:
		name := fieldOf(addr.X.Type(), addr.Field).Name()
		return slices.Contains(strings.Split(host.path, "."), name)
	case *ssa.FreeVar, *ssa.Alloc, *ssa.Global:
		return p.placeOf(addr, nil).base == host.base
	}
	pointer, ok := addr.Type().Underlying().(*types.Pointer)
	if !ok || host.path == "" {
		return false
	}
	_, isStruct := pointer.Elem().Underlying().(*types.Struct) // *s = server{…}
	return isStruct
}
