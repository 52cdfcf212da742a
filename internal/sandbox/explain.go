package sandbox

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The fixes, by cause. They are printed, so they are complete.
const (
	fixSysctl = "sysctl -w kernel.unprivileged_userns_clone=1 (as root; in /etc/sysctl.d to keep it)"
	fixMax    = "sysctl -w user.max_user_namespaces=15000 (as root; in /etc/sysctl.d to keep it)"
	fixDocker = "start the container with --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined; " +
		"in Kubernetes set hostUsers: false, procMount: Unmasked and seccompProfile Unconfined"
	fixProc   = "start the container with --security-opt systempaths=unconfined; in Kubernetes set procMount: Unmasked and hostUsers: false"
	fixOwners = "use a scratch directory on ext4, XFS or btrfs and Linux 5.9 or newer; or give this user sub-ids, for real owners"
	fixFS     = "use a directory on ext4, XFS or btrfs (in a container: a volume, its own root will not do) and Linux 5.12 or newer"
)

func fixAppArmor() string {
	exe, err := os.Executable()
	if err != nil {
		exe = "/path/to/kiln"
	}
	return fmt.Sprintf("as root write /etc/apparmor.d/kiln with the lines\n"+
		"  abi <abi/4.0>,\n  include <tunables/global>\n  profile kiln %s flags=(unconfined) { userns, }\n"+
		"and run apparmor_parser -r /etc/apparmor.d/kiln; or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0", exe)
}

// explain makes a finding of a step and its errno. The sysctls only tell causes apart: what counts
// is what happened.
func explain(step string, errno unix.Errno, host hostFacts) Finding {
	f := Finding{Tier: Best, Step: step, Errno: errno}
	switch step {
	case "overlay":
		f.Tier = Tier1
		f.Cause, f.Fix = "overlay is refused on the scratch directory", fixFS
	case "pretend":
		f.Tier = Tier1F
		f.Cause, f.Fix = "owners cannot be recorded", fixOwners
	case "/proc":
		f.Tier = Tier1
		f.Cause, f.Fix = "a fresh /proc is refused, as in a container whose /proc is masked", fixProc
	default:
		f.Cause, f.Fix = explainNamespace(step, errno, host)
	}
	return f
}

func explainNamespace(step string, errno unix.Errno, host hostFacts) (cause, fix string) {
	switch {
	case errno == unix.ENOSPC || errno == unix.EUSERS:
		if host.maxUserns0 {
			return "user namespaces are limited to 0", fixMax
		}
		return "the limit of namespaces is reached, or they are nested too deep", fixMax
	case step == "clone" && (errno == unix.EINVAL || errno == unix.ENOSYS) && !host.container:
		return "this kernel has no user namespaces", "boot a kernel with CONFIG_USER_NS"
	case errno != unix.EPERM && errno != unix.EACCES && errno != unix.ENOSYS:
		return "the host refuses " + step, ""
	case host.usernsOff:
		return "user namespaces are for root only", fixSysctl
	case host.apparmor:
		return "AppArmor restricts user namespaces", fixAppArmor()
	case host.container || host.filtered:
		return "the container's seccomp or AppArmor profile refuses it", fixDocker
	case errno == unix.EPERM && step == "clone":
		return "user namespaces are refused: by a security policy, or because this process is in a chroot", fixDocker
	}
	return "a security policy refuses it", fixAppArmor()
}

// explainGuard makes a finding of what protects no command in place.
func explainGuard(s probeStep) Finding {
	f := Finding{Tier: Tier4, Step: s.Step, Errno: unix.Errno(s.Errno)}
	switch s.Step {
	case "landlock":
		f.Cause = "Landlock is not to be had"
		f.Fix = "use Linux 5.19 or newer (6.12 for all of it) with landlock in its lsm= list, and a container runtime whose seccomp profile knows it"
	case "files":
		f.Cause = "these can be changed: " + s.Err
	case "secrets":
		f.Cause = "these can be read: " + s.Err
	case "keyring":
		f.Cause = "the session keyring is shared"
	default:
		f.Cause = "the host refuses " + s.Step
	}
	return f
}

// tryClone makes a user namespace and nothing else, to tell a refused namespace from refused maps.
func tryClone() error {
	// As a worker without a socket it ends at once.
	c, err := start(selfExe, []string{workerName}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}})
	if err != nil {
		return err
	}
	<-c.done
	return nil
}
