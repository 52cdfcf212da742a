package store

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/spec"
)

// full says of an error that came from a full disk how much was needed and how
// much there is. need is in bytes, 0 if not known. Other errors pass unchanged.
func (s *Store) full(err error, need int64) error {
	if err == nil || !(errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return err
	}
	return s.noRoom(err, need)
}

func (s *Store) noRoom(err error, need int64) error {
	var text string
	have, files := s.free()
	switch {
	case files == 0 && have > 0:
		text = "no inodes left"
	case need > 0:
		text = fmt.Sprintf("need %s, have %s", size(need), size(have))
	default:
		text = "have " + size(have)
	}
	return spec.WithHint(fmt.Errorf("disk of store %s is full: %s: %w", s.dir, text, err),
		"free some space there; `kiln store gc` removes what no image and no cache needs")
}

// free is what the store's file system has left for this user: bytes, and
// inodes (-1 where the file system does not count them).
func (s *Store) free() (bytes, files int64) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, -1
	}
	files = -1
	if st.Files > 0 {
		files = int64(st.Ffree)
	}
	return int64(st.Bavail) * st.Bsize, files
}

// room fails early if need bytes would not fit.
func (s *Store) room(need int64) error {
	if have, _ := s.free(); need > have {
		return s.noRoom(unix.ENOSPC, need)
	}
	return nil
}

// size writes a number of bytes for people, in powers of 1000.
func size(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for v >= 1000 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	return fmt.Sprintf("%.1f %cB", v, units[i])
}
