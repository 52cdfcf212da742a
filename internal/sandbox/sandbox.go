// Package sandbox runs one process in one root file system, without privilege.
//
//	caller (host user; credentials, store, big heap)
//	 '- worker   re-exec once, in its own user namespace; spawns, deletes with the right ids
//	     '- init     PID 1 of the step: mounts, drops everything, reaps, forwards signals
//	         '- the step's executable
//
// Nothing is inherited: the environment is built from nothing, every descriptor is closed, no
// capability is left and seccomp goes last. What the host cannot give is found out by doing it, has
// a name (Tier), is reported with its reason and its fix, and is never given up in silence.
//
// What is promised: the step sees only its root, its mounts and (unless Network is "none") the
// host's network; no process, mount or temporary directory outlives Run, nor a killed caller.
// What is not: limits on memory and CPU, and with a single id map (all tiers but 1s) the dropping of
// the caller's supplementary groups, so a host socket must never be bound into a step.
package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// Runner runs one command to its end. Run returns nil when it exited with status 0, an *ExitError
// when it ended otherwise, an error that wraps ctx.Err() when ctx ended it, and any other error when
// it could not be started.
type Runner interface {
	Run(ctx context.Context, c Command) error
}

// Command is a process to run.
type Command struct {
	Path string   // absolute, or a bare name that is looked up in the PATH of Env
	Args []string // argv, with [0]; empty means {Path}
	Env  []string // NAME=value; the whole environment: nothing is inherited
	Dir  string   // working directory inside; empty means "/"

	// Nil means /dev/null. An *os.File is handed over itself; anything else goes through a pipe.
	// Run does not wait for a Read of Stdin that blocks after the process has ended.
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// ExtraFiles become descriptors 3, 4... of the process.
	ExtraFiles []*os.File
}

// ExitError says how a process ended that did not end well.
type ExitError struct {
	Code   int            // exit status, -1 when a signal ended it
	Signal syscall.Signal // 0 when it exited
}

// Error implements error.
func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("ended by signal %d (%s)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// Overlay is a stack of directories shown as one. Lowers are topmost first and never written to;
// they must not change while a step runs. Upper takes the writes. Upper and Work are made if
// missing, must lie on one file system, and serve one step at a time.
//
// Without Lowers it is the directory Upper itself, and Work is not needed. Without Upper the writes
// land in memory and are gone with the step.
type Overlay struct {
	Lowers      []string
	Upper, Work string
}

// Mount is one thing shown inside a step's root, exactly one of Source, Overlay and Tmpfs.
// Targets are resolved inside the root, whatever symbolic links the root holds, and made if missing.
// /proc, /dev and /sys are reserved.
type Mount struct {
	Target   string   // absolute path inside
	Source   string   // a file or directory of the host, with everything mounted below it
	Overlay  *Overlay // a merged directory
	Tmpfs    bool     // an empty directory in memory, mode 1777
	Size     int64    // what fits into a Tmpfs, in bytes; 0 is half of the memory
	ReadOnly bool     // recursively
	Optional bool     // a missing Source is no error
	NoFollow bool     // refuse symbolic links in Source: for places where foreign code may have written
}

// Network modes of a Spec.
const (
	HostNetwork = "host" // the host's network, with its loopback services
	NoNetwork   = "none" // a loopback device of its own and nothing else
)

// Spec is the world of a step.
type Spec struct {
	Root     Overlay
	Mounts   []Mount       // in this order
	UID, GID int           // ids inside; in all tiers but 1s they must be the ones given to Start
	Groups   []int         // supplementary ones besides GID; only tier 1s has any, 1f pretends
	Hostname string        // empty means "kiln"
	Network  string        // HostNetwork (the default) or NoNetwork
	Grace    time.Duration // between SIGTERM and SIGKILL when ctx ends; 0 means 5 s
}

// defaultGrace is what package managers need to remove their lock files, and what people bear.
const defaultGrace = 5 * time.Second

// Tier names how much of the sandbox the host gives.
type Tier string

// Tiers. Best and BestRoot are none of them: they ask Start for the best there is.
//
// Tiers 1, 2 and 3 are for steps that need no id but their own. A step that runs as root and
// changes owners needs 1s or 1f, where copies instead of overlay and the existing /proc are further
// losses that Report tells: a pinned tier comes without them, BestRoot also with them.
const (
	Best     Tier = ""     // 1, else 3, else 2
	BestRoot Tier = "root" // 1s, else 1f, whatever else is lacking; UID and GID are 0
	Tier1    Tier = "1"    // user namespace with a single id, overlay, fresh /proc
	Tier1S   Tier = "1s"   // as 1, with many ids mapped, sub-ids or root's own: real owners
	Tier1F   Tier = "1f"   // as 1, for uid 0: owners are recorded, other changes of id pretended; see OwnerXattr
	Tier2    Tier = "2"    // no overlay: merged directories are copied
	Tier3    Tier = "3"    // a fresh /proc is refused: the existing one is shown
	Tier4    Tier = "4"    // no sandbox of ours: see InPlace; Start does not know it
)

// check finds out whether Start knows the tier, and whether it is for these ids.
func (t Tier) check(uid, gid int) error {
	switch t {
	case Best, Tier1, Tier1S, Tier2, Tier3:
	case BestRoot, Tier1F:
		if uid != 0 || gid != 0 {
			return fmt.Errorf("isolation %q is for root, not for ids %d:%d", t, uid, gid)
		}
	default:
		return fmt.Errorf("isolation %q: must be 1, 1s, 1f, 2 or 3", t)
	}
	if uid < 0 || gid < 0 {
		return fmt.Errorf("ids %d:%d: must not be negative", uid, gid)
	}
	return nil
}

// IDs says what the owners of a step's files are.
type IDs string

// Kinds of IDs.
const (
	SingleID    IDs = "single"   // everything belongs to the one id there is
	RealIDs     IDs = "real"     // files belong to whom the step gives them
	RecordedIDs IDs = "recorded" // files belong to the one id there is; OwnerXattr says whom the step gave them
)
