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
	"sort"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mappedIDs is how many ids a step with real owners has: what images use, nobody (65534) included.
// neededIDs is the least of it that will do: 65534 is the last of them.
const (
	mappedIDs = 65536
	neededIDs = mappedIDs - 1
)

// idRange is a run of ids outside.
type idRange struct{ start, count int }

// idMap lays the ids inside onto ids outside.
type idMap struct {
	ids                  IDs
	uids, gids           []syscall.SysProcIDMap
	newuidmap, newgidmap string // the programs that write it, where we may not
}

// singleID is the map that everybody may write.
func singleID(ids IDs, uid, gid int) idMap {
	one := func(inside, own int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: inside, HostID: own, Size: 1}}
	}
	return idMap{ids: ids, uids: one(uid, os.Geteuid()), gids: one(gid, os.Getegid())}
}

// realIDs are the maps of many ids that may be had, best first, and what speaks against the others.
// Sub-ids come before ids of this host: nobody else has them.
func realIDs(uid, gid int) (maps []idMap, findings []Finding) {
	m, none := subIDs(uid, gid)
	if none == nil {
		maps = append(maps, m)
	} else {
		findings = append(findings, *none)
	}
	if os.Geteuid() != 0 {
		return maps, findings
	}
	if m, none = ownIDs(uid, gid); none != nil {
		return maps, append(findings, *none)
	}
	return append(maps, m), findings
}

// subIDs finds out whether the caller has sub-ids and the programs that map them.
func subIDs(uid, gid int) (idMap, *Finding) {
	m := idMap{ids: RealIDs}
	var err error
	for name, to := range map[string]*string{"newuidmap": &m.newuidmap, "newgidmap": &m.newgidmap} {
		if *to, err = exec.LookPath(name); err != nil {
			return m, &Finding{Tier: Tier1S, Step: "sub-ids", Cause: name + " is not installed",
				Fix: "install it: apt-get install uidmap (Debian, Ubuntu), dnf install shadow-utils (Fedora, RHEL)"}
		}
	}
	name, id := callerName()
	if m.uids, err = subMap("/etc/subuid", name, id, uid, os.Geteuid()); err != nil {
		return m, noSubIDs(name, err)
	}
	if m.gids, err = subMap("/etc/subgid", name, id, gid, os.Getegid()); err != nil {
		return m, noSubIDs(name, err)
	}
	return m, nil
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
		if r.count >= neededIDs {
			return layIDs([]idRange{r}, inside, own), nil
		}
	}
	return nil, fmt.Errorf("%s has no range of %d ids for %s", file, neededIDs, name)
}

// parseSubIDs reads the ranges of a user, who may be named or numbered.
func parseSubIDs(r io.Reader, name, id string) ([]idRange, error) {
	var found []idRange
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
		found = append(found, idRange{int(start), int(count)})
	}
	return found, lines.Err()
}

// ownIDs maps ids onto themselves, which root may do: of the host, or of a container that has ids
// enough. Then the owners in an upper are those that the step saw.
func ownIDs(uid, gid int) (idMap, *Finding) {
	if !hasCaps(unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETFCAP) || !maySetGroups() {
		return idMap{}, &Finding{Tier: Tier1S, Step: "id map", Cause: "this root lacks the capabilities SETUID, SETGID or SETFCAP, or may not set groups",
			Fix: "start the container with --cap-add SETUID --cap-add SETGID --cap-add SETFCAP"}
	}
	m := idMap{ids: RealIDs}
	for _, of := range []struct {
		file        string
		inside, own int
		to          *[]syscall.SysProcIDMap
	}{{"/proc/self/uid_map", uid, os.Geteuid(), &m.uids}, {"/proc/self/gid_map", gid, os.Getegid(), &m.gids}} {
		count := 0
		text, err := os.ReadFile(of.file)
		if err == nil {
			count, err = countIDs(string(text))
		}
		if err == nil && (count < neededIDs || of.own >= count) {
			err = fmt.Errorf("%d ids are not the %d that images use", count, neededIDs)
		}
		if err != nil {
			return m, &Finding{Tier: Tier1S, Step: "id map", Cause: fmt.Sprintf("%s: %v", of.file, err),
				Fix: "start the container with 65536 ids of its own (rootless podman and docker: give the user who runs them more sub-ids)"}
		}
		count = min(count, mappedIDs)
		*of.to = layIDs([]idRange{{0, of.own}, {of.own + 1, count - of.own - 1}}, of.inside, of.own)
	}
	return m, nil
}

// countIDs says how many ids from 0 on a map of the kernel gives without a gap.
func countIDs(text string) (int, error) {
	var ranges []idRange
	for line := range strings.Lines(text) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			return 0, fmt.Errorf("bad line %q", line)
		}
		ranges = append(ranges, idRange{inside, count})
	}
	sort.Slice(ranges, func(i, j int) bool { return ranges[i].start < ranges[j].start })
	next := 0
	for _, r := range ranges {
		if r.start == next {
			next += r.count
		}
	}
	return next, nil
}

// layIDs puts own at inside, and the free ids around it, in order, up to mappedIDs in all.
func layIDs(free []idRange, inside, own int) []syscall.SysProcIDMap {
	var m []syscall.SysProcIDMap
	next := 0
	put := func(host, size int) {
		m = append(m, syscall.SysProcIDMap{ContainerID: next, HostID: host, Size: size})
		next += size
	}
	for _, r := range free {
		for r.count > 0 && next < mappedIDs {
			if next == inside {
				put(own, 1)
				continue
			}
			n := min(r.count, mappedIDs-next)
			if next < inside {
				n = min(n, inside-next)
			}
			put(r.start, n)
			r = idRange{r.start + n, r.count - n}
		}
	}
	if next <= inside {
		m = append(m, syscall.SysProcIDMap{ContainerID: inside, HostID: own, Size: 1})
	}
	return m
}

// apply has the maps of a process that waits for them written: by both programs at once, for each
// takes ms.
func (m idMap) apply(pid int) error {
	if m.newuidmap == "" {
		return nil
	}
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
	go func() { uids <- run(m.newuidmap, m.uids) }()
	gids := run(m.newgidmap, m.gids)
	return errors.Join(<-uids, gids)
}

// hasCaps says whether this process has all of the capabilities.
func hasCaps(caps ...uint) bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	for _, c := range caps {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return false
		}
	}
	return true
}

// maySetGroups says whether the kernel lets the caller write a gid map and keep setgroups: else a
// group that denies access could be dropped to gain it (CVE-2014-8989).
func maySetGroups() bool {
	// A namespace that was made without privilege denies it for ever, and so does every one below.
	deny, err := os.ReadFile("/proc/self/setgroups")
	if err == nil && strings.TrimSpace(string(deny)) == "deny" {
		return false
	}
	return hasCaps(unix.CAP_SETGID)
}
