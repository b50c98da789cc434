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

// All checks look at all packages: a mistake is reported by its own check and by no
// other, and in the packages right and store by none.
func TestEachMistakeIsReportedWhereItIsMadeAndNothingElseIs(t *testing.T) {
	results := analysistest.Run(t, testdata(t), lifecyclevet.All, "./...")
	require.Len(t, results, 7)
	for _, result := range results {
		name := filepath.Base(result.Pass.Pkg.Path())
		for _, d := range result.Diagnostics {
			want := name
			if name == "ignores" && d.Category != "ignorereason" {
				want = "hostgo"
			} else if name == "ignores" {
				want = "ignorereason"
			}
			require.Equal(t, want, d.Category, d.Message)
			require.Equal(t, "https://github.com/seed080d9131/lifecycle/tree/main/integrations/lifecyclevet#"+want, d.URL)
		}
	}
}

func TestTheAnalyzersAreWhatDriversAskFor(t *testing.T) {
	require.NoError(t, analysis.Validate(lifecyclevet.Analyzers()))
	all := lifecyclevet.Analyzers()
	all[0] = nil
	require.NotNil(t, lifecyclevet.Analyzers()[0], "the slice is its caller's own")
}
