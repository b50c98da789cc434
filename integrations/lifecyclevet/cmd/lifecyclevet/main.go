// Command lifecyclevet is a vet tool that finds wrong uses of a lifecycle.Host:
//
//	go vet -vettool=$(which lifecyclevet) ./...
//
// The package lifecyclevet says what it looks for.
package main

import (
	"golang.org/x/tools/go/analysis/unitchecker"

	"github.com/seed080d9131/lifecycle/integrations/lifecyclevet"
)

func main() { unitchecker.Main(lifecyclevet.Analyzers()...) }
