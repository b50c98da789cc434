package lifecyclevet

import (
	"go/token"
	"slices"

	"golang.org/x/tools/go/ssa"
)

// LostCall reports calls that Enter admitted and that are not left on some path, or
// left twice. A Call that is returned, stored or handed over is left to whoever
// has it.
var LostCall = newAnalyzer("lostcall",
	`report calls of a lifecycle.Host that are entered and not left, or left twice

The first phase of the exit waits until every call that Enter admitted has left:
for one that is lost it waits for ever.`,
	lookForCalls)

func lookForCalls(p *program, r report) {
	for _, fn := range p.funcs {
		for instr := range instructions(fn) {
			enter, ok := instr.(ssa.CallInstruction)
			if ok && isEnter(enter.Common()) {
				p.checkCall(r, enter)
			}
		}
	}
}

func (p *program) checkCall(r report, enter ssa.CallInstruction) {
	at := p.posOf(enter)
	value, ok := enter.(*ssa.Call)
	if !ok {
		r.addf(at, "the Call of this Enter is discarded, so the exit waits for it for ever: keep it and defer its Leave")
		return
	}
	var call, err *ssa.Extract
	for _, use := range *value.Referrers() {
		if e, ok := use.(*ssa.Extract); ok {
			if e.Index == 0 {
				call = e
			} else {
				err = e
			}
		}
	}
	u := callUses{program: p, fn: enter.Parent(), seen: map[ssa.Value]bool{}}
	if call != nil {
		u.value(call)
	}
	switch {
	case call == nil || len(*call.Referrers()) == 0 || u.dropped():
		r.addf(at, "the Call of this Enter is discarded, so the exit waits for it for ever: keep it and defer its Leave")
		return
	case u.escapes:
		return
	case len(u.leaves) == 0:
		r.addf(at, "the Call of this Enter is never left, so the exit waits for it for ever: defer its Leave")
		return
	}
	u.twice(r, call)
	for _, leave := range u.leaves {
		if _, ok := leave.(*ssa.Defer); ok && before(leave, enter) {
			return
		}
	}
	var lost ssa.Instruction
	passed := func(from, to *ssa.BasicBlock) bool { return err != nil && u.isRefused(from, to, err) }
	if everyPath(enter, passed, func(instr ssa.Instruction) verdict {
		if u.isLeave[instr] {
			return pathIsGood
		}
		switch instr.(type) {
		case *ssa.Return:
			lost = instr
			return pathIsBad
		case *ssa.Call:
			if instr == ssa.Instruction(value) {
				lost = instr
				return pathIsBad
			}
		}
		return pathGoesOn
	}) {
		return
	}
	if lost == ssa.Instruction(value) {
		r.addf(at, "the Call of this Enter can be lost when the loop comes to Enter again, so the exit waits for it for ever: leave it on every path")
		return
	}
	end := lost.Pos()
	if !end.IsValid() && enter.Parent().Syntax() != nil {
		end = enter.Parent().Syntax().End() - 1
	}
	r.addf(at, "the Call of this Enter is not left where the function returns at %s, so the exit waits for it for ever: defer its Leave once err is nil", r.atLine(end))
}

// callUses is what a function does with a Call.
type callUses struct {
	*program
	fn      *ssa.Function
	escapes bool
	used    bool // other than by being stored
	leaves  []ssa.Instruction
	isLeave map[ssa.Instruction]bool
	seen    map[ssa.Value]bool
}

// dropped says whether the Call is kept in a variable that nobody reads.
func (u *callUses) dropped() bool { return !u.used && !u.escapes && len(u.leaves) == 0 }

func (u *callUses) leave(at ssa.Instruction) {
	if u.isLeave == nil {
		u.isLeave = map[ssa.Instruction]bool{}
	}
	u.leaves, u.isLeave[at] = append(u.leaves, at), true
}

// value follows a Call value.
func (u *callUses) value(v ssa.Value) {
	if u.seen[v] {
		return
	}
	u.seen[v] = true
	for _, use := range *v.Referrers() {
		switch use := use.(type) {
		case *ssa.DebugRef:
		case *ssa.Phi:
			u.value(use)
		case *ssa.Store:
			if alloc, ok := use.Addr.(*ssa.Alloc); ok && use.Val == v {
				u.variable(alloc, u.fn)
			} else {
				u.escapes = true
			}
		case ssa.CallInstruction:
			u.used = true
			switch libraryCall(use.Common()) {
			case "Call.Leave":
				u.leftIn(use.Parent(), use)
			case "Call.Context":
			default:
				u.escapes = true
			}
		default:
			u.escapes = true
		}
	}
}

