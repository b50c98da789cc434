//go:build linux && (386 || amd64 || arm64 || loong64 || ppc64le || riscv64)

package fsys

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

const (
	fadviseDontNeed = 4          // asks the system to drop what it has cached of a file and need not write
	tmpfsMagic      = 0x01021994 // a file system whose medium is the cache
)

func reload(f *os.File) error {
	var fs syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &fs); err == nil && int64(fs.Type) == tmpfsMagic {
		return nil
	}
	// What is dirty can't be dropped. If this fails, what could not be written is dropped below: it was never
	// reported as synced.
	_ = syncData(f)
	for range 3 {
		if runtime.GOARCH == "386" { // the position takes two words
			syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, 0, fadviseDontNeed, 0)
		} else {
			syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, fadviseDontNeed, 0, 0)
		}
		if cached, err := isCached(f); err == nil && !cached {
			return nil
		}
	}
	return ErrCached
}

// isCached reports whether any page of a file is in the cache.
func isCached(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	size := int(info.Size())
	if size == 0 {
		return false, nil
	}
	if int64(size) != info.Size() {
		return false, syscall.EFBIG
	}
	// The mapping touches no page, so it brings none into the cache.
	mapped, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return false, err
	}
	defer syscall.Munmap(mapped)
	page := os.Getpagesize()
	pages := make([]byte, (size+page-1)/page)
	if _, _, errno := syscall.Syscall(syscall.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(size), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		return false, errno
	}
	for _, p := range pages {
		if p&1 != 0 {
			return true, nil
		}
	}
	return false, nil
}
