package lifecyclevet

import (
	"fmt"
	"go/constant"
	"go/token"
	"go/types"
	"maps"
	"slices"
	"strings"

	"golang.org/x/tools/go/ssa"
)

// startedBy is the func that a call runs in a goroutine of its own: a go statement's,
// that of a timer, or of the Go method of a group (sync.WaitGroup, errgroup.Group, a
// pool): any type that has a method Wait beside it.
func (p *program) startedBy(at ssa.CallInstruction) ssa.Value {
	c := at.Common()
	if _, ok := at.(*ssa.Go); ok {
		return c.Value
	}
	if path, name := calleeName(c); name == "AfterFunc" && (path == "time" || path == "context") {
		return c.Args[1]
	}
	if p.isGroup(c) {
		return c.Args[len(c.Args)-1]
	}
	return nil
}

// isGroup says whether a call is the Go of a group. One that leads to a host may hand
// its funcs to that.
func (p *program) isGroup(c *ssa.CallCommon) bool {
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
	if p.holds(c.Args[0].Type()) {
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
	p.waits = map[question]bool{}
	c := at.Common()
	signals := map[any]bool{}
	if p.isGroup(c) {
		signals[p.key(c.Args[0], nil)] = true
		return signals
	}
	if _, ok := at.(*ssa.Go); !ok {
		return signals // a timer's
	}
	for _, f := range p.callees(c) {
		p.collectSignals(f.fn, p.frameOf(f.fn, argsOf(c), nil, 0), signals, false, map[*ssa.Function]bool{})
	}
	p.addKept(at.Parent(), signals)
	return p.passedOn(at.Parent(), nil, signals, 0)
}

// released is a place in a semaphore that the goroutine gives back: whoever takes all
// places waits for it.
type released struct{ semaphore any }

func (p *program) collectSignals(fn *ssa.Function, f frame, signals map[any]bool, deferred bool, seen map[*ssa.Function]bool) {
	if seen[fn] || len(seen) > maxDepth {
		return
	}
	seen[fn] = true
	for instr := range instructions(fn) {
		var found []any
		isDefer := deferred
		switch instr := instr.(type) {
		case *ssa.Send:
			found = append(found, p.key(instr.Chan, f))
		case *ssa.UnOp:
			if instr.Op == token.ARROW && len(*instr.Referrers()) == 0 && (isDefer || p.isVeryLast(fn, instr)) {
				signals[released{p.key(instr.X, f)}] = true
			}
		case *ssa.Select:
			for _, state := range instr.States {
				if state.Dir == types.SendOnly {
					found = append(found, p.key(state.Chan, f))
				}
			}
		case *ssa.Call, *ssa.Defer:
			c := instr.(ssa.CallInstruction).Common()
			if _, ok := instr.(*ssa.Defer); ok {
				isDefer = true
			}
			inner, signal := p.signalOf(c, f)
			if signal != nil {
				found = append(found, signal)
			} else if inner != nil && len(inner.Blocks) > 0 && (isDefer || inner.Parent() != nil || p.isLast(fn, instr)) {
				p.collectSignals(inner, p.frameOf(inner, c.Args, f, 0), signals, isDefer, seen)
			}
		}
		if len(found) > 0 && (isDefer || p.isLast(fn, instr)) {
			for _, signal := range found {
				signals[signal] = true
			}
		}
	}
}

// signalOf is the signal that a call gives by itself, or the function in which it may
// give some. The func may have come in as a parameter: wg.Done.
func (p *program) signalOf(c *ssa.CallCommon, f frame) (inner *ssa.Function, signal any) {
	if b, ok := c.Value.(*ssa.Builtin); ok {
		if b.Name() == "close" {
			return nil, p.key(c.Args[0], f)
		}
		return nil, nil
	}
	if c.IsInvoke() {
		return nil, nil
	}
	fn := c.Value
	if c.StaticCallee() == nil {
		if cancel := p.key(fn, f); isOwnContext(cancel) {
			return nil, cancel
		}
		fn = p.placeOf(fn, f).base
	}
	called := &ssa.CallCommon{Value: fn, Args: c.Args}
	switch path, name := calleeName(called); path + "." + name {
	case "sync.WaitGroup.Done", "sync.Cond.Broadcast", "sync.Cond.Signal":
		return nil, p.key(withReceiver(called)[0], f)
	case "golang.org/x/sync/semaphore.Weighted.Release":
		return nil, released{p.key(withReceiver(called)[0], f)}
	}
	return c.StaticCallee(), nil
}

// isOwnContext says whether a key is that of a context that ends when its cancel is
// called, and for no other reason.
func isOwnContext(key any) bool {
	made, ok := key.(*ssa.Call)
	if !ok {
		return false
	}
	if path, name := calleeName(made.Common()); path != "context" || name != "WithCancel" && name != "WithCancelCause" {
		return false
	}
	parent, ok := made.Call.Args[0].(*ssa.Call)
	if !ok {
		return false
	}
	path, name := calleeName(parent.Common())
	return path == "context" && (name == "Background" || name == "TODO" || name == "WithoutCancel")
}

// addKept adds where fn keeps the signals: fields, slices, maps.
func (p *program) addKept(fn *ssa.Function, signals map[any]bool) {
	for instr := range instructions(fn) {
		switch instr := instr.(type) {
		case *ssa.Store:
			if !slices.ContainsFunc(append(appended(instr.Val), instr.Val), func(v ssa.Value) bool { return signals[p.key(v, nil)] }) {
				continue
			}
			switch addr := instr.Addr.(type) {
			case *ssa.FieldAddr: // s.done = done, s.all = append(s.all, done)
				signals[p.key(addr, nil)] = true
			case *ssa.IndexAddr: // all[i] = done, append(all, done)
				signals[p.key(addr, nil)], signals[elementsOf(addr)] = true, true
			}
		case *ssa.MapUpdate:
			if signals[p.key(instr.Value, nil)] {
				signals[p.key(instr.Map, nil)] = true
			}
		}
	}
}

// appended are the values that a call of append appends.
func appended(v ssa.Value) (values []ssa.Value) {
	if c, ok := v.(*ssa.Call); ok && isAppending(c) {
		return spread(c.Common())
	}
	return nil
}

// spread are the values that a call passes as its last, variadic parameter.
func spread(c *ssa.CallCommon) (values []ssa.Value) {
	if len(c.Args) == 0 {
		return nil
	}
	if s, ok := c.Args[len(c.Args)-1].(*ssa.Slice); ok {
		for _, use := range *s.X.Referrers() {
			if at, ok := use.(*ssa.IndexAddr); ok {
				for _, use := range *at.Referrers() {
					if store, ok := use.(*ssa.Store); ok {
						values = append(values, store.Val)
					}
				}
			}
		}
	}
	return values
}

func isAppending(c *ssa.Call) bool {
	b, ok := c.Call.Value.(*ssa.Builtin)
	return ok && b.Name() == "append"
}

// passedOn are the signals, and those of goroutines that fn starts and that wait for
// them: go func() { wg.Wait(); close(all) }().
func (p *program) passedOn(fn *ssa.Function, f frame, signals map[any]bool, depth int) map[any]bool {
	for instr := range instructions(fn) {
		at, ok := instr.(*ssa.Go)
		if !ok {
			continue
		}
		for _, callee := range p.callees(at.Common()) {
			inner := p.frameOf(callee.fn, argsOf(at.Common()), f, 0)
			for within := range instructions(callee.fn) {
				if p.waitsFor(within, inner, signals, depth+1) {
					signals = maps.Clone(signals)
					p.collectSignals(callee.fn, inner, signals, true, map[*ssa.Function]bool{})
					break
				}
			}
		}
	}
	return signals
}

// isLast says whether an append comes before this instruction, on some path: if none
// does, it may tell that the goroutine has begun.
func (p *program) isLast(fn *ssa.Function, at ssa.Instruction) bool {
	return slices.ContainsFunc(p.appendsOf(fn), func(call ssa.Instruction) bool { return call != at && reaches(call, at) })
}

// appendsOf are the calls of a function that come to an append.
func (p *program) appendsOf(fn *ssa.Function) (calls []ssa.Instruction) {
	for instr := range instructions(fn) {
		if call, ok := instr.(ssa.CallInstruction); ok && p.effectOf(call).appends {
			calls = append(calls, instr)
		}
	}
	return calls
}

// isVeryLast says whether an append comes before this instruction, and none after it.
func (p *program) isVeryLast(fn *ssa.Function, at ssa.Instruction) bool {
	return p.isLast(fn, at) && !slices.ContainsFunc(p.appendsOf(fn), func(call ssa.Instruction) bool { return reaches(at, call) })
}

// reaches says whether a path leads from a to b.
func reaches(a, b ssa.Instruction) bool {
	return a.Block() == b.Block() && indexOf(a) < indexOf(b) || reachesBlock(a.Block(), b.Block(), nil)
}

// waitsFor says whether an instruction waits for one of the signals, itself or in a
// func that it calls.
func (p *program) waitsFor(instr ssa.Instruction, f frame, signals map[any]bool, depth int) bool {
	switch instr := instr.(type) {
	case *ssa.UnOp:
		return instr.Op == token.ARROW && signals[p.key(instr.X, f)]
	case *ssa.Send:
		return signals[released{p.key(instr.Chan, f)}]
	case *ssa.Select:
		return instr.Blocking && len(instr.States) > 0 && !slices.ContainsFunc(instr.States, func(s *ssa.SelectState) bool {
			return s.Dir != types.RecvOnly || !signals[p.key(s.Chan, f)]
		})
	case *ssa.Call, *ssa.Defer:
		c := instr.(ssa.CallInstruction).Common()
		if c.IsInvoke() {
			return false
		}
		if args := withReceiver(c); len(args) > 0 {
			switch path, name := calleeName(c); {
			case strings.HasSuffix(name, ".Wait") && signals[p.key(args[0], f)],
				path == "golang.org/x/sync/semaphore" && name == "Weighted.Acquire" && signals[released{p.key(args[0], f)}]:
				return true
			}
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
	q := question{fn, passed, len(signals), depth}
	if known, ok := p.waits[q]; ok {
		return known
	}
	waits := false
	signals = p.passedOn(fn, f, signals, depth)
	for instr := range instructions(fn) {
		if p.mentions(instr, f, signals, depth) {
			waits = true
			break
		}
	}
	p.waits[q] = waits
	return waits
}

// question is one that was asked about a set of signals, and those passed on.
type question struct {
	fn      *ssa.Function
	passed  string
	signals int
	depth   int
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
	fields := map[any]bool{}
	for signal := range p.signalsOf(at) {
		if field, ok := signal.(*types.Var); ok {
			fields[field] = true
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
		fields := p.passedOn(fn, nil, fields, 0)
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
		return heads[to] || around[[2]*ssa.BasicBlock{from, to}] || p.selected(from, to, signals) || p.isUnmade(from, to, signals)
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
	cond, ok := condition(from).(*ssa.BinOp)
	if !ok || cond.Op != token.EQL || from.Succs[0] != to {
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

// isUnmade says whether the edge between two blocks is taken only if a signal's channel
// is nil, and so no goroutine was started that gives it.
func (p *program) isUnmade(from, to *ssa.BasicBlock, signals map[any]bool) bool {
	cond, ok := condition(from).(*ssa.BinOp)
	if !ok || !isNil(cond.Y) || !signals[p.key(cond.X, nil)] {
		return false
	}
	return cond.Op == token.EQL && to == from.Succs[0] || cond.Op == token.NEQ && to == from.Succs[1]
}

// condition is what decides between the two blocks after one; nil: there are not two.
func condition(from *ssa.BasicBlock) ssa.Value {
	if branch, ok := from.Instrs[len(from.Instrs)-1].(*ssa.If); ok && from.Succs[0] != from.Succs[1] {
		return branch.Cond
	}
	return nil
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
	taken := false
	switch cond := condition(from).(type) {
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
