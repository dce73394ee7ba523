# The entry points of the project. CI and workflows call these verbs and nothing else.
#
#   PYTHON=python3.12    interpreter to build the environment on; a torch >= 2.10 it can import is used, not replaced
#   TORCH=torch==2.13.0  what to install where there is none
#   MACHINE=name         name of this machine's records: local-*, which git ignores, or one of FIXED_MACHINES
#   FLASH_DSA_COMMIT=    the commit this tree is, where it is a copy without git
#   SWEEP_OPTIONS=...    more arguments for the sweep of `make bench`, such as --set tiny
#   ASV_OPTIONS=...      more arguments for its asv run, such as --bench Smoke
#   TEST_JOBS=8          tests side by side, 0 for none (default: 8 where there are as many cores)
#   GPU=1                `make test` fails on any GPU test that is skipped
#   DATA=folder          histories for `make qualify`; QUALIFY_OPTIONS are more arguments of `python -m ci qualify`
#   FROM=folder          what `make keep` commits to the branch `records`; with PUSH=1 it is pushed
#   ISSUES_OPTIONS=...   more arguments for `make issues`, and COMMENT_OPTIONS for `make comment`: --show writes nothing
#   LIBRARIES=folder     keeps the JavaScript that pages use (default: build/libraries); npm fetches what is not there
#   RANGE=a..b           commits that `make history` measures, and of which `make measured` copies the results
#   HISTORY_OPTIONS=...  more arguments of `python -m ci history`
#   BASE=rev             what `make pr-check` compares HEAD with; PR_OPTIONS are more arguments of `python -m ci pr`
#   PIP_*                pip's own variables (index, wheels, proxy) are honoured

PYTHON  ?= python3
VENV    := .venv
# Pinned so that two machines measure the same torch. On Linux PyPI's build of it brings CUDA (gigabytes); where only
# a CPU is wanted, point PIP_EXTRA_INDEX_URL at a CPU index and set TORCH=torch==2.13.0+cpu.
TORCH   ?= torch==2.13.0
# The name that the sweep would choose too.
MACHINE ?= local-$(shell uname -n | sed 's/[^A-Za-z0-9_-]\{1,\}/-/g; s/^-*//; s/-*$$//')
# Machines whose records are tracked; a new one is named here first.
FIXED_MACHINES := cpu-x86 h100-sxm h200-sxm
GPU     ?=
# Tests side by side: only where there are cores for them.
TEST_JOBS ?= $(shell test $$(nproc) -lt 8 && echo 0 || echo 8)
# setup.py's table in README.md; native compiles for the GPU that is here, if any.
FLASH_DSA_TARGETS ?= native
export FLASH_DSA_TARGETS

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check --quiet
LIBRARY := flash_dsa/libflash_dsa.so
# Of this tree's own repository: a copy without one may lie inside another.
HEAD     = $(shell test ! -e .git || git rev-parse --verify --quiet HEAD)
COMMIT   = $(or $(FLASH_DSA_COMMIT),$(HEAD))
HTML    := .asv/html
LIBRARIES ?= build/libraries
# asv writes the interpreter's path into the name of every series. Machines whose history is shared reach it through a
# link, which has the same path on every runner.
ASV_VENV ?= $(if $(filter local-%,$(MACHINE)),$(CURDIR)/$(VENV),/tmp/flash-dsa-venv)
SIDECAR  = $(CURDIR)/asv_bench/results/$(MACHINE)/$(COMMIT).telemetry.jsonl
JUNIT_SUMMARY ?= build/junit-summary.md

