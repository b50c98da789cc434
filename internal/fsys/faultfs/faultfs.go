// Package faultfs is a file system in memory for suites that break the one under a log on purpose.
//
// It is strict: what a program did not sync is not there after a power failure, or only in part, and
// files and directories are synced apart. Every operation but Flush and Reload is counted, told to a hook, and can be made to
// fail, at any length of a write.
//
// The world a test sees has three layers:
//
//	handles and locks   of one process; gone after Restart and PowerFail
//	the cache           what reads return; survives Restart
//	the medium          what survives PowerFail, with as much of the difference as the test lets survive
//
// The rules, each of which some real system follows:
//
//   - Unsynced data survives by sector of 512 bytes, in any subset; a sector is old or new, never mixed.
//     A file's size survives on its own; what lies behind a lost size is lost.
//   - Unsynced directory changes survive one by one, in any subset; a rename as a whole.
//   - A failed Sync of a file forgets what was dirty, as Linux does: reads still return it and the next Sync
//     succeeds, but it is not on the medium. Reload of the file, or DropCaches, then shows what is. Until then, new
//     sectors that were lost stay lost even if they are written again and synced, as on ext4.
//   - A failed SyncDir forgets nothing, for a journal that fails stops the whole file system: the changes stay unsynced.
//   - Create over an existing file makes a new one in its place; its content is not shared with open handles.
//   - A full disk (SetQuota) fails the write that needs a new sector, after what fits. Writing over what a file has needs none.
package faultfs

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/seed080d9131/lifecycle/internal/fsys"
)

// SectorBytes is the unit in which unsynced data survives, and in which a quota is counted.
const SectorBytes = 512

// ErrInjected is the error of a Fault that names none.
var ErrInjected = errors.New("injected fault")

// ErrKilled is what every operation of a process returns that a Fault has killed.
var ErrKilled = errors.New("the process was killed")

// Kind names an operation.
type Kind string

// The kinds of operations, in the words of fsys.
const (
	Mkdir   Kind = "mkdir"
	ReadDir Kind = "readdir"
	SyncDir Kind = "syncdir"
	Create  Kind = "create"
	Open    Kind = "open"
	Rename  Kind = "rename"
	Remove  Kind = "remove"
	Lock    Kind = "lock"
	Unlock  Kind = "unlock"
	Read    Kind = "read"
	Write   Kind = "write"
	Sync    Kind = "sync"
	Size    Kind = "size"
	Close   Kind = "close"
)

// Op is one operation, as a hook and the trace see it.
type Op struct {
	Index  int // from 0, in the order in which operations began
	Kind   Kind
	Name   string // path of the file or directory; the old one in a rename
	Offset int64  // of a read or write
	Bytes  int    // of a read or write
}

// Fault is how an operation fails. An operation but Write, Sync, Close and Unlock has no effect then; Close and Unlock
// always have theirs.
type Fault struct {
	Err     error       // nil: ErrInjected
	Partial int         // how many bytes of a write take effect first
	Keep    func() bool // which dirty sectors a failed Sync brings to the medium first; nil: none
	Kill    bool        // the process ends with this operation: the error is ErrKilled, here and until Restart

	dead bool // the process had ended before: no effect at all
}

// KeepNone and KeepAll are for PowerFail and Fault.Keep.
func KeepNone() bool { return false }

// KeepAll lets everything survive.
func KeepAll() bool { return true }

// KeepRandom lets about half survive, as the seed says.
func KeepRandom(seed uint64) func() bool {
	r := rand.New(rand.NewPCG(seed, seed^0x9e3779b97f4a7c15))
	return func() bool { return r.Uint64()&1 == 0 }
}

// FS is the file system. Its methods may be called by several goroutines at once.
type FS struct {
	mu      sync.Mutex
	cached  map[string]*node // by clean path
	medium  map[string]*node
	pending []change // of directories, in order, not synced
	locked  map[string]bool
	process int  // number of the process that runs; handles of others are dead
	killed  bool // by a Fault
	quota   int64
	reload  error // see Cache
	hook    func(Op) *Fault
	trace   []Op
}

