//go:build !386 && !arm

package disks

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys"
	"github.com/seed080d9131/lifecycle/verification/disks/workload"
)

const (
	powerDiskBytes    = 24 << 20
	powerSegmentBytes = 128 << 10
	sectorBytes       = 512
	superblockEnd     = 4096
)

var powerShape = workload.Shape{Small: 200, Large: 30000}

// A recording is what a disk saw while hosts ran on it, one after another, and what they
// acknowledged meanwhile. Moments are numbers of records: an event at moment m came
// after the first m of them, and perhaps after more.
type recording struct {
	seed    uint64
	before  []byte // the content of the disk at the start
	records []record
	flushes []int // the moments after each of them

	lives    []int          // moments at which a life began
	acked    []acknowledged // in the order of their moments
	truncate []truncation
}

func newRecording(t *testing.T, seed uint64) *recording {
	t.Helper()
	return &recording{seed: seed, before: formatted(t, powerDiskBytes, "-N", "64", "-J", "size=4")}
}

// run runs hosts on the recording disk: so many lives with so many acknowledgements each,
// every one of which ends with an exit. Unsynced makes the log one that syncs nothing.
func (r *recording) run(t *testing.T, lives, acks int, unsynced bool) {
	t.Helper()
	d := newDisk(t, bytes.Clone(r.before))
	v := mountImage(t, d.path)
	db := newDatabase(t, filepath.Join(v.dir, "log"), r.shape(), powerSegmentBytes)
	db.judge, db.life = r.judge(0), uint32(len(r.lives))
	db.moment, db.truncate = d.now, true
	owed := make(map[uint64]bool)
	for _, a := range r.acked {
		owed[a.offset] = true
	}
	for range lives {
		r.lives = append(r.lives, d.now())
		require.NoError(t, db.open(&workload.Tap{FS: fsys.OS, Unsynced: unsynced}))
		moment := d.now()
		for offset, id := range db.judge.Known() { // an open log is durable as a whole
			if !owed[offset] {
				r.acked = append(r.acked, acknowledged{moment, offset, id})
				owed[offset] = true
			}
		}
		db.start(acks)
		db.await(db.reached)
		require.NoError(t, db.exit())
		r.acked = append(r.acked, db.acked...)
		for _, a := range db.acked {
			owed[a.offset] = true
		}
		r.truncate = append(r.truncate, db.truncations...)
	}
	v.unmount()
	d.mu.Lock()
	r.records = d.records
	d.mu.Unlock()
	for i, rec := range r.records {
		if rec.flush() {
			r.flushes = append(r.flushes, i+1)
		}
	}
	require.NotEmpty(t, r.flushes, "the loop device passes no flush on")
	slices.SortStableFunc(r.acked, func(a, b acknowledged) int { return a.moment - b.moment })
}

func (r *recording) shape() workload.Shape {
	shape := powerShape
	shape.Seed = r.seed
	return shape
}

// judge returns one that knows what was acknowledged before the cut.
func (r *recording) judge(cut int) *workload.Judge {
	j := &workload.Judge{Shape: r.shape(), Committers: databaseCommitters + 1}
	for life, moment := range r.lives {
		if moment <= cut {
			j.Begin(uint32(life))
		}
	}
	for _, truncation := range r.truncate {
		if truncation.moment <= cut {
			j.Truncating(truncation.before)
		}
	}
	for _, a := range r.acked {
		if a.moment <= cut {
			j.Acknowledge(a.offset, a.id)
		}
	}
	return j
}

// after returns a recording that begins with an image of this one's disk as a cut left it, and
// with all that is owed there.
func (r *recording) after(cut int, image []byte) *recording {
	next := &recording{seed: r.seed, before: image}
	for _, moment := range r.lives {
		if moment <= cut {
			next.lives = append(next.lives, 0)
		}
	}
	for _, was := range r.truncate {
		if was.moment <= cut {
			next.truncate = append(next.truncate, truncation{0, was.before})
		}
	}
	for _, a := range r.acked {
		if a.moment <= cut {
			next.acked = append(next.acked, acknowledged{0, a.offset, a.id})
		}
	}
	return next
}

