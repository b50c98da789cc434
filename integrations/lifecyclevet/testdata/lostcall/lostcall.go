package lostcall

import (
	"context"
	"errors"
	"io"

	"github.com/seed080d9131/lifecycle"
)

func discarded(host *lifecycle.Host) error {
	host.Enter()           // want `the Call of this Enter is discarded, so the exit waits for it for ever: keep it and defer its Leave`
	_, err := host.Enter() // want `the Call of this Enter is discarded`
	return err
}

func kept(host *lifecycle.Host) {
	call, err := host.Enter() // want `the Call of this Enter is discarded`
	_, _ = call, err
}

func neverLeft(ctx context.Context, host *lifecycle.Host) error {
	call, err := host.Enter() // want `the Call of this Enter is never left, so the exit waits for it for ever: defer its Leave`
	if err != nil {
		return err
	}
	ctx = call.Context(ctx)
	return ctx.Err()
}

func onePath(host *lifecycle.Host, r io.Reader) error {
	call, err := host.Enter() // want `the Call of this Enter is not left where the function returns at line 37, so the exit waits for it for ever: defer its Leave once err is nil`
	if err != nil {
		return err
	}
	if _, err := r.Read(nil); err != nil {
		return err
	}
	call.Leave()
	return nil
}

func atTheEnd(host *lifecycle.Host, leave bool) {
	call, err := host.Enter() // want `is not left where the function returns at line 52`
	if err != nil {
		return
	}
	if leave {
		call.Leave()
	}

}

func reusedError(host *lifecycle.Host, r io.Reader) error {
	call, err := host.Enter() // want `is not left where the function returns at line 60`
	if err == nil {
		_, err = r.Read(nil)
	}
	if err != nil {
		return err
	}
	call.Leave()
	return nil
}

func loop(host *lifecycle.Host, r io.Reader) error {
	for {
		call, err := host.Enter() // want `the Call of this Enter can be lost when the loop comes to Enter again`
		if err != nil {
			return err
		}
		if _, err := r.Read(nil); err != nil {
			continue
		}
		call.Leave()
	}
}

func twice(host *lifecycle.Host, fails func() error) error {
	call, err := host.Enter()
	if err != nil {
		return err
	}
	defer call.Leave()
	if err := fails(); err != nil {
		call.Leave() // want `this Call is left a second time \(the first is at line 84\): a Leave too many lets the exit overtake another call, or fails the host`
		return err
	}
	return nil
}

func twiceInARow(host *lifecycle.Host) {
	if call, err := host.Enter(); err == nil {
		call.Leave()
		call.Leave() // want `this Call is left a second time`
	}
}

func deferredTwice(host *lifecycle.Host) (err error) {
	call, err := host.Enter()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, context.Canceled) }()
	defer call.Leave()
	defer call.Leave() // want `this Call is left a second time`
	return nil
}

func methodValues(host *lifecycle.Host, fails func() error) error {
	enter := host.Enter
	call, err := enter() // want `is not left where the function returns at line`
	if err != nil {
		return err
	}
	if err := fails(); err != nil {
		return err
	}
	call.Leave()
	return nil
}

type gate interface {
	Enter() (lifecycle.Call, error)
}

func interfaces(g gate) {
	_, _ = g.Enter() // want `the Call of this Enter is discarded`
}

func admitted(err error) bool { return err == nil }

func lostAfterAHelper(host *lifecycle.Host, fails func() error) error {
	call, err := host.Enter() // want `is not left where the function returns at line`
	if !admitted(err) {
		return err
	}
	if err := fails(); err != nil {
		return err
	}
	call.Leave()
	return nil
}
