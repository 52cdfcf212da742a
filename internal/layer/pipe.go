package layer

import "io"

// An outPipe writes to w in a goroutine of its own, so that reading files
// overlaps with hashing them. Data is put straight into its buffers:
//
//	space/advance, Write -> current -> full -> goroutine -> w
//	                           ^------ free ------'
type outPipe struct {
	current []byte
	full    chan []byte
	free    chan []byte
	failed  chan struct{} // closed when w failed
	done    chan struct{} // closed when the goroutine ended
	err     error         // of w; valid once failed or done is closed
}

// Four buffers keep both sides busy; their size is where larger ones measured
// no faster.
const (
	outBuffers    = 4
	outBufferSize = 256 << 10
)

func newOutPipe(w io.Writer) *outPipe {
	p := &outPipe{
		current: make([]byte, 0, outBufferSize),
		full:    make(chan []byte, outBuffers),
		free:    make(chan []byte, outBuffers),
		failed:  make(chan struct{}),
		done:    make(chan struct{}),
	}
	for range outBuffers - 1 {
		p.free <- nil // made when first needed
	}
	go p.run(w)
	return p
}

func (p *outPipe) run(w io.Writer) {
	defer close(p.done)
	for buf := range p.full {
		if p.err == nil {
			if _, err := w.Write(buf); err != nil {
				p.err = err
				close(p.failed)
			}
		}
		p.free <- buf[:0]
	}
}

// space returns room to put data in, at least one byte of it.
func (p *outPipe) space() ([]byte, error) {
	if len(p.current) == cap(p.current) {
		p.full <- p.current
		select {
		case p.current = <-p.free:
		case <-p.failed:
			p.current = <-p.free
			return nil, p.err
		}
		if p.current == nil {
			p.current = make([]byte, 0, outBufferSize)
		}
	}
	return p.current[len(p.current):cap(p.current)], nil
}

// advance says that n bytes were put into space.
func (p *outPipe) advance(n int) { p.current = p.current[:len(p.current)+n] }

// Write implements io.Writer.
func (p *outPipe) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		space, err := p.space()
		if err != nil {
			return written, err
		}
		n := copy(space, b)
		p.advance(n)
		b = b[n:]
		written += n
	}
	return written, nil
}

// close waits until all is written and returns w's error.
func (p *outPipe) close() error {
	p.full <- p.current
	close(p.full)
	<-p.done
	return p.err
}
