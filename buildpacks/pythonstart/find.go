package pythonstart

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// framework is one that the source can be searched for.
type framework struct {
	name string // for people
	// class is what an app object is made of.
	class string
	// dist is the distribution that brings it.
	dist  string
	async bool // ASGI in place of WSGI
}

var frameworks = []framework{
	{"Flask", "Flask", "flask", false},
	{"FastAPI", "FastAPI", "fastapi", true},
	{"Quart", "Quart", "quart", true},
	{"Starlette", "Starlette", "starlette", true},
}

// found is an app in the source.
type found struct {
	framework
	file   string // relative to the app directory
	module string // as Python imports it from dir
	object string // "app", or "create_app" for a factory
	made   bool   // object is a factory
	dir    string // working directory relative to the app, "" for itself
	rank   int
}

// django is a Django project.
type django struct {
	dir        string // of manage.py, relative to the app, "" for itself
	wsgi, asgi string // modules, "" if there is none
}

// source is what was read of the app.
type source struct {
	files []string // *.py, relative, sorted by depth and name
	text  map[string]string
}

// Limits of the search: a start file is small and near the top.
const (
	maxDepth = 4
	maxFiles = 2000
	maxSize  = 512 << 10 // bytes
)

// skipped are directories that hold no code of the app.
var skipped = []string{"node_modules", "venv", "env", "site-packages", "vendor", "tests", "test", "migrations", "__pycache__", "docs", "examples"}

// read collects the Python files near the top of the app.
func read(app string) (source, error) {
	s := source{text: map[string]string{}}
	err := filepath.WalkDir(app, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		rel, _ := filepath.Rel(app, path)
		depth := strings.Count(rel, "/")
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains(skipped, d.Name()) || depth >= maxDepth) {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || filepath.Ext(rel) != ".py" || len(s.files) >= maxFiles {
			return nil
		}
		info, err := d.Info()
		if err != nil || info.Size() > maxSize {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		s.files = append(s.files, rel)
		s.text[rel] = string(text)
		return nil
	})
	slices.SortFunc(s.files, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(a, "/"), strings.Count(b, "/")), cmp.Compare(likely(a), likely(b)), cmp.Compare(a, b))
	})
	return s, err
}

// usual are names of files that start apps, the likeliest first.
var usual = []string{"app.py", "main.py", "wsgi.py", "asgi.py", "application.py", "server.py", "api.py", "run.py", "__init__.py"}

func likely(file string) int {
	if i := slices.Index(usual, filepath.Base(file)); i >= 0 {
		return i
	}
	return len(usual)
}

// factory are functions that make an app, as Flask's documentation names them.
var factory = regexp.MustCompile(`(?m)^def\s+(create_app|make_app)\s*\(`)

// called is an app object that a factory makes.
var called = regexp.MustCompile(`(?m)^(app|application)\s*(?::[^=\n]+)?=\s*(?:[\w.]+\.)?(?:create_app|make_app)\s*\(`)

// apps finds the app objects of the frameworks, the likeliest first.
func (s source) apps() []found {
	var all []found
	uses := s.uses()
	for _, file := range s.files {
		text := s.text[file]
		for _, f := range frameworks {
			object := regexp.MustCompile(`(?m)^([A-Za-z_]\w*)\s*(?::[^=\n]+)?=\s*(?:[\w.]+\.)?` + f.class + `\s*\(`)
			if m := object.FindStringSubmatch(text); m != nil {
				all = append(all, found{framework: f, file: file, object: m[1], rank: 0})
				continue
			}
			if !uses[f.name] || f.async && !strings.Contains(text, f.class+"(") {
				continue
			}
			if m := called.FindStringSubmatch(text); m != nil && likely(file) < len(usual) {
				all = append(all, found{framework: f, file: file, object: m[1], rank: 0})
			} else if m := factory.FindStringSubmatch(text); m != nil && strings.Contains(text, f.class+"(") {
				all = append(all, found{framework: f, file: file, object: m[1], made: true, rank: 1})
			}
		}
	}
	for i := range all {
		all[i].dir, all[i].module = s.module(all[i].file)
	}
	slices.SortStableFunc(all, func(a, b found) int { return cmp.Compare(a.rank, b.rank) })
	return all
}

// uses are the frameworks that some file makes an app of.
func (s source) uses() map[string]bool {
	m := map[string]bool{}
	for _, text := range s.text {
		for _, f := range frameworks {
			m[f.name] = m[f.name] || strings.Contains(text, f.class+"(")
		}
	}
	return m
}

// module is how Python imports a file, and from which directory: src/ without
// an __init__.py is where imports start, not a package.
func (s source) module(file string) (dir, module string) {
	if rest, ok := strings.CutPrefix(file, "src/"); ok {
		if _, pkg := s.text["src/__init__.py"]; !pkg {
			dir, file = "src", rest
		}
	}
	module = strings.TrimSuffix(file, ".py")
	if rest, ok := strings.CutSuffix(module, "/__init__"); ok {
		module = rest
	}
	return dir, strings.ReplaceAll(module, "/", ".")
}

// django finds a Django project: its manage.py, and the modules for servers.
func (s source) django() (django, bool) {
	for _, file := range s.files {
		if filepath.Base(file) != "manage.py" || !strings.Contains(s.text[file], "django") {
			continue
		}
		d := django{dir: strings.TrimPrefix(filepath.Dir(file), ".")}
		for _, f := range s.files {
			rel := f
			if d.dir != "" {
				var in bool
				if rel, in = strings.CutPrefix(f, d.dir+"/"); !in {
					continue
				}
			}
			module := strings.ReplaceAll(strings.TrimSuffix(rel, ".py"), "/", ".")
			switch {
			case d.wsgi == "" && strings.Contains(s.text[f], "get_wsgi_application"):
				d.wsgi = module
			case d.asgi == "" && strings.Contains(s.text[f], "get_asgi_application"):
				d.asgi = module
			}
		}
		return d, true
	}
	return django{}, false
}

// scripts are names of programs at the top of an app, the likeliest first.
var scripts = []string{"main.py", "app.py", "server.py", "run.py", "__main__.py", "index.py"}

// script is the program to run when there is no framework: one with a usual
// name, else the only file there is.
func (s source) script() string {
	for _, name := range scripts {
		if _, ok := s.text[name]; ok {
			return name
		}
	}
	var top []string
	for _, f := range s.files {
		if !strings.Contains(f, "/") && f != "setup.py" && f != "conftest.py" {
			top = append(top, f)
		}
	}
	if len(top) == 1 {
		return top[0]
	}
	return ""
}
