package layertest

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Bomb is an archive that has no end, or takes more than it seems to.
type Bomb struct {
	Name string
	Why  string
	open func() io.Reader
}

// Open begins to read the bomb. Most have no end.
func (b Bomb) Open() io.Reader { return b.open() }

// Bombs are tars, not compressed. Whoever reads one of them must stop by itself.
func Bombs() []Bomb {
	forever := func(b []byte) func() io.Reader { return func() io.Reader { return &endless{b: b} } }
	long := strings.Repeat(strings.Repeat("d", 254)+"/", 15)
	return []Bomb{
		{"file without end", "CVE-2017-14992: gzip makes a thousand bytes of each", func() io.Reader {
			return io.MultiReader(bytes.NewReader(file("f", "").withSize(base256(1<<62)).bytes()), &endless{b: make([]byte, 1<<16)})
		}},
		{"entries without end", "each costs the reader an inode, or memory", forever(file("f", "").bytes())},
		{"directories without end", "each is remembered", func() io.Reader {
			return &numbered{form: func(n int) []byte { return dir(fmt.Sprintf("d%d", n)).bytes() }}
		}},
		{"long directories without end", "4 kB for each to remember", func() io.Reader {
			return &numbered{form: func(n int) []byte { return dir(fmt.Sprintf("%sd%d", long, n)).bytes() }}
		}},
		{"long whiteouts without end", "names to remember", func() io.Reader {
			return &numbered{form: func(n int) []byte { return file(fmt.Sprintf("%s.wh.d%d", long, n), "").bytes() }}
		}},
		{"names of a megabyte without end", "names to remember", func() io.Reader {
			return &numbered{form: func(n int) []byte {
				return file(fmt.Sprintf("layers/sbom/%s%d", strings.Repeat("a/", 400_000), n), "").bytes()
			}}
		}},
		{"lists of packages without end", "what a rebase reads, with names of a megabyte", func() io.Reader {
			return &numbered{form: func(n int) []byte {
				return file(fmt.Sprintf("var/lib/dpkg/status.d/.wh.%s%d", strings.Repeat("n", 800_000), n), "").bytes()
			}}
		}},
		{"whiteouts without end", "entries that make no file", forever(file(".wh..wh.x", "").bytes())},
		{"global headers without end", "entries that are none", forever(entry{kind: 'g', name: "g", body: paxRecord("comment", "x")}.bytes())},
		{"PAX headers without end", "no entry ever comes, so nobody counts", forever(entry{kind: 'x', name: "x", body: paxRecord("comment", "x")}.bytes())},
		{"GNU long names without end", "as above", forever(entry{kind: 'L', name: "././@LongLink", body: strings.Repeat("n", 4000), magic: gnu}.bytes())},
		{"zeros without end", "what follows the end of the archive", forever(make([]byte, 1<<16))},
		{"garbage without end", "as above", func() io.Reader {
			return io.MultiReader(bytes.NewReader(tarOf(file("a", "x"))("")), &endless{b: bytes.Repeat([]byte("garbage!"), 1<<12)})
		}},
		{"xattrs without end", "a megabyte of them for each file", forever(file("f", "").with(manyXattrs()...).bytes())},
	}
}

func manyXattrs() (records []string) {
	for i := range 4000 {
		records = append(records, fmt.Sprintf("SCHILY.xattr.user.x%d", i), strings.Repeat("v", 200))
	}
	return records
}

// endless repeats b.
type endless struct {
	b  []byte
	at int
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		m := copy(p[n:], e.b[e.at:])
		n += m
		e.at = (e.at + m) % len(e.b)
	}
	return n, nil
}

// numbered is entries that are each another one.
type numbered struct {
	form func(n int) []byte
	n    int
	rest []byte
}

func (r *numbered) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		r.rest = r.form(r.n)
		r.n++
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// memory bounds what defusing a bomb may take, in bytes: that is what the Go
// runtime, a decompressor and some buffers come to, and no bomb.
const memory = 256 << 20

// patience is for a bomb that has no end.
const patience = 2 * time.Minute

const bombEnv = "KILN_LAYERTEST_BOMB"

// Defuse runs f for every bomb, each in a process of its own, which must not
// take much memory. F fails the test if it gets to an end. It is to be called by
// a test, of which nothing else is executed there.
func Defuse(t *testing.T, f func(t *testing.T, b Bomb)) {
	table := Bombs()
	if name := os.Getenv(bombEnv); name != "" {
		for _, b := range table {
			if b.Name == name {
				f(t, b)
				return
			}
		}
		t.Fatalf("there is no bomb %q", name)
	}
	self, err := os.Executable()
	must(t, err)
	for _, b := range table {
		t.Run(b.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			top, _, _ := strings.Cut(t.Name(), "/")
			cmd := exec.CommandContext(ctx, self, "-test.run=^"+top+"$", "-test.count=1")
			cmd.Env = append(os.Environ(), bombEnv+"="+b.Name, fmt.Sprintf("GOMEMLIMIT=%d", memory/2), "TMPDIR="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10; peak > memory {
				t.Errorf("it took %d MB of memory", peak>>20)
			}
		})
	}
}

// Gzip compresses b.
func Gzip(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // memory does not fail
	}
	return out.Bytes()
}

// Zstd compresses b.
func Zstd(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(b, nil)
}

// ZstdWindow is b, not compressed, in a zstd frame that asks for a window of
// 1<<bits bytes.
func ZstdWindow(b []byte, bits int) []byte {
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, byte(bits-10) << 3}
	const most = 64 << 10 // of a block
	for {
		n := min(len(b), most)
		head := n << 3
		if n == len(b) {
			head |= 1 // the last one
		}
		out = append(append(out, byte(head), byte(head>>8), byte(head>>16)), b[:n]...)
		if b = b[n:]; len(b) == 0 {
			return out
		}
	}
}
