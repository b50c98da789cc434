package lifecyclevet

import (
	"go/token"
	"go/types"
	"slices"

	"golang.org/x/tools/go/ssa"
)

// place names what a value was read from: a variable, a field of one, or the
// instruction that made it. Two reads of one place, with no write between them, are
// the same value.
type place struct {
	base ssa.Value
	path string // ".field" after ".field"
}

// isMemory says whether the place can be written to between two reads.
func (pl place) isMemory() bool {
	switch pl.base.(type) {
	case *ssa.Global, *ssa.Alloc:
		return true
	}
	return pl.path != ""
}

// frame is what the parameters of a function, and the receiver of a method value,
// stand for at one call of it; nil: for themselves.
type frame map[ssa.Value]place

const maxDepth = 16

// placeOf finds the place that a value was read from, through captured variables,
// and through variables and fields that are written once.
func (p *program) placeOf(v ssa.Value, f frame) place { return p.place(v, f, 0) }

func (p *program) place(v ssa.Value, f frame, depth int) place {
	if depth > maxDepth {
		return place{base: v}
	}
	depth++
	switch v := v.(type) {
	case *ssa.Parameter:
		if pl, ok := f[v]; ok {
			return pl
		}
	case *ssa.FreeVar:
		if pl, ok := f[v]; ok {
			return pl
		}
		if binding := p.binding(v); binding != nil {
			return p.place(binding, f, depth)
		}
	case *ssa.Alloc:
		if stored := p.onlyStore(v); stored != nil {
			return p.place(stored, f, depth)
		}
	case *ssa.UnOp:
		switch v.Op {
		case token.MUL:
			return p.place(v.X, f, depth)
		}
	case *ssa.FieldAddr:
		name := fieldOf(v.X.Type(), v.Field).Name()
		if alloc, ok := v.X.(*ssa.Alloc); ok {
			if stored := p.onlyFieldStore(alloc, v.Field); stored != nil {
				return p.place(stored, f, depth)
			}
		}
		pl := p.place(v.X, f, depth)
		if alloc, ok := pl.base.(*ssa.Alloc); ok && pl.path == "" {
			if stored := p.onlyFieldStore(alloc, v.Field); stored != nil {
				return p.place(stored, f, depth)
			}
		}
		return place{pl.base, pl.path + "." + name}
	case *ssa.Field:
		pl := p.place(v.X, f, depth)
		return place{pl.base, pl.path + "." + fieldOf(v.X.Type(), v.Field).Name()}
	case *ssa.ChangeType:
		return p.place(v.X, f, depth)
	case *ssa.ChangeInterface:
		return p.place(v.X, f, depth)
	case *ssa.MakeInterface:
		return p.place(v.X, f, depth)
	case *ssa.Call:
		if libraryCall(v.Common()) == "Host.Durability" {
			pl := p.place(withReceiver(v.Common())[0], f, depth)
			return place{pl.base, pl.path + ".Durability()"}
		}
		if result, inner := p.getter(v.Common(), f, depth); result != nil {
			return p.place(result, inner, depth)
		}
	}
	return place{base: v}
}

// getter is the result of a function of one expression, with what its parameters
// stand for at a call.
func (p *program) getter(c *ssa.CallCommon, f frame, depth int) (ssa.Value, frame) {
	fn := c.StaticCallee()
	if fn == nil || len(fn.Blocks) != 1 || fn.Parent() != nil || len(fn.Params) != len(c.Args) {
		return nil, nil
	}
	instrs := fn.Blocks[0].Instrs
	ret, ok := instrs[len(instrs)-1].(*ssa.Return)
	if !ok || len(ret.Results) != 1 {
		return nil, nil
	}
	for _, instr := range instrs[:len(instrs)-1] {
		switch instr := instr.(type) {
		case *ssa.FieldAddr, *ssa.Field, *ssa.UnOp, *ssa.DebugRef:
		case *ssa.Call:
			if libraryCall(instr.Common()) != "Host.Durability" {
				return nil, nil
			}
		default:
			return nil, nil
		}
	}
	return ret.Results[0], p.frameOf(fn, c.Args, f, depth)
}

// frameOf is the frame of a call of fn.
func (p *program) frameOf(fn *ssa.Function, args []ssa.Value, f frame, depth int) frame {
	if len(fn.Params) != len(args) {
		return nil
	}
	inner := frame{}
	for i, param := range fn.Params {
		inner[param] = p.place(args[i], f, depth)
	}
	return inner
}

// frameOfFunc is the frame of a func value: a method value's has its receiver.
func (p *program) frameOfFunc(c closure) frame {
	f := frame{}
	if c.fn.Parent() == nil {
		for i, free := range c.fn.FreeVars {
			f[free] = p.placeOf(c.bindings[i], nil)
		}
	}
	return f
}

