package jetstreamlog

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// Entry is one transaction as Read yields it.
type Entry struct {
	Offset uint64
	Data   []byte // the caller's to keep
}

// What Read asks for at a time.
const (
	readMessages = 1000
	readBytes    = 4 << 20
)

// How often something has to be found missing. A follower that answers may have carried
// out a truncation of which the leader, when it is asked, tells only a moment later.
const looks = 4

// Read yields the transactions from an offset on, in order and without a gap, to the last
// one that was durable when the loop began: of what others wrote, what was there at Open;
// of this Log's, what a Sync covered. From there on it yields nothing. Between two steps
// it holds nothing on the servers.
//
// An error is yielded last, with a zero Entry: ErrTruncated if the offset lies before
// First, or if what comes next has been truncated meanwhile; ErrForeign if something is
// missing or is none of a log's; ErrClosed; ErrTimeout if a step took longer than
// Options.Timeout; or ctx's own.
func (l *Log) Read(ctx context.Context, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		l.mu.Lock()
		end := l.durable
		l.mu.Unlock()
		for from < end {
			messages, err := l.fetch(ctx, from, end)
			for _, m := range messages {
				var entry Entry
				if entry, err = l.entry(ctx, m); err != nil {
					break
				}
				if !yield(entry, nil) {
					return
				}
				from++
			}
			if err != nil {
				yield(Entry{}, fmt.Errorf("jetstreamlog: stream %q: read offset %d: %w", l.name, from, err))
				return
			}
		}
	}
}

// fetch returns messages from an offset on, at least one. A server that answers may be
// behind: it is asked again.
func (l *Log) fetch(ctx context.Context, from, end uint64) (messages []*jetstream.RawStreamMsg, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.options.Timeout)
	defer cancel()
	missing := 0
	err = try(ctx, func(ctx context.Context) (bool, error) {
		if l.closed.Load() {
			return true, ErrClosed
		}
		answer, err := jetstreamext.GetBatch(ctx, l.js, l.name, int(min(end-from, readMessages)),
			jetstreamext.GetBatchSeq(sequence(from)), jetstreamext.GetBatchMaxBytes(readBytes))
		if err != nil {
			return isPermanent(err), err
		}
		for m, err := range answer {
			if err == nil && m.Sequence == sequence(from)+uint64(len(messages)) {
				messages = append(messages, m)
				continue
			}
			if len(messages) > 0 { // the rest is asked for later
				return false, nil
			}
			if err != nil && !errors.Is(err, jetstreamext.ErrNoMessages) {
				return isPermanent(err), err
			}
			if err == nil {
				missing++
				err = fmt.Errorf("%w: sequence %d follows %d", ErrForeign, m.Sequence, from)
			}
			permanent, err := l.ifTruncated(ctx, from, err)
			return permanent || missing == looks, err
		}
		if len(messages) == 0 {
			return false, errors.New("an empty answer")
		}
		return false, nil
	})
	return messages, err
}

func (l *Log) entry(ctx context.Context, m *jetstream.RawStreamMsg) (Entry, error) {
	h, err := parseHeader(m.Header)
	if err != nil {
		return Entry{}, err
	}
	data := m.Data
	if h.kind == kindParts {
		if data, err = l.join(ctx, m.Sequence-1, data); err != nil {
			return Entry{}, err
		}
	}
	return Entry{m.Sequence - 1, data}, nil
}

// ifTruncated is what try is told of an error that came where an offset was looked for:
// ErrTruncated, for good, if that is why.
func (l *Log) ifTruncated(ctx context.Context, offset uint64, err error) (permanent bool, _ error) {
	state, stateErr := l.txs.state(ctx)
	if stateErr != nil {
		return false, fmt.Errorf("%w; and: %w", err, stateErr)
	}
	if first := firstOffset(state); first > offset {
		return true, fmt.Errorf("%w: the first is %d", ErrTruncated, first)
	}
	return isPermanent(err), err
}
