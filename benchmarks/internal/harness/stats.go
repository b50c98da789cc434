package harness

import (
	"math"
	"slices"
)

// Median is the middle of the values, the mean of the middle two where their number is even, and
// NaN where there are none.
func Median(values []float64) float64 {
	return Quantile(values, 0.5)
}

// Quantile is the value below which the share q of the values lies, 0 ≤ q ≤ 1, interpolated linearly between
// neighbours; NaN where there are none. It leaves values as they are.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	below := int(math.Floor(at))
	if below+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

// Ratio is what the paired quotients of two columns of samples come to.
type Ratio struct {
	Median, Low, High float64 // Low and High are the smallest and the largest of the quotients
	Pairs             int
}

// Paired divides ours by theirs, round by round: what the machine's mood does to a round it does to both of its
// measures, so the quotients move less than either. A round that one of them lacks is left out.
func Paired(ours, theirs []float64) Ratio {
	var quotients []float64
	for i := range min(len(ours), len(theirs)) {
		if q := ours[i] / theirs[i]; !math.IsNaN(q) && !math.IsInf(q, 0) {
			quotients = append(quotients, q)
		}
	}
	if len(quotients) == 0 {
		return Ratio{Median: math.NaN(), Low: math.NaN(), High: math.NaN()}
	}
	return Ratio{Median: Median(quotients), Low: slices.Min(quotients), High: slices.Max(quotients), Pairs: len(quotients)}
}
