//go:build !linux

package fsys

import "os"

// syncData uses what package os picks for the platform: F_FULLFSYNC on macOS, FlushFileBuffers on Windows.
func syncData(f *os.File) error { return f.Sync() }
