package layer

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/layer/layertest"
)

// forms are the ways to unpack. Only root can give files away.
func forms() map[string]unpacker {
	all := map[string]unpacker{
		"Apply": {}, "ApplyPlain": {plain: true},
		"ApplyOwned, Record": {owners: Record}, "ApplyOwnedPlain, Record": {plain: true, owners: Record},
	}
	if os.Geteuid() == 0 {
		all["ApplyOwned, Chown"] = unpacker{owners: Chown}
		all["ApplyOwnedPlain, Chown"] = unpacker{plain: true, owners: Chown}
	}
	return all
}

// outcome is an error of Apply in the words of the table.
func outcome(err error) layertest.Want {
	switch {
	case err == nil:
		return layertest.Contained
	case errors.Is(err, ErrUnsafe):
		return layertest.Unsafe
	case errors.Is(err, ErrLimit):
		return layertest.Limit
	}
	return layertest.Broken
}

func TestHostileArchives(t *testing.T) {
	layertest.Each(t, func(t *testing.T, a layertest.Archive, c *layertest.Canary) {
		data := a.Tar(c.Outside)
		for name, form := range forms() {
			if a.Deep && form.plain != (form.owners == 0) {
				continue
			}
			if err := Remove(c.Cell); err != nil {
				t.Fatal(err)
			}
			mkdirs(t, c.Cell, "")
			_, err := apply(t.Context(), c.Cell, bytes.NewReader(data), Limits{}, form)
			want := a.Of(form.plain, form.owners != 0)
			if want == layertest.Skipped {
				want = layertest.Contained
			}
			if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
				want = layertest.Broken // only root gives files capabilities
			}
			if got := outcome(err); got != want && !(want == layertest.Refused && err != nil) {
				t.Errorf("%s: %s, want %s: %v", name, got, want, err)
			}
		}
	})
}

// bombLimits are small: a default one is reached after minutes.
var bombLimits = Limits{Entries: 1000, Bytes: 16 << 20, Names: 2 << 20}

func TestBombs(t *testing.T) {
	layertest.Defuse(t, func(t *testing.T, b layertest.Bomb) {
		for _, form := range []unpacker{{}, {plain: true, owners: Record}} {
			_, err := apply(t.Context(), scratch(t), b.Open(), bombLimits, form)
			if !errors.Is(err, ErrLimit) && !errors.Is(err, unix.ENOSPC) { // which is what some file systems say of many xattrs
				t.Errorf("error %v, want ErrLimit", err)
			}
		}
	})
}

// TestHostileArchivesExtracted: Extract takes files of one directory.
func TestHostileArchivesExtracted(t *testing.T) {
	layertest.Each(t, func(t *testing.T, a layertest.Archive, c *layertest.Canary) {
		for _, within := range []string{"", "/a", c.Outside} {
			root := rootAt(t, c.Cell)
			files, err := Extract(t.Context(), root, bytes.NewReader(a.Tar(c.Outside)), within, Limits{})
			found := regularIn(t, root)
			if err == nil && !slices.Equal(files, found) && len(files)+len(found) > 0 {
				t.Errorf("of %q: said %q, wrote %q", within, files, found)
			}
			for _, name := range found {
				if !strings.HasPrefix("/"+name, within+"/") {
					t.Errorf("of %q: wrote %q", within, name)
				}
			}
			if err := Remove(c.Cell); err != nil {
				t.Fatal(err)
			}
			mkdirs(t, c.Cell, "")
		}
	})
}

// regularIn lists the files below root, and wants nothing else there but
// directories.
func regularIn(t *testing.T, root *os.Root) (list []string) {
	t.Helper()
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir():
			return err
		case !d.Type().IsRegular():
			t.Errorf("%q is %v", name, d.Type())
		}
		list = append(list, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func TestBombsExtracted(t *testing.T) {
	layertest.Defuse(t, func(t *testing.T, b layertest.Bomb) {
		if _, err := Extract(t.Context(), rootAt(t, scratch(t)), b.Open(), "/layers/sbom", bombLimits); !errors.Is(err, ErrLimit) {
			t.Errorf("error %v, want ErrLimit", err)
		}
	})
}

// TestHostileArchivesNormalized: what comes out is taken where what went in is,
// and does the same.
func TestHostileArchivesNormalized(t *testing.T) {
	layertest.Each(t, func(t *testing.T, a layertest.Archive, c *layertest.Canary) {
		var out bytes.Buffer
		if err := Normalize(t.Context(), &out, bytes.NewReader(a.Tar(c.Outside)), Limits{}); err != nil {
			return
		}
		want := outcome(Apply(t.Context(), c.Cell, bytes.NewReader(a.Tar(c.Outside)), Limits{}))
		was := renderDisk(t, c.Cell)
		if err := Remove(c.Cell); err != nil {
			t.Fatal(err)
		}
		mkdirs(t, c.Cell, "")
		if got := outcome(Apply(t.Context(), c.Cell, &out, Limits{})); got != want {
			t.Errorf("normalized it is %s, before it was %s", got, want)
		} else if got := renderDisk(t, c.Cell); got != was && want == layertest.Contained {
			t.Errorf("before\n%s\nafter\n%s", was, got)
		}
	})
}

func TestBombsNormalized(t *testing.T) {
	layertest.Defuse(t, func(t *testing.T, b layertest.Bomb) {
		if err := Normalize(t.Context(), io.Discard, b.Open(), bombLimits); !errors.Is(err, ErrLimit) {
			t.Errorf("error %v, want ErrLimit", err)
		}
	})
}
