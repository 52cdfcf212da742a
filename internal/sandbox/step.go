package sandbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"
)

// In returns a Runner whose processes see only what spec says. Where overlay is not to be had the
// merged directories of spec are copied into their Upper, once per worker, before the first Run;
// then Upper alone is the result.
func (w *Worker) In(spec Spec) Runner { return &step{w, spec} }

type step struct {
	w    *Worker
	spec Spec
}

// Run implements Runner.
func (s *step) Run(ctx context.Context, c Command) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	if err := s.check(); err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	spec, err := s.w.materialise(ctx, s.spec)
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	std, err := openStdio(c)
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	res, err := s.run(ctx, spec, c, std)
	return errors.Join(err, endOfStep(ctx, res, err), std.wait())
}

func (s *step) check() error {
	o, ids := s.w.options, s.w.report.IDs
	if ids != RealIDs && (s.spec.UID != o.UID || s.spec.GID != o.GID) {
		return fmt.Errorf("ids %d:%d are not mapped: tier %s has only %d:%d", s.spec.UID, s.spec.GID, s.w.report.Tier, o.UID, o.GID)
	}
	if ids == SingleID && len(s.spec.Groups) > 0 {
		return fmt.Errorf("groups %d are not mapped: tier %s has only %d", s.spec.Groups, s.w.report.Tier, o.GID)
	}
	return s.spec.check()
}

func (w *Worker) runRequest(spec Spec, p process) *runRequest {
	return &runRequest{
		Spec: spec, Process: p,
		BindProc:  w.report.HostProc,
		SetGroups: w.setGroups,
		RootCaps:  w.ids.ids != SingleID && spec.UID == 0,
		Pretend:   w.ids.ids == RecordedIDs,
		Quirks:    w.quirks,
	}
}

// run sends the step with its files and waits for its end.
func (s *step) run(ctx context.Context, spec Spec, command Command, std *stdio) (result, error) {
	defer std.closeChild()
	c, err := s.w.dial()
	if err != nil {
		return result{}, err
	}
	defer c.Close()
	p, files := newProcess(command, std)
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	err = c.send(request{Run: s.w.runRequest(spec, p)}, fds...)
	runtime.KeepAlive(std)
	if err != nil {
		return result{}, fmt.Errorf("run %s: %w", command.Path, err)
	}
	std.closeChild()
	res, err := await(ctx, c, s.spec.Grace)
	if err != nil {
		return res, fmt.Errorf("the sandbox's worker has ended: %w", err)
	}
	return res, nil
}

// await waits for the result; when ctx ends it asks the step to end, and after the grace makes it.
func await(ctx context.Context, c *conn, grace time.Duration) (result, error) {
	type reply struct {
		res result
		err error
	}
	done := make(chan reply, 1)
	go func() {
		var r reply
		_, r.err = c.recv(&r.res)
		done <- r
	}()
	if grace == 0 {
		grace = defaultGrace
	}
	var kill <-chan time.Time
	over := ctx.Done()
	for {
		select {
		case r := <-done:
			return r.res, r.err
		case <-over:
			over = nil
			c.send(control{Signal: int(syscall.SIGTERM)})
			t := time.NewTimer(grace)
			defer t.Stop()
			kill = t.C
		case <-kill:
			c.send(control{Signal: int(syscall.SIGKILL)})
		}
	}
}

// endOfStep makes an error of a result. A step that ended well did so even if ctx is over.
func endOfStep(ctx context.Context, res result, failed error) error {
	if failed != nil {
		return nil
	}
	err := res.err()
	if err == nil && (res.Code != 0 || res.Signal != 0) {
		err = &ExitError{Code: res.Code, Signal: syscall.Signal(res.Signal)}
	}
	if cerr := ctx.Err(); err != nil && cerr != nil {
		return fmt.Errorf("%w (%w)", cerr, err)
	}
	return err
}
