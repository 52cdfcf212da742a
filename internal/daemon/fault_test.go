package daemon

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

// fake is a daemon that misbehaves: answers are what it says to "METHOD /path"
// without the version.
type fake struct {
	*httptest.Server
	answers map[string]http.HandlerFunc
}

func newFake(t *testing.T, answers map[string]http.HandlerFunc) *fake {
	f := &fake{answers: answers}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fake) host() string { return "tcp://" + f.Listener.Addr().String() }

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/_ping" {
		w.Header().Set("Api-Version", "1.41")
		return
	}
	if r.URL.Path == "/v1.41/info" && f.answers["GET /info"] == nil {
		say(map[string]any{})(w, r)
		return
	}
	if answer := f.answers[r.Method+" "+strings.TrimPrefix(r.URL.Path, "/v1.41")]; answer != nil {
		answer(w, r)
		return
	}
	refuse(http.StatusNotFound, "no such thing")(w, r)
}

func say(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) }
}

func refuse(status int, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
	}
}

func cut(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(make([]byte, n))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// hang reads, for else the server does not see that the client has gone.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// about is what an honest daemon tells of img.
func about(t *testing.T, img v1.Image) map[string]any {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"Id": imagetest.ID(t, img), "Created": cf.Created, "Architecture": cf.Architecture, "Os": cf.OS, "Config": cf.Config,
		"RootFS": map[string]any{"Type": "layers", "Layers": cf.RootFS.DiffIDs},
	}
}

func pathOf(ref string) string { return "GET /images/" + ref + "/json" }

func TestReadFaults(t *testing.T) {
	img := imagetest.Random(t, 1)
	id := imagetest.ID(t, img)
	good := about(t, img)
	without := func(key string, value any) map[string]any {
		m := about(t, img)
		m[key] = value
		return m
	}
	const ref = "docker.io/library/app:latest"
	history := "GET /images/" + id + "/history"
	for name, test := range map[string]struct {
		inspect, history http.HandlerFunc
		is               error
		says             string
	}{
		"broken":         {refuse(500, "disk\x1b[31m on fire\n"), nil, image.ErrUnavailable, "disk [31m on fire (500)"},
		"not for you":    {refuse(403, "go away"), nil, image.ErrUnauthorized, "go away"},
		"gone meanwhile": {say(good), nil, image.ErrNotFound, "no such thing"},
		"cut":            {cut(10), nil, io.ErrUnexpectedEOF, "inspect image app"},
		"cut history":    {say(good), cut(10), io.ErrUnexpectedEOF, "history of image " + id},
		"silent":         {hang, nil, image.ErrUnavailable, "no answer in 300ms"},
		"no JSON":        {say("nonsense"), nil, nil, "inspect image app"},
		"no ID":          {say(without("Id", "")), nil, image.ErrInvalid, "ID"},
		"path as ID":     {say(without("Id", "sha256:../../../containers")), nil, image.ErrInvalid, "ID"},
		"no config":      {say(without("Config", nil)), nil, image.ErrInvalid, "no config"},
		"no digests":     {say(without("RootFS", map[string]any{"Layers": []string{"x"}})), nil, nil, "inspect image app"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, nil, nil, "Found (302)"},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, Options{Host: newFake(t, map[string]http.HandlerFunc{pathOf(ref): test.inspect, history: test.history}).host()})
			d.quick = 300 * time.Millisecond
			_, err := d.Image(t.Context(), "app")
			if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %v and %q", err, test.is, test.says)
			}
		})
	}
}

