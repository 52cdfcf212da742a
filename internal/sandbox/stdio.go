package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"time"
)

// stdio is a Command's descriptors as files, and the copying between pipes and the rest.
type stdio struct {
	files  []*os.File // for descriptors 0, 1, 2, 3...; nil means /dev/null
	child  []*os.File // the child's ends of pipes, to close once it has them
	parent []*os.File // our ends of output pipes
	stdin  *os.File   // our end of the input pipe
	copies chan error // one result per output pipe
}

// outputDelay is how long after the end of a process its output may still trickle in from a
// process that escaped. In a namespace none can.
const outputDelay = 2 * time.Second

func openStdio(c Command) (*stdio, error) {
	s := &stdio{copies: make(chan error, 2)}
	if err := s.open(c); err != nil {
		s.closeChild()
		s.closeParent()
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	return s, nil
}

func (s *stdio) open(c Command) error {
	in, err := s.input(c.Stdin)
	if err != nil {
		return err
	}
	out, err := s.output(c.Stdout)
	if err != nil {
		return err
	}
	errf := out
	if !sameWriter(c.Stdout, c.Stderr) {
		if errf, err = s.output(c.Stderr); err != nil {
			return err
		}
	}
	s.files = append([]*os.File{in, out, errf}, c.ExtraFiles...)
	return nil
}

// sameWriter keeps one writer from being written to by two goroutines.
func sameWriter(a, b io.Writer) bool {
	if a == nil || b == nil || !reflect.TypeOf(a).Comparable() || reflect.TypeOf(a) != reflect.TypeOf(b) {
		return false
	}
	return a == b
}

func (s *stdio) input(r io.Reader) (*os.File, error) {
	if r == nil {
		return nil, nil
	}
	if f, ok := r.(*os.File); ok {
		return f, nil
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.child = append(s.child, pr)
	s.stdin = pw
	go func() {
		io.Copy(pw, r) // a process need not read its input: EPIPE is no failure
		pw.Close()
	}()
	return pr, nil
}

func (s *stdio) output(w io.Writer) (*os.File, error) {
	if w == nil {
		return nil, nil
	}
	if f, ok := w.(*os.File); ok {
		return f, nil
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.child = append(s.child, pw)
	s.parent = append(s.parent, pr)
	go func() {
		_, err := io.Copy(w, pr)
		if err != nil && !errors.Is(err, os.ErrClosed) {
			io.Copy(io.Discard, pr) // the process must not block on a reader that gave up
		}
		s.copies <- err
	}()
	return pw, nil
}

// closeChild closes the ends that the child has by now.
func (s *stdio) closeChild() {
	for _, f := range s.child {
		f.Close()
	}
}

func (s *stdio) closeParent() {
	if s.stdin != nil {
		s.stdin.Close()
	}
	for _, f := range s.parent {
		f.Close()
	}
}

// wait returns once all output has been delivered, or outputDelay has passed.
func (s *stdio) wait() error {
	late := time.AfterFunc(outputDelay, func() {
		for _, f := range s.parent {
			f.Close()
		}
	})
	defer late.Stop()
	var errs []error
	for range s.parent {
		if err := <-s.copies; err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, fmt.Errorf("pass on output: %w", err))
		}
	}
	s.closeParent()
	return errors.Join(errs...)
}
