package platform

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/spec"
)

// Port publishes a TCP port of the app on this host.
type Port struct {
	Host      string // address, 127.0.0.1 unless given
	Published int
	Target    int
}

// portForm finds the parts of a published port; an IPv6 address is in brackets.
var portForm = regexp.MustCompile(`^(?:(\[[^\[\]]+\]|[^:\[\]]+):)??([0-9]+)(?::([0-9]+))?$`)

// ParsePort reads docker's form: [ADDRESS:]PORT[:APP-PORT].
func ParsePort(s string) (Port, error) {
	m := portForm.FindStringSubmatch(s)
	if m == nil {
		return Port{}, badInput(fmt.Errorf("port %q: want [ADDRESS:]PORT[:APP-PORT]", s), "for example -p 8080:5000")
	}
	p := Port{Host: cmp.Or(strings.Trim(m[1], "[]"), "127.0.0.1")}
	for _, x := range []struct {
		text string
		to   *int
	}{{m[2], &p.Published}, {cmp.Or(m[3], m[2]), &p.Target}} {
		n, err := strconv.ParseUint(x.text, 10, 16)
		if err != nil || n == 0 {
			return Port{}, badInput(fmt.Errorf("port %q: %s is no port number", s, x.text), "ports are numbers from 1 to 65535")
		}
		*x.to = int(n)
	}
	return p, nil
}

// forward listens on the ports that differ from the app's own and passes
// connections on. A port that is taken is an error before anything starts.
func forward(ctx context.Context, ports []Port) (stop func(), err error) {
	var listeners []net.Listener
	stop = func() {
		for _, l := range listeners {
			l.Close()
		}
	}
	for _, p := range ports {
		addr := net.JoinHostPort(p.Host, strconv.Itoa(p.Published))
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			stop()
			return nil, spec.WithHint(fmt.Errorf("publish port %d: %w", p.Published, err), "choose another one, for example -p %d:%d", p.Published+1, p.Target)
		}
		if p.Published == p.Target {
			// The app listens there itself: it shares the host's network.
			l.Close()
			continue
		}
		listeners = append(listeners, l)
		go serve(ctx, l, net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Target)))
	}
	return stop, nil
}

func serve(ctx context.Context, l net.Listener, target string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				io.Copy(out, in)
				if c, ok := out.(*net.TCPConn); ok {
					c.CloseWrite()
				}
			}()
			io.Copy(in, out)
		}()
	}
}
