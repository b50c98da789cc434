package lifecyclevet_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/analysistest"

	"github.com/seed080d9131/lifecycle/integrations/lifecyclevet"
)

// testdata is a module that requires the library as it is in this repository.
func testdata(t *testing.T) string {
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOFLAGS", "-mod=mod")
	dir, err := filepath.Abs("testdata")
	require.NoError(t, err)
	return dir
}

func TestEachMistakeIsReportedWhereItIsMade(t *testing.T) {
	for _, a := range []*analysis.Analyzer{lifecyclevet.HostGo, lifecyclevet.AfterExit, lifecyclevet.SelfExit, lifecyclevet.LostCall} {
		t.Run(a.Name, func(t *testing.T) { analysistest.Run(t, testdata(t), a, "./"+a.Name) })
	}
}

func TestRightUsesAreNotReported(t *testing.T) {
	for _, a := range lifecyclevet.Analyzers() {
		t.Run(a.Name, func(t *testing.T) { analysistest.Run(t, testdata(t), a, "./right", "./store") })
	}
}