// TestSaveFaults: an image that was transferred is the one that was asked for,
// or an error.
func TestSaveFaults(t *testing.T) {
	img := foreign(t)
	d := open(t, Options{Host: daemontest.All(t)[0].Host})
	if err := d.Write(t.Context(), "faults/save", img); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(t.Context(), "faults/other", imagetest.Random(t, 2)); err != nil {
		t.Fatal(err)
	}
	saved := func(ref string) []byte {
		t.Helper()
		in, err := d.lookup(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := d.request(t.Context(), "save", "GET", d.base+"/images/"+in.ID+"/get", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	whole, other := saved("faults/save"), saved("faults/other")
	send := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
	}
	id := hashOf(img.(*rawImage).config).String()
	containerd := say(map[string]any{"DriverStatus": [][]string{{"driver-type", "io.containerd.snapshotter.v1"}}})
	for name, test := range map[string]struct {
		get http.HandlerFunc
		is  error
	}{
		"good":           {send(whole), nil},
		"renamed":        {send(whole), nil}, // a store that has names of its own for images
		"renamed, other": {send(other), image.ErrInvalid},
		"cut": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(whole[:len(whole)/2])
			panic(http.ErrAbortHandler)
		}, io.ErrUnexpectedEOF},
		"short":       {send(whole[:2000]), io.ErrUnexpectedEOF},
		"empty":       {send(nil), nil},
		"other image": {send(other), image.ErrInvalid},
		"refused":     {refuse(500, "no room"), image.ErrUnavailable},
		"stuck": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(whole[:512])
			w.(http.Flusher).Flush()
			hang(w, r)
		}, image.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			m, id, info := about(t, img), id, say(map[string]any{})
			if strings.HasPrefix(name, "renamed") {
				id, info = "sha256:"+strings.Repeat("7", 64), containerd
			}
			m["Id"] = id
			d := open(t, Options{Host: newFake(t, map[string]http.HandlerFunc{
				pathOf("docker.io/library/app:latest"): say(m), "GET /images/" + id + "/history": say([]any{}), "GET /images/" + id + "/get": test.get, "GET /info": info,
			}).host()})
			d.stall = 300 * time.Millisecond
			opened, err := d.Image(t.Context(), "app")
			if err != nil {
				t.Fatal(err)
			}
			err = image.Validate(t.Context(), opened, nil)
			if (err == nil) != (name == "good" || name == "renamed") || test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("got %v, want %v", err, test.is)
			}
		})
	}
}

// loaded reads what a client has loaded: names and sizes of the tar.
func loaded(r io.Reader) (map[string]int64, error) {
	files := map[string]int64{}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		files[h.Name] = h.Size
	}
}

// TestDaemonsThatNeedEveryLayer: what is refused, or comes out as another image,
// is sent again as a whole; then it is taken, or an error says what happened.
func TestDaemonsThatNeedEveryLayer(t *testing.T) {
	base := imagetest.Random(t, 2)
	img := imagetest.Extended(t, base)
	other := imagetest.Extended(t, imagetest.Random(t, 3))
	id := imagetest.ID(t, img)
	inContainerd := func(v1.Image) map[string]any {
		m := about(t, img)
		m["Id"] = "sha256:" + strings.Repeat("5", 64)
		return m
	}
	another := func(config func(map[string]any)) map[string]any {
		m := inContainerd(img)
		config(m)
		return m
	}
	containerd := map[string]any{"DriverStatus": [][]string{{"driver-type", "io.containerd.snapshotter.v1"}}}
	overlay := map[string]any{"DriverStatus": [][]string{{"Backing Filesystem", "extfs"}}}
	loadError := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `{"errorDetail":{"message":"invalid diffID"},"error":"invalid diffID"}`)
	}
	for name, test := range map[string]struct {
		blank  http.HandlerFunc // answers a load with blanks
		full   http.HandlerFunc
		result map[string]any // what is there after a full load
		info   map[string]any
		loads  int
		fails  string
	}{
		"refuses blanks":          {refuse(500, "missing layer"), say(nil), about(t, img), overlay, 2, ""},
		"says so in the answer":   {loadError, say(nil), about(t, img), overlay, 2, ""},
		"refuses everything":      {loadError, loadError, nil, overlay, 2, "invalid diffID"},
		"takes and loses it":      {say(nil), say(nil), nil, overlay, 2, "another image of it: none"},
		"makes another image":     {say(nil), say(nil), about(t, other), overlay, 2, "another image of it: sha256:"},
		"containerd":              {say(nil), say(nil), inContainerd(img), containerd, 2, ""},
		"containerd, other layer": {say(nil), say(nil), another(func(m map[string]any) { m["RootFS"] = about(t, other)["RootFS"] }), containerd, 2, "another image"},
		"containerd, other label": {say(nil), say(nil), another(func(m map[string]any) { m["Config"] = v1.Config{Labels: map[string]string{"x": "y"}} }), containerd, 2, "another image"},
		"other IDs, no reason":    {say(nil), say(nil), inContainerd(img), overlay, 2, "another image"},
	} {
		t.Run(name, func(t *testing.T) {
			loads := 0
			state := about(t, base) // what the name means before
			f := newFake(t, nil)
			inspect := func(w http.ResponseWriter, r *http.Request) {
				if state == nil {
					refuse(404, "no such image")(w, r)
					return
				}
				say(state)(w, r)
			}
			f.answers = map[string]http.HandlerFunc{
				pathOf("docker.io/library/app:latest"): inspect,
				"GET /info":                            say(test.info),
				pathOf(id): func(w http.ResponseWriter, r *http.Request) {
					if state == nil || state["Id"] != id {
						refuse(404, "no such image")(w, r)
						return
					}
					inspect(w, r)
				},
				"POST /images/load": func(w http.ResponseWriter, r *http.Request) {
					loads++
					files, err := loaded(r.Body)
					if err != nil {
						t.Error(err)
					}
					if _, blank := files["blank_0"]; blank {
						test.blank(w, r)
						return
					}
					if len(files) < 5 {
						t.Errorf("loaded %v", files)
					}
					state = test.result
					test.full(w, r)
				},
			}
			d := open(t, Options{Host: f.host()})
			err := d.Write(t.Context(), "app", img)
			if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) || loads != test.loads {
				t.Errorf("%d loads, %v, want %d, %q", loads, err, test.loads, test.fails)
			}
			if name != "containerd" {
				return
			}
			f.answers["GET /images/"+state["Id"].(string)+"/history"] = say([]any{})
			got, err := Described{d}.Image(t.Context(), "app")
			if err != nil {
				t.Fatal(err)
			}
			if imagetest.ID(t, got) != id {
				t.Errorf("read back, it is %s", imagetest.ID(t, got))
			}
			if pin, err := d.Pin("app", got); err != nil || pin != state["Id"] {
				t.Errorf("pinned as %s, %v", pin, err)
			}
			if loads = 0; d.Write(t.Context(), "app", imagetest.Extended(t, other)) == nil || loads != 1 {
				t.Errorf("%d loads, though the daemon is known to need every layer", loads)
			}
		})
	}
}

