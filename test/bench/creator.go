package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

var phases = []string{"analyzer", "detector", "restorer", "extender", "builder", "exporter", "creator", "rebaser"}

// installLifecycle lays the lifecycle out as a builder has it.
func (b *bench) installLifecycle() error {
	payload, err := filepath.Abs("cmd/kiln/payload")
	if err != nil {
		return err
	}
	b.bins = filepath.Join(b.dir, "lifecycle")
	if err := os.MkdirAll(b.bins, 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("cp", filepath.Join(payload, "lifecycle"), filepath.Join(payload, "launcher"), b.bins).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s (run make build first)", err, out)
	}
	for _, phase := range phases {
		err = errors.Join(err, os.Symlink("lifecycle", filepath.Join(b.bins, phase)))
	}
	return err
}

// creatorRows are the creator alone, in place, as in a container that has only
// its flags and what platforms carry over: the cache, and the last image.
func (b *bench) creatorRows(s size) []measured {
	cold := map[string]time.Duration{"M": 800 * time.Millisecond, "L": 3500 * time.Millisecond}
	list := []measured{
		{s.name + ": creator, cold to a registry, export + cache", func(ctx context.Context) (row, error) {
			r, err := b.coldCreator(ctx, s)
			r.limit = cold[s.name]
			return r, err
		}},
		{s.name + ": creator, nothing changed", func(ctx context.Context) (row, error) {
			return b.sameCreator(ctx, s, container{cache: "dir"}, func(got seen) sample { return got.sample })
		}},
		{s.name + ": restore from a registry cache", func(ctx context.Context) (row, error) { return b.restoreRegistry(ctx, s) }},
	}
	if s.large() { // a layout takes minutes of the reference there: nobody does it
		return list
	}
	return append(list, measured{s.name + ": creator -layout, nothing changed", func(ctx context.Context) (row, error) {
		r, err := b.sameCreator(ctx, s, container{cache: "dir", layout: true}, func(got seen) sample { return got.sample })
		r.limit = 200 * time.Millisecond
		return r, err
	}})
}

// container is what a creator finds: directories of its own, and a cache.
type container struct {
	cache  string // dir or image
	layout bool
	fresh  bool // the cache is empty
}

func (b *bench) coldCreator(ctx context.Context, s size) (row, error) {
	f, err := b.fixture(ctx, s)
	if err != nil {
		return row{}, err
	}
	if err := b.startRegistry(ctx); err != nil {
		return row{}, err
	}
	r := row{}
	if r.beside, err = b.pipe(ctx, f, pipeGzip); err != nil {
		return r, err
	}
	r.took, err = b.measure(func(int) (sample, error) {
		if err := f.renew(); err != nil {
			return sample{}, err
		}
		got, err := b.create(ctx, f, container{cache: "dir", fresh: true})
		return got.phase("exporter"), err
	})
	return r, err
}

// sameCreator runs the creator where nothing changed; which says what counts.
func (b *bench) sameCreator(ctx context.Context, s size, c container, which func(seen) sample) (row, error) {
	f, err := b.fixture(ctx, s)
	if err != nil {
		return row{}, err
	}
	if err := b.startRegistry(ctx); err != nil {
		return row{}, err
	}
	r := row{limit: sameLimit(s)}
	if r.beside, err = b.pipe(ctx, f, pipeHash); err != nil {
		return r, err
	}
	if _, err := b.create(ctx, f, c); err != nil {
		return r, err
	}
	r.took, err = b.measure(func(int) (sample, error) {
		got, err := b.create(ctx, f, c)
		return which(got), err
	})
	r.note = r.took.bytesRead()
	return r, err
}

// restoreRegistry is the restorer's part, beside a gzip file of the same tree
// that is inflated and unpacked.
func (b *bench) restoreRegistry(ctx context.Context, s size) (row, error) {
	r, err := b.sameCreator(ctx, s, container{cache: "image"}, func(got seen) sample { return got.phase("restorer") })
	if err != nil {
		return r, err
	}
	f, err := b.fixture(ctx, s)
	if err != nil {
		return r, err
	}
	if r.beside, err = b.inflate(ctx, f); err != nil {
		return r, err
	}
	r.limit, r.want = r.beside.times(1.2)
	r.note = ""
	return r, nil
}

