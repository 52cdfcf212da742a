// Command kiln turns source code into OCI images with Cloud Native Buildpacks,
// without Docker, daemon or root.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

func main() {
	sandbox.Init()
	dockerfile.Init()
	os.Exit(Main())
}

// Main is kiln's main, for tests that run the real program.
func Main() int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go cancelOnSignal(cancel)
	k := &kiln{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ()}
	err := k.execute(ctx, os.Args[1:])
	if sig := (signalled{}); err != nil && errors.As(context.Cause(ctx), &sig) {
		err = sig
	}
	return k.report(err)
}

// cancelOnSignal ends the work when somebody presses Ctrl-C, or when nobody
// reads what it prints any more.
func cancelOnSignal(cancel context.CancelCauseFunc) {
	signals, pipes := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// SIGPIPE comes for broken connections too, which their writers hear of. It
	// stays caught, or clean-up would be killed by its own last words.
	signal.Notify(pipes, syscall.SIGPIPE)
	for {
		select {
		case sig := <-signals:
			// A second signal is for the kernel: it ends us where clean-up hangs,
			// and what is left is reclaimed by the next kiln.
			signal.Stop(signals)
			cancel(signalled{sig.(syscall.Signal)})
			return
		case <-pipes:
			if unread(os.Stdout) || unread(os.Stderr) {
				cancel(signalled{syscall.SIGPIPE})
			}
		}
	}
}

// unread says whether f is a pipe that nobody reads.
func unread(f *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLERR != 0
}

// signalled is why a context was cancelled.
type signalled struct{ syscall.Signal }

func (s signalled) Error() string { return "stopped by " + s.String() }

// kiln is the program's connection to the world.
type kiln struct {
	stdin          *os.File
	stdout, stderr *os.File
	environ        []string
	// failures takes the error event of a command that prints JSON lines; nil
	// for other commands.
	failures event.Sink
}

// Exit codes of kiln's own, beside those of the lifecycle's phases (package
// spec), which a failed build passes on.
const (
	exitFailure      = 1   // anything without a code of its own
	exitUsage        = 2   // unknown command or flag
	exitInvalid      = 3   // an argument or input that cannot be used
	exitNotFound     = 4   // no such image
	exitUnauthorized = 5   // a registry refused
	exitSandbox      = 6   // no way to isolate foreign code on this host
	exitDiskFull     = 7   // no space, or quota
	exitNetwork      = 8   // a registry or mirror could not be reached, or answered 429 or 5xx
	exitSignal       = 128 // plus the signal's number
)

// exitCodes is the table that `kiln help exit-codes` prints.
var exitCodes = []struct {
	code int
	what string
}{
	{0, "it went well"},
	{exitFailure, "a failure without a code of its own"},
	{exitUsage, "unknown command or flag"},
	{exitInvalid, "an argument or an input file that cannot be used"},
	{exitNotFound, "no such image or repository"},
	{exitUnauthorized, "a registry refused access"},
	{exitSandbox, "this host gives no way to isolate the build; kiln doctor says why"},
	{exitDiskFull, "no space left on the disk, over quota, or a file over the limit"},
	{exitNetwork, "a registry or mirror could not be reached, or asked to come back later"},
	{spec.ExitPlatformAPI, "platform API not supported"},
	{spec.ExitBuildpackAPI, "a buildpack's API is not supported"},
	{spec.ExitDetectFail, "no group of buildpacks fits the app"},
	{spec.ExitDetectError, "no group fits, and a buildpack failed in detection"},
	{spec.ExitDetect, "detection failed otherwise"},
	{spec.ExitAnalyze, "analyze failed"},
	{spec.ExitRestore, "restore failed"},
	{spec.ExitBuildpack, "a buildpack's build failed"},
	{spec.ExitBuild, "build failed otherwise"},
	{spec.ExitExport, "export failed"},
	{spec.ExitRebase, "rebase failed, or did for one of several images"},
	{exitSignal + int(syscall.SIGINT), "stopped by Ctrl-C"},
	{exitSignal + int(syscall.SIGPIPE), "stopped because nobody reads the output any more"},
	{exitSignal + int(syscall.SIGTERM), "stopped by SIGTERM"},
}

// exitCode is the one place where an error becomes a number.
func exitCode(err error) int {
	var run *sandbox.ExitError
	var sig signalled
	switch {
	case err == nil:
		return 0
	case errors.As(err, &sig):
		return exitSignal + int(sig.Signal)
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.As(err, &run) && !errors.As(err, new(*spec.ExitError)):
		if run.Signal != 0 {
			return exitSignal + int(run.Signal)
		}
		return run.Code
	case errors.As(err, new(*sandbox.UnavailableError)):
		return exitSandbox
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return exitDiskFull
	case errors.Is(err, syscall.EROFS):
		return exitInvalid
	case errors.Is(err, image.ErrUnauthorized):
		return exitUnauthorized
	case errors.Is(err, image.ErrNotFound):
		return exitNotFound
	case errors.Is(err, image.ErrUnavailable), isUnreachable(err):
		return exitNetwork
	}
	return spec.ExitCode(err, exitFailure)
}

// report says err and its hint, to people on stderr and to programs that read
// events on stdout, and returns the exit code.
func (k *kiln) report(err error) int {
	code := exitCode(err)
	if err == nil || errors.As(err, new(childExit)) || code == exitSignal+int(syscall.SIGPIPE) {
		return code
	}
	hint := hintOf(err)
	if k.failures != nil {
		k.failures.Emit(event.Failed{Message: err.Error(), Hint: hint, ExitCode: code})
	}
	style := k.style(k.stderr, event.Style{})
	paint := func(color, s string) string {
		if style.Color {
			return color + s + "\x1b[0m"
		}
		return s
	}
	fmt.Fprintf(k.stderr, "%s %s\n", paint("\x1b[31m", "error:"), event.CleanLines(err.Error()))
	if hint != "" {
		fmt.Fprintf(k.stderr, "%s %s\n", paint("\x1b[36m", "hint:"), event.CleanLines(hint))
	}
	return code
}

// hintOf is what the user can do about err.
func hintOf(err error) string {
	if u := new(sandbox.UnavailableError); errors.As(err, &u) {
		return u.Hint()
	}
	hint := spec.HintOf(err)
	switch {
	case hint != "":
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "free some space there; kiln store gc removes what no image and no cache needs"
	case errors.Is(err, syscall.EFBIG):
		hint = "ulimit -f, or the file system there, limits how large a file may be"
	case errors.Is(err, syscall.EROFS):
		hint = "name a directory that can be written to; for images that is --store, or KILN_STORE"
	}
	return hint
}

// childExit marks the exit of a command that ran in an image: it already said
// what it had to say.
type childExit struct{ error }

func (c childExit) Unwrap() error { return c.error }

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// style fits s to where w leads: colour and live lines are for terminals only,
// and NO_COLOR and TERM=dumb are honoured.
func (k *kiln) style(w io.Writer, s event.Style) event.Style {
	f, ok := w.(*os.File)
	terminal := ok && term.IsTerminal(int(f.Fd()))
	_, noColor := k.lookup("NO_COLOR")
	name, _ := k.lookup("TERM")
	s.Color = terminal && !noColor && name != "dumb"
	s.Live = terminal && name != "dumb"
	return s
}

// lookup finds a variable of the environment; of several the last counts.
func (k *kiln) lookup(name string) (string, bool) {
	for i := len(k.environ) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(k.environ[i], name+"="); ok {
			return v, true
		}
	}
	return "", false
}
