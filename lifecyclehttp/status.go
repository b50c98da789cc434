package lifecyclehttp

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"net/http"
	"strconv"
	"strings"
)

// Status shows what src's hosts do now and how their exits go: the seven phases
// and where the exit stands, tasks, calls, offsets, and, while the exit waits, for
// whom, with their stacks. Mount it at /debug/lifecycle, say. It answers GET and
// HEAD, with one self-contained page that follows the host by itself, or with a
// Snapshot as JSON if the query says format=json or the Accept header prefers
// application/json to HTML.
//
//	?host=NAME    the hosts of that name alone
//	?find=TEXT    the hosts in whose names TEXT occurs, in upper or lower case
//	?format=json  JSON ("html": the page, whatever Accept says)
//
// Of very many hosts the page shows 100 in detail, those first that need a look,
// and links to others; the JSON has the status of all. Names, causes and errors
// may hold anything.
//
// However many look, src is asked at most once a second. Where exits wait, that
// takes a goroutine profile, which stops the world as long as it takes to walk the
// stacks, for each host that exits: for 100 of them at most, within a quarter of a
// second. A request waits for that, or until its context ends, and for a second
// longer if it asks for a host that was not among them.
//
// Status panics if src is nil, or a pointer that is, or neither a Host nor a Controller
// and without a method Hosts.
func Status(src Source) http.Handler {
	mustHave(src, "Status")
	return &status{snapshots{hosts: hostsOf(src)}}
}

type status struct{ snapshots }

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Parse(pageHTML))

	// Nothing runs or is loaded but the page's own script and style.
	pagePolicy = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; connect-src 'self'; " +
		"img-src data:; script-src " + hashSource(pageJS) + "; style-src " + hashSource(pageCSS)
)

func hashSource(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (s *status) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	plain(w)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "GET or HEAD", http.StatusMethodNotAllowed)
		return
	}
	query := r.URL.Query()
	asJSON := false
	switch format := query.Get("format"); format {
	case "":
		asJSON = prefersJSON(r.Header.Values("Accept"))
	case "json":
		asJSON = true
	case "html":
	default:
		http.Error(w, `format is "html" or "json"`, http.StatusBadRequest)
		return
	}

	name, one := query.Get("host"), query.Has("host")
	var t *taking
	var err error
	if one {
		t, err = s.getWith(r.Context(), name)
	} else {
		t, err = s.get(r.Context())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	shown := *t.all
	find := strings.TrimSpace(query.Get("find"))
	switch {
	case one:
		shown.Hosts = keep(shown.Hosts, func(host string) bool { return host == name })
	case find != "":
		lower := strings.ToLower(find)
		shown.Hosts = keep(shown.Hosts, func(host string) bool { return strings.Contains(strings.ToLower(host), lower) })
	}

	var body bytes.Buffer
	if asJSON {
		w.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(&body)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(shown)
	} else {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", pagePolicy)
		w.Header().Set("Referrer-Policy", "no-referrer")
		err = pageTemplate.Execute(&body, newPage(&shown, one, name, find))
	}
	if err != nil {
		plain(w)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Vary", "Accept")
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	if one && len(shown.Hosts) == 0 {
		w.WriteHeader(http.StatusNotFound)
	}
	if r.Method == http.MethodGet {
		w.Write(body.Bytes()) // an error is the client's: it has gone
	}
}

func keep(hosts []HostSnapshot, which func(host string) bool) []HostSnapshot {
	kept := []HostSnapshot{}
	for _, h := range hosts {
		if which(h.Status.Host) {
			kept = append(kept, h)
		}
	}
	return kept
}

// prefersJSON reports whether the Accept headers name application/json, and HTML
// with no higher weight.
func prefersJSON(accept []string) bool {
	var toJSON, toHTML float64
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		kind, parameters, _ := strings.Cut(part, ";")
		weight := 1.0
		for parameter := range strings.SplitSeq(parameters, ";") {
			if q, ok := strings.CutPrefix(strings.TrimSpace(parameter), "q="); ok {
				weight, _ = strconv.ParseFloat(q, 64)
			}
		}
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "application/json":
			toJSON = max(toJSON, weight)
		case "text/html":
			toHTML = max(toHTML, weight)
		}
	}
	return toJSON > toHTML
}
