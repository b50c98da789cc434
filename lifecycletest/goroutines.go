package lifecycletest

import (
	"bytes"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	hostPath = "github.com/seed080d9131/lifecycle"
	kitPath  = hostPath + "/lifecycletest"
)

// goroutine returns the calling goroutine's number and its bubble's, "" outside.
// The header of a stack is the only public place that tells them.
func goroutine() (id uint64, bubble string) {
	var buf [128]byte
	return parseHeader(buf[:runtime.Stack(buf[:], false)])
}

// parseHeader reads the likes of "goroutine 7 [running, synctest bubble 3]:".
func parseHeader(stack []byte) (id uint64, bubble string) {
	line, _, _ := bytes.Cut(stack, []byte("\n"))
	rest, ok := bytes.CutPrefix(line, []byte("goroutine "))
	if !ok {
		return 0, ""
	}
	number, rest, _ := bytes.Cut(rest, []byte(" "))
	id, _ = strconv.ParseUint(string(number), 10, 64)
	if _, after, ok := bytes.Cut(rest, []byte("synctest bubble ")); ok {
		end := bytes.IndexFunc(after, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(after)
		}
		bubble = string(after[:end])
	}
	return id, bubble
}

// ownStack is the calling goroutine's stack.
func ownStack() string {
	buf := make([]byte, 16<<10)
	return readable(string(buf[:runtime.Stack(buf, false)]))
}

// stackOf is the stack of one goroutine, "" if it has ended.
func stackOf(id uint64) string { return readable(rawStackOf(id)) }

func rawStackOf(id uint64) string {
	for _, stack := range allStacks() {
		if other, _ := parseHeader([]byte(stack)); other == id {
			return stack
		}
	}
	return ""
}

// bubbleStacks are the stacks of a bubble's goroutines but the calling one's and
// those of synctest.Test that wait for the bubble.
func bubbleStacks(bubble string) []string {
	self, _ := goroutine()
	var all []string
	for _, stack := range allStacks() {
		id, its := parseHeader([]byte(stack))
		if its == bubble && bubble != "" && id != self && !strings.Contains(stack, "testing/synctest.Test") {
			all = append(all, readable(stack))
		}
	}
	return all
}

func allStacks() []string {
	buf := make([]byte, 256<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) || len(buf) >= 64<<20 {
			return strings.Split(strings.TrimSpace(string(buf[:n])), "\n\n")
		}
		buf = make([]byte, 2*len(buf))
	}
}

// readable is a stack as its user wants to see it: without the header, the
// arguments, and the frames of the library and of this package above and below
// the user's own.
func readable(stack string) string {
	if header, frames, ok := strings.Cut(stack, "\n"); ok && strings.HasPrefix(header, "goroutine ") {
		stack = frames
	}
	lines := strings.Split(strings.TrimSpace(stack), "\n")
	var frames [][2]string
	for i := 0; i+1 < len(lines); i += 2 {
		function, at := lines[i], lines[i+1]
		if creator, ok := strings.CutPrefix(function, "created by "); ok {
			creator, _, _ = strings.Cut(creator, " in goroutine")
			function = "created by " + creator
		} else if open := strings.LastIndexByte(function, '('); open > 0 && strings.HasSuffix(function, ")") {
			function = function[:open]
		}
		if offset := strings.LastIndex(at, " +0x"); offset > 0 {
			at = at[:offset]
		}
		frames = append(frames, [2]string{function, at})
	}
	first, last := 0, len(frames)
	for first < last && isOurs(frames[first][0]) {
		first++
	}
	for last > first && isOurs(strings.TrimPrefix(frames[last-1][0], "created by ")) {
		last--
	}
	if first == last { // nothing else is there
		first, last = 0, len(frames)
	}
	var b strings.Builder
	for _, f := range frames[first:last] {
		b.WriteString(f[0] + "\n" + f[1] + "\n")
	}
	return strings.TrimSpace(b.String())
}

func isOurs(function string) bool {
	return strings.HasPrefix(function, hostPath+".") || strings.HasPrefix(function, kitPath+".") ||
		strings.HasPrefix(function, "runtime/debug.") || function == "panic"
}

// site is a place in the user's code.
type site struct {
	function string
	file     string
	line     int
}

