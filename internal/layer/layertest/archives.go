package layertest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Archives is the table. Names and links may have $OUT, the directory that the
// archive aims at, and $UP, which leads there from wherever the archive is
// unpacked.
func Archives() []Archive {
	return slices.Concat(names(), links(), hardLinks(), roots(), kinds(), whiteouts(), attributes(), headers(), formats())
}

// names are entries whose names lead elsewhere.
func names() []Archive {
	list := []Archive{
		{Name: "parent", Why: "CVE-2026-28406 (kaniko), CVE-2018-1002207", Want: Unsafe, make: tarOf(file("../outside/new", "x"))},
		{Name: "up to the root and down", Why: "CVE-2026-28406", Want: Unsafe, make: tarOf(file("$UP/canary", "x"))},
		{Name: "parent in the middle", Why: "CVE-2018-1103 (source-to-image)", Want: Unsafe, make: tarOf(file("a/../../outside/canary", "x"))},
		{Name: "parent that comes back", Why: "a lexical check lets it through", Want: Unsafe, make: tarOf(dir("a"), file("a/../b", "x"))},
		{Name: "parent after a link", Why: "cleaned lexically it is another file than the kernel's", Want: Unsafe, make: tarOf(symlink("l", "$OUT/dir/deep"), file("l/../new", "x"))},
		{Name: "parent at the end", Why: "names the directory above", Want: Unsafe, make: tarOf(dir("a/..").withMode("777"))},
		{Name: "two parents at the end", Why: "mode of the directory above", Want: Unsafe, make: tarOf(dir("a/../..").withMode("777"))},
		{Name: "parent alone", Why: "mode of the directory above", Want: Unsafe, make: tarOf(dir("..").withMode("777"))},
		{Name: "parent with a slash", Why: "CVE-2025-22873 (Go os.Root)", Want: Unsafe, make: tarOf(dir("../").withMode("777"))},
		{Name: "parent after a dot", Why: "CVE-2024-0406 (archiver)", Want: Unsafe, make: tarOf(file("./../outside/new", "x"))},
		{Name: "parent after slashes", Why: "the first component is empty", Want: Unsafe, make: tarOf(file("//..//../outside/new", "x"))},
		{Name: "parent with doubled slashes", Why: "a filter for ../ misses it", Want: Unsafe, make: tarOf(file("a//..//..//outside//new", "x"))},
		{Name: "absolute", Why: "CVE-2014-9357 (docker)", Want: Contained, make: tarOf(file("$OUT/canary", "x"))},
		{Name: "absolute directory", Why: "mode of a directory of the host", Want: Contained, make: tarOf(dir("$OUT/dir").withMode("777"))},
		{Name: "absolute with slashes", Why: "only the first slash is cut off", Want: Contained, make: tarOf(file("//$OUT/canary", "x"))},
		{Name: "absolute through /proc", Why: "CVE-2019-5736 (runc)", Want: Contained, make: tarOf(file("/proc/self/cwd/new", "x"))},
		{Name: "backslashes", Why: "CVE-2025-3445 (archiver)", Want: Contained, make: tarOf(file(`..\..\outside\new`, "x"))},
		{Name: "names that only look like a parent", Why: "they are honest", Want: Contained, make: tarOf(file("...", "x"), file("..x", "x"), file("x..", "x"), file("a/..b/c", "x"))},
		{Name: "path of a PAX record", Why: "CVE-2021-32803 (node-tar): the name checked is not the name used", Want: Unsafe, make: tarOf(file("honest", "x").with("path", "$UP/canary"))},
		{Name: "absolute path of a PAX record", Why: "as above", Want: Contained, make: tarOf(file("honest", "x").with("path", "$OUT/canary"))},
		{Name: "GNU long name", Why: "as above, in the other format", Want: Unsafe, make: tarOf(
			entry{kind: 'L', name: "././@LongLink", body: strings.Repeat("../", 60) + "tmp/kiln-new\x00", magic: gnu}, entry{kind: '0', name: "honest", magic: gnu})},
		{Name: "GNU long name and PAX path", Why: "readers differ in which counts", Want: Contained, make: tarOf(
			entry{kind: 'L', name: "././@LongLink", body: "honest\x00", magic: gnu}, file("x", "").with("path", "../outside/new"))},
		{Name: "PAX path for several entries", Why: "a global header that names all files", Want: Skipped, make: tarOf(
			entry{kind: 'g', name: "g", body: paxRecord("path", "../../../../outside/new")}, file("honest", "x"))},
		{Name: "PAX path that is empty", Why: "CVE-2022-41725: the header's own name counts again", Want: Unsafe, make: tarOf(file("../outside/new", "x").with("path", ""))},
		{Name: "NUL in the name", Why: "C code sees another name", Want: Contained, make: tarOf(file("a\x00/../../outside/new", "x"))},
		{Name: "NUL in a PAX path", Why: "as above", Want: Broken, make: tarOf(file("a", "x").with("path", "a\x00/../../outside/new"))},
		{Name: "NUL in a GNU long name", Why: "as above", Want: Contained, make: tarOf(
			entry{kind: 'L', name: "././@LongLink", body: "a\x00/../../outside/new", magic: gnu}, entry{kind: '0', name: "b", magic: gnu})},
		{Name: "newlines and escapes", Why: "log injection: the name forges lines and drives the terminal", Want: Contained, make: tarOf(file("a\nerror: forged\n\x1b[2J\x1b]0;title\x07", "x"))},
		{Name: "escapes in a name that is refused", Why: "as above, in the error", Want: Unsafe, make: tarOf(file("../\x1b[2J\nerror: forged", "x"))},
		{Name: "not UTF-8", Why: "conversions lose it", Want: Contained, make: tarOf(file("\xff\xfe\x80", "x"), file("caf\xe9", "x"))},
		{Name: "two spellings of one letter", Why: "one name where names are normalised", Want: Contained, make: tarOf(file("caf\u00e9", "1"), file("cafe\u0301", "2"))},
		{Name: "names that differ in case", Why: "CVE-2021-37701: one file where case does not count", Want: Contained, make: tarOf(symlink("Dir", "$OUT"), dir("dir"), file("dir/canary", "x"))},
		{Name: "leading dashes", Why: "an option for a program that is given the name", Want: Contained, make: tarOf(file("-rf", "x"), file("--checkpoint-action=exec=sh", "x"))},
		{Name: "255 bytes", Why: "the longest name there is", Want: Contained, make: tarOf(file(strings.Repeat("n", 255), "x"))},
		{Name: "256 bytes", Why: "one byte too long", Want: Limit, make: tarOf(file(strings.Repeat("n", 256), "x"))},
		{Name: "path of 4095 bytes", Why: "the longest path there is", Want: Contained, make: tarOf(file(strings.Repeat(strings.Repeat("d", 254)+"/", 16)+strings.Repeat("f", 15), "x"))},
		{Name: "path of 4096 bytes", Why: "one byte too long", Want: Limit, make: tarOf(file(strings.Repeat(strings.Repeat("d", 255)+"/", 16), "x"))},
		{Name: "path of a megabyte", Why: "memory of every reader that keeps names", Want: Limit, make: tarOf(file(strings.Repeat("a/", 400_000), "x"))},
		{Name: "2000 directories deep", Why: "recursion, and a descriptor for each", Want: Contained, Deep: true, make: tarOf(file(strings.Repeat("d/", 2000)+"f", "x"))},
		{Name: "2100 directories deep", Why: "deeper than a path can be", Want: Limit, make: tarOf(file(strings.Repeat("/d", 2049), "x"))},
		{Name: "deeper by links than by name", Why: "the limit of a name is none of the tree's", Want: Contained, Deep: true, make: tarOf(
			dir(strings.Repeat("d/", 1100)), symlink("l", strings.Repeat("d/", 1100)), file("l/"+strings.Repeat("d/", 1100)+"f", "x"))},
		{Name: "empty name", Why: "the root by another name", Want: Unsafe, make: tarOf(file("", "x"))},
		{Name: "a thousand slashes", Why: "the root by another name", Want: Unsafe, make: tarOf(file(strings.Repeat("/", 1000), "x"))},
	}
	return list
}

