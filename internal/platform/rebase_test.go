package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	client "github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/reference"
)

// fleet is a platform and registries with images of the reference's in them.
type fleet struct {
	*testing.T
	*Platform
	events *[]event.Event
}

func newFleet(t *testing.T) fleet {
	p, events := newPlatform(t)
	var mu sync.Mutex
	sink := p.Events
	p.Events = event.Func(func(e event.Event) {
		mu.Lock()
		defer mu.Unlock()
		sink.Emit(e)
	})
	p.Registry = func(insecure []string) (*registry.Registry, error) {
		return registry.New(registry.Options{Insecure: insecure, Events: p.Events})
	}
	return fleet{t, p, events}
}

// requests counts what a registry is asked for.
type requests struct {
	mu   sync.Mutex
	seen []string
	deny string // part of the path of what must not be put, "" for nothing
}

func (r *requests) take(match string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.seen {
		if strings.Contains(s, match) {
			n++
		}
	}
	return n
}

func (r *requests) clear() {
	r.mu.Lock()
	r.seen = nil
	r.mu.Unlock()
}

func (f fleet) registry() (host string, seen *requests) {
	f.Helper()
	seen = &requests{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.mu.Lock()
		seen.seen = append(seen.seen, r.Method+" "+r.URL.String())
		denied := seen.deny != "" && r.Method == http.MethodPut && strings.Contains(r.URL.Path, seen.deny)
		seen.mu.Unlock()
		if denied {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	f.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), seen
}

func (f fleet) push(ref string, img v1.Image) string {
	f.Helper()
	parsed, err := name.ParseReference(ref)
	if err == nil {
		err = client.Write(parsed, img)
	}
	f.ok(err)
	return f.digest(img)
}

func (f fleet) pull(ref string) v1.Image {
	f.Helper()
	parsed, err := name.ParseReference(ref)
	f.ok(err)
	img, err := client.Image(parsed)
	f.ok(err)
	return img
}

func (f fleet) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f fleet) digest(img v1.Image) string {
	f.Helper()
	h, err := img.Digest()
	f.ok(err)
	return h.String()
}

func (f fleet) id(img v1.Image) string {
	f.Helper()
	id, err := image.ID(img)
	f.ok(err)
	return id
}

func (f fleet) rebase(req RebaseRequest) ([]Rebased, error) {
	if req.Jobs == 0 {
		req.Jobs = 3
	}
	if req.Pull == "" {
		req.Pull = PullAlways
	}
	return f.Rebase(f.Context(), req)
}

// all rebases, and everything must go well.
func (f fleet) all(result string, req RebaseRequest) []Rebased {
	f.Helper()
	results, err := f.rebase(req)
	f.ok(err)
	for _, r := range results {
		if r.Result != result {
			f.Fatalf("%s is %s, want %s", r.Name, r.Result, result)
		}
	}
	return results
}

// dpkg is a line of dpkg's list.
func dpkg(name, version string) string {
	return fmt.Sprintf("Package: %s\nStatus: install ok installed\nArchitecture: amd64\nVersion: %s\n\n", name, version)
}

func runOf(t *testing.T, version string) v1.Image {
	return reference.Run(t, func(c *v1.ConfigFile) { c.Config.Labels[spec.BaseReleasedLabel] = version },
		map[string]string{"/lib/libc": version, "/var/lib/dpkg/status": dpkg("libc6", "1") + dpkg("gone", "1")},
		map[string]string{"/lib/ssl": version, "/var/lib/dpkg/status": dpkg("libc6", version) + dpkg("same", "9") + dpkg("only-"+version, "1")})
}

