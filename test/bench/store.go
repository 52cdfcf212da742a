package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
)

// storeRows are builds to kiln's store.
func (b *bench) storeRows(s size) []measured {
	same := func(ctx context.Context) (row, error) { return b.unchanged(ctx, s, place{}) }
	return []measured{
		{s.name + ": cold, beyond the copying, to the store", func(ctx context.Context) (row, error) { return b.coldStore(ctx, s) }},
		{s.name + ": nothing changed", same},
		{s.name + ": one source line changed", func(ctx context.Context) (row, error) { return b.oneLine(ctx, s) }},
		{s.name + ": restore from the store", func(ctx context.Context) (row, error) { return b.restoreStore(ctx, s) }},
	}
}

// sameLimit is the target of a build in which nothing changed.
func sameLimit(s size) time.Duration {
	if s.name == "S" {
		return 150 * time.Millisecond
	}
	return 200 * time.Millisecond
}

func (b *bench) coldStore(ctx context.Context, s size) (row, error) {
	f, err := b.fixture(ctx, s)
	if err != nil {
		return row{}, err
	}
	r := row{}
	if r.beside, err = b.pipe(ctx, f, pipeHash); err != nil {
		return r, err
	}
	if s.name != "S" { // whose pipe is shorter than any process's start
		r.limit, r.want = r.beside.times(1.2)
	}
	r.took, err = b.measure(func(int) (sample, error) {
		if err := f.renew(); err != nil {
			return sample{}, err
		}
		got, err := b.build(ctx, f, place{}, "--clear-cache")
		return got.beyond(), err
	})
	return r, err
}

// unchanged is the build of what is there already, to any place.
func (b *bench) unchanged(ctx context.Context, s size, p place) (row, error) {
	f, err := b.fixture(ctx, s)
	if err != nil {
		return row{}, err
	}
	if err := b.settle(ctx, f, p); err != nil {
		return row{}, err
	}
	r := row{limit: sameLimit(s)}
	if r.beside, err = b.pipe(ctx, f, pipeHash); err != nil {
		return r, err
	}
	r.took, err = b.measure(func(int) (sample, error) {
		got, err := b.build(ctx, f, p)
		return got.sample, err
	})
	r.note = r.took.bytesRead()
	return r, err
}

// oneLine is beside a build with nothing changed, measured now: 0.1 s more is
// what the change may cost.
func (b *bench) oneLine(ctx context.Context, s size) (row, error) {
	same, err := b.unchanged(ctx, s, place{})
	if err != nil {
		return row{}, err
	}
	f, err := b.fixture(ctx, s)
	if err != nil {
		return row{}, err
	}
	r := row{beside: same.beside, limit: same.took.median + 100*time.Millisecond, want: "nothing changed + 0.1 s"}
	r.took, err = b.measure(func(int) (sample, error) {
		if err := f.edit(); err != nil {
			return sample{}, err
		}
		got, err := b.build(ctx, f, place{})
		return got.sample, err
	})
	r.note = r.took.bytesRead()
	return r, err
}

func (b *bench) restoreStore(ctx context.Context, s size) (row, error) {
	f, err := b.fixture(ctx, s)
	if err != nil {
		return row{}, err
	}
	if err := b.settle(ctx, f, place{}); err != nil {
		return row{}, err
	}
	r := row{limit: 50 * time.Millisecond}
	r.took, err = b.measure(func(int) (sample, error) {
		got, err := b.build(ctx, f, place{})
		return got.phase("restorer"), err
	})
	return r, err
}

// placeRows are builds with nothing changed to other places than the store.
func (b *bench) placeRows(s size) []measured {
	list := []measured{{s.name + ": nothing changed, to an OCI layout", func(ctx context.Context) (row, error) {
		r, err := b.unchanged(ctx, s, place{args: []string{"--output", "oci:" + filepath.Join(b.dir, "layout-"+s.name)}})
		r.limit = 200 * time.Millisecond
		return r, err
	}}}
	for _, kind := range []string{"docker", "podman"} {
		list = append(list, measured{s.name + ": nothing changed, to the " + kind + " socket", func(ctx context.Context) (row, error) {
			d, err := b.daemon(kind)
			if err != nil {
				return row{}, err
			}
			r, err := b.unchanged(ctx, s, inDaemon(d))
			r.limit = 400 * time.Millisecond
			return r, err
		}})
	}
	return list
}

func inDaemon(d *daemontest.Daemon) place {
	return place{args: []string{"--output", "docker-daemon"}, env: []string{"DOCKER_HOST=" + d.Host}}
}

// daemon starts a daemon of a kind, once.
func (b *bench) daemon(kind string) (*daemontest.Daemon, error) {
	if d := b.daemons[kind]; d != nil {
		return d, nil
	}
	start := daemontest.Podman
	if kind == "docker" {
		start = daemontest.Docker
		if os.Getuid() != 0 {
			return nil, missing("only root can start dockerd")
		}
	}
	d, err := start()
	if err != nil {
		return nil, missing("not on this host: " + err.Error())
	}
	b.daemons[kind] = d
	b.stop = append(b.stop, d.Stop)
	return d, nil
}
