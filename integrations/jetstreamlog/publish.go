package jetstreamlog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// publish publishes the batch, and returns nil when it is acknowledged, at the sequences
// that belong to its offsets.
//
// The batch is one atomic batch, all or nothing, which the stream's leader takes only if
// the last sequence is the one before it. That is the fence; and it is what makes trying
// again safe: of any number of copies that are on their way, in whatever order they
// arrive, at most one is taken. A copy that is refused for its sequence finds either this
// log's own batch there, or somebody else's.
//
// Nothing follows before the answer. Were the next batch on its way already, it could
// come in although this one was refused: it needs only that what another writer put in
// this one's place has the same length.
func (l *Log) publish(ctx context.Context) error {
	last := l.next - uint64(len(l.batch)) // sequence before the batch
	messages := l.messages(last)
	err := try(ctx, func(ctx context.Context) (bool, error) {
		end, err := l.send(ctx, messages)
		switch {
		case err == nil && end != l.next:
			return true, fmt.Errorf("%w: sequences %d to %d were acknowledged as ending at %d", ErrForeign, last+1, l.next, end)
		case isWrongSequence(err):
			return l.find(ctx, last+1, err)
		}
		return isPermanent(err), err
	})
	if err != nil {
		return fmt.Errorf("publish sequences %d to %d: %w", last+1, l.next, err)
	}
	l.acknowledged()
	return nil
}

func (l *Log) messages(last uint64) []*nats.Msg {
	messages := make([]*nats.Msg, len(l.batch))
	for i, r := range l.batch {
		messages[i] = &nats.Msg{
			Subject: l.txs.subject,
			Header:  header{r.kind, l.session, r.floor}.encode(),
			Data:    l.buffer[r.start:r.end],
		}
	}
	messages[0].Header.Set(jetstream.ExpectedStreamHeader, l.name)
	messages[0].Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(last, 10))
	return messages
}

// send publishes the messages once, and returns the last one's sequence.
func (l *Log) send(ctx context.Context, messages []*nats.Msg) (uint64, error) {
	if len(messages) == 1 {
		ack, err := l.js.PublishMsg(ctx, messages[0], jetstream.WithRetryAttempts(0))
		if err != nil {
			return 0, err
		}
		return ack.Sequence, nil
	}
	ack, err := jetstreamext.PublishMsgBatch(ctx, l.js, messages, jetstreamext.BatchFlowControl{})
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// find tells whose message stands at the first sequence of a batch that was refused. Nil
// means that the batch is in the stream. What it reads there is committed, whichever
// server answers; only what it does not find may be on its way still.
func (l *Log) find(ctx context.Context, first uint64, refused error) (permanent bool, err error) {
	for _, at := range []uint64{first, l.next} {
		m, err := l.txs.get(ctx, at)
		if err != nil {
			return false, fmt.Errorf("%w; and look at sequence %d: %w", refused, at, err)
		}
		switch h, err := parseHeader(m.Header); {
		case err != nil:
			return true, fmt.Errorf("%w: sequence %d: %w (%w)", ErrFenced, at, err, refused)
		case h.session != l.session:
			return true, fmt.Errorf("%w: sequence %d was written by session %s, this is %s (%w)", ErrFenced, at, h.session, l.session, refused)
		}
	}
	return false, nil
}

func isWrongSequence(err error) bool {
	code := errorCode(err)
	return code == jetstream.JSErrCodeStreamWrongLastSequence || code == jetstream.JSErrCodeStreamWrongLastSequenceConstant
}

// lastSequence returns the last sequence that a refusal tells, if it does.
func lastSequence(err error) (last uint64, told bool) {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		_, err := fmt.Sscanf(api.Description, "wrong last sequence: %d", &last)
		return last, err == nil
	}
	return 0, false
}

// The servers' codes for what no further try can change.
var permanentCodes = map[jetstream.ErrorCode]bool{
	10039: true, // JetStream is not enabled for the account
	10054: true, // a message over the stream's limit
	10074: true, // replicas on a server that is in no cluster
	10060: true, // another stream has the subject
	10109: true, // the stream is sealed
	10174: true, // no atomic batches
	10185: true, // the servers are too old
	10199: true, // the batch has more messages than the servers take
}

func isPermanent(err error) bool {
	for _, e := range []error{nats.ErrMaxPayload, nats.ErrConnectionClosed, nats.ErrConnectionDraining, nats.ErrHeadersNotSupported,
		nats.ErrBadSubject, nats.ErrAuthorization, nats.ErrPermissionViolation} {
		if errors.Is(err, e) {
			return true
		}
	}
	return permanentCodes[errorCode(err)]
}

func errorCode(err error) jetstream.ErrorCode {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.ErrorCode
	}
	return 0
}

// How long one try may take, and the pause before the next: at first, and at most.
const (
	firstTry, longestTry     = time.Second, 8 * time.Second
	firstPause, longestPause = 10 * time.Millisecond, 250 * time.Millisecond
)

// try calls f until it returns nil, or a permanent error, or ctx ends. Each call gets a
// context of its own, which ends sooner: an answer that was lost costs a short while.
func try(ctx context.Context, f func(context.Context) (permanent bool, err error)) error {
	pause := firstPause
	for limit := firstTry; ; limit = min(2*limit, longestTry) {
		once, cancel := context.WithTimeout(ctx, limit)
		permanent, err := f(once)
		cancel()
		if err == nil || permanent {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("%w: %w", ctx.Err(), err)
			}
			return fmt.Errorf("%w: %w", ErrTimeout, err)
		}
		pause = min(2*pause, longestPause)
	}
}

// Each message has a header of the log's beside those of NATS: the format's version, the
// kind, the session, which is random and of one Log, and the floor: no transaction from
// this one on has a part with a lower sequence.
const (
	headerName  = "Lifecycle-Log"
	headerBytes = 1 << 10 // more than all headers of a message come to
	version     = "1"

	kindWhole = "whole" // the body is the transaction
	kindParts = "parts" // the body says where its parts are
)

type header struct {
	kind, session string
	floor         uint64
}

func (h header) encode() nats.Header {
	return nats.Header{headerName: {version + " " + h.kind + " " + h.session + " " + strconv.FormatUint(h.floor, 10)}}
}

func parseHeader(from nats.Header) (header, error) {
	text := from.Get(headerName)
	if text == "" {
		return header{}, fmt.Errorf("%w: a message without the header %s", ErrForeign, headerName)
	}
	fields := strings.Split(text, " ")
	if fields[0] != version {
		return header{}, fmt.Errorf("%w: a message of version %q: was it written by a later version?", ErrForeign, fields[0])
	}
	if len(fields) == 4 && (fields[1] == kindWhole || fields[1] == kindParts) {
		if floor, err := strconv.ParseUint(fields[3], 10, 64); err == nil {
			return header{fields[1], fields[2], floor}, nil
		}
	}
	return header{}, fmt.Errorf("%w: a message with the header %s: %s", ErrForeign, headerName, text)
}
