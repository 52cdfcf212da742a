// Package event says what happened, as typed values. Whoever works emits them;
// the text, JSON and other views only render them. Nobody parses our own log.
package event

import "time"

// Event is one thing that happened.
type Event interface {
	// Kind is the event's stable name in JSON, in kebab-case.
	Kind() string
}

// Sink takes events. It must be safe for concurrent use and must not block for long.
type Sink interface {
	Emit(Event)
}

// Discard is a Sink that drops everything.
var Discard Sink = discard{}

type discard struct{}

func (discard) Emit(Event) {}

// Func makes a Sink of a function.
type Func func(Event)

// Emit calls f.
func (f Func) Emit(e Event) { f(e) }

// PhaseStarted and PhaseFinished frame one lifecycle phase.
type PhaseStarted struct {
	Phase string `json:"phase"`
}

// PhaseFinished says how long a phase took and, if it failed, why.
type PhaseFinished struct {
	Phase   string        `json:"phase"`
	Elapsed time.Duration `json:"elapsed"`
	Err     string        `json:"error,omitempty"`
}

// Level is the weight of a Message.
type Level string

// Levels, as the lifecycle's -log-level names them.
const (
	Debug Level = "debug"
	Info  Level = "info"
	Warn  Level = "warn"
	Error Level = "error"
)

// Message is a sentence for people.
type Message struct {
	Level Level  `json:"level"`
	Text  string `json:"text"`
}

// Output is a piece of what a buildpack printed: whole lines where possible.
type Output struct {
	Buildpack string `json:"buildpack"` // id@version
	Stderr    bool   `json:"stderr,omitempty"`
	Text      string `json:"text"`
}

// BuildpackStarted comes before the output of a buildpack's executable, or of
// an image extension's.
type BuildpackStarted struct {
	Buildpack string `json:"buildpack"` // id@version
	Op        string `json:"op"`        // detect, generate, build
}

// BuildpackFinished follows it.
type BuildpackFinished struct {
	Buildpack string        `json:"buildpack"`
	Op        string        `json:"op"`
	ExitCode  int           `json:"exitCode"`
	Elapsed   time.Duration `json:"elapsed"`
}

// GroupTried is the result of one group in detection.
type GroupTried struct {
	Group  []MemberResult `json:"group"`
	Passed bool           `json:"passed"`
	// Plan says why the members that passed could not agree, when that is what failed.
	Plan string `json:"plan,omitempty"`
	// Problems are the same as values, of the combination of alternatives that
	// came nearest.
	Problems []PlanProblem `json:"problems,omitempty"`
	// Entries are the build plan of a group that passed, with those that image
	// extensions meet.
	Entries []PlanEntry `json:"entries,omitempty"`
}

// PlanEntry is one dependency of a build plan: who provides it, and who
// requires it.
type PlanEntry struct {
	Name      string        `json:"name"`
	Providers []string      `json:"providers"` // id@version
	Requires  []Requirement `json:"requires"`
}

// Requirement is what one buildpack wants of a dependency.
type Requirement struct {
	By       string         `json:"by"` // id@version
	Metadata map[string]any `json:"metadata,omitempty"`
}

// Detected is what one bin/detect said. It is told once for each buildpack and
// image extension, in however many groups that is.
type Detected struct {
	Buildpack string `json:"buildpack"` // id@version
	Extension bool   `json:"extension,omitempty"`
	// ExitCode is -1 if there was none.
	ExitCode int `json:"exitCode"`
	// Err says why it could not be run, or its build plan not be read.
	Err string `json:"error,omitempty"`
	// Output is the end of what it printed.
	Output string `json:"output,omitempty"`
	// Alternatives are what it provides and requires: the top of its plan, and
	// each of its or.
	Alternatives []Alternative `json:"alternatives,omitempty"`
}

