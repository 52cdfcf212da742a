package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// fleet is how many images are rebased at once.
const fleet = 50

func (b *bench) rebaseRows() []measured {
	return []measured{
		{"rebase: registry, kiln rebase", func(ctx context.Context) (row, error) {
			return b.rebase(ctx, func(run string, app string) []string {
				return []string{b.kiln, "rebase", "--publish", "--force", "--run-image", run, app}
			})
		}},
		{"rebase: registry, rebaser", func(ctx context.Context) (row, error) {
			return b.rebase(ctx, func(run string, app string) []string {
				return []string{filepath.Join(b.bins, "rebaser"), "-force", "-run-image", run, "-report", filepath.Join(b.dir, "report.toml"), app}
			})
		}},
		{fmt.Sprintf("rebase: registry, %d images at once", fleet), b.rebaseFleet},
		{"rebase: docker", func(ctx context.Context) (row, error) { return b.rebaseDaemon(ctx, "docker") }},
		{"rebase: podman", func(ctx context.Context) (row, error) { return b.rebaseDaemon(ctx, "podman") }},
	}
}

// turn measures rebases from one run image onto the other and back. The first
// two, in which a layer may have to be linked, do not count.
func (b *bench) turn(ctx context.Context, argv func(run string) []string, env ...string) (spread, error) {
	const unmeasured = 2
	i := 0
	once := func(int) (sample, error) {
		run := b.registry + "/" + []string{nextImage, runImage}[i%2]
		i++
		r, _, err := b.meter(ctx, command{argv(run), b.kilnEnv(append(env, "CNB_PLATFORM_API=0.14")...)})
		return sample{took: r.Took, peak: r.Peak}, err
	}
	if _, err := b.repeat(unmeasured, once); err != nil {
		return spread{}, err
	}
	return b.repeat(2*b.runs, once)
}

// rebasable puts an app into the registry, built on the first run image.
func (b *bench) rebasable(ctx context.Context) (*fixture, error) {
	f, err := b.fixture(ctx, sizes[0])
	if err != nil {
		return nil, err
	}
	if err := b.startRegistry(ctx); err != nil {
		return nil, err
	}
	_, err = b.create(ctx, f, container{cache: "dir"})
	return f, err
}

func (b *bench) rebase(ctx context.Context, argv func(run, app string) []string) (row, error) {
	f, err := b.rebasable(ctx)
	if err != nil {
		return row{}, err
	}
	r := row{limit: 30 * time.Millisecond}
	r.took, err = b.turn(ctx, func(run string) []string { return argv(run, b.registry+"/"+benchImage+"-"+f.repo()) })
	return r, err
}

func (b *bench) rebaseFleet(ctx context.Context) (row, error) {
	f, err := b.rebasable(ctx)
	if err != nil {
		return row{}, err
	}
	var repos, names []string
	for i := range fleet {
		repos = append(repos, fmt.Sprintf("fleet/app%d", i))
		names = append(names, b.registry+"/"+repos[i])
	}
	if err := b.copyImage(ctx, benchImage+"-"+f.repo(), repos...); err != nil {
		return row{}, err
	}
	const perSecond = 50
	r := row{limit: fleet * time.Second / perSecond, want: fmt.Sprintf("%d images/s", perSecond)}
	r.took, err = b.turn(ctx, func(run string) []string {
		return append([]string{b.kiln, "rebase", "--publish", "--force", "--run-image", run}, names...)
	})
	r.note = fmt.Sprintf("%.0f images/s", fleet/r.took.median.Seconds())
	return r, err
}

func (b *bench) rebaseDaemon(ctx context.Context, kind string) (row, error) {
	d, err := b.daemon(kind)
	if err != nil {
		return row{}, err
	}
	f, err := b.rebasable(ctx)
	if err != nil {
		return row{}, err
	}
	p := inDaemon(d)
	if err := b.settle(ctx, f, p); err != nil {
		return row{}, err
	}
	r := row{limit: 200 * time.Millisecond}
	r.took, err = b.turn(ctx, func(run string) []string {
		return []string{b.kiln, "rebase", "--force", "--run-image", run, "docker-daemon:" + p.image(f)}
	}, p.env...)
	return r, err
}

func (f *fixture) repo() string { return strings.ToLower(f.name) }
