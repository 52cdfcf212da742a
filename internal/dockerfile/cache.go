package dockerfile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/image"
)

// Cache keeps what instructions made, from one build to the next.
type Cache interface {
	Layers
	// Get returns the layer that was made under a key: nil for an instruction
	// that changed nothing. An error says why what is there cannot be trusted;
	// then there is no hit. The layer's bytes have been read and are its own.
	Get(ctx context.Context, key string) (l v1.Layer, hit bool, err error)
	// Put keeps a layer that PutLayer returned, or nil, under a key.
	Put(ctx context.Context, key string, l v1.Layer) error
}

// keyVersion is part of every key: an entry of another version may be wrong by
// today's rules.
const keyVersion = "kiln dockerfile 1"

// cacheKey names what an instruction makes of the layers below it. Of the
// Dockerfile it depends on nothing else: an instruction that is executed again
// and makes the same as before lets those after it be found.
func cacheKey(machine string, below []v1.Layer, instruction any) (string, error) {
	ids, err := diffIDs(below)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(struct {
		Version, Machine string
		Below            []v1.Hash
		Instruction      any
	}{keyVersion, machine, ids, instruction})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// Directory is a Cache in a directory: for each key a small file, for each
// layer its tar. Both are written aside, synced and renamed, and a tar is hashed
// before it is used again.
type Directory struct {
	dir string
	ttl time.Duration
	now func() time.Time
}

var _ Cache = (*Directory)(nil)

// OpenDirectory makes a Cache of the directory dir, which is made if it is
// missing. Entries older than ttl are removed, with the layers that only they
// speak of.
func OpenDirectory(dir string, ttl time.Duration) (*Directory, error) {
	d := &Directory{dir: dir, ttl: ttl, now: time.Now}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return d, d.sweep()
}

// entry is the file of a key.
type entry struct {
	Key   string `json:"key"`
	Layer string `json:"layer,omitempty"` // diffID; none for an instruction that changed nothing
	Size  int64  `json:"size,omitempty"`
}

func (d *Directory) entryPath(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(d.dir, hex.EncodeToString(sum[:])+".json")
}

func (d *Directory) layerPath(diffID v1.Hash) string {
	return filepath.Join(d.dir, diffID.Algorithm+"-"+diffID.Hex+".tar")
}

// maxEntry bounds the file of a key, in bytes.
const maxEntry = 64 << 10

// openKept opens a file of the directory. It follows no link, waits for nobody,
// and takes nothing but a regular file for one that is there.
func openKept(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		err = fs.ErrNotExist // a link, a socket
	}
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, fi, nil
}

func (d *Directory) read(path string) (e entry, err error) {
	f, fi, err := openKept(path)
	if err != nil {
		return e, err
	}
	defer f.Close()
	if fi.ModTime().Add(d.ttl).Before(d.now()) {
		return e, fs.ErrNotExist
	}
	b, err := io.ReadAll(io.LimitReader(f, maxEntry))
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	return e, err
}

// Get implements Cache.
func (d *Directory) Get(ctx context.Context, key string) (v1.Layer, bool, error) {
	path := d.entryPath(key)
	e, err := d.read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err == nil && e.Key != key {
		err = errors.New("it is of another key")
	}
	if err != nil {
		return nil, false, fmt.Errorf("cache entry %s: %w", path, err)
	}
	if e.Layer == "" {
		return nil, true, nil
	}
	diffID, err := v1.NewHash(e.Layer)
	if err != nil {
		return nil, false, fmt.Errorf("cache entry %s: %w", path, err)
	}
	if err := d.verify(ctx, diffID, e.Size); err != nil {
		return nil, false, errors.Join(fmt.Errorf("cached layer %s: %w", diffID, err), os.Remove(path))
	}
	return d.layer(diffID, e.Size), true, nil
}

// verify hashes a layer's tar.
func (d *Directory) verify(ctx context.Context, diffID v1.Hash, size int64) error {
	f, fi, err := openKept(d.layerPath(diffID))
	if err != nil {
		return err
	}
	defer f.Close()
	if fi.Size() != size {
		return errors.Join(fmt.Errorf("it has %d bytes, not %d: %w", fi.Size(), size, errDamaged), os.Remove(f.Name()))
	}
	h := sha256.New()
	n, err := io.Copy(h, &interruptible{ctx, io.LimitReader(f, size+1)})
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != size || got != diffID.Hex {
		return errors.Join(fmt.Errorf("its bytes have the digest sha256:%s: %w", got, errDamaged), os.Remove(f.Name()))
	}
	return nil
}

func (d *Directory) layer(diffID v1.Hash, size int64) v1.Layer {
	return image.NewLayer(func() (io.ReadCloser, error) {
		f, _, err := openKept(d.layerPath(diffID))
		if err != nil {
			return nil, err
		}
		return f, nil
	}, diffID, size)
}

// Put implements Cache.
func (d *Directory) Put(ctx context.Context, key string, l v1.Layer) error {
	e := entry{Key: key}
	if l != nil {
		diffID, err := l.DiffID()
		if err != nil {
			return err
		}
		if e.Size, err = l.Size(); err != nil {
			return err
		}
		e.Layer = diffID.String()
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return d.write(func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}, func() string { return d.entryPath(key) })
}

// PutLayer implements Layers.
func (d *Directory) PutLayer(ctx context.Context, write func(io.Writer) error) (v1.Layer, error) {
	var (
		hash   = sha256.New()
		size   counter
		diffID v1.Hash
	)
	err := d.write(func(w io.Writer) error {
		return write(io.MultiWriter(w, hash, &size))
	}, func() string {
		diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(hash.Sum(nil))}
		return d.layerPath(diffID)
	})
	if err != nil {
		return nil, err
	}
	return d.layer(diffID, int64(size)), nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// temporary is how the names of unfinished files begin.
const temporary = ".new-"

// write makes a file as a whole, under the name that is known once it is
// written.
func (d *Directory) write(content func(io.Writer) error, name func() string) (err error) {
	f, err := os.CreateTemp(d.dir, temporary+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	err = content(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name()); err != nil {
		return err
	}
	dir, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// unfinished is how old a temporary file must be to be nobody's any more.
const unfinished = 24 * time.Hour

// sweep removes what is too old. A layer goes when no entry speaks of it and it
// is as old itself: one that was just written has its entry written next.
func (d *Directory) sweep() error {
	list, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	spoken := map[string]bool{}
	for _, f := range list {
		if !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		path := filepath.Join(d.dir, f.Name())
		if e, err := d.read(path); err == nil {
			if diffID, err := v1.NewHash(e.Layer); err == nil {
				spoken[filepath.Base(d.layerPath(diffID))] = true
			}
		} else if errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(path)
		}
	}
	for _, f := range list {
		info, err := f.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		age := d.now().Sub(info.ModTime())
		if strings.HasPrefix(f.Name(), temporary) && age > unfinished || strings.HasSuffix(f.Name(), ".tar") && !spoken[f.Name()] && age > d.ttl {
			_ = os.Remove(filepath.Join(d.dir, f.Name()))
		}
	}
	return nil
}
