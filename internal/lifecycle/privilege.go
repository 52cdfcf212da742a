package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/spec"
)

// settle makes this process one that foreign code cannot learn from, and the
// build user's if it was started as root (requirements 2.0). What only root may
// read or reach is read and opened before; the directories of the build are the
// user's after it. It returns the environment for what is left to do.
//
// It cannot be undone, so it is for processes that carry out one phase.
func (h Host) settle(ctx context.Context, in inputs, environ []string) ([]string, error) {
	if !slices.Contains(registries, in.phase) {
		return environ, nil // foreign code gets what this process has; detector and builder refuse root
	}
	if err := conceal(); err != nil {
		return nil, err
	}
	root := os.Geteuid() == 0
	// A rebaser has no files of a build to leave to the build user: many are
	// started without saying who that is.
	unknown := in.uid < 0 || in.gid < 0
	if root && unknown && in.phase != rebaser {
		err := errors.New("it is started as root, and the build user is not known")
		return nil, spec.Exit(spec.ExitInvalidArgs, spec.WithHint(err, "set -uid and -gid, or CNB_USER_ID and CNB_GROUP_ID; or start it as that user"))
	}
	p, err := h.places(ctx, in)
	if err != nil {
		return nil, err
	}
	r, err := h.registry(in, p)
	if err != nil {
		return nil, err
	}
	if root || in.phase == creator { // its buildpacks start with nothing of this left to do
		r.Keep(ctx, h.references(in), credentialFiles(environ))
	}
	if !root || unknown || in.uid == 0 {
		return environ, nil
	}
	for _, dir := range in.owned() {
		if err := give(dir, in.uid, in.gid); err != nil {
			return nil, fmt.Errorf("make %s the build user's: %w", dir, err)
		}
	}
	if in.phase == creator {
		environ = withUser(environ, in.uid)
	}
	if err := become(in.uid, in.gid); err != nil {
		return nil, spec.WithHint(fmt.Errorf("become the build user %d:%d: %w", in.uid, in.gid, err), "start this phase as that user")
	}
	return environ, conceal() // the kernel has its own rule for a process that becomes another user's
}

// conceal keeps other processes of the same user out of this one's memory,
// environment and descriptors.
func conceal() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("conceal the process: %w", err)
	}
	return nil
}

// references are the images that the phase may come to read or write.
func (h Host) references(in inputs) []string {
	refs := slices.Concat(in.args, in.tags, []string{in.previousImage, in.runImage, in.deprecatedImage, in.cacheImage, in.buildImage})
	if run, err := h.runImages(in); err == nil { // else the phase will say so
		refs = append(refs, run.Names()...)
	}
	if a, err := h.analyzed(in); err == nil && in.phase != analyzer && in.phase != creator {
		if a.RunImage != nil {
			refs = append(refs, a.RunImage.Image, a.RunImage.Reference)
		}
		if a.PreviousImage != nil {
			refs = append(refs, a.PreviousImage.Reference)
		}
		if a.BuildImage != nil {
			refs = append(refs, a.BuildImage.Reference)
		}
	}
	return slices.DeleteFunc(refs, func(ref string) bool { return ref == "" })
}

// credentialFiles are where docker and podman keep credentials.
func credentialFiles(environ []string) []string {
	var files []string
	add := func(dir string, elem ...string) {
		if dir != "" {
			files = append(files, filepath.Join(append([]string{dir}, elem...)...))
		}
	}
	home := lookup(environ, "HOME")
	add(lookup(environ, "DOCKER_CONFIG"), "config.json")
	add(home, ".docker", "config.json")
	add(lookup(environ, "REGISTRY_AUTH_FILE"))
	add(lookup(environ, "XDG_RUNTIME_DIR"), "containers", "auth.json")
	add(lookup(environ, "XDG_CONFIG_HOME"), "containers", "auth.json")
	add(home, ".config", "containers", "auth.json")
	return files
}

