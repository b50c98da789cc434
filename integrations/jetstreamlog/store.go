package jetstreamlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/nats-io/nats.go/jetstream"
)

// store is one of the log's two streams.
type store struct {
	name    string
	subject string
	stream  jetstream.Stream
	firstAt atomic.Uint64 // offset of the oldest message, as far as heard
}

// openStore finds the stream and checks it, or makes it.
func openStore(ctx context.Context, js jetstream.JetStream, name, subject string, replicas int) (*store, error) {
	s := &store{name: name, subject: subject}
	err := try(ctx, func(ctx context.Context) (permanent bool, err error) {
		s.stream, err = js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			s.stream, err = js.CreateStream(ctx, streamConfig(name, subject, replicas))
			if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
				return false, err // made by another since
			}
			var api *jetstream.APIError
			if errors.As(err, &api) && api.Code < 500 && api.ErrorCode != noSuitablePeers {
				return true, err
			}
		}
		if err != nil {
			return isPermanent(err), err
		}
		return true, checkConfig(s.stream.CachedInfo().Config, subject, replicas)
	})
	if err != nil {
		return nil, fmt.Errorf("stream %q: %w", name, err)
	}
	return s, nil
}

// noSuitablePeers is said when too few servers are there, which those that are about to
// start will change.
const noSuitablePeers = 10005

// streamConfig is what Open asks for. Nothing in it ever drops a message.
func streamConfig(name, subject string, replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        name,
		Description: "log of a lifecycle.Host",
		Subjects:    []string{subject},
		Storage:     jetstream.FileStorage,
		Replicas:    replicas,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		MaxMsgs:     -1, MaxBytes: -1, MaxMsgsPerSubject: -1, MaxMsgSize: -1,
		AllowAtomicPublish: true,
		AllowDirect:        true,
		DenyDelete:         true,
	}
}

// checkConfig says what in a stream's configuration breaks a promise of the log.
func checkConfig(c jetstream.StreamConfig, subject string, replicas int) error {
	for _, wrong := range []struct {
		is   bool
		what string
	}{
		{!slices.Equal(c.Subjects, []string{subject}), fmt.Sprintf("its subjects are %q, not %q alone", c.Subjects, subject)},
		{c.Storage != jetstream.FileStorage, "its storage is not file"},
		{c.Replicas < replicas, fmt.Sprintf("it has %d replicas, fewer than %d", c.Replicas, replicas)},
		{c.Retention != jetstream.LimitsPolicy, "its retention is not limits"},
		{c.MaxAge != 0, "it has a max age"},
		{c.MaxMsgs > 0 && c.Discard != jetstream.DiscardNew, "at its max messages it drops old ones"},
		{c.MaxBytes > 0 && c.Discard != jetstream.DiscardNew, "at its max bytes it drops old ones"},
		{c.MaxMsgsPerSubject > 0 && (c.Discard != jetstream.DiscardNew || !c.DiscardNewPerSubject), "at its max messages of a subject it drops old ones"},
		{c.MaxMsgSize > 0 && c.MaxMsgSize < maxMessageBytes+headerBytes, fmt.Sprintf("it takes messages of %d bytes, and the log needs %d", c.MaxMsgSize, maxMessageBytes+headerBytes)},
		{!c.AllowAtomicPublish, "it does not take atomic batches"},
		{!c.AllowDirect, "it does not allow direct reads"},
		{c.NoAck, "it does not acknowledge"},
		{c.Sealed, "it is sealed"},
		{c.DenyPurge, "it can't be purged"},
		{c.AllowRollup, "it allows roll-ups, which drop messages"},
		{c.AllowMsgTTL, "it lets messages expire"},
		{c.AllowMsgCounter, "it is a counter"},
		{c.Mirror != nil || len(c.Sources) > 0, "it copies another stream"},
		{c.SubjectTransform != nil, "it renames subjects"},
		{c.PersistMode != jetstream.DefaultPersistMode, "it acknowledges before it has stored"},
	} {
		if wrong.is {
			return fmt.Errorf("%w: %s", ErrInvalid, wrong.what)
		}
	}
	return nil
}

// state asks the leader where the stream stands.
func (s *store) state(ctx context.Context) (state jetstream.StreamState, err error) {
	err = try(ctx, func(ctx context.Context) (bool, error) {
		info, err := s.stream.Info(ctx)
		if err != nil {
			return errors.Is(err, jetstream.ErrStreamNotFound) || isPermanent(err), err
		}
		state = info.State
		return false, nil
	})
	if err != nil {
		return state, fmt.Errorf("stream %q: ask for its state: %w", s.name, err)
	}
	s.heard(firstOffset(state))
	return state, nil
}

// heard takes note of the oldest message. What is gone does not come back, but of two
// answers the older one may be the later to arrive.
func (s *store) heard(first uint64) {
	for old := s.firstAt.Load(); first > old && !s.firstAt.CompareAndSwap(old, first); {
		old = s.firstAt.Load()
	}
}

// firstOffset is the offset of a stream's oldest message, or of the next one if there is
// none.
func firstOffset(state jetstream.StreamState) uint64 {
	if state.Msgs > 0 {
		return state.FirstSeq - 1
	}
	return state.LastSeq
}

func (s *store) first() uint64 { return s.firstAt.Load() }

func (s *store) get(ctx context.Context, sequence uint64) (*jetstream.RawStreamMsg, error) {
	return s.stream.GetMsg(ctx, sequence)
}

// purge removes what is below a sequence. Doing so twice does no harm.
func (s *store) purge(ctx context.Context, below uint64) error {
	err := try(ctx, func(ctx context.Context) (bool, error) {
		err := s.stream.Purge(ctx, jetstream.WithPurgeSequence(below))
		return errors.Is(err, jetstream.ErrStreamNotFound) || isPermanent(err), err
	})
	if err != nil {
		return fmt.Errorf("stream %q: purge below sequence %d: %w", s.name, below, err)
	}
	_, err = s.state(ctx)
	return err
}
