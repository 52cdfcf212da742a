package dockerfile

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
)

// User is who a program runs as, and owns what it makes.
type User struct {
	UID, GID int
	Groups   []int // the supplementary ones
	Home     string
}

// owner is the user's part in a file.
func (u User) owner() layer.Owner { return layer.Owner{UID: u.UID, GID: u.GID} }

// accountsLimit bounds /etc/passwd and /etc/group of an image, in bytes.
const accountsLimit = 4 << 20

// FindUser resolves the User of an image config: a name or id, optionally with
// a group, looked up in the image's own /etc/passwd and /etc/group. An id need
// not be there; without a user it is root. Supplementary groups are those that
// /etc/group names the user in, and none where a group is given.
func FindUser(root layer.Stack, s string) (User, error) {
	name, group, hasGroup := strings.Cut(s, ":")
	u, login, err := findAccount(root, name)
	if err != nil {
		return u, err
	}
	if hasGroup {
		u.GID, err = findGroup(root, group)
		return u, err
	}
	u.Groups, err = groupsOf(root, login, u.GID)
	return u, err
}

// findAccount finds a user and the name of the account, if there is one.
func findAccount(root layer.Stack, name string) (u User, login string, err error) {
	id, isID := number(name)
	if name == "" {
		isID = true
	}
	for f, err := range accounts(root, "etc/passwd", 6) {
		if err != nil {
			return User{}, "", err
		}
		uid, okUID := number(f[2])
		gid, okGID := number(f[3])
		if okUID && okGID && (f[0] == name || isID && uid == id) {
			return User{UID: uid, GID: gid, Home: cmp.Or(f[5], "/")}, f[0], nil
		}
	}
	if !isID {
		return User{}, "", fmt.Errorf("user %q is not in its /etc/passwd", name)
	}
	return User{UID: id, Home: "/"}, "", nil
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

// maxGroups bounds the supplementary groups of a user: the kernel takes 65536,
// and no account has a hundredth of it.
const maxGroups = 1024

// groupsOf lists the groups that name login as a member, but for its own.
func groupsOf(root layer.Stack, login string, own int) ([]int, error) {
	var groups []int
	if login == "" {
		return nil, nil
	}
	for f, err := range accounts(root, "etc/group", 4) {
		if err != nil {
			return nil, err
		}
		gid, ok := number(f[2])
		if ok && gid != own && !slices.Contains(groups, gid) && slices.Contains(strings.Split(f[3], ","), login) && len(groups) < maxGroups {
			groups = append(groups, gid)
		}
	}
	return groups, nil
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
