// Package linear breaks the claim that a durability channel behaves, to all who use it at
// once, as if one thing happened after another: clients append, commit, wait and look while
// the host exits, the log fails or the drain is given up; what each asked and was told, and
// when, is a history; porcupine then looks for an order of all of it that a sequential
// specification allows. If there is none, the channel has told somebody something that no
// order explains: an offset twice, a durable offset that moves back, an acknowledgement
// before the sync, an append accepted after the seal.
//
// Whatever nobody asks for has its place in the history as well, as an operation between
// two steps of the host at which internal/seam stops by: the log's syncs, the actor's
// publishing, the seal, the end of the drain, the giving up. Seal and drain are two
// operations: appends are refused between them while durable still moves.
package linear

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

type kind string

const (
	// Of clients. A Commit is two operations over the same time: its append and its wait.
	appending kind = "append"
	waiting   kind = "wait"
	accepted  kind = "accepted"
	durable   kind = "durable"

	// Of the log and the host.
	syncing  kind = "sync"   // the log: what it holds is synced
	settling kind = "settle" // the actor: publishing it
	failing  kind = "fail"   // the actor: publishing that the log has failed
	sealing  kind = "seal"
	draining kind = "drain" // it has ended
	giving   kind = "give up"
	reading  kind = "read" // the log's records, at the end
)

// input is what was asked.
type input struct {
	kind   kind
	id     byte   // of the transaction that is appended
	offset int    // waited for
	count  int    // of synced records
	read   string // the ids of the log's synced records
}

// told is the kind of an answer.
type told string

const (
	yes           told = "yes"
	closed        told = "ErrClosed"
	logError      told = "LogError"
	ctxError      told = "the context's error"
	unknownLog    told = "ErrUnknown: LogError"
	unknownForced told = "ErrUnknown: ErrForced"
	unknownCtx    told = "ErrUnknown: the context's error"
)

// output is what was answered.
type output struct {
	told   told
	offset int // given, or the value of accepted or durable
}

// state is all that the specification knows of a channel.
type state struct {
	ids                             string // of the accepted, by offset, a byte each
	synced                          int    // the log's
	durable                         int
	sealed, failed, gaveUp, drained bool
}

// step says whether a channel in that state may answer so, and what becomes of it.
func (s state) step(in input, out output) (bool, state) {
	all := len(s.ids)
	known := s.failed || s.gaveUp // what is not durable never will be
	switch in.kind {
	case appending:
		switch out.told {
		case yes:
			ok := !s.sealed && !s.failed && out.offset == all
			s.ids += string([]byte{in.id})
			return ok, s
		case closed:
			return s.sealed, s
		case logError:
			return s.failed, s
		case ctxError:
			return true, s
		}
	case waiting:
		switch out.told {
		case yes:
			return in.offset < s.durable, s
		case unknownLog:
			return in.offset >= s.durable && in.offset < all && s.failed, s
		case unknownForced:
			return in.offset >= s.durable && in.offset < all && s.gaveUp, s
		case unknownCtx:
			return in.offset >= s.durable && in.offset < all && !known, s
		case ctxError:
			return in.offset >= all && !s.sealed && !s.failed, s
		case closed:
			return in.offset >= all && s.sealed, s
		case logError:
			return in.offset >= all && s.failed, s
		}
	case accepted:
		return out.offset == all, s
	case durable:
		return out.offset == s.durable, s
	case syncing:
		ok := in.count > s.synced && in.count <= all
		s.synced = in.count
		return ok, s
	case settling:
		if s.gaveUp {
			return true, s // too late: durable never moves again
		}
		ok := !s.failed && in.count <= s.synced && in.count > s.durable
		s.durable = in.count
		return ok, s
	case failing:
		if s.gaveUp {
			return true, s
		}
		ok := !s.failed
		s.failed = true
		return ok, s
	case sealing:
		ok := !s.sealed
		s.sealed = true
		return ok, s
	case giving:
		s.gaveUp = s.durable < all && !s.failed // or else there is nothing to give up
		return s.sealed, s
	case draining:
		ok := s.sealed && !s.drained && (s.durable == all || known)
		s.drained = true
		return ok, s
	case reading:
		ok := s.drained && len(in.read) >= s.durable && len(in.read) <= all && s.ids[:len(in.read)] == in.read
		return ok, s
	}
	return false, s
}

var model = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(s, in, out any) (bool, any) {
		return s.(state).step(in.(input), out.(output))
	},
	DescribeOperation: func(in, out any) string { return describe(in.(input), out.(output)) },
}

func describe(in input, out output) string {
	switch in.kind {
	case appending:
		return fmt.Sprintf("append(%d): %s, offset %d", in.id, out.told, out.offset)
	case waiting:
		return fmt.Sprintf("wait(%d): %s", in.offset, out.told)
	case accepted, durable:
		return fmt.Sprintf("%s: %d", in.kind, out.offset)
	case syncing, settling:
		return fmt.Sprintf("%s(%d)", in.kind, in.count)
	case reading:
		return fmt.Sprintf("read: %v", []byte(in.read))
	}
	return string(in.kind)
}
