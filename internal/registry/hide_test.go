package registry

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

func TestHide(t *testing.T) {
	var c client
	c.keepSecret(authn.FromConfig(authn.AuthConfig{Username: "me", Password: "pa-ss", Auth: "bWU6cGEtc3M="}))
	for in, want := range map[string]string{
		"you sent Basic bWU6cGEtc3M=":             "you sent Basic [hidden]",
		"you sent bWU6cGEtc3M= and pa-ss":         "you sent [hidden] and [hidden]",
		"you sent Bearer eyJhbGciOi.J9_x-1.y":     "you sent Bearer [hidden]",
		"authorization: basic c29tZW9uZTplbHNl==": "authorization: basic [hidden]",
		"Basic authentication required":           "Basic authentication required",
		"bearer token has expired":                "bearer token has expired",
		"answered 401 Unauthorized":               "answered 401 Unauthorized",
	} {
		if got := c.hide(in); got != want {
			t.Errorf("hide(%q) = %q, want %q", in, got, want)
		}
	}
}
