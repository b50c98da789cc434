package workload

import (
	"fmt"
	"iter"

	"github.com/seed080d9131/lifecycle/commitlog"
)

// Log is the part of an opened log that a judge looks at.
type Log interface {
	First() uint64
	Next() uint64
	Read(from uint64) iter.Seq2[commitlog.Entry, error]
}

// A Judge knows what a log owes, through any number of crashes, and says what is
// wrong with one that was opened again. Its methods are for one goroutine.
type Judge struct {
	Shape
	Committers uint32 // of each life, the checkpoint among them

	Counts

	acked   map[uint64]ID // since the last Check
	known   []ID          // what each offset held when the log was last opened; unseen if nobody saw
	cut     uint64        // the highest offset to which the log was asked to truncate itself
	lives   uint32        // that have begun
	invalid []string
}

// Counts are what a Judge has met. They only grow, Held apart.
type Counts struct {
	Acknowledged int
	Recovered    int // durable, as a reopening showed, without an acknowledgement
	Held         int // by the log at the last Check
}

var unseen = ID{Life: ^uint32(0)}

// Begin says that a life of the log begins.
func (j *Judge) Begin(life uint32) { j.lives = max(j.lives, life+1) }

// Acknowledge says that a transaction was acknowledged as durable at an offset.
func (j *Judge) Acknowledge(offset uint64, id ID) {
	if j.acked == nil {
		j.acked = make(map[uint64]ID)
	}
	if was, ok := j.acked[offset]; ok && was != id {
		j.invalid = append(j.invalid, fmt.Sprintf("offset %d was acknowledged to two: %v, and %v", offset, was, id))
	}
	if offset < uint64(len(j.known)) {
		j.invalid = append(j.invalid, fmt.Sprintf("offset %d was acknowledged to %v, but the log held it already", offset, id))
	}
	j.acked[offset] = id
	j.Acknowledged++
}

// Truncating says that the log was asked to give up what lies before an offset.
func (j *Judge) Truncating(before uint64) { j.cut = max(j.cut, before) }

// Known yields what the log held when it was last checked, as far as it was seen.
func (j *Judge) Known() iter.Seq2[uint64, ID] {
	return func(yield func(uint64, ID) bool) {
		for offset, id := range j.known {
			if id != unseen && !yield(uint64(offset), id) {
				return
			}
		}
	}
}

// maxFindings are so many that more say nothing new.
const maxFindings = 20

// Check reads the log as it was opened again and returns what is wrong with it. What
// it holds, it owes from now on: a log that is open is durable as a whole.
func (j *Judge) Check(log Log) (findings []string) {
	found := func(format string, args ...any) {
		if len(findings) < maxFindings {
			findings = append(findings, fmt.Sprintf(format, args...))
		}
	}
	for _, finding := range j.invalid {
		found("%s", finding)
	}
	j.invalid = nil

	first, next := log.First(), log.Next()
	if first > j.cut {
		found("the log begins at offset %d, but no truncation went beyond %d", first, j.cut)
	}
	if owed := uint64(len(j.known)); next < owed {
		found("lost: the log ends at offset %d, but an earlier opening showed all below %d", next, owed)
	}
	for offset, id := range j.acked {
		if offset >= next {
			found("lost: offset %d was acknowledged (%v), but the log ends at %d", offset, id, next)
		}
	}

	type committer struct{ life, number uint32 }
	serials := make(map[committer]uint32)
	at := first
	for entry, err := range log.Read(first) {
		if err != nil {
			found("reading stopped before offset %d: %v", at, err)
			break
		}
		if entry.Offset != at {
			found("offset %d is read where %d belongs", entry.Offset, at)
			break
		}
		id, err := j.Parse(entry.Data)
		switch {
		case err != nil:
			found("invented: offset %d holds what nobody appended: %v", at, err)
		case id.Life >= j.lives || id.Committer >= j.Committers:
			found("invented: offset %d holds a transaction of nobody: %v", at, id)
		default:
			if at < uint64(len(j.known)) {
				if was := j.known[at]; was != unseen && was != id {
					found("offset %d held %v, and holds %v now", at, was, id)
				}
			}
			if acked, ok := j.acked[at]; ok && acked != id {
				found("lost: offset %d was acknowledged to %v, and holds %v", at, acked, id)
			}
			// A committer appends one after another, so its serials stand in a row:
			// none is missing, in another's place, or there twice.
			who := committer{id.Life, id.Committer}
			switch want, ok := serials[who]; {
			case ok && id.Serial != want:
				found("offset %d holds %v, but serial %d of that committer comes next", at, id, want)
			case !ok && first == 0 && id.Serial != 0:
				found("offset %d holds %v, but nothing of that committer came before", at, id)
			}
			serials[who] = id.Serial + 1
		}
		if at >= uint64(len(j.known)) {
			j.unseenTo(at)
			j.known = append(j.known, id)
			if _, ok := j.acked[at]; !ok {
				j.Recovered++
			}
		}
		at++
	}
	if at != next {
		found("reading ended at offset %d, but the log says that it ends at %d", at, next)
	}
	j.unseenTo(at)
	j.Held = int(next - first)
	clear(j.acked) // known holds them now
	return findings
}

// unseenTo notes that the log held something at the offsets below end that it will not show any more.
func (j *Judge) unseenTo(end uint64) {
	for uint64(len(j.known)) < end {
		j.known = append(j.known, unseen)
	}
}
