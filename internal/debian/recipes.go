package debian

// CNB is the user that kiln's images run as (CNB_USER_ID, CNB_GROUP_ID).
var CNB = User{Name: "cnb", UID: 1000, GID: 1000, Home: "/home/cnb"}

// unneeded is what packages depend on only for their maintainer scripts or for a
// rescue at the console: an image that is never configured or booted runs
// without it.
var unneeded = []string{"debconf", "dpkg", "perl-base", "openssl", "mawk", "libpam-runtime", "readline-common"}

// static is what every image has: no program, no library.
var static = []string{"base-files", "netbase", "tzdata", "media-types", "ca-certificates"}

// libc is the C and C++ run time with OpenSSL: what a compiled program needs.
var libc = []string{"libc6", "libgcc-s1", "libstdc++6", "libssl3", "zlib1g"}

// RunImage is the recipe of kiln's run image: certificates, C and C++ libraries,
// a shell with coreutils, and the C libraries of the interpreters that
// buildpacks bring.
func RunImage(suite, arch string) Recipe {
	return Recipe{
		Request: Request{Suite: suite, Arch: arch, Exclude: unneeded, Groups: []Group{
			{Name: "base", Packages: append(append([]string{}, static...), libc...)},
			{Name: "tools", Packages: []string{"dash", "bash", "coreutils"}},
			{Name: "libraries", Packages: []string{
				"libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libreadline8", "libncursesw6",
				"libtinfo6", "libuuid1", "libdb5.3", "libcrypt1",
			}},
		}},
		User: CNB,
	}
}

// BuildImage is the recipe of kiln's build image: Debian's essential packages, a
// C and C++ tool chain, git, and the tools that build scripts take for granted.
func BuildImage(suite, arch string) Recipe {
	return Recipe{
		Request: Request{Suite: suite, Arch: arch, Groups: []Group{
			{Name: "base", Packages: append(append([]string{}, static...), libc...)},
			{Name: "tools", Packages: []string{
				"base-passwd", "bash", "bsdutils", "coreutils", "dash", "debianutils", "diffutils", "findutils", "grep",
				"gzip", "hostname", "libc-bin", "ncurses-base", "ncurses-bin", "perl-base", "sed", "sysvinit-utils", "tar",
				"util-linux", "dpkg", "bzip2", "curl", "file", "gawk", "git", "jq", "openssl", "patch", "procps",
				"unzip", "xz-utils", "zip",
			}},
			{Name: "toolchain", Packages: []string{
				"gcc", "g++", "make", "pkg-config", "libc6-dev", "zlib1g-dev", "libssl-dev", "libffi-dev",
				"libexpat1", "libsqlite3-0", "libreadline8", "libncursesw6", "libuuid1", "libdb5.3",
			}},
		}, Exclude: []string{"debconf", "libpam-runtime", "login", "passwd"}},
		User: CNB,
	}
}
