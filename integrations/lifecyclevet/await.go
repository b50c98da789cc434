package lifecyclevet

import (
	"fmt"
	"go/constant"
	"go/token"
	"go/types"
	"slices"
	"strings"

	"golang.org/x/tools/go/ssa"
)

// startedBy is the func that a call runs in a goroutine of its own: a go statement's,
// that of a timer, or of the Go method of a group (sync.WaitGroup, errgroup.Group, a
// pool): any type that has a method Wait beside it.
func startedBy(at ssa.CallInstruction) ssa.Value {
	c := at.Common()
	if _, ok := at.(*ssa.Go); ok {
		return c.Value
	}
	if path, name := calleeName(c); name == "AfterFunc" && (path == "time" || path == "context") {
		return c.Args[1]
	}
	if isGroup(c) {
		return c.Args[len(c.Args)-1]
	}
	return nil
}

func isGroup(c *ssa.CallCommon) bool {
	fn := c.StaticCallee()
	if fn == nil || c.Signature().Recv() == nil || libraryFunc(fn) != "" || len(c.Args) < 2 {
		return false
	}
	object := objectOf(fn)
	if object == nil || object.Name() != "Go" && object.Name() != "TryGo" {
		return false
	}
	if _, ok := c.Args[len(c.Args)-1].Type().Underlying().(*types.Signature); !ok {
		return false
	}
	wait, _, _ := types.LookupFieldOrMethod(c.Args[0].Type(), true, object.Pkg(), "Wait")
	_, ok := wait.(*types.Func)
	return ok
}

// isAwaited says whether a goroutine has ended when the function that starts it
// returns or exits a host, or whether somebody waits for it whom an exit awaits: a
// hook or a task.
//
// The goroutine says that it has ended by a WaitGroup's Done, or by closing or
// sending to a channel, deferred or after its last append.
func (p *program) isAwaited(at ssa.CallInstruction) bool {
	if known, ok := p.awaits[at]; ok {
		return known
	}
	p.awaits[at] = false // ends the recursion of a goroutine that starts itself
	signals := p.signalsOf(at)
	awaited := len(signals) > 0 && (p.awaitedByHook(signals) || p.awaitedBefore(at, signals))
	p.awaits[at] = awaited
	return awaited
}

// signalsOf is what tells others that the goroutine has ended.
func (p *program) signalsOf(at ssa.CallInstruction) map[any]bool {
	c := at.Common()
	signals := map[any]bool{}
	if isGroup(c) {
		signals[p.key(c.Args[0], nil)] = true
		return signals
	}
	if _, ok := at.(*ssa.Go); !ok {
		return signals // a timer's
	}
	for _, f := range p.callees(c) {
		p.collectSignals(f.fn, p.frameOf(f.fn, argsOf(c), nil, 0), signals, false, map[*ssa.Function]bool{})
	}
	return signals
}

func (p *program) collectSignals(fn *ssa.Function, f frame, signals map[any]bool, deferred bool, seen map[*ssa.Function]bool) {
	if seen[fn] || len(seen) > maxDepth {
		return
	}
	seen[fn] = true
	for instr := range instructions(fn) {
		var signal ssa.Value
		isDefer := deferred
		switch instr := instr.(type) {
		case *ssa.Send:
			signal = instr.Chan
		case *ssa.Select:
			for _, state := range instr.States {
				if state.Dir == types.SendOnly && (isDefer || p.isLast(fn, instr)) {
					signals[p.key(state.Chan, f)] = true
				}
			}
		case *ssa.Call, *ssa.Defer:
			c := instr.(ssa.CallInstruction).Common()
			if _, ok := instr.(*ssa.Defer); ok {
				isDefer = true
			}
			if b, ok := c.Value.(*ssa.Builtin); ok && b.Name() == "close" {
				signal = c.Args[0]
			} else if path, name := calleeName(c); path == "sync" && name == "WaitGroup.Done" {
				signal = c.Args[0]
			} else if inner := c.StaticCallee(); inner != nil && len(inner.Blocks) > 0 && (isDefer || inner.Parent() != nil || p.isLast(fn, instr)) {
				p.collectSignals(inner, p.frameOf(inner, c.Args, f, 0), signals, isDefer, seen)
			}
		}
		if signal != nil && (isDefer || p.isLast(fn, instr)) {
			signals[p.key(signal, f)] = true
		}
	}
}