// node is a file or a directory, under whatever names.
type node struct {
	dir   bool
	data  []byte       // in the cache
	disk  []byte       // on the medium
	dirty map[int]bool // sectors of data that may differ from disk
	lost  map[int]bool // new sectors that a failed Sync forgot: no Sync writes them until the cache is dropped
}

// change is one unsynced change of a directory.
type change struct {
	dir   string
	names map[string]*node // nil: taken away
}

// New returns an empty file system, with nothing but the root directory.
func New() *FS {
	root := &node{dir: true}
	return &FS{
		cached: map[string]*node{"/": root, ".": root},
		medium: map[string]*node{"/": root, ".": root},
		locked: map[string]bool{},
		quota:  -1,
	}
}

// Hook sets a func that is called before each operation, in the goroutine that performs it and with no
// lock held: it may wait, and what it returns, if not nil, makes the operation fail.
func (f *FS) Hook(hook func(Op) *Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// FailAt is a hook that lets the operation of that index fail.
func FailAt(index int, fault Fault) func(Op) *Fault {
	return func(op Op) *Fault {
		if op.Index == index {
			return &fault
		}
		return nil
	}
}

// Count returns how many operations there were.
func (f *FS) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.trace)
}

// Trace returns the operations so far.
func (f *FS) Trace() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.trace)
}

// SetQuota limits what all files together may have, in bytes; negative: no limit.
func (f *FS) SetQuota(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quota = bytes
}

// Cache says what Reload does. nil, as at first: it works. fsys.ErrCached: it does not, as if another process
// had the file mapped. errors.ErrUnsupported: there is no such call, and what a failed Sync forgot is brought to the
// medium if it is written again, as on systems other than Linux.
func (f *FS) Cache(reload error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reload = reload
}

// Used returns what all files together have, as a quota counts it.
func (f *FS) Used() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used()
}

func (f *FS) used() (n int64) {
	seen := map[*node]bool{}
	for _, file := range f.cached {
		if !seen[file] {
			seen[file] = true
			n += int64(sectors(len(file.data))) * SectorBytes
		}
	}
	return n
}

// Restart ends the process: its handles and locks are gone, what it wrote is there.
func (f *FS) Restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restart()
}

func (f *FS) restart() {
	f.process++
	f.killed = false
	f.locked = map[string]bool{}
}

// PowerFail ends the process and forgets what was not synced, except where keep returns true. It is
// called once for every dirty sector, unsynced growth and directory change.
func (f *FS) PowerFail(keep func() bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restart()
	for _, c := range f.pending {
		if keep() {
			apply(f.medium, c)
		}
	}
	f.pending = nil
	for path := range f.medium { // what stands in a directory that is lost
		for p := path; p != dirOf(p); p = dirOf(p) {
			if f.medium[dirOf(p)] == nil {
				delete(f.medium, path)
			}
		}
	}
	f.cached = maps.Clone(f.medium)
	done := map[*node]bool{}
	for _, path := range slices.Sorted(maps.Keys(f.cached)) {
		n := f.cached[path]
		if done[n] {
			continue
		}
		done[n] = true
		if len(n.data) > len(n.disk) && keep() {
			n.disk = append(n.disk, make([]byte, len(n.data)-len(n.disk))...)
		}
		n.writeOut(keep)
		n.data, n.lost = slices.Clone(n.disk), nil
	}
}

// DropCaches makes reads return what is on the medium, but for what is still dirty.
func (f *FS) DropCaches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.cached {
		n.reload()
	}
}

// Clone returns a copy of the file system, without hook, trace and handles, as after Restart.
func (f *FS) Clone() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	copies := map[*node]*node{nil: nil}
	clone := func(n *node) *node {
		c, ok := copies[n]
		if !ok {
			c = &node{dir: n.dir, data: slices.Clone(n.data), disk: slices.Clone(n.disk), dirty: maps.Clone(n.dirty), lost: maps.Clone(n.lost)}
			copies[n] = c
		}
		return c
	}
	names := func(m map[string]*node) map[string]*node {
		c := make(map[string]*node, len(m))
		for path, n := range m {
			c[path] = clone(n)
		}
		return c
	}
	c := &FS{cached: names(f.cached), medium: names(f.medium), locked: map[string]bool{}, quota: f.quota, reload: f.reload}
	for _, p := range f.pending {
		c.pending = append(c.pending, change{p.dir, names(p.names)})
	}
	return c
}

