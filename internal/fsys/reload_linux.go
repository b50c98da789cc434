//go:build linux && (386 || amd64 || arm64 || loong64 || ppc64le || riscv64)

package fsys

import (
	"os"
	"runtime"
	"syscall"
)

// fadviseDontNeed asks the system to drop what it has cached of a file and need not write.
const fadviseDontNeed = 4

func reload(f *os.File) {
	// What is dirty can't be dropped. If this fails, what could not be written is dropped: it was never
	// reported as synced.
	_ = syncData(f)
	if runtime.GOARCH == "386" { // the position takes two words
		syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, 0, fadviseDontNeed, 0)
		return
	}
	syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, fadviseDontNeed, 0, 0)
}