// isLast says whether an append comes before this instruction, on some path: if none
// does, it may tell that the goroutine has begun.
func (p *program) isLast(fn *ssa.Function, at ssa.Instruction) bool {
	for instr := range instructions(fn) {
		call, ok := instr.(ssa.CallInstruction)
		if !ok || instr == at {
			continue
		}
		if _, _, ok := isAppend(call.Common()); !ok && !p.effectOf(call).appends {
			continue
		}
		if reaches(instr, at) {
			return true
		}
	}
	return false
}

// reaches says whether a path leads from a to b.
func reaches(a, b ssa.Instruction) bool {
	if a.Block() == b.Block() && indexOf(a) < indexOf(b) {
		return true
	}
	seen := map[*ssa.BasicBlock]bool{}
	var walk func(from *ssa.BasicBlock) bool
	walk = func(from *ssa.BasicBlock) bool {
		for _, next := range from.Succs {
			if next == b.Block() {
				return true
			}
			if !seen[next] {
				seen[next] = true
				if walk(next) {
					return true
				}
			}
		}
		return false
	}
	return walk(a.Block())
}

// waitsFor says whether an instruction waits for one of the signals, itself or in a
// func that it calls.
func (p *program) waitsFor(instr ssa.Instruction, f frame, signals map[any]bool, depth int) bool {
	switch instr := instr.(type) {
	case *ssa.UnOp:
		return instr.Op == token.ARROW && signals[p.key(instr.X, f)]
	case *ssa.Select:
		return instr.Blocking && len(instr.States) > 0 && !slices.ContainsFunc(instr.States, func(s *ssa.SelectState) bool {
			return s.Dir != types.RecvOnly || !signals[p.key(s.Chan, f)]
		})
	case *ssa.Call, *ssa.Defer:
		c := instr.(ssa.CallInstruction).Common()
		if c.IsInvoke() {
			return false
		}
		if fn := c.StaticCallee(); fn != nil && fn.Name() == "Wait" && len(c.Args) > 0 && signals[p.key(c.Args[0], f)] {
			return true
		}
		if depth > 3 {
			return false
		}
		for _, callee := range p.callees(c) {
			if p.contains(callee.fn, p.frameOf(callee.fn, c.Args, f, 0), signals, depth+1) {
				return true
			}
		}
	}
	return false
}

// contains says whether fn waits for one of the signals somewhere: also in a select
// that has other cases.
func (p *program) contains(fn *ssa.Function, f frame, signals map[any]bool, depth int) bool {
	passed, any := p.passed(fn, f, signals)
	if !any && fn.Parent() == nil && len(fn.FreeVars) == 0 && areLocal(signals) {
		return false // it has no way to them
	}
	q := question{fn, passed, depth}
	if known, ok := p.waits[q]; ok {
		return known
	}
	waits := false
	for instr := range instructions(fn) {
		if p.mentions(instr, f, signals, depth) {
			waits = true
			break
		}
	}
	p.waits[q] = waits
	return waits
}

// question is one that was asked about a set of signals.
type question struct {
	fn     *ssa.Function
	passed string
	depth  int
}

// passed names what is passed to fn of all that a signal can be found through.
func (p *program) passed(fn *ssa.Function, f frame, signals map[any]bool) (name string, any bool) {
	if f == nil {
		return "", false
	}
	deep := false
	for signal := range signals {
		_, isPlace := signal.(place)
		deep = deep || isPlace
	}
	var b strings.Builder
	for i, param := range fn.Params {
		pl := f[param]
		_, isMade := pl.base.(*ssa.Alloc)
		if deep || isMade || signals[p.key(param, f)] {
			fmt.Fprintf(&b, "%d:%p%s ", i, pl.base, pl.path)
		}
	}
	return b.String(), b.Len() > 0
}

// areLocal says whether the signals are variables or values of one function, which
// others have only if they are passed to them.
func areLocal(signals map[any]bool) bool {
	for signal := range signals {
		switch signal.(type) {
		case *ssa.Alloc, *ssa.MakeChan:
		default:
			return false
		}
	}
	return true
}

