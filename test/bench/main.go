// Command bench measures what docs/performance.md claims: whole processes of
// the real kiln, each beside the same bytes through a pipe, in the same run.
//
//	go run ./test/bench [-runs 5] [-only name]
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	runs := flag.Int("runs", 5, "how often each case runs; the median counts")
	only := flag.String("only", "", "run only the cases whose name contains this")
	flag.Parse()
	b, err := newBench(*runs, *only)
	if err == nil {
		defer b.close()
		err = b.all()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	runs  int
	only  string
	dir   string
	kiln  string
	store string
}

func newBench(runs int, only string) (*bench, error) {
	kiln, err := filepath.Abs("bin/kiln")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(kiln); err != nil {
		return nil, fmt.Errorf("%w (run make build first)", err)
	}
	dir, err := os.MkdirTemp("", "kiln-bench-")
	if err != nil {
		return nil, err
	}
	return &bench{runs: runs, only: only, dir: dir, kiln: kiln, store: filepath.Join(dir, "store")}, nil
}

func (b *bench) close() {
	_ = exec.Command("chmod", "-R", "u+rwX", b.dir).Run()
	_ = os.RemoveAll(b.dir)
}

// spread is what a case took: the median and the range, which is the noise.
type spread struct{ median, low, high time.Duration }

func measure(n int, f func(i int) (time.Duration, error)) (spread, error) {
	var all []time.Duration
	for i := range n {
		d, err := f(i)
		if err != nil {
			return spread{}, err
		}
		all = append(all, d)
	}
	slices.Sort(all)
	return spread{all[len(all)/2], all[0], all[len(all)-1]}, nil
}

func (s spread) String() string {
	return fmt.Sprintf("%8.3f s  (%.3f to %.3f)", s.median.Seconds(), s.low.Seconds(), s.high.Seconds())
}

// result is what one build told of itself.
type result struct {
	took   time.Duration
	phases map[string]time.Duration
	read   int64
}

// build runs kiln build and reads its events.
func (b *bench) build(args ...string) (result, error) {
	cmd := exec.Command(b.kiln, append([]string{"build", "--json"}, args...)...)
	cmd.Env = append(os.Environ(), "KILN_STORE="+b.store)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	start := time.Now()
	err := cmd.Run()
	r := result{took: time.Since(start), phases: map[string]time.Duration{}}
	if err != nil {
		return r, fmt.Errorf("kiln build %v: %w\n%s%s", args, err, tail(out.String()), stderr.String())
	}
	for line := range strings.Lines(out.String()) {
		var e struct {
			Kind  string
			Event struct {
				Phase   string
				Elapsed time.Duration
				Read    int64
			}
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return r, err
		}
		switch e.Kind {
		case "phase-finished":
			r.phases[e.Event.Phase] = e.Event.Elapsed
		case "layer":
			r.read += e.Event.Read
		}
	}
	return r, nil
}

func tail(s string) string { return s[max(0, len(s)-2000):] }

