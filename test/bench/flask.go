package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// flaskRows are the talk's app: from nothing, and then again.
func (b *bench) flaskRows() []measured {
	return []measured{
		{"flask: first build on a host", b.flaskFirst},
		{"flask: nothing changed", func(ctx context.Context) (row, error) {
			return b.flaskAgain(ctx, func(int) error { return nil })
		}},
		{"flask: one line changed", func(ctx context.Context) (row, error) {
			return b.flaskAgain(ctx, b.editFlask)
		}},
	}
}

func (b *bench) flask() string { return filepath.Join(b.dir, "flask") }

func (b *bench) buildFlask(ctx context.Context) (sample, error) {
	got, err := b.watch(ctx, command{[]string{b.kiln, "build", "bench/flask", "--json", "--path", b.flask()}, b.kilnEnv()})
	return got.sample, err
}

func (b *bench) editFlask(i int) error {
	text, err := os.ReadFile("samples/flask/app.py")
	if err != nil {
		return err
	}
	return write(b.flask(), "app.py", fmt.Sprintf("%s\n# change %d\n", text, i))
}

// flaskFirst is base images, CPython and pip: the network's time. A store that
// has some of it already makes it another row, so it is measured only once.
func (b *bench) flaskFirst(ctx context.Context) (row, error) {
	if err := os.CopyFS(b.flask(), os.DirFS("samples/flask")); err != nil {
		return row{}, err
	}
	took, err := b.repeat(1, func(int) (sample, error) { return b.buildFlask(ctx) })
	b.based = true
	return row{took: took, note: "with the network's time"}, err
}

func (b *bench) flaskAgain(ctx context.Context, change func(i int) error) (row, error) {
	if _, err := os.Stat(b.flask()); err != nil {
		if _, err := b.flaskFirst(ctx); err != nil {
			return row{}, err
		}
	}
	if _, err := b.buildFlask(ctx); err != nil {
		return row{}, err
	}
	took, err := b.measure(func(i int) (sample, error) {
		if err := change(i); err != nil {
			return sample{}, err
		}
		return b.buildFlask(ctx)
	})
	return row{took: took, note: took.bytesRead()}, err
}
