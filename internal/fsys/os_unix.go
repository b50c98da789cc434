//go:build !windows

package fsys

import (
	"fmt"
	"os"
)

func open(name string, flag int) (*os.File, error) { return os.OpenFile(name, flag, fileMode) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}
