// Command lifecyclevet is a vet tool that finds wrong uses of a lifecycle.Host:
//
//	go vet -vettool=$(which lifecyclevet) ./...
//	lifecyclevet ./...
//
// The package lifecyclevet says what it looks for.
package main

import (
	"golang.org/x/tools/go/analysis/multichecker"

	"github.com/seed080d9131/lifecycle/integrations/lifecyclevet"
)

func main() { multichecker.Main(lifecyclevet.Analyzers()...) }
