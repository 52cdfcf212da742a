package event

import "bytes"

// maxHeld bounds how much of an unfinished line is held back, in bytes.
const maxHeld = 16 << 10

// Lines is a writer that hands a program's output on as Output, whole lines at
// a time, so that what several write is not mixed within a line. It is for one
// writing goroutine.
type Lines struct {
	sink   Sink
	output Output
	held   []byte
}

// NewLines makes the Lines of what who prints. The caller flushes them.
func NewLines(sink Sink, who string, stderr bool) *Lines {
	return &Lines{sink: sink, output: Output{Buildpack: who, Stderr: stderr}}
}

// Write implements io.Writer and never fails.
func (l *Lines) Write(p []byte) (int, error) {
	l.held = append(l.held, p...)
	if end := bytes.LastIndexByte(l.held, '\n') + 1; end > 0 {
		l.emit(end)
	}
	if len(l.held) > maxHeld {
		l.emit(len(l.held))
	}
	return len(p), nil
}

// Flush hands on what has no end of line.
func (l *Lines) Flush() {
	if len(l.held) > 0 {
		l.held = append(l.held, '\n')
		l.emit(len(l.held))
	}
}

func (l *Lines) emit(n int) {
	out := l.output
	out.Text = string(l.held[:n])
	l.held = append(l.held[:0], l.held[n:]...)
	l.sink.Emit(out)
}
