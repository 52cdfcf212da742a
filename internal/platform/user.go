package platform

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
)

// user is who a command runs as.
type user struct {
	uid, gid int
	home     string
}

// accountsLimit bounds /etc/passwd and /etc/group of an image, in bytes.
const accountsLimit = 4 << 20

// findUser resolves the User of an image config: a name or id, optionally with
// a group, looked up in the image's own /etc/passwd and /etc/group. An id need
// not be there; without a user it is root.
func findUser(root layer.Stack, s string) (user, error) {
	name, group, hasGroup := strings.Cut(s, ":")
	u, err := findAccount(root, name)
	if err != nil || !hasGroup {
		return u, err
	}
	u.gid, err = findGroup(root, group)
	return u, err
}

func findAccount(root layer.Stack, name string) (user, error) {
	id, isID := number(name)
	if name == "" {
		isID = true
	}
	for f, err := range accounts(root, "etc/passwd", 6) {
		if err != nil {
			return user{}, err
		}
		uid, okUID := number(f[2])
		gid, okGID := number(f[3])
		if okUID && okGID && (f[0] == name || isID && uid == id) {
			return user{uid: uid, gid: gid, home: cmp.Or(f[5], "/")}, nil
		}
	}
	if !isID {
		return user{}, fmt.Errorf("user %q is not in its /etc/passwd", name)
	}
	return user{uid: id, home: "/"}, nil
}

func findGroup(root layer.Stack, name string) (int, error) {
	if gid, ok := number(name); ok {
		return gid, nil
	}
	for f, err := range accounts(root, "etc/group", 3) {
		if err != nil {
			return 0, err
		}
		if gid, ok := number(f[2]); ok && f[0] == name {
			return gid, nil
		}
	}
	return 0, fmt.Errorf("group %q is not in its /etc/group", name)
}

// accounts are the lines of a file in the form of /etc/passwd, in fields; lines
// with fewer than least fields are no accounts. A missing file has none.
func accounts(root layer.Stack, file string, least int) iter.Seq2[[]string, error] {
	return func(yield func([]string, error) bool) {
		content, err := root.ReadFile(file, accountsLimit)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield(nil, err)
			return
		}
		for line := range strings.Lines(string(content)) {
			f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
			if len(f) >= least && !yield(f, nil) {
				return
			}
		}
	}
}

// number reads a user or group id, which fits into 31 bits.
func number(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}
