package lifecyclesystemd_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/seed080d9131/lifecycle"
	"github.com/seed080d9131/lifecycle/integrations/lifecyclesystemd"
)

// A service under Type=notify.
func ExampleStart() {
	systemd := underSystemd() // in a service: the real one

	host := lifecycle.New(nil, lifecycle.Options{Name: "orders"})
	notifier, err := lifecyclesystemd.Start(host, lifecyclesystemd.Options{Still: 45 * time.Second}) // TimeoutStopSec=45
	if err != nil {
		panic(err)
	}
	if _, err := notifier.Ready("serving on :8080"); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // in a service: SIGTERM
	err = lifecycle.Run(ctx, host, lifecycle.RunOptions{Grace: time.Hour})
	if untold := notifier.Wait(); untold != nil {
		fmt.Println(untold) // it says nothing about the exit
	}

	fmt.Println(systemd.next())
	fmt.Println(systemd.next())
	fmt.Println(err)
	os.Unsetenv("NOTIFY_SOCKET")
	// Output:
	// READY=1
	// STOPPING=1
	// <nil>
}

// played is systemd's end of the socket.
type played struct{ *net.UnixConn }

func underSystemd() played {
	name := fmt.Sprintf("@an-example-%d", os.Getpid())
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		panic(err)
	}
	os.Setenv("NOTIFY_SOCKET", name)
	return played{socket}
}

// next is the next message, without its STATUS.
func (p played) next() string {
	buffer := make([]byte, 4096)
	n, err := p.Read(buffer)
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(string(buffer[:n]), "\n")
	return line
}