// links are symlinks, and what is said to be behind them.
func links() []Archive {
	list := []Archive{
		{Name: "link out, then a file in it", Why: "CVE-2014-6407 (docker)", Want: Unsafe, make: tarOf(symlink("l", "$UP"), file("l/canary", "x"))},
		{Name: "absolute link out, then a file in it", Why: "CVE-2014-9356 (docker)", Want: Unsafe, make: tarOf(symlink("l", "$OUT"), file("l/canary", "x"))},
		{Name: "link out that leads to a directory of the layer", Why: "it leads there, not outside", Want: Contained, make: tarOf(dir("$OUT"), symlink("l", "$OUT"), file("l/canary", "x"))},
		{Name: "link and file of one name", Why: "CVE-2018-15664, CVE-2026-50163 (oras): the file goes through the link", Want: Contained, make: tarOf(symlink("f", "$OUT/canary"), file("f", "x"))},
		{Name: "relative link and file of one name", Why: "as above", Want: Contained, make: tarOf(symlink("f", "$UP/canary"), file("f", "x"))},
		{Name: "dangling link and file of one name", Why: "O_CREAT makes what the link names", Want: Contained, make: tarOf(symlink("f", "$OUT/new"), file("f", "x"))},
		{Name: "link and directory of one name", Why: "CVE-2021-32760 (containerd): mode through the link", Want: Contained, make: tarOf(symlink("d", "$OUT/dir"), dir("d").withMode("777"))},
		{Name: "link and directory, then a file in it", Why: "the directory that stands for the link", Want: Contained, make: tarOf(symlink("d", "$OUT/dir"), dir("d"), file("d/file", "x"))},
		{Name: "directory and link, then a file in it", Why: "a cached directory descriptor", Want: Unsafe, make: tarOf(dir("d"), file("d/a", "x"), symlink("d", "$OUT/dir"), file("d/file", "x"))},
		{Name: "directory, file in it, link in its place, file beside", Why: "the parent used last is remembered", Want: Unsafe, make: tarOf(file("d/a", "x"), symlink("d", "$OUT/dir"), file("d/b", "x"))},
		{Name: "link and FIFO of one name", Why: "mode through the link", Want: Contained, make: tarOf(symlink("f", "$OUT/canary"), fifo("f"))},
		{Name: "link and device of one name", Why: "mode through the link", Want: Skipped, make: tarOf(symlink("f", "$OUT/canary"), device('3', "f", "1", "3"))},
		{Name: "link and hard link of one name", Why: "the hard link goes through the link", Want: Contained, make: tarOf(file("a", "x"), symlink("f", "$OUT/canary"), hardlink("f", "a"))},
		{Name: "link to itself", Why: "endless resolution", Want: Broken, make: tarOf(symlink("a", "a"), file("a/x", "x"))},
		{Name: "links to each other", Why: "endless resolution", Want: Broken, make: tarOf(symlink("a", "b"), symlink("b", "a"), file("a/x", "x"))},
		{Name: "link into itself", Why: "endless growth of a path", Want: Broken, make: tarOf(symlink("a", "a/a"), file("a/x", "x"))},
		{Name: "link to a magic link", Why: "CVE-2019-19921, CVE-2024-21626 (runc)", Want: Unsafe, make: tarOf(symlink("l", "/proc/self/cwd"), file("l/x", "x"))},
		{Name: "link to the root of a process", Why: "as above", Want: Unsafe, make: tarOf(symlink("l", "/proc/self/root$OUT"), file("l/canary", "x"))},
		{Name: "link to a descriptor", Why: "CVE-2024-21626: a leaked descriptor of a directory", Want: Unsafe, make: tarOf(symlink("l", "/proc/self/fd/3"), file("l/x", "x"))},
		{Name: "mode through a link", Why: "CVE-2021-32760 (containerd)", Want: Contained, make: tarOf(symlink("x", "$OUT/canary"), symlink("x", "$OUT/canary").withMode("4777"))},
		{Name: "owner through a link", Why: "CVE-2021-41089 (docker cp)", Want: Contained, make: tarOf(symlink("x", "$OUT/canary").withOwner("1750", "1750"))},
		{Name: "time through a link", Why: "utimes follows", Want: Contained, make: tarOf(entry{kind: '2', name: "x", link: "$OUT/canary", mtime: "7777777777"})},
		{Name: "xattr through a link", Why: "setxattr follows", Want: Contained, make: tarOf(symlink("x", "$OUT/canary").withXattr("user.evil", "1"))},
		{Name: "link without a target", Why: "no file system has one", Want: Unsafe, make: tarOf(symlink("l", ""))},
		{Name: "link of 5000 bytes", Why: "longer than a path", Want: Unsafe, make: tarOf(symlink("l", strings.Repeat("x", 5000)))},
		{Name: "link of 4095 bytes", Why: "the longest there is", Want: Contained, make: tarOf(symlink("l", strings.Repeat("x/", 2047)+"x"))},
		{Name: "link of a PAX record", Why: "the target checked is not the target used", Want: Unsafe, make: tarOf(symlink("l", "honest").with("linkpath", "$OUT"), file("l/canary", "x"))},
		{Name: "link of a GNU long link", Why: "as above, in the other format", Want: Unsafe, make: tarOf(
			entry{kind: 'K', name: "././@LongLink", body: strings.Repeat("../", 60) + "\x00", magic: gnu}, entry{kind: '2', name: "l", link: "honest", magic: gnu},
			file("l/tmp/x/y", "x"), file("l/tmp", "x"), file("l/tmp/z", "x"))},
		{Name: "escapes in a link", Why: "log injection", Want: Unsafe, make: tarOf(symlink("l", "\x1b[2J\nerror: forged"), file("l/x", "x"))},
		{Name: "parents of a link go up", Why: "the way to the entry leads out", Want: Unsafe, make: tarOf(dir("a"), symlink("a/l", "../../outside"), file("a/l/new/deep", "x"))},
		{Name: "link that becomes a way out", Why: "its target is made later", Want: Contained, make: tarOf(symlink("l", "x/y"), dir("x"), dir("x/y"), file("l/f", "x"), symlink("x/y/g", "$OUT"), file("l/f2", "x"))},
		{Name: "directory turned into a link on the way", Why: "the way is resolved anew", Want: Unsafe, make: tarOf(dir("x/y"), symlink("l", "x/y"), file("l/f", "x"), symlink("x/y", "$OUT"), file("l/canary", "x"))},
		{Name: "link on its own way", Why: "go-archive#24: it replaces what leads to it", Want: Unsafe, make: tarOf(dir("d"), symlink("s", "d"), symlink("d/t", "."), file("s/t/x", ""), file("s/t/t", ""), file("s/t/y", ""))},
		{Name: "hundred links in a row", Why: "more than the kernel follows", Want: Broken, make: manyLinks(100)},
	}
	for _, hops := range []int{2, 3, 5, 8, 13, 21, 34, 39} {
		list = append(list,
			Archive{Name: fmt.Sprintf("%d hops to the parent", hops), Why: "go-archive#24, #93, GO-2026-5352: each link is harmless by itself", Want: Contained, make: hopsUp(hops, false)},
			Archive{Name: fmt.Sprintf("%d hops, then down", hops), Why: "as above, to the canary", Want: Unsafe, make: hopsUp(hops, true)})
	}
	list = append(list, Archive{Name: "40 hops to the parent", Why: "as many as the kernel follows", Want: Contained, make: hopsUp(40, false)},
		Archive{Name: "40 hops, then down", Why: "one more than the kernel follows", Want: Broken, make: hopsUp(40, true)})
	return list
}

