package commitlog

import (
	"flag"
	"strings"
	"sync"
	"testing"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/internal/fsys/faultfs"
	"github.com/seed080d9131/lifecycle/lifecycletest"
)

func readAll(log lifecycle.Log, from lifecycle.Offset, visit func(lifecycle.Offset, []byte)) error {
	for entry, err := range log.(*Log).Read(from) {
		if err != nil {
			return err
		}
		visit(entry.Offset, entry.Data)
	}
	return nil
}

// On a file system that loses what was not synced and fails where it is told to.
func TestTheLogIsWhatAHostTakesItFor(t *testing.T) {
	for name, segmentBytes := range map[string]int64{"segments of 8 KiB": 8 << 10, "segments as usual": 0} {
		t.Run(name, func(t *testing.T) {
			lifecycletest.CheckLog(t, func(testing.TB) lifecycletest.LogPlace {
				m := &failingMedium{fs: faultfs.New()}
				return lifecycletest.LogPlace{
					Open: func() (lifecycle.Log, error) {
						m.begin()
						return Open("/log", Options{SegmentBytes: segmentBytes, FS: m.fs})
					},
					Read:                readAll,
					Exclusive:           true,
					ReadsWhileAppending: true,
					Crash: func(log lifecycle.Log, seed uint64) error {
						log.(*Log).waitPrepared() // a dead process creates no files
						switch seed {
						case 0:
							m.fs.PowerFail(faultfs.KeepNone)
						case 1:
							m.fs.Restart()
						default:
							m.fs.PowerFail(faultfs.KeepRandom(seed))
						}
						return nil
					},
					Fail: func(_ lifecycle.Log, op lifecycletest.Op) error {
						m.failNext(map[lifecycletest.Op]faultfs.Kind{lifecycletest.Append: faultfs.Write, lifecycletest.Sync: faultfs.Sync}[op])
						return nil
					},
				}
			})
		})
	}
}

// failingMedium is a file system of which one operation on a segment can be made to
// fail. Files that are prepared for later may fail without harm, so they are left
// alone until a rename makes segments of them.
type failingMedium struct {
	fs *faultfs.FS

	mu      sync.Mutex
	renamed map[string]bool // under these names segments were opened
	kind    faultfs.Kind    // to fail next, once
}

func (m *failingMedium) begin() {
	m.mu.Lock()
	m.renamed, m.kind = map[string]bool{}, ""
	m.mu.Unlock()
	m.fs.Hook(func(op faultfs.Op) *faultfs.Fault {
		m.mu.Lock()
		defer m.mu.Unlock()
		if op.Kind == faultfs.Rename {
			m.renamed[op.Name] = true
		}
		if op.Kind != m.kind || !m.renamed[op.Name] && !strings.HasSuffix(op.Name, ".log") {
			return nil
		}
		m.kind = ""
		return &faultfs.Fault{Partial: op.Bytes / 2}
	})
}

func (m *failingMedium) failNext(kind faultfs.Kind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kind = kind
}

var large = flag.Bool("large", false, "try transactions of up to MaxTransactionBytes")

func TestTheLogIsWhatAHostTakesItForOnRealFiles(t *testing.T) {
	largest := 4 << 20
	if *large {
		largest = MaxTransactionBytes
	}
	lifecycletest.CheckLog(t, func(t testing.TB) lifecycletest.LogPlace {
		dir := t.TempDir()
		return lifecycletest.LogPlace{
			Open: func() (lifecycle.Log, error) {
				return Open(dir, Options{})
			},
			Read:                readAll,
			Exclusive:           true,
			ReadsWhileAppending: true,
			LargestTransaction:  largest,
		}
	})
}
