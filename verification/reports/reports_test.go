package reports

import (
	"context"
	"encoding"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
)

// source draws values from a fuzzer's bytes, and zeros from there on.
type source struct {
	bytes   []byte
	invalid bool // a value was drawn that no host can have, and that Marshal must refuse
}

func (s *source) byte() (b byte) {
	if len(s.bytes) > 0 {
		b, s.bytes = s.bytes[0], s.bytes[1:]
	}
	return b
}

func (s *source) uint64() (n uint64) {
	for range s.byte() % 9 {
		n = n<<8 | uint64(s.byte())
	}
	return n
}

// text is any string, but with U+FFFD for what is no UTF-8, as JSON would have it.
func (s *source) text() string {
	n := min(int(s.byte())%40, len(s.bytes))
	text := string(s.bytes[:n])
	s.bytes = s.bytes[n:]
	return string([]rune(text))
}

func (s *source) time() time.Time {
	seconds := int64(s.uint64())
	switch t := time.Unix(seconds, int64(s.uint64()%1e9)); s.byte() % 4 {
	case 0:
		return time.Time{}
	case 1:
		if year := t.UTC().Year(); year < 0 || year > 9999 {
			s.invalid = true
		}
		return t.UTC()
	default:
		minutes := int(s.byte()) * 5 % (24 * 60)
		return time.Unix(seconds%(1<<33), t.UnixNano()%1e9).In(time.FixedZone("", (minutes-12*60)*60))
	}
}

func (s *source) duration() time.Duration { return time.Duration(s.uint64()) }

func (s *source) phase() lifecycle.Phase {
	p := lifecycle.Phase(s.byte() % 10)
	if p == 9 {
		p = -1
	}
	s.invalid = s.invalid || p < 0 || p > lifecycle.PhaseRelease
	return p
}

func (s *source) state() lifecycle.State {
	state := lifecycle.State(s.byte() % 4)
	s.invalid = s.invalid || state > lifecycle.Exited
	return state
}

// list is nil, empty, or a few.
func list[T any](s *source, one func() T) []T {
	n := s.byte() % 5
	if n == 4 {
		return nil
	}
	all := []T{}
	for range n {
		all = append(all, one())
	}
	return all
}

func (s *source) straggler() lifecycle.Straggler {
	return lifecycle.Straggler{Kind: s.text(), Name: s.text(), Count: int(int32(s.uint64())), Age: s.duration(), Stack: s.text()}
}

func (s *source) report() lifecycle.Report {
	return lifecycle.Report{
		Host: s.text(), Outcome: []string{"", "clean", "failed", "forced"}[s.byte()%4], Cause: s.text(),
		Start: s.time(), Duration: s.duration(),
		First: s.uint64(), Accepted: s.uint64(), Durable: s.uint64(), Lost: s.uint64(),
		Phases: list(s, func() lifecycle.PhaseReport {
			return lifecycle.PhaseReport{
				Phase: s.phase(), Start: s.time(), Duration: s.duration(), Ended: s.byte()%2 == 0,
				Hooks: list(s, func() lifecycle.HookReport {
					return lifecycle.HookReport{
						Hook: s.text(), Start: s.time(), Duration: s.duration(), Error: s.text(),
						Skipped: s.byte()%2 == 0, Abandoned: s.byte()%2 == 0,
					}
				}),
				Stragglers: list(s, s.straggler), Abandoned: list(s, s.straggler), Errors: list(s, s.text),
			}
		}),
	}
}

func (s *source) status() lifecycle.Status {
	return lifecycle.Status{
		Host: s.text(), State: s.state(), Phase: s.phase(), Cause: s.text(),
		Tasks: list(s, func() lifecycle.TaskStatus {
			return lifecycle.TaskStatus{
				Name: s.text(), Count: int(int32(s.uint64())), Age: s.duration(), Every: s.duration(),
				Ticks: int64(s.uint64()), Failed: int64(s.uint64()), LastError: s.text(),
			}
		}),
		Calls: int(int32(s.uint64())), QueuedBytes: int(int32(s.uint64())),
		Accepted: s.uint64(), Durable: s.uint64(), LogError: s.text(),
	}
}