// Many images go onto the run image that they name; one that fails keeps no
// other from it.
func TestRebaseFleet(t *testing.T) {
	conform.Covers(t, 170, 176, 179)
	f := newFleet(t)
	host, seen := f.registry()
	old, next := runOf(t, "1"), runOf(t, "2")
	f.push(host+"/base/run:1", next)
	app := func(n string) reference.App {
		return reference.App{Run: old, Image: host + "/base/run:1", Reference: host + "/base/run@" + f.digest(old), Files: map[string]string{"n": n}}
	}
	var names []string
	before, want := map[string]string{}, map[string]string{}
	for i := range 8 {
		ref := fmt.Sprintf("%s/team/app%d:1", host, i)
		a := app(fmt.Sprint(i))
		before[ref] = f.push(ref, a.Make(t))
		a.Run, a.Reference = next, host+"/base/run@"+f.digest(next)
		want[ref] = f.digest(a.Make(t))
		names = append(names, ref)
	}
	never := app("never")
	never.Config = func(c *v1.ConfigFile) { c.Config.Labels[spec.RebasableLabel] = "false" }
	bad := []string{host + "/team/never", host + "/team/closed", host + "/team/gone"}
	f.push(bad[0], never.Make(t))
	closed := f.push(bad[1], app("closed").Make(t))
	seen.deny = "/team/closed/manifests/"
	seen.clear()
	f.all("planned", RebaseRequest{Images: names, Publish: true, DryRun: true})
	if n := seen.take("PUT ") + seen.take("POST "); n > 0 {
		t.Errorf("a dry run sent %d requests", n)
	}
	seen.clear()
	results, err := f.rebase(RebaseRequest{Images: append(bad, names...), Publish: true})
	if spec.ExitCode(err, 0) != spec.ExitRebase || !strings.Contains(err.Error(), "3 of 11 images were not rebased:\n"+bad[0]+": it is not safe to rebase") || errors.Is(err, image.ErrNotFound) || spec.HintOf(err) == "" {
		t.Errorf("error %v (exit code %d, hint %q)", err, spec.ExitCode(err, 0), spec.HintOf(err))
	}
	for i, r := range results {
		if i < len(bad) {
			if r.Name != bad[i] || r.Result != "failed" || r.Error == "" {
				t.Errorf("%+v", r)
			}
			continue
		}
		ref := names[i-len(bad)]
		if r.Name != ref || r.Result != "rebased" || r.Before != before[ref] || r.After != want[ref] || f.digest(f.pull(ref)) != want[ref] {
			t.Errorf("%+v, want %s", r, want[ref])
		}
		if d := cmp.Diff(spec.ReportImage{Tags: []string{ref}, Digest: want[ref], ManifestSize: r.Report.Image.ManifestSize}, r.Report.Image); d != "" || r.Report.Image.ManifestSize == 0 {
			t.Errorf("report (-want +got)\n%s", d)
		}
	}
	if got := f.digest(f.pull(bad[1])); got != closed || !strings.Contains(results[1].Error, "403") {
		t.Errorf("the closed one: %s, %s", got, results[1].Error)
	}
	// The run image is fetched once, no layer is.
	for _, blob := range []struct {
		match string
		want  int
	}{{"GET /v2/base/run/manifests/", 1}, {"GET /v2/base/run/blobs/", 1}, {"GET /v2/team/app0/blobs/", 2}, {"PUT /v2/team/app0/blobs/", 1}} {
		if n := seen.take(blob.match); n != blob.want {
			t.Errorf("%d requests %s, want %d", n, blob.match, blob.want)
		}
	}
	// Nothing is left to do.
	seen.clear()
	f.all("unchanged", RebaseRequest{Images: names, Publish: true})
	if n := seen.take("PUT ") + seen.take("POST "); n > 0 {
		t.Errorf("%d requests sent what is there", n)
	}
}

// With one image the error is its own.
func TestRebaseOneFailure(t *testing.T) {
	f := newFleet(t)
	host, _ := f.registry()
	_, err := f.rebase(RebaseRequest{Images: []string{host + "/gone"}, Publish: true})
	if !errors.Is(err, image.ErrNotFound) || spec.ExitCode(err, 0) != spec.ExitRebase {
		t.Error(err)
	}
	_, err = f.rebase(RebaseRequest{Images: []string{"not-here"}})
	if !errors.Is(err, image.ErrNotFound) || !strings.Contains(spec.HintOf(err), "--publish") {
		t.Errorf("%v (%s)", err, spec.HintOf(err))
	}
}

