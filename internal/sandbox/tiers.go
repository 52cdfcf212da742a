package sandbox

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// decide makes a report of what the probe found, or refuses the tier that was asked for.
func (w *Worker) decide(p probeResult, host hostFacts) (Report, error) {
	if p.Mount.Err != "" {
		return Report{}, w.unavailable(explain("mount", unix.Errno(p.Mount.Errno), host))
	}
	r := Report{Landlock: p.Landlock, Scratch: w.options.Scratch[0], IDs: w.ids.ids, Copies: true, Findings: w.findings}
	for i, o := range p.Overlays {
		if o.Err == "" {
			r.Scratch, r.Copies = w.options.Scratch[i], false
			break
		}
		r.Findings = append(r.Findings, detailed(explain("overlay", unix.Errno(o.Errno), host), w.options.Scratch[i]+": "+o.Err))
	}
	if p.Proc.Err != "" {
		r.HostProc = true
		r.Findings = append(r.Findings, explain("/proc", unix.Errno(p.Proc.Errno), host))
	}
	possible := w.choose(&r)
	if p.Pretend.Err != "" {
		possible = false
		r.Findings = append(r.Findings, detailed(explain("pretend", unix.Errno(p.Pretend.Errno), host), p.Pretend.Err))
	}
	if !possible || r.Copies && w.options.Copy == nil {
		return r, &UnavailableError{Tier: w.options.Tier, Findings: r.Findings}
	}
	r.Detail = r.detail()
	r.Warnings = w.warnings(r, host)
	return r, nil
}

func detailed(f Finding, more string) Finding {
	f.Cause += ": " + more
	return f
}

// choose fills in the tier, and what it does without although this host could give it. It says
// whether the host gives all that the tier is to have.
func (w *Worker) choose(r *Report) (possible bool) {
	r.Tier = w.options.Tier
	switch r.Tier {
	case Best:
		switch {
		case r.HostProc:
			r.Tier = Tier3
		case r.Copies:
			r.Tier = Tier2
		default:
			r.Tier = Tier1
		}
	case BestRoot:
		r.Tier = Tier1S
		if r.IDs == RecordedIDs {
			r.Tier = Tier1F
		}
	case Tier2:
		r.Copies = true
		return !r.HostProc
	case Tier3:
		r.HostProc = true
	default:
		return !r.HostProc && !r.Copies
	}
	return true
}

func (r Report) detail() string {
	ids := map[IDs]string{SingleID: "a single id", RealIDs: "many ids and real owners", RecordedIDs: "a single id and recorded owners"}[r.IDs]
	dirs, proc := "overlay", "its own /proc"
	if r.Copies {
		dirs = "copies instead of overlay"
	}
	if r.HostProc {
		proc = "the existing /proc"
	}
	return fmt.Sprintf("tier %s: user namespace with %s, %s, %s", r.Tier, ids, dirs, proc)
}

func (w *Worker) warnings(r Report, host hostFacts) []string {
	var warn []string
	if r.Landlock < landlockScopeABI {
		warn = append(warn, "this kernel's Landlock cannot confine abstract unix sockets (Linux 6.12 can): with the host's network a step reaches the host's")
	}
	if !w.setGroups && host.rootGroup != "" {
		warn = append(warn, fmt.Sprintf("you are in the group %s, which is as good as root, and steps keep your groups: never mount its socket into one", host.rootGroup))
	}
	return warn
}
