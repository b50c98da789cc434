// Package reports breaks the way of lifecycle.Report and lifecycle.Status to JSON and back, and the texts of
// lifecycle.Phase and lifecycle.State.
//
// What a host reports travels: into logs, over the status page, to other programs. So whatever a Report or a Status
// holds must come back equal, or its Marshal must say why not; whatever JSON they take must come out the same
// from then on; and a Report from anywhere must print without a control character that moves a terminal's cursor.
// Fuzzers build the values from random bytes and feed random JSON; real hosts, with failures and forced exits, give the
// rest.
package reports
