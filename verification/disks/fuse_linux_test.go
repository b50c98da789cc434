//go:build !386 && !arm

package disks

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
)

// A disk is a file of a FUSE file system, with its content in memory, that a loop device
// stands on. It records, in order, each write and each flush that reach it: loop turns a
// flush of its block device into an fsync of the file, and FUSE hands that over, as it
// does with each write before the write is done.
type disk struct {
	fs.Inode
	path string

	mu      sync.Mutex
	content []byte
	records []record
	fault   func(data []byte, off int64) syscall.Errno // of a write; nil: none
}

// A record is a write, or a flush if data is nil.
type record struct {
	off  int64
	data []byte
}

func (r record) flush() bool { return r.data == nil }

var (
	_ fs.NodeGetattrer = (*disk)(nil)
	_ fs.NodeOpener    = (*disk)(nil)
	_ fs.NodeReader    = (*disk)(nil)
	_ fs.NodeWriter    = (*disk)(nil)
	_ fs.NodeFsyncer   = (*disk)(nil)
	_ fs.NodeAllocater = (*disk)(nil)
)

// newDisk mounts a FUSE file system with one file of the given content until the end of the test.
func newDisk(t *testing.T, content []byte) *disk {
	t.Helper()
	d := &disk{content: content}
	root := &fs.Inode{}
	dir := t.TempDir()
	server, err := fs.Mount(dir, root, &fs.Options{
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, d, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "disk", Name: "disk", DisableXAttrs: true},
	})
	if err != nil {
		t.Skipf("skipped: needs FUSE: %v", err)
	}
	t.Cleanup(func() {
		if unmount(t, dir) {
			server.Wait()
		}
	})
	d.path = filepath.Join(dir, "disk")
	return d
}

func (d *disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o600
	out.Size = uint64(len(d.content))
	return 0
}

func (d *disk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (d *disk) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	if off < int64(len(d.content)) {
		n = copy(dest, d.content[off:])
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (d *disk) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off+int64(len(data)) > int64(len(d.content)) {
		return 0, syscall.EFBIG
	}
	if d.fault != nil {
		if errno := d.fault(data, off); errno != 0 {
			return 0, errno
		}
	}
	copy(d.content[off:], data)
	d.records = append(d.records, record{off, append([]byte{}, data...)}) // data is used again
	return uint32(len(data)), 0
}

// Fsync is a flush: all that was written before it is on the medium when it returns.
func (d *disk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records = append(d.records, record{})
	return 0
}

// Allocate is what loop makes of a discard, and of a request to write zeros. It is refused,
// so that zeros come as writes.
func (d *disk) Allocate(context.Context, fs.FileHandle, uint64, uint64, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}

// now returns how many records there are. What returned before the call has its own
// among them.
func (d *disk) now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.records)
}

// setFault makes writes fail, from now on, for which fault returns an error.
func (d *disk) setFault(fault func(data []byte, off int64) syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = fault
}

// formatted returns the content of a new ext4 file system. The options are those of mkfs.ext4.
func formatted(t *testing.T, bytes int64, options ...string) []byte {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	format(t, image, bytes, options...)
	content, err := os.ReadFile(image)
	require.NoError(t, err)
	return content
}
