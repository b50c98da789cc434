//go:build !windows

package fsys

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

func open(name string, flag int) (*os.File, error) { return os.OpenFile(name, flag, fileMode) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EROFS) { // what file systems say that sync no directories, or have nothing to sync
		err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}