// An image of the store is put on a run image from a registry, which stays in
// the store for the next one and for builds.
func TestRebaseInStore(t *testing.T) {
	f := newFleet(t)
	host, seen := f.registry()
	old, next := runOf(t, "1"), runOf(t, "2")
	f.push(host+"/run:1", next)
	make := func(n string) v1.Image {
		return reference.App{Run: old, Image: host + "/run:1", Reference: "r", Files: map[string]string{"n": n}}.Make(t)
	}
	for _, n := range []string{"one", "two", "three"} {
		f.ok(f.Store.Write(t.Context(), n, make(n)))
	}
	f.ok(f.Store.Write(t.Context(), host+"/run:1", old)) // what the store has is not asked
	results := f.all("rebased", RebaseRequest{Images: []string{"one", "two", "three"}})
	for _, r := range results {
		img, err := f.Store.Image(t.Context(), r.Name)
		f.ok(err)
		f.ok(image.Validate(t.Context(), img, nil))
		if f.id(img) != r.ID || f.digest(img) != r.After {
			t.Errorf("%+v", r)
		}
	}
	if n := seen.take("GET /v2/run/blobs/"); n != 3 {
		t.Errorf("%d blobs of the run image were fetched, want its config and two layers", n)
	}
	run, err := f.Store.Image(t.Context(), host+"/run:1")
	f.ok(err)
	if f.digest(run) != f.digest(next) {
		t.Error("the new run image is not in the store")
	}
	f.all("unchanged", RebaseRequest{Images: []string{"one", "two", "three"}})
}

// pack's words for where a run image is looked for.
func TestRebasePullPolicy(t *testing.T) {
	f := newFleet(t)
	host, seen := f.registry()
	local, remote := runOf(t, "local"), runOf(t, "remote")
	f.push(host+"/run:1", remote)
	f.ok(f.Store.Write(t.Context(), host+"/run:1", local))
	f.ok(f.Store.Write(t.Context(), host+"/made/here:1", local))
	f.ok(f.Store.Write(t.Context(), "run", local))
	for _, tc := range []struct {
		policy PullPolicy
		run    string
		want   v1.Image // nil: an error
		asked  bool
	}{
		{PullAlways, host + "/run:1", remote, true},
		{PullIfNotPresent, host + "/run:1", local, false},
		{PullNever, host + "/run:1", local, false},
		{PullAlways, host + "/made/here:1", local, true},
		{PullAlways, "run", local, false},
		{PullNever, host + "/run:2", nil, false},
		{PullIfNotPresent, host + "/run:2", nil, true},
	} {
		app := reference.App{Run: runOf(t, "old"), Image: tc.run, Reference: "r"}.Make(t)
		f.ok(f.Store.Write(t.Context(), "app", app))
		seen.clear()
		results, err := f.rebase(RebaseRequest{Images: []string{"app"}, Pull: tc.policy, DryRun: true})
		switch {
		case tc.want == nil && !errors.Is(err, image.ErrNotFound):
			t.Errorf("%s %s: %v", tc.policy, tc.run, err)
		case tc.want == nil:
		case err != nil:
			t.Errorf("%s %s: %v", tc.policy, tc.run, err)
		case !strings.HasSuffix(results[0].Reference, "@"+f.digest(tc.want)):
			t.Errorf("%s %s: %s, want %s", tc.policy, tc.run, results[0].Reference, f.digest(tc.want))
		}
		if asked := seen.take("/v2/") > 0; asked != tc.asked {
			t.Errorf("%s %s: the registry was asked: %t", tc.policy, tc.run, asked)
		}
	}
}