func (s site) String() string {
	if s.function == "" {
		return "(no frame outside the library)"
	}
	return s.function + " (" + s.short() + ")"
}

func (s site) short() string { return filepath.Base(s.file) + ":" + strconv.Itoa(s.line) }

// userSite is the topmost frame of the calling goroutine that is neither the
// library's, nor the kit's, nor the standard library's.
func userSite() site {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		frame, more := frames.Next()
		if frame.Function != "" && !isStandard(frame.Function) &&
			!isOurs(frame.Function) {
			function := frame.Function[strings.LastIndexByte(frame.Function, '/')+1:]
			return site{function, frame.File, frame.Line}
		}
		if !more {
			return site{}
		}
	}
}

// isStandard: the first element of a module's path has a dot, that of the standard
// library's packages has none.
func isStandard(function string) bool {
	element, _, more := strings.Cut(function, "/")
	if !more {
		element, _, _ = strings.Cut(element, ".")
		return element != "main"
	}
	return !strings.Contains(element, ".")
}

// remaining returns the stacks of the goroutines that carry a host's labels: its
// own, and those that its tasks and hooks have started. Those whose labels were
// there before the host was are another's of the same name. What is on its way out
// gets the time to end.
func remaining(host string, before map[string]bool, ignored []string) []string {
	if _, bubble := goroutine(); bubble != "" {
		time.Sleep(time.Nanosecond) // of the bubble's time: everybody else in it has come to rest
	}
	const tries = 16
	var left []string
	for try := range tries {
		left = left[:0]
		for _, g := range labelled() {
			if g.name == host && !before[g.label] && !isIgnored(g.stack, ignored) {
				left = append(left, g.stack)
			}
		}
		if len(left) == 0 {
			break
		}
		for range 1 << try {
			runtime.Gosched()
		}
	}
	return left
}

// labelledGoroutine is a goroutine, or some with equal labels and stacks, of a host
// or started by its tasks or hooks.
type labelledGoroutine struct {
	label string // of its host: unique in the process
	name  string // of its host
	stack string
}

// labelled returns those of all hosts.
func labelled() []labelledGoroutine {
	var profile bytes.Buffer
	if pprof.Lookup("goroutine").WriteTo(&profile, 1) != nil {
		return nil
	}
	var all []labelledGoroutine
	for paragraph := range strings.SplitSeq(profile.String(), "\n\n") {
		_, rest, ok := strings.Cut(paragraph, "# labels: ")
		if !ok {
			continue
		}
		line, frames, _ := strings.Cut(rest, "\n")
		labels := parseLabels(line)
		label := labels["lifecycle.host"]
		i := strings.LastIndexByte(label, '#')
		if i < 0 {
			continue
		}
		var b strings.Builder
		for line := range strings.Lines(frames) {
			fields := strings.Split(strings.TrimRight(line, "\n"), "\t")
			if len(fields) < 4 || fields[0] != "#" {
				continue
			}
			function := fields[2]
			if i := strings.LastIndex(function, "+0x"); i >= 0 {
				function = function[:i]
			}
			b.WriteString(function + "\n\t" + fields[len(fields)-1] + "\n")
		}
		all = append(all, labelledGoroutine{label, label[:i], strings.TrimSpace(b.String())})
	}
	return all
}

// parseLabels reads the likes of {"a":"b", "c":"d"}, keys and values as Go strings.
func parseLabels(line string) map[string]string {
	labels := map[string]string{}
	rest, ok := strings.CutPrefix(line, "{")
	for ok {
		var words [2]string
		for i := range words {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return labels
			}
			words[i], _ = strconv.Unquote(quoted)
			rest = strings.TrimPrefix(rest[len(quoted):], ":")
		}
		labels[words[0]] = words[1]
		rest, ok = strings.CutPrefix(rest, ", ")
	}
	return labels
}

// hostLabels are the hosts' labels that some goroutine carries.
func hostLabels() map[string]bool {
	all := map[string]bool{}
	for _, g := range labelled() {
		all[g.label] = true
	}
	return all
}

func isIgnored(stack string, ignored []string) bool {
	return slices.ContainsFunc(ignored, func(part string) bool { return strings.Contains(stack, part) })
}
