package debian

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
)

// Bounds on what one package may hold; all are far above what Debian has.
const (
	// maxDeb bounds one .deb, in bytes.
	maxDeb = 8 << 30
	// maxControl bounds the unpacked control archive, in bytes.
	maxControl = 64 << 20
	// maxData bounds the unpacked data archive, in bytes.
	maxData = 32 << 30
	// maxControlFile bounds a control file or script that is kept, in bytes.
	maxControlFile = 16 << 20
)

// control is what we use of a package's control archive.
type control struct {
	fields   paragraph
	md5sums  []byte
	scripts  map[string]string // preinst, postinst, prerm, postrm
	replaces []relation
}

// deb is an opened package: its control archive read, its data archive to come.
type deb struct {
	control control
	// window is how many bytes of memory unpacking data takes.
	window int64
	name   string    // data.tar.xz
	member io.Reader // the data archive, still compressed
}

// openDeb reads an ar archive up to its data archive: debian-binary 2.x,
// control.tar, data.tar, each compressed or not. Members that begin with _ are
// skipped, as deb(5) says.
func openDeb(r *bufio.Reader) (*deb, error) {
	magic := make([]byte, 8)
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != "!<arch>\n" {
		return nil, errors.New("not a .deb: no ar archive")
	}
	var d deb
	for stage := "debian-binary"; ; {
		name, size, err := nextMember(r)
		if err != nil {
			return nil, fmt.Errorf("ar archive: %w", err)
		}
		body := &io.LimitedReader{R: r, N: size}
		switch {
		case strings.HasPrefix(name, "_"):
		case stage == "debian-binary":
			version, err := io.ReadAll(io.LimitReader(body, 64))
			if err != nil || name != stage || !bytes.HasPrefix(version, []byte("2.")) {
				return nil, fmt.Errorf("first member is %q with %.10q, not debian-binary 2.x", name, version)
			}
			stage = "control.tar"
		case stage == "control.tar" && strings.HasPrefix(name, stage):
			if d.control, err = readControl(name, body); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			stage = "data.tar"
		case stage == "data.tar" && strings.HasPrefix(name, stage):
			br := bufio.NewReaderSize(body, 64<<10)
			if path.Ext(name) == ".xz" {
				head, _ := br.Peek(64)
				d.window = xzWindow(head)
			}
			d.name, d.member = name, br
			return &d, nil
		default:
			return nil, fmt.Errorf("member %q where %s must stand", name, stage)
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if body.N > 0 {
			return nil, fmt.Errorf("%s: %w", name, io.ErrUnexpectedEOF)
		}
		if size%2 == 1 {
			if _, err := r.Discard(1); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
}

// nextMember reads one ar header: name 16, time 12, uid 6, gid 6, mode 8, size 10.
func nextMember(r io.Reader) (name string, size int64, err error) {
	h := make([]byte, 60)
	if _, err := io.ReadFull(r, h); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("ends before data.tar")
		}
		return "", 0, err
	}
	if string(h[58:]) != "`\n" {
		return "", 0, errors.New("damaged header")
	}
	size, err = strconv.ParseInt(strings.TrimSpace(string(h[48:58])), 10, 64)
	if err != nil || size < 0 || size > maxDeb {
		return "", 0, fmt.Errorf("member size %q", h[48:58])
	}
	return strings.TrimSuffix(strings.TrimSpace(string(h[:16])), "/"), size, nil
}

// data is the data archive, unpacked, bounded.
func (d *deb) data() (io.ReadCloser, error) {
	plain, err := decompress(d.name, d.member)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{&boundedReader{r: plain, left: maxData}, plain}, nil
}

// boundedReader fails when r gives more than it may.
type boundedReader struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("unpacks to more than a package may hold")
	}
	return n, err
}

// readControl reads control, md5sums and the maintainer scripts.
func readControl(name string, r io.Reader) (control, error) {
	c := control{scripts: map[string]string{}}
	plain, err := decompress(name, r)
	if err != nil {
		return c, err
	}
	defer plain.Close()
	tr := tar.NewReader(&boundedReader{r: plain, left: maxControl})
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return c, err
		}
		file := path.Clean(h.Name)
		switch file {
		case "control", "md5sums", "preinst", "postinst", "prerm", "postrm":
		default:
			continue
		}
		if h.Size > maxControlFile {
			return c, fmt.Errorf("%s: %d bytes", file, h.Size)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return c, fmt.Errorf("%s: %w", file, err)
		}
		switch file {
		case "control":
			c.fields = b
		case "md5sums":
			c.md5sums = b
		default:
			c.scripts[file] = string(b)
		}
	}
	return c, c.parse()
}

// parse checks that control is one paragraph and reads what it replaces.
func (c *control) parse() error {
	ps := newParagraphs(bufio.NewReader(bytes.NewReader(c.fields)), maxControlFile)
	p, err := ps.next()
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	if p.get("Package") == "" {
		return errors.New("control: no package name")
	}
	c.fields = bytes.TrimRight(bytes.Clone(p), "\n")
	c.replaces, err = parseRelations(c.fields.get("Replaces"))
	if err != nil {
		return fmt.Errorf("control: field Replaces: %w", err)
	}
	return nil
}

// is says whether the package is the one that the lock names. The hash says so
// too; this tells a lock that was edited by hand.
func (c *control) is(p LockedPackage) error {
	name, version, arch := c.fields.get("Package"), c.fields.get("Version"), c.fields.get("Architecture")
	if name != p.Name || version != p.Version || arch != p.Arch {
		return fmt.Errorf("it is %s %s %s", name, version, arch)
	}
	return nil
}
