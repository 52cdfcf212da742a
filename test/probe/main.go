// Command probe is a buildpack that steals: it looks for secrets in everything
// that the user it runs as may read, and says where it found one. It knows them
// from the app's file "secrets", one a line, each in hexadecimal and reversed,
// so that they are nowhere as they are.
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	h := hunt{}
	if err := h.learn("secrets"); err != nil {
		fmt.Println("no secrets to look for:", err)
		os.Exit(100)
	}
	h.own()
	h.processes()
	h.keys()
	h.files()
	h.sockets()
	fmt.Printf("%s looked at %d processes, %d memories, %d descriptors, %d files, %d keys, %d sockets\n",
		filepath.Base(os.Args[0]), h.seen["process"], h.seen["memory"], h.seen["descriptor"], h.seen["file"], h.seen["key"], h.seen["socket"])
	if filepath.Base(os.Args[0]) == "build" {
		launch := "[[processes]]\ntype = \"x\"\ncommand = [\"true\"]\ndefault = true\n"
		if err := os.WriteFile(os.Getenv("CNB_LAYERS_DIR")+"/launch.toml", []byte(launch), 0o644); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

type hunt struct {
	secrets [][]byte
	seen    map[string]int
}

func (h *hunt) learn(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	h.seen = map[string]int{}
	for line := range strings.Lines(string(b)) {
		s, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			return err
		}
		slices.Reverse(s)
		h.secrets = append(h.secrets, s)
	}
	return nil
}

func (h *hunt) look(kind, where string, b []byte) {
	h.seen[kind]++
	for i, s := range h.secrets {
		if bytes.Contains(b, s) {
			fmt.Printf("FOUND secret %d in %s\n", i, where)
		}
	}
}

// most is how much is read of one thing, in bytes.
const most = 4 << 20

func (h *hunt) read(kind, path string) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err == nil {
		h.look(kind, path, b)
	}
}

// own is what was handed to this process.
func (h *hunt) own() {
	h.look("process", "own environment", []byte(strings.Join(os.Environ(), "\n")))
	h.look("process", "own arguments", []byte(strings.Join(os.Args, "\n")))
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			h.read("descriptor", "/proc/self/fd/"+e.Name())
		}
	}
}

// processes are all others.
func (h *hunt) processes() {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := "/proc/" + e.Name()
		h.read("process", dir+"/environ")
		h.read("process", dir+"/cmdline")
		fds, _ := os.ReadDir(dir + "/fd")
		for _, fd := range fds {
			h.read("descriptor", dir+"/fd/"+fd.Name())
		}
		h.memory(dir)
	}
}

// memory is what another process has in its memory, as far as it may be read.
func (h *hunt) memory(dir string) {
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return
	}
	defer mem.Close()
	maps, err := os.Open(dir + "/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var perm string
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &perm); n != 3 || !strings.HasPrefix(perm, "rw") {
			continue
		}
		for at := from; at < to; at += most {
			b := make([]byte, min(most, to-at))
			if n, _ := mem.ReadAt(b, at); n > 0 {
				h.look("memory", fmt.Sprintf("%s/mem at %x", dir, at), b[:n])
			}
		}
	}
}

// keys are those of the kernel's key rings.
func (h *hunt) keys() {
	list, _ := os.ReadFile("/proc/keys")
	for line := range strings.Lines(string(list)) {
		h.look("key", "the name of a key", []byte(line))
		var id int
		if n, _ := fmt.Sscanf(line, "%x", &id); n != 1 {
			continue
		}
		b := make([]byte, most)
		if n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, b, 0); err == nil && n > 0 {
			h.look("key", fmt.Sprintf("key %x", id), b[:min(n, len(b))])
		}
	}
}

// files are all that are not the system's.
func (h *hunt) files() {
	filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() && slices.Contains([]string{"/proc", "/sys", "/dev/pts", "/usr"}, path) {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			h.read("file", path)
		}
		return nil
	})
}

// sockets are those that anybody listens on: an agent tells what it has.
func (h *hunt) sockets() {
	list, _ := os.ReadFile("/proc/net/unix")
	tried := map[string]bool{}
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) < 8 || tried[fields[7]] {
			continue
		}
		tried[fields[7]] = true
		conn, err := net.DialTimeout("unix", fields[7], time.Second)
		if err != nil {
			continue
		}
		conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
		b, _ := io.ReadAll(io.LimitReader(conn, most))
		conn.Close()
		h.look("socket", "socket "+fields[7], b)
	}
}
