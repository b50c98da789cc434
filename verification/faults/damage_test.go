package faults

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed080d9131/lifecycle/commitlog"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
)

// directory is the segment files of a log that was closed in order, and what it holds.
type directory struct {
	files map[string][]byte
	first uint64
	txs   []string
}

func (d directory) paths() []string { return slices.Sorted(maps.Keys(d.files)) }

// open opens a log whose files are these, in a file system without faults.
func open(files map[string][]byte) (*faultfs.FS, *commitlog.Log, error) {
	fs := faultfs.New()
	if err := errors.Join(fs.Mkdir(filepath.Dir(dir)), fs.Mkdir(dir)); err != nil {
		return nil, nil, err
	}
	for path, data := range files {
		fs.WriteFile(path, data)
	}
	l, err := commitlog.Open(dir, options(fs))
	return fs, l, err
}

// generations is one log at four clean closes, one after another. Each life but the first goes on in the segment in which
// the one before ended, and ends in a later one or further on in the same.
func generations(t *testing.T) (all []directory) {
	fs, h := faultfs.New(), &history{}
	for _, sizes := range [][]int{
		{30, 700, 0, 90}, {1200, 40, 900, 1700, 600}, {1100, 20, 640, 1500, 330}, {80, 10, 900, 7},
	} {
		l, err := reopen(fs, h)
		require.NoError(t, err)
		for i, size := range sizes {
			if i%2 == 0 {
				require.NoError(t, h.append(l, size))
			} else {
				require.NoError(t, h.append(l, size, i))
			}
			require.NoError(t, h.sync(l))
		}
		require.NoError(t, h.close(l))
		fs.PowerFail(faultfs.KeepNone) // what tells of the end must have been synced too
		d := directory{files: map[string][]byte{}, txs: slices.Clone(h.txs)}
		for _, path := range segmentPaths(fs) {
			d.files[path], err = fs.ReadFile(path)
			require.NoError(t, err)
		}
		all = append(all, d)
	}
	require.Len(t, all[0].files, 1)
	require.GreaterOrEqual(t, len(all[3].files), 3)
	require.Equal(t, all[2].paths(), all[3].paths(), "the last life stays in one segment")
	return all
}

// damage counts what became of files that were changed from outside.
type damage struct {
	tried, found, harmless, older, unproven int
}

func (d *damage) String() string {
	return fmt.Sprintf("changes %d, found as damage %d, harmless %d, as good as an older copy %d, every proof gone too %d",
		d.tried, d.found, d.harmless, d.older, d.unproven)
}

// proofLeft reports whether changed files still hold a frame header, untouched and in its place, that was written
// after the offset had been synced: a mark or a batch, in the last segment, in which alone a log may end early.
func proofLeft(want, files map[string][]byte, offset uint64) bool {
	if len(files) == 0 {
		return false
	}
	last := slices.Max(slices.Collect(maps.Keys(files)))
	_, chain, err := frames(want[last])
	for _, f := range chain {
		whole := int64(len(files[last])) >= f.position+frameHeader &&
			bytes.Equal(files[last][f.position:][:frameHeader], want[last][f.position:][:frameHeader])
		if err == nil && whole && f.first >= offset && f.synced > offset {
			return true
		}
	}
	return false
}

// try opens a log from changed files. It must find the damage, or hold what it did before. Two things are excused
// because nothing on the medium contradicts them: that the last transactions are gone with every proof that they ever
// were; and, where older says that the files are an older copy of the whole directory or the like, that it holds what
// that held. Then it must live on.
func (d *damage) try(want directory, files map[string][]byte, older func() []directory) error {
	d.tried++
	fs, l, err := open(files)
	if err != nil {
		if !isDamage(err) {
			return err
		}
		d.found++
		return nil
	}
	first, txs, err := contents(l)
	if err != nil {
		return fmt.Errorf("opened without a word, and reading says: %w", err)
	}
	switch {
	case first == want.first && slices.Equal(txs, want.txs):
		d.harmless++
	case older != nil && slices.ContainsFunc(older(), func(o directory) bool { return first == o.first && slices.Equal(txs, o.txs) }):
		d.older++
	case first == want.first && len(txs) < len(want.txs) && slices.Equal(txs, want.txs[:len(txs)]) && !proofLeft(want.files, files, l.Next()):
		d.unproven++
	default:
		return fmt.Errorf("silently %d transactions from %d on, instead of %d from %d on", len(txs), first, len(want.txs), want.first)
	}
	h := &history{txs: append(make([]string, first), txs...), acknowledged: l.Next(), truncated: first, count: 1000}
	if err := errors.Join(h.append(l, 90), h.sync(l), h.close(l)); err != nil {
		return fmt.Errorf("harmless, but then: %w", err)
	}
	if l, err = reopen(fs, h); err != nil {
		return fmt.Errorf("harmless, but after a life in order: %w", err)
	}
	return l.Close()
}

