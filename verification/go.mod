module github.com/seed080d9131/lifecycle/verification

go 1.25.0

replace github.com/seed080d9131/lifecycle => ../

require (
	github.com/anishathalye/porcupine v1.3.1
	github.com/hanwen/go-fuse/v2 v2.12.1
	github.com/petermattis/goid v0.0.0-20260820044319-269ab09b5261
	github.com/seed080d9131/lifecycle v0.0.0-00010101000000-000000000000
	github.com/stretchr/testify v1.12.1
	go.uber.org/goleak v1.3.0
	pgregory.net/rapid v1.3.0
)

require (
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.28.0 // indirect
)
