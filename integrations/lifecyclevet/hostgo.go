package lifecyclevet

import (
	"slices"

	"golang.org/x/tools/go/ssa"
)

// HostGo reports goroutines that append and that no Exit awaits: those of a go
// statement, of time.AfterFunc and context.AfterFunc, and of a group that nobody
// waits for.
//
// A goroutine is as good as its starter if that waits for it on every path before it
// returns or exits a host. It is awaited as well if a hook or a task waits for it, if
// it appends between Enter and Leave, or if it leaves a call that its starter entered.
// One whose end some method waits for, by a field, is reported under the flag "strict"
// only: whether that method is called before the exit can't be seen.
// A goroutine that only exits a host, fails it or reads from it is nobody's business.
var HostGo = newAnalyzer("hostgo",
	`report goroutines that append to a lifecycle.Durability and that no Exit awaits

Exit awaits the tasks that host.Go and host.Every start, and nothing else: another
goroutine's Append can come after the seal, where it is refused with ErrClosed.`,
	lookForGoroutines)

func init() {
	HostGo.Flags.Bool("strict", false, "report goroutines that a method waits for as well, by a field: nothing makes sure that it is called before the exit")
}

func lookForGoroutines(p *program, r report) {
	flag := r.pass.Analyzer.Flags.Lookup("strict")
	strict := flag != nil && flag.Value.String() == "true"
	for _, fn := range p.funcs {
		for instr := range instructions(fn) {
			at, ok := instr.(ssa.CallInstruction)
			if !ok || p.startedBy(at) == nil {
				continue
			}
			via := p.startReaches(at)
			if via == "" || p.isAwaited(at) || !strict && p.awaitedByMethod(at) {
				continue
			}
			switch c := at.Common(); {
			case p.isGroup(c):
				if p.isOwnGroup(c.Args[0]) {
					r.addf(p.posOf(at), "this goroutine appends (%s), and the function can return, or exit the host, without waiting for its group: wait for it on every path, or start it with host.Go", via)
				}
			case p.isTimer(at):
				r.addf(p.posOf(at), "the func of this AfterFunc appends (%s) in a goroutine that no Exit awaits: let a task of host.Go or host.Every do it", via)
			default:
				r.addf(p.posOf(at), "this goroutine appends (%s), and no Exit awaits it: start it with host.Go, or wait for it on every path before the function returns or exits the host", via)
			}
		}
	}
}

func (p *program) isTimer(at ssa.CallInstruction) bool {
	_, isGo := at.(*ssa.Go)
	return !isGo && !p.isGroup(at.Common())
}

// startReaches returns the way from a goroutine's start to an append; "": there is
// none to be seen.
func (p *program) startReaches(at ssa.CallInstruction) string {
	if _, ok := at.(*ssa.Go); !ok {
		return p.funcReaches(p.startedBy(at))
	}
	c := at.Common()
	if _, name, ok := isAppend(c); ok {
		return name
	}
	if libraryCall(c) != "" {
		return ""
	}
	if slices.ContainsFunc(c.Args, p.isLeave) { // go s.do(ctx, call.Leave)
		return ""
	}
	for _, callee := range p.callees(c) {
		s := p.summaryOf(callee.fn)
		if s.appends {
			return viaOf(callee.fn, s)
		}
		for root := range s.calls {
			if root >= 0 && root < len(c.Args) && !c.IsInvoke() {
				if via := p.funcReaches(c.Args[root]); via != "" {
					return via
				}
			} else if i := -1 - root; root < 0 && i < len(callee.bindings) {
				if via := p.funcReaches(callee.bindings[i]); via != "" {
					return via
				}
			}
		}
	}
	return ""
}

func (p *program) funcReaches(f ssa.Value) string {
	for _, callee := range p.funcsOf(f) {
		if s := p.summaryOf(callee.fn); s.appends {
			return viaOf(callee.fn, s)
		}
	}
	return ""
}

// isOwnGroup says whether a group is a variable that nobody but the function that
// uses it has, so that nobody else can wait for it.
func (p *program) isOwnGroup(group ssa.Value) bool {
	switch g := group.(type) {
	case *ssa.UnOp:
		if alloc, ok := g.X.(*ssa.Alloc); ok {
			if stored := p.onlyStore(alloc); stored != nil && !isCaptured(alloc) {
				return p.isOwnGroup(stored)
			}
		}
		return false
	case *ssa.Alloc, *ssa.Extract, *ssa.Call:
		for _, use := range *group.Referrers() {
			switch use := use.(type) {
			case *ssa.DebugRef:
			case ssa.CallInstruction:
				c := use.Common()
				if len(c.Args) == 0 || c.Args[0] != group || c.Signature().Recv() == nil {
					return false
				}
			default:
				return false
			}
		}
		return true
	}
	return false
}

func isCaptured(v ssa.Value) bool {
	for _, use := range *v.Referrers() {
		if _, ok := use.(*ssa.MakeClosure); ok {
			return true
		}
	}
	return false
}