// A mirror in the app's registry is taken, and asked for once for all images.
func TestRebaseMirror(t *testing.T) {
	f := newFleet(t)
	far, farSeen := f.registry()
	near, nearSeen := f.registry()
	next := runOf(t, "2")
	f.push(near+"/run:1", next)
	f.push(far+"/run:1", next)
	var names []string
	for i := range 4 {
		ref := fmt.Sprintf("%s/app%d", near, i)
		f.push(ref, reference.App{Run: runOf(t, "1"), Image: far + "/run:1", Mirrors: []string{near + "/run:1"}, Reference: "r"}.Make(t))
		names = append(names, ref)
	}
	farSeen.clear()
	nearSeen.clear()
	for _, r := range f.all("rebased", RebaseRequest{Images: names, Publish: true}) {
		if r.RunImage != near+"/run:1" {
			t.Errorf("%s is on %s", r.Name, r.RunImage)
		}
	}
	if n := farSeen.take("/v2/"); n > 0 {
		t.Errorf("the other registry was asked %d times", n)
	}
	if n := nearSeen.take("HEAD /v2/run/manifests/"); n != 1 {
		t.Errorf("the mirror was asked for %d times", n)
	}
}

// Layers of a run image in another registry, or in the store, are sent once;
// other images have them linked.
func TestRebaseAcrossRegistries(t *testing.T) {
	f := newFleet(t)
	from, fromSeen := f.registry()
	to, toSeen := f.registry()
	next := runOf(t, "2")
	f.push(from+"/run:1", next)
	local := reference.Run(t, nil, map[string]string{"/local": "2"})
	f.ok(f.Store.Write(t.Context(), "local/run", uncompressed(t, local)))
	for _, run := range []string{from + "/run:1", "local/run"} {
		var names []string
		for i := range 5 {
			ref := fmt.Sprintf("%s/%s%d", to, strings.Map(func(r rune) rune {
				if r >= 'a' && r <= 'z' {
					return r
				}
				return -1
			}, run), i)
			f.push(ref, reference.App{Run: runOf(t, "1"), Image: run, Reference: "r", Files: map[string]string{"n": fmt.Sprint(i)}}.Make(t))
			names = append(names, ref)
		}
		fromSeen.clear()
		toSeen.clear()
		for _, r := range f.all("rebased", RebaseRequest{Images: names, Publish: true}) {
			f.ok(image.Validate(t.Context(), f.pull(r.Name), nil))
		}
		if n := fromSeen.take("GET /v2/run/blobs/"); n > 3 {
			t.Errorf("%s: %d blobs of the run image were fetched", run, n)
		}
		layers := len(must(t)(next.Layers()))
		if run == "local/run" {
			layers = 1
		}
		if n := toSeen.take("mount="); n != 4*layers {
			t.Errorf("%s: %d layers were linked, want %d", run, n, 4*layers)
		}
		f.all("unchanged", RebaseRequest{Images: names, Publish: true})
	}
}