func TestLoadFaults(t *testing.T) {
	img := imagetest.Random(t, 2)
	for name, test := range map[string]struct {
		load http.HandlerFunc
		says string
	}{
		"answers at once": {refuse(507, "no room"), "no room"},
		"hangs":           {hang, "nothing was moved for 300ms"},
		"hangs up":        {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "load image"},
		"stutters": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, `{"stream":"Loaded`)
		}, "read what it says"},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, Options{Host: newFake(t, map[string]http.HandlerFunc{"POST /images/load": test.load}).host()})
			d.stall = 300 * time.Millisecond
			if err := d.Write(t.Context(), "app", img); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q", err, test.says)
			}
		})
	}
}

func TestVersions(t *testing.T) {
	for version, fine := range map[string]bool{"1.24": true, "1.51": true, "1.99": true, "2.0": true, "1.23": false, "": false, "x": false, "1.41/../..": false} {
		var asked string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Api-Version", version)
			asked = r.URL.Path
			if asked != "/_ping" {
				w.WriteHeader(http.StatusNotFound)
			}
		}))
		defer server.Close()
		d, err := Open(t.Context(), Options{Host: "tcp://" + server.Listener.Addr().String()})
		if (err == nil) != fine {
			t.Errorf("version %q: %v", version, err)
		}
		if err != nil {
			continue
		}
		want := version
		if version != "1.24" {
			want = newest
		}
		if _, err := d.Image(t.Context(), "app:1"); !errors.Is(err, image.ErrNotFound) || !strings.HasPrefix(asked, "/v"+want+"/images/") {
			t.Errorf("version %q: asked for %s, %v", version, asked, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestKeepAlive: the only connection does not get old, nor does a request wait
// for the use that keeps it young.
func TestKeepAlive(t *testing.T) {
	pings := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		select {
		case pings <- r.RemoteAddr:
		default:
		}
	}))
	defer server.Close()
	d := open(t, Options{Host: "tcp://" + server.Listener.Addr().String(), OneConnection: true, often: time.Millisecond})
	first := <-pings
	for range 5 {
		if again := <-pings; again != first {
			t.Errorf("connections from %s and %s", first, again)
		}
	}
	if _, err := d.get(t.Context(), "connect", "/_ping", nil); err != nil {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	server := httptest.NewTLSServer(&fake{})
	defer server.Close()
	host := "tcp://" + server.Listener.Addr().String()
	dir := t.TempDir()
	config := func(verify bool) *tls.Config {
		t.Helper()
		c, err := ClientTLS(dir, verify)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	dial := func(c *tls.Config) error {
		d, err := Open(t.Context(), Options{Host: host, TLS: c})
		if err == nil {
			err = d.Close()
		}
		return err
	}
	if dial(nil) == nil || dial(config(true)) == nil {
		t.Error("an unknown certificate is taken")
	}
	if err := dial(config(false)); err != nil {
		t.Error(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o644); err != nil {
		t.Fatal(err)
	}
	trusting := config(true)
	trusting.ServerName = "example.com" // what httptest's certificate is for
	if err := dial(trusting); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("none"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ClientTLS(dir, true); err == nil || !strings.Contains(err.Error(), "ca.pem") {
		t.Error(err)
	}
}

// FuzzInspect: whatever a daemon tells, the result is an image that agrees with
// itself, or an error.
func FuzzInspect(f *testing.F) {
	hash := `"sha256:` + strings.Repeat("a", 64) + `"`
	f.Add([]byte(`{"Id":`+hash+`,"Config":{"Env":["A=b"]},"RootFS":{"Layers":[`+hash+`]},"Os":"linux","Created":"2024-01-01T00:00:00.5Z"}`), []byte(`[{"Created":1,"CreatedBy":"x","Size":5},{"Size":0}]`))
	f.Add([]byte(`{"Id":`+hash+`,"Config":{}}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, told, history []byte) {
		var in inspected
		var entries []struct{ Size int64 }
		if json.Unmarshal(told, &in) != nil || json.Unmarshal(history, &entries) != nil || in.check() != nil {
			return
		}
		var steps []step
		for _, e := range entries {
			steps = append(steps, step{size: max(0, e.Size)})
		}
		markEmpty(steps, len(in.RootFS.Layers))
		r := &remote{in: in, described: true, config: in.configFile(steps)}
		r.manifest = manifestOf(in, r, sizesOf(steps, len(in.RootFS.Layers)))
		if n := len(r.config.History); n > 0 && len(sizesOf(steps, len(in.RootFS.Layers))) != len(in.RootFS.Layers) {
			t.Errorf("%d entries of history for %d layers", n, len(in.RootFS.Layers))
		}
		img, err := image.Append(r, nil, nil)
		if err != nil {
			return
		}
		m, err := img.Manifest()
		if err != nil || len(m.Layers) != len(in.RootFS.Layers) {
			t.Errorf("%d layers, %v", len(m.Layers), err)
		}
	})
}

// FuzzAnswers: whatever a daemon says, an error of it is one line of bounded
// length, and a load is fine only if every document of the answer is one that
// says no error.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"stream":"Loaded image"}`+"\n"+`{"errorDetail":{"message":"no"},"error":"no space\r\non device"}`), 500)
	f.Add([]byte(`{"message":"no such image\u001b[31m"}`), 404)
	f.Add([]byte(`{"error":7}`), 599)
	f.Add([]byte(`[{}]`), 0)
	f.Add([]byte(nil), 418)
	f.Fuzz(func(t *testing.T, answer []byte, status int) {
		for _, err := range []error{refusal(status, answer), loadAnswer(bytes.NewReader(answer))} {
			said, ok := errors.AsType[*refused](err)
			if ok && (strings.ContainsFunc(said.message, unicode.IsControl) || len(said.message) > 4<<10) {
				t.Errorf("says %q", said.message)
			}
		}
		if loadAnswer(bytes.NewReader(answer)) != nil || bytes.Count(bytes.ToLower(answer), []byte("err")) > 1 {
			return // several of one name: which of them counts is not our question
		}
		for d := json.NewDecoder(bytes.NewReader(answer)); ; {
			var said map[string]any
			err := d.Decode(&said)
			if err == io.EOF {
				return
			}
			if text, _ := said["error"].(string); err != nil || text != "" {
				t.Errorf("loaded, and the answer is %q (%v)", answer, err)
				return
			}
		}
	})
}