// ReadFile returns a file's content, as no operation of a process.
func (f *FS) ReadFile(name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.cached[clean(name)]
	if !ok || n.dir {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	return slices.Clone(n.data), nil
}

// WriteFile gives a file its content, durably and as no operation of a process: a change from outside.
func (f *FS) WriteFile(name string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = clean(name)
	n := &node{data: slices.Clone(data), disk: slices.Clone(data)}
	f.cached[name], f.medium[name] = n, n
}

// RemoveFile takes a file away, durably and as no operation of a process.
func (f *FS) RemoveFile(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.cached, clean(name))
	delete(f.medium, clean(name))
}

// Names returns the paths of all files, sorted.
func (f *FS) Names() (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, n := range f.cached {
		if !n.dir {
			names = append(names, path)
		}
	}
	slices.Sort(names)
	return names
}

// begin counts an operation and returns how it fails, or nil.
func (f *FS) begin(process int, op Op) *Fault {
	f.mu.Lock()
	if f.killed || process != f.process {
		f.mu.Unlock()
		return &Fault{Err: ErrKilled, dead: true}
	}
	op.Index = len(f.trace)
	f.trace = append(f.trace, op)
	hook := f.hook
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	fault := hook(op)
	if fault == nil {
		return nil
	}
	fault = &Fault{Err: fault.Err, Partial: fault.Partial, Keep: fault.Keep, Kill: fault.Kill}
	if fault.Err == nil {
		fault.Err = ErrInjected
	}
	if fault.Kill {
		fault.Err = ErrKilled
	}
	return fault
}

// run performs an operation on names: it fails as injected, or as do says.
func (f *FS) run(kind Kind, name string, do func(path string) error) error {
	f.mu.Lock()
	process := f.process
	f.mu.Unlock()
	fault := f.begin(process, Op{Kind: kind, Name: clean(name)})
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if fault != nil {
		f.killed = f.killed || fault.Kill
		err = fault.Err
	} else {
		err = do(clean(name))
	}
	if err != nil {
		return &fs.PathError{Op: string(kind), Path: name, Err: err}
	}
	return nil
}

// alter changes names in one directory, in the cache.
func (f *FS) alter(dir string, names map[string]*node) {
	c := change{dir, names}
	apply(f.cached, c)
	f.pending = append(f.pending, c)
}

func apply(to map[string]*node, c change) {
	for path, n := range c.names {
		if n == nil {
			delete(to, path)
		} else {
			to[path] = n
		}
	}
}

// Mkdir implements fsys.FS.
func (f *FS) Mkdir(dir string) error {
	return f.run(Mkdir, dir, func(path string) error {
		if f.cached[path] != nil {
			return fs.ErrExist
		}
		if f.cached[dirOf(path)] == nil {
			return fs.ErrNotExist
		}
		f.alter(dirOf(path), map[string]*node{path: {dir: true}})
		return nil
	})
}

// ReadDir implements fsys.FS.
func (f *FS) ReadDir(dir string) (names []string, err error) {
	err = f.run(ReadDir, dir, func(path string) error {
		if n := f.cached[path]; n == nil || !n.dir {
			return fs.ErrNotExist
		}
		for p := range f.cached {
			if dirOf(p) == path && p != path {
				names = append(names, baseOf(p))
			}
		}
		slices.Sort(names)
		return nil
	})
	return names, err
}

// SyncDir implements fsys.FS.
func (f *FS) SyncDir(dir string) error {
	return f.run(SyncDir, dir, func(path string) error {
		if f.cached[path] == nil {
			return fs.ErrNotExist
		}
		f.pending = slices.DeleteFunc(f.pending, func(c change) bool {
			if c.dir == path {
				apply(f.medium, c)
			}
			return c.dir == path
		})
		return nil
	})
}

