package fsys

import "os"

// Permissions of what OS makes, before the umask: nobody but the owner and its group reads a log.
const (
	dirMode  = 0o750
	fileMode = 0o640
)

// OS is the operating system's file system.
//
// Sync is fdatasync on Linux. On macOS it is F_FULLFSYNC, which reaches the medium as plain fsync does
// not there. SyncDir does nothing on Windows, whose file systems journal their directories and have no
// call for it. Lock is flock on Linux, macOS and the BSDs, and a file that refuses to be shared on
// Windows; elsewhere it fails with errors.ErrUnsupported.
var OS FS = osFS{}

type osFS struct{}

func (osFS) Mkdir(dir string) error { return os.Mkdir(dir, dirMode) }

func (osFS) ReadDir(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (osFS) SyncDir(dir string) error { return syncDir(dir) }

func (osFS) Create(name string) (File, error) {
	return openFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

func (osFS) Open(name string, write bool) (File, error) {
	if write {
		return openFile(name, os.O_RDWR)
	}
	return openFile(name, os.O_RDONLY)
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

func (osFS) Remove(name string) error { return os.Remove(name) }

func (osFS) Lock(name string) (Lock, error) { return lockFile(name) }

// openFile wraps the platform's open so that a nil *os.File never becomes a File that is not nil.
func openFile(name string, flag int) (File, error) {
	f, err := open(name, flag)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

type osFile struct{ *os.File }

func (f osFile) Sync() error { return syncData(f.File) }

func (f osFile) Flush(position, n int64) { flush(f.File, position, n) }

func (f osFile) Reload() error { return reload(f.File) }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
