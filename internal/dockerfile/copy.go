package dockerfile

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/kilnbuild/kiln/internal/layer"
)

// copying is a COPY or an ADD.
type copying struct {
	name string
	instructions.SourcesAndDest
	from, chown, chmod string
	parents            bool
	exclude            []string
	checksum           string
	web                bool // sources may be URLs
	keepGit            bool
	unpack             *bool
}

func copyOf(c *instructions.CopyCommand) copying {
	no := false
	return copying{
		name: "COPY", SourcesAndDest: c.SourcesAndDest, from: c.From, chown: c.Chown, chmod: c.Chmod,
		parents: c.Parents, exclude: c.ExcludePatterns, unpack: &no,
	}
}

func addOf(c *instructions.AddCommand) copying {
	return copying{
		name: "ADD", SourcesAndDest: c.SourcesAndDest, chown: c.Chown, chmod: c.Chmod,
		exclude: c.ExcludePatterns, checksum: c.Checksum, web: true, unpack: c.Unpack,
		keepGit: c.KeepGitDir != nil && *c.KeepGitDir,
	}
}

// copy carries out a COPY or an ADD. With --link it does the same: what that
// spares docker, the cache here spares without.
func (s *stage) copy(ctx context.Context, c copying, text string) error {
	if err := c.check(); err != nil {
		return err
	}
	parts, clean, err := s.parts(ctx, c)
	defer clean()
	if err != nil {
		return err
	}
	op := Put{Dest: s.config.inWorkdir(c.DestPath), Chown: c.chown, Chmod: c.chmod}
	var digests []string
	for _, p := range parts {
		digests = append(digests, fmt.Sprintf("%s unpack=%v", p.digest, p.unpack))
	}
	key := struct {
		Copy  Put
		Parts []string
	}{op, digests}
	return s.change(ctx, text, c.said(), key, func(ctx context.Context, r Root) error {
		for _, p := range parts {
			if err := p.feed(ctx, r, op); err != nil {
				return err
			}
		}
		return nil
	})
}

// check finds what is wrong before anything is read.
func (c copying) check() error {
	if _, err := parseMode(c.chmod); err != nil {
		return err
	}
	sources := len(c.SourcePaths) + len(c.SourceContents)
	if sources > 1 && !c.parents && !strings.HasSuffix(c.DestPath, "/") && path.Base(c.DestPath) != "." {
		return fmt.Errorf("with more than one source the destination %s must be a directory and end in a slash", c.DestPath)
	}
	for _, p := range c.SourcePaths {
		switch {
		case isGit(p) && c.web:
			if _, err := parseGit(p); err != nil {
				return err
			}
		case isURL(p) && !c.web:
			return fmt.Errorf("%s: COPY takes no URL, ADD does", p)
		}
	}
	if c.checksum != "" && (sources != 1 || len(c.SourcePaths) != 1 || !c.remote(c.SourcePaths[0])) {
		return errors.New("--checksum is for one source, which must be a URL")
	}
	return nil
}

// remote tells whether a source is not of the build context.
func (c copying) remote(source string) bool { return isURL(source) || c.web && isGit(source) }

// said is what history says.
func (c copying) said() string {
	words := []string{c.name}
	if c.parents {
		words = append(words, "--parents")
	}
	if c.keepGit {
		words = append(words, "--keep-git-dir")
	}
	for _, flag := range []struct{ name, value string }{{"--from=", c.from}, {"--chown=", c.chown}, {"--chmod=", c.chmod}} {
		if flag.value != "" {
			words = append(words, flag.name+flag.value)
		}
	}
	words = append(words, c.SourcePaths...)
	for _, content := range c.SourceContents {
		words = append(words, "<<"+content.Path)
	}
	return strings.Join(append(words, c.DestPath), " ")
}

