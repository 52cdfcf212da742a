package phase

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kilnbuild/kiln/internal/layer"
)

// lifecycleSBOMs is the directory of the launcher's SBOMs below <layers>/sbom.
// The exporter puts them there.
const lifecycleSBOMs = "launch/buildpacksio_lifecycle/launcher"

// syncSBOMs makes <layers>/sbom hold files and the legacy ones, and nothing
// else. What is right already is not touched: on an overlay it may be the SBOM
// layer of the last build, which then need not be made again. Buildpacks can
// write to <layers>, so whatever is there that should not be goes, and nothing
// is followed out of it.
func syncSBOMs(dirs Dirs, files []sbomFile) error {
	top := filepath.Join(dirs.Layers, sbomDir)
	fi, err := os.Lstat(top)
	if err == nil && !fi.IsDir() {
		err = layer.Remove(top)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Mkdir(top, layersDirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		return err
	}
	defer root.Close()
	s := sbomSync{top: top, root: root, files: map[string]sbomSource{}, dirs: map[string]bool{".": true}}
	if fi, err := root.Lstat(lifecycleSBOMs); err == nil && fi.IsDir() {
		files = append(slices.Clip(files), launcherSBOMs(dirs.Lifecycle)...)
	}
	for _, f := range files {
		for _, to := range f.to {
			s.want(to, f.open)
		}
	}
	for _, kind := range []string{"launch", "build"} {
		s.want(path.Join(kind, legacySBOM), nil)
	}
	if err := s.sweep("."); err != nil {
		return err
	}
	return s.write()
}

// launcherSBOMs are the SBOMs that the exporter is going to put. They are looked
// at only where those of the last build show through, for these to stay.
func launcherSBOMs(dir string) (files []sbomFile) {
	for _, ext := range sbomExts {
		f := sbomFile{dir: dir, file: "launcher.sbom." + ext, to: []string{path.Join(lifecycleSBOMs, "sbom."+ext)}}
		if _, err := os.Lstat(filepath.Join(dir, f.file)); dir != "" && err == nil {
			files = append(files, f)
		}
	}
	return files
}

// sbomSource opens an SBOM and says how many bytes it has; nil is the legacy one.
type sbomSource func() (*os.File, int64, error)

func (open sbomSource) read() (io.ReadCloser, int64, error) {
	if open == nil {
		return io.NopCloser(bytes.NewReader([]byte(legacySBOMBody))), int64(len(legacySBOMBody)), nil
	}
	return open()
}

// sbomSync is <layers>/sbom and what belongs there. Paths are relative to it.
type sbomSync struct {
	top   string
	root  *os.Root
	files map[string]sbomSource // what is to be written yet
	dirs  map[string]bool       // what leads there
}

func (s *sbomSync) want(file string, source sbomSource) {
	file = filepath.ToSlash(file)
	s.files[file] = source
	for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
		s.dirs[dir] = true
	}
}

// sweep deletes what does not belong below the directory dir, and crosses off
// what need not be written.
func (s *sbomSync) sweep(dir string) error {
	if err := s.directory(dir); err != nil {
		return err
	}
	f, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	list, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, e := range list {
		name := path.Join(dir, e.Name())
		fi, err := s.root.Lstat(name)
		if err != nil {
			return err
		}
		source, wanted := s.files[name]
		switch {
		case s.dirs[name] && fi.IsDir():
			err = s.sweep(name)
		case wanted && s.same(name, fi, source):
			delete(s.files, name)
		default:
			err = layer.Remove(filepath.Join(s.top, filepath.FromSlash(name)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// directory makes dir and gives it its mode.
func (s *sbomSync) directory(dir string) error {
	if err := s.root.Mkdir(dir, layersDirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	fi, err := s.root.Lstat(dir)
	if err != nil || fi.Mode() == sbomDirMode {
		return err
	}
	return s.root.Chmod(dir, layersDirMode)
}

// same tells whether the file is what would be written. One with a second name
// is not: that is in a layer's tar. Neither is one that cannot be read.
func (s *sbomSync) same(name string, fi fs.FileInfo, source sbomSource) bool {
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || st.Nlink != 1 || fi.Mode() != sbomMode {
		return false
	}
	want, size, err := source.read()
	if err != nil {
		return false // writing it will say why
	}
	defer want.Close()
	if size != fi.Size() {
		return false
	}
	got, err := layer.Stack{Upper: s.top}.Open(name)
	if err != nil {
		return false
	}
	defer got.Close()
	return equal(got, want)
}

// equal tells whether two streams have the same bytes.
func equal(a, b io.Reader) bool {
	x, y := bufio.NewReader(a), bufio.NewReader(b)
	for {
		p, errP := x.Peek(x.Size())
		q, errQ := y.Peek(y.Size())
		if !bytes.Equal(p, q) {
			return false
		}
		if errP != nil || errQ != nil {
			return errP == io.EOF && errQ == io.EOF
		}
		x.Discard(len(p))
		y.Discard(len(q))
	}
}

// write writes what is missing.
func (s *sbomSync) write() error {
	for _, dir := range slices.Sorted(maps.Keys(s.dirs)) {
		if err := s.directory(dir); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if err := s.writeOne(name); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Join(s.top, name), err)
		}
	}
	return nil
}

func (s *sbomSync) writeOne(name string) error {
	src, size, err := s.files[name].read()
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, sbomMode)
	if err != nil {
		return err
	}
	_, err = io.CopyN(dst, src, size)
	return errors.Join(err, dst.Chmod(sbomMode), dst.Close())
}
