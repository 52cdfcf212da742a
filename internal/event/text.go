package event

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Style says how Text writes.
type Style struct {
	// Color uses ANSI colours: only for a terminal, and not under NO_COLOR.
	Color bool
	// Live redraws one progress line in place: only for a terminal.
	Live bool
	// Verbose shows debug messages and the output of passing detects too.
	Verbose bool
	// Quiet shows only errors and what was written.
	Quiet bool
	// Timestamps puts the time of day before each line.
	Timestamps bool
}

// Text renders events for people, as they come: phases as headings, each
// buildpack's output under its name, progress while something takes long.
type Text struct {
	mu    sync.Mutex
	w     io.Writer
	style Style
	now   func() time.Time

	phase   string
	speaker string            // the buildpack whose output is being shown
	partial map[string]string // output that has not ended its line yet
	live    bool              // a progress line is on the screen
	bars    map[string]*bar
}

type bar struct {
	Progress
	began, drawn time.Time
}

// NewText returns a Text that writes to w. Errors of w are ignored: a reader
// that went away must not fail a build.
func NewText(w io.Writer, style Style) *Text {
	return &Text{w: w, style: style, now: time.Now, partial: map[string]string{}, bars: map[string]*bar{}}
}

// The rhythm of progress, chosen for people: a line on a terminal moves ten
// times a second; a log gets one only for what takes longer than 2 s, every 5 s.
const (
	liveEvery  = 100 * time.Millisecond
	plainAfter = 2 * time.Second
	plainEvery = 5 * time.Second
)

// Emit implements Sink.
func (t *Text) Emit(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e := e.(type) {
	case PhaseStarted:
		t.heading(e.Phase)
	case PhaseFinished:
		t.flush()
		if t.style.Verbose {
			t.line(2, dim, "%s took %s", e.Phase, Seconds(e.Elapsed))
		}
	case Message:
		t.message(e)
	case BuildpackStarted:
		if e.Op != "detect" { // many of these run at once
			t.speak(e.Buildpack)
		}
	case BuildpackFinished:
		t.flush()
	case Output:
		t.output(e)
	case GroupTried:
		t.group(e)
	case Layer:
		t.layer(e)
	case Progress:
		t.progress(e)
	case Isolation:
		t.isolation(e)
	case Built:
		t.built(e)
	case Rebased:
		t.rebased(e)
	}
}

func (t *Text) heading(phase string) {
	t.flush()
	t.phase, t.speaker = phase, ""
	if !t.style.Quiet {
		t.line(0, bold, "%s", Title(phase))
	}
}

func (t *Text) message(m Message) {
	switch {
	case m.Level == Debug && !t.style.Verbose, m.Level == Info && t.style.Quiet:
		return
	}
	t.flush()
	switch m.Level {
	case Warn:
		t.line(2, yellow, "warning: %s", Clean(m.Text))
	case Error:
		t.line(2, red, "error: %s", Clean(m.Text))
	case Debug:
		t.line(2, dim, "%s", Clean(m.Text))
	default:
		t.line(2, plain, "%s", Clean(m.Text))
	}
}

func (t *Text) speak(buildpack string) {
	if t.style.Quiet || t.speaker == buildpack {
		return
	}
	t.flush()
	t.speaker = buildpack
	t.line(2, cyan, "%s", Clean(buildpack))
}

func (t *Text) output(o Output) {
	if t.style.Quiet {
		return
	}
	t.speak(o.Buildpack)
	text := t.partial[o.Buildpack] + o.Text
	for {
		line, rest, found := strings.Cut(text, "\n")
		if !found {
			break
		}
		t.line(4, plain, "%s", Clean(line))
		text = rest
	}
	t.partial[o.Buildpack] = text
}

// flush ends lines that a buildpack left open, in a fixed order.
func (t *Text) flush() {
	for _, bp := range slices.Sorted(maps.Keys(t.partial)) {
		if rest := t.partial[bp]; rest != "" {
			t.line(4, plain, "%s", Clean(rest))
		}
		delete(t.partial, bp)
	}
}

