package spec

import (
	"errors"
	"fmt"
)

// Exit codes of the lifecycle's commands. The specification gives each phase a
// range; where it leaves the choice, the values are those that platforms
// already know.
const (
	ExitOK           = 0
	ExitGeneric      = 1   // also most input and output failures
	ExitUsage        = 2   // unknown flag
	ExitInvalidArgs  = 3   // wrong number of arguments, invalid reference
	ExitPlatformAPI  = 11  // CNB_PLATFORM_API unset or not supported
	ExitBuildpackAPI = 12  // a buildpack's api is not supported
	ExitDetectFail   = 20  // no group passed
	ExitDetectError  = 21  // no group passed and a buildpack failed in detection
	ExitDetect       = 22  // any other failure of detection
	ExitAnalyze      = 32  //
	ExitRestore      = 42  //
	ExitBuildpack    = 51  // a buildpack's build failed
	ExitBuild        = 52  //
	ExitExport       = 62  //
	ExitRebase       = 72  //
	ExitLaunch       = 82  //
	ExitExtension    = 91  // an extension's generate failed
	ExitGenerate     = 92  //
	ExitExtend       = 102 //
)

// ExitError is an error that decides the exit code of the command.
type ExitError struct {
	Code int
	Err  error
}

// Error is the text of Err.
func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *ExitError) Unwrap() error { return e.Err }

// Exit gives err the exit code code. A nil err stays nil.
func Exit(code int, err error) error {
	if err == nil {
		return nil
	}
	return &ExitError{Code: code, Err: err}
}

// ExitCode is the exit code that err asks for: that of the outermost ExitError
// in it, otherwise otherwise; ExitOK for nil.
func ExitCode(err error, otherwise int) int {
	if err == nil {
		return ExitOK
	}
	if e, ok := errors.AsType[*ExitError](err); ok {
		return e.Code
	}
	return otherwise
}

// Hinted is an error together with what its reader could do about it.
type Hinted struct {
	Err  error
	Hint string
}

// Error is the text of Err; the hint is shown on a line of its own.
func (e *Hinted) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *Hinted) Unwrap() error { return e.Err }

// WithHint adds a hint to err: a sentence in lower case, if possible with the
// command to type. A nil err stays nil.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Hinted{Err: err, Hint: fmt.Sprintf(format, args...)}
}

// HintOf returns the outermost hint in err, or "".
func HintOf(err error) string {
	if h, ok := errors.AsType[*Hinted](err); ok {
		return h.Hint
	}
	return ""
}
