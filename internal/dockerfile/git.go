package dockerfile

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// repository is a source of ADD in Git: REMOTE[#REF[:SUBDIR]].
type repository struct {
	remote, ref, subdir string
	exclude             []string
	keep                bool // .git goes along
}

// isGit tells whether docker would take a source for a Git repository.
func isGit(source string) bool {
	for _, scheme := range []string{"git://", "ssh://", "git@"} {
		if strings.HasPrefix(source, scheme) {
			return true
		}
	}
	if u, err := url.Parse(source); err == nil && isURL(source) {
		return strings.HasSuffix(u.Path, ".git")
	}
	return false
}

// unclear is what no name of a branch, tag or commit has (git-check-ref-format).
var unclear = regexp.MustCompile(`^[-/]|\.\.|[\x00-\x20~^:?*\[\\\x7f]`)

// parseGit refuses what is not fetched here.
func parseGit(source string) (repository, error) {
	remote, fragment, _ := strings.Cut(source, "#")
	r := repository{remote: remote}
	r.ref, r.subdir, _ = strings.Cut(fragment, ":")
	if strings.HasPrefix(remote, "ssh://") || strings.HasPrefix(remote, "git@") {
		return r, spec.WithHint(fmt.Errorf("%s: Git by ssh is not supported: no agent's keys are to be had in a build", source),
			"name it by https://, or clone it before the build")
	}
	u, err := url.Parse(remote)
	switch {
	case err != nil:
		return r, err
	case u.RawQuery != "":
		return r, spec.WithHint(fmt.Errorf("%s: a query is not supported for Git", source), "write URL#REF:SUBDIR")
	case unclear.MatchString(r.ref):
		return r, fmt.Errorf("%s: %q can be no name of a branch, tag or commit", source, r.ref)
	}
	return r, nil
}

// said is the remote without a password.
func (r repository) said() string {
	if u, err := url.Parse(r.remote); err == nil {
		return u.Redacted()
	}
	return r.remote
}

func isCommit(ref string) bool {
	_, err := hex.DecodeString(ref)
	return err == nil && (len(ref) == 40 || len(ref) == 64)
}

// part is the source at the commit that it names now. It is fetched only once
// the layer has to be made.
func (r repository) part(ctx context.Context, m Machine, scratch, checksum string) (part, error) {
	if m.Offline() {
		return part{}, fmt.Errorf("%s: there is no network", r.said())
	}
	commit, err := r.commit(ctx, scratch)
	if err != nil {
		return part{}, err
	}
	if !strings.HasPrefix(commit, strings.ToLower(checksum)) {
		return part{}, fmt.Errorf("%s: is commit %s, not --checksum=%s", r.said(), commit, checksum)
	}
	digest := fmt.Sprintf("git %s %q %q", commit, r.subdir, r.exclude)
	if r.keep {
		digest += " with " + r.said()
	}
	return part{digest: digest, write: func(ctx context.Context, w io.Writer) error {
		return r.send(ctx, scratch, commit, w)
	}}, nil
}

// commit asks the remote what the ref is. A branch goes before a tag.
func (r repository) commit(ctx context.Context, scratch string) (string, error) {
	if isCommit(r.ref) {
		return strings.ToLower(r.ref), nil
	}
	ref := cmp.Or(r.ref, "HEAD")
	var listed string
	err := r.inClone(scratch, func(g git) (err error) {
		listed, err = g.run(ctx, "ls-remote", "--", r.remote, ref, ref+"^{}")
		return err
	})
	if err != nil {
		return "", err
	}
	found := map[string]string{}
	for line := range strings.Lines(listed) {
		if id, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && isCommit(id) {
			found[name] = id
		}
	}
	for _, name := range []string{"refs/heads/" + ref, "refs/tags/" + ref + "^{}", "refs/tags/" + ref, ref + "^{}", ref} {
		if id := found[name]; id != "" {
			return id, nil
		}
	}
	return "", spec.WithHint(fmt.Errorf("%s: has no branch or tag %s", r.said(), ref), "a commit needs all of its digits")
}

// send writes the files of a commit as writeSources does.
func (r repository) send(ctx context.Context, scratch, commit string, w io.Writer) error {
	return r.inClone(scratch, func(g git) error {
		if err := g.checkOut(ctx, r.remote, commit); err != nil {
			return err
		}
		tree := layer.Stack{Upper: g.tree}
		real, info, err := resolve(tree, path.Join("/", r.subdir)[1:])
		if err != nil {
			return fmt.Errorf("directory %s: %w", r.subdir, err)
		}
		if !info.IsDir() || real == ".git" || strings.HasPrefix(real, ".git/") {
			return fmt.Errorf("directory %s: %w", r.subdir, syscall.ENOTDIR)
		}
		meta := filepath.Join(g.tree, ".git")
		if r.keep && real == "" {
			err = g.tidy(ctx, r.said(), commit)
		} else {
			err = os.RemoveAll(meta)
		}
		if err == nil {
			err = plainModes(g.tree)
		}
		if err != nil {
			return err
		}
		from := layer.Stack{Upper: filepath.Join(g.tree, real)}
		return writeSources(ctx, w, from, nil, Sources{Paths: []string{"."}, Exclude: r.exclude})
	})
}

