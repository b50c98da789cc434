package lifecyclevet_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/analysistest"

	"github.com/seed080d9131/lifecycle/integrations/lifecyclevet"
)

// testdata makes a module of the packages in testdata, which requires the library as
// it is in this repository.
func testdata(t *testing.T) string {
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOFLAGS", "-mod=mod")
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS("testdata")))
	library, err := filepath.Abs("../..")
	require.NoError(t, err)
	mod := "module example.com/server\n\ngo 1.25.0\n\n" +
		"require github.com/seed080d9131/lifecycle v0.0.0-00010101000000-000000000000\n" +
		"require golang.org/x/sync v0.22.0\n" +
		"replace github.com/seed080d9131/lifecycle => " + strconv.Quote(library) + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o600))
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
