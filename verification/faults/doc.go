// Package faults breaks the file system under a commitlog, alone and under a whole Host.
//
// The file system is internal/fsys/faultfs: it fails any operation, cuts a write at any byte, forgets what was not
// synced, and reports a sync that failed as fine when asked again. The suites, each in a file of its own:
//
//	every_test.go     one fault in a short life of a log that crosses rotations, a truncation, a close, a killed process and
//	                  reopenings: every operation, and with -ci every byte of the writes that matter; then every kind of crash, and a second crash
//	                  right after the recovery
//	recovery_test.go  a second fault, and with -ci a third, in each operation of the reopening that follows
//	random_test.go    long lives with many faults, full disks and crashes, by seed (-seeds, -from)
//	damage_test.go    changes from outside to the files of a log that was closed in order: every bit, every length,
//	                  sectors that are stale or belong elsewhere, segments swapped, copied, mixed with older copies
//	host_test.go      a Host over it: each operation fails, hangs, or is the process's last
//	fuzz_test.go      programs and damage from the fuzzer
//	format_test.go    what the others need to know of the files, read by the format's documentation alone
//
// The promise is the same everywhere. Whatever was acknowledged is there when the log opens again, in order, once,
// at its offset. What was appended and not acknowledged is there as a continuation without gaps, or not. Nothing
// else is there. What can't be read is a *commitlog.DamageError and never just missing.
//
// commitlog/fault_test.go has the same promise from inside that package: one fault, at lengths 509 bytes apart in
// longer writes, and always with a later sync that could heal what the recovery left undone. Here the lengths are all
// there are, faults also meet the recovery, and crashes come before anything else is written.
package faults
