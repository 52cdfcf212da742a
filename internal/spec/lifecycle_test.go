package spec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/test/conform"
)

func TestReadLifecycle(t *testing.T) {
	conform.Covers(t, 200)
	for name, test := range map[string]struct {
		text              string
		platform, version []string
		bad               string
	}{
		"both": {"[api]\nplatform='0.3'\nbuildpack='0.2'\n[apis.platform]\nsupported=['0.3','0.4']\ndeprecated=['0.3']\n[apis.buildpack]\nsupported=['0.2']\n[lifecycle]\nversion='1.2.3'\n",
			[]string{"0.3", "0.4"}, []string{"1.2.3"}, ""},
		"legacy":          {"[api]\nplatform='0.3'\nbuildpack='0.2'\n[lifecycle]\nversion='0.9.0'\n", []string{"0.3"}, []string{"0.9.0"}, ""},
		"neither":         {"[lifecycle]\nversion='1'\n", nil, nil, "apis.buildpack.supported"},
		"one is missing":  {"[api]\nbuildpack='0.2'\n", nil, nil, "apis.platform.supported"},
		"not a version":   {"[apis.platform]\nsupported=['new']\n[apis.buildpack]\nsupported=['0.2']\n", nil, nil, "lifecycle.toml:2:"},
		"only deprecated": {"[apis.platform]\nsupported=['0.3']\ndeprecated=['0.2']\n[apis.buildpack]\nsupported=['0.2']\n", nil, nil, "is deprecated, and not supported"},
		"wrong type":      {"[apis.platform]\nsupported='0.3'\n", nil, nil, "apis.platform.supported"},
	} {
		l, err := ReadLifecycle([]byte(test.text), "lifecycle.toml")
		if test.bad != "" {
			if err == nil || !strings.Contains(err.Error(), test.bad) {
				t.Errorf("%s: %v, want %q", name, err, test.bad)
			}
			continue
		}
		if diff := cmp.Diff(test.platform, l.APIs.Platform.Supported); err != nil || diff != "" || l.Lifecycle.Version != test.version[0] {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	b, err := encode.TOML(OwnLifecycle())
	if err != nil {
		t.Fatal(err)
	}
	l, err := ReadLifecycle(b, "lifecycle.toml")
	if diff := cmp.Diff(OwnLifecycle(), l); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestHighestCommon(t *testing.T) {
	conform.Covers(t, 200)
	for _, test := range []struct {
		a, b []string
		want string
	}{
		{[]string{"0.9", "0.10", "0.12"}, []string{"0.3", "0.10", "0.9", "0.11"}, "0.10"},
		{[]string{"0.9"}, []string{"0.10"}, ""},
		{nil, []string{"0.10"}, ""},
		{[]string{"1", "0.99", "junk"}, []string{"1.0", "junk"}, "1"},
	} {
		if got, ok := HighestCommon(test.a, test.b); got != test.want || ok != (test.want != "") {
			t.Errorf("%q and %q: %q %t", test.a, test.b, got, ok)
		}
	}
}