// A survival decides what becomes of the writes after the last flush before the power failed.
type survival int

const (
	nothing      survival = iota // lost in the disk's cache
	everything                   // on the medium
	someWrites                   // any of them
	someSectors                  // any sectors of them
	tornSequence                 // the first ones, and a part of the next
	survivals
)

var survivalNames = []string{"nothing", "everything", "some writes", "some sectors", "a torn sequence"}

// image puts on content, which holds all that was flushed before the cut, what survives of the
// records after that.
func (s survival) image(content []byte, unflushed []record, rng *rand.Rand) {
	torn := rng.IntN(len(unflushed) + 1)
	for i, r := range unflushed {
		whole := s == everything || s == someWrites && rng.IntN(2) == 0 || s == tornSequence && i < torn
		bySector := s == someSectors || s == tornSequence && i == torn
		for p, n := 0, 0; p < len(r.data); p += n {
			// Ext4 takes for granted that its superblock is written whole: its checksum stands in
			// another sector than what changes.
			n = sectorBytes
			if at := r.off + int64(p); at < superblockEnd {
				n = int(superblockEnd - at)
			}
			if whole || bySector && rng.IntN(2) == 0 {
				copy(content[r.off+int64(p):], r.data[p:min(p+n, len(r.data))])
			}
		}
	}
}

// A bench makes images and looks at them.
type bench struct {
	t     *testing.T
	image string
	dir   string
}

func newBench(t *testing.T) *bench {
	return &bench{
		t:     t,
		image: filepath.Join(mountTmpfs(t, 4*powerDiskBytes), "image"),
		dir:   t.TempDir(),
	}
}

// judge mounts an image of the recorded disk, as the cut left it, opens the log and returns what is
// wrong. Everything counts: a file system that can't be mounted, a log that doesn't open, a lost
// transaction, a log that doesn't go on.
func (b *bench) judge(r *recording, content []byte, cut int) (findings []string, held int) {
	t := b.t
	t.Helper()
	require.NoError(t, os.WriteFile(b.image, content, 0o600))
	v := &volume{t: t, image: b.image, dir: b.dir}
	if err := v.tryMount(); err != nil { // replays the journal
		return []string{err.Error()}, 0
	}
	defer unmount(t, b.dir)

	j := r.judge(cut)
	log, err := commitlog.Open(filepath.Join(b.dir, "log"), commitlog.Options{SegmentBytes: powerSegmentBytes})
	if err != nil {
		return []string{err.Error()}, 0
	}
	defer log.Close()
	if findings := j.Check(log); len(findings) > 0 {
		return findings, j.Held
	}
	// And it goes on.
	held = j.Held
	life := uint32(len(r.lives))
	j.Begin(life)
	host := lifecycle.New(log, lifecycle.Options{})
	for i := range uint32(3) {
		id := workload.ID{Life: life, Serial: i}
		offset, err := host.Durability().Commit(t.Context(), j.Tx(id))
		if err != nil {
			return []string{err.Error()}, held
		}
		j.Acknowledge(offset, id)
	}
	if err := host.Exit(t.Context()); err != nil {
		return []string{err.Error()}, held
	}
	log, err = commitlog.Open(filepath.Join(b.dir, "log"), commitlog.Options{SegmentBytes: powerSegmentBytes})
	if err != nil {
		return []string{err.Error()}, held
	}
	findings = j.Check(log)
	return append(findings, errorText(log.Close())...), held
}

func errorText(err error) []string {
	if err == nil {
		return nil
	}
	return []string{err.Error()}
}

// cuts draws moments at which the power fails, in order.
func (r *recording) cuts(rng *rand.Rand, n int) []int {
	cuts := make([]int, n)
	for i := range cuts {
		cuts[i] = rng.IntN(len(r.records) + 1)
	}
	slices.Sort(cuts)
	return cuts
}

// apply does records[from:to] to content.
func (r *recording) apply(content []byte, from, to int) {
	for _, rec := range r.records[from:to] {
		copy(content[rec.off:], rec.data)
	}
}

// flushed returns the moment of the last flush at or before a moment; 0 if there is none.
func (r *recording) flushed(moment int) int {
	i, found := slices.BinarySearch(r.flushes, moment)
	switch {
	case found:
		return moment
	case i == 0:
		return 0
	default:
		return r.flushes[i-1]
	}
}

