package debian

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// paragraph is one deb822 paragraph: "Name: value" lines, values going on in
// lines that begin with a space or tab. It is kept as it was written.
type paragraph []byte

// get is the field's value with the white space around it gone; lines of a
// longer value keep their newlines. Names are compared without case.
func (p paragraph) get(name string) string {
	for b := []byte(p); len(b) > 0; {
		var field []byte
		field, b = cutField(b)
		if len(field) > len(name) && field[len(name)] == ':' && strings.EqualFold(string(field[:len(name)]), name) {
			return strings.TrimSpace(string(field[len(name)+1:]))
		}
	}
	return ""
}

// cutField cuts off the first field with its continuation lines.
func cutField(b []byte) (field, rest []byte) {
	end := 0
	for {
		i := bytes.IndexByte(b[end:], '\n')
		if i < 0 {
			return b, nil
		}
		end += i + 1
		if end == len(b) || (b[end] != ' ' && b[end] != '\t') {
			return b[:end], b[end:]
		}
	}
}

// paragraphs reads paragraphs from a stream.
type paragraphs struct {
	r   *bufio.Reader
	max int
	buf []byte
	// keep, when set, says which fields are stored: the others are skipped
	// while reading, so a big index costs little.
	keep func(name []byte) bool
}

// newParagraphs reads paragraphs of at most max bytes each.
func newParagraphs(r *bufio.Reader, max int) *paragraphs {
	return &paragraphs{r: r, max: max}
}

// next returns the next paragraph, valid until the call after, or nil at the end.
func (p *paragraphs) next() (paragraph, error) {
	p.buf = p.buf[:0]
	started, keeping := false, true
	for {
		line, err := p.r.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		whole := err == nil || errors.Is(err, io.EOF)
		comment := false
		switch {
		case len(bytes.TrimSpace(line)) == 0:
			if started || (len(line) == 0 && err != nil) {
				return p.end(started)
			}
		case line[0] == '#': // in files that people write
			comment = true
		case line[0] == ' ' || line[0] == '\t':
			if !started {
				return nil, errors.New("a continuation line begins a paragraph")
			}
			p.add(line, keeping)
		default:
			name, _, ok := bytes.Cut(line, []byte{':'})
			if !ok || len(name) == 0 {
				return nil, fmt.Errorf("line %.60q is not \"Name: value\"", line)
			}
			started, keeping = true, p.keep == nil || p.keep(name)
			p.add(line, keeping)
		}
		for !whole { // the rest of a line longer than the reader's buffer
			line, err = p.r.ReadSlice('\n')
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
				return nil, err
			}
			whole = !errors.Is(err, bufio.ErrBufferFull)
			p.add(line, keeping && !comment)
		}
		if len(p.buf) > p.max {
			return nil, fmt.Errorf("a paragraph is longer than %d bytes", p.max)
		}
		if errors.Is(err, io.EOF) {
			return p.end(started)
		}
	}
}

func (p *paragraphs) add(line []byte, keeping bool) {
	if keeping && len(p.buf) <= p.max {
		p.buf = append(p.buf, line...)
	}
}

func (p *paragraphs) end(started bool) (paragraph, error) {
	if !started {
		return nil, nil
	}
	return p.buf, nil
}
