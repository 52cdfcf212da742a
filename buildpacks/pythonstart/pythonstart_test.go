package pythonstart

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/buildpacks/kit"
	"github.com/kilnbuild/kiln/test/filetree"
)

const (
	flaskApp = "from flask import Flask\napp = Flask(__name__)\n"
	fastApp  = "from fastapi import FastAPI\n\napi: FastAPI = FastAPI()\n"
	manage   = "import os\nfrom django.core.management import execute_from_command_line\n"
	wsgi     = "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n"
	asgi     = "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n"
)

// planOf runs plan in an app of these files.
func planOf(t *testing.T, files, env map[string]string) (s start, err error) {
	t.Helper()
	dir := filetree.New(t, files)
	bp := filepath.Join(t.TempDir(), "buildpack.toml")
	text, err := os.ReadFile("buildpack.toml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bp, text, 0o644); err != nil {
		t.Fatal(err)
	}
	list := []string{"CNB_BUILDPACK_DIR=" + filepath.Dir(bp), "CNB_BUILD_PLAN_PATH=" + filepath.Join(filepath.Dir(bp), "plan")}
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	var out strings.Builder
	kit.Run(t.Context(), kit.Buildpack{Detect: func(_ context.Context, d *kit.Detection) ([]kit.Plan, error) {
		s, err = plan(&d.Context)
		return nil, err
	}}, kit.Invocation{Args: []string{"detect"}, Env: list, Dir: dir, Stdout: &out})
	return s, err
}

func TestPlan(t *testing.T) {
	type want struct {
		command string
		dir     string
		port    string
		env     map[string]string
	}
	flaskEnv := func(name string) map[string]string {
		return map[string]string{"FLASK_APP": name, "FLASK_RUN_HOST": "0.0.0.0"}
	}
	uvicornEnv := map[string]string{"UVICORN_HOST": "0.0.0.0"}
	tests := map[string]struct {
		files, env map[string]string
		want       want
	}{
		"the talk's app": {
			map[string]string{"app.py": flaskApp, "requirements.txt": "Flask==2.0.2"}, nil,
			want{"python -m flask run", "", "5000", flaskEnv("app:app")},
		},
		"flask with gunicorn": {
			map[string]string{"hello.py": flaskApp, "requirements.txt": "flask\nGunicorn"}, nil,
			want{"gunicorn hello:app", "", "8000", map[string]string{}},
		},
		"flask in a package": {
			map[string]string{"site/__init__.py": "import flask\nserver = flask.Flask(__name__)\n", "setup.py": "", "requirements.txt": "flask"}, nil,
			want{"python -m flask run", "", "5000", flaskEnv("site:server")},
		},
		"a factory": {
			map[string]string{"site/__init__.py": "from flask import Flask\ndef create_app():\n    app = Flask(__name__)\n    return app\n", "requirements.txt": "flask\ngunicorn"}, nil,
			want{"gunicorn site:create_app()", "", "8000", map[string]string{}},
		},
		"a factory that is called": {
			map[string]string{"site/__init__.py": "from flask import Flask\ndef create_app():\n    app = Flask(__name__)\n    return app\n",
				"wsgi.py": "from site import create_app\n\napp = create_app()\n", "requirements.txt": "flask\ngunicorn"}, nil,
			want{"gunicorn wsgi:app", "", "8000", map[string]string{}},
		},
		"src": {
			map[string]string{"src/app.py": flaskApp, "requirements.txt": "flask\ngunicorn"}, nil,
			want{"gunicorn app:app", "src", "8000", map[string]string{}},
		},
		"app before others": {
			map[string]string{"a.py": flaskApp, "app.py": "from flask import Flask\nmine = Flask(__name__)", "tests/app.py": flaskApp, "requirements.txt": "flask\ngunicorn"}, nil,
			want{"gunicorn app:mine", "", "8000", map[string]string{}},
		},
		"fastapi": {
			map[string]string{"main.py": fastApp, "requirements.txt": "fastapi\nuvicorn[standard]\ngunicorn"}, nil,
			want{"uvicorn main:api", "", "8000", uvicornEnv},
		},
		"fastapi[standard]": {
			map[string]string{"pkg/web.py": fastApp, "requirements.txt": "-r base.txt", "base.txt": "fastapi[standard]"}, nil,
			want{"uvicorn pkg.web:api", "", "8000", uvicornEnv},
		},
		"fastapi factory": {
			map[string]string{"main.py": "from fastapi import FastAPI\ndef create_app() -> FastAPI:\n    return FastAPI()\n", "requirements.txt": "fastapi\nuvicorn"}, nil,
			want{"uvicorn main:create_app --factory", "", "8000", uvicornEnv},
		},
		"django with gunicorn": {
			map[string]string{"manage.py": manage, "proj/wsgi.py": wsgi, "proj/asgi.py": asgi, "requirements.txt": "Django\ngunicorn"}, nil,
			want{"gunicorn proj.wsgi:application", "", "8000", map[string]string{}},
		},
		"django with uvicorn, deeper": {
			map[string]string{"back/manage.py": manage, "back/proj/wsgi.py": wsgi, "back/proj/asgi.py": asgi, "requirements.txt": "django\nuvicorn"}, nil,
			want{"uvicorn proj.asgi:application", "back", "8000", uvicornEnv},
		},
		"django alone": {
			map[string]string{"manage.py": manage, "proj/wsgi.py": wsgi, "requirements.txt": "django"}, nil,
			want{"", "", "8000", map[string]string{}}, // runserver.py comes with the layer
		},
		"a script": {
			map[string]string{"main.py": "print(1)", "other.py": "", "requirements.txt": "requests"}, nil,
			want{"python main.py", "", "8000", nil},
		},
		"the only file": {
			map[string]string{"hello.py": "print(1)"}, nil,
			want{"python hello.py", "", "8000", nil},
		},
		"named": {
			map[string]string{"x.py": flaskApp, "requirements.txt": "flask\ngunicorn"}, map[string]string{"BP_PYTHON_START_APP": "pkg.mod:make()"},
			want{"gunicorn pkg.mod:make()", "", "8000", map[string]string{}},
		},
		"other requirements": {
			map[string]string{"app.py": flaskApp, "prod.txt": "flask\ngunicorn"}, map[string]string{"BP_PIP_REQUIREMENT": "prod.txt"},
			want{"gunicorn app:app", "", "8000", map[string]string{}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := planOf(t, tt.files, tt.env)
			if err != nil {
				t.Fatal(err)
			}
			if s.process == nil {
				t.Fatal("no process")
			}
			got := want{strings.Join(s.process.Command, " "), s.process.WorkingDir, s.port, s.env}
			if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(want{})); d != "" {
				t.Error(d)
			}
			if s.runserver != (tt.want.command == "") {
				t.Errorf("runserver %v", s.runserver)
			}
		})
	}
}

