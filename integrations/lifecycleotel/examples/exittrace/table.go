package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed080d9131/lifecycle/integrations/lifecycleotel"
)

// table is an exporter that prints a trace once it has its root, a line a span: where
// it lies in the whole, how long it took, and its events below it.
type table struct {
	to       io.Writer
	root     sdktrace.ReadOnlySpan
	children map[trace.SpanID][]sdktrace.ReadOnlySpan
}

const barWidth = 36

func (t *table) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	if t.children == nil {
		t.children = map[trace.SpanID][]sdktrace.ReadOnlySpan{}
	}
	for _, s := range spans {
		if s.Parent().IsValid() {
			t.children[s.Parent().SpanID()] = append(t.children[s.Parent().SpanID()], s)
		} else {
			t.root = s
		}
	}
	return nil
}

func (t *table) Shutdown(context.Context) error {
	if t.root != nil {
		t.print(t.root, "")
	}
	return nil
}

func (t *table) print(s sdktrace.ReadOnlySpan, indent string) {
	name := indent + s.Name()
	padding := strings.Repeat(" ", max(0, 20-utf8.RuneCountInString(name)))
	fmt.Fprintf(t.to, "%s%s %s %8s%s\n", name, padding, t.bar(s), short(s.EndTime().Sub(s.StartTime())), attributes(s))
	for _, e := range s.Events() {
		values := attribute.NewSet(e.Attributes...)
		value := func(key attribute.Key) string {
			v, _ := values.Value(key)
			return v.String()
		}
		line := e.Name
		switch e.Name {
		case lifecycleotel.StragglerEvent, lifecycleotel.AbandonedEvent:
			line = fmt.Sprintf("%s: %s %q × %s", e.Name, value(lifecycleotel.StragglerKindKey), value(lifecycleotel.StragglerNameKey), value(lifecycleotel.StragglerCountKey))
			line += " in " + where(value("code.stacktrace"))
		case "exception":
			line = "exception: " + value("exception.message")
		}
		fmt.Fprintf(t.to, "%s      · at %s  %s\n", indent, short(e.Time.Sub(t.root.StartTime())), line)
	}
	children := t.children[s.SpanContext().SpanID()]
	slices.SortStableFunc(children, func(a, b sdktrace.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	for _, c := range children {
		t.print(c, indent+"  ")
	}
}

// bar shows where a span lies in the root's.
func (t *table) bar(s sdktrace.ReadOnlySpan) string {
	whole := max(t.root.EndTime().Sub(t.root.StartTime()), 1)
	cell := func(at time.Time) int {
		return min(int(at.Sub(t.root.StartTime())*barWidth/whole), barWidth)
	}
	from := min(cell(s.StartTime()), barWidth-1)
	to := max(cell(s.EndTime()), from+1)
	return strings.Repeat("·", from) + strings.Repeat("█", to-from) + strings.Repeat("·", barWidth-to)
}

// attributes is those worth a line's end: the root's, and what failed.
func attributes(s sdktrace.ReadOnlySpan) string {
	var b strings.Builder
	if !s.Parent().IsValid() {
		for _, kv := range s.Attributes() {
			if kv.Key != lifecycleotel.ExitCauseKey {
				name := string(kv.Key)
				fmt.Fprintf(&b, "  %s=%s", name[strings.LastIndex(name, ".")+1:], kv.Value.String())
			}
		}
	} else if s.Status().Code == codes.Error {
		b.WriteString("  error: " + s.Status().Description)
	}
	return b.String()
}

// where is the topmost of the program's own frames in a stack.
func where(stack string) string {
	for line := range strings.SplitSeq(stack, "\n") {
		if function, ok := strings.CutPrefix(line, "main."); ok {
			return function
		}
	}
	return "?"
}

func short(d time.Duration) string {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}
