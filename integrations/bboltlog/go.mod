module github.com/seed080d9131/lifecycle/integrations/bboltlog

go 1.25.0

require (
	github.com/seed080d9131/lifecycle v0.0.0-00010101000000-000000000000
	github.com/stretchr/testify v1.12.1
	go.etcd.io/bbolt v1.5.0
)

require (
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.45.0 // indirect
)

replace github.com/seed080d9131/lifecycle => ../..
