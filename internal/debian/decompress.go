package debian

import (
	"bufio"
	"compress/bzip2"
	"fmt"
	"io"
	"path"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow bounds the memory that a compressed stream may ask for, in bytes;
// xz -9, the most that Debian uses, needs 64 MiB.
const maxWindow = 64 << 20

// decompress undoes the compression that name's extension tells: .xz, .gz, .zst,
// .bz2, or none. It reads ahead of what is asked for.
func decompress(name string, r io.Reader) (io.ReadCloser, error) {
	switch path.Ext(name) {
	case ".xz":
		br := bufio.NewReaderSize(r, 64<<10)
		if head, _ := br.Peek(64); xzWindow(head) > maxWindow {
			return nil, fmt.Errorf("decompress %s: needs more than %d bytes of memory", name, maxWindow)
		}
		x, err := xz.ReaderConfig{DictCap: 64 << 10}.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("decompress %s: %w", name, err)
		}
		return io.NopCloser(x), nil
	case ".gz":
		z, err := gzip.NewReader(bufio.NewReaderSize(r, 64<<10))
		if err != nil {
			return nil, fmt.Errorf("decompress %s: %w", name, err)
		}
		return z, nil
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("decompress %s: %w", name, err)
		}
		return z.IOReadCloser(), nil
	case ".bz2":
		return io.NopCloser(bzip2.NewReader(bufio.NewReaderSize(r, 64<<10))), nil
	case "", ".tar":
		return io.NopCloser(r), nil
	}
	return nil, fmt.Errorf("decompress %s: unknown compression", name)
}

// xzWindow reads the dictionary size out of the first block header of an .xz
// file: 0 when there is none to be seen. The decoder allocates it at once.
func xzWindow(head []byte) int64 {
	const streamHeader = 12
	if len(head) < streamHeader+2 {
		return 0
	}
	size := (int(head[streamHeader]) + 1) * 4
	flags := head[streamHeader+1]
	b := head[streamHeader+2 : min(len(head), streamHeader+size)]
	varint := func() {
		for len(b) > 0 {
			last := b[0]&0x80 == 0
			if b = b[1:]; last {
				return
			}
		}
	}
	if flags&0x40 != 0 {
		varint() // compressed size
	}
	if flags&0x80 != 0 {
		varint() // uncompressed size
	}
	for range int(flags&3) + 1 {
		if len(b) < 3 {
			return 0
		}
		if b[0] == 0x21 && b[1] == 1 { // LZMA2, one byte of properties
			bits := int64(b[2] & 0x3f)
			return (2 | bits&1) << (bits/2 + 11)
		}
		n := int(b[1])
		if b = b[2:]; n > len(b) {
			return 0
		}
		b = b[n:]
	}
	return 0
}
