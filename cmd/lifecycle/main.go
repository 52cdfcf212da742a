// Command lifecycle is all commands of the Cloud Native Buildpacks lifecycle
// but the launcher: the name it is called by, or its first argument, is the
// phase it carries out.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/lifecycle"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

func main() {
	sandbox.Init()
	dockerfile.Init()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	phase, args, err := lifecycle.Command(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(spec.ExitUsage)
	}
	code := lifecycle.Run(ctx, phase, args, os.Environ(), lifecycle.Host{Stdout: os.Stdout, Stderr: os.Stderr})
	stop()
	os.Exit(code)
}
