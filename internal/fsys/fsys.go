// Package fsys is the seam between a log and the file system: the few operations that commitlog
// performs on files and directories, so that a suite can put a file system of its own underneath and
// fail each of them. [OS] is the operating system's; package faultfs is one in memory that misbehaves.
//
// Names are paths as package os takes them. Errors are the operating system's: errors.Is with
// fs.ErrNotExist and with system error numbers works on them.
package fsys

import (
	"errors"
	"io"
)

// ErrLocked is what [FS.Lock] returns for a file that is locked already, by this process or another.
var ErrLocked = errors.New("locked by another owner")

// ErrNotTried is in the error of [FS.SyncDir] if the directory could not be opened for it, for want of a file
// descriptor, say: nothing was synced and nothing forgotten.
var ErrNotTried = errors.New("not tried")

// ErrReplaced is what [Lock.Held] returns if the name means another file than the one that is locked, or another directory's.
var ErrReplaced = errors.New("another file or directory is there now under that name")

// ErrCached is what [File.Reload] returns if what is read may still not be on the medium.
var ErrCached = errors.New("it stays in the system's cache")

// FS is what a log asks of a file system. Its methods may be called by several goroutines at once.
type FS interface {
	// Mkdir makes one directory. It fails with fs.ErrExist if the name is taken.
	Mkdir(dir string) error

	// ReadDir returns the names in a directory, in no particular order.
	ReadDir(dir string) ([]string, error)

	// SyncDir returns when the entries of a directory (names made, moved and removed in it) would
	// survive a power failure. It does nothing where the system offers no such call (Windows). After an error it must
	// not be called again with any hope, as File.Sync, unless that is ErrNotTried. It is errors.ErrUnsupported where
	// the file system syncs no directories, or is read-only.
	SyncDir(dir string) error

	// Create makes an empty file for reading and writing. An old file of that name loses its content.
	Create(name string) (File, error)

	// Open opens a file for reading, and for writing as well if write is set.
	Open(name string, write bool) (File, error)

	// Rename gives a file another name in the same directory, atomically. The file may be open.
	Rename(from, to string) error

	// Remove takes a file's name away. The file may be open.
	Remove(name string) error

	// Lock makes the file if need be and takes it for the caller alone, or returns ErrLocked at once.
	// Closing what it returns, or the end of the process, frees it. The file itself stays.
	Lock(name string) (Lock, error)
}

// Lock is a file that is locked.
type Lock interface {
	io.Closer

	// Held returns ErrReplaced if the file's name means another one by now, and somebody else may have locked that, or if
	// the file is not there and its directory is another one: it was moved away and made anew, or something is mounted over
	// it. That the file was removed, and nothing else, is no error: nobody else has locked it.
	Held() error
}

// File is an open file. ReadAt and WriteAt may be called by several goroutines at once.
type File interface {
	io.ReaderAt
	io.WriterAt

	// Sync returns when the content written so far, and the size if it is needed to read that content
	// back, would survive a power failure. After an error it must not be called again with any hope:
	// the system may have dropped what it could not write, and then reports success.
	Sync() error

	// Flush is a hint: the n bytes at the position will be synced soon, and the system may begin. It does
	// not wait, and where it fails the next Sync says so. It does nothing but on Linux.
	Flush(position, n int64)

	// Reload makes what is read from now on come from the medium, but for what is still to be written.
	// After a write-back has failed, Linux goes on to show what is not there, and on ext4 even writing
	// the same bytes once more, with a sync that reports success, does not bring new blocks to
	// the medium as long as they are cached. It returns ErrCached if some of the file stays cached (because
	// another process reads or maps it), and errors.ErrUnsupported where the system has no way to ask.
	Reload() error

	// Size returns how many bytes the file has.
	Size() (int64, error)

	Close() error
}