// with is files with another content of one.
func with(files map[string][]byte, path string, data []byte) map[string][]byte {
	files = maps.Clone(files)
	files[path] = data
	return files
}

// After a clean close every byte of the log matters or doesn't: a changed one is found, or changes nothing.
// (commitlog's own test flips one bit of each; with -ci this one flips each, and all eight.)
func TestAChangedByteIsFoundOrHarmless(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		want := generations(t)[3]
		masks := []byte{0xff}
		if *ci {
			masks = []byte{0xff, 1, 2, 4, 8, 16, 32, 64, 128}
		}
		var d damage
		for _, path := range want.paths() {
			data := bytes.Clone(want.files[path])
			for i := range data {
				if !*ci && (i%16 != 0 && i > 200 && i < segmentHeader-16 || i%2 != 0 && path != want.paths()[1]) {
					continue // of the header most is zeros, under one sum
				}
				for _, mask := range masks {
					data[i] ^= mask
					require.NoError(t, d.try(want, with(want.files, path, data), nil), "byte %d of %s with %#x", i, path, mask)
					data[i] ^= mask
				}
			}
		}
		require.Zero(t, d.unproven, "one byte is never all the proof there is")
		t.Logf("counts: %v", &d)
	})
}

// A file that was cut at any length, and one that got longer.
func TestAFileOfAnotherLengthIsFoundOrHarmless(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		want := generations(t)[3]
		var d damage
		for _, path := range want.paths() {
			data := want.files[path]
			for n := range data {
				if *ci || n%7 == 0 {
					require.NoError(t, d.try(want, with(want.files, path, data[:n]), nil), "%s cut to %d bytes", path, n)
				}
			}
			require.Zero(t, d.harmless, "a file is never shorter than it was made")
		}
		for _, path := range want.paths() {
			data := want.files[path]
			for name, more := range map[string][]byte{
				"a zero": {0}, "zeros": make([]byte, 5000), "itself": data, "its frames": data[segmentHeader:],
				"the first file": want.files[want.paths()[0]],
			} {
				require.NoError(t, d.try(want, with(want.files, path, append(bytes.Clone(data), more...)), nil), "%s and %s behind it", path, name)
			}
		}
		t.Logf("counts: %v", &d)
	})
}

// Every choice of a content for each segment file: its own, another segment's, its own at an earlier close, none, or
// gone.
func TestSegmentsSwappedCopiedLostAndOutdatedAreFound(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		all := generations(t)
		want := all[3]
		paths := want.paths()
		var contents [][]byte // to choose from
		for _, d := range all {
			for _, path := range d.paths() {
				if !slices.ContainsFunc(contents, func(c []byte) bool { return bytes.Equal(c, d.files[path]) }) {
					contents = append(contents, d.files[path])
				}
			}
		}
		contents = append(contents, nil, []byte{})
		var d damage
		files := map[string][]byte{}
		var choose func(i int)
		choose = func(i int) {
			if i == len(paths) {
				require.NoError(t, d.try(want, files, func() []directory { return indistinguishable(all, files) }), "%v", describe(all, files))
				return
			}
			for _, c := range contents {
				delete(files, paths[i])
				if c != nil {
					files[paths[i]] = c
				}
				choose(i + 1)
			}
		}
		choose(0)
		t.Logf("counts: contents %d, files %d, %v", len(contents), len(paths), &d)
	})
}

// indistinguishable is what the documentation says can't be told from the truth: the whole directory as it was at an
// earlier close, or that or the last one without its oldest segments, or no files at all.
func indistinguishable(all []directory, files map[string][]byte) (same []directory) {
	if len(files) == 0 {
		return []directory{{}}
	}
	for _, d := range all {
		for cut := range d.paths() {
			paths := d.paths()[cut:]
			rest := map[string][]byte{}
			for _, path := range paths {
				rest[path] = d.files[path]
			}
			if maps.EqualFunc(rest, files, bytes.Equal) {
				base, _, err := frames(files[paths[0]])
				if err == nil {
					same = append(same, directory{first: base, txs: d.txs[base:]})
				}
			}
		}
	}
	return same
}

