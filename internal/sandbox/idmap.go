package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mappedIDs is how many ids a step of tier 1s has: what images use, nobody (65534) included.
const mappedIDs = 65536

// subRange is a line of /etc/subuid or /etc/subgid.
type subRange struct{ start, count int }

// subIDs are what tier 1s needs.
type subIDs struct {
	newuidmap, newgidmap string
	uids, gids           []syscall.SysProcIDMap
}

// findSubIDs finds out whether the caller has sub-ids and the programs that map them.
func findSubIDs(uid, gid int) (*subIDs, *Finding) {
	s := &subIDs{}
	var err error
	for name, to := range map[string]*string{"newuidmap": &s.newuidmap, "newgidmap": &s.newgidmap} {
		if *to, err = exec.LookPath(name); err != nil {
			return nil, &Finding{Tier: Tier1S, Step: "sub-ids", Cause: name + " is not installed",
				Fix: "install it: apt-get install uidmap (Debian, Ubuntu), dnf install shadow-utils (Fedora, RHEL)"}
		}
	}
	name, id := callerName()
	if s.uids, err = subMap("/etc/subuid", name, id, uid, os.Geteuid()); err != nil {
		return nil, noSubIDs(name, err)
	}
	if s.gids, err = subMap("/etc/subgid", name, id, gid, os.Getegid()); err != nil {
		return nil, noSubIDs(name, err)
	}
	return s, nil
}

func noSubIDs(name string, err error) *Finding {
	return &Finding{Tier: Tier1S, Step: "sub-ids", Cause: err.Error(),
		Fix: fmt.Sprintf("give %[1]s a range: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %[1]s (as root; take a range that nobody has)", name)}
}

func callerName() (name, id string) {
	id = strconv.Itoa(os.Getuid())
	if u, err := user.LookupId(id); err == nil {
		return u.Username, id
	}
	return id, id
}

// subMap maps the id inside to the caller's own, and 0..65535 otherwise to sub-ids, in order.
func subMap(file, name, id string, inside, own int) ([]syscall.SysProcIDMap, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist", file)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ranges, err := parseSubIDs(f, name, id)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, r := range ranges {
		if r.count >= mappedIDs-1 {
			return layIDs(r.start, inside, own), nil
		}
	}
	return nil, fmt.Errorf("%s has no range of %d ids for %s", file, mappedIDs-1, name)
}

// parseSubIDs reads the ranges of a user, who may be named or numbered.
func parseSubIDs(r io.Reader, name, id string) ([]subRange, error) {
	var found []subRange
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		parts := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(parts) != 3 || parts[0] != name && parts[0] != id {
			continue
		}
		start, serr := strconv.ParseUint(parts[1], 10, 31)
		count, cerr := strconv.ParseUint(parts[2], 10, 31)
		if serr != nil || cerr != nil {
			return nil, fmt.Errorf("bad line %q", lines.Text())
		}
		found = append(found, subRange{int(start), int(count)})
	}
	return found, lines.Err()
}

// layIDs puts own at inside and sub-ids from start on around it.
func layIDs(start, inside, own int) []syscall.SysProcIDMap {
	inside = min(inside, mappedIDs-1)
	var m []syscall.SysProcIDMap
	if inside > 0 {
		m = append(m, syscall.SysProcIDMap{ContainerID: 0, HostID: start, Size: inside})
	}
	m = append(m, syscall.SysProcIDMap{ContainerID: inside, HostID: own, Size: 1})
	if rest := mappedIDs - inside - 1; rest > 0 {
		m = append(m, syscall.SysProcIDMap{ContainerID: inside + 1, HostID: start + inside, Size: rest})
	}
	return m
}

// apply writes the maps of a process that waits for them: both programs at once, for each takes ms.
func (s *subIDs) apply(pid int) error {
	run := func(program string, maps []syscall.SysProcIDMap) error {
		args := []string{strconv.Itoa(pid)}
		for _, m := range maps {
			args = append(args, strconv.Itoa(m.ContainerID), strconv.Itoa(m.HostID), strconv.Itoa(m.Size))
		}
		cmd := exec.Command(program, args...)
		cmd.Env = []string{}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	uids := make(chan error, 1)
	go func() { uids <- run(s.newuidmap, s.uids) }()
	gids := run(s.newgidmap, s.gids)
	return errors.Join(<-uids, gids)
}

// workerCaps are what the worker and PID 1 need in their own namespace. With a uid other than 0 they
// must be ambient to survive our own exec.
var workerCaps = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_SETFCAP, unix.CAP_SYS_CHROOT, unix.CAP_SYS_ADMIN,
	unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_RESOURCE, unix.CAP_MKNOD,
}

// maySetGroups says whether the kernel lets the caller write a gid map and keep setgroups: else a
// group that denies access could be dropped to gain it (CVE-2014-8989).
func maySetGroups() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	// A namespace that was made without privilege denies it for ever, and so does every one below.
	deny, err := os.ReadFile("/proc/self/setgroups")
	if err == nil && strings.TrimSpace(string(deny)) == "deny" {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SETGID) != 0
}
