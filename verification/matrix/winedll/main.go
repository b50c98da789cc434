// Command winedll writes a bcryptprimitives.dll for a Wine older than 9.2, which
// has none.
//
// Every Go program for Windows loads that library at its start, for its one
// function ProcessPrng, and dies without it. Here the library is an export table
// and nothing else: ProcessPrng is forwarded to SystemFunction036 of advapi32, the
// older name for the same service, which takes its arguments in the same registers
// and which Wine has. So there is no code in it, and no compiler is needed.
//
//	winedll PREFIX/drive_c/windows/system32/bcryptprimitives.dll
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
)

const (
	exportName = "ProcessPrng"
	forwarded  = "advapi32.SystemFunction036"
	libName    = "bcryptprimitives.dll"

	headerBytes = 0x200  // of the file: the headers, and then the section
	sectionRVA  = 0x1000 // where the section is mapped
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: winedll FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], library(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// library is the file: a PE32+ image for amd64 with one read-only section, the
// export directory.
func library() []byte {
	section := exports()
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			_ = binary.Write(&b, binary.LittleEndian, v) // to memory: it can't fail
		}
	}
	// The DOS header, of which only the magic and the offset of what follows count.
	put([]byte("MZ"), make([]byte, 0x3c-2), uint32(0x40))
	put([]byte("PE\x00\x00"))
	put(uint16(0x8664), uint16(1), uint32(0), uint32(0), uint32(0), uint16(240), uint16(0x2022)) // amd64, 1 section; an executable DLL
	put(uint16(0x20b), uint16(0), uint32(0), uint32(headerBytes), uint32(0))                     // PE32+; no code, initialized data
	put(uint32(0), uint32(0), uint64(0x180000000), uint32(0x1000), uint32(headerBytes))          // no entry point; base, alignments
	put(uint16(6), uint16(0), uint16(0), uint16(0), uint16(6), uint16(0), uint32(0))             // versions
	put(uint32(2*sectionRVA), uint32(headerBytes), uint32(0), uint16(3), uint16(0x100))          // sizes; console; NX
	put(uint64(1<<20), uint64(1<<12), uint64(1<<20), uint64(1<<12), uint32(0), uint32(16))       // stack and heap; 16 directories
	put(uint32(sectionRVA), uint32(len(section)), make([]byte, 15*8))                            // of which only the first, exports
	put([]byte(".edata\x00\x00"), uint32(len(section)), uint32(sectionRVA), uint32(headerBytes), uint32(headerBytes), make([]byte, 12), uint32(0x40000040))
	image := append(b.Bytes(), make([]byte, 2*headerBytes-b.Len())...)
	copy(image[headerBytes:], section)
	return image
}

// exports is the export directory: one function, one name, and, since the
// function's address lies inside the directory, a forwarder.
func exports() []byte {
	const (
		functions = 40 // behind the directory table
		names     = functions + 4
		ordinals  = names + 4
		texts     = ordinals + 2
		forward   = texts + len(libName) + 1
		name      = forward + len(forwarded) + 1
	)
	var b bytes.Buffer
	for _, v := range []uint32{0, 0, 0, sectionRVA + texts, 1, 1, 1, sectionRVA + functions, sectionRVA + names, sectionRVA + ordinals,
		sectionRVA + uint32(forward), sectionRVA + uint32(name)} {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	b.Write([]byte{0, 0}) // the name's function is the first
	for _, text := range []string{libName, forwarded, exportName} {
		b.WriteString(text + "\x00")
	}
	return b.Bytes()
}
