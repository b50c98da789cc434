//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package fsys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// lockFile uses flock, which belongs to the open file: a second open in the same process is refused
// too, and the system frees it when the process dies. (A POSIX record lock does neither.)
func lockFile(name string) (Lock, error) {
	dir, err := os.Stat(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			break
		}
	}
	if err == nil {
		return flock{f, dir}, nil
	}
	f.Close()
	if err == syscall.EWOULDBLOCK {
		return nil, fmt.Errorf("flock %s: %w", name, ErrLocked)
	}
	return nil, &os.PathError{Op: "flock", Path: name, Err: err}
}

// flock is a held lock. Its name is the path by which it was opened. Close gives it up by name before it closes the file: a child
// process between its fork and its exec has the open file too, and would keep it
// locked.
type flock struct {
	*os.File
	dir fs.FileInfo // that the file was in
}

func (l flock) Held() error {
	ours, err := l.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(l.Name())
	if errors.Is(err, fs.ErrNotExist) { // removed, or it is in a directory that has moved
		ours = l.dir
		there, err = os.Stat(filepath.Dir(l.Name()))
	}
	switch {
	case err != nil:
		return err
	case !os.SameFile(ours, there):
		return ErrReplaced
	}
	return nil
}

func (l flock) Close() error {
	unlockErr := syscall.Flock(int(l.Fd()), syscall.LOCK_UN)
	if err := l.File.Close(); err != nil {
		return err
	}
	if unlockErr != nil {
		return &os.PathError{Op: "unlock", Path: l.Name(), Err: unlockErr}
	}
	return nil
}