// requireSame compares two values field by field, times as moments, offsets of zones included.
func requireSame(t testing.TB, want, got any) {
	t.Helper()
	require.Equal(t, reflect.TypeOf(want), reflect.TypeOf(got))
	var same func(path string, a, b reflect.Value)
	same = func(path string, a, b reflect.Value) {
		if at, ok := a.Interface().(time.Time); ok {
			bt := b.Interface().(time.Time)
			_, ao := at.Zone()
			_, bo := bt.Zone()
			require.True(t, at.Equal(bt) && ao == bo, "%s: %v is not %v", path, bt, at)
			return
		}
		switch a.Kind() {
		case reflect.Struct:
			for i := range a.NumField() {
				same(path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
			}
		case reflect.Slice:
			require.Equal(t, a.IsNil(), b.IsNil(), path)
			require.Equal(t, a.Len(), b.Len(), path)
			for i := range a.Len() {
				same(path, a.Index(i), b.Index(i))
			}
		default:
			require.Equal(t, a.Interface(), b.Interface(), path)
		}
	}
	same(reflect.TypeOf(want).Name(), reflect.ValueOf(want), reflect.ValueOf(got))
}

// roundTrip requires that a value comes back from JSON as it was, or that Marshal refuses an invalid one.
func roundTrip[T any](t testing.TB, value T, invalid bool) {
	t.Helper()
	data, err := json.Marshal(value)
	if invalid {
		require.Error(t, err)
		return
	}
	require.NoError(t, err)
	var back T
	require.NoError(t, json.Unmarshal(data, &back))
	requireSame(t, value, back)
	again, err := json.Marshal(back)
	require.NoError(t, err)
	require.Equal(t, string(data), string(again))
}

// stable requires that whatever JSON a type takes comes out the same from then on.
func stable[T any](t testing.TB, data []byte) (value T, taken bool) {
	if json.Unmarshal(data, &value) != nil {
		return value, false
	}
	first, err := json.Marshal(value)
	require.NoError(t, err, "it was taken, and can't be given")
	var back T
	require.NoError(t, json.Unmarshal(first, &back))
	requireSame(t, value, back)
	second, err := json.Marshal(back)
	require.NoError(t, err)
	require.Equal(t, string(first), string(second))
	return value, true
}

// printsSafely requires a report's timeline to have no control character but newlines.
func printsSafely(t testing.TB, r lifecycle.Report) {
	text := r.String()
	require.True(t, strings.HasSuffix(text, "\n"))
	for _, c := range text {
		require.False(t, unicode.IsControl(c) && c != '\n', "%q in %q", c, text)
	}
}

// Values made of random bytes, there and back.
func FuzzReportAndStatusRoundTrip(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x06orders\x01\x00\x04\x65\x00\x00\x00\x00\x01\x01"))
	f.Add([]byte("\x05a\x1b[2J\x03\x07\xff\xfe\xfd\x00\x00\x00\x00\x02\x30\x31\x32\x33\x34\x35\x36\x37\x38\x39"))
	for seed := range 40 {
		b := make([]byte, 40*seed)
		for i := range b {
			b[i] = byte(seed*i*i + i*7 + i>>4)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &source{bytes: data}
		report := s.report()
		roundTrip(t, report, s.invalid)
		printsSafely(t, report)
		s.invalid = false
		status := s.status()
		roundTrip(t, status, s.invalid)
	})
}

// Random JSON.
func FuzzReportAndStatusFromJSON(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"phases":[{"phase":"await tasks","start":"2026-01-02T03:04:05.678+14:00","hooks":null,"errors":["\ud800"]}],"phase":"none"}`))
	f.Add([]byte(`{"state":"exiting","phase":"release","tasks":[{"name":"x","count":-1,"age":1e3}]}`))
	f.Add([]byte(`{"STATE":"exited","Phase":null,"accepted":18446744073709551615,"phases":[{"phase":""}]}`))
	f.Add([]byte(`{"outcome":"clean","start":"0000-01-01T00:00:00Z","duration":-9223372036854775808,"phases":[{},{}]}`))
	f.Add([]byte(`{"start":"9999-12-31T23:59:59.999999999-23:59"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if report, taken := stable[lifecycle.Report](t, data); taken {
			switch report.Outcome {
			case "", "clean", "failed", "forced":
				printsSafely(t, report)
			default:
				_ = report.String()
			}
		}
		stable[lifecycle.Status](t, data)
	})
}

