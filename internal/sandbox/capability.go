package sandbox

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// capabilities are those that programs need which change an image as root, by the names that
// container engines have for them.
var capabilities = map[string]int{
	"CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "FOWNER": unix.CAP_FOWNER, "FSETID": unix.CAP_FSETID,
	"SETGID": unix.CAP_SETGID, "SETUID": unix.CAP_SETUID,
}

// Lacking lists which capabilities this process, which is root in a container, does not have of the
// given ones ("CHOWN"), or of all that package managers need where none are given.
func Lacking(names ...string) (list []string) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return nil
	}
	for name, bit := range capabilities {
		if (len(names) == 0 || slices.Contains(names, name)) && data[0].Effective&(1<<bit) == 0 {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// CapAdd is what gives a container capabilities.
func CapAdd(names []string) string { return "--cap-add " + strings.Join(names, " --cap-add ") }
