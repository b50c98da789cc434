package workload

import (
	"encoding/binary"
	"io"
)

// Kind is what a process says in a Message.
type Kind uint32

const (
	Opening      Kind = iota + 1 // the log is about to be opened
	Serving                      // it is open, and the committers start
	Operation                    // an operation on a file begins
	Acknowledged                 // ID is durable at Offset
	Truncating                   // what lies before Offset may vanish
	Exiting                      // the exit is about to begin
	Exited                       // it returned nil, and Offset transactions had been accepted
)

// Message is what a process under test says, in one write: it is told whole or, if
// the process is killed before, not at all.
type Message struct {
	Kind   Kind
	ID     ID
	Offset uint64
}

const messageBytes = 4 + idBytes + 8

// Send writes m to w.
func (m Message) Send(w io.Writer) error {
	var b [messageBytes]byte
	binary.LittleEndian.PutUint32(b[0:], uint32(m.Kind))
	binary.LittleEndian.PutUint32(b[4:], m.ID.Life)
	binary.LittleEndian.PutUint32(b[8:], m.ID.Committer)
	binary.LittleEndian.PutUint32(b[12:], m.ID.Serial)
	binary.LittleEndian.PutUint64(b[16:], m.Offset)
	_, err := w.Write(b[:])
	return err
}

// Receive reads the next message from r. Its error is io.EOF at the end.
func Receive(r io.Reader) (Message, error) {
	var b [messageBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Message{}, err
	}
	return Message{
		Kind: Kind(binary.LittleEndian.Uint32(b[0:])),
		ID: ID{
			Life:      binary.LittleEndian.Uint32(b[4:]),
			Committer: binary.LittleEndian.Uint32(b[8:]),
			Serial:    binary.LittleEndian.Uint32(b[12:]),
		},
		Offset: binary.LittleEndian.Uint64(b[16:]),
	}, nil
}
