package dockerfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/internal/layer"
)

// insideName is argv[0] of a re-executed process that carries out a task in a
// sandbox.
const insideName = "kiln-dockerfile-inside"

// Init must be called by main, and by TestMain, before anything else happens
// but sandbox.Init: where this process is one that carries out a task in a
// sandbox it never returns. Elsewhere it costs nothing.
func Init() {
	if len(os.Args) == 2 && os.Args[0] == insideName {
		os.Exit(insideMain(os.Args[1]))
	}
}

// task is what a process in a sandbox is told to do: an Op of the root that it
// is in, or work on directories that it is shown.
type task struct {
	Owners layer.Owners
	Op     Op
	Unpack *unpackTask `json:",omitempty"`
	Diff   *diffTask   `json:",omitempty"`
	Fetch  string      `json:",omitempty"` // a URL to copy to standard output
}

// unpackTask unpacks the layer on standard input to a directory.
type unpackTask struct{ Dir string }

// diffTask writes the layer of an overlay to standard output, and gives all of
// its upper directory the time that the layer says.
type diffTask struct {
	Upper  string
	Lowers []string // topmost first
	Skip   []string // paths below Upper that are removed first
	// Claim is who the new files of a step belong to that had no id of its own
	// to make them as (see layer.Record).
	Claim layer.Owner
}

// report is what a task writes to standard error, a line of JSON.
type report struct {
	Err     string   `json:"err,omitempty"`
	Errno   int      `json:"errno,omitempty"` // of Err
	Skipped []string `json:"skipped,omitempty"`
}

func insideMain(arg string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var t task
	err := json.Unmarshal([]byte(arg), &t)
	var r report
	if err == nil {
		r.Skipped, err = t.perform(ctx, os.Stdin, os.Stdout)
	}
	if err != nil {
		r.Err = err.Error()
		var errno syscall.Errno
		if errors.As(err, &errno) {
			r.Errno = int(errno)
		}
	}
	if b, jerr := json.Marshal(r); jerr == nil {
		os.Stderr.Write(append(b, '\n'))
	}
	if err != nil {
		return 1
	}
	return 0
}

// insideError is an error of a task. It unwraps to its errno, so that a full
// disk is known as one.
type insideError struct {
	text  string
	errno syscall.Errno
}

func (e *insideError) Error() string { return e.text }

func (e *insideError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// readReport makes of what a task wrote, and of how its process ended, what
// perform returned.
func readReport(stderr []byte, ended error) (skipped []string, err error) {
	var r report
	if jerr := json.Unmarshal(stderr, &r); jerr != nil {
		if ended != nil && len(stderr) > 0 {
			return nil, fmt.Errorf("%w: %s", ended, stderr)
		}
		return nil, ended
	}
	if r.Err != "" {
		return nil, &insideError{r.Err, syscall.Errno(r.Errno)}
	}
	return r.Skipped, ended
}

// perform does what t says. Skipped are devices that could not be made.
func (t task) perform(ctx context.Context, in io.Reader, out io.Writer) (skipped []string, err error) {
	switch {
	case t.Unpack != nil:
		return layer.ApplyOwned(ctx, t.Unpack.Dir, in, layer.Limits{}, t.Owners)
	case t.Diff != nil:
		return nil, t.Diff.perform(ctx, out)
	case t.Op.Look != nil:
		return nil, look(*t.Op.Look, out)
	case t.Op.Put != nil:
		return nil, put(ctx, *t.Op.Put, t.Owners, in)
	case t.Op.Take != nil:
		return nil, writeSources(ctx, out, layer.Stack{Upper: "/"}, nil, *t.Op.Take)
	case t.Fetch != "":
		return nil, fetch(ctx, t.Fetch, out)
	}
	return nil, errors.New("nothing to do")
}

func (d diffTask) perform(ctx context.Context, out io.Writer) error {
	for _, path := range d.Skip {
		if err := removeBelow(d.Upper, path); err != nil {
			return err
		}
	}
	if d.Claim != (layer.Owner{}) {
		if err := layer.Claim(ctx, d.Upper, d.Lowers, d.Claim); err != nil {
			return err
		}
	}
	if _, err := layer.WriteDiff(ctx, out, d.Upper, d.Lowers); err != nil {
		return err
	}
	return layer.SetTimes(ctx, d.Upper)
}

// removeBelow removes a file or directory, unless there is a link on the way: it
// leads to where that path is not.
func removeBelow(dir, path string) error {
	steps := strings.Split(strings.Trim(path, "/"), "/")
	for _, step := range steps[:len(steps)-1] {
		dir = filepath.Join(dir, step)
		if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
			return nil
		}
	}
	return layer.Remove(filepath.Join(dir, steps[len(steps)-1]))
}

func look(l Look, out io.Writer) error {
	root := layer.Stack{Upper: "/"}
	user, err := FindUser(root, l.User)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(Found{User: user, System: SystemOf(root)})
}

// SystemOf reads what a root says of itself. Whatever is wrong with that is not
// there.
func SystemOf(root layer.Stack) (s System) {
	apt, err := root.Lstat("etc/apt/apt.conf.d")
	s.Apt = err == nil && apt.IsDir()
	list, err := root.Lstat("etc/apt/sources.list")
	more, _ := root.ReadDir("etc/apt/sources.list.d")
	s.AptSources = err == nil && list.Size() > 0 || len(more) > 0
	for _, name := range []string{"usr/lib/os-release", "etc/os-release"} {
		b, err := root.ReadFile(name, maxReport)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch value = strings.Trim(value, "\"'"); name {
			case "ID":
				s.Distro = value
			case "VERSION_CODENAME":
				s.Codename = value
			}
		}
		return s
	}
	return s
}