// describe names the files' contents, for a failure.
func describe(all []directory, files map[string][]byte) (names []string) {
	for path, data := range files {
		name := fmt.Sprintf("%s: %d bytes", path, len(data))
		for i, d := range all {
			for p, c := range d.files {
				if bytes.Equal(c, data) {
					name += fmt.Sprintf(" = %s at close %d", p, i)
				}
			}
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// A sector that a disk wrote to the wrong place, or lost: each one in turn holds what any other sector of the log
// holds, or nothing.
func TestASectorThatBelongsElsewhereIsFoundOrHarmless(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		want := generations(t)[3]
		paths := want.paths()
		var d damage
		for _, path := range paths {
			data := want.files[path]
			for at := 0; at < len(data); at += faultfs.SectorBytes {
				put := func(sector []byte, from string) {
					if bytes.Equal(sector, data[at:at+faultfs.SectorBytes]) {
						return
					}
					changed := bytes.Clone(data)
					copy(changed[at:], sector)
					require.NoError(t, d.try(want, with(want.files, path, changed), nil), "the sector at %d of %s is %s", at, path, from)
				}
				put(make([]byte, faultfs.SectorBytes), "zeros")
				put(bytes.Repeat([]byte{0xff}, faultfs.SectorBytes), "ones")
				for _, other := range paths {
					for from := 0; from < len(want.files[other]); from += faultfs.SectorBytes {
						put(want.files[other][from:from+faultfs.SectorBytes], fmt.Sprintf("that at %d of %s", from, other))
					}
				}
			}
		}
		t.Logf("counts: %v", &d)
	})
}

// A frame, or all from it on, copied over the place of any other.
func TestAFrameCopiedElsewhereIsFoundOrHarmless(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		want := generations(t)[3]
		var d damage
		for _, from := range want.paths() {
			_, sources, err := frames(want.files[from])
			require.NoError(t, err)
			for _, to := range want.paths() {
				_, targets, err := frames(want.files[to])
				require.NoError(t, err)
				require.NotEmpty(t, targets)
				last := targets[len(targets)-1]
				targets = append(targets, frame{position: last.end + frameHeader, end: last.end})
				for _, source := range sources {
					for _, target := range targets {
						if from == to && source.position == target.position {
							continue
						}
						for _, end := range []int64{source.position + frameHeader, source.end, sources[len(sources)-1].end} {
							data := bytes.Clone(want.files[to])
							copy(data[target.position:], want.files[from][source.position:end])
							require.NoError(t, d.try(want, with(want.files, to, data), nil),
								"bytes %d to %d of %s copied to %d of %s", source.position, end, from, target.position, to)
						}
					}
				}
			}
		}
		t.Logf("counts: %v", &d)
	})
}

// A write that the disk confirmed and never did: a sector, or a run of them, is as it was at an earlier close.
func TestALostWriteIsFoundOrHarmless(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		all := generations(t)
		want := all[3]
		var d damage
		for _, old := range all[:3] {
			for _, path := range old.paths() {
				data := want.files[path]
				for lo := 0; lo < len(data); lo += faultfs.SectorBytes {
					for hi := lo + faultfs.SectorBytes; hi <= len(data); hi += faultfs.SectorBytes {
						if bytes.Equal(data[lo:hi], old.files[path][lo:hi]) {
							continue
						}
						changed := bytes.Clone(data)
						copy(changed[lo:hi], old.files[path][lo:hi])
						files := with(want.files, path, changed)
						require.NoError(t, d.try(want, files, func() []directory { return indistinguishable(all, files) }),
							"bytes %d to %d of %s as at an earlier close", lo, hi, path)
					}
				}
			}
		}
		t.Logf("counts: %v", &d)
	})
}

// The smallest lost write that nothing but a later frame tells of: one sector, with the end mark of an earlier close
// where the next life's first frame begins.
func TestAStaleEndMarkHidesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		fs, h := faultfs.New(), &history{}
		var closed [2][]byte
		for i := range closed {
			l, err := reopen(fs, h)
			require.NoError(t, err)
			require.NoError(t, errors.Join(h.append(l, 600), h.sync(l), h.append(l, 600), h.close(l)))
			closed[i], err = fs.ReadFile(segmentPaths(fs)[0])
			require.NoError(t, err)
		}
		_, chain, err := frames(closed[0])
		require.NoError(t, err)
		mark := chain[len(chain)-1]
		require.Equal(t, "CLE1", mark.kind)
		at := mark.position / faultfs.SectorBytes * faultfs.SectorBytes
		copy(closed[1][at:at+faultfs.SectorBytes], closed[0][at:])
		_, l, err := open(map[string][]byte{segmentPaths(fs)[0]: closed[1]})
		if err == nil {
			t.Errorf("%d transactions of 4, and no word of damage", l.Next())
		}
		require.True(t, isDamage(err), "%v", err)
		t.Log("counts: changes 1, found as damage 1")
	})
}
