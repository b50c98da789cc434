package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// The tests' program is the server too, so that a test can run it as a process.
func TestMain(m *testing.M) {
	if os.Getenv("BE_KVSERVER") != "" {
		main()
	}
	os.Exit(m.Run())
}

// process is a kvserver.
type process struct {
	t           *testing.T
	cmd         *exec.Cmd
	keys, debug string // URLs
	stdout      bytes.Buffer
	ended       chan struct{} // closed at its end, with stdout complete
}

func launch(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, ended: make(chan struct{})}
	args = append([]string{"-addr", "127.0.0.1:0", "-debug", "127.0.0.1:0", "-dir", t.TempDir(), "-grace", "1h"}, args...)
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Env = append(os.Environ(), "BE_KVSERVER=1")
	p.cmd.Stdout = &p.stdout
	stderr, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	found := make(chan bool, 1)
	go func() {
		defer close(p.ended)
		urls := map[string]*string{`msg=serving .*addr=(\S+)`: &p.keys, `msg="status page" .*url=http://([^/]+)/`: &p.debug}
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			for pattern, url := range urls {
				if m := regexp.MustCompile(pattern).FindStringSubmatch(lines.Text()); m != nil {
					*url = "http://" + m[1]
					delete(urls, pattern)
					if len(urls) == 0 {
						found <- true
					}
				}
			}
		}
		_ = p.cmd.Wait()
		close(found)
	}()
	require.True(t, <-found, "it ended before it served")
	return p
}

func (p *process) terminate() { require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM)) }

