package platform

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/sandbox"
)

// What is wrong with a request is said before anything is made or pulled for it.

// checkSource says what is wrong with the source directory.
func checkSource(source string) error {
	const hint = "name the folder of your app with --path"
	if source == "" {
		return badInput(errors.New("the source folder has an empty name"), hint)
	}
	fi, err := os.Stat(source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return badInput(fmt.Errorf("source %s does not exist", source), hint)
	case err != nil:
		return sourceError(source, err)
	case !fi.IsDir():
		return badInput(fmt.Errorf("source %s is not a folder", source), hint)
	}
	dir, err := os.Open(source)
	if err != nil {
		return sourceError(source, err)
	}
	defer dir.Close()
	// Somebody may stand in a folder that was removed under them.
	if _, err := dir.Readdirnames(1); errors.Is(err, fs.ErrNotExist) {
		return badInput(fmt.Errorf("source %s does not exist any more", source), hint)
	} else if err != nil && !errors.Is(err, io.EOF) {
		return sourceError(source, err)
	}
	return nil
}

// checkSandbox checks what a command line says of the sandbox.
func checkSandbox(network, isolation string, volumes []Volume) error {
	if !slices.Contains([]string{"", sandbox.HostNetwork, sandbox.NoNetwork}, network) {
		return badInput(fmt.Errorf("network %q is not known", network), "use host or none")
	}
	tiers := []sandbox.Tier{sandbox.Best, sandbox.Tier1, sandbox.Tier1S, sandbox.Tier2, sandbox.Tier3}
	if !slices.Contains(tiers, sandbox.Tier(isolation)) {
		return badInput(fmt.Errorf("isolation %q: must be 1, 1s, 2 or 3", isolation), "kiln doctor says what this host has")
	}
	for _, v := range volumes {
		if _, err := os.Stat(v.Source); err != nil {
			return badInput(fmt.Errorf("volume %s:%s: %w", v.Source, v.Target, err), "the first path is a folder or file of this host")
		}
	}
	return nil
}

// check says early that nothing could be written there.
func (d Destination) check() error {
	if d.Path == "" {
		return nil
	}
	parent := filepath.Dir(filepath.Clean(d.Path))
	fail := func(err error, hint string) error {
		return badInput(fmt.Errorf("output %s:%s: %w", d.Kind, d.Path, err), hint)
	}
	if fi, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("folder %s does not exist", parent), "make it first: mkdir -p "+parent)
	} else if err != nil {
		return fail(err, "choose another place")
	} else if !fi.IsDir() {
		return fail(fmt.Errorf("%s is not a folder", parent), "choose another place")
	}
	fi, err := os.Stat(d.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fail(err, "choose another place")
	case d.Kind == ToLayout && !fi.IsDir():
		return fail(errors.New("it is there already and is not a folder"), "an OCI layout is a folder; oci-archive:FILE makes one file")
	case d.Kind != ToLayout && !fi.Mode().IsRegular():
		return fail(errors.New("it is there already and is not a regular file"), fmt.Sprintf("name a file: %s:%s", d.Kind, filepath.Join(d.Path, "image.tar")))
	}
	if d.Kind == ToLayout && err == nil {
		if entries, err := os.ReadDir(d.Path); err != nil {
			return fail(err, "choose another place")
		} else if len(entries) > 0 && !isFile(filepath.Join(d.Path, "oci-layout")) {
			return fail(fmt.Errorf("the folder holds %s and is no OCI layout", entries[0].Name()), "choose an empty folder, or one that is not there yet")
		}
	}
	into := parent
	if d.Kind == ToLayout && err == nil {
		into = d.Path
	}
	if err := unix.Access(into, unix.W_OK|unix.X_OK); err != nil {
		return fail(fmt.Errorf("write to %s: %w", into, err), "choose a place that you may write to")
	}
	return nil
}

// ownPlace finds kiln's own store in or around the source: rel is where in the
// source it is, "" if it is elsewhere.
func ownPlace(source, store string) (rel string, err error) {
	src, err := realPath(source)
	if err != nil {
		return "", sourceError(source, err)
	}
	dir, err := realPath(store)
	if err != nil {
		return "", err
	}
	if down, err := filepath.Rel(dir, src); err == nil && !climbs(down) {
		return "", badInput(fmt.Errorf("source %s is in kiln's own store %s", source, store), "name the folder of your app with --path")
	}
	if down, err := filepath.Rel(src, dir); err == nil && !climbs(down) {
		return filepath.ToSlash(down), nil
	}
	return "", nil
}

func climbs(rel string) bool { return rel == ".." || strings.HasPrefix(rel, "../") }

func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}
