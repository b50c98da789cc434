package lifecycle

import (
	"bytes"
	"cmp"
	"context"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// Every goroutine of a host carries two profiler labels: whose it is, and what it
// does. They are for a person who looks at a profile, and a stack is found by them.
// Goroutines that user code starts inherit them, so a stack counts only if one of
// this package's mains is at its root, or if it is so deep that the root is not to
// be seen.
//
// The host's is its name and a number, "orders#2", for other hosts of the process
// may have that name. There are no more than these two, since the time of a
// goroutine profile goes to writing them down.
const (
	labelHost = "lifecycle.host"
	labelTask = "lifecycle.task"
	labelHook = "lifecycle.hook"
	labelLog  = "lifecycle.log"

	labelObserver = "lifecycle.observer" // and the logger
)

var hosts atomic.Uint64 // that the process has made

func newHostLabel(name string) string { return name + "#" + strconv.FormatUint(hosts.Add(1), 10) }

// label is the two labels of a goroutine, as a profile has them.
type label struct{ host, kind, name string }

// on returns parent with the label.
func (l label) on(parent context.Context) context.Context {
	return pprof.WithLabels(parent, pprof.Labels(labelHost, l.host, l.kind, l.name))
}

const packagePath = "github.com/seed080d9131/lifecycle"

// mains are the functions that the host's goroutines start in.
var mains = []string{packagePath + ".(*task).main", packagePath + ".(*callout).main", packagePath + ".(*Durability).main"}

// A profile cuts stacks off at so many frames: then the root is not to be seen.
const profileDepth = 128

// Stacks are collected for so many stragglers, the oldest.
const maxStacks = 64

// found is a straggler before its stack has been looked up.
type found struct {
	Straggler
	label label // zero: it has no goroutine of its own
}

// withStacks orders stragglers by age, oldest first, and looks up their stacks.
// It costs a goroutine profile, for which the world stops as long as it takes to
// walk the stacks, and nothing if there is nobody to look up.
func withStacks(all []found) []Straggler { return withStacksOf([][]found{all})[0] }

// withStacksOf is withStacks for several lists, with one profile.
func withStacksOf(lists [][]found) [][]Straggler {
	wanted := map[label]string{}
	for _, all := range lists {
		slices.SortStableFunc(all, func(a, b found) int {
			return cmp.Or(-cmp.Compare(a.Age, b.Age), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
		})
		for i := range all {
			if all[i].label != (label{}) && len(wanted) < maxStacks {
				wanted[all[i].label] = ""
			}
		}
	}
	if len(wanted) > 0 {
		lookUpStacks(wanted)
	}
	result := make([][]Straggler, len(lists))
	for i, all := range lists {
		result[i] = make([]Straggler, len(all))
		for j, f := range all {
			if stack := wanted[f.label]; stack != "" {
				f.Stack = stack
				if strings.Contains(stack, packagePath+".(*Host).Exit\n") || strings.Contains(stack, packagePath+".(*Host).ForceExit\n") {
					f.Stack = "(it waits inside Exit: if that is its own host's, for itself; Fail begins an exit without waiting)\n" + stack
				}
			}
			result[i][j] = f.Straggler
		}
	}
	return result
}

// lookUpStacks fills in, for each label, the stack of a goroutine that carries it.
//
// The goroutine profile in its text form is the only public place where labels
// and stacks stand together: a paragraph for all goroutines of equal stack and
// labels, with a line "# labels: {…}" and then a line a frame. runtime.Stack
// knows no labels, and stops the world about eight times as long.
func lookUpStacks(wanted map[label]string) {
	var profile bytes.Buffer
	if pprof.Lookup("goroutine").WriteTo(&profile, 1) != nil {
		return
	}
	_, paragraphs, _ := bytes.Cut(profile.Bytes(), []byte("\n")) // behind "goroutine profile: total …"
	for paragraph := range bytes.SplitSeq(paragraphs, []byte("\n\n")) {
		l := paragraphLabel(paragraph)
		if stack, ok := wanted[l]; !ok || stack != "" {
			continue
		}
		wanted[l] = readableStack(paragraph)
	}
}

// paragraphLabel returns the label of a paragraph, zero if it has none. Quotes in
// the values of others are escaped, so a key can't be mistaken.
func paragraphLabel(paragraph []byte) label {
	_, rest, _ := bytes.Cut(paragraph, []byte("# labels: "))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	host, ok := labelValue(line, labelHost)
	if !ok {
		return label{}
	}
	for _, kind := range []string{labelTask, labelHook, labelLog, labelObserver} {
		if name, ok := labelValue(line, kind); ok {
			return label{host, kind, name}
		}
	}
	return label{}
}

// labelValue reads the value of a key from a line of the form
//
//	{"key":"value", "other key":"value"}
func labelValue(line []byte, key string) (value string, ok bool) {
	_, rest, _ := bytes.Cut(line, []byte(`"`+key+`":`))
	quoted, err := strconv.QuotedPrefix(string(rest))
	if err != nil {
		return "", false
	}
	value, err = strconv.Unquote(quoted)
	return value, err == nil
}

// readableStack turns the frames of a paragraph, lines of the form
//
//	#	0x4f2a1b	main.cleanup+0x3b	/src/main.go:42
//
// into the form of debug.Stack, or returns "" if the goroutine is not one of the
// host's own.
func readableStack(paragraph []byte) string {
	var b strings.Builder
	root := ""
	for line := range bytes.Lines(paragraph) {
		fields := strings.Split(strings.TrimRight(string(line), "\n"), "\t")
		if len(fields) < 4 || fields[0] != "#" {
			continue
		}
		root = fields[2]
		if i := strings.LastIndex(root, "+0x"); i >= 0 {
			root = root[:i]
		}
		b.WriteString(root + "\n\t" + fields[len(fields)-1] + "\n")
	}
	first, _, _ := bytes.Cut(paragraph, []byte("\n"))
	if !slices.Contains(mains, root) && bytes.Count(first, []byte(" 0x")) < profileDepth {
		return ""
	}
	return b.String()
}

// callerStack is the stack of the calling goroutine; formatStack gives it the
// same form.
func callerStack(skip int) []uintptr {
	pcs := make([]uintptr, 32)
	return pcs[:runtime.Callers(skip+2, pcs)]
}

func formatStack(pcs []uintptr) string {
	var b strings.Builder
	frames := runtime.CallersFrames(pcs)
	for {
		frame, more := frames.Next()
		if frame.Function != "" && frame.Function != "runtime.goexit" {
			b.WriteString(frame.Function + "\n\t" + frame.File + ":" + strconv.Itoa(frame.Line) + "\n")
		}
		if !more {
			return b.String()
		}
	}
}

// The report of a straggler in the log has so many frames.
const topFrames = 4

// top returns the first frames of a stack.
func top(stack string) string {
	for i, lines := 0, 0; i < len(stack); i++ {
		if stack[i] == '\n' {
			if lines++; lines == 2*topFrames {
				return stack[:i]
			}
		}
	}
	return strings.TrimSuffix(stack, "\n")
}
