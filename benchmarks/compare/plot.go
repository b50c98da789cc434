package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/seed080d9131/lifecycle/benchmarks/internal/harness"
	"github.com/seed080d9131/lifecycle/benchmarks/peers"
	"github.com/seed080d9131/lifecycle/commitlog"
)

// curve is one line of a plot: medians, with the smallest and the largest sample.
type curve struct {
	name   string
	points []point
	limit  bool // drawn in grey
}

type point struct{ x, low, median, high float64 }

func (c *curve) add(x float64, samples []float64) {
	if samples = finite(samples); len(samples) > 0 {
		c.points = append(c.points, point{x, harness.Quantile(samples, 0), harness.Median(samples), harness.Quantile(samples, 1)})
	}
}

// plot measures and draws how things scale. Ours is the first curve of each plot.
func (e *env) plot(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	return errors.Join(e.plotCommits(dir), e.plotExit(dir), e.plotFleet(dir), e.plotDrain(dir), e.plotRecovery(dir), e.plotHosts(dir))
}

func (e *env) plotCommits(dir string) error {
	zeroed, err := harness.NewZeroed(e.dir, 64<<20)
	if err != nil {
		return err
	}
	defer zeroed.Close()
	who := []peers.Peer{peers.Ours}
	for _, peer := range peers.All() {
		switch peer.Name {
		case "pebble Set", "pebble LogWriter", "etcd wal, grouped", "tidwall/wal, grouped":
			who = append(who, peer)
		}
	}
	rates, highs := make([]curve, len(who)+1), make([]curve, len(who))
	for i, peer := range who {
		rates[i].name, highs[i].name = peer.Name, peer.Name
	}
	rates[len(who)] = curve{name: "limit: one sync for all", limit: true}
	for committers := 1; committers <= 4096; committers *= 4 {
		high := make([][]float64, len(who))
		var candidates []harness.Candidate
		for i, peer := range who {
			candidates = append(candidates, harness.Candidate{Name: peer.Name, Measure: func() (float64, error) {
				d, err := e.latencies(peer, committers, 0)
				if err == nil {
					high[i] = append(high[i], d.p99)
				}
				return d.perSecond, err
			}})
		}
		candidates = append(candidates, harness.Candidate{Name: "limit", Measure: func() (float64, error) {
			result, err := zeroed.Pages(e.warmup, e.measure)
			return result.PerSecond * float64(committers), err
		}})
		samples := e.interleave(fmt.Sprintf("%d committers", committers), candidates)
		for i, c := range candidates {
			rates[i].add(float64(committers), samples[c.Name])
			if i < len(who) {
				highs[i].add(float64(committers), high[i])
			}
		}
	}
	// Beyond this the limit is the processor's, and the disk's would only stretch the axis.
	limit := &rates[len(who)]
	for i, p := range limit.points {
		if p.x > 256 {
			limit.points = limit.points[:i]
			break
		}
	}
	return errors.Join(
		drawCurves(filepath.Join(dir, "commits.svg"), "Durable commits of 128 B", "committers", "commits/s", rates),
		drawCurves(filepath.Join(dir, "latency.svg"), "Latency of a commit of 128 B, closed loop", "committers", "p99 in µs", highs))
}

func (e *env) plotExit(dir string) error {
	most := 1_000_000
	if e.quick {
		most = 10_000
	}
	curves := []curve{{name: "lifecycle"}, {name: "cancel, WaitGroup.Wait"}}
	for tasks := 1; tasks <= most; tasks *= 10 {
		samples := e.interleave(fmt.Sprintf("exit of %d tasks", tasks), []harness.Candidate{
			{Name: "ours", Measure: func() (float64, error) { return exitOurs(tasks) }},
			{Name: "theirs", Measure: func() (float64, error) { return waitGroup(tasks), nil }},
		})
		curves[0].add(float64(tasks), samples["ours"])
		curves[1].add(float64(tasks), samples["theirs"])
	}
	return drawCurves(filepath.Join(dir, "exit.svg"), "Exit of idle tasks", "tasks", "ms", curves)
}

func (e *env) plotFleet(dir string) error {
	most := 10_000
	if e.quick {
		most = 1000
	}
	curves := []curve{{name: "Controller.Exit"}, {name: "cancel, WaitGroup.Wait of as many goroutines"}}
	for hosts := 1; hosts <= most; hosts *= 10 {
		samples := e.interleave(fmt.Sprintf("exit of %d hosts", hosts), []harness.Candidate{
			{Name: "ours", Measure: func() (float64, error) {
				took, _, err := exitFleet(hosts)
				return took, err
			}},
			{Name: "theirs", Measure: func() (float64, error) { return waitGroup(3 * hosts), nil }},
		})
		curves[0].add(float64(hosts), samples["ours"])
		curves[1].add(float64(hosts), samples["theirs"])
	}
	return drawCurves(filepath.Join(dir, "fleet.svg"), "Exit of hosts with two tasks each", "hosts", "ms", curves)
}

