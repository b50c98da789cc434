package fsys

import (
	"os"
	"syscall"
)

// syncData leaves out what fsync adds: the times of the inode, which cost a journal commit each time.
func syncData(f *os.File) error {
	fd := int(f.Fd())
	for {
		err := syscall.Fdatasync(fd)
		switch err {
		case nil:
			return nil
		case syscall.EINTR: // nothing was attempted, so this is no second attempt either
		default:
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}
