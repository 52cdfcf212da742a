// Command bench measures what docs/performance.md claims: whole
// processes of the real kiln and the real lifecycle, each beside the same bytes
// through a pipe, in the same run, with the target and whether it holds.
//
//	go run ./test/bench [-only regexp] [-runs 5] [-budget 15s] [-quick] [-store dir]
//
// Nothing here asserts a figure: it prints them, and fails only if something
// does not run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == meterArg {
		os.Exit(meter(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags as they were typed.
type options struct {
	runs   int
	budget time.Duration
	only   *regexp.Regexp
	quick  bool
	list   bool
	store  string
}

func parse(args []string) (options, error) {
	o := options{only: regexp.MustCompile("")}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.runs, "runs", 5, "how often each row runs; the median counts")
	f.DurationVar(&o.budget, "budget", 15*time.Second, "a row that has taken this long runs no more")
	f.BoolVar(&o.quick, "quick", false, "leave out the 1 GB layer and what needs the network's time")
	f.BoolVar(&o.list, "list", false, "print the rows' names and measure nothing")
	f.StringVar(&o.store, "store", "", "store to use and leave, for its base images (default: one of its own)")
	f.Func("only", "measure only rows whose name matches this regular expression", func(s string) (err error) {
		o.only, err = regexp.Compile(s)
		return err
	})
	return o, f.Parse(args)
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer b.close()
	return b.all(ctx)
}

// bench is where the rows are measured. What several need is made once, by the
// first of them.
type bench struct {
	options
	dir      string
	kiln     string
	bins     string // the lifecycle's, by their names
	self     string
	peaks    []peak
	fixtures map[string]*fixture
	based    bool   // kiln's base images are in the store
	registry string // address; "" until it is needed
	daemons  map[string]*daemontest.Daemon
	stop     []func()

	discarded int // directories that wait for their removal
}

func newBench(o options) (*bench, error) {
	b := &bench{options: o, fixtures: map[string]*fixture{}, daemons: map[string]*daemontest.Daemon{}}
	var err error
	if b.kiln, err = filepath.Abs("bin/kiln"); err != nil {
		return nil, err
	}
	if _, err := os.Stat(b.kiln); err != nil {
		return nil, fmt.Errorf("%w (run make build first)", err)
	}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("", "kiln-bench-"); err != nil {
		return nil, err
	}
	if b.store == "" {
		b.store = filepath.Join(b.dir, "store")
	}
	// The build user of the phases that run in place has to come in.
	return b, errors.Join(os.Chmod(b.dir, 0o755), b.installLifecycle())
}

func (b *bench) close() {
	for _, stop := range slices.Backward(b.stop) {
		stop()
	}
	_ = exec.Command("chmod", "-R", "u+rwX", b.dir).Run()
	_ = os.RemoveAll(b.dir)
}

// measured is one row of the table: its name, and how to come to its figures.
type measured struct {
	name string
	row  func(ctx context.Context) (row, error)
}

func (b *bench) rows() []measured {
	var list []measured
	if !b.quick {
		list = b.flaskRows() // first, for it finds a store without base images
	}
	for _, s := range sizes {
		if b.quick && s.large() {
			continue
		}
		list = append(list, b.storeRows(s)...)
		list = append(list, b.placeRows(s)...)
		list = append(list, b.registryRows(s)...)
		list = append(list, b.creatorRows(s)...)
	}
	return slices.Concat(list, b.rebaseRows(), b.buildpackRows(), b.startRows())
}

func (b *bench) all(ctx context.Context) error {
	if b.list {
		for _, m := range b.rows() {
			fmt.Println(m.name)
		}
		return nil
	}
	began := time.Now()
	printHeader(os.Stdout)
	for _, m := range b.rows() {
		if !b.only.MatchString(m.name) {
			continue
		}
		r, err := m.row(ctx)
		var absent missing
		if err != nil && !errors.As(err, &absent) {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		r.name, r.missing = m.name, string(absent)
		b.peaks = append(b.peaks, peak{m.name, r.took.peak})
		r.print(os.Stdout)
	}
	printPeak(os.Stdout, b.peaks)
	fmt.Printf("\nmeasured in %v\n", time.Since(began).Round(time.Second))
	return nil
}