func TestPlanFails(t *testing.T) {
	tests := map[string]struct {
		files, env map[string]string
		says       string
	}{
		"nothing":          {nil, nil, "no Python file"},
		"no start":         {map[string]string{"a.py": "", "b.py": ""}, nil, "no Flask, FastAPI or Django app, no main.py"},
		"requirements":     {map[string]string{"requirements.txt": "x"}, nil, "no Flask, FastAPI or Django app"},
		"no server":        {map[string]string{"main.py": fastApp, "requirements.txt": "fastapi"}, nil, "a FastAPI app in main.py, but no server for it: add uvicorn"},
		"named strangely":  {map[string]string{"main.py": ""}, map[string]string{"BP_PYTHON_START_APP": "main"}, "not of the form module:object"},
		"only vendored py": {map[string]string{"node_modules/x.py": flaskApp, ".venv/app.py": flaskApp}, nil, "no Python file"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := planOf(t, tt.files, tt.env)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%+v, %v; want %s", s, err, tt.says)
			}
		})
	}
}

func TestProcfileIsEnough(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"alone":     {"Procfile": "web: x"},
		"no server": {"Procfile": "web: x", "main.py": fastApp, "requirements.txt": "fastapi"},
	} {
		s, err := planOf(t, files, nil)
		if err != nil || s.process != nil {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if s, err := planOf(t, nil, map[string]string{"BP_PROCFILE_DEFAULT_PROCESS": "x"}); err != nil || s.process != nil {
		t.Errorf("variable: %+v, %v", s, err)
	}
}
