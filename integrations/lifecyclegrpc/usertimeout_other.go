//go:build !linux

package lifecyclegrpc

import "net"

// setUserTimeout does nothing, as grpc-go does where it is not on Linux.
func setUserTimeout(net.Conn) {}
