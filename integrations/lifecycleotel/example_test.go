package lifecycleotel_test

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/lifecycleotel"
)

// The order at the end of a server: the exit, the telemetry's end, the export.
func Example() {
	exporter := tracetest.NewInMemoryExporter() // in a server: otlptracehttp.New, say
	traces := trace.NewTracerProvider(trace.WithBatcher(exporter))
	telemetry, err := lifecycleotel.New(lifecycleotel.Options{TracerProvider: traces})
	if err != nil {
		panic(err)
	}
	host := telemetry.NewHost(nil, lifecycle.Options{Name: "orders"})
	if err := host.OnExit(lifecycle.PhaseCheckpoint, "snapshot", func(context.Context) error { return nil }); err != nil {
		panic(err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	cancel() // in a server: SIGTERM ends Run's wait
	err = lifecycle.Run(ctx, host, lifecycle.RunOptions{})
	fmt.Println("exited:", err)

	flush, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := telemetry.Shutdown(flush); err != nil { // ends the last spans
		panic(err)
	}
	if err := traces.ForceFlush(flush); err != nil { // in a server: traces.Shutdown(flush)
		panic(err)
	}
	for _, span := range exporter.GetSpans() {
		fmt.Println(span.Name)
	}
	// Output:
	// exited: <nil>
	// exit module
	// cancel tasks
	// await tasks
	// hook snapshot
	// checkpoint
	// close durability
	// close log
	// release
	// exit
}

// The handler that exits one of many databases: the trace of the exit is linked to that
// of the request.
func ExampleTelemetry_LinkExit() {
	var telemetry *lifecycleotel.Telemetry // from New
	var databases *lifecycle.Controller[string]

	http.HandleFunc("POST /db/{name}/exit", func(w http.ResponseWriter, r *http.Request) { // behind otelhttp
		name := r.PathValue("name")
		if host, err := databases.Host(name); err == nil {
			_ = telemetry.LinkExit(r.Context(), host)
		}
		if err := databases.ExitHost(r.Context(), name); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}