// hopsUp goes up by links that are each said to be in the last one.
func hopsUp(hops int, down bool) func(string) []byte {
	var entries []entry
	for i := range hops {
		entries = append(entries, dir(strings.TrimPrefix(strings.Repeat("/sub", i+1), "/")))
	}
	at := "sub"
	for range hops {
		at += "/up"
		entries = append(entries, symlink(at, ".."))
	}
	if down {
		entries = append(entries, symlink("way", at+"/$OUT"), file("way/canary", "x"))
	}
	return tarOf(append(entries, file(at+"/pwned", "x"))...)
}

func manyLinks(n int) func(string) []byte {
	entries := []entry{dir("l0")}
	for i := range n {
		entries = append(entries, symlink(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d", i)))
	}
	return tarOf(append(entries, file(fmt.Sprintf("l%d/x", n), "x"))...)
}

func hardLinks() []Archive {
	return []Archive{
		{Name: "hard link out", Why: "CVE-2026-50162 (oras), CVE-2014-6408", Want: Unsafe, make: tarOf(hardlink("h", "$UP/canary"), file("h", "x"))},
		{Name: "hard link to a parent", Why: "as above", Want: Unsafe, make: tarOf(hardlink("h", "../outside/canary"))},
		{Name: "absolute hard link", Why: "as above", Want: Broken, make: tarOf(hardlink("h", "$OUT/canary"), file("h", "x"))},
		{Name: "hard link of a PAX record", Why: "the target checked is not the target used", Want: Unsafe, make: tarOf(file("a", "x"), hardlink("h", "a").with("linkpath", "$UP/canary"))},
		{Name: "hard link through a link", Why: "CVE-2026-50163 (oras): the ancestor is a link", Want: Broken, make: tarOf(symlink("l", "$OUT"), hardlink("h", "l/canary"), file("h", "x"))},
		{Name: "hard link through a chain", Why: "as above", Want: Broken, make: tarOf(dir("sub"), symlink("sub/up", ".."), symlink("sub/up/w", "$OUT"), hardlink("h", "sub/up/w/canary"))},
		{Name: "hard link to a link out, then a file", Why: "link(2) follows, or the write does", Want: Contained, make: tarOf(symlink("l", "$OUT/canary"), hardlink("h", "l"), file("h", "x"))},
		{Name: "hard link to a link out, then its mode", Why: "mode through the second name", Want: Contained, make: tarOf(symlink("l", "$OUT/canary"), hardlink("h", "l").withMode("4777"))},
		{Name: "hard link to a directory", Why: "no file system takes one", Want: Unsafe, make: tarOf(dir("d"), hardlink("h", "d"))},
		{Name: "hard link to the root", Why: "as above", Want: Unsafe, make: tarOf(hardlink("h", "/"))},
		{Name: "hard link to nothing", Why: "a name of no file", Want: Unsafe, make: tarOf(hardlink("h", ""))},
		{Name: "hard link to a whiteout", Why: "the device on disk would get a name", Want: Unsafe, Plain: Broken, make: tarOf(file(".wh.x", ""), hardlink("h", "x"))},
		{Name: "hard link to a whiteout's name", Why: "no file has it", Want: Broken, make: tarOf(file(".wh.x", ""), hardlink("h", ".wh.x"))},
		{Name: "hard link named as a whiteout", Why: "a whiteout that is no file", Want: Contained, make: tarOf(file("a", "x"), hardlink(".wh.b", "a"))},
		{Name: "hard link to itself", Why: "removed before it is linked", Want: Broken, make: tarOf(hardlink("h", "h"))},
		{Name: "hard link to itself that is there", Why: "removed before it is linked", Want: Contained, make: tarOf(file("h", "x"), hardlink("h", "h"), hardlink("h", "./h"))},
		{Name: "hard link below its target", Why: "a file is no directory", Want: Unsafe, make: tarOf(file("a", "x"), hardlink("a/b", "a"))},
		{Name: "hard link over the directory of its target", Why: "the target goes with it", Want: Broken, make: tarOf(file("d/f", "x"), hardlink("d", "d/f"))},
		{Name: "hard link with a body", Why: "readers differ in whether a body follows", Want: Contained, make: tarOf(file("a", "x"), entry{kind: '1', name: "h", link: "a", size: "1000"}, file("b", "x"))},
		{Name: "hard link to a device", Why: "a device by another name", Want: Refused, make: tarOf(device('3', "d", "1", "3"), hardlink("h", "d"))},
	}
}

// roots are entries that are the root itself, of every type and by every name.
func roots() (list []Archive) {
	types := []struct {
		kind byte
		what string
		want Want
	}{
		{'0', "file", Unsafe}, {'1', "hard link", Unsafe}, {'2', "link", Unsafe}, {'3', "device", Unsafe}, {'6', "FIFO", Unsafe}, {'5', "directory", Contained},
		{'Z', "thing of no known type", Unsafe},
	}
	for _, name := range []string{".", "./", "/", "", "./.", "//", "/./"} {
		for _, typ := range types {
			list = append(list, Archive{
				Name: fmt.Sprintf("root %q as a %s", name, typ.what), Why: "CVE-2021-29136 (umoci): the root is replaced", Want: typ.want,
				make: tarOf(entry{kind: typ.kind, name: name, link: "$OUT", mode: "1777"}, file("canary", "x")),
			})
		}
	}
	return list
}

// kinds are files of one type in the place of another, and types of no use.
func kinds() []Archive {
	return []Archive{
		{Name: "file over a directory", Why: "what is in it must go, and nothing else", Want: Contained, make: tarOf(dir("d"), file("d/f", "x"), symlink("d/out", "$OUT"), file("d", "x"))},
		{Name: "directory over a file", Why: "as above", Want: Contained, make: tarOf(file("d", "x"), dir("d"), file("d/f", "x"))},
		{Name: "link over a directory with links out", Why: "the removal follows links", Want: Contained, make: tarOf(dir("d"), symlink("d/out", "$OUT"), dir("d/d"), symlink("d/d/up", ".."), symlink("d", "x"))},
		{Name: "file over a directory that denies access", Why: "what is in it cannot be listed", Want: Contained, make: tarOf(dir("d").withMode("0"), file("d/f", "x"), file("d", "x"))},
		{Name: "file below a file", Why: "a file is no directory", Want: Unsafe, make: tarOf(file("a", "x"), file("a/b", "x"))},
		{Name: "file below a FIFO", Why: "opening it blocks", Want: Unsafe, make: tarOf(fifo("a"), file("a/b", "x"))},
		{Name: "file over a FIFO", Why: "opening it blocks", Want: Contained, make: tarOf(fifo("a"), file("a", "x"))},
		{Name: "hard link to a FIFO, then a file", Why: "opening it blocks", Want: Contained, make: tarOf(fifo("a"), hardlink("b", "a"), file("b", "x"))},
		{Name: "file twice", Why: "the second counts, and gets no old content", Want: Contained, make: tarOf(file("a", "first and long"), file("a", "x"))},
		{Name: "file over a file of two names", Why: "the other name keeps the old content", Want: Contained, make: tarOf(file("a", "first"), hardlink("b", "a"), file("a", "x"))},
		{Name: "directory twice", Why: "the second mode counts", Want: Contained, make: tarOf(dir("d").withMode("700"), file("d/f", "x"), dir("d").withMode("755"))},
		{Name: "directory of mode 0 and what is in it", Why: "its owner has no way in", Want: Contained, make: tarOf(dir("d").withMode("0"), file("d/e/f", "x"))},
		{Name: "directory that is only searched", Why: "its owner cannot write", Want: Contained, make: tarOf(dir("d").withMode("111"), file("d/f", "x"), dir("d/e").withMode("555"), file("d/e/f", "x"))},
		{Name: "device", Why: "CVE-2016-9962: the host's disk", Want: Skipped, make: tarOf(device('4', "sda", "10", "0"), device('3', "mem", "1", "1"))},
		{Name: "device in the place of a file", Why: "as above", Want: Skipped, make: tarOf(file("a", "x"), device('4', "a", "10", "0"))},
		{Name: "device 0:0", Why: "a whiteout on disk that no whiteout made", Want: Skipped, make: tarOf(device('3', "etc", "0", "0"))},
		{Name: "device of a negative number", Why: "its bits are another device's", Want: Skipped, Owned: Unsafe, make: tarOf(device('3', "d", base256of8(-1), base256of8(-1)))},
		{Name: "device of a huge number", Why: "as above", Want: Skipped, Owned: Unsafe, make: tarOf(device('4', "d", base256of8(1<<33+8), base256of8(1<<40)))},
		{Name: "FIFO", Why: "whoever opens it blocks", Want: Contained, make: tarOf(fifo("f"), fifo("d/f"))},
		{Name: "socket", Why: "no tar has a type for it", Want: Unsafe, make: tarOf(of('s', "s"))},
		{Name: "unknown type", Why: "readers differ in what it is", Want: Unsafe, make: tarOf(of('Z', "z"))},
		{Name: "dump directory", Why: "GNU: names of files to delete are in its body", Want: Unsafe, make: tarOf(entry{kind: 'D', name: "d", body: "Y../../x\x00\x00", magic: gnu})},
		{Name: "continued file", Why: "GNU: a part of a file of another volume", Want: Unsafe, make: tarOf(entry{kind: 'M', name: "m", body: "x", magic: gnu})},
		{Name: "volume label", Why: "GNU: a name that is no file", Want: Unsafe, make: tarOf(entry{kind: 'V', name: "../v", magic: gnu}, entry{kind: 'V', name: "v", magic: gnu})},
		{Name: "contiguous file", Why: "an old type of file", Want: Contained, make: tarOf(entry{kind: '7', name: "c", body: "x"})},
		{Name: "file whose name ends in a slash", Why: "a directory for some", Want: Unsafe, make: tarOf(entry{kind: '0', name: "d/"}, file("d/f", "x"))},
		{Name: "link whose name ends in a slash", Why: "CVE-2026-39822 (Go os.Root): the slash follows it", Want: Contained, make: tarOf(entry{kind: '2', name: "l/", link: "$OUT"}, dir("l/").withMode("777"))},
	}
}

func whiteouts() []Archive {
	return []Archive{
		{Name: "whiteout of the parent", Why: "it deletes the directory above", Want: Unsafe, make: tarOf(file(".wh...", ""))},
		{Name: "whiteout of itself", Why: "it deletes the directory it is in", Want: Unsafe, make: tarOf(file("a/.wh..", ""))},
		{Name: "whiteout of nothing", Why: "a name of no file", Want: Unsafe, make: tarOf(file("a/.wh.", ""))},
		{Name: "whiteout with a parent before", Why: "it deletes what is beside", Want: Unsafe, make: tarOf(file("../.wh.outside", ""))},
		{Name: "whiteout with the way up", Why: "as above", Want: Unsafe, make: tarOf(file("$UP/.wh.canary", ""))},
		{Name: "whiteout that is absolute", Why: "as above", Want: Contained, make: tarOf(file("$OUT/.wh.canary", ""))},
		{Name: "whiteout with a parent behind", Why: "as above", Want: Unsafe, make: tarOf(file(".wh.../outside", ""))},
		{Name: "whiteout as a directory", Why: "what is below it is deleted", Want: Unsafe, make: tarOf(file(".wh.d/x", ""))},
		{Name: "whiteout through a link", Why: "it deletes outside", Want: Unsafe, make: tarOf(symlink("l", "$OUT"), file("l/.wh.canary", ""))},
		{Name: "whiteout through a link up", Why: "as above", Want: Unsafe, make: tarOf(symlink("l", "$UP"), file("l/.wh.canary", ""))},
		{Name: "whiteout of a link out", Why: "the link goes, not what it leads to", Want: Contained, make: tarOf(symlink("l", "$OUT"), file(".wh.l", ""))},
		{Name: "whiteout of a directory with links out", Why: "the removal follows links", Want: Contained, make: tarOf(dir("d"), symlink("d/l", "$OUT"), file(".wh.d", ""))},
		{Name: "opaque through a link", Why: "it deletes everything outside", Want: Unsafe, make: tarOf(symlink("l", "$OUT"), file("l/.wh..wh..opq", ""))},
		{Name: "opaque above", Why: "as above", Want: Unsafe, make: tarOf(file("../.wh..wh..opq", ""))},
		{Name: "opaque, absolute", Why: "as above", Want: Contained, make: tarOf(file("$OUT/.wh..wh..opq", ""))},
		{Name: "opaque of the root", Why: "the whole tree", Want: Contained, make: tarOf(file("a", "x"), file(".wh..wh..opq", ""))},
		{Name: "opaque that is a directory", Why: "the mark is a file", Want: Contained, make: tarOf(dir("d"), dir("d/.wh..wh..opq"))},
		{Name: "opaque that is a link", Why: "as above", Want: Contained, make: tarOf(dir("d"), symlink("d/.wh..wh..opq", "$OUT"))},
		{Name: "opaque with a body", Why: "a body of something without one", Want: Contained, make: tarOf(dir("d"), file("d/.wh..wh..opq", strings.Repeat("x", 5000)))},
		{Name: "opaque below a whiteout", Why: "a directory that is none", Want: Unsafe, make: tarOf(file(".wh.d/.wh..wh..opq", ""))},
		{Name: "opaque in a file", Why: "a file is no directory", Want: Unsafe, make: tarOf(file("f", "x"), file("f/.wh..wh..opq", ""))},
		{Name: "whiteout that is a directory", Why: "it is a file", Want: Contained, make: tarOf(dir(".wh.d"))},
		{Name: "whiteout that is a link", Why: "it is a file", Want: Contained, make: tarOf(symlink(".wh.x", "$OUT"))},
		{Name: "whiteout that is a device", Why: "it is a file", Want: Contained, make: tarOf(device('3', ".wh.x", "0", "0"))},
		{Name: "whiteout of a whiteout", Why: "a name that begins so twice", Want: Skipped, make: tarOf(file(".wh..wh.x", ""))},
		{Name: "AUFS's bookkeeping", Why: "names of no meaning here", Want: Skipped, make: tarOf(dir(".wh..wh.plnk"), file(".wh..wh.aufs", ""), file(".wh..wh.orph", ""))},
		{Name: "whiteout, then the file", Why: "what a layer brings it does not delete", Want: Contained, make: tarOf(file(".wh.f", ""), file("f", "x"))},
		{Name: "file, then its whiteout", Why: "as above", Want: Contained, make: tarOf(file("f", "x"), file(".wh.f", ""))},
		{Name: "directory, then its whiteout", Why: "as above", Want: Contained, make: tarOf(file("d/f", "x"), file(".wh.d", ""))},
		{Name: "whiteout of a name of 255 bytes", Why: "the whiteout's own name is too long", Want: Limit, make: tarOf(file(".wh."+strings.Repeat("n", 255), ""))},
		{Name: "whiteout of a device 0:0", Why: "a whiteout by two forms", Want: Contained, make: tarOf(device('3', "x", "0", "0"), file(".wh.x", ""))},
		{Name: "whiteout with escapes", Why: "log injection", Want: Unsafe, make: tarOf(file("../.wh.\x1b[2J", ""))},
	}
}

// attributes are modes, owners, times and xattrs.
func attributes() []Archive {
	capability := "\x01\x00\x00\x02\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"
	return []Archive{
		{Name: "setuid root", Why: "a program of root's for everybody", Want: Contained, make: tarOf(file("su", "x").withMode("6755"), dir("d").withMode("2777"))},
		{Name: "every bit of a mode", Why: "bits beyond the mode", Want: Contained, make: tarOf(file("f", "x").withMode("7777777"), dir("d").withMode("7777777"))},
		{Name: "negative mode", Why: "all bits", Want: Contained, make: tarOf(file("f", "x").withMode(base256of8(-1)))},
		{Name: "owner 2^31", Why: "CVE-2024-40635 (containerd): negative in 32 bits", Want: Contained, make: tarOf(file("f", "x").withOwner(base256of8(1<<31), base256of8(1<<31)))},
		{Name: "owner 2^32-1", Why: "for chown it means: leave it", Want: Contained, Owned: Unsafe, make: tarOf(file("f", "x").withOwner(base256of8(1<<32-1), base256of8(1<<32-1)))},
		{Name: "owner 2^32", Why: "CVE-2024-40635, CVE-2026-46680: root in 32 bits", Want: Contained, Owned: Unsafe, make: tarOf(file("f", "x").withMode("4755").withOwner(base256of8(1<<32), "0"))},
		{Name: "owner 2^32+1000", Why: "as above", Want: Contained, Owned: Unsafe, make: tarOf(file("f", "x").with("uid", "4294968296"))},
		{Name: "owner 2^63-1", Why: "as above", Want: Contained, Owned: Unsafe, make: tarOf(file("f", "x").with("uid", "9223372036854775807", "gid", "9223372036854775807"))},
		{Name: "owner of a directory that no file can have", Why: "as above", Want: Contained, Owned: Unsafe, make: tarOf(dir("d").with("gid", "4294967296"))},
		{Name: "negative owner", Why: "-1 means: leave it", Want: Contained, Owned: Unsafe, make: tarOf(file("f", "x").withOwner(base256of8(-1), base256of8(-2)))},
		{Name: "owner that is no number", Why: "a name where a number must be", Want: Broken, make: tarOf(file("f", "x").with("uid", "root"))},
		{Name: "time before 1970", Why: "negative", Want: Contained, make: tarOf(entry{kind: '0', name: "f", mtime: base256(-1)}, file("g", "").with("mtime", "-99999999999.5"))},
		{Name: "time of the year 300 billion", Why: "overflow", Want: Contained, make: tarOf(entry{kind: '0', name: "f", mtime: base256(1<<63 - 1)}, file("g", "").with("mtime", "9223372036854775807"))},
		{Name: "time that is no number", Why: "nonsense", Want: Broken, make: tarOf(file("f", "").with("mtime", "now"))},
		{Name: "opaque xattr", Why: "a directory that hides what it should not", Want: Skipped, make: tarOf(dir("d").withXattr("user.overlay.opaque", "y"))},
		{Name: "redirect xattr", Why: "overlayfs shows another directory", Want: Skipped, make: tarOf(dir("d").withXattr("user.overlay.redirect", "/etc"))},
		{Name: "whiteout xattrs", Why: "overlayfs hides files", Want: Skipped, make: tarOf(file("f", "").withXattr("user.overlay.whiteout", "y"), dir("d").withXattr("user.overlay.opaque", "x"))},
		{Name: "metacopy xattr", Why: "overlayfs shows another file's content", Want: Skipped, make: tarOf(file("f", "").withXattr("user.overlay.metacopy", "\x00"))},
		{Name: "trusted xattrs", Why: "what root's overlayfs reads", Want: Skipped, make: tarOf(dir("d").withXattr("trusted.overlay.opaque", "y").withXattr("trusted.evil", "1"))},
		{Name: "file capabilities", Why: "all of them for everybody", Want: Skipped, Owned: Contained, make: tarOf(file("f", "x").withMode("755").withXattr("security.capability", capability))},
		{Name: "broken file capabilities", Why: "bytes that the kernel may misread", Want: Skipped, make: tarOf(file("f", "x").withXattr("security.capability", "\x01"))},
		{Name: "security xattrs", Why: "labels, and what marks a file as measured", Want: Skipped, make: tarOf(file("f", "x").withXattr("security.selinux", "unconfined_u").withXattr("security.ima", "\x01"))},
		{Name: "access control list", Why: "everybody's, whatever the mode says", Want: Skipped, make: tarOf(file("f", "x").withMode("600").withXattr("system.posix_acl_access", "\x02\x00\x00\x00"))},
		{Name: "kiln's own note", Why: "a forged owner", Want: Skipped, make: tarOf(file("f", "x").withXattr("user.kiln.owner", "1000:1000"))},
		{Name: "xattr without a name", Why: "setxattr of nothing", Want: Skipped, make: tarOf(file("f", "x").withXattr("user.", "1").withXattr("", "1"))},
		{Name: "xattr of the root", Why: "the tree's own marks", Want: Skipped, make: tarOf(dir("./").withXattr("user.overlay.opaque", "y"))},
		{Name: "xattr by libarchive", Why: "another spelling", Want: Skipped, make: tarOf(file("f", "x").with("LIBARCHIVE.xattr.user.overlay.opaque", "eQ=="))},
		{Name: "names of owners", Why: "they are looked up on the host", Want: Contained, make: tarOf(file("f", "x").with("uname", "root", "gname", "docker"))},
	}
}

// headers are archives whose own structure is wrong.
func headers() []Archive {
	honest := file("a", strings.Repeat("x", 700))
	list := []Archive{
		{Name: "negative size", Why: "CVE-2018-20346 and others: a seek backwards", Want: Broken, make: tarOf(file("a", "x").withSize(base256(-512)), file("b", "x"))},
		{Name: "size of 8 EiB", Why: "overflow of offsets", Want: Limit, make: tarOf(file("a", "x").withSize(base256(1<<63 - 1)))},
		{Name: "size beyond the end", Why: "a body that is not there", Want: Broken, make: tarOf(file("a", "x").withSize("00001000000"))},
		{Name: "size of a PAX record", Why: "CVE-2026-53717: a buffer as large as a header says", Want: Limit, make: tarOf(file("a", "x").with("size", "9223372036854775807"))},
		{Name: "small size of a PAX record", Why: "readers differ in where the next header is: the body is an archive", Want: Unsafe, make: tarOf(
			entry{kind: '0', name: "a", body: string(tarOf(file("../outside/new", "x"))("")), pax: []string{"size", "0"}})},
		{Name: "negative size of a PAX record", Why: "as above", Want: Broken, make: tarOf(file("a", "x").with("size", "-1"))},
		{Name: "size that is no number", Why: "nonsense", Want: Broken, make: tarOf(file("a", "x").withSize("zzzzzzzzzzz"))},
		{Name: "directory with a size", Why: "readers differ in whether a body follows", Want: Contained, make: tarOf(entry{kind: '5', name: "d", size: "00000001000"}, file("b", "x"))},
		{Name: "link with a size", Why: "as above", Want: Contained, make: tarOf(entry{kind: '2', name: "l", link: "x", size: "00000001000"}, file("b", "x"))},
		{Name: "wrong checksum", Why: "a damaged header", Want: Broken, make: tarOf(entry{kind: '0', name: "a", body: "x", sum: "000000"})},
		{Name: "wrong checksum later on", Why: "what came before is there", Want: Broken, make: tarOf(file("a", "x"), entry{kind: '0', name: "b", sum: "000001"})},
		{Name: "PAX record that ends too early", Why: "its length is wrong", Want: Broken, make: tarOf(entry{kind: 'x', name: "x", body: "99 path=a\n"}, file("b", "x"))},
		{Name: "PAX record of no length", Why: "endless loop", Want: Broken, make: tarOf(entry{kind: 'x', name: "x", body: "0 path=a\n"}, file("b", "x"))},
		{Name: "PAX record of a negative length", Why: "a slice backwards", Want: Broken, make: tarOf(entry{kind: 'x', name: "x", body: "-9 path=a\n"}, file("b", "x"))},
		{Name: "PAX record without a key", Why: "nonsense", Want: Broken, make: tarOf(entry{kind: 'x', name: "x", body: "6 =a\n\n"}, file("b", "x"))},
		{Name: "PAX header and no entry", Why: "records of nothing", Want: Contained, make: tarOf(entry{kind: 'x', name: "x", body: paxRecord("path", "a")})},
		{Name: "PAX header for a PAX header", Why: "records of records", Want: Unsafe, make: tarOf(
			entry{kind: 'x', name: "x", body: paxRecord("path", "one")}, entry{kind: 'x', name: "x", body: paxRecord("path", "../outside/two")}, file("b", "x"))},
		{Name: "PAX header of a megabyte", Why: "CVE-2022-2879 (Go archive/tar)", Want: Broken, make: tarOf(entry{kind: 'x', name: "x", body: paxRecord("comment", strings.Repeat("c", 2<<20))}, file("b", "x"))},
		{Name: "PAX header with 60,000 records", Why: "a map as large as that", Want: Contained, make: tarOf(entry{kind: 'x', name: "x", body: manyRecords(60_000)}, file("b", "x"))},
		{Name: "GNU long name of a megabyte", Why: "CVE-2022-2879 (Go archive/tar)", Want: Broken, make: tarOf(
			entry{kind: 'L', name: "././@LongLink", body: strings.Repeat("n", 2<<20), magic: gnu}, entry{kind: '0', name: "b", magic: gnu})},
		{Name: "GNU long name and no entry", Why: "a name of nothing", Want: Contained, make: tarOf(entry{kind: 'L', name: "././@LongLink", body: "n\x00", magic: gnu})},
		{Name: "GNU sparse file of 8 EiB", Why: "CVE-2025-58183, CVE-2026-32288 (Go archive/tar)", Want: Limit, make: tarOf(
			entry{kind: 'S', name: "s", body: "x", magic: gnu, sparse: []int64{1<<63 - 2, 1, 1<<63 - 1}})},
		{Name: "GNU sparse map that overlaps", Why: "bytes are read twice", Want: Broken, make: tarOf(
			entry{kind: 'S', name: "s", body: strings.Repeat("x", 512), magic: gnu, sparse: []int64{0, 256, 128, 256, 512}})},
		{Name: "GNU sparse map with a negative length", Why: "a slice backwards", Want: Broken, make: tarOf(
			entry{kind: 'S', name: "s", body: strings.Repeat("x", 512), magic: gnu, sparse: []int64{0, -1, 512, 512, 1024}})},
		{Name: "GNU sparse map that overflows", Why: "offset and length are beyond all numbers", Want: Broken, make: tarOf(
			entry{kind: 'S', name: "s", body: strings.Repeat("x", 512), magic: gnu, sparse: []int64{1<<63 - 1, 1<<63 - 1, 1 << 62}})},
		{Name: "PAX sparse file of 8 EiB", Why: "CVE-2025-58183", Want: Limit, make: tarOf(file("GNUSparseFile.0/s", "x").with(
			"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "s", "GNU.sparse.size", "9223372036854775807", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "9223372036854775806,1"))},
		{Name: "PAX sparse file of another name", Why: "the name checked is not the name used", Want: Unsafe, make: tarOf(file("honest", "x").with(
			"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "../outside/new", "GNU.sparse.size", "1", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "0,1"))},
		{Name: "PAX sparse map of a billion blocks", Why: "CVE-2025-58183: memory for the map", Want: Broken, make: tarOf(file("s", "x").with(
			"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.size", "1", "GNU.sparse.numblocks", "1000000000", "GNU.sparse.map", "0,1"))},
		{Name: "PAX sparse map in the body", Why: "CVE-2025-58183: the map has no end", Want: Broken, make: tarOf(file("s", "1000000000\n"+strings.Repeat("0\n", 4000)).with(
			"GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "8192"))},
		{Name: "sparse file with a hole", Why: "it is honest", Want: Contained, make: tarOf(file("s", "xy").with(
			"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "s", "GNU.sparse.size", "20000", "GNU.sparse.numblocks", "2", "GNU.sparse.map", "0,1,19999,1"))},
		{Name: "global header of a megabyte", Why: "memory", Want: Broken, make: tarOf(entry{kind: 'g', name: "g", body: paxRecord("comment", strings.Repeat("c", 2<<20))}, file("b", "x"))},
		{Name: "nothing at all", Why: "an empty stream", Want: Contained, make: func(string) []byte { return nil }},
		{Name: "one block of zeros", Why: "half an end", Want: Contained, make: func(string) []byte { return make([]byte, block) }},
		{Name: "half a block", Why: "cut off", Want: Broken, make: func(string) []byte { return make([]byte, block/2) }},
		{Name: "zeros, then another archive", Why: "a second archive behind the end of the first: some go on", Want: Skipped, make: func(out string) []byte {
			return append(tarOf(file("a", "x"))(out), tarOf(file("$UP/canary", "x"), symlink("l", "$OUT"), file("l/canary", "x"))(out)...)
		}},
		{Name: "garbage at the end", Why: "bytes that nobody looks at", Want: Skipped, make: func(out string) []byte {
			return append(tarOf(file("a", "x"))(out), strings.Repeat("garbage", 1000)...)
		}},
		{Name: "garbage in the middle", Why: "bytes where a header must be", Want: Broken, make: func(out string) []byte {
			return append(append(raw(false, file("a", "x"))(out), strings.Repeat("garbage!", block/8)...), tarOf(file("b", "x"))(out)...)
		}},
		{Name: "no end", Why: "the zeros are missing", Want: Contained, make: raw(false, file("a", "x"))},
		{Name: "cut in the padding", Why: "cut off", Want: Contained, make: func(out string) []byte { return raw(false, file("a", "x"))(out)[:block+10] }},
	}
	whole := tarOf(honest)("")
	for _, n := range []int{1, 99, 257, 511, 513, 700, 1211} {
		list = append(list, Archive{Name: fmt.Sprintf("cut at byte %d", n), Why: "cut off", Want: Broken, make: func(string) []byte { return whole[:n] }})
	}
	return list
}

func manyRecords(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(paxRecord(fmt.Sprintf("K%d", i), ""))
	}
	return b.String()
}

// formats are the kinds of tar there are, mixed, and what only looks like one.
func formats() []Archive {
	v7 := func(e entry) entry { e.magic = strings.Repeat("\x00", 8); return e }
	inGNU := func(e entry) entry { e.magic = gnu; return e }

	return []Archive{
		{Name: "v7", Why: "the oldest format: no type of a directory", Want: Unsafe, make: tarOf(v7(entry{kind: 0, name: "d/"}), v7(entry{kind: 0, name: "../outside/new", body: "x"}))},
		{Name: "v7 with links", Why: "as above", Want: Unsafe, make: tarOf(v7(symlink("l", "$OUT")), v7(file("l/canary", "x")))},
		{Name: "GNU", Why: "the middle format", Want: Unsafe, make: tarOf(inGNU(symlink("l", "$OUT")), inGNU(file("l/canary", "x")))},
		{Name: "all formats in one", Why: "each header says for itself what it is", Want: Unsafe, make: tarOf(v7(dir("a")), inGNU(dir("a/b")), file("a/b/c", "x").with("path", "a/b/d"), v7(symlink("a/l", "$UP")), inGNU(file("a/l/canary", "x")))},
		{Name: "PAX records before a v7 header", Why: "readers differ in whether they count", Want: Unsafe, make: tarOf(v7(file("a", "x").with("path", "../outside/new")))},
		{Name: "ustar prefix with a parent", Why: "the name is in two fields", Want: Unsafe, make: func(out string) []byte { return prefixed(ustar, "../outside", "new") }},
		{Name: "ustar prefix that is absolute", Why: "as above", Want: Contained, make: func(out string) []byte { return prefixed(ustar, out, "canary") }},
		{Name: "prefix in a GNU header", Why: "there are other fields there", Want: Unsafe, make: func(out string) []byte { return prefixed(gnu, "../outside", "new") }},
		{Name: "wrong magic", Why: "a tar of nobody's", Want: Contained, make: tarOf(entry{kind: '0', name: "a", body: "x", magic: "kiln\x00\x00\x00\x00"})},
		{Name: "cpio", Why: "not a tar", Want: Broken, make: func(string) []byte {
			return bytes.Repeat([]byte("070701"+strings.Repeat("00000000", 13)+"../../outside/new\x00\x00\x00"), 30)
		}},
		{Name: "zip", Why: "not a tar", Want: Broken, make: func(string) []byte {
			return append([]byte("PK\x03\x04\x14\x00\x00\x00\x00\x00"+strings.Repeat("\x00", 16)+"\x11\x00\x00\x00../../outside/new"), make([]byte, 1000)...)
		}},
		{Name: "ar", Why: "not a tar", Want: Broken, make: func(string) []byte { return append([]byte("!<arch>\n"), bytes.Repeat([]byte("x"), 1016)...) }},
		{Name: "gzip in the place of a tar", Why: "compressed once more than it should be", Want: Broken, make: func(out string) []byte {
			return append(Gzip(tarOf(file("$UP/canary", strings.Repeat("x", 2000)))(out)), make([]byte, 1024)...)
		}},
		{Name: "text", Why: "not a tar", Want: Broken, make: func(string) []byte { return bytes.Repeat([]byte("#!/bin/sh\n"), 200) }},
		{Name: "all bytes 0xff", Why: "not a tar", Want: Broken, make: func(string) []byte { return bytes.Repeat([]byte{0xff}, 4096) }},
	}
}

// prefixed is an archive of one file whose name is in two fields.
func prefixed(magic, prefix, name string) []byte {
	h := entry{kind: '0', name: name, magic: magic}.bytes()
	if len(prefix) > 150 { // of the field's 155 bytes
		prefix = prefix[len(prefix)-150:]
	}
	copy(h[345:500], prefix)
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h[:block] {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(h, make([]byte, 2*block)...)
}