// Alternative is one way in which a buildpack can take part, by the names of
// dependencies.
type Alternative struct {
	Provides []string `json:"provides,omitempty"`
	Requires []string `json:"requires,omitempty"`
}

// MemberResult is one member of a GroupTried.
type MemberResult struct {
	Buildpack string `json:"buildpack"` // id@version
	Optional  bool   `json:"optional,omitempty"`
	// Result is pass, fail, error, skipped (plan or exec env).
	Result string `json:"result"`
	// Reason is the buildpack's own words (last lines of its output), or ours.
	Reason string `json:"reason,omitempty"`
	// Extension tells image extensions from buildpacks.
	Extension bool `json:"extension,omitempty"`
	// Alternative is the one of several that won, from 1; 0 if there was no choice.
	Alternative int `json:"alternative,omitempty"`
}

// Layer says what became of one layer of the image or cache.
type Layer struct {
	Name string `json:"name"` // e.g. kiln/pip-install:packages, app, launcher
	// Action is reused, new, or rebuilt.
	Action string `json:"action"`
	// Target is image or cache.
	Target string `json:"target"`
	DiffID string `json:"diffID"`
	// Read is how many bytes of the layer's tree were read and tarred to learn
	// the diffID: 0 for a layer that nobody touched.
	Read    int64         `json:"read"`
	Elapsed time.Duration `json:"elapsed"`
}

// Progress is the state of one long transfer or computation. Total is 0 when unknown.
type Progress struct {
	ID    string `json:"id"`
	Text  string `json:"text"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
	Unit  string `json:"unit"` // bytes or items
	End   bool   `json:"end,omitempty"`
}

// ImageWritten is one finished destination, after it was read back and validated.
type ImageWritten struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Digest string `json:"digest,omitempty"`
	Size   int64  `json:"size"`
}

// Built ends a build that went well: what was made, and where the time went.
type Built struct {
	Names  []string `json:"names"` // every place, as the user named it
	ID     string   `json:"id"`
	Size   int64    `json:"size"` // bytes, of the layers as the destination keeps them
	Reused int      `json:"reused"`
	New    int      `json:"new"`
	// Isolation is the sandbox tier that the buildpacks ran in.
	Isolation string        `json:"isolation"`
	Phases    []PhaseTime   `json:"phases"`
	Elapsed   time.Duration `json:"elapsed"`
}

// PhaseTime is how long one phase took.
type PhaseTime struct {
	Phase   string        `json:"phase"`
	Elapsed time.Duration `json:"elapsed"`
}

// Failed is the last event of a command that did not go well. The same is
// said on standard error, for people.
type Failed struct {
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
	ExitCode int    `json:"exitCode"`
}

// Isolation records the sandbox tier that foreign steps ran in.
type Isolation struct {
	Tier   string `json:"tier"`
	Detail string `json:"detail,omitempty"`
}

// Kind implements Event.
func (PhaseStarted) Kind() string { return "phase-started" }

// Kind implements Event.
func (PhaseFinished) Kind() string { return "phase-finished" }

// Kind implements Event.
func (Message) Kind() string { return "message" }

// Kind implements Event.
func (Output) Kind() string { return "output" }

// Kind implements Event.
func (BuildpackStarted) Kind() string { return "buildpack-started" }

// Kind implements Event.
func (BuildpackFinished) Kind() string { return "buildpack-finished" }

// Kind implements Event.
func (Detected) Kind() string { return "detected" }

// Kind implements Event.
func (GroupTried) Kind() string { return "group-tried" }

// Kind implements Event.
func (Layer) Kind() string { return "layer" }

// Kind implements Event.
func (Progress) Kind() string { return "progress" }

// Kind implements Event.
func (ImageWritten) Kind() string { return "image-written" }

// Kind implements Event.
func (Built) Kind() string { return "built" }

// Kind implements Event.
func (Failed) Kind() string { return "error" }

// Kind implements Event.
func (Isolation) Kind() string { return "isolation" }
