// Package kit is for writing Cloud Native Buildpacks in Go. A buildpack is two
// functions; kit does what the specification asks around them: it finds out
// whether bin/detect or bin/build was called, reads the CNB_ variables and the
// documents beside them, and writes plan, layers, environment files, processes,
// labels and bills of materials where the lifecycle looks for them.
//
// The whole of a buildpack that puts one file into the app image:
//
//	package main
//
//	import (
//		"context"
//		"os"
//		"path/filepath"
//
//		"github.com/kilnbuild/kiln/buildpacks/kit"
//	)
//
//	func main() { kit.Main(kit.Buildpack{Detect: detect, Build: build}) }
//
//	func detect(ctx context.Context, d *kit.Detection) ([]kit.Plan, error) {
//		if _, err := os.Stat(filepath.Join(d.AppDir, "motd")); err != nil {
//			return nil, kit.Fail("no file motd in the app directory")
//		}
//		return kit.Plans(kit.Plan{
//			Provides: []string{"motd"},
//			Requires: []kit.Require{{Name: "motd", Launch: true}},
//		}), nil
//	}
//
//	func build(ctx context.Context, b *kit.Build) error {
//		text, err := os.ReadFile(filepath.Join(b.AppDir, "motd"))
//		if err != nil {
//			return err
//		}
//		layer, err := b.Layer("motd")
//		if err != nil {
//			return err
//		}
//		layer.Launch, layer.Cache = true, true
//		if layer.Reuse(b.Key(text)) {
//			b.Log.Info("Reusing motd: the file has not changed")
//		} else {
//			b.Log.Info("Writing motd")
//			if err := layer.Reset(); err != nil {
//				return err
//			}
//			if err := os.WriteFile(filepath.Join(layer.Path, "motd"), text, 0o644); err != nil {
//				return err
//			}
//			layer.LaunchEnv.Default("MOTD", filepath.Join(layer.Path, "motd"))
//		}
//		b.AddProcess(kit.Process{Type: "motd", Command: []string{"cat", filepath.Join(layer.Path, "motd")}, Default: true})
//		return nil
//	}
//
// Beside it stands a buildpack.toml (api 0.10 or later); bin/detect and
// bin/build are the compiled program, or links to it.
//
// A layer that is reused is left alone, byte for byte, so a lifecycle that
// looks at what was touched (kiln) neither reads nor packs it.
//
// In tests, Run does what Main does, with the environment given as a value.
package kit
