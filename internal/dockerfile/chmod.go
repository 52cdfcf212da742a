package dockerfile

import (
	"fmt"
	"strconv"
	"strings"
)

// modeChange is the argument of --chmod. The zero value changes nothing.
type modeChange struct {
	octal bool
	mode  int64
	steps []modeStep
}

// modeStep is one operation of a symbolic mode.
type modeStep struct {
	who int64 // the bits of those that are meant: 0o4700, 0o2070, 0o1007
	op  byte  // +, - or =
	set string
}

// parseMode reads an octal mode up to 7777, or a symbolic one as of chmod(1).
func parseMode(s string) (modeChange, error) {
	if s == "" {
		return modeChange{}, nil
	}
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		if n > 0o7777 {
			return modeChange{}, fmt.Errorf("--chmod=%s: must be at most 7777", s)
		}
		return modeChange{octal: true, mode: int64(n)}, nil
	}
	var m modeChange
	for clause := range strings.SplitSeq(s, ",") {
		steps, ok := parseClause(clause)
		if !ok {
			return modeChange{}, fmt.Errorf("--chmod=%s: must be octal, or like u=rwX,go=rX", s)
		}
		m.steps = append(m.steps, steps...)
	}
	return m, nil
}

func parseClause(s string) ([]modeStep, bool) {
	var who int64
	for s != "" && strings.IndexByte("ugoa", s[0]) >= 0 {
		who |= map[byte]int64{'u': 0o4700, 'g': 0o2070, 'o': 0o1007, 'a': 0o7777}[s[0]]
		s = s[1:]
	}
	if who == 0 {
		who = 0o7777
	}
	var steps []modeStep
	for s != "" {
		op := s[0]
		if op != '+' && op != '-' && op != '=' {
			return nil, false
		}
		end := 1
		for end < len(s) && strings.IndexByte("rwxXst", s[end]) >= 0 {
			end++
		}
		if end == 1 && len(s) > 1 && strings.IndexByte("ugo", s[1]) >= 0 {
			end = 2
		}
		steps = append(steps, modeStep{who, op, s[1:end]})
		s = s[end:]
	}
	return steps, len(steps) > 0
}

// apply is what becomes of a mode.
func (m modeChange) apply(mode int64, dir bool) int64 {
	if m.octal {
		return m.mode
	}
	for _, s := range m.steps {
		bits := s.bits(mode, dir) & s.who
		switch s.op {
		case '+':
			mode |= bits
		case '-':
			mode &^= bits
		case '=':
			mode = mode&^(s.who&^special(dir)) | bits
		}
	}
	return mode
}

// special are the bits of a directory that = leaves, as chmod(1) does.
func special(dir bool) int64 {
	if dir {
		return 0o6000
	}
	return 0
}

func (s modeStep) bits(mode int64, dir bool) int64 {
	var bits int64
	for _, c := range s.set {
		switch c {
		case 'r':
			bits |= 0o444
		case 'w':
			bits |= 0o222
		case 'x':
			bits |= 0o111
		case 'X':
			if dir || mode&0o111 != 0 {
				bits |= 0o111
			}
		case 's':
			bits |= 0o6000
		case 't':
			bits |= 0o1000
		case 'u':
			bits |= mode >> 6 & 7 * 0o111
		case 'g':
			bits |= mode >> 3 & 7 * 0o111
		case 'o':
			bits |= mode & 7 * 0o111
		}
	}
	return bits
}
