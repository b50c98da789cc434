// Package disks breaks hosts and their logs on real processes, disks and kernels:
//
//   - processes are killed with SIGKILL at random moments: under load, while they open
//     the log, during their exit (kill_test.go)
//   - an ext4 file system loses its disk under it, which is a loop device on a full
//     tmpfs, or a FUSE file that fails single writes: the first sync fails, and the
//     second one says OK (eio_linux_test.go)
//   - file systems run full (enospc_linux_test.go)
//   - strace injects errors into the system calls of a running kvserver (strace_linux_test.go)
//   - the power fails: a FUSE file under an ext4 file system records each write and
//     each flush of the disk, and images are made from it as a power failure might have
//     left the disk (powerloss_linux_test.go)
//
// What every test demands is the same: each acknowledged transaction is there, at its
// offset, with its content, once; nothing is there that nobody appended; and where the
// disk failed, the host says so and acknowledges nothing more. Kills and power failures
// have controls, in which something is wrong on purpose and has to be found: a process
// that acknowledges too early, a disk that ignores a flush or loses a write, a log that
// does not sync; and so has the judge of all of them (workload/judge_test.go).
//
// Most of it needs Linux, root, /dev/fuse, loop devices, and Debian's packages mount,
// e2fsprogs and strace. Where one is missing, the tests say so and are skipped.
//
//	go test ./disks                        # seconds
//	go test ./disks -ci                    # 250 kills, 120 images
//	go test ./disks -kills 1000 -seed 7
package disks
