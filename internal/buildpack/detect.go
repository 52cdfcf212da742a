package buildpack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Exit codes of bin/detect.
const (
	DetectPass = 0
	DetectFail = 100
)

// Limits of what bin/detect may leave behind, in bytes.
const (
	// maxPlan is far above any plan that says something; plans of real
	// buildpacks are below 4 KB.
	maxPlan = 1 << 20
	// maxDetectOutput is how much of its output is kept, the end of it.
	maxDetectOutput = 64 << 10
)

// Detection is the result of one bin/detect.
type Detection struct {
	// Code is its exit code; -1 if it has none.
	Code int
	// Plan is what it offers and wants, if it passed.
	Plan spec.DetectPlan
	// Output is what it printed, stdout and stderr together; of much, the end.
	Output []byte
	// Err says why the detection could not be run or its plan not be read. An
	// exit code other than 0 is no Err.
	Err error
}

// Passed tells whether the buildpack wants to take part.
func (d Detection) Passed() bool { return d.Err == nil && d.Code == DetectPass }

// Errored tells whether the buildpack neither passed nor properly declined.
func (d Detection) Errored() bool {
	return d.Err != nil || d.Code != DetectPass && d.Code != DetectFail
}

// Detect runs bin/detect. An extension without one passes with the plan in its
// directory detect, if there is any.
func (b Buildpack) Detect(ctx context.Context, r sandbox.Runner, in Inputs) Detection {
	if b.Extension && !b.has("bin/detect") {
		return b.finishDetection(Detection{}, filepath.Join(b.Dir, "detect"))
	}
	dir, err := os.MkdirTemp("", "detect-")
	if err != nil {
		return Detection{Code: -1, Err: err}
	}
	defer os.RemoveAll(dir)
	plan := filepath.Join(dir, planFile)
	if err := os.WriteFile(plan, nil, 0o600); err != nil {
		return Detection{Code: -1, Err: err}
	}
	environ, err := b.environment(in, map[string]string{"CNB_BUILD_PLAN_PATH": plan})
	if err != nil {
		return Detection{Code: -1, Err: err}
	}
	var out tail
	cmd := b.command("detect", in, environ, in.Platform, plan)
	cmd.Stdout, cmd.Stderr = &out, &out
	var d Detection
	d.Code, d.Err = exitStatus(r.Run(ctx, cmd))
	d.Output = out.Bytes()
	if ctx.Err() != nil {
		d.Err = ctx.Err()
	}
	return b.finishDetection(d, dir)
}

const planFile = "plan.toml"

// finishDetection reads the plan in dir if d passed.
func (b Buildpack) finishDetection(d Detection, dir string) Detection {
	if !d.Passed() {
		return d
	}
	body, err := layer.Stack{Upper: dir}.ReadFile(planFile, maxPlan)
	if errors.Is(err, fs.ErrNotExist) {
		return d // a buildpack may remove the empty file
	}
	if err == nil {
		d.Plan, err = spec.ReadDetectPlan(body, "build plan of "+b.String())
	} else {
		err = fmt.Errorf("build plan of %s: %w", b, err)
	}
	if err == nil && b.Extension {
		err = b.onlyProvides(d.Plan)
	}
	d.Err = err
	return d
}

func (b Buildpack) onlyProvides(plan spec.DetectPlan) error {
	for _, s := range append([]spec.PlanSections{plan.PlanSections}, plan.Or...) {
		if len(s.Requires) > 0 {
			return fmt.Errorf("build plan of extension %s requires %q, but an extension can only provide", b, s.Requires[0].Name)
		}
	}
	return nil
}

// tail keeps the last maxDetectOutput bytes written to it. It is safe for
// concurrent use because one process writes two streams into it.
type tail struct {
	mu  sync.Mutex
	buf []byte
	cut bool
}

// Write implements io.Writer and never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if over := len(p) - maxDetectOutput; over > 0 {
		p, t.cut = p[over:], true
	}
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*maxDetectOutput {
		t.trim()
	}
	return n, nil
}

func (t *tail) trim() {
	if over := len(t.buf) - maxDetectOutput; over > 0 {
		t.buf, t.cut = append(t.buf[:0], t.buf[over:]...), true
	}
}

// Bytes is what was kept, from the start of a line.
func (t *tail) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trim()
	out := bytes.Clone(t.buf)
	if i := bytes.IndexByte(out, '\n'); t.cut && i >= 0 {
		out = out[i+1:]
	}
	return out
}
