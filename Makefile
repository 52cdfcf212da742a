# kiln: `make help` lists what can be made.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
VERSION := $(shell cat VERSION)
# The same source gives the same bytes: no paths, no VCS stamp, no build id.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false
LDFLAGS := -s -w -buildid= -X github.com/kilnbuild/kiln/internal/spec.Version=$(VERSION)
PAYLOAD := cmd/kiln/payload/launcher cmd/kiln/payload/lifecycle cmd/kiln/payload/buildpacks cmd/kiln/payload/*.sbom.*.json cmd/buildpacks/payload/helper
STATICCHECK := bin/staticcheck

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/kiln, one static file
	@mkdir -p bin
	@$(BUILD) -ldflags '$(LDFLAGS)' -o cmd/kiln/payload/launcher ./cmd/launcher
	@$(BUILD) -ldflags '$(LDFLAGS)' -o cmd/kiln/payload/lifecycle ./cmd/lifecycle
	@$(GO) run ./cmd/dist -version $(VERSION) sboms cmd/kiln/payload
	@$(BUILD) -ldflags '$(LDFLAGS)' -o cmd/buildpacks/payload/helper ./cmd/buildpacks/helper
	@$(BUILD) -ldflags '$(LDFLAGS)' -o cmd/kiln/payload/buildpacks ./cmd/buildpacks
	@$(BUILD) -ldflags '$(LDFLAGS)' -o bin/kiln ./cmd/kiln

OUT := out
.PHONY: lifecycle-dist
lifecycle-dist: ## pack the lifecycle as builders are made with it, for both architectures
	@for arch in amd64 arm64; do \
	  for program in launcher lifecycle; do \
	    GOARCH=$$arch $(BUILD) -ldflags '$(LDFLAGS)' -o $(OUT)/$$arch/$$program ./cmd/$$program; \
	  done; \
	  $(GO) run ./cmd/dist -version $(VERSION) archive $(OUT)/$$arch $(OUT); \
	done

.PHONY: demo
demo: build ## build the talk's app into an image, run it, fetch its page
	./scripts/demo

.PHONY: test
test: ## run every test (as root: once as root, once as an ordinary user)
	./scripts/test

.PHONY: conformance
conformance: ## run every test and write docs/conformance.md
	KILN_CONFORMANCE_TABLE=write ./scripts/test

.PHONY: mutants
mutants: ## plant faults in the sources and want the tests of each requirement to fail
	$(GO) run ./test/conform/mutants

FUZZTIME ?= 10s

.PHONY: fuzz
fuzz: ## run each fuzzer for FUZZTIME (10s)
	FUZZTIME=$(FUZZTIME) ./scripts/fuzz

.PHONY: lint
lint: $(STATICCHECK) ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not gofmt-ed: $$out"; exit 1; }
	$(GO) vet ./...
	$(STATICCHECK) ./...

$(STATICCHECK): tools/go.mod
	@mkdir -p bin
	cd tools && CGO_ENABLED=0 $(GO) build -o ../$(STATICCHECK) honnef.co/go/tools/cmd/staticcheck

.PHONY: bench
bench: build ## measure speed, each figure beside its pipe and its target (BENCH="-quick -only regexp")
	$(GO) run ./test/bench $(BENCH)

.PHONY: torture
torture: build ## kill, starve and damage store and caches for as long as it takes
	KILN_TORTURE=1 $(GO) test -count=1 -timeout 60m -run 'Torture' -v ./internal/store/... ./internal/cache/...

.PHONY: deps
deps: ## install what the tests need (Debian packages), or say what is missing
	./scripts/deps

.PHONY: clean
clean: ## remove what was built here
	rm -rf bin .cache out $(PAYLOAD)
