package kit

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/internal/spec"
)

// Logger is the voice of a buildpack: sentences on standard output, without
// the buildpack's name, which the lifecycle puts above them. BP_LOG_LEVEL=debug
// (or a lifecycle at debug level) shows Debug too.
type Logger struct {
	mu    sync.Mutex
	w     io.Writer
	debug bool
}

func newLogger(w io.Writer, env []string) *Logger {
	l := &Logger{w: w}
	for _, kv := range env {
		switch name, value, _ := strings.Cut(kv, "="); name {
		case "BP_LOG_LEVEL", "CNB_LOG_LEVEL":
			l.debug = l.debug || strings.EqualFold(strings.TrimSpace(value), "debug")
		}
	}
	return l
}

// Info says what is being done: one sentence, capital letter, no full stop.
func (l *Logger) Info(format string, args ...any) { l.line("", format, args...) }

// Detail says more about the Info before it, indented.
func (l *Logger) Detail(format string, args ...any) { l.line("  ", format, args...) }

// Warn says what may not be as the user wants it.
func (l *Logger) Warn(format string, args ...any) { l.line("Warning: ", format, args...) }

// Debug says what only someone who looks for a fault wants to know.
func (l *Logger) Debug(format string, args ...any) {
	if l.debug {
		l.line("  ", format, args...)
	}
}

// IsDebug is true when Debug is shown.
func (l *Logger) IsDebug() bool { return l.debug }

func (l *Logger) line(prefix, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	fmt.Fprintln(l.w, prefix+strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", len(prefix))))
}

func (l *Logger) failed(err error) {
	if hint := spec.HintOf(err); hint != "" {
		l.line("ERROR: ", "%v", err)
		l.line("", "hint: %s", hint)
		return
	}
	l.line("ERROR: ", "%v", err)
}

// Output is a writer for what a program that the buildpack runs prints: whole
// lines, indented like Detail. Close writes a last line without an end.
func (l *Logger) Output() io.WriteCloser { return &output{log: l} }

type output struct {
	log  *Logger
	rest []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.rest = append(o.rest, p...)
	for {
		i := bytes.IndexByte(o.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		o.log.Detail("%s", bytes.TrimRight(o.rest[:i], "\r"))
		o.rest = o.rest[i+1:]
	}
}

func (o *output) Close() error {
	if len(o.rest) > 0 {
		o.log.Detail("%s", o.rest)
		o.rest = nil
	}
	return nil
}

// Hint adds to err what its reader could do about it, shown on a line of its
// own.
func Hint(err error, format string, args ...any) error { return spec.WithHint(err, format, args...) }