// parts are the sources in their order. Clean removes what was fetched.
func (s *stage) parts(ctx context.Context, c copying) (parts []part, clean func(), err error) {
	var fetched []string
	clean = func() {
		for _, file := range fetched {
			_ = os.Remove(file)
		}
	}
	var files []string
	for _, p := range c.SourcePaths {
		if !c.remote(p) {
			files = append(files, p)
			continue
		}
		if isGit(p) {
			r, err := parseGit(p)
			if err != nil {
				return nil, clean, err
			}
			r.exclude, r.keep = c.exclude, c.keepGit
			part, err := r.part(ctx, s.m, s.o.Scratch, c.checksum)
			if err != nil {
				return nil, clean, err
			}
			parts = append(parts, part)
			continue
		}
		file, part, err := s.download(ctx, p, c.checksum)
		if file != "" {
			fetched = append(fetched, file)
		}
		if err != nil {
			return nil, clean, err
		}
		part.unpack = c.unpack != nil && *c.unpack
		parts = append(parts, part)
	}
	if len(files) > 0 {
		from, err := s.origin(ctx, c.from)
		if err != nil {
			return nil, clean, err
		}
		p, err := from.part(ctx, Sources{Paths: files, Parents: c.parents, Exclude: c.exclude})
		if err != nil {
			return nil, clean, err
		}
		p.unpack = c.unpack == nil || *c.unpack
		parts = append(parts, p)
	}
	for _, content := range c.SourceContents {
		p, err := single(content.Path, 0o644, []byte(content.Data))
		if err != nil {
			return nil, clean, err
		}
		parts = append(parts, p)
	}
	return parts, clean, nil
}

// single is a part of one file made in memory.
func single(name string, mode int64, content []byte) (part, error) {
	var b bytes.Buffer
	if err := writeSingle(&b, name, mode, int64(len(content)), bytes.NewReader(content)); err != nil {
		return part{}, err
	}
	sum := sha256.Sum256(b.Bytes())
	return part{digest: hex.EncodeToString(sum[:]), fixed: true, write: func(_ context.Context, w io.Writer) error {
		_, err := w.Write(b.Bytes())
		return err
	}}, nil
}

// writeSingle writes the sources' tar of one file.
func writeSingle(w io.Writer, name string, mode, size int64, content io.Reader) error {
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "0/" + name, Mode: mode, Size: size, ModTime: layer.ModTime}); err != nil {
		return err
	}
	if _, err := io.Copy(tw, content); err != nil {
		return err
	}
	return tw.Close()
}

// fetchedMode is the mode of files of the web, as docker has it.
const fetchedMode = 0o600

// download fetches a URL. With a checksum it is fetched only once the layer has
// to be made, and must be what the checksum says.
func (s *stage) download(ctx context.Context, url, checksum string) (file string, p part, err error) {
	name := urlName(url)
	if name == "" {
		name = "__unnamed__" // as docker calls it
	}
	if checksum != "" {
		want, ok := strings.CutPrefix(checksum, "sha256:")
		if b, err := hex.DecodeString(want); !ok || err != nil || len(b) != sha256.Size {
			return "", p, fmt.Errorf("--checksum=%s: must be sha256: and 64 hexadecimal digits", checksum)
		}
		return "", part{digest: "fetched " + want + " " + name, write: func(ctx context.Context, w io.Writer) error {
			file, sum, err := s.fetch(ctx, url)
			if file != "" {
				defer os.Remove(file)
			}
			if err == nil && sum != want {
				err = fmt.Errorf("%s: has the checksum sha256:%s, not %s", url, sum, checksum)
			}
			if err != nil {
				return err
			}
			return sendFile(w, file, name)
		}}, nil
	}
	file, sum, err := s.fetch(ctx, url)
	return file, part{digest: "fetched " + sum + " " + name, write: func(_ context.Context, w io.Writer) error {
		return sendFile(w, file, name)
	}}, err
}

func sendFile(w io.Writer, file, name string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return writeSingle(w, name, fetchedMode, fi.Size(), f)
}

// fetch copies a URL to a temporary file.
func (s *stage) fetch(ctx context.Context, url string) (file, sum string, err error) {
	f, err := os.CreateTemp(s.o.Scratch, "kiln-fetch-*")
	if err != nil {
		return "", "", err
	}
	hash := sha256.New()
	err = errors.Join(s.m.Fetch(ctx, url, io.MultiWriter(f, hash)), f.Close())
	if err != nil {
		return f.Name(), "", fmt.Errorf("%s: %w", url, err)
	}
	return f.Name(), hex.EncodeToString(hash.Sum(nil)), nil
}