// leftIn notes a Leave of fn or of a func literal: if fn calls or defers that, it is
// the call that leaves; otherwise somebody else does.
func (u *callUses) leftIn(inner *ssa.Function, at ssa.Instruction) {
	if inner == u.fn {
		u.leave(at)
		return
	}
	found := false
	for instr := range instructions(u.fn) {
		if call, ok := instr.(ssa.CallInstruction); ok && call.Common().StaticCallee() == inner {
			if _, isGo := instr.(*ssa.Go); !isGo {
				u.leave(instr)
				found = true
			}
		}
	}
	if !found {
		u.escapes = true
	}
}

// variable follows a variable that holds the Call, into func literals as well.
func (u *callUses) variable(addr ssa.Value, in *ssa.Function) {
	if u.seen[addr] {
		return
	}
	u.seen[addr] = true
	for _, use := range *addr.Referrers() {
		switch use := use.(type) {
		case *ssa.DebugRef:
		case *ssa.Store:
			if use.Addr != addr {
				u.escapes = true
			}
		case *ssa.UnOp:
			u.value(use)
		case *ssa.MakeClosure:
			inner := use.Fn.(*ssa.Function)
			for i, bound := range use.Bindings {
				if bound == addr && i < len(inner.FreeVars) {
					u.variable(inner.FreeVars[i], inner)
				}
			}
		default:
			u.escapes = true
		}
	}
}

// twice reports a Leave that another one certainly precedes.
func (u *callUses) twice(r report, call *ssa.Extract) {
	for _, first := range u.leaves {
		for _, second := range u.leaves {
			a, b := first.(ssa.CallInstruction), second.(ssa.CallInstruction)
			if first == second || !u.isLeaveOf(a, call) || !u.isLeaveOf(b, call) || !before(first, second) {
				continue
			}
			r.addf(u.posOf(b), "this Call is left a second time (the first is at %s): a Leave too many lets the exit overtake another call, or fails the host", r.atLine(u.posOf(a)))
		}
	}
}

// isLeaveOf says whether an instruction is itself a Leave of just this Call.
func (u *callUses) isLeaveOf(at ssa.CallInstruction, call *ssa.Extract) bool {
	return libraryCall(at.Common()) == "Call.Leave" && u.placeOf(withReceiver(at.Common())[0], nil) == place{base: call}
}

// isRefused says whether the edge between two blocks is taken only if Enter returned
// an error: then there is nothing to leave.
func (u *callUses) isRefused(from, to *ssa.BasicBlock, err *ssa.Extract) bool {
	switch cond := condition(from).(type) {
	case *ssa.BinOp:
		if !tells(cond.X, err, 0) && !tells(cond.Y, err, 0) {
			return false
		}
		switch cond.Op {
		case token.NEQ:
			return to == from.Succs[0]
		case token.EQL:
			if isNil(cond.X) || isNil(cond.Y) {
				return to == from.Succs[1]
			}
			return to == from.Succs[0] // err == ErrX
		}
	case *ssa.Call:
		if !tells(cond, err, 0) {
			return false
		}
		if path, _ := calleeName(cond.Common()); path == "errors" { // Is, As
			return to == from.Succs[0]
		}
		return !u.leads(to, err) // refused(w, err), or !admitted(w, err)
	}
	return false
}

// leads says whether a path leads from a block to a Leave, without another Enter.
func (u *callUses) leads(from *ssa.BasicBlock, err *ssa.Extract) bool {
	return slices.ContainsFunc(u.leaves, func(leave ssa.Instruction) bool {
		return leave.Block() == from || reachesBlock(from, leave.Block(), err.Block())
	})
}

func isNil(v ssa.Value) bool {
	c, ok := v.(*ssa.Const)
	return ok && c.IsNil()
}

// tells says whether v is the error of an Enter: also wrapped, by a function that it was
// passed to, or read from a variable.
func tells(v ssa.Value, err *ssa.Extract, depth int) bool {
	if v == err {
		return true
	}
	if depth > maxDepth {
		return false
	}
	depth++
	switch v := v.(type) {
	case *ssa.UnOp:
		for _, use := range *err.Referrers() {
			if s, ok := use.(*ssa.Store); ok && s.Addr == v.X {
				return true
			}
		}
	case *ssa.Phi: // if err != nil { err = wrap(err) }
		return !slices.ContainsFunc(v.Edges, func(edge ssa.Value) bool { return !tells(edge, err, depth) })
	case *ssa.Call:
		return slices.ContainsFunc(slices.Concat(v.Call.Args, spread(v.Common())), func(arg ssa.Value) bool { return tells(arg, err, depth) })
	case *ssa.MakeInterface:
		return tells(v.X, err, depth)
	case *ssa.ChangeInterface:
		return tells(v.X, err, depth)
	}
	return false
}
