package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// landlockScopeABI is the first version that confines abstract sockets and signals. landlockFileABI is
// the first that can allow files to be moved between directories: before, all rules forbid it.
const (
	landlockScopeABI = 6
	landlockFileABI  = 2
)

// landlockABI is 0 where there is no Landlock.
func landlockABI() int {
	v, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// ruleset is the kernel's struct landlock_ruleset_attr.
type ruleset struct{ files, net, scoped uint64 }

const landlockScope = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL

// changes are the rights to change files that a version knows. fileChanges are those that a rule for
// what is no directory may name.
func changes(abi int) uint64 {
	c := uint64(unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO |
		unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_WRITE_FILE)
	if abi >= 3 {
		c |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	return c
}

const fileChanges = uint64(unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE)

// reads is the right to read files.
const reads = uint64(unix.LANDLOCK_ACCESS_FS_READ_FILE)

// restrictScope keeps the step from abstract unix sockets of the host, which a shared network lets
// it see, and from signalling processes outside. It takes no file access: the mounts do that.
func restrictScope() error {
	if landlockABI() < landlockScopeABI {
		return nil // reported by Start
	}
	return fence{handled: moves, scoped: landlockScope}.restrict()
}

func newRuleset(r ruleset) (int, error) {
	size := unsafe.Sizeof(r)
	if r.scoped == 0 { // older kernels know less of the struct
		size = unsafe.Sizeof(r.files)
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&r)), size, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func restrictSelf(fd int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(fd), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// moves is the right to move and link files between directories. Who handles no right to files at all
// forbids it to rules that are laid over, as a program makes that confines itself.
const moves = unix.LANDLOCK_ACCESS_FS_REFER

// fence is a set of rules that keeps files from being changed, or read. Landlock knows only what is
// allowed, for a directory and all below it: so everything is, but the way from the root to what is kept.
type fence struct {
	handled, scoped uint64
	kept            map[string]keep

	fd int // of the ruleset
}

// keep says what of a directory may not change.
type keep int

const (
	keepAll     keep = iota + 1 // it and all below
	keepEntries                 // its own entries; what is in its subdirectories may change
	keepHidden                  // it is not read, nor what is below
)

// unkept is what a fence does not keep.
type unkept struct{ changes, reads []string }

// newFence keeps what it can, and says what it cannot: where somebody may make something new beside it,
// that would be forbidden too. What is missing needs no keeping.
func newFence(abi int, k kept) (f fence, o unkept) {
	f.kept, f.handled = map[string]keep{}, moves
	add := func(list []string, how keep, rights uint64, cannot *[]string) {
		for _, name := range list {
			real, err := filepath.EvalSymlinks(name)
			switch {
			case err != nil || how != keepHidden && f.keeps(real):
			case f.besideIsClosed(real):
				f.kept[real] = how
				f.handled |= rights
			default:
				*cannot = append(*cannot, name)
			}
		}
	}
	add(slices.SortedFunc(slices.Values(k.ReadOnly), func(a, b string) int { return len(a) - len(b) }), keepAll, changes(abi), &o.changes)
	add(k.FixedEntries, keepEntries, changes(abi), &o.changes)
	add(k.Hidden, keepHidden, reads, &o.reads)
	return f, o
}

// keeps says that nothing can change at or below dir.
func (f fence) keeps(dir string) bool {
	for kept, how := range f.kept {
		if how == keepAll && within(kept, dir) {
			return true
		}
	}
	return false
}

// besideIsClosed says that nothing new can be made in the directories above name anyway, and that what
// is there can be listed. In the root nobody but root makes anything, who may do what he likes by other
// ways too.
func (f fence) besideIsClosed(name string) bool {
	may := func(dir string, mode uint32) bool {
		return unix.Faccessat(unix.AT_FDCWD, dir, mode, unix.AT_EACCESS) == nil
	}
	for dir := filepath.Dir(name); dir != "/"; dir = filepath.Dir(dir) {
		fixed := f.kept[dir] != 0 || f.keeps(dir)
		if !fixed && may(dir, unix.W_OK) || !may(dir, unix.R_OK) {
			return false
		}
	}
	return true
}

// allow gives rights below dir, but for what is kept.
func (f fence) allow(dir string, rights uint64) error {
	how := f.kept[dir]
	switch {
	case how == keepHidden:
		return nil
	case how == keepAll:
		rights &= reads
	}
	if how != keepEntries && !f.hasBelow(dir) {
		return f.rule(dir, rights)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		mine := rights
		if how == keepEntries && !e.IsDir() {
			mine &= reads
		}
		if e.Type()&os.ModeSymlink != 0 {
			continue
		}
		if err := f.allow(filepath.Join(dir, e.Name()), mine); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

func (f fence) hasBelow(dir string) bool {
	for kept := range f.kept {
		if within(dir, kept) {
			return true
		}
	}
	return false
}

// rule gives rights below a directory, or to a single file those that there are.
func (f fence) rule(name string, rights uint64) error {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if demandKind(fd, true) != nil {
		rights &= fileChanges | reads
	}
	if rights == 0 {
		return nil // the kernel wants no such rule
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(f.fd), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 {
		return &os.PathError{Op: "allow changes below", Path: name, Err: errno}
	}
	return nil
}

// restrict puts the calling thread, which must have no_new_privs, behind the fence.
func (f fence) restrict() (err error) {
	if f.fd, err = newRuleset(ruleset{files: f.handled, scoped: f.scoped}); err != nil {
		return err
	}
	defer unix.Close(f.fd)
	if err := f.allow("/", f.handled); err != nil {
		return err
	}
	return restrictSelf(f.fd)
}

// restrictInPlace confines the calling thread as far as this version of Landlock can without taking
// anything from a well-behaved build: abstract sockets, signals, looking into processes that are not
// below it; and files, as newFence says.
func restrictInPlace(abi int, k kept) (unkept, error) {
	f, o := newFence(abi, k)
	if abi >= landlockScopeABI {
		f.scoped = landlockScope
	}
	return o, f.restrict()
}
