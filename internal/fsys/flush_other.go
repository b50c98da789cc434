//go:build !linux || arm || ppc64 || ppc64le

package fsys

import "os"

func flush(*os.File, int64, int64) {}