func must(t *testing.T) func([]v1.Layer, error) []v1.Layer {
	return func(l []v1.Layer, err error) []v1.Layer {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

// uncompressed is an image as kiln's store makes them.
func uncompressed(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	out, err := image.MapLayers(img, func(l v1.Layer) (v1.Layer, error) {
		rc, err := l.Uncompressed()
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(rc)
		return imagetest.Layer(t, body), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Files keep the names in them, and all else that a layout has.
func TestRebaseFiles(t *testing.T) {
	f := newFleet(t)
	host, _ := f.registry()
	dir := t.TempDir()
	old, next := runOf(t, "1"), runOf(t, "2")
	f.push(host+"/run:1", next)
	app := reference.App{Run: old, Image: host + "/run:1", Reference: "r"}.Make(t)
	layout := archive.Layout{Dir: filepath.Join(dir, "layout")}
	f.ok(layout.Write(t.Context(), "app", app))
	f.ok(layout.Write(t.Context(), "other", old))
	alone := archive.Layout{Dir: filepath.Join(dir, "alone")}
	f.ok(alone.Write(t.Context(), "v1", app))
	ociFile := archive.OCIArchive{Path: filepath.Join(dir, "oci.tar")}
	f.ok(ociFile.Write(t.Context(), "v2", app))
	dockerFile := archive.DockerArchive{Path: filepath.Join(dir, "docker.tar")}
	f.ok(dockerFile.Write(t.Context(), "me/app:3", app))
	names := []string{"oci:" + layout.Dir + ":app", "oci:" + alone.Dir, "oci-archive:" + ociFile.Path, "docker-archive:" + dockerFile.Path}
	results := f.all("rebased", RebaseRequest{Images: names})
	for i, at := range []struct {
		place archive.Place
		ref   string
		names [][]string
	}{{layout, "app", [][]string{{"app"}, {"other"}}}, {alone, "", [][]string{{"v1"}}}, {ociFile, "", [][]string{{"v2"}}}, {dockerFile, "", [][]string{{"me/app:3"}}}} {
		img, err := at.place.Image(t.Context(), at.ref)
		f.ok(err)
		f.ok(image.Validate(t.Context(), img, nil))
		if f.id(img) != results[i].ID || f.id(img) == f.id(app) {
			t.Errorf("%s holds %s, want %s", results[i].Name, f.id(img), results[i].ID)
		}
		got, err := at.place.Names(t.Context())
		f.ok(err)
		if d := cmp.Diff(at.names, got); d != "" {
			t.Errorf("%s: names (-want +got)\n%s", results[i].Name, d)
		}
	}
	if other, err := layout.Image(t.Context(), "other"); err != nil || f.digest(other) != f.digest(old) {
		t.Errorf("the other image of the layout: %v", err)
	}
	f.all("unchanged", RebaseRequest{Images: names})
}

// What would be lost is refused before anything is written.
func TestRebaseRefuses(t *testing.T) {
	f := newFleet(t)
	host, _ := f.registry()
	dir := t.TempDir()
	run := runOf(t, "1")
	app := reference.App{Run: run, Image: host + "/run:1", Reference: "r"}.Make(t)
	f.push(host+"/run:1", runOf(t, "2"))
	tag, err := name.NewTag(host + "/multi:1")
	f.ok(err)
	f.ok(client.WriteIndex(tag, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: app, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: f.Arch}}})))
	layout := archive.Layout{Dir: filepath.Join(dir, "layout")}
	f.ok(layout.Write(t.Context(), "a", app))
	f.ok(layout.Write(t.Context(), "b", app))
	f.ok(f.Store.Write(t.Context(), "app", app))
	for _, tc := range []struct {
		req  RebaseRequest
		want string
	}{
		{RebaseRequest{}, "no image"},
		{RebaseRequest{Images: []string{"UPPER"}}, "UPPER"},
		{RebaseRequest{Images: []string{"app@sha256:" + strings.Repeat("a", 64)}}, "app@sha256"},
		{RebaseRequest{Images: []string{"a", "b"}, Previous: "c"}, "--previous-image"},
		{RebaseRequest{Images: []string{"a"}, Jobs: -1}, "-1 jobs"},
		{RebaseRequest{Images: []string{"a"}, Pull: "sometimes"}, "sometimes"},
		{RebaseRequest{Images: []string{"oci:x"}, Publish: true}, "--publish"},
		{RebaseRequest{Images: []string{"app"}, Previous: "oci:" + layout.Dir + ":a"}, "places of different kinds"},
		{RebaseRequest{Images: []string{host + "/multi:1"}, Publish: true}, "is an index of several images"},
		{RebaseRequest{Images: []string{"oci:" + layout.Dir}}, "holds 2 images"},
	} {
		_, err := f.rebase(tc.req)
		if err == nil || !strings.Contains(err.Error(), tc.want) || spec.ExitCode(err, 0) != spec.ExitInvalidArgs || spec.HintOf(err) == "" {
			t.Errorf("%+v: error %v (exit code %d, hint %q), want %q", tc.req, err, spec.ExitCode(err, 0), spec.HintOf(err), tc.want)
		}
	}
	desc, err := client.Get(tag)
	f.ok(err)
	if !desc.MediaType.IsIndex() {
		t.Error("the index is gone")
	}
}

func TestNameInFile(t *testing.T) {
	one, none, two := []string{"one"}, []string(nil), []string{"a:1", "a:2"}
	for _, tc := range []struct {
		kind  DestinationKind
		names [][]string
		ref   string
		want  string // the error, with "error: "
	}{
		{ToLayout, [][]string{one}, "", "one"},
		{ToLayout, [][]string{none}, "", ""},
		{ToLayout, [][]string{one, two}, "x", "x"},
		{ToLayout, [][]string{one, none}, "", "error: holds 2 images"},
		{ToLayout, nil, "", "error: holds 0 images"},
		{ToOCIArchive, [][]string{one, none}, "one", "error: holds 2 images, and all but one would be lost"},
		{ToDockerArchive, [][]string{two}, "a:1", "error: several names"},
		{ToDockerArchive, [][]string{one}, "one", "one"},
	} {
		got, err := nameInFile(t.Context(), tc.kind, named{tc.names}, "file", tc.ref)
		if want, failing := strings.CutPrefix(tc.want, "error: "); failing {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %q, %v", tc, got, err)
			}
		} else if err != nil || got != tc.want {
			t.Errorf("%+v: %q, %v", tc, got, err)
		}
	}
}

