package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/event"
)

// seen is one process that tells what it does as events: kiln build, or a
// command of the lifecycle.
type seen struct {
	sample
	phases map[string]time.Duration
	packs  time.Duration // that buildpacks' bin/build took
}

func (s seen) phase(name string) sample {
	s.took = s.phases[name]
	return s.sample
}

// beyond is what the process took beside its buildpacks.
func (s seen) beyond() sample {
	s.took -= s.packs
	return s.sample
}

// Emit takes an event in.
func (s *seen) Emit(e event.Event) {
	switch e := e.(type) {
	case event.PhaseFinished:
		s.phases[e.Phase] = e.Elapsed
	case event.BuildpackFinished:
		if e.Op == "build" {
			s.packs += e.Elapsed
		}
	case event.Layer:
		s.read += e.Read
	}
}

func (b *bench) watch(ctx context.Context, cmd command) (seen, error) {
	s := seen{phases: map[string]time.Duration{}}
	r, out, err := b.meter(ctx, cmd)
	if err != nil {
		return s, err
	}
	s.took, s.peak = r.Took, r.Peak
	return s, event.Decode(bytes.NewReader(out), &s)
}

func (b *bench) kilnEnv(more ...string) []string {
	return append(append(os.Environ(), "KILN_STORE="+b.store), more...)
}

// build builds the app of a size.
func (b *bench) build(ctx context.Context, f *fixture, place place, args ...string) (seen, error) {
	argv := []string{b.kiln, "build", place.image(f), "--json", "--path", f.app, "--buildpack", f.pack, "--volume", f.tree + ":/volumes/tree:ro"}
	argv = append(append(argv, place.args...), args...)
	return b.watch(ctx, command{argv, b.kilnEnv(place.env...)})
}

// place is where an image goes.
type place struct {
	registry string // address, "" for none
	args     []string
	env      []string
}

func (p place) image(f *fixture) string {
	name := "bench/" + strings.ToLower(f.name)
	if p.registry != "" {
		return p.registry + "/" + name
	}
	return name
}

// settle makes sure that the next build finds nothing changed: not the first of
// all builds, and not the one after a cold one.
func (b *bench) settle(ctx context.Context, f *fixture, p place) error {
	for range 2 {
		if _, err := b.build(ctx, f, p); err != nil {
			return err
		}
	}
	return nil
}

// has says whether a command of kiln has a flag.
func (b *bench) has(ctx context.Context, flag string, cmd ...string) (bool, error) {
	_, out, err := b.meter(ctx, command{append(append([]string{b.kiln}, cmd...), "--help"), nil})
	return strings.Contains(string(out), " "+flag+" "), err
}

// bases makes kiln's base images, if the store has none: a build of anything
// does, and takes as long as the network.
func (b *bench) bases(ctx context.Context) error {
	if b.based {
		return nil
	}
	b.based = true
	pack := filepath.Join(b.dir, "base-pack")
	err := errors.Join(write(filepath.Join(b.dir, "base-app"), "app", ""), writeBuildpack(pack, "/cnb/buildpacks"), write(pack, "bin/build", "#!/bin/sh\n"))
	if err != nil {
		return err
	}
	_, _, err = b.meter(ctx, command{[]string{b.kiln, "build", "bench/base", "--path", filepath.Join(b.dir, "base-app"), "--buildpack", pack}, b.kilnEnv()})
	return err
}
