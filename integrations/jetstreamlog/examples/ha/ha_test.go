//go:build unix

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheStoryEndsWell(t *testing.T) {
	program := filepath.Join(t.TempDir(), "ha")
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s%s", &stdout, &stderr)
	require.Regexp(t, `is fenced: .*fenced by another writer`, stdout.String())
	counts := regexp.MustCompile(`counts: .*`).FindString(stdout.String())
	require.Contains(t, counts, "killed 1, fenced 1, lost = 0, doubled = 0, wrong = 0")
	t.Log(counts)
}

func TestTheJudgeSeesWhatIsLostDoubledOrElsewhere(t *testing.T) {
	acked := map[string]uint64{"a": 1, "b": 2, "c": 3}
	unknown := map[string]bool{"d": true, "e": true}
	require.Equal(t, result{acknowledged: 3, unknown: 2, unknownThere: 1, records: 4},
		judge(acked, unknown, []put{{1, "a"}, {2, "b"}, {3, "c"}, {4, "d"}}))
	require.Equal(t, result{acknowledged: 3, unknown: 2, records: 4, lost: 1, doubled: 1, wrong: 2},
		judge(acked, unknown, []put{{1, "a"}, {2, "a"}, {5, "c"}, {6, "x"}}))
}

func TestARecordIsDecodedAsItWasEncodedAndNothingElseIs(t *testing.T) {
	for _, r := range []record{{kindPut, "key", "value"}, {kindPut, "k", ""}, {kindDelete, "key", ""}, {kindLead, "n1", ""}} {
		decoded, err := decodeRecord(r.encode())
		require.NoError(t, err)
		require.Equal(t, r, decoded)
	}
	for _, bad := range []string{"", "\x01", "\x01\x05\x00abcd", "\x09\x01\x00a", "\x00\x01\x00a"} {
		_, err := decodeRecord([]byte(bad))
		require.Error(t, err, "%q", bad)
	}
}

func TestTheSameRecordsMakeTheSameTable(t *testing.T) {
	t1, t2 := newTable(0), newTable(0)
	for offset, r := range []record{{kindPut, "a", "1"}, {kindLead, "n1", ""}, {kindPut, "b", "2"}, {kindPut, "a", "3"}, {kindDelete, "b", ""}} {
		t1.apply(uint64(offset), r)
		require.NoError(t, t2.replay(uint64(offset), r.encode()))
	}
	require.Equal(t, t1, t2)
	require.Equal(t, map[string]item{"a": {"3", 3}}, t1.items)
	require.ErrorContains(t, t2.replay(9, record{kindLead, "n1", ""}.encode()), "offset 9 follows 5")
}