func (e *env) plotRecovery(dir string) error {
	const size = 128
	most := int64(4 << 30)
	if e.quick {
		most = 16 << 20
	}
	curves := []curve{{name: "commitlog.Open"}, {name: "read the same files and CRC32C", limit: true}}
	var failures []error
	for bytes := int64(1 << 20); bytes <= most; bytes *= 4 {
		_, err := e.fresh(func(logs string) (float64, error) {
			if err := writeLog(logs, bytes, size); err != nil {
				return 0, err
			}
			samples := e.interleave(fmt.Sprintf("recovery of %d MiB", bytes>>20), []harness.Candidate{
				{Name: "ours", Measure: func() (float64, error) {
					start := time.Now()
					log, err := commitlog.Open(logs, commitlog.Options{})
					if err != nil {
						return 0, err
					}
					return milliseconds(time.Since(start)), log.Close()
				}},
				{Name: "theirs", Measure: func() (float64, error) {
					start := time.Now()
					_, err := checksums(logs)
					return milliseconds(time.Since(start)), err
				}},
			})
			curves[0].add(float64(bytes)/(1<<20), samples["ours"])
			curves[1].add(float64(bytes)/(1<<20), samples["theirs"])
			return 0, nil
		})
		failures = append(failures, err)
	}
	return errors.Join(errors.Join(failures...),
		drawCurves(filepath.Join(dir, "recovery.svg"), "Opening a log of records of 128 B", "MiB", "ms", curves))
}

// plotHosts has as many committers as the plot's most hosts, spread evenly over hosts that each have a log of their own on the
// same disk. Beside them are as many files, each written and synced by a goroutine of its own, a batch of as many commits each
// time. Go keeps a processor for a goroutine that waits in a system call until it notices, some 20 µs later: so few syncs are in
// flight at a time. With more processors for Go than there are, more are.
func (e *env) plotHosts(dir string) error {
	committers := 1000
	if e.quick {
		committers = 100
	}
	const many = 16
	curves := []curve{{name: "lifecycle"}, {name: fmt.Sprintf("lifecycle, GOMAXPROCS=%d", many)},
		{name: "a file for each, written and synced", limit: true}, {name: fmt.Sprintf("the same, GOMAXPROCS=%d", many), limit: true}}
	for hosts := 1; hosts <= committers; hosts *= 10 {
		measure := []func(int, int) (float64, error){e.manyHosts, withProcessors(many, e.manyHosts), e.manyFiles, withProcessors(many, e.manyFiles)}
		var candidates []harness.Candidate
		for i, c := range curves {
			candidates = append(candidates, harness.Candidate{Name: c.name, Measure: func() (float64, error) { return measure[i](hosts, committers/hosts) }})
		}
		samples := e.interleave(fmt.Sprintf("%d hosts on one disk", hosts), candidates)
		for i := range curves {
			curves[i].add(float64(hosts), samples[curves[i].name])
		}
	}
	title := fmt.Sprintf("Durable commits of 128 B, %d committers on so many hosts on one disk", committers)
	return drawCurves(filepath.Join(dir, "hosts.svg"), title, "hosts", "commits/s", curves)
}

func withProcessors(n int, measure func(int, int) (float64, error)) func(int, int) (float64, error) {
	return func(hosts, committers int) (float64, error) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n))
		return measure(hosts, committers)
	}
}

// manyFiles returns the commits a second of a goroutine for each host, which writes a batch of so many commits into a file of zeros,
// syncs it, and goes on.
func (e *env) manyFiles(hosts, committers int) (rate float64, err error) {
	return e.fresh(func(dir string) (_ float64, err error) {
		files := make([]*harness.Zeroed, hosts)
		defer func() {
			for _, f := range files {
				if f != nil {
					err = errors.Join(err, f.Close())
				}
			}
		}()
		for i := range files {
			own := filepath.Join(dir, fmt.Sprint(i))
			if err := os.Mkdir(own, 0o777); err != nil {
				return 0, err
			}
			if files[i], err = harness.NewZeroed(own, 256<<10); err != nil {
				return 0, err
			}
		}
		batch := pattern((frameBytes-4+committers*(4+128)+7)&^7, 7)
		result, err := harness.Loop{Workers: hosts, Warmup: e.warmup, Measure: e.measure, Op: func(worker int) error {
			return files[worker].WriteAndSync(batch)
		}}.Run()
		return result.PerSecond * float64(committers), err
	})
}

