package lifecyclevet

import (
	"strings"

	"golang.org/x/tools/go/ssa"
)

// SelfExit reports tasks and hooks of a host that call Exit, ForceExit or Run for the
// same host, themselves or in functions of their package that they call.
var SelfExit = newAnalyzer("selfexit",
	`report tasks and hooks that wait for the exit of their own host

The exit waits for the task or the hook, so an Exit in it would wait for itself.
Under a context of its own it is refused with ErrSelfExit and begins nothing;
under any other it waits until that ends.`,
	lookForSelfExits)

func lookForSelfExits(p *program, r report) {
	for _, call := range p.owned {
		c := call.Common()
		what := "task"
		if libraryCall(c) == "Host.OnExit" {
			what = "hook"
		}
		host := p.placeOf(withReceiver(c)[0], nil)
		for _, f := range p.funcsOf(c.Args[len(c.Args)-1]) {
			s := selfExit{program: p, host: host, seen: map[*ssa.Function]bool{}}
			exit, ctx := s.find(f.fn, p.frameOfFunc(f), true)
			if exit == nil || p.isReplaced(host, exit, f, call) {
				continue
			}
			does := "is refused with ErrSelfExit, or waits for itself"
			switch ctx {
			case ownContext:
				does = "is refused with ErrSelfExit and begins nothing"
			case otherContext:
				does = "waits for itself"
			}
			its := strings.TrimPrefix(libraryCall(exit.Common()), "Host.")
			at, where := p.posOf(exit), ""
			if !s.inside {
				at = p.posOf(call)
				if pos := p.posOf(exit); pos.IsValid() {
					where = " (" + r.fileLine(pos) + ")"
				}
			}
			r.addf(at, "this %s calls %s%s of its own host, which %s: call Fail, which begins the exit and waits for nothing", what, its, where, does)
		}
	}
}

// isReplaced says whether the host that a task or hook exits was read from a variable or
// field before that got the one which runs it.
func (p *program) isReplaced(host place, exit ssa.CallInstruction, f closure, owner ssa.CallInstruction) bool {
	its, _ := isExit(exit.Common())
	if len(f.bindings) > 0 && f.fn.Parent() == nil { // old.Exit
		its = f.bindings[0]
	}
	read := p.readAt(its, owner)
	if !host.isMemory() || read == owner {
		return false
	}
	for instr := range instructions(owner.Parent()) {
		if s, ok := instr.(*ssa.Store); ok && p.storesTo(s.Addr, host) && reaches(read, s) && reaches(s, owner) {
			return true
		}
	}
	return false
}

type selfExit struct {
	*program
	host   place
	inside bool // the exit is in the task's or hook's own func literal
	seen   map[*ssa.Function]bool
}

type contextKind int

const (
	unknownContext contextKind = iota
	ownContext
	otherContext
)

// find looks for an exit of the host that fn makes on its own goroutine.
func (s *selfExit) find(fn *ssa.Function, f frame, inside bool) (ssa.CallInstruction, contextKind) {
	if s.seen[fn] || len(s.seen) > 200 {
		return nil, 0
	}
	s.seen[fn] = true
	for instr := range instructions(fn) {
		call, ok := instr.(ssa.CallInstruction)
		if _, isGo := instr.(*ssa.Go); !ok || isGo {
			continue
		}
		c := call.Common()
		if host, ok := isExit(c); ok {
			if s.placeOf(host, f) == s.host {
				ctx := c.Args[0]
				if libraryCall(c) != "Run" {
					ctx = withReceiver(c)[1]
				}
				kind := s.contextOf(ctx, inside, 0)
				if kind == otherContext || !asksForSelfExit(fn) && !s.fails(fn, f, call, inside) {
					s.inside = inside && fn.Parent() != nil
					return call, kind
				}
			}
			continue
		}
		if libraryCall(c) != "" || s.startedBy(call) != nil {
			continue
		}
		for _, callee := range s.callees(c) {
			frame := s.frameOf(callee.fn, argsOf(c), f, 0)
			for bound, its := range s.frameOfFunc(callee) {
				if pl, ok := f[its.base]; ok && its.path == "" {
					its = pl
				}
				if frame != nil {
					frame[bound] = its
				}
			}
			exit, ctx := s.find(callee.fn, frame, inside && callee.fn.Parent() != nil)
			if exit != nil {
				return exit, ctx
			}
		}
	}
	return nil, 0
}

// fails says whether fn fails the host as well: instead of the exit, as something that
// its caller passes says, or, in the task or hook itself, after it, if that was refused.
func (s *selfExit) fails(fn *ssa.Function, f frame, exit ssa.Instruction, inside bool) bool {
	for instr := range instructions(fn) {
		if call, ok := instr.(ssa.CallInstruction); ok && libraryCall(call.Common()) == "Host.Fail" {
			if s.placeOf(withReceiver(call.Common())[0], f) == s.host && (!inside || reaches(exit, instr)) {
				return true
			}
		}
	}
	return false
}

// contextOf says whose context an exit gets: one that descends from the task's, or
// from none.
func (s *selfExit) contextOf(ctx ssa.Value, inside bool, depth int) contextKind {
	if depth > maxDepth {
		return unknownContext
	}
	ctx = s.placeOf(ctx, nil).base
	switch v := ctx.(type) {
	case *ssa.Parameter:
		if inside {
			return ownContext
		}
	case *ssa.Extract:
		return s.contextOf(v.Tuple, inside, depth+1)
	case *ssa.Call:
		switch path, name := calleeName(v.Common()); {
		case path == "context" && (name == "Background" || name == "TODO" || name == "WithoutCancel"):
			if name == "WithoutCancel" { // keeps the values, and so the mark
				return s.contextOf(v.Common().Args[0], inside, depth+1)
			}
			return otherContext
		case path == "context" && len(v.Common().Args) > 0:
			return s.contextOf(v.Common().Args[0], inside, depth+1)
		}
	}
	return unknownContext
}
