package jetstreamlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The longest body that the log gives a message, and the least max_payload that it works
// with. A server's file store takes no message over 32 MiB whatever its max_payload, and
// every server on the way holds a message as a whole; so a transaction may well be longer
// than a message can be.
const (
	maxMessageBytes = 1 << 20
	minPayload      = 64 << 10
)

const partsSuffix = "-parts" // of the second stream's name

// reference is the body of a message that stands for a long transaction: where in the
// second stream its parts lie. They were acknowledged before it was published. A part
// means nothing unless something refers to it, so publishing one twice does no harm:
// that is why this stream needs no fence.
type reference struct {
	Bytes int      `json:"bytes"`
	CRC   uint32   `json:"crc32c"`
	Parts []uint64 `json:"parts"` // sequences
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// split publishes a transaction's parts, each within Options.Timeout. It returns the
// reference to them, and the sequence that follows the last.
func (l *Log) split(ctx context.Context, tx []byte) (body []byte, end uint64, err error) {
	ref := reference{Bytes: len(tx), CRC: crc32.Checksum(tx, castagnoli)}
	for rest := tx; len(rest) > 0; {
		part := rest[:min(len(rest), l.inline())]
		limited, cancel := context.WithTimeout(ctx, l.options.Timeout)
		err := try(limited, func(ctx context.Context) (bool, error) {
			m := &nats.Msg{Subject: l.parts.subject, Data: part}
			ack, err := l.js.PublishMsg(ctx, m, jetstream.WithExpectStream(l.parts.name))
			if err != nil {
				return isPermanent(err), err
			}
			ref.Parts = append(ref.Parts, ack.Sequence)
			return false, nil
		})
		cancel()
		if err != nil {
			return nil, 0, fmt.Errorf("publish part %d of a transaction of %d bytes: %w", len(ref.Parts)+1, len(tx), err)
		}
		rest = rest[len(part):]
	}
	body, err = json.Marshal(ref)
	return body, ref.Parts[len(ref.Parts)-1] + 1, err
}

// join reads the parts of the transaction at an offset.
func (l *Log) join(ctx context.Context, offset uint64, body []byte) ([]byte, error) {
	var ref reference
	if err := json.Unmarshal(body, &ref); err != nil {
		return nil, fmt.Errorf("%w: its reference to parts: %w", ErrForeign, err)
	}
	var tx []byte
	for _, part := range ref.Parts {
		limited, cancel := context.WithTimeout(ctx, l.options.Timeout)
		err := try(limited, func(ctx context.Context) (bool, error) {
			m, err := l.parts.get(ctx, part)
			if err == nil {
				tx = append(tx, m.Data...)
				return false, nil
			}
			permanent, err := l.ifTruncated(ctx, offset, err)
			if !permanent && errors.Is(err, jetstream.ErrMsgNotFound) {
				if state, stateErr := l.parts.state(ctx); stateErr == nil && firstOffset(state) >= part {
					return true, fmt.Errorf("%w: it is gone", ErrForeign)
				}
			}
			return permanent, err
		})
		cancel()
		if err != nil {
			return nil, fmt.Errorf("read part %d: %w", part, err)
		}
	}
	if len(tx) != ref.Bytes || crc32.Checksum(tx, castagnoli) != ref.CRC {
		return nil, fmt.Errorf("%w: its parts have %d bytes with the sum %08x, not %d with %08x", ErrForeign, len(tx), crc32.Checksum(tx, castagnoli), ref.Bytes, ref.CRC)
	}
	return tx, nil
}
