package lifecycle

import (
	"encoding/json"
	"io"
	"time"
)

// traceEvent is an event of the Trace Event Format of Chrome, which Perfetto opens
// too. Times are microseconds.
type traceEvent struct {
	Name     string         `json:"name"`
	Phase    string         `json:"ph"` // "X" complete, "i" instant, "M" metadata
	Start    float64        `json:"ts"`
	Duration float64        `json:"dur,omitempty"`
	Process  int            `json:"pid"`
	Thread   int            `json:"tid"`
	Scope    string         `json:"s,omitempty"`
	Args     map[string]any `json:"args,omitempty"`
}

// WriteTrace writes the report to w as a trace-event JSON object, which Perfetto and
// chrome://tracing open: a slice a phase, its hooks below it, and a mark for each
// straggler that it waited for or left behind. The error is w's.
func (r Report) WriteTrace(w io.Writer) error {
	at := func(t time.Time) float64 { return micros(t.Sub(r.Start)) }
	events := []traceEvent{
		{Name: "process_name", Phase: "M", Process: 1, Thread: 1, Args: map[string]any{"name": "host " + r.Host}},
		{Name: "thread_name", Phase: "M", Process: 1, Thread: 1, Args: map[string]any{"name": "exit"}},
	}
	if !r.Start.IsZero() {
		events = append(events, traceEvent{Name: "exit", Phase: "X", Duration: micros(r.Duration), Process: 1, Thread: 1, Args: map[string]any{
			"outcome": r.Outcome, "cause": r.Cause, "accepted": r.Accepted, "durable": r.Durable, "lost": r.Lost,
		}})
	}
	for _, p := range r.Phases {
		slice := traceEvent{Name: p.Phase.String(), Phase: "X", Start: at(p.Start), Duration: micros(p.Duration), Process: 1, Thread: 1, Args: map[string]any{"ended": p.Ended}}
		if len(p.Errors) > 0 {
			slice.Args["errors"] = p.Errors
		}
		events = append(events, slice)
		for _, h := range p.Hooks {
			events = append(events, traceEvent{Name: "hook " + h.Hook, Phase: "X", Start: at(h.Start), Duration: micros(h.Duration), Process: 1, Thread: 1, Args: map[string]any{
				"error": h.Error, "skipped": h.Skipped, "abandoned": h.Abandoned,
			}})
		}
		mark := func(what string, stragglers []Straggler) {
			for _, s := range stragglers {
				events = append(events, traceEvent{Name: what + " " + s.Kind + " " + s.Name, Phase: "i", Start: at(p.Start.Add(p.Duration)), Process: 1, Thread: 1, Scope: "p", Args: map[string]any{
					"count": s.Count, "age_ms": micros(s.Age) / 1000, "stack": s.Stack,
				}})
			}
		}
		mark("waited for", p.Stragglers)
		mark("left behind", p.Abandoned)
	}
	encoder := json.NewEncoder(w)
	return encoder.Encode(map[string]any{
		"displayTimeUnit": "ms",
		"otherData":       map[string]any{"host": r.Host, "start": r.Start.Format(time.RFC3339Nano)},
		"traceEvents":     events,
	})
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
