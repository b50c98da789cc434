package lifecycleprom

import (
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// histogram has classic buckets and native ones. prometheus.Histogram allocates for
// each observation of less than a second in a native bucket, and this runs on the
// durability actor, so the counting is done here. What is made of the counts, the
// client's library does.
type histogram struct {
	bounds []float64
	counts []uint64 // by bound; above the last only in count
	native map[int]int64
	zero   uint64
	count  uint64
	sum    float64
}

func newHistogram(bounds []float64) histogram {
	return histogram{bounds: bounds, counts: make([]uint64, len(bounds)), native: map[int]int64{}}
}

// The native buckets' schema: each is wider than the one before by a factor of
// 2^(1/8), or 9 %. It is what a factor of 1.1 makes prometheus.Histogram choose.
const schema = 3

// nativeBounds are those in [0.5, 1), 2^(i/8)/2, rounded as Prometheus rounds them.
var nativeBounds = []float64{
	0.5, 0.5452538663326288, 0.5946035575013605, 0.6484197773255048,
	0.7071067811865475, 0.7711054127039704, 0.8408964152537144, 0.9170040432046711,
}

// observe counts a value that is not negative.
func (h *histogram) observe(value float64) {
	h.count++
	h.sum += value
	if i, _ := slices.BinarySearch(h.bounds, value); i < len(h.counts) {
		h.counts[i]++
	}
	if value <= prometheus.DefNativeHistogramZeroThreshold {
		h.zero++
		return
	}
	fraction, exponent := math.Frexp(value) // in [0.5, 1)
	i, _ := slices.BinarySearch(nativeBounds, fraction)
	h.native[i+(exponent-1)*len(nativeBounds)]++
}

func (h *histogram) metric(desc *prometheus.Desc, made time.Time, labels ...string) prometheus.Metric {
	m, err := prometheus.NewConstNativeHistogram(desc, h.count, h.sum, h.native, nil, h.zero,
		schema, prometheus.DefNativeHistogramZeroThreshold, made, labels...)
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	buckets, cumulative, below := make([]dto.Bucket, len(h.bounds)), make([]uint64, len(h.bounds)), uint64(0)
	classic := make([]*dto.Bucket, len(h.bounds))
	for i, count := range h.counts {
		below += count
		cumulative[i] = below
		buckets[i].UpperBound, buckets[i].CumulativeCount = &h.bounds[i], &cumulative[i]
		classic[i] = &buckets[i]
	}
	return withClassic{m, classic}
}

// withClassic is a native histogram with classic buckets too.
type withClassic struct {
	prometheus.Metric
	buckets []*dto.Bucket
}

func (m withClassic) Write(out *dto.Metric) error {
	if err := m.Metric.Write(out); err != nil {
		return err
	}
	out.Histogram.Bucket = m.buckets
	return nil
}
