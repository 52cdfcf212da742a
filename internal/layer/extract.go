package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// Extract writes the regular files of a layer that are below the directory
// within ("/layers/sbom") into root, under their names without the leading
// slash, and nothing else of the layer: no links, no devices, no whiteouts. It
// returns the names, in order. It reads r to its end; when it fails, what was
// written stays. A layer that exceeds limits fails with ErrLimit.
func Extract(ctx context.Context, root *os.Root, r io.Reader, within string, limits Limits) ([]string, error) {
	limits = limits.withDefaults()
	limited := &io.LimitedReader{R: r, N: limits.Bytes}
	in := bufio.NewReaderSize(limited, copyBuffer)
	tr := tar.NewReader(in)
	files := map[string]bool{}
	for entries, bytes := int64(0), int64(0); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if entries++; entries > limits.Entries {
			return nil, limitError(hdr.Name, "entries", limits.Entries)
		}
		name := path.Clean("/" + hdr.Name)
		if hdr.Typeflag != tar.TypeReg || !strings.HasPrefix(name, within+"/") || strings.HasPrefix(path.Base(name), ".wh.") {
			continue
		}
		if bytes += hdr.Size; bytes > limits.Bytes || hdr.Size > limits.Bytes { // a sparse file takes less in the tar
			return nil, limitError(hdr.Name, "bytes", limits.Bytes)
		}
		if err := extractFile(root, name[1:], tr); err != nil {
			return nil, err
		}
		files[name[1:]] = true
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, err
	}
	if limited.N <= 0 {
		return nil, limitError("", "bytes", limits.Bytes)
	}
	return slices.Sorted(maps.Keys(files)), nil
}

func extractFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
