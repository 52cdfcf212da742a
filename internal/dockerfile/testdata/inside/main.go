// Command inside is the tests' executable in a root: it carries out tasks, and
// builds a Dockerfile in place where it is called with a request.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// Request is what a test asks for. Paths are in the root.
type Request struct {
	Dockerfile []byte
	Base       string // an OCI layout with one image
	BaseName   string
	Context    string
	Out        string // where the result goes as a layout, and the cache
	Args       map[string]string
	Secrets    map[string][]byte
	Target     string
	Skip       []string
	Env        []string
}

func main() {
	sandbox.Init()
	dockerfile.Init()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		var exit *sandbox.ExitError
		if errors.As(err, &exit) {
			os.Exit(3)
		}
		os.Exit(1)
	}
}

func run() error {
	b, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var req Request
	if err := json.Unmarshal(b, &req); err != nil {
		return err
	}
	base, err := only(req.Base)
	if err != nil {
		return err
	}
	cf, err := base.ConfigFile()
	if err != nil {
		return err
	}
	m, err := dockerfile.NewInPlace(dockerfile.InPlaceOptions{
		Base: cf.RootFS.DiffIDs, Skip: req.Skip, Env: req.Env, Caches: filepath.Join(req.Out, "caches"),
	})
	if err != nil {
		return err
	}
	cache, err := dockerfile.OpenDirectory(filepath.Join(req.Out, "cache"), time.Hour)
	if err != nil {
		return err
	}
	file, err := dockerfile.Parse(req.Dockerfile, "Dockerfile")
	if err != nil {
		return err
	}
	img, err := file.Build(context.Background(), m, dockerfile.Options{
		Images: map[string]v1.Image{req.BaseName: base}, Args: req.Args, Secrets: req.Secrets, Target: req.Target,
		Context: layer.Stack{Upper: req.Context}, Cache: cache, Scratch: req.Out, Events: event.NewJSON(os.Stdout),
	})
	if err != nil {
		return err
	}
	path, err := layout.FromPath(filepath.Join(req.Out, "image"))
	if err != nil {
		return err
	}
	return path.AppendImage(img)
}

func only(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	return index.Image(m.Manifests[0].Digest)
}
