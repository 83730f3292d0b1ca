# Entry for everything. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.NOTPARALLEL:

# One profile and one target directory outside the checkout, for everything.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/sheepdog/target
CARGO ?= cargo
# Where rustup puts cargo; a shell that was there before it does not look there.
export PATH := $(PATH):$(HOME)/.cargo/bin
BIN := $(CARGO_TARGET_DIR)/release

# Where tests that fail leave the logs of their nodes.
export E2E_LOGS ?= $(CURDIR)/target/e2e-logs

# Debian packages of the programs that the tests, the demonstration and the benchmarks call.
PACKAGES := busybox-static ca-certificates containerd containernetworking-plugins curl e2fsprogs fio gcc grub-pc-bin iproute2 \
            libnbd-bin mmdebstrap nbdkit nftables openssl procps python3 python3-libnbd qemu-system-common qemu-system-x86 qemu-utils runc \
            util-linux xfsprogs
BENCH_PACKAGES := corosync libcorosync-common-dev libcpg-dev
# Large, so only with CEPH=1.
ifneq ($(filter-out 0,$(CEPH)),)
BENCH_PACKAGES += ceph-common ceph-mgr ceph-mon ceph-osd
endif

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 17

# $(call install,PACKAGES): installs those that are missing, and says which.
define install
	missing=()
	for package in $(1); do
	    dpkg-query -W -f='$${Status}' "$$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$$package")
	done
	if [ "$${#missing[@]}" -gt 0 ]; then
	    echo "installing Debian packages: $${missing[*]}"
	    sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo
	    $$sudo apt-get -qq update
	    # Packages that bring a daemon (containerd, corosync, Ceph) must not start it.
	    $$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	        apt-get -qq install -y --no-install-recommends "$${missing[@]}"
	fi
endef

# Installs Rust if there is no cargo: Debian's rustup where that exists, else rustup's own installer. Which version,
# rust-toolchain.toml says.
define install_rust
	if ! command -v $(CARGO) > /dev/null; then
	    if [ -n "$$(apt-cache show rustup 2>/dev/null)" ]; then
	        $(call install,rustup)
	    else
	        echo "installing Rust: https://sh.rustup.rs, into ~/.rustup and ~/.cargo"
	        curl --proto '=https' --tlsv1.2 --silent --show-error --fail https://sh.rustup.rs \
	            | sh -s -- -y --quiet --no-modify-path --profile minimal --default-toolchain none
	    fi
	    rustup show active-toolchain || rustup toolchain install
	fi
endef

.PHONY: tools
tools: ## Install what tests and demo need, if missing: Debian packages, and Rust
	@$(call install,$(PACKAGES))
	$(call install_rust)

.PHONY: tools-bench
tools-bench: tools ## The same for the benchmarks
	@$(call install,$(BENCH_PACKAGES))

.PHONY: build
build: ## Build all programs
	$(CARGO) build --release --workspace --bins

.PHONY: demo
demo: tools build ## Three sheep serve a machine, its disk is cloned, two of them die (KEEP=1 leaves it running)
	@KEEP="$(KEEP)" $(BIN)/demo

.PHONY: demo-kubernetes
demo-kubernetes: tools build kubernetes ## On Kubernetes: a database, its snapshot and a copy of it; its node dies (KEEP=1 waits for Enter)
	@KEEP="$(KEEP)" $(BIN)/demo-kubernetes

.PHONY: kubernetes
kubernetes: tools ## Build Kubernetes and what belongs to it from Go modules (15 minutes on two cores, once)
	@bash e2e/kubernetes/program.sh --all > /dev/null

.PHONY: test
test: tools build kubernetes ## Everything: unit, property, simulation, crash, real processes
	@mkdir -p target
	@status=0
	$(CARGO) test --release --workspace --no-fail-fast 2>&1 | tee target/test.log || status=$$?
	awk '/^test result:/ { passed += $$4; failed += $$6; ignored += $$8; suites++ } \
	     /^test .* FAILED$$/ { print "FAILED: " $$2 } \
	     END { printf "%d suites: %d passed, %d failed, %d ignored\n", suites, passed, failed, ignored }' target/test.log
	exit $$status

.PHONY: e2e
e2e: tools build kubernetes ## The product on a real Kubernetes, also what takes long (KUBERNETES=kind: on kind, with Docker)
	@KUBERNETES="$(KUBERNETES)" $(CARGO) test --release -p sheep-e2e --test kubernetes -- --include-ignored --nocapture

.PHONY: bench
bench: tools-bench build kubernetes ## Ours beside raw disk, nbdkit and Corosync (CEPH=1: and Ceph); writes target/bench.json
	@mkdir -p target
	CEPH="$(CEPH)" $(BIN)/bench target/bench.json

.PHONY: soak
soak: tools build ## An hour of random faults under fio on several volumes (MINUTES=n, SEED=n)
	@FAULT_MINUTES="$(or $(MINUTES),60)" FAULT_SEED="$(or $(SEED),1)" \
	    $(CARGO) test --release -p sheep-e2e --test faults -- --ignored --nocapture in_an_hour

.PHONY: sim
sim: ## Run the simulator (SEED=n replays one run)
	$(CARGO) run --release -p sheep-sim -- $(if $(SEED),--seed $(SEED))

.PHONY: soak-seeds
soak-seeds: ## Whole clusters, rings and stores in simulation, from other seeds than the tests' (SEEDS=from..to)
	@seeds="$(or $(SEEDS),10000..10100)"
	from=$${seeds%%..*}
	$(CARGO) run --release -p sheep-sim -- --keep-going true --seed $$from --count $$(($${seeds##*..} - from))
	SEEDS=$$seeds $(CARGO) test --release -p sheep-totem --test random -- --ignored more_seeds
	SEEDS=$$seeds $(CARGO) test --release -p sheep-store --test crash --test cuts -- --ignored

.PHONY: lint
lint: ## Formatting, clippy, licences (and advisories, if cargo-deny is installed)
	@$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(CARGO) test --release -p sheep-e2e --test licences
	if command -v cargo-deny > /dev/null; then
	    $(CARGO) deny --all-features check
	else
	    echo "advisories: not checked, cargo-deny is not installed ('make lint-deny' installs it)"
	fi

.PHONY: lint-deny
lint-deny: ## Install cargo-deny (compiles for minutes) and check licences, sources and advisories
	@command -v cargo-deny > /dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --all-features check

.PHONY: manifests
manifests: build ## Print crds/ and manifests/ anew, from the operator and the chart
	@$(BIN)/sheep-operator crds > crds/sheepdogclusters.yaml
	cp crds/sheepdogclusters.yaml charts/sheepdog/files/
	bash manifests/render.sh > manifests/sheepdog.yaml

.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt --all
