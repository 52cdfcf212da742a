package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Report says what the host gives, why not more, and how it would.
type Report struct {
	Tier     Tier
	Detail   string    // one sentence for people
	Findings []Finding // what a better tier lacks
	Warnings []string  // what the step can reach nevertheless
	Scratch  string    // the directory of Options.Scratch where uppers belong
	IDs      IDs       // what owners are
	Copies   bool      // overlays are copied into their Upper, which then is the whole result
	HostProc bool      // the existing /proc is shown
	Landlock int       // ABI version, 0 for none
}

// Finding is something that the host does not give.
type Finding struct {
	Tier  Tier       // the best tier that it rules out
	Step  string     // what was tried
	Errno unix.Errno // how it failed, or 0
	Cause string     // in words
	Fix   string     // what would help, to paste where possible
}

// String is one sentence with the fix.
func (f Finding) String() string {
	s := f.Cause
	if f.Errno != 0 {
		s += fmt.Sprintf(" (%s: %s)", f.Step, f.Errno)
	}
	return s
}

// UnavailableError says that a tier, or any, is not to be had here.
type UnavailableError struct {
	Tier     Tier // as asked for; Best when none at all is
	Findings []Finding
}

// Error implements error.
func (e *UnavailableError) Error() string {
	var causes []string
	for _, f := range e.Findings {
		causes = append(causes, f.String())
	}
	what := "no sandbox can be had here"
	switch e.Tier {
	case Best:
	case BestRoot:
		what = "no sandbox for steps that run as root can be had here"
	default:
		what = fmt.Sprintf("no sandbox of tier %s can be had here", e.Tier)
	}
	return what + ": " + strings.Join(causes, "; ")
}

// Hint says what would help, one line per cause.
func (e *UnavailableError) Hint() string {
	var fixes []string
	for _, f := range e.Findings {
		if f.Fix != "" {
			fixes = append(fixes, f.Fix)
		}
	}
	return strings.Join(fixes, "\n")
}

// probeParams and probeResult go to PID 1 of a namespace and back.
type probeParams struct {
	Overlays []Overlay // one per scratch directory, prepared by the worker; no Upper: it could not
}

type probeResult struct {
	Mount    probeStep // private mounts, tmpfs, a bind, pivot_root
	Proc     probeStep
	Overlays []probeStep
	Pretend  probeStep // recording an owner; tried where the step is to do it
	Landlock int
}

// probeStep is a try.
type probeStep struct {
	Step  string
	Errno int
	Err   string // "" when it worked
}

func tried(step string, err error) probeStep {
	if err == nil {
		return probeStep{Step: step}
	}
	r := failure(err)
	return probeStep{Step: step, Errno: r.Errno, Err: r.Err}
}

// probe is the worker's part: directories to try overlay in, and their removal.
func (s *server) probe(c *conn, r *runRequest) result {
	var dirs []string
	defer func() {
		for _, dir := range dirs {
			removeTree(dir)
		}
	}()
	for i, scratch := range r.Probe.Overlays {
		r.Probe.Overlays[i] = Overlay{}
		dir, err := os.MkdirTemp(scratch.Upper, ".kiln-probe-*")
		if err != nil {
			continue
		}
		dirs = append(dirs, dir)
		if os.MkdirAll(filepath.Join(dir, "lower/dir/file"), 0o755) != nil {
			continue
		}
		o := Overlay{Lowers: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
		if os.Mkdir(o.Upper, 0o755) == nil && os.Mkdir(o.Work, 0o755) == nil {
			r.Probe.Overlays[i] = o
		}
	}
	return s.run(c, r, nil)
}

// probeInside is PID 1's part.
func probeInside(c *conn, r *runRequest) *probeResult {
	res := &probeResult{Landlock: landlockABI()}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		res.Mount = tried("mount", err)
		return res
	}
	for _, o := range r.Probe.Overlays {
		res.Overlays = append(res.Overlays, tried("overlay", tryOverlay(o, r.Quirks)))
	}
	if r.Pretend {
		res.Pretend = tried("pretend", tryPretend(c, scratchOf(r.Probe.Overlays, res.Overlays)))
	}
	proc, err := newFS("proc", inert)
	if err == nil {
		unix.Close(proc)
	}
	res.Proc = tried("/proc", err)
	res.Mount = tried("mount", tryPivot())
	return res
}

// scratchOf is the upper directory that decide is going to choose.
func scratchOf(overlays []Overlay, tries []probeStep) string {
	for i, o := range overlays {
		if tries[i].Err == "" {
			return o.Upper
		}
	}
	return overlays[0].Upper
}

