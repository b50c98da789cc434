package lifecycleprom

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
)

func TestAHistogramIsWhatPrometheusOwnWouldBe(t *testing.T) {
	desc := prometheus.NewDesc("a", "a", nil, nil)
	random := rand.New(rand.NewPCG(1, 2))
	values := map[string]func() float64{
		"nothing":        nil,
		"zero":           func() float64 { return 0 },
		"durations":      func() float64 { return time.Duration(random.ExpFloat64() * float64(3*time.Millisecond)).Seconds() },
		"anything":       func() float64 { return time.Duration(random.Int64N(math.MaxInt64) >> random.IntN(63)).Seconds() },
		"whole numbers":  func() float64 { return float64(random.Int64N(math.MaxInt64) >> random.IntN(63)) },
		"classic bounds": func() float64 { return latencyBuckets[random.IntN(len(latencyBuckets))] },
		"powers of two":  func() float64 { return math.Ldexp(1, random.IntN(100)-50) },
		"native bounds":  func() float64 { return math.Ldexp(nativeBounds[random.IntN(len(nativeBounds))], random.IntN(60)-30) },
		"the next larger": func() float64 {
			return math.Nextafter(math.Ldexp(nativeBounds[random.IntN(len(nativeBounds))], 3), 100)
		},
	}
	for name, next := range values {
		t.Run(name, func(t *testing.T) {
			ours := newHistogram(latencyBuckets)
			theirs := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "a", Help: "a", Buckets: latencyBuckets, NativeHistogramBucketFactor: 1.1})
			for range 2000 {
				if next != nil {
					value := next()
					ours.observe(value)
					theirs.Observe(value)
				}
			}
			var got, want dto.Metric
			require.NoError(t, ours.metric(desc, time.Now()).Write(&got))
			require.NoError(t, theirs.Write(&want))
			got.Histogram.CreatedTimestamp, want.Histogram.CreatedTimestamp = nil, nil
			require.Equal(t, want.Histogram.String(), got.Histogram.String())
		})
	}
}
