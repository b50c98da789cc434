// The status page in a real browser: a headless Chromium opens it, and watches an
// exit that is stuck.
//
//	go test ./...                       # needs Debian's package chromium, or skips
//	SCREENSHOTS=shots go test -trimpath ./...  # keeps the pictures there
package browser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/lifecyclehttp"
)

// browser is a Chromium with one tab, and all that the tab asked for and
// complained of.
type browser struct {
	ctx context.Context

	mu         sync.Mutex
	requests   []string
	complaints []string
}

func open(t *testing.T) *browser {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("skipped: no chromium on this machine (Debian: apt-get install chromium)")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, // for root, in a container
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("no-first-run", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("hide-scrollbars", true),
	)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(func() { _ = chromedp.Cancel(ctx); cancel() }) // Cancel waits for the process, whose directory goes next

	b := &browser{ctx: ctx}
	require.NoError(t, chromedp.Listen(ctx, func(event any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			b.requests = append(b.requests, e.Request.URL)
		case *log.EventEntryAdded:
			b.complaints = append(b.complaints, fmt.Sprintf("%s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL))
		case *runtime.EventConsoleAPICalled:
			b.complaints = append(b.complaints, fmt.Sprintf("console.%s", e.Type))
		case *runtime.EventExceptionThrown:
			b.complaints = append(b.complaints, "thrown: "+e.ExceptionDetails.Text)
		}
	}))
	send(t, b, network.Enable, network.EnableParams{})
	send(t, b, log.Enable, cdp.Empty{})
	send(t, b, runtime.Enable, cdp.Empty{})
	return b
}

// send sends a command of the DevTools protocol.
func send[P, R any](t *testing.T, b *browser, command cdp.Command[P, R], params P) {
	t.Helper()
	_, err := chromedp.Call(b.ctx, command, params)
	require.NoError(t, err)
}

func (b *browser) navigate(t *testing.T, address string) {
	t.Helper()
	require.NoError(t, chromedp.Do(b.ctx, chromedp.Navigate(address)))
}

func (b *browser) screen(t *testing.T, width, height int64, scale float64) {
	t.Helper()
	send(t, b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: scale, Mobile: width < 600,
	})
}

// eval returns what a JavaScript expression comes to.
func eval[T any](t *testing.T, b *browser, expression string) T {
	t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	require.NoError(t, err)
	return value
}

const pageText = "document.body.innerText"

// shows waits until the page, by its own refresh, holds all of these.
func (b *browser) shows(t *testing.T, texts ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		text, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](pageText))
		require.NoError(c, err)
		for _, want := range texts {
			require.Contains(c, text, want)
		}
	}, 15*time.Second, 50*time.Millisecond)
}

// fits checks that the page is not wider than the screen.
func (b *browser) fits(t *testing.T, width int64) {
	t.Helper()
	widths := eval[[]float64](t, b, "[document.scrollingElement.scrollWidth, innerWidth]")
	require.EqualValues(t, width, widths[1])
	require.LessOrEqual(t, widths[0], widths[1])
}

// picture shows the page on a wide and a narrow screen, light and dark, checks
// that it fits, and keeps a picture of the whole page.
func (b *browser) picture(t *testing.T, name string) {
	t.Helper()
	for _, width := range []int64{1280, 390} {
		for _, scheme := range []string{"light", "dark"} {
			b.screen(t, width, 844, 2)
			send(t, b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			b.fits(t, width)
			b.save(t, fmt.Sprintf("%s-%d-%s.png", name, width, scheme), chromedp.FullScreenshot(100))
		}
	}
	send(t, b, emulation.ClearDeviceMetricsOverride, cdp.Empty{})
}

// save takes a picture and says where it is: in SCREENSHOTS, or in a directory
// that goes with the test.
func (b *browser) save(t *testing.T, name string, picture chromedp.Action[[]byte]) {
	t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		dir = t.TempDir()
	}
	require.NoError(t, os.MkdirAll(dir, 0o755))
	png, err := chromedp.Run(b.ctx, picture)
	require.NoError(t, err)
	file := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(file, png, 0o644))
	t.Log(file)
}

// isQuiet checks that the tab asked for nothing but the page, and complained of
// nothing.
func (b *browser) isQuiet(t *testing.T, pages ...string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.complaints)
	require.NotEmpty(t, b.requests)
	for _, request := range b.requests {
		if !strings.HasPrefix(request, "data:") {
			require.Contains(t, pages, request)
		}
	}
}

