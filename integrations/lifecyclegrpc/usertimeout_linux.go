package lifecyclegrpc

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout is grpc-go's default of keepalive.ServerParameters.Timeout, which it gives
// each *net.TCPConn as TCP_USER_TIMEOUT. Without it a client that has vanished with
// something unacknowledged is waited for until TCP gives up, a quarter of an hour later.
const userTimeout = 20 * time.Second

// setUserTimeout does it in grpc-go's place, which does not know a connection of this
// package for one of TCP. What the listener's socket has set stays.
func setUserTimeout(accepted net.Conn) {
	connection, ok := accepted.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := connection.SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = raw.Control(func(fd uintptr) {
		if set, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err == nil && set == 0 {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
		}
	})
}
