package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// entriesOf describes what is in a tar: every field that has a meaning but the
// times, and the content.
func entriesOf(data []byte) (list []string, err error) {
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			return list, err
		}
		kind := hdr.Typeflag
		if kind == tar.TypeGNUSparse {
			kind = tar.TypeReg
		}
		xattrs := map[string]string{}
		for k, v := range hdr.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				xattrs[k] = v
			}
		}
		list = append(list, fmt.Sprintf("%c %q -> %q %o %d:%d %q:%q %d,%d %q %q", kind, hdr.Name, hdr.Linkname, hdr.Mode, hdr.Uid, hdr.Gid,
			hdr.Uname, hdr.Gname, hdr.Devmajor, hdr.Devminor, xattrs, body))
	}
}

func normalized(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Normalize(context.Background(), &b, bytes.NewReader(data), Limits{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestNormalize(t *testing.T) {
	day := func(n int, format tar.Format) []byte {
		at := time.Date(2026, 1, n, 3, 4, 5, 6789, time.UTC)
		headers := []tar.Header{
			hdrDir("usr/", 0o755), hdrFile("usr/b", "later letters first"), hdrFile("usr/a", ""), hdrHard("usr/c", "usr/b"),
			hdrLink("usr/l", "../../etc/passwd"), hdrFile("etc/.wh.gone", ""), hdrFile("var/.wh..wh..opq", ""),
			{Typeflag: tar.TypeReg, Name: "owned", Mode: 0o4755, Uid: 1001, Gid: 1002, Uname: "me", Gname: "us"},
			{Typeflag: tar.TypeReg, Name: "ping", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}},
			{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, {Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600},
			hdrFile(strings.Repeat("long/", 60)+"name", "x"), hdrFile("usr/b", "again"),
		}
		for i := range headers {
			headers[i].ModTime = at
			if format != tar.FormatUnknown && headers[i].PAXRecords == nil {
				headers[i].AccessTime, headers[i].ChangeTime, headers[i].Format = at, at, format
			}
		}
		return tarOf(t, headers...)
	}
	first := normalized(t, day(1, tar.FormatUnknown))
	want, err := entriesOf(day(1, tar.FormatUnknown))
	if err != nil || len(want) != 13 {
		t.Fatal(want, err)
	}
	for name, data := range map[string][]byte{"another day": day(2, tar.FormatUnknown), "more exact times": day(3, tar.FormatPAX), "GNU's format": day(4, tar.FormatGNU), "itself": first} {
		if !bytes.Equal(normalized(t, data), first) {
			t.Errorf("%s: other bytes", name)
		}
	}
	got, err := entriesOf(first)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	tr := tar.NewReader(bytes.NewReader(first))
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !hdr.ModTime.Equal(ModTime) || !hdr.AccessTime.IsZero() || !hdr.ChangeTime.IsZero() {
			t.Errorf("%s: times %v %v %v", hdr.Name, hdr.ModTime, hdr.AccessTime, hdr.ChangeTime)
		}
	}
	// What WriteFiles and WriteTree make is normal already.
	var own bytes.Buffer
	if err := WriteFiles(&own, []File{{Path: "/a", Mode: 0o755, Body: []byte("x")}, {Path: "/b", Link: "a"}}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(normalized(t, own.Bytes()), own.Bytes()) {
		t.Error("a layer of our own was changed")
	}
}

func TestNormalizeLimits(t *testing.T) {
	two := tarOf(t, hdrFile("a", "12345"), hdrFile("b", "67890"))
	for _, tt := range []struct {
		data   []byte
		limits Limits
		ok     bool
	}{
		{two, Limits{Entries: 2, Bytes: 10 << 10}, true},
		{two, Limits{Entries: 1}, false},
		{two, Limits{Bytes: 9}, false},
		{sparseBomb(t), Limits{Bytes: 1 << 20}, false},
		{append(bytes.Clone(two), make([]byte, 1<<20)...), Limits{Bytes: 1 << 20}, false},
		{append(bytes.Clone(two), make([]byte, 1<<20)...), Limits{Bytes: 2 << 20}, true},
	} {
		err := Normalize(t.Context(), io.Discard, bytes.NewReader(tt.data), tt.limits)
		if tt.ok && err != nil || !tt.ok && !errors.Is(err, ErrLimit) {
			t.Errorf("%+v: %v", tt.limits, err)
		}
	}
}

func TestNormalizeFailures(t *testing.T) {
	whole := tarOf(t, hdrFile("a", strings.Repeat("x", 4096)))
	for n := range len(whole) - 1024 { // the end of an archive may be missing
		if n > 512 && n%509 != 0 || n == 0 {
			continue
		}
		if err := Normalize(t.Context(), io.Discard, bytes.NewReader(whole[:n]), Limits{}); err == nil {
			t.Errorf("%d of %d bytes were enough", n, len(whole))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Normalize(ctx, io.Discard, bytes.NewReader(whole), Limits{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	full := errors.New("disk full")
	if err := Normalize(t.Context(), failingWriter{full}, bytes.NewReader(whole), Limits{}); !errors.Is(err, full) {
		t.Error(err)
	}
	r := &counting{r: bytes.NewReader(append(bytes.Clone(whole), "trailer"...))}
	if err := Normalize(t.Context(), io.Discard, r, Limits{}); err != nil || r.n != len(whole)+7 {
		t.Errorf("%d of %d bytes were read, %v", r.n, len(whole)+7, err)
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }

type counting struct {
	r io.Reader
	n int
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// Whatever is in a layer, nothing but the times changes, and doing it twice is
// doing it once.
func TestNormalizeKeepsEverything(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for range rapid.IntRange(0, 8).Draw(r, "entries") {
			hdr := &tar.Header{
				Typeflag: rapid.SampledFrom([]byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo}).Draw(r, "type"),
				Name:     rapid.StringMatching(`[a-z./é]{1,300}`).Draw(r, "name"), Linkname: rapid.StringMatching(`[a-z./]{0,120}`).Draw(r, "link"),
				Mode: rapid.Int64Range(0, 0o7777).Draw(r, "mode"), Uid: rapid.IntRange(0, 1<<22).Draw(r, "uid"), Gid: rapid.IntRange(0, 1<<31).Draw(r, "gid"),
				ModTime: time.Unix(rapid.Int64Range(-1<<33, 1<<33).Draw(r, "time"), rapid.Int64Range(0, 999_999_999).Draw(r, "nanoseconds")),
				Format:  rapid.SampledFrom([]tar.Format{tar.FormatUnknown, tar.FormatPAX, tar.FormatGNU}).Draw(r, "format"),
			}
			if hdr.Format != tar.FormatGNU && rapid.Bool().Draw(r, "xattr") {
				hdr.PAXRecords = map[string]string{"SCHILY.xattr.user.x": rapid.StringMatching(`[a-z=\n]{0,9}`).Draw(r, "value")}
			}
			body := rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(r, "body")
			if hdr.Typeflag == tar.TypeReg {
				hdr.Size = int64(len(body))
			}
			if err := tw.WriteHeader(hdr); err != nil {
				continue // it cannot be written at all
			}
			if hdr.Typeflag == tar.TypeReg {
				if _, err := tw.Write(body); err != nil {
					r.Fatal(err)
				}
			}
		}
		if err := tw.Close(); err != nil {
			r.Fatal(err)
		}
		checkNormalize(t, b.Bytes())
	})
}

func checkNormalize(t testing.TB, data []byte) {
	t.Helper()
	limits := Limits{Entries: 1000, Bytes: 1 << 20}
	var once, twice bytes.Buffer
	if err := Normalize(context.Background(), &once, bytes.NewReader(data), limits); err != nil {
		return
	}
	want, err := entriesOf(data)
	if err != nil {
		t.Fatalf("it was taken, but cannot be read: %v", err)
	}
	got, err := entriesOf(once.Bytes())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	if err := Normalize(context.Background(), &twice, bytes.NewReader(once.Bytes()), Limits{}); err != nil || !bytes.Equal(once.Bytes(), twice.Bytes()) {
		t.Fatalf("doing it again changes it: %v", err)
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add(tarOf(f, hdrDir("a/", 0o755), hdrFile("a/b", "x"), hdrHard("c", "a/b"), hdrLink("d", "a"), hdrFile(".wh.e", "")))
	f.Add(sparseBomb(f))
	f.Add(tarOf(f, tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b", "VENDOR.key": "c"}}))
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, data []byte) { checkNormalize(t, data) })
}