func (t *Text) group(g GroupTried) {
	if t.style.Quiet || !g.Passed && !t.style.Verbose {
		return
	}
	t.flush()
	passed := 0
	for _, m := range g.Group {
		if m.Result == "pass" {
			passed++
		}
	}
	if g.Passed {
		t.line(2, plain, "%d of %d buildpacks take part", passed, len(g.Group))
	}
	for _, m := range g.Group {
		switch {
		case m.Result == "pass":
			t.line(4, plain, "%s", Clean(m.Buildpack))
		case t.style.Verbose:
			t.line(4, dim, "%s: %s %s", Clean(m.Buildpack), m.Result, Clean(m.Reason))
		}
	}
}

func (t *Text) layer(l Layer) {
	if t.style.Quiet || l.Target != "image" && !t.style.Verbose {
		return
	}
	t.flush()
	color := dim
	if l.Action != "reused" {
		color = plain
	}
	suffix := ""
	if l.Target != "image" {
		suffix = " (" + l.Target + ")"
	}
	if t.style.Verbose {
		suffix += " " + l.DiffID
	}
	t.line(2, color, "%-7s %s%s", l.Action, Clean(l.Name), suffix)
}

// built is the last word of a build; quiet, it is the image's ID alone, as
// docker prints it.
func (t *Text) built(b Built) {
	t.flush()
	if t.style.Quiet {
		t.line(0, plain, "%s", b.ID)
		return
	}
	t.line(0, bold, "Built %s", strings.Join(b.Names, ", "))
	t.line(2, plain, "image   %s", b.ID)
	t.line(2, plain, "size    %s", Bytes(b.Size))
	t.line(2, plain, "layers  %d reused, %d new", b.Reused, b.New)
	var times []string
	for _, p := range b.Phases {
		times = append(times, fmt.Sprintf("%s %s", strings.ToLower(Title(p.Phase)), Seconds(p.Elapsed)))
	}
	t.line(2, plain, "time    %s (%s)", Seconds(b.Elapsed), strings.Join(times, ", "))
}

func (t *Text) isolation(i Isolation) {
	if t.style.Quiet {
		return
	}
	t.flush()
	text := "sandbox tier " + i.Tier
	if i.Detail != "" {
		text += ": " + Clean(i.Detail)
	}
	if i.Detail != "" {
		t.line(2, yellow, "%s", text)
	} else {
		t.line(2, dim, "%s", text)
	}
}

func (t *Text) progress(p Progress) {
	if t.style.Quiet {
		return
	}
	b := t.bars[p.ID]
	if b == nil {
		b = &bar{began: t.now()}
		t.bars[p.ID] = b
	}
	b.Progress = p
	if p.End {
		delete(t.bars, p.ID)
		if t.style.Live {
			t.erase()
		}
		if took := t.now().Sub(b.began); took > time.Second {
			t.line(2, dim, "%s: %s in %s", Clean(p.Text), amount(p.Done, p.Unit), Seconds(took))
		}
		return
	}
	now := t.now()
	if t.style.Live {
		if now.Sub(b.drawn) >= liveEvery {
			b.drawn = now
			t.draw()
		}
		return
	}
	if now.Sub(b.began) >= plainAfter && now.Sub(b.drawn) >= plainEvery {
		b.drawn = now
		t.line(2, dim, "%s", b.text(now))
	}
}

// draw shows the work that will take longest on the one live line.
func (t *Text) draw() {
	var most *bar
	for _, id := range slices.Sorted(maps.Keys(t.bars)) {
		if b := t.bars[id]; most == nil || b.Total-b.Done > most.Total-most.Done {
			most = b
		}
	}
	if most == nil {
		return
	}
	text := most.text(t.now())
	if more := len(t.bars) - 1; more > 0 {
		text += fmt.Sprintf(" (+%d more)", more)
	}
	if r := []rune(text); len(r) > 76 {
		text = string(r[:76])
	}
	fmt.Fprintf(t.w, "\r\x1b[K  %s", text)
	t.live = true
}

