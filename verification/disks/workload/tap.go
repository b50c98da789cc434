package workload

import (
	"path/filepath"
	"sync"

	"github.com/seed080d9131/lifecycle/internal/fsys"
)

// Tap is a file system that tells of each operation on the one below it.
type Tap struct {
	fsys.FS

	// Before and After, if set, are told of each operation around it: what it is, in
	// the words of fsys, and the base name that the file has at that moment.
	Before func(op, name string)
	After  func(op, name string, err error)

	// Unsynced makes it lie: syncs of files and directories return nil and do nothing.
	Unsynced bool

	mu    sync.Mutex
	files map[string]*tapFile // by the path they were opened or made under last
}

type tapFile struct {
	fsys.File
	tap  *Tap
	name string // guarded by tap.mu
}

func (t *Tap) do(op, name string, operation func() error) error {
	name = filepath.Base(name)
	if t.Before != nil {
		t.Before(op, name)
	}
	err := operation()
	if t.After != nil {
		t.After(op, name, err)
	}
	return err
}

func (t *Tap) Mkdir(dir string) error {
	return t.do("mkdir", dir, func() error { return t.FS.Mkdir(dir) })
}

func (t *Tap) ReadDir(dir string) (names []string, err error) {
	err = t.do("readdir", dir, func() error { names, err = t.FS.ReadDir(dir); return err })
	return names, err
}

func (t *Tap) SyncDir(dir string) error {
	return t.do("syncdir", dir, func() error {
		if t.Unsynced {
			return nil
		}
		return t.FS.SyncDir(dir)
	})
}

func (t *Tap) Create(name string) (file fsys.File, err error) {
	err = t.do("create", name, func() error { file, err = t.FS.Create(name); return err })
	return t.opened(name, file, err)
}

func (t *Tap) Open(name string, write bool) (file fsys.File, err error) {
	err = t.do("open", name, func() error { file, err = t.FS.Open(name, write); return err })
	return t.opened(name, file, err)
}

func (t *Tap) opened(name string, file fsys.File, err error) (fsys.File, error) {
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files == nil {
		t.files = make(map[string]*tapFile)
	}
	f := &tapFile{File: file, tap: t, name: name}
	t.files[name] = f
	return f, nil
}

func (t *Tap) Rename(from, to string) error {
	err := t.do("rename", to, func() error { return t.FS.Rename(from, to) })
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[from]; f != nil && err == nil {
		delete(t.files, from)
		f.name, t.files[to] = to, f
	}
	return err
}

func (t *Tap) Remove(name string) error {
	return t.do("remove", name, func() error { return t.FS.Remove(name) })
}

func (t *Tap) Lock(name string) (lock fsys.Lock, err error) {
	err = t.do("lock", name, func() error { lock, err = t.FS.Lock(name); return err })
	return lock, err
}

func (f *tapFile) now() string {
	f.tap.mu.Lock()
	defer f.tap.mu.Unlock()
	return f.name
}

func (f *tapFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.tap.do("write", f.now(), func() error { n, err = f.File.WriteAt(p, off); return err })
	return n, err
}

func (f *tapFile) Sync() error {
	return f.tap.do("sync", f.now(), func() error {
		if f.tap.Unsynced {
			return nil
		}
		return f.File.Sync()
	})
}

func (f *tapFile) Close() error {
	return f.tap.do("close", f.now(), f.File.Close)
}
