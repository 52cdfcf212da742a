package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

// meterArg makes this program a meter: it runs one command and writes to file
// descriptor 3 how long that took and how much memory it had. The kernel counts
// what a process had before exec as its own (on Linux a forked child shares it),
// so whoever asks for a small process's peak must be small itself: not bench.
const meterArg = "-meter"

const metered = 3

// reading is what the meter says of a command. Peak is the ru_maxrss, in
// bytes, of the largest of its processes: itself and all that were waited for.
type reading struct {
	Took time.Duration
	Peak int64
}

func meter(argv []string) int {
	syscall.CloseOnExec(metered)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage) // on Linux it is one
	err = json.NewEncoder(os.NewFile(metered, "reading")).Encode(reading{took, usage.Maxrss << 10})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	return cmd.ProcessState.ExitCode()
}

// meter runs a command under the meter and returns what it printed.
func (b *bench) meter(ctx context.Context, cmd command) (reading, []byte, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return reading{}, nil, err
	}
	defer r.Close()
	run := exec.CommandContext(ctx, b.self, append([]string{meterArg}, cmd.argv...)...)
	run.Cancel = func() error { return run.Process.Signal(syscall.SIGTERM) }
	run.Env, run.ExtraFiles = cmd.env, []*os.File{w}
	var out, stderr bytes.Buffer
	run.Stdout, run.Stderr = &out, &stderr
	err = run.Run()
	w.Close()
	if err != nil {
		return reading{}, nil, fmt.Errorf("%q: %w\n%s%s", cmd.argv, err, tail(out.Bytes()), tail(stderr.Bytes()))
	}
	var got reading
	return got, out.Bytes(), json.NewDecoder(r).Decode(&got)
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }

// command is a process to be; a nil environment is bench's own.
type command struct {
	argv []string
	env  []string
}

// sample is one run of a row: the time that counts, and what else was seen.
type sample struct {
	took time.Duration
	peak int64
	read int64 // bytes of layers
}

// spread is what a row took: the median, and the range, which is the noise.
type spread struct {
	median, low, high time.Duration
	runs              int
	peak              int64
	read              int64
}

// measure repeats f for as long as the row's budget lasts, once at least.
func (b *bench) measure(f func(i int) (sample, error)) (spread, error) {
	return b.repeat(b.runs, f)
}

func (b *bench) repeat(runs int, f func(i int) (sample, error)) (spread, error) {
	var s spread
	var all []time.Duration
	for began := time.Now(); len(all) < runs && (len(all) == 0 || time.Since(began) < b.budget); {
		got, err := f(len(all))
		if err != nil {
			return s, err
		}
		all = append(all, got.took)
		s.peak = max(s.peak, got.peak)
		s.read += got.read
	}
	slices.Sort(all)
	n := len(all)
	s.median, s.low, s.high, s.runs = (all[(n-1)/2]+all[n/2])/2, all[0], all[n-1], n
	return s, nil
}

func (s spread) scatter() string {
	return fmt.Sprintf("(%s to %s) %d", show(s.low), show(s.high), s.runs)
}

// bytesRead is how much of their layers the exporters had to read, each.
func (s spread) bytesRead() string {
	return fmt.Sprintf("%.3f MB of layers read", float64(s.read)/float64(s.runs)/megabyte)
}