// Create implements fsys.FS.
func (f *FS) Create(name string) (fsys.File, error) {
	var n *node
	err := f.run(Create, name, func(path string) error {
		if f.cached[dirOf(path)] == nil {
			return fs.ErrNotExist
		}
		n = &node{dirty: map[int]bool{}}
		f.alter(dirOf(path), map[string]*node{path: n})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f.handle(n, name, true), nil
}

// Open implements fsys.FS.
func (f *FS) Open(name string, write bool) (fsys.File, error) {
	var n *node
	err := f.run(Open, name, func(path string) error {
		if n = f.cached[path]; n == nil || n.dir {
			return fs.ErrNotExist
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f.handle(n, name, write), nil
}

// Rename implements fsys.FS.
func (f *FS) Rename(from, to string) error {
	return f.run(Rename, from, func(path string) error {
		n := f.cached[path]
		if n == nil {
			return fs.ErrNotExist
		}
		f.alter(dirOf(path), map[string]*node{path: nil, clean(to): n})
		return nil
	})
}

// Remove implements fsys.FS.
func (f *FS) Remove(name string) error {
	return f.run(Remove, name, func(path string) error {
		if f.cached[path] == nil {
			return fs.ErrNotExist
		}
		f.alter(dirOf(path), map[string]*node{path: nil})
		return nil
	})
}

// Lock implements fsys.FS.
func (f *FS) Lock(name string) (fsys.Lock, error) {
	var l *lock
	err := f.run(Lock, name, func(path string) error {
		if f.locked[path] {
			return fsys.ErrLocked
		}
		if f.cached[path] == nil {
			f.alter(dirOf(path), map[string]*node{path: {}})
		}
		f.locked[path] = true
		l = &lock{fs: f, path: path, process: f.process}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

type lock struct {
	fs      *FS
	path    string
	process int
}

// Held implements fsys.Lock: here nobody replaces files.
func (l *lock) Held() error { return nil }

func (l *lock) Close() error {
	fault := l.fs.begin(l.process, Op{Kind: Unlock, Name: l.path})
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	if fault == nil || !fault.dead {
		delete(l.fs.locked, l.path)
	}
	if fault != nil {
		l.fs.killed = l.fs.killed || fault.Kill
		return fault.Err
	}
	return nil
}

func (f *FS) handle(n *node, name string, write bool) *file {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &file{fs: f, node: n, name: clean(name), write: write, process: f.process}
}

type file struct {
	fs      *FS
	node    *node
	name    string
	write   bool
	process int
	closed  bool
}

// begin starts an operation on a file and takes the lock of the file system.
func (h *file) begin(kind Kind, offset int64, bytes int) *Fault {
	fault := h.fs.begin(h.process, Op{Kind: kind, Name: h.name, Offset: offset, Bytes: bytes})
	h.fs.mu.Lock()
	switch {
	case fault != nil:
		h.fs.killed = h.fs.killed || fault.Kill
	case h.closed:
		fault = &Fault{Err: fs.ErrClosed}
	}
	return fault
}

func (h *file) failed(kind Kind, err error) error {
	return &fs.PathError{Op: string(kind), Path: h.name, Err: err}
}

func (h *file) ReadAt(p []byte, offset int64) (int, error) {
	fault := h.begin(Read, offset, len(p))
	defer h.fs.mu.Unlock()
	if fault != nil {
		return 0, h.failed(Read, fault.Err)
	}
	if offset >= int64(len(h.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.node.data[offset:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *file) WriteAt(p []byte, offset int64) (int, error) {
	fault := h.begin(Write, offset, len(p))
	defer h.fs.mu.Unlock()
	var err error
	if fault != nil {
		if fault.dead || h.closed {
			return 0, h.failed(Write, fault.Err)
		}
		p, err = p[:min(max(fault.Partial, 0), len(p))], fault.Err
	}
	if !h.write {
		return 0, h.failed(Write, fs.ErrPermission)
	}
	n := h.node
	if end := offset + int64(len(p)); h.fs.quota >= 0 && end > int64(sectors(len(n.data)))*SectorBytes {
		free := (h.fs.quota - h.fs.used()) / SectorBytes * SectorBytes
		if fits := int64(sectors(len(n.data)))*SectorBytes + max(free, 0); end > fits {
			p, err = p[:max(fits-offset, 0)], syscall.ENOSPC
		}
	}
	if len(p) > 0 {
		end := int(offset) + len(p)
		if end > len(n.data) {
			n.data = append(n.data, make([]byte, end-len(n.data))...)
		}
		copy(n.data[offset:], p)
		if n.dirty == nil {
			n.dirty = map[int]bool{}
		}
		for i := int(offset) / SectorBytes; i < sectors(end); i++ {
			n.dirty[i] = true
		}
	}
	if err != nil {
		err = h.failed(Write, err)
	}
	return len(p), err
}

func (h *file) Sync() error {
	fault := h.begin(Sync, 0, 0)
	defer h.fs.mu.Unlock()
	n := h.node
	if fault == nil {
		n.grow()
		n.writeOut(KeepAll)
		return nil
	}
	if fault.dead || h.closed {
		return h.failed(Sync, fault.Err)
	}
	keep := fault.Keep
	if keep == nil {
		keep = KeepNone
	}
	had := sectors(len(n.disk))
	if len(n.data) > len(n.disk) && keep() {
		n.grow()
	}
	dirty := maps.Clone(n.dirty)
	forgotten := n.writeOut(keep)
	if fault.Kill { // the call ended early, nothing failed: the system still has it to write
		n.dirty = dirty
	} else {
		for _, i := range forgotten {
			if i >= had && h.fs.reload != errors.ErrUnsupported {
				if n.lost == nil {
					n.lost = map[int]bool{}
				}
				n.lost[i] = true
			}
		}
	}
	return h.failed(Sync, fault.Err)
}

// Flush does nothing: what it may do, PowerFail does.
func (h *file) Flush(int64, int64) {}

// Reload is no operation that a fault can meet: what fails in it goes unnoticed.
func (h *file) Reload() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.process != h.fs.process || h.fs.killed {
		return fsys.ErrCached
	}
	if h.fs.reload == nil {
		h.node.reload()
	}
	return h.fs.reload
}

func (h *file) Size() (int64, error) {
	fault := h.begin(Size, 0, 0)
	defer h.fs.mu.Unlock()
	if fault != nil {
		return 0, h.failed(Size, fault.Err)
	}
	return int64(len(h.node.data)), nil
}

func (h *file) Close() error {
	fault := h.begin(Close, 0, 0)
	defer h.fs.mu.Unlock()
	h.closed = true
	if fault != nil {
		return h.failed(Close, fault.Err)
	}
	return nil
}

// grow gives the medium the file's size.
func (n *node) grow() {
	if d := len(n.data) - len(n.disk); d > 0 {
		n.disk = append(n.disk, make([]byte, d)...)
	}
}

// writeOut brings the dirty sectors that keep lets through to the medium, as far as its size reaches, and
// forgets that the others were dirty; it returns those.
func (n *node) writeOut(keep func() bool) (forgotten []int) {
	for _, i := range slices.Sorted(maps.Keys(n.dirty)) {
		lo, hi := i*SectorBytes, min((i+1)*SectorBytes, len(n.data), len(n.disk))
		if !keep() {
			forgotten = append(forgotten, i)
		} else if lo < hi && !n.lost[i] {
			copy(n.disk[lo:hi], n.data[lo:hi])
		}
	}
	clear(n.dirty)
	return forgotten
}

// reload makes what is not dirty what it is on the medium.
func (n *node) reload() {
	for i := range sectors(len(n.data)) {
		if !n.dirty[i] {
			lo, hi := i*SectorBytes, min((i+1)*SectorBytes, len(n.data))
			clear(n.data[lo:hi])
			if lo < len(n.disk) {
				copy(n.data[lo:hi], n.disk[lo:])
			}
			delete(n.lost, i)
		}
	}
}

// clean is a name as the file system keeps it: with slashes, whatever the system's separator is.
func clean(name string) string { return path.Clean(filepath.ToSlash(name)) }

func dirOf(name string) string  { return path.Dir(name) }
func baseOf(name string) string { return path.Base(name) }

func sectors(bytes int) int { return (bytes + SectorBytes - 1) / SectorBytes }

var _ fsys.FS = (*FS)(nil)