// owned are the directories that the phase writes to. Those of caches are made.
func (in inputs) owned() []path {
	if in.phase == rebaser {
		return nil // it writes its report, and nothing else
	}
	dirs := []path{in.layers}
	if in.layout {
		dirs = append(dirs, in.layoutDir)
	}
	make := []path{in.cacheDir, in.launchCache}
	if in.phase == restorer && in.buildImage != "" {
		make = append(make, kanikoDir)
	} else if in.phase == restorer {
		dirs = append(dirs, kanikoDir)
	}
	for _, dir := range make {
		if dir == "" {
			continue
		}
		if _, err := os.Stat(string(dir)); errors.Is(err, fs.ErrNotExist) {
			// Where root cannot make it the phase will say what it is for.
			_ = os.MkdirAll(string(dir), 0o755)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// give makes a directory, and what is in it, the user's, unless the user may
// write to it as it is. No link is followed; a file of several names is left
// alone, for the others may be elsewhere.
func give(dir path, uid, gid int) error {
	fi, err := os.Stat(string(dir))
	if err != nil || !fi.IsDir() || writable(fi, uid, gid) {
		return nil // what is not there, or is something else, the phase tells of
	}
	root, err := os.OpenRoot(string(dir))
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := root.Lstat(name)
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && !fi.IsDir() && st.Nlink > 1 {
			return nil
		}
		return root.Lchown(name, uid, gid)
	})
}

// writable says whether the user can make files in a directory.
func writable(fi fs.FileInfo, uid, gid int) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	const writeAndSearch = 0o3
	bits := fi.Mode().Perm()
	switch {
	case int(st.Uid) == uid:
		bits >>= 6
	case int(st.Gid) == gid:
		bits >>= 3
	}
	return bits&writeAndSearch == writeAndSearch
}

// withUser is an environment with the HOME and USER that uid has in this
// container, if it has any.
func withUser(environ []string, uid int) []string {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return environ
	}
	environ = slices.DeleteFunc(slices.Clone(environ), func(nv string) bool {
		return strings.HasPrefix(nv, "HOME=") || strings.HasPrefix(nv, "USER=")
	})
	return append(environ, "HOME="+u.HomeDir, "USER="+u.Username)
}

// become gives up root for good, in all threads, and makes sure of it.
func become(uid, gid int) error {
	if err := syscall.Setgroups([]int{gid}); err != nil && !groupsDenied() {
		return fmt.Errorf("set groups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("set group: %w", err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("set user: %w", err)
	}
	// The kernel has cleared the effective and permitted sets. What is left to
	// inherit would come back with a file that has capabilities.
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none[0])), 0)
	runtime.KeepAlive(&head)
	runtime.KeepAlive(&none)
	if errno != 0 && errno != syscall.ENOTSUP { // of a binary with cgo: became looks
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return became(uid, gid)
}

// groupsDenied says whether this user namespace lets nobody change groups.
func groupsDenied() bool {
	b, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(b)) == "deny"
}

// became looks at every thread, and tries to get back.
func became(uid, gid int) error {
	if syscall.Setuid(0) == nil {
		return errors.New("root can be had back")
	}
	if r, e, s := unix.Getresuid(); r != uid || e != uid || s != uid {
		return fmt.Errorf("still user %d, %d, %d", r, e, s)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // that thread has ended
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			want := ""
			switch key {
			case "Uid":
				want = strings.Repeat(strconv.Itoa(uid)+" ", 4)
			case "Gid":
				want = strings.Repeat(strconv.Itoa(gid)+" ", 4)
			case "CapInh", "CapPrm", "CapEff", "CapAmb":
				want = "0000000000000000"
			default:
				continue
			}
			if got := strings.Join(strings.Fields(value), " "); got != strings.TrimSpace(want) {
				return fmt.Errorf("a thread still has %s %s", key, got)
			}
		}
	}
	return nil
}
