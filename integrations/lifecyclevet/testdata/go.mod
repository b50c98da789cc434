module example.com/server

go 1.25.0

replace github.com/seed080d9131/lifecycle => ../../..

require (
	github.com/seed080d9131/lifecycle v0.0.0-00010101000000-000000000000
	golang.org/x/sync v0.22.0
)