# Paths go through the shell and into asv's arguments.
ifneq ($(words $(CURDIR)),1)
$(error this folder's path has a space in it, which make cannot handle: move the clone)
endif
ifneq ($(shell printf '%s' '$(subst ','"'"',$(MACHINE))' | tr -d 'A-Za-z0-9._-'),)
$(error MACHINE expected letters, digits, '.', '_' and '-', got $(MACHINE))
endif

ifneq ($(FLASH_DSA_COMMIT),)
ifeq ($(shell printf '%s' '$(subst ','"'"',$(FLASH_DSA_COMMIT))' | grep -xE '[0-9a-f]{40}'),)
$(error FLASH_DSA_COMMIT expected the 40 hexadecimal digits of a commit, got $(FLASH_DSA_COMMIT))
endif
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# One verb after the other, also with -j: they share build/, and tests beside a measurement would be measured too.
.NOTPARALLEL:
.PHONY: help env build bench bench-allowed history measure-history measure asv-run pages sparse-page test test-all wheel test-wheel check pr-check drill qualify measured keep records alerts issues comment publish pictures FORCE

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

env: $(VENV)/ready ## the environment in .venv: torch, asv, pytest and the other tools
build: $(LIBRARY) ## compile the library in place, for what this machine can run

# Folders of packages on an interpreter's path, one a line: the form of a .pth file.
PACKAGE_FOLDERS := import sys; print(*[p for p in sys.path if p.endswith("-packages")], sep="\n")
USABLE_TORCH    := import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10))
SITE_PACKAGES   := import sysconfig; print(sysconfig.get_path("purelib"))

# .venv/unfinished is there while it is made: what an interrupted pip left is not built upon, but made anew.
$(VENV)/ready: requirements-dev.txt
	@test ! -L $(VENV) || { echo "$(VENV) is a link to an environment that is not this clone's: it is left as it is"; exit 1; }
	@test -w . || { echo "$(CURDIR) is not writable: everything is made in it"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON): Python >= 3.10 is needed"; exit 1; }
	@anew=$$(test ! -e $(VENV)/unfinished || echo --clear); mkdir -p $(VENV) && touch $(VENV)/unfinished && \
	$(PYTHON) -m venv $$anew $(VENV) && touch $(VENV)/unfinished || { echo "$(PYTHON) -m venv failed: install python3-venv, or set PYTHON"; exit 1; }
	@if $(PYTHON) -c '$(USABLE_TORCH)' 2>/dev/null; then \
	    echo "using the torch of $(PYTHON)"; \
	    $(PYTHON) -c '$(PACKAGE_FOLDERS)' > "$$($(PY) -c '$(SITE_PACKAGES)')/base.pth"; \
	else \
	    echo "installing $(TORCH)"; $(PIP) install "$(TORCH)"; \
	fi
	@$(PY) -c 'import torch; print("torch==" + torch.__version__)' > $(VENV)/constraints.txt
	$(PIP) install --constraint $(VENV)/constraints.txt --requirement requirements-dev.txt
	@$(PY) -c '$(PACKAGE_FOLDERS)' > $(VENV)/packages.pth
	@rm $(VENV)/unfinished && touch $@

$(VENV)/ready-to-check: requirements-check.txt $(VENV)/ready
	$(PIP) install --constraint $(VENV)/constraints.txt --requirement requirements-check.txt
	@touch $@

# Tests of the pages need a browser. Where there is none, root gets Debian's; others install one, or see the tests skip.
$(VENV)/ready-to-browse: requirements-browser.txt $(VENV)/ready
	$(PIP) install --constraint $(VENV)/constraints.txt --requirement requirements-browser.txt
	@command -v chromium chromium-browser google-chrome > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && \
	    apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --no-install-recommends chromium fonts-dejavu-core > /dev/null; } || \
	    echo "no chromium here, and none could be installed: the tests of the dashboard's pages are skipped"
	@touch $@

# The commit is built into the library's record of itself, so a new one rebuilds too (seconds: ninja knows the rest).
build/asked: FORCE
	@mkdir -p build
	@echo "$(FLASH_DSA_TARGETS) $(COMMIT)" | cmp --silent - $@ || echo "$(FLASH_DSA_TARGETS) $(COMMIT)" > $@

# The package's Python is part of the fingerprint that the build writes.
$(LIBRARY): $(VENV)/ready build/asked setup.py pyproject.toml $(shell find kernels -type f) \
    $(filter-out %/_build_info.py,$(wildcard flash_dsa/*.py))
	$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@
	@$(PY) -m flash_dsa

# Facts that change (kernel release, memory) would split the series: they go to the telemetry sidecar.
ASV_MACHINE = $(PY) -m asv machine --machine $(MACHINE) --os Linux --arch "" --cpu "" --num_cpu "" --ram "" > /dev/null

# What `make bench` and `make history` refuse, before anything is built.
VERB = make $(firstword $(filter bench history,$(MAKECMDGOALS)) bench)
bench-allowed:
	@case "$(MACHINE)" in local-?*) ;; *) test -n "$(filter $(FIXED_MACHINES),$(MACHINE))" || { \
	    echo "$(VERB): MACHINE expected local-* or one of FIXED_MACHINES ($(FIXED_MACHINES)), got $(MACHINE)"; exit 1; } ;; esac
	@test -n "$(COMMIT)" || { echo "$(VERB): results belong to a commit, and this is no git checkout with one:" \
	    "FLASH_DSA_COMMIT can name it"; exit 1; }
	@test -z "$(HEAD)" -o "$(HEAD)" = "$(COMMIT)" || { \
	    echo "$(VERB): FLASH_DSA_COMMIT expected HEAD, $(HEAD), got $(COMMIT)"; exit 1; }
	@case "$(MACHINE)" in local-*) ;; *) test ! -e .git || { \
	    changed=$$(git status --porcelain -- . ':!asv_bench/results' ':!asv_bench/sweeps') && test -z "$$changed"; } || { \
	    echo "$(VERB): $(MACHINE) keeps a history: commit or stash first"; exit 1; } ;; esac

# Held while measuring: a second bench would point the link at its own clone, or write into the same results.
BENCH_LOCK = $(ASV_VENV).lock

bench: bench-allowed build ## measure: sweep, one asv run of this commit, dashboard
	@flock --nonblock --conflict-exit-code 75 "$(BENCH_LOCK)" $(MAKE) --no-print-directory measure; status=$$?; \
	test $$status -ne 75 || echo "make bench: another bench is running (it holds $(BENCH_LOCK)): wait for it to end"; \
	exit $$status

history: bench-allowed env ## run the asv suites over the commits of RANGE=a..b that are not measured yet
	@test -n "$(RANGE)" || { echo "make history: RANGE expected commits, as in make history RANGE=v1..main"; exit 3; }
	@flock --nonblock --conflict-exit-code 75 "$(BENCH_LOCK)" $(MAKE) --no-print-directory measure-history; status=$$?; \
	test $$status -ne 75 || echo "make history: a bench is running (it holds $(BENCH_LOCK)): wait for it to end"; \
	exit $$status

measure-history:
	@test "$(ASV_VENV)" = "$(CURDIR)/$(VENV)" || ln -sfn "$(CURDIR)/$(VENV)" "$(ASV_VENV)"
	@$(ASV_MACHINE)
	@$(PY) -m ci history "$(RANGE)" --machine $(MACHINE) --python "$(ASV_VENV)/bin/python" $(HISTORY_OPTIONS)

measure:
	$(PY) -m asv_bench sweep --machine $(MACHINE) $(SWEEP_OPTIONS)
	@$(if $(HEAD),$(MAKE) --no-print-directory asv-run; status=$$?; \
	$(MAKE) --no-print-directory PAGES_OPTIONS=--may-lack-libraries pages sparse-page || exit 1,\
	echo "no asv run: asv keeps its history by git"; status=0); \
	echo "tables and plots: asv_bench/sweeps/$(MACHINE)/report.html"; exit $$status

asv-run:
	@test "$(ASV_VENV)" = "$(CURDIR)/$(VENV)" || ln -sfn "$(CURDIR)/$(VENV)" "$(ASV_VENV)"
	@$(ASV_MACHINE)
	@rm -f $(SIDECAR)
	@FLASH_DSA_TELEMETRY=$(SIDECAR) $(PY) -m asv run --environment existing:$(ASV_VENV)/bin/python \
	    --set-commit-hash $(COMMIT) --machine $(MACHINE) --record-samples $(ASV_OPTIONS); status=$$?; \
	echo "n/a and failed, with how often:"; grep -o '"error": "[^"]*' $(SIDECAR) | sort | uniq -c; exit $$status

# Of the grid that ran: only that of a GPU notes one.
sparse-page:
	@page="sparse_prefill.SparsePrefill$$(grep -q '"gpu": "' $(SIDECAR) || echo Smoke).track_seconds"; \
	echo "    sparse prefill by context length: http://127.0.0.1:8080/#$$page?machine=$(MACHINE)&x-axis=s_kv"

pr-check: env ## judge HEAD against BASE=rev: both built and measured in turns, with a report
	@test -n "$(BASE)" || { echo "make pr-check: BASE expected a revision, as in make pr-check BASE=main"; exit 3; }
	@$(PY) -m ci pr --base "$(BASE)" $(PR_OPTIONS)

drill: env ## plant slowdowns in HEAD's kernels and count which are found; DRILL_OPTIONS for `python -m ci drill`
	@$(PY) -m ci drill $(DRILL_OPTIONS)

# apache-otava pins libraries of its own: in .venv it would replace ours.
build/otava/ready: requirements-otava.txt $(VENV)/ready
	rm -rf $(@D) && $(PY) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet install --requirement requirements-otava.txt
	@touch $@

qualify: build/otava/ready ## which steps the detectors of change points find in the histories of DATA=folder
	@test -n "$(DATA)" || { echo "make qualify: DATA expected a folder of histories, as in make qualify DATA=histories"; exit 3; }
	@$(PY) -m ci qualify --data "$(DATA)" --otava build/otava/bin/python $(QUALIFY_OPTIONS)

# What asv knows of the suites; tracked, so it is written anew when they change.
asv_bench/results/benchmarks.json: env FORCE
	@$(ASV_MACHINE)
	$(PY) -m asv run --bench just-discover --environment existing --machine $(MACHINE)

measured: ## copy what MACHINE measured of this commit, or of RANGE=a..b, into build/measured
	@$(PYTHON) -m ci.records collect --machine "$(MACHINE)" $(if $(RANGE),--range "$(RANGE)",--commit "$(COMMIT)")

keep: ## commit the results in FROM=folder to the branch `records`; PUSH=1 pushes it
	@test -n "$(FROM)" || { echo "make keep: FROM expected a folder with what runners left, as in make keep FROM=build"; exit 3; }
	@$(PYTHON) -m ci.records keep --from "$(FROM)" $(if $(PUSH),--push)

records: ## put the results on the branch `records` into asv_bench/results
	@$(PYTHON) -m ci.records restore

alerts: env records ## what moved in the history, as alerts.json
	@$(PY) -m ci judge asv_bench/results; test $$? -le 2

issues: ## open or update an issue for every alert in alerts.json, by `gh`
	@$(PYTHON) -m ci.issues alerts.json $(ISSUES_OPTIONS)

comment: ## comment on the pull request whose check ended, by `gh`
	@$(PYTHON) -m ci.comment $(COMMENT_OPTIONS)

publish: env pages ## the dashboard from the stored results: asv's site and our pages

# npm fetches the pages' libraries once, into LIBRARIES.
pages:
	$(PY) -m asv publish --no-pull
	@$(PY) -m ci dashboard "$(HTML)" --libraries "$(LIBRARIES)" $(PAGES_OPTIONS)
	@echo "dashboard: $(HTML)/index.html, to be served with $(PY) -m asv preview, which names its port"

pictures: publish $(VENV)/ready-to-browse ## README's pictures of the dashboard, from the stored results
	@PYTHONPATH=tests $(PY) -m judge.pictures "$(HTML)" docs/pictures

SIDE_BY_SIDE = $(if $(filter-out 0,$(TEST_JOBS)),-n $(TEST_JOBS) --dist loadgroup)

test: build ## the tests this machine can run; GPU=1 lets none of the GPU tests skip
	@# Side by side, threads that outnumber the cores would wait for each other most of the time.
	$(if $(SIDE_BY_SIDE),OMP_NUM_THREADS=$$(($$(nproc) / $(TEST_JOBS)))) FLASH_DSA_REQUIRE_GPU=$(GPU) \
	    JUNIT_SUMMARY=$(JUNIT_SUMMARY) $(PY) -m pytest $(SIDE_BY_SIDE) -m "not slow" --junitxml=build/junit.xml

test-all: check test wheel $(VENV)/ready-to-browse ## and a wheel with all targets, and the slow tests
	$(PY) -m pytest -m slow -rs

# PyPI's nvcc, in a folder of its own: in .venv its CUDA runtime could replace torch's.
build/nvcc/ready: requirements-nvcc.txt $(VENV)/ready
	rm -rf $(@D)
	$(PIP) install --target $(@D) --requirement requirements-nvcc.txt
	@touch $@

# Whether setup.py finds an nvcc that knows every architecture.
COMPLETE_NVCC := import setup, sys; path = setup.find_nvcc(); \
    sys.exit(not path or not setup.inspect_nvcc(path).architectures >= set(setup.SM80_ARCHITECTURES))
SDIST := from setuptools import build_meta; build_meta.build_sdist("dist")

# The wheel is made from the archive, outside this tree: so both are complete, and the build in place stays as it is.
wheel: $(VENV)/ready ## dist/: a source archive, and made from it one wheel with all targets
	rm -rf dist
	@$(PY) -c '$(SDIST)' > /dev/null
	@$(PY) -c '$(COMPLETE_NVCC)' || { echo "no nvcc here for all targets: taking PyPI's"; \
	    $(MAKE) --no-print-directory build/nvcc/ready && \
	    export CUDA_HOME=$$(echo $(CURDIR)/build/nvcc/nvidia/cu*); } || exit 1; \
	FLASH_DSA_TARGETS=all $(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist dist/*.tar.gz
	@du --bytes dist/* | awk '{ printf "%s %.1f MB\n", $$2, $$1 / 1e6 }'

test-wheel: env ## the wheel in dist/, as it installs where there is neither compiler nor GPU; GPU=1 as in `make test`
	FLASH_DSA_REQUIRE_GPU=$(GPU) $(PY) -m pytest tests/test_wheel.py

check: $(VENV)/ready-to-check ## style, types, architecture, generated tables
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -c 'import clang_format; clang_format.clang_format()' --dry-run -Werror $$(find kernels tests/emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(VENV)/bin/actionlint -config-file .github/actionlint.yaml .github/workflows/*.yml
	$(VENV)/bin/zizmor --offline --no-progress --quiet .github/workflows
	$(PY) -m pytest tests/test_architecture.py
	$(PY) -m asv_bench report --check
	$(PY) -m ci report --docs --check