// manyHosts returns the commits a second of all hosts together, each of which has a log of its own and so many committers.
func (e *env) manyHosts(hosts, committers int) (rate float64, err error) {
	return e.fresh(func(dir string) (_ float64, err error) {
		all := make([]peers.Committer, hosts)
		defer func() {
			for _, c := range all {
				if c != nil {
					err = errors.Join(err, c.Close())
				}
			}
		}()
		for i := range all {
			if all[i], err = peers.Ours.Open(filepath.Join(dir, fmt.Sprint(i))); err != nil {
				return 0, err
			}
		}
		record := pattern(128, 6)
		result, err := harness.Loop{Workers: hosts * committers, Warmup: e.warmup, Measure: e.measure, Op: func(worker int) error {
			return all[worker%hosts].Commit(record)
		}}.Run()
		return result.PerSecond, err
	})
}

func (e *env) plotDrain(dir string) error {
	const size = 128
	most := int64(1 << 30)
	if e.quick {
		most = 16 << 20
	}
	zeroed, err := harness.NewZeroed(e.dir, most)
	if err != nil {
		return err
	}
	defer zeroed.Close()
	record := pattern(size, 5)
	curves := []curve{{name: "lifecycle"}, {name: "raw write, zeroed file", limit: true}}
	for bytes := int64(1 << 20); bytes <= most; bytes *= 4 {
		samples := e.interleave(fmt.Sprintf("drain of %d MiB", bytes>>20), []harness.Candidate{
			{Name: "ours", Measure: func() (float64, error) {
				took, err := e.drainOurs(int(bytes/(size+4)), record, bytes)
				return milliseconds(took), err
			}},
			{Name: "theirs", Measure: func() (float64, error) {
				took, err := zeroed.Stream(bytes)
				return milliseconds(took), err
			}},
		})
		curves[0].add(float64(bytes)/(1<<20), samples["ours"])
		curves[1].add(float64(bytes)/(1<<20), samples["theirs"])
	}
	return drawCurves(filepath.Join(dir, "drain.svg"), "Exit with records of 128 B accepted and unwritten", "MiB", "ms", curves)
}

// drawCurves draws both axes logarithmically, each point with a bar from its smallest to its largest sample, and writes the points
// into a CSV file beside the picture.
func drawCurves(name, title, x, y string, curves []curve) error {
	if err := writePoints(strings.TrimSuffix(name, ".svg")+".csv", x, y, curves); err != nil {
		return err
	}
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	first := curves[0].points // the legend goes where it does not run
	p.Legend.Top, p.Legend.Left = true, len(first) == 0 || first[0].median < first[len(first)-1].median
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{0xdd}, color.Gray{0xdd}
	p.Add(grid)
	drawn := false
	for i, c := range curves {
		var line plotter.XYs
		var spread errorPoints
		for _, at := range c.points {
			if !(at.low > 0) || math.IsInf(at.high, 0) {
				continue // has no place on a logarithmic axis
			}
			line = append(line, plotter.XY{X: at.x, Y: at.median})
			spread.XYs = append(spread.XYs, plotter.XY{X: at.x, Y: at.median})
			spread.YErrors = append(spread.YErrors, struct{ Low, High float64 }{at.median - at.low, at.high - at.median})
		}
		if len(line) == 0 {
			continue
		}
		drawn = true
		lines, dots, err := plotter.NewLinePoints(line)
		if err != nil {
			return err
		}
		bars, err := plotter.NewYErrorBars(spread)
		if err != nil {
			return err
		}
		ink := plotutil.Color(i)
		if c.limit {
			ink = color.Gray{0x80}
		}
		lines.Color, dots.Color, bars.Color = ink, ink, ink
		dots.Shape, dots.Radius = draw.CircleGlyph{}, vg.Points(2)
		if i == 0 {
			lines.Width = vg.Points(2)
		}
		p.Add(bars, lines, dots)
		p.Legend.Add(c.name, lines, dots)
	}
	if !drawn {
		return fmt.Errorf("%s: nothing to draw", name)
	}
	return p.Save(18*vg.Centimeter, 12*vg.Centimeter, name)
}

func writePoints(name, x, y string, curves []curve) error {
	rows := [][]string{{"curve", x, y, "low", "high"}}
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }
	for _, c := range curves {
		for _, p := range c.points {
			rows = append(rows, []string{c.name, number(p.x), number(p.median), number(p.low), number(p.high)})
		}
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(csv.NewWriter(f).WriteAll(rows), f.Close())
}

type errorPoints struct {
	plotter.XYs
	plotter.YErrors
}