// hostOf is the place of the host whose Durability d is, if that can be seen.
func (p *program) hostOf(d ssa.Value, f frame) (place, bool) {
	pl := p.placeOf(d, f)
	const suffix = ".Durability()"
	if n := len(pl.path) - len(suffix); n >= 0 && pl.path[n:] == suffix {
		return place{pl.base, pl.path[:n]}, true
	}
	return pl, false
}

// binding is the variable that a func literal captures as v.
func (p *program) binding(v *ssa.FreeVar) ssa.Value {
	fn := v.Parent()
	c := p.closures[fn]
	if c == nil {
		return nil
	}
	for i, free := range fn.FreeVars {
		if free == v {
			return c.Bindings[i]
		}
	}
	return nil
}

// stores are the values that are put into a variable, also by func literals that
// capture it. known is false if its address goes elsewhere.
func (p *program) stores(addr ssa.Value) (values []ssa.Value, known bool) {
	known = true
	for _, use := range *addr.Referrers() {
		switch use := use.(type) {
		case *ssa.Store:
			if use.Addr == addr {
				values = append(values, use.Val)
			} else {
				known = false
			}
		case *ssa.UnOp, *ssa.DebugRef, *ssa.FieldAddr, *ssa.IndexAddr:
		case *ssa.MakeClosure:
			inner := use.Fn.(*ssa.Function)
			for i, bound := range use.Bindings {
				if bound == addr && i < len(inner.FreeVars) {
					more, all := p.stores(inner.FreeVars[i])
					values, known = append(values, more...), known && all
				}
			}
		default:
			known = false
		}
	}
	return values, known
}

func (p *program) onlyStore(addr *ssa.Alloc) ssa.Value {
	if values, known := p.stores(addr); known && len(values) == 1 {
		return values[0]
	}
	return nil
}

// fieldStores are the values that are put into a field of a struct that is made
// here, where they can be seen.
func fieldStores(addr *ssa.Alloc, field int) []ssa.Value {
	var values []ssa.Value
	for _, use := range *addr.Referrers() {
		if f, ok := use.(*ssa.FieldAddr); ok && f.Field == field {
			for _, use := range *f.Referrers() {
				if s, ok := use.(*ssa.Store); ok && s.Addr == f {
					values = append(values, s.Val)
				}
			}
		}
	}
	return values
}

func (p *program) onlyFieldStore(addr *ssa.Alloc, field int) ssa.Value {
	if values := fieldStores(addr, field); len(values) == 1 {
		return values[0]
	}
	return nil
}

func fieldOf(t types.Type, i int) *types.Var {
	t = t.Underlying()
	if pointer, ok := t.(*types.Pointer); ok {
		t = pointer.Elem().Underlying()
	}
	if param, ok := types.Unalias(t).(*types.TypeParam); ok {
		t = param.Constraint().Underlying()
	}
	s, ok := t.(*types.Struct)
	if !ok || i >= s.NumFields() {
		return types.NewField(token.NoPos, nil, "?", types.Typ[types.Invalid], false)
	}
	return s.Field(i)
}

// key is a coarse place for what goroutines are awaited by: a field is the same in
// every struct of its type.
func (p *program) key(v ssa.Value, f frame) any {
	for range maxDepth {
		switch x := v.(type) {
		case *ssa.UnOp:
			v = x.X
			continue
		case *ssa.ChangeType:
			v = x.X
			continue
		case *ssa.FieldAddr:
			return fieldOf(x.X.Type(), x.Field)
		case *ssa.Field:
			return fieldOf(x.X.Type(), x.Field)
		case *ssa.IndexAddr:
			v = x.X
			if isCollected(x.X) {
				return elementsOf(x)
			}
			continue
		case *ssa.Lookup:
			v = x.X
			continue
		case *ssa.Extract:
			if next, ok := x.Tuple.(*ssa.Next); ok {
				if r, ok := next.Iter.(*ssa.Range); ok {
					v = r.X
					continue
				}
			}
			if isOwnContext(x.Tuple) || isLookup(x.Tuple) {
				v = x.Tuple
				continue
			}
		case *ssa.FreeVar:
			if binding := p.binding(x); binding != nil {
				v = binding
				continue
			}
		case *ssa.Alloc:
			if stored := p.onlyStore(x); stored != nil {
				v = stored
				continue
			}
		case *ssa.Parameter:
			if pl, ok := f[x]; ok {
				if pl.base == x {
					return x
				}
				if pl.path == "" {
					v = pl.base
					f = nil
					continue
				}
				return pl
			}
		case *ssa.Call:
			if x.Call.IsInvoke() && x.Call.Method.FullName() == "(context.Context).Done" {
				v = x.Call.Value
				continue
			}
			if result, inner := p.getter(x.Common(), f, 0); result != nil {
				v, f = result, inner
				continue
			}
		}
		return v
	}
	return v
}

