package event

import (
	"fmt"
	"strings"
	"time"
)

// Rebased says what became of one image of a rebase.
type Rebased struct {
	Name string `json:"name"`
	// Result is rebased, unchanged or failed; planned for what would be rebased.
	Result string `json:"result"`
	// RunImage is the new run image as it was named, Reference which one that is.
	RunImage  string `json:"runImage,omitempty"`
	Reference string `json:"reference,omitempty"`
	// Before and After are manifest digests: the way back and the way there.
	// After is known in the place that the image is in, so not of a plan.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	ID     string `json:"id,omitempty"` // the new image's
	// Removed and Added are the layers that only the old, or only the new, run
	// image has, from the bottom.
	Removed []RebaseLayer `json:"removed,omitempty"`
	Added   []RebaseLayer `json:"added,omitempty"`
	// Labels that change. Of io.buildpacks.lifecycle.metadata each value that
	// changes has an entry of its own.
	Labels []Change `json:"labels,omitempty"`
	// Packages that change, in a plan. NoPackages says why they are not known.
	Packages   []Change `json:"packages,omitempty"`
	NoPackages string   `json:"noPackages,omitempty"`

	Error   string        `json:"error,omitempty"`
	Elapsed time.Duration `json:"elapsed"`
}

// RebaseLayer is a layer of a run image. Size is in bytes, as it is stored.
type RebaseLayer struct {
	DiffID string `json:"diffID"`
	Size   int64  `json:"size"`
}

// Change is a value that is another one now; "" is none.
type Change struct {
	Name string `json:"name"`
	Old  string `json:"old"`
	New  string `json:"new"`
}

// Kind implements Event.
func (Rebased) Kind() string { return "rebased" }

// rebased is a line for what was done, a few for what would be.
func (t *Text) rebased(r Rebased) {
	if t.style.Quiet {
		return
	}
	t.flush()
	switch r.Result {
	case "failed":
		t.line(0, red, "failed     %s", Clean(r.Name)) // why is said at the end
	case "unchanged":
		t.line(0, dim, "unchanged  %s", Clean(r.Name))
	case "planned":
		t.line(0, bold, "would rebase %s", Clean(r.Name))
		t.plan(r)
	default:
		t.line(0, plain, "rebased    %s  %s", Clean(r.Name), r.After)
		if t.style.Verbose {
			t.plan(r)
		}
	}
}

func (t *Text) plan(r Rebased) {
	t.line(2, plain, "onto      %s", Clean(r.Reference))
	t.line(2, plain, "layers    %s out, %s in", layers(r.Removed), layers(r.Added))
	switch {
	case r.NoPackages != "":
		t.line(2, dim, "packages  not known: %s", Clean(r.NoPackages))
	case r.Result == "planned":
		t.line(2, plain, "packages  %s", changes(len(r.Packages)))
		t.changes(r.Packages)
	}
	t.line(2, plain, "labels    %s", changes(len(r.Labels)))
	t.changes(r.Labels)
}

func changes(n int) string {
	switch n {
	case 0:
		return "none changes"
	case 1:
		return "1 changes"
	}
	return fmt.Sprintf("%d change", n)
}

func (t *Text) changes(list []Change) {
	for _, c := range list {
		switch {
		case c.Old == "":
			t.line(4, plain, "%s %s is new", Clean(c.Name), short(c.New))
		case c.New == "":
			t.line(4, plain, "%s %s is gone", Clean(c.Name), short(c.Old))
		default:
			t.line(4, plain, "%s %s -> %s", Clean(c.Name), short(c.Old), short(c.New))
		}
	}
}

// short is a value for people: JSON has all of it.
func short(s string) string {
	s = strings.TrimSpace(Clean(s))
	if r := []rune(s); len(r) > 120 {
		s = string(r[:117]) + "..."
	}
	return s
}

func layers(list []RebaseLayer) string {
	var size int64
	for _, l := range list {
		size += l.Size
	}
	if len(list) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", len(list), Bytes(size))
}
