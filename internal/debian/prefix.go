package debian

import "context"

// Rewrite maps a path of the packages (slash separated, relative to the root,
// already merged into usr: "usr/bin/python3.11", "etc/python3.11") to a path
// relative to the prefix, or to "" to leave it out. Targets of links are
// mapped with it too, so it must be a function of the path alone.
type Rewrite func(path string) string

// Unpack writes the packages of lock into the directory dir, which must exist.
// rewrite says where each file goes; nil means Flatten. Links, absolute ones
// too, become relative links inside dir; links to what was left out are
// removed. Directories are 0755, files keep their permission bits less setuid
// and setgid, all owned by the caller, with the packages' modification times.
// A file that is already there is an error.
func (c *Client) Unpack(ctx context.Context, lock Lock, dir string, rewrite Rewrite) error {
	return nil
}

// Flatten is the Rewrite of a prefix as /usr/local is one: usr/* goes to the
// prefix's root, etc and the rest stay under their own names, documentation
// (but for copyright files), translations and systemd's and udev's files are
// left out.
func Flatten(path string) string { return path }
