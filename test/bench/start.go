package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// more runs for what takes milliseconds.
const often = 4

func (b *bench) startRows() []measured {
	list := []measured{
		{"start: kiln version", func(ctx context.Context) (row, error) { return b.start(ctx, 0, nil, b.kiln, "version") }},
		{"start: launcher, to the app's process", b.startLauncher},
	}
	for _, phase := range append([]string{"lifecycle"}, phases...) {
		list = append(list, measured{"start: " + phase, func(ctx context.Context) (row, error) {
			return b.start(ctx, 5*time.Millisecond, []string{"CNB_PLATFORM_API=0.14"}, filepath.Join(b.bins, phase), "-version")
		}})
	}
	return list
}

// start is a whole process beside true's.
func (b *bench) start(ctx context.Context, limit time.Duration, env []string, argv ...string) (row, error) {
	r := row{limit: limit, beside: pipe{command: "true"}}
	var err error
	if r.beside.took, err = b.starts(ctx, nil, "/bin/true"); err != nil {
		return r, err
	}
	r.took, err = b.starts(ctx, env, argv...)
	return r, err
}

func (b *bench) starts(ctx context.Context, env []string, argv ...string) (spread, error) {
	return b.repeat(often*b.runs, func(int) (sample, error) {
		r, _, err := b.meter(ctx, command{argv, env})
		return sample{took: r.Took, peak: r.Peak}, err
	})
}

// startLauncher is a process of an app that ends at once: what is over true's own
// time is the launcher's.
func (b *bench) startLauncher(ctx context.Context) (row, error) {
	dir := filepath.Join(b.dir, "launched")
	web := filepath.Join(dir, "process", "web")
	err := errors.Join(
		write(dir, "layers/config/metadata.toml", "[[buildpacks]]\nid = \"bench/copy\"\nversion = \"1.0.0\"\napi = \"0.12\"\n[[processes]]\ntype = \"web\"\ncommand = [\"/bin/true\"]\nbuildpack-id = \"bench/copy\"\n"),
		write(dir, "workspace/app", ""), os.MkdirAll(filepath.Dir(web), 0o755), b.discard(web), os.Symlink(filepath.Join(b.bins, "launcher"), web))
	if err != nil {
		return row{}, err
	}
	return b.start(ctx, 5*time.Millisecond, []string{"CNB_PLATFORM_API=0.14", "CNB_APP_DIR=" + filepath.Join(dir, "workspace"),
		"CNB_LAYERS_DIR=" + filepath.Join(dir, "layers"), "PATH=/usr/bin:/bin"}, web)
}

func (b *bench) buildpackRows() []measured {
	return []measured{{"over the executables' own time, per buildpack", b.perBuildpack}}
}

// perBuildpack is what ten buildpacks more cost a build, each a tenth of it, less
// what their two executables take by themselves.
func (b *bench) perBuildpack(ctx context.Context) (row, error) {
	if err := b.bases(ctx); err != nil {
		return row{}, err
	}
	const few, many = 1, 11
	packs, err := b.idlePacks(many)
	if err != nil {
		return row{}, err
	}
	own, err := b.starts(ctx, nil, filepath.Join(packs[0], "bin/build"))
	if err != nil {
		return row{}, err
	}
	base, err := b.idleBuild(ctx, packs[:few])
	if err != nil {
		return row{}, err
	}
	r := row{limit: 10 * time.Millisecond}
	r.took, err = b.idleBuild(ctx, packs)
	if err != nil {
		return row{}, err
	}
	each := func(d time.Duration) time.Duration { return (d-base.median)/(many-few) - 2*own.median }
	r.note = fmt.Sprintf("of %d buildpacks less one: %s, %s; one executable: %s", many, show(r.took.median), show(base.median), show(own.median))
	r.took.median, r.took.low, r.took.high = each(r.took.median), each(r.took.low), each(r.took.high)
	return r, nil
}

// idlePacks are buildpacks that do nothing, quickly.
func (b *bench) idlePacks(n int) ([]string, error) {
	var dirs []string
	var err error
	for i := range n {
		dir := filepath.Join(b.dir, fmt.Sprintf("idle%d", i))
		dirs = append(dirs, dir)
		err = errors.Join(err, write(dir, "buildpack.toml", fmt.Sprintf("api = \"0.10\"\n[buildpack]\nid = \"bench/idle%d\"\nversion = \"1.0.0\"\n", i)),
			write(dir, "bin/detect", "#!/bin/sh\n"), write(dir, "bin/build", "#!/bin/sh\n"))
	}
	return dirs, err
}

func (b *bench) idleBuild(ctx context.Context, packs []string) (spread, error) {
	app := filepath.Join(b.dir, "base-app")
	argv := []string{b.kiln, "build", fmt.Sprintf("bench/idle%d", len(packs)), "--path", app, "--json"}
	for _, pack := range packs {
		argv = append(argv, "--buildpack", pack)
	}
	once := func(int) (sample, error) {
		got, err := b.watch(ctx, command{argv, b.kilnEnv()})
		return got.sample, err
	}
	if _, err := b.repeat(2, once); err != nil {
		return spread{}, err
	}
	return b.repeat(2*b.runs, once)
}
