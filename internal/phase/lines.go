package phase

import (
	"bytes"

	"github.com/kilnbuild/kiln/internal/event"
)

// maxHeld bounds how much of an unfinished line is held back, in bytes.
const maxHeld = 16 << 10

// lines is a writer that hands a buildpack's output on as event.Output, whole
// lines at a time, so that what several write is not mixed within a line. It
// is for one writing goroutine.
type lines struct {
	sink   event.Sink
	output event.Output
	held   []byte
}

func newLines(sink event.Sink, name string, stderr bool) *lines {
	return &lines{sink: sink, output: event.Output{Buildpack: name, Stderr: stderr}}
}

// Write implements io.Writer and never fails.
func (l *lines) Write(p []byte) (int, error) {
	l.held = append(l.held, p...)
	if end := bytes.LastIndexByte(l.held, '\n') + 1; end > 0 {
		l.emit(end)
	}
	if len(l.held) > maxHeld {
		l.emit(len(l.held))
	}
	return len(p), nil
}

// flush hands on what has no end of line.
func (l *lines) flush() {
	if len(l.held) > 0 {
		l.held = append(l.held, '\n')
		l.emit(len(l.held))
	}
}

func (l *lines) emit(n int) {
	out := l.output
	out.Text = string(l.held[:n])
	l.held = append(l.held[:0], l.held[n:]...)
	l.sink.Emit(out)
}
