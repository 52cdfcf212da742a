package debian

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Rewrite maps a path of the packages (slash separated, relative to the root,
// already merged into usr: "usr/bin/python3.11", "etc/python3.11") to a path
// relative to the prefix, or to "" to leave it out. Targets of links are
// mapped with it too, so it must be a function of the path alone.
type Rewrite func(path string) string

// Unpack writes the packages of lock into the directory dir, which must exist.
// rewrite says where each file goes; nil means Flatten. Links, absolute ones
// too, become relative links inside dir; links that would lead nowhere, since
// what they name was left out or is in no package of the lock, are left out too.
// Directories come into being as parents of files, with mode 0755. Files keep
// their permission bits less setuid and setgid, belong to the caller, and have
// the packages' modification times. A file that is already there is an error.
//
// When Unpack fails, dir holds part of the files: have it removed.
func (c *Client) Unpack(ctx context.Context, lock Lock, dir string, rewrite Rewrite) error {
	if err := lock.check(); err != nil {
		return fmt.Errorf("package lock: %w", err)
	}
	if rewrite == nil {
		rewrite = Flatten
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack packages: %w", err)
	}
	defer root.Close()
	p, err := c.start(ctx, lock)
	if err != nil {
		return err
	}
	defer p.stop()
	u := &prefix{root: root, rewrite: rewrite, links: map[string]string{}}
	for {
		s, err := p.next()
		if err != nil {
			return err
		}
		if s == nil {
			break
		}
		if err := u.pack(s); err != nil {
			return fmt.Errorf("unpack package %s into %s: %w", s.Name, dir, p.cause(err))
		}
	}
	if err := u.finish(); err != nil {
		return fmt.Errorf("unpack packages into %s: %w", dir, err)
	}
	return nil
}

// Flatten is the Rewrite of a prefix as /usr/local is one: usr/* goes to the
// prefix's root, etc and the rest stay under their own names; documentation
// (but for copyright files), translations and systemd's and udev's files are
// left out.
func Flatten(p string) string {
	for _, out := range []string{"usr/lib/systemd", "usr/lib/udev", "usr/lib/tmpfiles.d", "usr/lib/sysusers.d"} {
		if p == out || strings.HasPrefix(p, out+"/") {
			return ""
		}
	}
	if documentation(p, tar.TypeSymlink) || p == "usr" || p == "." {
		return ""
	}
	return strings.TrimPrefix(p, "usr/")
}

// prefix is the state of one Unpack.
type prefix struct {
	root    *os.Root
	rewrite Rewrite
	// links are made last, so that no file is ever written through one.
	links map[string]string
}

func (u *prefix) pack(s *stream) error {
	tr := tar.NewReader(s.data)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("data archive: %w", err)
		}
		if err := u.member(h, tr); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, s.data) // the hash is checked at the end
	return err
}

// target is where a path of the packages goes, or "".
func (u *prefix) target(name string) (string, error) {
	p, err := memberPath(name)
	if err != nil {
		return "", err
	}
	to := u.rewrite(canonical(p))
	if to != "" && !fs.ValidPath(to) {
		return "", fmt.Errorf("%s: rewritten to %q, which is no path inside the prefix", name, to)
	}
	return to, nil
}

func (u *prefix) member(h *tar.Header, body io.Reader) error {
	to, err := u.target(h.Name)
	if err != nil || to == "" {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return nil
	case tar.TypeReg:
		if sparse(h) {
			break
		}
		return u.file(to, h, body)
	case tar.TypeLink:
		from, err := u.target(h.Linkname)
		if err != nil {
			return err
		}
		if from == "" {
			return fmt.Errorf("%s: hard link to %s, which is left out", h.Name, h.Linkname)
		}
		if err := u.root.MkdirAll(path.Dir(to), 0o755); err != nil {
			return err
		}
		return u.root.Link(from, to)
	case tar.TypeSymlink:
		name, err := memberPath(h.Name)
		if err != nil {
			return err
		}
		abs := h.Linkname
		if !path.IsAbs(abs) {
			abs = path.Join("/", path.Dir(name), abs)
		}
		// Clean and absolute, so it stops at the root: as in the kernel.
		dest := u.rewrite(canonical(strings.TrimPrefix(path.Clean(abs), "/")))
		if dest == "" {
			return nil
		}
		link := relativeTo(path.Dir(to), dest)
		if old, ok := u.links[to]; ok && old != link {
			return fmt.Errorf("%s: links to %s and to %s", to, old, link)
		}
		u.links[to] = link
		return nil
	}
	return fmt.Errorf("%s: file type %q has no place in a package", h.Name, h.Typeflag)
}

func (u *prefix) file(to string, h *tar.Header, body io.Reader) error {
	if err := u.root.MkdirAll(path.Dir(to), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	f, err := u.root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return u.root.Chtimes(to, time.Time{}, h.ModTime)
}

// finish makes the links and takes those away that lead nowhere: which may make
// others lead nowhere.
func (u *prefix) finish() error {
	var names []string
	for name, target := range u.links {
		if err := u.root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := u.root.Symlink(target, name); err != nil {
			return err
		}
		names = append(names, name)
	}
	slices.Sort(names)
	for again := true; again; {
		again = false
		names = slices.DeleteFunc(names, func(name string) bool {
			if _, err := u.root.Stat(name); err == nil {
				return false
			}
			again = u.root.Remove(name) == nil || again
			return true
		})
	}
	return nil
}