// mentions says whether an instruction waits for one of the signals, if only among
// others.
func (p *program) mentions(instr ssa.Instruction, f frame, signals map[any]bool, depth int) bool {
	if p.waitsFor(instr, f, signals, depth) {
		return true
	}
	s, ok := instr.(*ssa.Select)
	return ok && slices.ContainsFunc(s.States, func(state *ssa.SelectState) bool {
		return state.Dir == types.RecvOnly && signals[p.key(state.Chan, f)]
	})
}

// awaitedByMethod says whether the signal of a goroutine is a field, and some method
// waits for that, and not after an exit. Whether the method is called before the exit,
// as a hook of another package's say, can't be seen.
func (p *program) awaitedByMethod(at ssa.CallInstruction) bool {
	signals := p.signalsOf(at)
	fields := map[any]bool{}
	for signal := range signals {
		if field, ok := signal.(*types.Var); ok {
			fields[field] = true
		}
	}
	for instr := range instructions(at.Parent()) { // s.done = done
		if store, ok := instr.(*ssa.Store); ok {
			if field, ok := store.Addr.(*ssa.FieldAddr); ok && signals[p.key(store.Val, nil)] {
				fields[fieldOf(field.X.Type(), field.Field)] = true
			}
		}
	}
	if len(fields) == 0 {
		return false
	}
	p.waits = map[question]bool{}
	return slices.ContainsFunc(p.funcs, func(fn *ssa.Function) bool {
		if fn.Signature.Recv() == nil || fn == at.Parent() {
			return false
		}
		var exits []ssa.Instruction
		for instr := range instructions(fn) {
			if call, ok := instr.(ssa.CallInstruction); ok {
				if _, ok := isExit(call.Common()); ok {
					exits = append(exits, instr)
				}
			}
		}
		for instr := range instructions(fn) {
			late := slices.ContainsFunc(exits, func(exit ssa.Instruction) bool { return reaches(exit, instr) })
			if !late && p.mentions(instr, nil, fields, 0) {
				return true
			}
		}
		return false
	})
}

// awaitedByHook says whether a hook that runs before the seal, or a task, waits for
// one of the signals.
func (p *program) awaitedByHook(signals map[any]bool) bool {
	p.waits = map[question]bool{}
	for _, call := range p.owned {
		c := call.Common()
		if libraryCall(c) == "Host.OnExit" && phaseOf(c) == phaseRelease {
			continue
		}
		for _, f := range p.funcsOf(c.Args[len(c.Args)-1]) {
			if p.contains(f.fn, nil, signals, 0) {
				return true
			}
		}
	}
	return false
}

const phaseRelease = 7

// awaitedBefore says whether every path from the start of a goroutine to the end of
// the function that starts it waits for it, before it exits a host.
func (p *program) awaitedBefore(at ssa.CallInstruction, signals map[any]bool) bool {
	p.waits = map[question]bool{}
	fn := at.Parent()
	var waits []ssa.Instruction
	for instr := range instructions(fn) {
		if p.waitsFor(instr, nil, signals, 0) {
			if _, ok := instr.(*ssa.Defer); ok && before(instr, at) {
				return true
			}
			waits = append(waits, instr)
		}
	}
	// A loop that waits is taken to wait as often as it must, unless the goroutine is
	// started in it.
	heads, around := map[*ssa.BasicBlock]bool{}, map[[2]*ssa.BasicBlock]bool{}
	for _, wait := range waits {
		for _, head := range fn.Blocks {
			if inLoop(head, wait.Block()) && !inLoop(head, at.Block()) {
				heads[head] = true
				for _, edge := range edgesAround(head) {
					around[edge] = true
				}
			}
		}
	}
	passed := func(from, to *ssa.BasicBlock) bool {
		return heads[to] || around[[2]*ssa.BasicBlock{from, to}] || p.selected(from, to, signals)
	}
	return everyPath(at, passed, func(instr ssa.Instruction) verdict {
		if slices.Contains(waits, instr) {
			return pathIsGood
		}
		switch instr := instr.(type) {
		case *ssa.Return:
			return pathIsBad
		case *ssa.Call:
			if _, ok := isExit(instr.Common()); ok {
				return pathIsBad
			}
		}
		return pathGoesOn
	})
}

// inLoop says whether head begins a loop that b is in.
func inLoop(head, b *ssa.BasicBlock) bool {
	return head.Dominates(b) && slices.ContainsFunc(head.Preds, func(pred *ssa.BasicBlock) bool {
		return head.Dominates(pred) && (pred == b || head == b || reachesBlock(b, pred, head))
	})
}

