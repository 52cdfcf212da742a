package layer

import (
	"context"

	"golang.org/x/sys/unix"
)

// SetTimes gives everything in the directory dir, itself too, the modification
// time that layer tars have (ModTime), so that a tree which was written in
// place looks as if it had been unpacked from its layer. Links are not followed.
func SetTimes(ctx context.Context, dir string) error {
	h, err := openHandle(unix.AT_FDCWD, dir)
	if err != nil {
		return pathError("open", dir, err)
	}
	defer h.close()
	if err := setTimesBelow(ctx, h); err != nil {
		return err
	}
	return pathError("set time of", dir, setTime(unix.AT_FDCWD, dir))
}

func setTimesBelow(ctx context.Context, h handle) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := readDirents(h.fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		var st unix.Stat_t
		if err := fstatat(h.fd, n.name, &st); err != nil {
			return pathError("stat", n.name, err)
		}
		if isDir(&st) {
			child, err := openHandle(h.fd, n.name)
			if err != nil {
				return pathError("open", n.name, err)
			}
			err = setTimesBelow(ctx, child)
			child.close()
			if err != nil {
				return err
			}
		}
		if err := setTime(h.fd, n.name); err != nil {
			return pathError("set time of", n.name, err)
		}
	}
	return nil
}

func setTime(dirfd int, name string) error {
	t := unix.NsecToTimespec(ModTime.UnixNano())
	return retryEINTR(func() error {
		return unix.UtimesNanoAt(dirfd, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
	})
}
