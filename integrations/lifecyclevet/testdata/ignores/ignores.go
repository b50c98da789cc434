package ignores

import (
	"context"

	"github.com/seed080d9131/lifecycle"
)

func suppressed(ctx context.Context, host *lifecycle.Host) {
	go host.Durability().Append(ctx, nil) //lifecyclevet:ignore the demonstration of what happens
	//lifecyclevet:ignore the demonstration of what happens
	go host.Durability().Append(ctx, nil)
	go host.Durability().Append(ctx, nil) //lifecyclevet:ignored is another word // want `this goroutine appends`
}

// A comment beside a statement is about that one, not about the next.
func beside(ctx context.Context, host *lifecycle.Host) {
	go host.Durability().Append(ctx, nil) //lifecyclevet:ignore the demonstration of what happens
	go host.Durability().Append(ctx, nil) // want `this goroutine appends`
}

/* want `//lifecyclevet:ignore without a reason suppresses nothing: say why the report is wrong here` */ //lifecyclevet:ignore
func withoutAReason(ctx context.Context, host *lifecycle.Host) {
	go host.Durability().Append(ctx, nil) // want `this goroutine appends`
}
