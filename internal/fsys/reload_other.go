//go:build !linux || !(386 || amd64 || arm64 || loong64 || ppc64le || riscv64)

package fsys

import (
	"errors"
	"os"
)

func reload(*os.File) error { return errors.ErrUnsupported }