// named is a file with images of these names.
type named struct{ names [][]string }

func (n named) Names(context.Context) ([][]string, error)       { return n.names, nil }
func (n named) Image(context.Context, string) (v1.Image, error) { return nil, image.ErrNotFound }
func (n named) Write(context.Context, string, v1.Image) error   { return errors.New("not here") }

// -previous-image is read and left alone.
func TestRebasePrevious(t *testing.T) {
	conform.Covers(t, 178)
	f := newFleet(t)
	host, _ := f.registry()
	f.push(host+"/run:1", runOf(t, "2"))
	before := f.push(host+"/app:old", reference.App{Run: runOf(t, "1"), Image: host + "/run:1", Reference: "r"}.Make(t))
	r := f.all("rebased", RebaseRequest{Images: []string{host + "/app:new"}, Previous: host + "/app:old", Publish: true})[0]
	if f.digest(f.pull(host+"/app:old")) != before || f.digest(f.pull(host+"/app:new")) != r.After || r.Before != before {
		t.Errorf("%+v", r)
	}
	// Also one that is on its base already gets the new name.
	f.all("rebased", RebaseRequest{Images: []string{host + "/other:new"}, Previous: host + "/app:new", Publish: true})
	if f.digest(f.pull(host+"/other:new")) != r.After {
		t.Error("another image under the new name")
	}
}