// elements are those of all slices of a type that a function appends to: which of them
// a value is in can't be told.
type elements struct {
	fn   *ssa.Function
	elem string
}

func elementsOf(at *ssa.IndexAddr) elements {
	return elements{at.Parent(), at.Type().Underlying().(*types.Pointer).Elem().String()}
}

// isCollected says whether a slice was made by append, in a loop perhaps.
func isCollected(v ssa.Value) bool {
	switch v := v.(type) {
	case *ssa.Phi:
		return true
	case *ssa.Call:
		return isAppending(v)
	}
	return false
}

func isLookup(v ssa.Value) bool {
	_, ok := v.(*ssa.Lookup)
	return ok
}

// closure is a func that is known where it is called, started or handed over.
type closure struct {
	fn       *ssa.Function
	bindings []ssa.Value // of a func literal or a method value
}

// funcsOf finds the funcs that a value can be. What it can't follow it leaves out.
func (p *program) funcsOf(v ssa.Value) []closure {
	var all []closure
	seen := map[ssa.Value]bool{}
	var walk func(v ssa.Value)
	walkAddr := func(addr ssa.Value) {
		values, _ := p.stores(addr)
		for _, stored := range values {
			walk(stored)
		}
	}
	walk = func(v ssa.Value) {
		if v == nil || seen[v] {
			return
		}
		seen[v] = true
		switch v := v.(type) {
		case *ssa.Function:
			all = append(all, closure{fn: v})
		case *ssa.MakeClosure:
			all = append(all, closure{v.Fn.(*ssa.Function), v.Bindings})
		case *ssa.ChangeType:
			walk(v.X)
		case *ssa.MakeInterface:
			walk(v.X)
		case *ssa.Phi:
			for _, edge := range v.Edges {
				walk(edge)
			}
		case *ssa.UnOp:
			switch addr := v.X.(type) {
			case *ssa.Alloc:
				walkAddr(addr)
			case *ssa.FreeVar:
				for {
					binding := p.binding(addr)
					if binding == nil {
						return
					}
					if free, ok := binding.(*ssa.FreeVar); ok {
						addr = free
						continue
					}
					if alloc, ok := binding.(*ssa.Alloc); ok {
						walkAddr(alloc)
					}
					return
				}
			}
		case *ssa.Call:
			fn := v.Common().StaticCallee()
			if fn == nil {
				return
			}
			for instr := range instructions(fn) { // a func that makes the func
				if ret, ok := instr.(*ssa.Return); ok && len(ret.Results) == 1 {
					walk(ret.Results[0])
				}
			}
		}
	}
	walk(v)
	return all
}

// callees are the funcs that a call can call.
func (p *program) callees(c *ssa.CallCommon) []closure {
	if c.IsInvoke() {
		if m := p.concrete(c); m != nil {
			return []closure{{fn: m}}
		}
		return nil
	}
	return p.funcsOf(c.Value)
}

// concrete is the method that an interface's method is, where the interface's
// value was made in the same function.
func (p *program) concrete(c *ssa.CallCommon) *ssa.Function {
	v := c.Value
	if load, ok := v.(*ssa.UnOp); ok {
		if alloc, ok := load.X.(*ssa.Alloc); ok {
			if stored := p.onlyStore(alloc); stored != nil {
				v = stored
			}
		}
	}
	made, ok := v.(*ssa.MakeInterface)
	if !ok || types.IsInterface(made.X.Type()) {
		return nil
	}
	if _, isParam := types.Unalias(made.X.Type()).(*types.TypeParam); isParam {
		return nil
	}
	object, _, _ := types.LookupFieldOrMethod(made.X.Type(), true, c.Method.Pkg(), c.Method.Name())
	method, ok := object.(*types.Func)
	if !ok {
		return nil
	}
	return made.Parent().Prog.FuncValue(method.Origin())
}

// argsOf are the arguments as the callee's parameters: for a method called through
// an interface the receiver is one of them.
func argsOf(c *ssa.CallCommon) []ssa.Value {
	if c.IsInvoke() {
		return append([]ssa.Value{c.Value}, c.Args...)
	}
	return c.Args
}

// withReceiver are the arguments of a static call after the receiver, also where that
// is a method value's.
func withReceiver(c *ssa.CallCommon) []ssa.Value {
	if m, ok := c.Value.(*ssa.MakeClosure); ok && m.Fn.(*ssa.Function).Parent() == nil {
		return append(slices.Clone(m.Bindings), c.Args...)
	}
	return c.Args
}