// serve mounts the page on loopback.
func serve(t *testing.T, src lifecyclehttp.Source) (address string, stop func()) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/debug/lifecycle", lifecyclehttp.Status(src))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL + "/debug/lifecycle", server.Close
}

// cleanUpViews is the task that does not obey: its frame must be on the page.
func cleanUpViews(release <-chan struct{}) error {
	<-release
	return nil
}

func waits(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// orders is a host with work: tasks, calls, and a queue.
func orders(t *testing.T, release <-chan struct{}, opts lifecycle.Options) *lifecycle.Host {
	t.Helper()
	host := lifecycle.New(nil, opts)
	t.Cleanup(func() { _ = host.ForceExit(context.Background()) })
	require.NoError(t, host.Go("view cleanup", func(context.Context) error { return cleanUpViews(release) }))
	require.NoError(t, host.Go("view cleanup", func(context.Context) error { return cleanUpViews(release) }))
	require.NoError(t, host.Go("replication", waits))
	require.NoError(t, host.Every("checkpoint", 40*time.Minute, waits))
	ticks, failedTwice := 0, make(chan struct{})
	require.NoError(t, host.Every("metrics", 20*time.Millisecond, func(context.Context) error {
		if ticks++; ticks == 3 {
			close(failedTwice)
		}
		if ticks > 2 {
			return nil
		}
		return errors.New("push: gateway answered 502 Bad Gateway")
	}))
	<-failedTwice
	for range 1234 {
		_, err := host.Durability().Append(t.Context(), []byte("a transaction"))
		require.NoError(t, err)
	}
	require.NoError(t, host.OnExit(lifecycle.PhaseExitModule, "http server", func(context.Context) error { return nil }))
	require.NoError(t, host.OnExit(lifecycle.PhaseExitModule, "leave the ring", func(context.Context) error {
		return errors.New("peer 10.0.4.17:7946: connection refused")
	}))
	return host
}

func TestThePageFollowsAnExitThatIsStuckAndNamesTheTaskAndItsFrame(t *testing.T) {
	b := open(t)
	release := make(chan struct{})
	host := orders(t, release, lifecycle.Options{Name: "orders", Logger: slog.New(slog.DiscardHandler)})
	address, stop := serve(t, host)
	call, err := host.Enter()
	require.NoError(t, err)

	b.navigate(t, address)
	b.shows(t, "orders", "running", "view cleanup", "1,234")
	require.NotContains(t, eval[string](t, b, pageText), "cleanUpViews")
	b.picture(t, "running")

	host.Fail(errors.New("the disk under /var/lib/orders is going: SMART says so"))
	b.shows(t, "exiting", "exit module for", "Waiting for 1 call", "in flight")
	call.Leave()
	b.shows(t, "await tasks for", "Waiting for 2 tasks", "view cleanup", "cleanUpViews", "SMART")
	require.Equal(t, "await tasks", eval[string](t, b, `document.querySelector("[aria-current=step] .name").textContent`))
	require.Equal(t, "orders: await tasks", eval[string](t, b, "document.title"))
	b.picture(t, "stuck")

	// What the reader did survives the refresh.
	b.screen(t, 390, 400, 1)
	eval[bool](t, b, `(() => {
		document.querySelector("details").open = false;
		document.querySelector("details summary").focus();
		scrollTo(0, 500);
		document.querySelector("main").dataset.old = "yes";
		return true;
	})()`)
	at := eval[float64](t, b, "scrollY")
	require.Positive(t, at)
	require.Eventually(t, func() bool { return eval[bool](t, b, `!document.querySelector("main").dataset.old`) }, 15*time.Second, 50*time.Millisecond)
	require.False(t, eval[bool](t, b, `document.querySelector("details").open`))
	require.True(t, eval[bool](t, b, `document.activeElement === document.querySelector("details summary")`))
	require.Equal(t, at, eval[float64](t, b, "scrollY"))
	// Selected text is left in place, for copying.
	eval[bool](t, b, `getSelection().selectAllChildren(document.querySelector("h1")), document.querySelector("main").dataset.old = "yes", true`)
	b.awaitRequests(t, 2)
	require.True(t, eval[bool](t, b, `!!document.querySelector("main").dataset.old`))
	eval[bool](t, b, `getSelection().removeAllRanges(), true`)
	send(t, b, emulation.ClearDeviceMetricsOverride, cdp.Empty{})

	close(release)
	require.Error(t, host.Exit(t.Context()))
	b.shows(t, "failed", "Exited in")
	b.picture(t, "failed")
	b.isQuiet(t, address)

	// When the process is gone, the page says so and keeps the last that it heard.
	stop()
	b.shows(t, "No answer since", "failed")
	b.picture(t, "gone")
}

// awaitRequests waits until the tab has sent n more.
func (b *browser) awaitRequests(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.requests)
	}
	until := count() + n
	require.Eventually(t, func() bool { return count() >= until }, 15*time.Second, 20*time.Millisecond)
}