// tryOverlay replaces a lower directory: without userxattr the mount works and this does not.
func tryOverlay(o Overlay, q quirks) error {
	if o.Upper == "" {
		return errors.New("the scratch directory cannot be written to")
	}
	fd, err := overlay(o, false, q)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, name := range []string{"dir/file", "dir"} {
		if err := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); err != nil {
			return fmt.Errorf("remove a lower directory: %w", err)
		}
	}
	return unix.Mkdirat(fd, "dir", 0o755)
}

// tryPivot goes through the calls of buildRoot that need nothing from outside.
func tryPivot() error {
	anchor, err := unix.Open("/dev", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	null, err := hostNull()
	if err != nil {
		unix.Close(anchor)
		return fmt.Errorf("bind /dev/null: %w", err)
	}
	unix.Close(null)
	root, err := newFS("tmpfs", hidden)
	if err != nil {
		unix.Close(anchor)
		return err
	}
	if err := attach(root, anchor); err != nil {
		return fmt.Errorf("attach a mount: %w", err)
	}
	w := &world{points: points{root: root}}
	return at("pivot_root", w.pivot())
}

// probe asks the worker, and decides what tier this is.
func (w *Worker) probe(ctx context.Context) (Report, error) {
	params := &probeParams{}
	for _, dir := range w.options.Scratch {
		params.Overlays = append(params.Overlays, Overlay{Upper: dir})
	}
	res, err := w.ask(ctx, request{Run: &runRequest{Probe: params, Pretend: w.ids.ids == RecordedIDs, Quirks: w.quirks}})
	if err != nil {
		var r *remoteError
		if errors.As(err, &r) && res.Step != "" {
			return Report{}, w.unavailable(explain(res.Step, unix.Errno(res.Errno), thisHost()))
		}
		return Report{}, fmt.Errorf("probe the sandbox: %w", err)
	}
	if res.Probe == nil {
		return Report{}, errors.New("probe the sandbox: no answer")
	}
	return w.decide(*res.Probe, thisHost())
}

func (w *Worker) unavailable(f ...Finding) error {
	return &UnavailableError{Tier: w.options.Tier, Findings: append(slices.Clip(w.findings), f...)}
}

// refused explains why the worker could not be started: by trying again without the id maps.
func (w *Worker) refused(err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("start the sandbox's worker: %w", err)
	}
	step := "id map"
	if terr := tryClone(); terr != nil {
		step = "clone"
		errors.As(terr, &errno)
	} else if _, serr := os.Stat(w.options.Executable); serr != nil {
		return fmt.Errorf("start the sandbox's worker: %w", serr)
	}
	return &UnavailableError{Tier: w.options.Tier, Findings: []Finding{explain(step, errno, thisHost())}}
}

// hostFacts are what tells one cause of an errno from another.
type hostFacts struct {
	container  bool   // docker, podman, kubernetes
	filtered   bool   // a seccomp filter is on us
	usernsOff  bool   // kernel.unprivileged_userns_clone=0
	apparmor   bool   // kernel.apparmor_restrict_unprivileged_userns=1
	maxUserns0 bool   // user.max_user_namespaces=0
	rootGroup  string // a group of ours that is as good as root
}

func thisHost() hostFacts {
	is := func(file, value string) bool {
		b, err := os.ReadFile(file)
		return err == nil && strings.TrimSpace(string(b)) == value
	}
	exists := func(file string) bool {
		_, err := os.Lstat(file)
		return err == nil
	}
	status, _ := os.ReadFile("/proc/self/status")
	return hostFacts{
		container:  exists("/.dockerenv") || exists("/run/.containerenv") || os.Getenv("KUBERNETES_SERVICE_HOST") != "",
		filtered:   strings.Contains(string(status), "\nSeccomp:\t2"),
		usernsOff:  is("/proc/sys/kernel/unprivileged_userns_clone", "0"),
		apparmor:   is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
		maxUserns0: is("/proc/sys/user/max_user_namespaces", "0"),
		rootGroup:  rootGroup(),
	}
}

func rootGroup() string {
	groups, err := os.Getgroups()
	if err != nil {
		return ""
	}
	for _, gid := range groups {
		if g, err := user.LookupGroupId(strconv.Itoa(gid)); err == nil && (g.Name == "docker" || g.Name == "lxd") {
			return g.Name
		}
	}
	return ""
}
