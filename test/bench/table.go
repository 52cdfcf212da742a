package main

import (
	"fmt"
	"io"
	"time"
)

// row is one line of the table.
type row struct {
	name string
	took spread
	// beside is the same work through a pipe; the ratio is to its median.
	beside pipe
	// limit is the target, want says in words what it is; 0 is none.
	limit time.Duration
	want  string
	note  string
	// missing says why there are no figures.
	missing string
}

// pipe is what a row stands beside: what the machine can do at best.
type pipe struct {
	command string
	took    spread
}

// times is a target that is relative to the pipe.
func (p pipe) times(factor float64) (time.Duration, string) {
	return time.Duration(factor * float64(p.took.median)), fmt.Sprintf("%.1f x the pipe", factor)
}

// missing is the error of a row whose feature is not there, or not on this host.
type missing string

func (m missing) Error() string { return string(m) }

const (
	rowFormat = "%-47s %9s %-24s %7s  %9s %6s  %9s  %-6s  %s\n"
	megabyte  = 1e6
)

func printHeader(w io.Writer) {
	fmt.Fprintf(w, rowFormat, "row", "median", "(range) runs", "peak MB", "pipe", "ratio", "target", "holds", "")
}

func (r row) print(w io.Writer) {
	if r.missing != "" {
		fmt.Fprintf(w, rowFormat, r.name, "-", "", "-", "-", "-", "-", "-", r.missing)
		return
	}
	beside, ratio, target := "-", "-", "-"
	if m := r.beside.took.median; m > 0 {
		beside, ratio = show(m), fmt.Sprintf("%.2f", r.took.median.Seconds()/m.Seconds())
	}
	if r.limit > 0 {
		target = show(r.limit)
	}
	fmt.Fprintf(w, rowFormat, r.name, show(r.took.median), r.took.scatter(), fmt.Sprintf("%.0f", float64(r.took.peak)/megabyte),
		beside, ratio, target, r.verdict(), r.remarks())
}

func (r row) verdict() string {
	switch {
	case r.limit == 0:
		return "-"
	case r.took.median <= r.limit:
		return "yes"
	}
	return "NO"
}

func (r row) remarks() string {
	text := r.note
	for _, more := range []string{r.want, r.beside.command} {
		if more != "" && text != "" {
			text += "; "
		}
		text += more
	}
	return text
}

// show is a time with as many digits as its noise leaves.
func show(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// peak is the most memory that one process of a row had.
type peak struct {
	name  string
	bytes int64
}

// peakLimit is the target for every row, whatever a layer's size.
const peakLimit = 80e6

func printPeak(w io.Writer, peaks []peak) {
	var most peak
	over := 0
	for _, p := range peaks {
		if p.bytes > most.bytes {
			most = p
		}
		if p.bytes > peakLimit {
			over++
		}
	}
	if most.bytes == 0 {
		return
	}
	holds := "yes"
	if over > 0 {
		holds = fmt.Sprintf("NO: %d rows are over it", over)
	}
	fmt.Fprintf(w, "\npeak memory of any: %.0f MB (%s); target %.0f MB: %s\n", float64(most.bytes)/megabyte, most.name, peakLimit/megabyte, holds)
}