func TestThePageShowsWhomAForcedExitLeftBehind(t *testing.T) {
	b := open(t)
	release := make(chan struct{})
	defer close(release)
	host := orders(t, release, lifecycle.Options{Name: "orders"})
	require.NoError(t, host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(context.Context) error { return nil }))
	address, _ := serve(t, host)
	require.ErrorIs(t, host.ForceExit(t.Context()), lifecycle.ErrForced)
	b.navigate(t, address)
	b.shows(t, "forced", "Left behind", "view cleanup", "cleanUpViews", "skipped")
	b.picture(t, "forced")
	b.isQuiet(t, address)
}

func TestOfTenThousandHostsThePageShowsThoseFirstThatNeedALook(t *testing.T) {
	b := open(t)
	release := make(chan struct{})
	controller := lifecycle.NewController[int](lifecycle.ControllerOptions{})
	for i := range 10_000 {
		host, err := controller.Launch(t.Context(), i, func(context.Context) (*lifecycle.Host, error) {
			return lifecycle.New(nil, lifecycle.Options{Name: fmt.Sprintf("tenant-%05d", i)}), nil
		})
		require.NoError(t, err)
		if i%4000 == 77 {
			require.NoError(t, host.Go("view cleanup", func(context.Context) error { return cleanUpViews(release) }))
			host.Fail(errors.New("told to leave"))
		}
	}
	address, _ := serve(t, controller)
	b.screen(t, 1280, 844, 1)
	b.navigate(t, address)
	b.shows(t, "10,000 hosts", "3 exiting", "9,997 running", "cleanUpViews", "tenant-00077", "tenant-08077")
	require.Equal(t, "tenant-00077", eval[string](t, b, `document.querySelector("article h2").textContent`))
	require.Equal(t, 100, eval[int](t, b, `document.querySelectorAll("article").length`))
	for _, width := range []int64{1280, 390} {
		b.screen(t, width, 844, 1)
		b.fits(t, width)
		b.save(t, fmt.Sprintf("many-%d.png", width), chromedp.CaptureScreenshot())
	}
	eval[bool](t, b, `document.querySelector(".others a").click(), true`)
	b.shows(t, "tenant-00098", "9,997 running")
	require.Equal(t, 1, eval[int](t, b, `document.querySelectorAll("article").length`))
	b.navigate(t, address+"?find=08077")
	b.shows(t, "tenant-08077", "exiting")
	require.Equal(t, 1, eval[int](t, b, `document.querySelectorAll("article").length`))
	b.isQuiet(t, address, address+"?find=08077", address+"?host=tenant-00098")
	close(release)
	_ = controller.Exit(t.Context())
}

func TestHostileNamesAreTextAndDoNotWidenThePage(t *testing.T) {
	b := open(t)
	hostile := `"><script>document.title='taken'</script><img src=x onerror=alert(1)>` + "\nnew line '" + strings.Repeat("W", 10<<10)
	release := make(chan struct{})
	host := lifecycle.New(nil, lifecycle.Options{Name: hostile})
	require.NoError(t, host.Go(hostile, func(context.Context) error { return cleanUpViews(release) }))
	require.NoError(t, host.OnExit(lifecycle.PhaseExitModule, hostile, func(context.Context) error { return errors.New(hostile) }))
	host.Fail(errors.New(hostile))
	address, _ := serve(t, host)
	b.navigate(t, address)
	b.shows(t, "<script>", "cleanUpViews", "10,3")
	require.Equal(t, 0, eval[int](t, b, `document.querySelectorAll("img, main script").length`))
	require.NotEqual(t, "taken", eval[string](t, b, `document.title`))
	b.picture(t, "hostile")
	alone := address + "?host=" + url.QueryEscape(hostile)
	b.navigate(t, alone)
	b.shows(t, "cleanUpViews")
	b.isQuiet(t, address, alone)
	close(release)
	_ = host.Exit(t.Context())
}