// inflate is the pipe that unpacks.
func (b *bench) inflate(ctx context.Context, f *fixture) (pipe, error) {
	packed, to := filepath.Join(f.dir, "layer.tar.gz"), filepath.Join(f.dir, "unpacked")
	p := pipe{command: "gzip -dc f | tar xf - -C d"}
	if _, err := b.shell(ctx, `tar cf - -C "$1" . | gzip -1 > "$2"`, f.tree, packed); err != nil {
		return p, err
	}
	var err error
	p.took, err = b.measure(func(int) (sample, error) {
		if err := errors.Join(b.discard(to), os.Mkdir(to, 0o755)); err != nil {
			return sample{}, err
		}
		return b.shell(ctx, `gzip -dc "$1" | tar xf - -C "$2"`, packed, to)
	})
	return p, errors.Join(err, b.discard(to, packed))
}

// create runs the creator in fresh directories.
func (b *bench) create(ctx context.Context, f *fixture, c container) (seen, error) {
	world := filepath.Join(f.dir, "world")
	if err := b.layOut(ctx, f, world, c); err != nil {
		return seen{}, err
	}
	in := func(name string) string { return filepath.Join(world, name) }
	image := b.registry + "/" + benchImage + "-" + f.repo()
	argv := []string{filepath.Join(b.bins, "creator"), "-app", in("workspace"), "-layers", in("layers"), "-platform", in("platform"),
		"-buildpacks", in("buildpacks"), "-order", in("order.toml"), "-run-image", b.registry + "/" + runImage,
		"-launcher", filepath.Join(b.bins, "launcher"), "-launcher-sbom", b.bins, "-log-format", "json",
		"-uid", strconv.Itoa(userID()), "-gid", strconv.Itoa(userID())}
	if c.cache == "image" {
		argv = append(argv, "-cache-image", b.registry+"/bench/cache-"+f.repo())
	} else {
		argv = append(argv, "-cache-dir", in("cache"))
	}
	if c.layout {
		argv = append(argv, "-layout", "-layout-dir", in("layout"))
	}
	env := []string{"CNB_PLATFORM_API=0.14", "CNB_EXPERIMENTAL_MODE=silent", "PATH=/usr/bin:/bin", "HOME=" + world}
	return b.watch(ctx, command{append(argv, image), env})
}

// layOut makes the directories of a container: all but the cache are new.
func (b *bench) layOut(ctx context.Context, f *fixture, world string, c container) error {
	in := func(name string) string { return filepath.Join(world, name) }
	if err := b.discard(in("layers"), in("workspace")); err != nil {
		return err
	}
	if c.fresh {
		if err := b.discard(in("cache")); err != nil {
			return err
		}
	}
	for _, dir := range []string{"layers", "platform/env", "cache", "layout", "workspace"} {
		if err := os.MkdirAll(in(dir), 0o755); err != nil {
			return err
		}
	}
	err := errors.Join(os.CopyFS(in("workspace"), os.DirFS(f.app)), writeBuildpack(in("buildpacks/bench_copy/1.0.0"), f.tree),
		write(world, "order.toml", "[[order]]\n[[order.group]]\nid = \"bench/copy\"\nversion = \"1.0.0\"\n"))
	if err == nil && c.layout {
		err = b.layRunImage(ctx, in("layout"))
	}
	if err != nil || os.Getuid() != 0 {
		return err
	}
	user := fmt.Sprintf("%d:%d", userID(), userID())
	if out, err := exec.CommandContext(ctx, "chown", "-R", user, in("layers"), in("workspace"), in("layout"), world+"/cache").CombinedOutput(); err != nil {
		return fmt.Errorf("chown: %w: %s", err, out)
	}
	return nil
}

// layRunImage puts the run image where a creator with -layout looks for it.
func (b *bench) layRunImage(ctx context.Context, layout string) error {
	dir := filepath.Join(layout, b.registry, strings.ReplaceAll(runImage, ":", "/"))
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	aside := filepath.Join(b.dir, "run-layout") // skopeo takes what follows a colon for a tag
	if err := b.skopeo(ctx, "--src-tls-verify=false", "docker://"+b.registry+"/"+runImage, "oci:"+aside); err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.Rename(aside, dir))
}
