//go:build !linux || 386 || arm

package disks

import "testing"

func TestFailingDisks(t *testing.T) {
	t.Skip("skipped: full and failing disks, injected errors and power failures need Linux on 64 bits, for go-fuse")
}