func TestNoPowerFailureLosesWhatWasAcknowledged(t *testing.T) {
	needs(t, "mount", "mkfs.ext4")
	rng, seed := random(t)
	r := newRecording(t, seed)
	r.run(t, 3, size(0, 300, 1500), false)

	n := size(*images, 5, 120)
	b := newBench(t)
	content, upTo := bytes.Clone(r.before), 0
	twice, owed, held, unflushed := 0, 0, 0, 0
	for i, cut := range r.cuts(rng, n) {
		last := r.flushed(cut)
		r.apply(content, upTo, last)
		upTo = last
		s := survival(i) % survivals
		image := bytes.Clone(content)
		s.image(image, r.records[last:cut], rng)
		what := fmt.Sprintf("image %d: cut after %d records of %d, %d of them after the last flush, of which survived: %s",
			i, cut, len(r.records), cut-last, survivalNames[s])
		findings, h := b.judge(r, image, cut)
		require.Empty(t, findings, what)
		held += h
		unflushed += cut - last
		for _, a := range r.acked {
			if a.moment <= cut {
				owed++
			}
		}
		if i%4 != 0 {
			continue
		}
		// The power comes back, the log is opened and goes on, and the power fails again: perhaps
		// while the journal is replayed, perhaps while the log recovers.
		t.Run(fmt.Sprintf("again after image %d", i), func(t *testing.T) {
			again := r.after(cut, image)
			again.run(t, 1, 20, false)
			second := rng.IntN(len(again.records) + 1)
			last := again.flushed(second)
			image := bytes.Clone(image)
			again.apply(image, 0, last)
			s := survival(rng.IntN(int(survivals)))
			s.image(image, again.records[last:second], rng)
			findings, _ := b.judge(again, image, second)
			require.Empty(t, findings, "%s; then cut after %d records of %d, %d of them after the last flush, of which survived: %s",
				what, second, len(again.records), second-last, survivalNames[s])
			twice++
		})
	}
	if t.Failed() {
		return
	}
	t.Logf("counts: images %d, and %d after a second failure; recorded writes %d, flushes %d, acknowledgements %d, truncations %d; transactions owed at the cuts %d, held %d, writes not flushed at the cuts %d",
		n, twice, len(r.records)-len(r.flushes), len(r.flushes), len(r.acked), len(r.truncate), owed, held, unflushed)
}

// The controls: images of a disk that lied, and of a log that syncs nothing.
func TestImagesShowWhatADiskOrALogDidNotSync(t *testing.T) {
	needs(t, "mount", "mkfs.ext4")
	rng, seed := random(t)
	n := size(0, 12, 40)
	r := newRecording(t, seed)
	r.run(t, 1, 200, false)
	b := newBench(t)

	// found counts the images in which something is wrong. They are cut right after an
	// acknowledgement, so that something is owed, and made of what was flushed.
	found := func(r *recording, image func(content []byte, flushed int)) (bad int) {
		for range n {
			cut := r.acked[rng.IntN(len(r.acked))].moment
			content := bytes.Clone(r.before)
			image(content, r.flushed(cut))
			if findings, _ := b.judge(r, content, cut); len(findings) > 0 {
				bad++
			}
		}
		return bad
	}
	ignored := found(r, func(content []byte, flushed int) {
		r.apply(content, 0, r.flushed(flushed-1))
	})
	dropped := found(r, func(content []byte, flushed int) {
		one := rng.IntN(flushed)
		r.apply(content, 0, one)
		r.apply(content, one+1, flushed)
	})
	lazy := newRecording(t, seed)
	lazy.run(t, 1, 200, true)
	unsynced := found(lazy, func(content []byte, flushed int) {
		lazy.apply(content, 0, flushed)
	})
	t.Logf("counts: found in images of a disk that ignored its last flush %d of %d, of one that lost a write before it %d of %d, of a log without syncs %d of %d",
		ignored, n, dropped, n, unsynced, n)
	require.Positive(t, ignored)
	require.Positive(t, dropped)
	require.Positive(t, unsynced)
}
