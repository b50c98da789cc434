//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly || windows)

package fsys

import (
	"errors"
	"os"
)

func lockFile(name string) (Lock, error) {
	return nil, &os.PathError{Op: "lock", Path: name, Err: errors.ErrUnsupported}
}