// edgesAround are those that skip a loop whose condition is checked before its first
// round and at the end of each.
func edgesAround(head *ssa.BasicBlock) (edges [][2]*ssa.BasicBlock) {
	for _, pred := range head.Preds {
		if inLoop(head, pred) {
			continue
		}
		for _, exit := range pred.Succs {
			if exit != head && slices.ContainsFunc(exit.Preds, func(b *ssa.BasicBlock) bool { return inLoop(head, b) }) {
				edges = append(edges, [2]*ssa.BasicBlock{pred, exit})
			}
		}
	}
	return edges
}

// reachesBlock says whether a path leads from a to b that does not pass through not.
func reachesBlock(a, b, not *ssa.BasicBlock) bool {
	seen := map[*ssa.BasicBlock]bool{not: true, a: true}
	todo := []*ssa.BasicBlock{a}
	for len(todo) > 0 {
		from := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, next := range from.Succs {
			if next == b {
				return true
			}
			if !seen[next] {
				seen[next] = true
				todo = append(todo, next)
			}
		}
	}
	return false
}

// selected says whether the edge between two blocks is a select's case that waits for
// one of the signals.
func (p *program) selected(from, to *ssa.BasicBlock, signals map[any]bool) bool {
	branch, ok := from.Instrs[len(from.Instrs)-1].(*ssa.If)
	if !ok || from.Succs[0] != to {
		return false
	}
	cond, ok := branch.Cond.(*ssa.BinOp)
	if !ok || cond.Op != token.EQL {
		return false
	}
	index, ok := cond.X.(*ssa.Extract)
	if !ok || index.Index != 0 {
		return false
	}
	s, ok := index.Tuple.(*ssa.Select)
	k, isConst := cond.Y.(*ssa.Const)
	if !ok || !isConst || k.Value == nil {
		return false
	}
	i, _ := constant.Int64Val(k.Value)
	return int(i) < len(s.States) && i >= 0 && s.States[i].Dir == types.RecvOnly && signals[p.key(s.States[i].Chan, nil)]
}

type verdict int

const (
	pathGoesOn verdict = iota
	pathIsGood
	pathIsBad
)

// everyPath says whether every path that begins after an instruction comes to
// something good before it comes to something bad. passed says whether the edge
// between two blocks is good. A path that ends in a panic, or never, is good.
func everyPath(after ssa.Instruction, passed func(from, to *ssa.BasicBlock) bool, judge func(ssa.Instruction) verdict) bool {
	seen := map[*ssa.BasicBlock]bool{}
	var walk func(b *ssa.BasicBlock, from int) bool
	walk = func(b *ssa.BasicBlock, from int) bool {
		for _, instr := range b.Instrs[from:] {
			switch judge(instr) {
			case pathIsGood:
				return true
			case pathIsBad:
				return false
			}
		}
		for _, next := range b.Succs {
			if seen[next] || neverTaken(b, next) || passed(b, next) {
				continue
			}
			seen[next] = true
			if !walk(next, 0) {
				return false
			}
		}
		return true
	}
	return walk(after.Block(), indexOf(after)+1)
}

// neverTaken says whether the edge between two blocks hangs on a comparison of
// constants that comes out the other way, as the first check of "for range 3" does.
func neverTaken(from, to *ssa.BasicBlock) bool {
	branch, ok := from.Instrs[len(from.Instrs)-1].(*ssa.If)
	if !ok || from.Succs[0] == from.Succs[1] {
		return false
	}
	taken := false
	switch cond := branch.Cond.(type) {
	case *ssa.Const:
		taken = cond.Value != nil && constant.BoolVal(cond.Value)
	case *ssa.BinOp:
		x, okX := cond.X.(*ssa.Const)
		y, okY := cond.Y.(*ssa.Const)
		if !okX || !okY || x.Value == nil || y.Value == nil {
			return false
		}
		switch cond.Op {
		case token.LSS, token.LEQ, token.GTR, token.GEQ, token.EQL, token.NEQ:
			taken = constant.Compare(x.Value, cond.Op, y.Value)
		default:
			return false
		}
	default:
		return false
	}
	return to == from.Succs[1] && taken || to == from.Succs[0] && !taken
}
