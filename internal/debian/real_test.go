package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

// memoryBound is what building a base image may have on its heap, in bytes.
const memoryBound = 200 << 20

// TestRunImageFromTheRealArchive builds kiln's run image from the mirror that
// this machine is configured for. It checks what no synthetic archive can: that
// the lists name packages that exist, that Debian's real packages have a place in
// our layers, and that nothing in the image lacks a library.
func TestRunImageFromTheRealArchive(t *testing.T) {
	sources, err := Sources("/")
	if err != nil {
		t.Fatal(err)
	}
	suite, err := HostSuite("/")
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(Options{Sources: sources})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	start, peak := time.Now(), watchMemory()
	there := map[string]byte{}
	var tarBytes int64
	count := func(_ string, write func(io.Writer) error) error {
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			n, err := names(r, there)
			tarBytes += n
			_, _ = io.Copy(io.Discard, r)
			done <- err
		}()
		err := write(w)
		return errors.Join(err, w.CloseWithError(err), <-done)
	}
	res, err := c.Build(context.Background(), RunImage(suite, HostArch()), count)
	if err != nil {
		t.Fatal(err)
	}
	most := peak()
	t.Logf("%d packages, %d files, %d MB in %s, %d MB of memory", res.Packages, res.Files, tarBytes>>20, time.Since(start).Round(time.Millisecond), most>>20)
	for _, want := range []string{"usr/bin/cat", "usr/bin/sh", "usr/bin/bash", "usr/bin/env", "etc/passwd", "etc/os-release", "etc/nsswitch.conf",
		"etc/ssl/certs/ca-certificates.crt", "usr/lib/ssl/cert.pem", "usr/share/zoneinfo/Etc/UTC", "var/lib/dpkg/status", "var/lib/dpkg/status.d/base-files",
		"home/cnb/", "tmp/", "bin", "lib", "var/run"} {
		if there[want] == 0 {
			t.Errorf("%s is not in the image", want)
		}
	}
	if there["bin"] != tar.TypeSymlink || there["var/run"] != tar.TypeSymlink {
		t.Errorf("bin and var/run must be links")
	}
	if res.Distro.Name != "debian" || res.Distro.Version == "" || len(res.Unemulated) > 0 {
		t.Errorf("distro %+v, not emulated %v", res.Distro, res.Unemulated)
	}
	if tarBytes > 60<<20 {
		t.Errorf("the run image has grown to %d bytes", tarBytes)
	}
	if most > memoryBound {
		t.Errorf("took %d MB of memory, want at most %d", most>>20, memoryBound>>20)
	}
}

// watchMemory begins to watch the heap. What it returns ends that and says how
// much of it was in use at the most, in bytes, beyond what other tests left.
func watchMemory() (peak func() uint64) {
	runtime.GC()
	inUse := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	before, stop, most := inUse(), make(chan struct{}), make(chan uint64)
	go func() {
		var n uint64
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			n = max(n, inUse())
			select {
			case <-tick.C:
			case <-stop:
				tick.Stop()
				most <- n - min(n, before)
				return
			}
		}
	}()
	return func() uint64 {
		close(stop)
		return <-most
	}
}

// names notes each entry's type and returns how many bytes the archive has.
func names(r io.Reader, into map[string]byte) (int64, error) {
	counted := &meterlessReader{r: r}
	tr := tar.NewReader(counted)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return counted.n, nil
		}
		if err != nil {
			return counted.n, err
		}
		into[h.Name] = h.Typeflag
	}
}

type meterlessReader struct {
	r io.Reader
	n int64
}

func (m *meterlessReader) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	return n, err
}

// TestJavaKeyStore reads the store back field by field, and holds its checksum
// against one that Java wrote: an empty store of the password "changeit".
func TestJavaKeyStore(t *testing.T) {
	empty := jks(nil, testDate)
	want := []byte{0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 0,
		0xe2, 0x68, 0x6e, 0x45, 0xfb, 0x43, 0xdf, 0xa4, 0xd9, 0x92, 0xdd, 0x41, 0xce, 0xb6, 0xb2, 0x1c, 0x63, 0x30, 0xd7, 0x92}
	if !bytes.Equal(empty, want) {
		t.Errorf("empty store: % x", empty)
	}
	b := jks([]jksEntry{{alias: "ä1", der: []byte("certificate")}}, testDate)
	b = b[12:]
	if tag := binary.BigEndian.Uint32(b); tag != 2 {
		t.Errorf("tag %d", tag)
	}
	if alias := string(b[6:8]); alias != "?1" || binary.BigEndian.Uint16(b[4:]) != 2 {
		t.Errorf("alias %q", alias)
	}
	if ms := binary.BigEndian.Uint64(b[8:]); int64(ms) != testDate.UnixMilli() {
		t.Errorf("date %d", ms)
	}
	if kind := string(b[18:23]); kind != "X.509" {
		t.Errorf("kind %q", kind)
	}
	if der := string(b[27 : len(b)-20]); der != "certificate" || binary.BigEndian.Uint32(b[23:]) != 11 {
		t.Errorf("certificate %q", der)
	}
}
