package buildpack

import (
	"os"
	"testing"

	"github.com/kilnbuild/kiln/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Init() // buildpacks run under this program
	os.Exit(m.Run())
}