// inClone calls work with an empty repository, which is removed afterwards.
func (r repository) inClone(scratch string, work func(git) error) error {
	dir, err := os.MkdirTemp(scratch, "kiln-git-*")
	if err != nil {
		return err
	}
	g := git{home: filepath.Join(dir, "home"), tree: filepath.Join(dir, "tree")}
	err = errors.Join(os.Mkdir(g.home, 0o700), os.Mkdir(g.tree, 0o700))
	if err == nil {
		if err = work(g); err != nil {
			err = fmt.Errorf("%s: %w", r.said(), err)
		}
	}
	return errors.Join(err, layer.Remove(dir))
}

// git is this host's git in a place of its own. It is a plain client: it knows
// nothing of its user's settings, hooks or credentials.
type git struct{ home, tree string }

const (
	gitTime   = time.Hour // at most for one call
	maxListed = 16 << 20  // bytes of what one call prints
)

// run runs a command of git and gives what it prints.
func (g git) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, gitTime, fmt.Errorf("took longer than %s", gitTime))
	defer cancel()
	args = append([]string{"-c", "core.hooksPath=/dev/null", "-c", "credential.helper=", "-c", "gc.auto=0"}, args...)
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env = g.tree, g.env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, said := &printed{left: maxListed}, &printed{left: 4 << 10}
	cmd.Stdout, cmd.Stderr = out, said
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", spec.WithHint(errors.New("git is missing, which sources in Git need"), "install git")
	case ctx.Err() != nil:
		return "", fmt.Errorf("git: %w", context.Cause(ctx))
	case err != nil:
		return "", fmt.Errorf("git: %w: %s", err, strings.ToValidUTF8(strings.TrimSpace(said.String()), "?"))
	case out.left == 0:
		return "", fmt.Errorf("git: printed more than %d bytes", maxListed)
	}
	return out.String(), nil
}

// env is all that git sees of this process: the way to the network.
func (g git) env() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.home, "LC_ALL=C", "TZ=UTC",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_ALLOW_PROTOCOL=https:http:git", "GIT_CEILING_DIRECTORIES=" + filepath.Dir(g.tree),
		"GIT_HTTP_LOW_SPEED_LIMIT=1", fmt.Sprintf("GIT_HTTP_LOW_SPEED_TIME=%d", int(quietTime.Seconds())),
	}
	for _, name := range proxyNames {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for ours, its := range map[string]string{"SSL_CERT_FILE": "GIT_SSL_CAINFO", "SSL_CERT_DIR": "GIT_SSL_CAPATH"} {
		if v := os.Getenv(ours); v != "" {
			env = append(env, its+"="+v)
		}
	}
	return env
}

// checkOut fetches a commit: alone, or with all branches and tags from a server
// that gives nothing else.
func (g git) checkOut(ctx context.Context, remote, commit string) error {
	format := "sha1"
	if len(commit) == 64 {
		format = "sha256"
	}
	if _, err := g.run(ctx, "init", "--quiet", "--template=", "--initial-branch=main", "--object-format="+format); err != nil {
		return err
	}
	if _, err := g.run(ctx, "fetch", "--quiet", "--depth=1", "--no-tags", "--", remote, commit); err != nil {
		if ctx.Err() != nil {
			return err
		}
		if _, err := g.run(ctx, "fetch", "--quiet", "--no-tags", "--", remote, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"); err != nil {
			return err
		}
	}
	if _, err := g.run(ctx, "cat-file", "commit", commit); err != nil {
		return fmt.Errorf("has no commit %s: %w", commit, err)
	}
	files, err := g.run(ctx, "ls-tree", "-r", "-z", commit)
	if err != nil {
		return err
	}
	for file := range strings.SplitSeq(files, "\x00") {
		if strings.HasPrefix(file, "160000 ") {
			_, name, _ := strings.Cut(file, "\t")
			return spec.WithHint(fmt.Errorf("%s is a submodule: submodules are not fetched", name), "clone it before the build, or with RUN git clone --recurse-submodules")
		}
	}
	_, err = g.run(ctx, "checkout", "--quiet", "--detach", commit)
	return err
}

// tidy makes .git tell of the commit and nothing of how it came: the same
// commit is the same bytes.
func (g git) tidy(ctx context.Context, remote, commit string) error {
	meta := filepath.Join(g.tree, ".git")
	for _, name := range []string{"FETCH_HEAD", "ORIG_HEAD", "logs", "packed-refs", "refs/remotes", "refs/tags", "index"} {
		if err := os.RemoveAll(filepath.Join(meta, name)); err != nil {
			return err
		}
	}
	err := os.WriteFile(filepath.Join(meta, "shallow"), []byte(commit+"\n"), 0o600)
	for _, args := range [][]string{
		{"config", "remote.origin.url", remote},
		{"-c", "pack.threads=1", "repack", "-a", "-d", "-f", "-q"},
		{"prune", "--expire=now"},
		{"read-tree", "HEAD"}, // an index that knows no times
	} {
		if err == nil {
			_, err = g.run(ctx, args...)
		}
	}
	return err
}

// plainModes undoes what the umask did: git knows only whether a file is a program.
func plainModes(dir string) error {
	return filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.Type() == fs.ModeSymlink {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.IsDir() || info.Mode()&0o100 != 0 {
			return os.Chmod(name, 0o755)
		}
		return os.Chmod(name, 0o644)
	})
}

// printed keeps the beginning of what is written.
type printed struct {
	bytes.Buffer
	left int
}

func (b *printed) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	b.Buffer.Write(p[:n])
	return len(p), nil
}
