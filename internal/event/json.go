package event

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// NewJSON returns a Sink that writes every event as one JSON object a line:
//
//	{"time":"2026-01-02T15:04:05.000Z","kind":"output","event":{...}}
//
// A line is written with one Write call, so several processes may share w when
// it is a pipe and lines are short. The first write error ends the output: a
// reader that went away must not fail a build.
func NewJSON(w io.Writer) Sink {
	return &jsonSink{w: w, now: time.Now}
}

type jsonSink struct {
	mu     sync.Mutex
	w      io.Writer
	now    func() time.Time
	broken bool
}

type envelope struct {
	Time  string          `json:"time"`
	Kind  string          `json:"kind"`
	Event json.RawMessage `json:"event"`
}

// Emit implements Sink.
func (s *jsonSink) Emit(e Event) {
	body, err := marshal(e)
	if err != nil {
		return
	}
	line, err := marshal(envelope{Time: s.now().UTC().Format("2006-01-02T15:04:05.000Z"), Kind: e.Kind(), Event: body})
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return
	}
	if _, err := s.w.Write(append(line, '\n')); err != nil {
		s.broken = true
	}
}

// marshal is json.Marshal without HTML escapes, which nobody here needs.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// maxLine bounds one line of a decoded stream, in bytes: the stream comes from
// a process that ran foreign code.
const maxLine = 1 << 20

// Decode reads what NewJSON wrote and hands each event to sink. Lines that are
// no events (a crash's stack trace, say) become Message events at error level,
// so nothing a failing process said is lost. It returns the first read error.
func Decode(r io.Reader, sink Sink) error {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := readLine(br)
		if len(line) > 0 {
			if e, derr := decodeLine(line); derr == nil {
				sink.Emit(e)
			} else {
				sink.Emit(Message{Level: Error, Text: string(line)})
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
}

// readLine returns one line without its end; what is over maxLine is dropped.
func readLine(br *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		if room := maxLine - len(line); room > 0 {
			line = append(line, part[:min(room, len(part))]...)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		return bytes.TrimRight(line, "\r\n"), err
	}
}

func decodeLine(line []byte) (Event, error) {
	var env envelope
	if err := json.Unmarshal(line, &env); err != nil {
		return nil, err
	}
	decode, ok := decoders[env.Kind]
	if !ok {
		return nil, fmt.Errorf("unknown event kind %q", env.Kind)
	}
	return decode(env.Event)
}

var decoders = map[string]func([]byte) (Event, error){
	PhaseStarted{}.Kind():      decodeAs[PhaseStarted],
	PhaseFinished{}.Kind():     decodeAs[PhaseFinished],
	Message{}.Kind():           decodeAs[Message],
	Output{}.Kind():            decodeAs[Output],
	BuildpackStarted{}.Kind():  decodeAs[BuildpackStarted],
	BuildpackFinished{}.Kind(): decodeAs[BuildpackFinished],
	Detected{}.Kind():          decodeAs[Detected],
	GroupTried{}.Kind():        decodeAs[GroupTried],
	Layer{}.Kind():             decodeAs[Layer],
	Progress{}.Kind():          decodeAs[Progress],
	ImageWritten{}.Kind():      decodeAs[ImageWritten],
	Built{}.Kind():             decodeAs[Built],
	Rebased{}.Kind():           decodeAs[Rebased],
	Failed{}.Kind():            decodeAs[Failed],
	Isolation{}.Kind():         decodeAs[Isolation],
}

func decodeAs[E Event](b []byte) (Event, error) {
	var e E
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, err
	}
	return e, nil
}