// Each change is said: layers, labels, packages.
func TestRebasePlan(t *testing.T) {
	f := newFleet(t)
	host, seen := f.registry()
	old, next := runOf(t, "1"), runOf(t, "2")
	f.push(host+"/run:1", next)
	for i := range 3 {
		f.push(fmt.Sprintf("%s/app%d", host, i), reference.App{Run: old, Image: host + "/run:1", Reference: "old", Files: map[string]string{"n": fmt.Sprint(i)}}.Make(t))
	}
	seen.clear()
	req := RebaseRequest{Images: []string{host + "/app0", host + "/app1", host + "/app2"}, Publish: true, DryRun: true}
	r := f.all("planned", req)[0]
	if r.NoPackages == "" || r.Packages != nil || seen.take("GET /v2/run/blobs/") != 1 {
		t.Errorf("without --packages: %+v", r)
	}
	req.Packages = true
	seen.clear()
	r = f.all("planned", req)[0]
	if d := cmp.Diff([]event.Change{{Name: "libc6", Old: "1", New: "2"}, {Name: "only-1", Old: "1"}, {Name: "only-2", New: "1"}}, r.Packages); d != "" || r.NoPackages != "" {
		t.Errorf("packages (-want +got)\n%s %s", d, r.NoPackages)
	}
	if n := seen.take("GET /v2/run/blobs/"); n != 3 {
		t.Errorf("%d blobs of the run image were read for three images, want its config and two layers", n)
	}
	if len(r.Removed) != 2 || len(r.Added) != 2 || r.Added[0].Size == 0 || r.Removed[0].DiffID == r.Added[0].DiffID {
		t.Errorf("layers %v %v", r.Removed, r.Added)
	}
	top := func(img v1.Image) string {
		cf, err := img.ConfigFile()
		f.ok(err)
		return cf.RootFS.DiffIDs[1].String()
	}
	want := []event.Change{
		{Name: "io.buildpacks.base.released", Old: "1", New: "2"},
		{Name: "io.buildpacks.lifecycle.metadata: runImage.reference", Old: "old", New: host + "/run@" + f.digest(next)},
		{Name: "io.buildpacks.lifecycle.metadata: runImage.topLayer", Old: top(old), New: top(next)},
	}
	if d := cmp.Diff(want, r.Labels); d != "" {
		t.Errorf("labels (-want +got)\n%s", d)
	}
	// Nor is a run image fetched for an app that is here.
	f.ok(f.Store.Write(t.Context(), "app", f.pull(host+"/app0")))
	if r := f.all("planned", RebaseRequest{Images: []string{"app"}, DryRun: true})[0]; r.NoPackages == "" {
		t.Errorf("of the store: %+v", r)
	}
	// Layers of the store need not be fetched.
	f.ok(f.Store.Write(t.Context(), "old", old))
	f.ok(f.Store.Write(t.Context(), "new", next))
	req.Packages = false
	if r := f.all("planned", req)[0]; len(r.Packages) != 3 {
		t.Errorf("from the store: %+v", r)
	}
}

// Who is told to stop says nothing of images that were not finished.
func TestRebaseStops(t *testing.T) {
	f := newFleet(t)
	ctx, cancel := context.WithCancel(t.Context())
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/app2/manifests/") && r.Method == http.MethodGet {
			cancel()
			<-r.Context().Done()
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	f.push(host+"/run:1", runOf(t, "2"))
	var names []string
	for i := range 4 {
		names = append(names, fmt.Sprintf("%s/app%d", host, i))
		f.push(names[i], reference.App{Run: runOf(t, "1"), Image: host + "/run:1", Reference: "r", Files: map[string]string{"n": fmt.Sprint(i)}}.Make(t))
	}
	results, err := f.Rebase(ctx, RebaseRequest{Images: names, Publish: true, Jobs: 1, Pull: PullAlways})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "stopped after 2 of 4 images") {
		t.Error(err)
	}
	if len(results) != 2 || slices.ContainsFunc(results, func(r Rebased) bool { return r.Result != "rebased" }) {
		t.Errorf("%+v", results)
	}
}

// FuzzLabelChanges: whatever the lifecycle's label of an image is, compared with
// itself nothing changes, and compared with nothing everything does.
func FuzzLabelChanges(f *testing.F) {
	f.Add(`{"app":[{"sha":"x"}],"runImage":{"topLayer":"y","":null},"a":{}}`)
	f.Add("[[],1]")
	f.Add("{")
	with := func(t *testing.T, label string) v1.Image {
		img, err := image.Append(emptyImage(), nil, func(cf *v1.ConfigFile) {
			if label != "" {
				cf.Config.Labels = map[string]string{spec.LifecycleMetadataLabel: label}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	f.Fuzz(func(t *testing.T, label string) {
		if !utf8.ValidString(label) {
			return // no config has it
		}
		same, err := labelChanges(with(t, label), with(t, label))
		if err != nil || len(same) > 0 {
			t.Errorf("%q: %v, %v", label, same, err)
		}
		if _, err := labelChanges(with(t, ""), with(t, label)); err != nil {
			t.Errorf("%q: %v", label, err)
		}
	})
}
