// Package verification is the root of the suites that try to break what lifecycle
// promises; its README says which breaks what, and how to run them.
package verification