// Every phase and state has a text that no other has; nothing else has one, and no other text is taken.
func FuzzPhaseAndStateTexts(f *testing.F) {
	for n := -2; n < 10; n++ {
		f.Add(n, lifecycle.Phase(n).String())
		f.Add(n, lifecycle.State(n).String())
	}
	f.Add(math.MinInt, "Await Tasks")
	f.Add(math.MaxInt, "")
	f.Fuzz(func(t *testing.T, n int, text string) {
		p := lifecycle.Phase(n)
		there, err := p.MarshalText()
		if valid := n >= 0 && n <= int(lifecycle.PhaseRelease); valid {
			require.NoError(t, err)
			require.Equal(t, p.String(), string(there))
			var back lifecycle.Phase
			require.NoError(t, back.UnmarshalText(there))
			require.Equal(t, p, back)
		} else {
			require.ErrorIs(t, err, lifecycle.ErrInvalid)
		}
		s := lifecycle.State(n)
		there, err = s.MarshalText()
		if valid := n >= 0 && n <= int(lifecycle.Exited); valid {
			require.NoError(t, err)
			require.Equal(t, s.String(), string(there))
			var back lifecycle.State
			require.NoError(t, back.UnmarshalText(there))
			require.Equal(t, s, back)
		} else {
			require.ErrorIs(t, err, lifecycle.ErrInvalid)
		}

		p, s = 3, lifecycle.Exiting
		for _, v := range []encoding.TextUnmarshaler{&p, &s} {
			before := reflect.ValueOf(v).Elem().Int()
			if err := v.UnmarshalText([]byte(text)); err == nil {
				there, err := v.(encoding.TextMarshaler).MarshalText()
				require.NoError(t, err)
				require.Equal(t, text, string(there))
			} else {
				require.ErrorIs(t, err, lifecycle.ErrInvalid)
				require.Equal(t, before, reflect.ValueOf(v).Elem().Int(), "refused, and changed")
			}
		}
	})
}

// What hosts say in every part of their lives goes there and back, and its names are the fields' in snake case.
func TestWhatHostsReportGoesToJSONAndBack(t *testing.T) {
	reports, statuses := 0, 0
	synctest.Test(t, func(t *testing.T) {
		for mask := range 64 {
			h := lifecycle.New(nil, lifecycle.Options{Name: "zwölf \x1b[31m\"{}\n" + string(rune('a'+mask%26))})
			look := func() {
				report, status := h.Report(), h.Status()
				roundTrip(t, report, false)
				roundTrip(t, status, false)
				printsSafely(t, report)
				requireSnakeCase(t, report)
				requireSnakeCase(t, status)
				reports, statuses = reports+1, statuses+1
			}
			look()
			release := make(chan struct{})
			if mask&1 > 0 {
				require.NoError(t, h.Go("stuck\x07 task", func(context.Context) error { <-release; return nil }))
			}
			if mask&2 > 0 {
				require.NoError(t, h.OnExit(lifecycle.PhaseCheckpoint, "hook\tone", func(context.Context) error { return errors.New("über\x00") }))
			}
			if mask&4 > 0 {
				require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "hook two", func(context.Context) error { panic("a\r\nb") }))
			}
			if mask&8 > 0 {
				require.NoError(t, h.OnExit(lifecycle.PhaseExitModule, "hangs", func(context.Context) error { <-release; return nil }))
			}
			if mask&16 > 0 {
				require.NoError(t, h.Every("tick", time.Second, func(context.Context) error { return errors.New("tick \x1b") }))
				time.Sleep(3500 * time.Millisecond)
			}
			_, err := h.Durability().Commit(t.Context(), []byte("tx"))
			require.NoError(t, err)
			if mask&32 > 0 {
				h.Fail(errors.New("<cause> \x1b]0;\a"))
			}
			look()
			expired, cancel := context.WithTimeout(t.Context(), time.Second)
			_ = h.Exit(expired)
			look()
			_ = h.ForceExit(expired)
			look()
			cancel()
			close(release)
		}
	})
	t.Logf("counts: reports %d, statuses %d", reports, statuses)
}

var snakeCase = regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)

func requireSnakeCase(t testing.TB, value any) {
	data, err := json.Marshal(value)
	require.NoError(t, err)
	var parsed any
	require.NoError(t, json.Unmarshal(data, &parsed))
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, inner := range v {
				require.Regexp(t, snakeCase, key)
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		case nil:
			require.Fail(t, "a list that is null")
		}
	}
	walk(parsed)
}