func (b *bench) all() error {
	for _, c := range []struct {
		name string
		run  func() error
	}{
		{"flask", b.flask},
		{"layer M", func() error { return b.layer("M", 20_000, 200e6) }},
	} {
		if !strings.Contains(c.name, b.only) {
			continue
		}
		if err := c.run(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// flask is the talk's app: from nothing, nothing changed, one line changed.
func (b *bench) flask() error {
	src := filepath.Join(b.dir, "flask")
	if err := os.CopyFS(src, os.DirFS("samples/flask")); err != nil {
		return err
	}
	cold, err := b.build("flask", "--path", src)
	if err != nil {
		return err
	}
	fmt.Printf("flask, first build on this host                  %8.3f s  (base images, CPython, pip: the network's time)\n", cold.took.Seconds())
	if _, err := b.build("flask", "--path", src); err != nil {
		return err
	}
	var read int64
	same, err := measure(b.runs, func(int) (time.Duration, error) {
		r, err := b.build("flask", "--path", src)
		read += r.read
		return r.took, err
	})
	if err != nil {
		return err
	}
	fmt.Printf("flask, nothing changed                           %v  %d bytes of layers read\n", same, read)
	app := filepath.Join(src, "app.py")
	text, err := os.ReadFile(app)
	if err != nil {
		return err
	}
	line, err := measure(b.runs, func(i int) (time.Duration, error) {
		if err := os.WriteFile(app, fmt.Appendf(text, "\n# change %d\n", i), 0o644); err != nil {
			return 0, err
		}
		r, err := b.build("flask", "--path", src)
		return r.took, err
	})
	if err != nil {
		return err
	}
	fmt.Printf("flask, one line changed                          %v\n", line)
	return nil
}

// layer makes a launch and cache layer of one size with a shell buildpack and
// holds export beside the same tree through tar and openssl.
func (b *bench) layer(name string, files int, size int64) error {
	tree := filepath.Join(b.dir, "tree-"+name)
	if err := makeTree(tree, files, size); err != nil {
		return err
	}
	src, bp := filepath.Join(b.dir, "app"), filepath.Join(b.dir, "bp")
	if err := write(src, "key", "1\n"); err != nil {
		return err
	}
	if err := errorsOf(
		write(bp, "buildpack.toml", "api = \"0.10\"\n[buildpack]\nid = \"bench/copy\"\nversion = \"1.0.0\"\n"),
		write(bp, "bin/detect", "#!/bin/sh\n"),
		write(bp, "bin/build", `#!/bin/bash
set -e
layer=$CNB_LAYERS_DIR/deps
key=$(cat key)
if [ -d "$layer" ] && grep -qx "key = \"$key\"" "$layer.toml"; then echo reuse; else
rm -rf "$layer"; mkdir -p "$layer"; cp -a /volumes/tree/. "$layer/"; fi
printf '[types]\nlaunch = true\ncache = true\n[metadata]\nkey = "%s"\n' "$key" > "$layer.toml"
`)); err != nil {
		return err
	}
	args := []string{"bench-" + strings.ToLower(name), "--path", src, "--buildpack", bp, "--volume", tree + ":/volumes/tree:ro"}
	pipe, err := measure(b.runs, func(int) (time.Duration, error) {
		start := time.Now()
		out, err := exec.Command("sh", "-c", "tar cf - -C \"$1\" . | openssl dgst -sha256", "sh", tree).CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
		return time.Since(start), nil
	})
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d files, %d MB: tar | openssl sha256      %v\n", name, files, size/1e6, pipe)
	export, err := measure(b.runs, func(i int) (time.Duration, error) {
		// Another content each time, or the store would know the layer.
		if err := errorsOf(write(src, "key", fmt.Sprintln(i+10)), write(tree, "changed", fmt.Sprintln(i))); err != nil {
			return 0, err
		}
		r, err := b.build(append(args, "--clear-cache")...)
		return r.phases["exporter"], err
	})
	if err != nil {
		return err
	}
	fmt.Printf("%s: export of the new layer to the store         %v  %.2f x the pipe\n", name, export, export.median.Seconds()/pipe.median.Seconds())
	if _, err := b.build(args...); err != nil {
		return err
	}
	var read int64
	same, err := measure(b.runs, func(int) (time.Duration, error) {
		r, err := b.build(args...)
		read += r.read
		return r.took, err
	})
	if err != nil {
		return err
	}
	fmt.Printf("%s: nothing changed, whole process               %v  %d bytes of layers read\n", name, same, read)
	return nil
}

// makeTree writes files of text-like content, the same every time.
func makeTree(dir string, files int, size int64) error {
	random := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 4000)
	for i := range words {
		words[i] = fmt.Sprintf("%x ", random.Uint32()>>(random.IntN(20)))
	}
	each := int(size) / files
	for i := range files {
		path := filepath.Join(dir, fmt.Sprintf("d%03d/s%02d", i/200, i/20%10))
		if i%20 == 0 {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
		}
		var text bytes.Buffer
		for want := each/2 + random.IntN(each); text.Len() < want; {
			text.WriteString(words[random.IntN(len(words))])
		}
		if err := os.WriteFile(filepath.Join(path, fmt.Sprintf("f%05d.txt", i)), text.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func write(dir, name, content string) error {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o755)
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
