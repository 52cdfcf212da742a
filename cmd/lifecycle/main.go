// Command lifecycle is all commands of the Cloud Native Buildpacks lifecycle
// but the launcher: the name it is called by, or its first argument, is the
// phase it carries out.
package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/lifecycle"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

func main() {
	sandbox.Init()
	dockerfile.Init()
	// What whoever started this process left open is not for buildpacks.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	environ := os.Environ()
	os.Unsetenv("CNB_REGISTRY_AUTH") // it is in environ, and for no other process
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	phase, args, err := lifecycle.Command(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(spec.ExitUsage)
	}
	code := lifecycle.Run(ctx, phase, args, environ, lifecycle.Host{Stdout: os.Stdout, Stderr: os.Stderr, Own: true})
	stop()
	os.Exit(code)
}
