package kit_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/buildpacks/kit"
)

// A buildpack that puts one file into the app image, run as a lifecycle would.
func Example() {
	motd := kit.Buildpack{
		Detect: func(ctx context.Context, d *kit.Detection) ([]kit.Plan, error) {
			if _, err := os.Stat(filepath.Join(d.AppDir, "motd")); err != nil {
				return nil, kit.Fail("no file motd in the app directory")
			}
			return kit.Plans(kit.Plan{Provides: []string{"motd"}, Requires: []kit.Require{{Name: "motd", Launch: true}}}), nil
		},
		Build: func(ctx context.Context, b *kit.Build) error {
			text, err := os.ReadFile(filepath.Join(b.AppDir, "motd"))
			if err != nil {
				return err
			}
			layer, err := b.Layer("motd")
			if err != nil {
				return err
			}
			layer.Launch, layer.Cache = true, true
			if layer.Reuse(b.Key(text)) {
				b.Log.Info("Reusing motd: the file has not changed")
			} else {
				b.Log.Info("Writing motd")
				if err := layer.Reset(); err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(layer.Path, "motd"), text, 0o644); err != nil {
					return err
				}
			}
			b.AddProcess(kit.Process{Type: "motd", Command: []string{"cat", filepath.Join(layer.Path, "motd")}, Default: true})
			return nil
		},
	}

	dir, err := os.MkdirTemp("", "kit-example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	for name, text := range map[string]string{
		"buildpack.toml": "api = \"0.10\"\n[buildpack]\nid = \"example/motd\"\nversion = \"1.0.0\"\n[[targets]]\nos = \"linux\"\n",
		"plan.toml":      "[[entries]]\nname = \"motd\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			fmt.Println(err)
			return
		}
	}
	app, layers := filepath.Join(dir, "app"), filepath.Join(dir, "layers")
	for _, d := range []string{app, layers} {
		if err := os.Mkdir(d, 0o755); err != nil {
			fmt.Println(err)
			return
		}
	}
	run := func(name string) {
		code := kit.Run(context.Background(), motd, kit.Invocation{
			Args: []string{name}, Dir: app, Stdout: os.Stdout,
			Env: []string{"CNB_BUILDPACK_DIR=" + dir, "CNB_LAYERS_DIR=" + layers, "CNB_BP_PLAN_PATH=" + dir + "/plan.toml", "CNB_BUILD_PLAN_PATH=" + dir + "/out.toml"},
		})
		fmt.Println(name, "exits with", code)
	}
	run("detect")
	if err := os.WriteFile(filepath.Join(app, "motd"), []byte("Hello"), 0o644); err != nil {
		fmt.Println(err)
		return
	}
	run("detect")
	run("build")
	run("build")
	// Output:
	// no file motd in the app directory
	// detect exits with 100
	// detect exits with 0
	// Writing motd
	// build exits with 0
	// Reusing motd: the file has not changed
	// build exits with 0
}
