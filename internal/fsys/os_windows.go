package fsys

import (
	"fmt"
	"os"
	"syscall"
)

const errorSharingViolation = syscall.Errno(32)

// open differs from os.OpenFile in one thing: the file may be renamed and removed while it is open,
// as everywhere else. A prepared segment gets its name that way, and readers don't block truncation.
func open(name string, flag int) (*os.File, error) {
	access, disposition := uint32(syscall.GENERIC_READ), uint32(syscall.OPEN_EXISTING)
	if flag&os.O_RDWR != 0 {
		access |= syscall.GENERIC_WRITE
	}
	if flag&os.O_CREATE != 0 {
		disposition = syscall.CREATE_ALWAYS
	}
	return createFile(name, access, syscall.FILE_SHARE_READ|syscall.FILE_SHARE_WRITE|syscall.FILE_SHARE_DELETE, disposition)
}

// lockFile opens the file so that nobody else can, until the handle is closed or the process ends.
func lockFile(name string) (Lock, error) {
	f, err := createFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, syscall.OPEN_ALWAYS)
	if err == nil {
		return exclusive{f}, nil
	}
	if pathErr, ok := err.(*os.PathError); ok && pathErr.Err == errorSharingViolation {
		return nil, fmt.Errorf("open %s: %w", name, ErrLocked)
	}
	return nil, err
}

// exclusive is a file that, while it is open, nobody can open, move or remove, nor the directory that it is in.
type exclusive struct{ *os.File }

func (exclusive) Held() error { return nil }

func createFile(name string, access, share, disposition uint32) (*os.File, error) {
	path, err := syscall.UTF16PtrFromString(name)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	handle, err := syscall.CreateFile(path, access, share, nil, disposition, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(handle), name), nil
}

// syncDir has nothing to call: FlushFileBuffers refuses directories, and NTFS journals their changes in order.
func syncDir(string) error { return nil }