// exit waits for the end and returns the exit code.
func (p *process) exit() int {
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

// get asks for a page in the format that accept says.
func (p *process) get(url, accept string) (body []byte, header http.Header) {
	p.t.Helper()
	request, err := http.NewRequest("GET", url, nil)
	require.NoError(p.t, err)
	request.Header.Set("Accept", accept)
	response, err := http.DefaultClient.Do(request)
	require.NoError(p.t, err)
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	require.NoError(p.t, err)
	require.Equal(p.t, http.StatusOK, response.StatusCode, "%s", body)
	return body, response.Header
}

type families map[string]*dto.MetricFamily

// scrape asks for the metrics as text, lints them and parses them.
func (p *process) scrape() families {
	p.t.Helper()
	body, _ := p.get(p.debug+"/metrics", "")
	return lintAndParse(p.t, body)
}

func lintAndParse(t *testing.T, body []byte) families {
	t.Helper()
	problems, err := promlint.New(bytes.NewReader(body)).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	require.NoError(t, err)
	return parsed
}

// scrapeUntil scrapes until what it finds is right, all the time with what only
// grows not falling.
func (p *process) scrapeUntil(right func(f families) bool) families {
	p.t.Helper()
	late := time.Now().Add(30 * time.Second)
	var last families
	for time.Now().Before(late) {
		now := p.scrape()
		for name, before := range last {
			for _, m := range before.Metric {
				after := now.find(name, m.Label)
				require.True(p.t, after != nil || m.Counter == nil, "%s is gone", name)
				if m.Counter != nil {
					require.GreaterOrEqual(p.t, after.Counter.GetValue(), m.Counter.GetValue(), name)
				}
			}
		}
		if right(now) {
			return now
		}
		last = now
	}
	require.Fail(p.t, "too late", "%v", last)
	return nil
}

func (f families) find(name string, labels []*dto.LabelPair) *dto.Metric {
	for _, m := range f[name].GetMetric() {
		if fmt.Sprint(m.Label) == fmt.Sprint(labels) {
			return m
		}
	}
	return nil
}

// one is the metric with these labels, by name and value in turn.
func (f families) one(name string, labels ...string) *dto.Metric {
next:
	for _, m := range f["lifecycle_"+name].GetMetric() {
		for i := 0; i < len(labels); i += 2 {
			has := false
			for _, l := range m.Label {
				has = has || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
			}
			if !has {
				continue next
			}
		}
		return m
	}
	return &dto.Metric{}
}

func (f families) counter(name string, labels ...string) int {
	return int(f.one(name, labels...).GetCounter().GetValue())
}

func (f families) gauge(name string, labels ...string) int {
	return int(f.one(name, labels...).GetGauge().GetValue())
}

// writers write until the server is gone.
type writers struct {
	sync.WaitGroup
	acknowledged, unknown atomic.Int64
	last                  atomic.Int64 // the largest offset that was acknowledged
}

func (p *process) write(clients int) *writers {
	w := &writers{}
	for client := range clients {
		w.Go(func() {
			for i := 0; ; i++ {
				request, err := http.NewRequest("PUT", fmt.Sprintf("%s/kv/%d", p.keys, client), strings.NewReader(strings.Repeat("v", i%1000)))
				if err != nil {
					panic(err)
				}
				response, err := http.DefaultClient.Do(request)
				var dial *net.OpError
				switch {
				case errors.As(err, &dial) && dial.Op == "dial":
					return
				case err != nil:
					w.unknown.Add(1)
					continue
				}
				response.Body.Close()
				switch response.StatusCode {
				case http.StatusNoContent:
					w.acknowledged.Add(1)
					offset, _ := strconv.ParseInt(response.Header.Get("Kv-Offset"), 10, 64)
					for last := w.last.Load(); last < offset && !w.last.CompareAndSwap(last, offset); last = w.last.Load() {
					}
				case http.StatusServiceUnavailable: // nothing was written
				default:
					w.unknown.Add(1)
				}
			}
		})
	}
	return w
}

func TestScrapesOfAServerUnderLoadAndThroughAnExitThatHangsCountWhatWasWritten(t *testing.T) {
	p := launch(t, "-stuck", "-cleanup", "20ms", "-metrics", "20ms")
	w := p.write(8)
	p.scrapeUntil(func(f families) bool {
		require.Equal(t, 1, f.gauge("hosts", "host", "kvserver", "state", "running"))
		return f.counter("transactions_durable_total") > 200 && f.counter("task_ticks_total", "task", "view cleanup") > 0
	})
	p.terminate() // in mid-load
	w.Wait()

	// No call is left, and the task that ignores its context is waited for by name.
	s := p.scrapeUntil(func(f families) bool {
		return f.gauge("exit_stragglers", "kind", "task", "name", "index rebuild", "phase", "await tasks") == 1 &&
			f.one("batch_transactions").GetHistogram().GetSampleSum() == f.one("transactions_durable_total").GetCounter().GetValue()
	})
	require.Len(t, s["lifecycle_exit_stragglers"].Metric, 1)
	require.Equal(t, 1, s.gauge("hosts", "state", "exiting"))
	require.Equal(t, 0, s.gauge("hosts", "state", "running"))
	require.Equal(t, 1, s.gauge("exiting_hosts", "phase", "await tasks"))
	require.Equal(t, 1, s.gauge("tasks_running", "task", "index rebuild"))
	require.Equal(t, 0, s.gauge("calls_in_flight"))
	require.Equal(t, 0, s.gauge("queue_bytes"))
	require.EqualValues(t, 1, s.one("exit_phase_duration_seconds", "phase", "exit module").GetHistogram().GetSampleCount())
	require.EqualValues(t, 1, s.one("exit_hook_duration_seconds", "phase", "exit module", "hook", "http").GetSummary().GetSampleCount())
	require.Empty(t, s.one("exit_phase_duration_seconds", "phase", "await tasks").GetHistogram().GetSampleCount())

	accepted, durable := s.counter("transactions_accepted_total"), s.counter("transactions_durable_total")
	acknowledged, unknown := int(w.acknowledged.Load()), int(w.unknown.Load())
	require.Equal(t, accepted, durable)
	require.GreaterOrEqual(t, accepted, acknowledged)
	require.LessOrEqual(t, accepted, acknowledged+unknown)
	require.Less(t, int(w.last.Load()), accepted)
	latency := s.one("sync_duration_seconds").GetHistogram()
	require.Positive(t, latency.GetSampleCount())
	require.Equal(t, latency.GetSampleCount(), s.one("batch_bytes").GetHistogram().GetSampleCount())
	t.Logf("acknowledged %d, unknown %d; scraped: accepted %d, durable %d, in %d syncs", acknowledged, unknown, accepted, durable, latency.GetSampleCount())

	// The other formats have the same.
	body, header := p.get(p.debug+"/metrics", "application/openmetrics-text;version=1.0.0")
	kind, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	require.NoError(t, err)
	require.Equal(t, "application/openmetrics-text", kind)
	require.Equal(t, "1.0.0", params["version"])
	requireOpenMetrics(t, string(body))
	require.Contains(t, string(body), fmt.Sprintf("\nlifecycle_transactions_durable_total{host=\"kvserver\"} %d.0\n", durable))

	body, header = p.get(p.debug+"/metrics", string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	decoder := expfmt.NewDecoder(bytes.NewReader(body), expfmt.ResponseFormat(header))
	binary := families{}
	for {
		var f dto.MetricFamily
		if err := decoder.Decode(&f); err == io.EOF {
			break
		} else {
			require.NoError(t, err)
		}
		binary[f.GetName()] = &f
	}
	native := binary.one("sync_duration_seconds").GetHistogram()
	require.EqualValues(t, 3, native.GetSchema())
	var counted, bucket int64
	for _, delta := range native.PositiveDelta {
		bucket += delta
		counted += bucket
	}
	require.EqualValues(t, latency.GetSampleCount(), counted)
	require.Len(t, native.Bucket, len(latency.Bucket)-1, "the classic ones, but for +Inf")

	p.terminate() // a second time: forces the exit
	require.Equal(t, 1, p.exit())
	require.Contains(t, p.stdout.String(), fmt.Sprintf("accepted %d, durable %d, lost 0", accepted, durable))
}

// requireOpenMetrics checks what the format asks of each line. (The client's
// libraries have no parser for it.)
func requireOpenMetrics(t *testing.T, body string) {
	t.Helper()
	body, ends := strings.CutSuffix(body, "# EOF\n")
	require.True(t, ends)
	kinds, family := map[string]string{}, ""
	line := regexp.MustCompile(`^([a-z_]+)(\{([a-z_]+="(\\.|[^"\\])*",?)+\})? ([-+.e0-9]+|NaN|[-+]Inf)( #.*)?$`)
	for text := range strings.Lines(body) {
		text = strings.TrimSuffix(text, "\n")
		if comment, is := strings.CutPrefix(text, "# "); is {
			words := strings.SplitN(comment, " ", 3)
			require.Len(t, words, 3, text)
			if words[0] == "TYPE" {
				family = words[1]
				if strings.HasPrefix(family, "lifecycle_") { // the Go collector has two of one name
					require.NotContains(t, kinds, family)
				}
				kinds[family] = words[2]
				require.NotRegexp(t, "_total$", family)
			} else {
				require.Contains(t, []string{"HELP", "UNIT"}, words[0])
			}
			continue
		}
		m := line.FindStringSubmatch(text)
		require.NotNil(t, m, text)
		suffix, ours := strings.CutPrefix(m[1], family)
		require.True(t, ours, "%s in the family %s", text, family)
		require.Contains(t, map[string][]string{
			"counter":   {"_total", "_created"},
			"gauge":     {""},
			"unknown":   {""},
			"info":      {"_info"},
			"histogram": {"_bucket", "_count", "_sum", "_created"},
			"summary":   {"", "_count", "_sum", "_created"},
		}[kinds[family]], suffix, text)
	}
	require.Equal(t, "counter", kinds["lifecycle_transactions_durable"])
}

func TestAnExitThatWaitsForARequestIsScrapedWhileTheServerRefusesOthers(t *testing.T) {
	p := launch(t)
	body, _ := p.get(p.keys+"/metrics", "") // the server's own
	own := lintAndParse(t, body)
	require.Contains(t, own, "kvserver_commits_total")

	read, write := io.Pipe()
	request, err := http.NewRequest("PUT", p.keys+"/kv/a", read)
	require.NoError(t, err)
	answered := make(chan int, 1)
	go func() {
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			answered <- 0
			return
		}
		response.Body.Close()
		answered <- response.StatusCode
	}()
	_, err = io.WriteString(write, "half of")
	require.NoError(t, err)
	p.scrapeUntil(func(f families) bool { return f.gauge("calls_in_flight", "host", "kvserver") == 1 })
	p.terminate()
	s := p.scrapeUntil(func(f families) bool { return f.gauge("hosts", "state", "exiting") == 1 })
	require.Equal(t, 1, s.gauge("exiting_hosts", "phase", "exit module"))
	require.Equal(t, 1, s.gauge("calls_in_flight"))
	require.Equal(t, 0, s.counter("transactions_accepted_total"))
	_, err = io.WriteString(write, " a value")
	require.NoError(t, err)
	require.NoError(t, write.Close())
	require.Equal(t, http.StatusNoContent, <-answered)
	require.Zero(t, p.exit())
	require.Contains(t, p.stdout.String(), "accepted 1, durable 1, lost 0")
}
