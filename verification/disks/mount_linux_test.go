//go:build !386 && !arm

package disks

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// inNamespace is set in the process that runs the tests, once it has a mount namespace of its own.
const inNamespace = "DISKS_IN_NAMESPACE"

// TestMain runs the tests in a process with a mount namespace of its own, where it may:
// however that process ends, by a panic, a timeout or a kill, the kernel takes down its
// mounts with it, and the loop devices under them.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(inNamespace) != "" || os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig goes by the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Unshareflags makes the mounts private, too: nothing spreads to the outside.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		os.Exit(m.Run()) // a sandbox: the tests that mount say so
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit) && exit.Exited():
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "the process that runs the tests:", err)
		os.Exit(1)
	}
}

// needs skips the test unless this is root and the programs are there.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs root, to mount")
	}
	if os.Getenv(inNamespace) == "" {
		t.Skip("skipped: needs a mount namespace of its own, which is refused here")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("skipped: needs %s: %v", program, err)
		}
	}
}

// run runs a program that should end well, and returns what it wrote.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	require.NoError(t, err)
	return out
}

func try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), programTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// mountTmpfs mounts a tmpfs until the end of the test. The first mount of a test tells whether
// any is possible.
func mountTmpfs(t *testing.T, bytes int64) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Skipf("skipped: no tmpfs can be mounted: %v", err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// resizeTmpfs gives a tmpfs another size.
func resizeTmpfs(t *testing.T, dir string, bytes int64) {
	t.Helper()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)))
}

// A volume is an ext4 file system in an image, mounted through a loop device.
type volume struct {
	t     *testing.T
	image string
	dir   string // the mount point
	up    bool
}

// format makes an ext4 file system in a file, which exists or is made with the given size.
// The options are those of mkfs.ext4. Nothing of it is left to be done lazily.
func format(t *testing.T, image string, bytes int64, options ...string) {
	t.Helper()
	file, err := os.OpenFile(image, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	require.NoError(t, file.Truncate(bytes))
	require.NoError(t, file.Close())
	run(t, "mkfs.ext4", append(append([]string{"-q", "-F", "-m", "0", "-b", "4096",
		"-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, options...), image)...)
}

// mountImage mounts an image until the end of the test. The first one tells whether there are loop devices.
func mountImage(t *testing.T, image string) *volume {
	t.Helper()
	v := &volume{t: t, image: image, dir: t.TempDir()}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("skipped: needs loop devices: %v", err)
	}
	t.Cleanup(func() {
		if v.up {
			unmount(t, v.dir)
		}
	})
	if err := v.tryMount(); err != nil && strings.Contains(err.Error(), "loop device") {
		t.Skipf("skipped: needs a free loop device: %v", err)
	} else {
		require.NoError(t, err)
	}
	return v
}

// mount mounts the volume. The loop device ends with the mount, since it is mount(8) that set it up.
func (v *volume) mount() {
	v.t.Helper()
	require.NoError(v.t, v.tryMount())
}

func (v *volume) tryMount() error {
	_, err := try("mount", "-t", "ext4", "-o", "loop,noatime,nodiscard", v.image, v.dir)
	v.up = err == nil
	return err
}

func (v *volume) unmount() {
	v.t.Helper()
	unmount(v.t, v.dir)
	v.up = false
}

// unmount takes a mount down and reports whether it is gone. If somebody holds it, that is
// a failure, and it is taken out of sight at least.
func unmount(t testing.TB, dir string) bool {
	t.Helper()
	err := syscall.Unmount(dir, 0)
	if err != nil {
		t.Errorf("unmount %s: %v", filepath.Base(dir), err)
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	}
	return err == nil
}

// singlePages makes the loop device ask its file for one page at a time. Since Linux 6.x the
// device takes a write that its file did only in part for a whole one: it is a disk that lies
// when its file runs full or fails in the middle of a request. With one page to a request
// there is no middle.
func (v *volume) singlePages() {
	v.t.Helper()
	device := strings.TrimSpace(run(v.t, "findmnt", "-n", "-o", "SOURCE", "--mountpoint", v.dir))
	setting := filepath.Join("/sys/block", filepath.Base(device), "queue", "max_sectors_kb")
	require.NoError(v.t, os.WriteFile(setting, []byte("4"), 0))
}