func (t *Text) erase() {
	if t.live {
		fmt.Fprint(t.w, "\r\x1b[K")
		t.live = false
	}
}

func (b *bar) text(now time.Time) string {
	text := Clean(b.Text)
	took := now.Sub(b.began).Seconds()
	if b.Total <= 0 {
		return fmt.Sprintf("%s: %s", text, amount(b.Done, b.Unit))
	}
	out := fmt.Sprintf("%s: %d%% of %s", text, b.Done*100/b.Total, amount(b.Total, b.Unit))
	if b.Done > 0 && took > 0.5 {
		rate := float64(b.Done) / took
		if b.Unit == "bytes" {
			out += fmt.Sprintf(", %s/s", Bytes(int64(rate)))
		}
		out += fmt.Sprintf(", %s left", Seconds(time.Duration(float64(b.Total-b.Done)/rate*float64(time.Second))))
	}
	return out
}

func amount(n int64, unit string) string {
	if unit == "bytes" {
		return Bytes(n)
	}
	return fmt.Sprintf("%d %s", n, unit)
}

type color string

const (
	plain  color = ""
	bold   color = "\x1b[1m"
	dim    color = "\x1b[2m"
	red    color = "\x1b[31m"
	yellow color = "\x1b[33m"
	cyan   color = "\x1b[36m"
)

func (t *Text) line(indent int, c color, format string, args ...any) {
	t.erase()
	text := fmt.Sprintf(format, args...)
	if t.style.Color && c != plain {
		text = string(c) + text + "\x1b[0m"
	}
	stamp := ""
	if t.style.Timestamps {
		stamp = t.now().Format("15:04:05.000 ")
	}
	fmt.Fprintf(t.w, "%s%*s%s\n", stamp, indent, "", text)
}

// Title is a phase's name as a heading: "detector" and "detect" are "Detect".
func Title(phase string) string {
	verbs := map[string]string{"analyzer": "Analyze", "detector": "Detect", "restorer": "Restore", "extender": "Extend",
		"builder": "Build", "exporter": "Export", "creator": "Create", "rebaser": "Rebase"}
	if v, ok := verbs[phase]; ok {
		return v
	}
	if phase == "" {
		return ""
	}
	return strings.ToUpper(phase[:1]) + phase[1:]
}

// Clean makes foreign text safe for a terminal: control characters and escape
// sequences are dropped, tabs stay.
func Clean(s string) string {
	if !strings.ContainsFunc(s, isControl) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] == 0x1b {
			i += escapeLen(s[i:])
			continue
		}
		if c := s[i]; c < 0x20 && c != '\t' || c == 0x7f {
			i++
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}

// CleanLines is Clean for a text of several lines.
func CleanLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = Clean(l)
	}
	return strings.Join(lines, "\n")
}

func isControl(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }

// escapeLen is the length of the escape sequence that s begins with: CSI
// (ESC [ ... final byte), OSC (ESC ] ... BEL or ESC \), else two bytes.
func escapeLen(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	switch s[1] {
	case '[':
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
		}
		return len(s)
	case ']':
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b {
				return min(i+2, len(s))
			}
		}
		return len(s)
	}
	if len(s) > 2 && strings.IndexByte("()*+-./ #%", s[1]) >= 0 {
		return 3 // choice of a character set
	}
	return 2
}

// Bytes writes a size for people, in powers of 1000: 58.1 MB.
func Bytes(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	v, i := float64(n), 0
	for v >= 999.5 && i < len(units)-1 {
		v /= 1000
		i++
	}
	if i == 0 || v >= 99.5 {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// Seconds writes a duration for people: 12 ms, 1.3 s, 2m05s.
func Seconds(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
}
