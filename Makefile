# One door for people, pre-commit and CI. Everything is installed into .venv; nothing else on the machine changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
NATIVE := CMakeLists.txt $(wildcard native/src/* native/include/kvant/*)
MODEL := models/smollm2-135m
JAVASCRIPT := build/javascript
CORES := $(shell getconf _NPROCESSORS_ONLN)
# One more than there are cores: many tests wait for processes.
WORKERS ?= $(shell expr $(CORES) + 1)
QUICK := "not slow and not model and not browser and not heavy"
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(CORES)
# Where there is ccache, kernels are compiled once per content, whichever checkout they stand in.
export CMAKE_CXX_COMPILER_LAUNCHER ?= $(shell command -v ccache)
export CCACHE_BASEDIR ?= $(CURDIR)
export CCACHE_NOHASHDIR ?= 1
# Tests start many processes, and each would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE
INSTALL = $(PIP) install --no-build-isolation -Ceditable.mode=redirect -Cbuild-dir=build/dev -e

.PHONY: help try test test-fast test-all check check-native check-page fmt docs bench fuzz sanitize native clean
FUZZ_SECONDS ?= 60

help:  ## show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

try: $(BIN)/.base $(MODEL)/config.json  ## install kvant and run the main job on a real model, 7 to 12 minutes on two cores
	$(BIN)/kvant optimize $(MODEL) --max-size 100MB --calibrate-windows 16 --refine 0 --chunks 8 -o try --overwrite
	@echo "Open try/report.html in a browser; chat with the result: $(BIN)/kvant run try/*.gguf"

test-fast: $(BIN)/.test  ## the inner loop: what needs no engine, no model and no process to wait for; three minutes on two cores
	$(BIN)/python -m pytest -q -n $(WORKERS) -m $(QUICK) tests/unit tests/properties tests/twins tests/golden tests/meta

test: $(BIN)/.test $(MODEL)/config.json $(JAVASCRIPT)/.installed  ## all that CI runs
	$(BIN)/python -m compileall -q src  # engines, which may write nothing, compile nothing either
	KVANT_REFERENCE_MODEL=$(MODEL) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m "not slow" tests

test-all: $(BIN)/.test $(MODEL)/config.json $(JAVASCRIPT)/.installed  ## the tests that need minutes or environments of their own, too
	KVANT_REFERENCE_MODEL=$(MODEL) $(BIN)/python -m pytest -q -m "slow or not slow" tests

check: $(BIN)/.check check-native check-page  ## formatting, lint, types, layers, sizes, generated documents
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports
	$(BIN)/python tools/check_size.py
	$(BIN)/python tools/reference_docs.py --check

check-native: $(BIN)/.check  ## form and faults of native/: clang-format, clang-tidy
	$(BIN)/python tools/lint_native.py

check-page: $(JAVASCRIPT)/.installed  ## faults of the web page's JavaScript; needs npm
	@if [ -d $(JAVASCRIPT)/node_modules ]; then \
	  $(JAVASCRIPT)/node_modules/.bin/biome lint --config-path=tools/javascript --error-on-warnings src/kvant/serve/page/*.js; \
	else echo "check-page: not run, there is no npm"; fi

fmt: $(BIN)/.check  ## format and mend what can be mended
	$(BIN)/clang-format -i $(filter native/%,$(NATIVE))
	$(BIN)/ruff check --fix src tests benchmarks tools
	$(BIN)/ruff format src tests benchmarks tools

docs: $(BIN)/.base  ## regenerate docs/reference from the code
	$(BIN)/python tools/reference_docs.py

bench: $(BIN)/.test $(MODEL)/config.json  ## measure against the peers; prints tables
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/transcode.py
	$(BIN)/python benchmarks/gguf_reader.py

fuzz: $(BIN)/.test  ## fuzz every reader for FUZZ_SECONDS each, a minute by default
	@mkdir -p build
	@for target in tests/fuzz/fuzz_*.py; do echo $$target; \
	  $(BIN)/python $$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1 2>build/fuzz.log || { tail -60 build/fuzz.log; exit 1; }; \
	  tail -7 build/fuzz.log | grep number_of_executed; done

sanitize: $(BIN)/.test  ## the kernels' tests under AddressSanitizer and UBSan (GCC on Linux), minutes
	$(BIN)/python tools/sanitize.py

native: | $(BIN)/.base  ## rebuild the native kernels after a change
	$(INSTALL) . --no-deps

clean:  ## remove what these targets made
	rm -rf .venv build models try

$(BIN)/python:
	$(PYTHON) -m venv .venv

# Each installs all of its own in one go: a fresh checkout resolves, builds and unpacks once.
$(BIN)/.base $(BIN)/.test $(BIN)/.check: pyproject.toml $(NATIVE) | $(BIN)/python
	$(PIP) install "scikit-build-core>=0.11" "nanobind>=2.7,<4"
	$(INSTALL) ".$(EXTRAS)"
	@touch $(BIN)/.base $(STAMPS)

$(BIN)/.test: EXTRAS := [test]
$(BIN)/.test: STAMPS := $(BIN)/.test
$(BIN)/.check: EXTRAS := [test,check]
$(BIN)/.check: STAMPS := $(BIN)/.test $(BIN)/.check

# Pinned by their lock. Without npm there is nothing, and what needs it says so.
$(JAVASCRIPT)/.installed: tools/javascript/package.json tools/javascript/package-lock.json
	@mkdir -p $(JAVASCRIPT) && cp $^ $(JAVASCRIPT)
	@if command -v npm >/dev/null; then npm ci --prefix $(JAVASCRIPT) --no-audit --no-fund --silent; fi
	@touch $@

$(MODEL)/config.json: tools/reference_model.py | $(BIN)/.base
	$(BIN)/python tools/reference_model.py smollm2-135m $(MODEL)
	@touch $@
