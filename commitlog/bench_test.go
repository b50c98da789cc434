package commitlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/internal/fsys"
)

// batchOf returns a batch of n records of the given size, as AppendBatch takes it.
func batchOf(n, size int) []byte {
	batch := make([]byte, frameHeaderBytes, frameHeaderBytes+n*(recordHeader+size))
	for i := range n {
		batch = binary.LittleEndian.AppendUint32(batch, uint32(size))
		for j := range size {
			batch = append(batch, byte(i+j))
		}
	}
	return batch
}

// One committer: a batch of one record and a sync, in turns with the bare write and fdatasync of as many
// bytes into a file of zeros.
func BenchmarkAppendBatchSync(b *testing.B) {
	for _, size := range []int{128, 1024} {
		batch := batchOf(1, size)
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			l, err := Open(b.TempDir(), Options{})
			require.NoError(b, err)
			// Begin in a segment of full size, as a log does that has been in use.
			fill := batchOf(1, 30<<10)
			for l.active.capacity < DefaultSegmentBytes {
				require.NoError(b, l.AppendBatch(fill, 1))
				require.NoError(b, l.Sync())
				l.waitPrepared()
			}
			require.True(b, l.active.recyclable(), "zeros, not a growing file")
			file, err := fsys.OS.Create(filepath.Join(b.TempDir(), "bare"))
			require.NoError(b, err)
			for p := int64(0); p < DefaultSegmentBytes; p += zeroBytes {
				_, err := file.WriteAt(zeros[:], p)
				require.NoError(b, err)
			}
			require.NoError(b, file.Sync())
			var bare, log time.Duration
			var ratios []float64
			p := int64(0)
			b.ReportAllocs()
			for n := 0; n < b.N; n += 100 {
				start := time.Now()
				for range 100 {
					if _, err := file.WriteAt(batch, p); err != nil {
						b.Fatal(err)
					}
					if err := file.Sync(); err != nil {
						b.Fatal(err)
					}
					p = (p + align(int64(len(batch)))) % (DefaultSegmentBytes - 4096)
				}
				middle := time.Now()
				for range 100 {
					if err := l.AppendBatch(batch, 1); err != nil {
						b.Fatal(err)
					}
					if err := l.Sync(); err != nil {
						b.Fatal(err)
					}
				}
				bare += middle.Sub(start)
				log += time.Since(middle)
				ratios = append(ratios, middle.Sub(start).Seconds()/time.Since(middle).Seconds())
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "of-bare")
			b.ReportMetric(float64(log.Nanoseconds())/float64(b.N), "ns/commit")
			b.ReportMetric(float64(bare.Nanoseconds())/float64(b.N), "ns/bare")
			b.StopTimer()
			require.NoError(b, l.Close())
			require.NoError(b, file.Close())
		})
	}
}

// A burst of 2,000,000 records of 128 bytes, then a close, in pairs with the raw write and sync of the same
// batches into a file that grows.
func BenchmarkAppend(b *testing.B) {
	const records, size = 2_000_000, 128
	perBatch := (1 << 20) / (size + recordHeader)
	for _, n := range []int{perBatch, 8 * perBatch, records / 2} {
		batch := batchOf(n, size)
		b.Run(fmt.Sprintf("%dKiB", len(batch)>>10), func(b *testing.B) {
			var ratios []float64
			for range b.N {
				dir := b.TempDir()
				file, err := fsys.OS.Create(filepath.Join(dir, "raw"))
				require.NoError(b, err)
				start := time.Now()
				for i := 0; i < records; i += n {
					if _, err := file.WriteAt(batch, int64(i/n)*int64(len(batch))); err != nil {
						b.Fatal(err)
					}
				}
				require.NoError(b, file.Sync())
				raw := time.Since(start)
				file.Close()
				os.RemoveAll(dir)

				dir = b.TempDir()
				l, err := Open(dir, Options{})
				require.NoError(b, err)
				start = time.Now()
				for i := 0; i < records; i += n {
					if err := l.AppendBatch(batch, n); err != nil {
						b.Fatal(err)
					}
				}
				require.NoError(b, l.Close())
				ratios = append(ratios, raw.Seconds()/time.Since(start).Seconds())
				os.RemoveAll(dir)
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "of-raw")
		})
	}
}

// Opening 1 GiB of records of 128 bytes, in frames of one record and of 1,000, beside reading the same
// files with CRC32C and nothing else.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) { benchmarkOpen(b, n) })
	}
}

func benchmarkOpen(b *testing.B, n int) {
	dir := b.TempDir()
	l, err := Open(dir, Options{})
	require.NoError(b, err)
	batch := batchOf(n, 128)
	for written := 0; written < 1<<30; written += len(batch) {
		if err := l.AppendBatch(batch, n); err != nil {
			b.Fatal(err)
		}
	}
	require.NoError(b, l.Close())
	b.Run("log", func(b *testing.B) {
		b.SetBytes(1 << 30)
		for b.Loop() {
			l, err := Open(dir, Options{})
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			require.NoError(b, l.Close())
			b.StartTimer()
		}
	})
	b.Run("raw", func(b *testing.B) {
		names, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
		require.NoError(b, err)
		buffer := make([]byte, 1<<20)
		b.SetBytes(1 << 30)
		for b.Loop() {
			sum := uint32(0)
			for _, name := range names {
				file, err := os.Open(name)
				require.NoError(b, err)
				for {
					n, err := file.Read(buffer)
					sum = crc32.Update(sum, castagnoli, buffer[:n])
					if err == io.EOF {
						break
					}
				}
				file.Close()
			}
		}
	})
}
