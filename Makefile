# make demo   train a real model on four local workers and show what sparsification does
# make test   lint, types and the whole test suite
# make kills  kill a short run 100 times at random moments (COUNT=100), resume it, and compare the bits
# make setup  only the set-up that both do first
# make core   the library alone: install it into an empty environment, and run the core's tests there
# make examples  every script and notebook of examples/, on two workers: about a minute
# make docs   build the site into build/site, with warnings as errors and every link checked
# make dist   build sdists and wheels of library and lab into dist/, check them, and install them into empty environments
# make wheel-core  the core's tests against the wheel of make dist, with no checkout in reach (KERNELS=no: the one without)
# make fuzz   feed the codec's C decoders with damaged bytes for a minute, guided by coverage; needs a C compiler
# make gpu-interpret  every case of the kernels for GPUs, in Triton's interpreter on the CPU; make test runs a few
# make cubin  compile the kernels for GPUs that are not there, and judge registers, spills, wide loads and atomics
# make sanitize  the tests of the kernels, with every access to memory and every shift checked (needs gcc)

PYTHON ?= python3
VENV ?= .venv
# The torch that is installed when the environment has none. Another: make setup TORCH=torch==2.7.1
TORCH ?= torch==2.13.0
# A package index for torch alone. On Linux, the default index may serve a CUDA build of several GB;
# for a CPU-sized one give the CPU index that pytorch.org's "Get Started" page names.
TORCH_INDEX ?=

# Its interpreter runs the kernels for GPUs on a CPU, in tests; torch's builds for CUDA bring their own.
TRITON ?= triton==3.9.0

FUZZ_SECONDS ?= 60
FUZZ_FLAGS = -std=gnu11 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all

PY = $(VENV)/bin/python
STAMP = $(VENV)/.gaussiank-ready
# A python that already has torch (a cluster image) lends it to the virtual environment.
SITE = $(shell $(PYTHON) -c "import importlib.util as u; print('--system-site-packages' if u.find_spec('torch') else '')")

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types unit lab core examples docs dist wheel wheel-core gpu-interpret cubin sanitize fuzz kills clean

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml lab/pyproject.toml setup.py lab/setup.py $(wildcard csrc/*) requirements/tools.txt Makefile
	@test -x $(PY) || $(PYTHON) -m venv $(SITE) $(VENV)
	@$(PY) -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)" \
	  || { echo "installing $(TORCH)"; $(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"; }
	@[ "$$(uname)" != Linux ] || $(PY) -c "import importlib.util as u, sys; sys.exit(u.find_spec('triton') is None)" \
	  || { echo "installing $(TRITON)"; $(PY) -m pip install --quiet --disable-pip-version-check --no-deps "$(TRITON)"; } \
	  || echo "it has no build for this machine: its tests are skipped"
	@echo "installing gaussiank, its lab and the tools"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/tools.txt -e . -e lab
	@touch $@
	@echo "ready: $(VENV)/bin/gaussiank --help"

demo: $(STAMP)
	$(VENV)/bin/gaussiank train --model lenet5 --workers 4 --density 0.001 --lr 0.03 --momentum-correction \
	  --methods dense,topk,gaussiank,randomk:feedback=false

# The lab's tests wait for processes more than they compute, so the rest runs beside them; each shows its output at its end.
test: lint
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target types lab unit

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)
	$(PY) -m mypy

# The library's tests, with the lab and all that it installs out of reach: see tests/alone.py. The frameworks' are whole
# programs in processes of their own, which it does not reach: they run with the lab's, which are fewer.
unit: $(STAMP)
	$(PY) -m pytest -p tests.alone --ignore tests/lab --ignore tests/integrations tests src

lab: $(STAMP)
	$(PY) -m pytest -p no:cacheprovider tests/lab tests/integrations lab

# An environment of its own with torch, numpy, the library and what runs tests. It lends nothing from another.
CORE = build/core
CORE_TESTS ?= tests src

core:
	@rm -rf $(CORE) && $(PYTHON) -m venv $(CORE)
	@$(CORE)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@$(CORE)/bin/python -m pip install --quiet --disable-pip-version-check -e .
	@$(CORE)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep -E "^(pytest|hypothesis)" requirements/tools.txt)
	$(CORE)/bin/python -m pytest -p tests.alone -p no:cacheprovider --ignore tests/lab $(CORE_TESTS)

# Whole programs of users, as they say of themselves; the four workers of FSDP2 stand for two nodes of two.
TORCHRUN = OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run

examples: $(STAMP)
	@for name in ddp amp adamw own_compressor own_collective trainer accelerate_loop lightning_fit; do \
	  echo "examples/$$name.py"; $(TORCHRUN) --nproc-per-node 2 examples/$$name.py || exit 1; done
	@rm -rf build/resume && mkdir -p build/resume; echo "examples/resume.py, on two workers, then on one"
	@$(TORCHRUN) --nproc-per-node 2 examples/resume.py --folder build/resume --steps 100
	@$(TORCHRUN) --nproc-per-node 1 examples/resume.py --folder build/resume --steps 200
	@echo "examples/fsdp2_hsdp.py"; $(TORCHRUN) --nproc-per-node 4 examples/fsdp2_hsdp.py --shards 2 --steps 20
	@echo "examples/gradients.ipynb"; OMP_NUM_THREADS=1 $(PY) scripts/run_notebook.py examples/gradients.ipynb

# Sphinx lies in a folder of its own, beside the torch and the project that it reads from the usual environment.
DOCS_TOOLS = build/docs-tools

$(DOCS_TOOLS)/.ready: $(STAMP) requirements/docs.txt
	@rm -rf $(DOCS_TOOLS)
	@$(PY) -m pip install --quiet --disable-pip-version-check --target $(DOCS_TOOLS) -r requirements/docs.txt
	@touch $@

docs: $(DOCS_TOOLS)/.ready
	@rm -rf build/site
	PYTHONPATH=$(DOCS_TOOLS) $(PY) -m sphinx -q -W --keep-going -d build/doctrees -c docs . build/site
	@echo "build/site/index.html: $$(find build/site -name '*.html' | wc -l) pages, every link and public name checked"

# What is released. GAUSSIANK_SITE=https://... makes the README's links on a package index lead into the built documentation.
TOOLS = build/tools

$(TOOLS)/.ready: requirements/dist.txt
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/dist.txt
	@touch $@

dist: $(TOOLS)/.ready
	$(TOOLS)/bin/python scripts/make_dist.py
	@rm -rf $(WHEEL_VENV)
	@for wheel in dist/gaussiank-*.whl; do $(MAKE) --no-print-directory wheel WHEEL=$$wheel || exit 1; done
	@$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check dist/gaussiank_lab-*.whl
	@cd $(WHEEL_VENV) && bin/gaussiank --version

# An environment with torch and one wheel of the library, in which nothing of the checkout can be reached.
WHEEL_VENV = build/wheel
KERNELS ?= yes
WHEEL ?= $(firstword $(wildcard dist/gaussiank-*-$(if $(filter no,$(KERNELS)),any,*x86_64).whl))
WHEEL_TESTS ?= tests

$(WHEEL_VENV)/.torch:
	@$(PYTHON) -m venv $(WHEEL_VENV)
	@$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check numpy
	@touch $@

wheel: $(WHEEL_VENV)/.torch
	@test -f "$(WHEEL)" || { echo "WHEEL must name a wheel of the library, got '$(WHEEL)'. Run: make dist"; exit 1; }
	@$(WHEEL_VENV)/bin/python -m pip uninstall --quiet --yes gaussiank gaussiank-lab 2>/dev/null
	@start=$$(date +%s%N); \
	$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(WHEEL) && \
	echo "installed $(WHEEL) in $$((($$(date +%s%N) - start) / 1000000)) ms"
	@cd $(WHEEL_VENV) && bin/python -c "import gaussiank; print(gaussiank.__version__, gaussiank.ops.backends())"

wheel-core: wheel
	@$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep -E "^(pytest|hypothesis)" requirements/tools.txt)
	@rm -rf build/unpacked && mkdir -p build/unpacked
	@tar -xzf $(firstword $(wildcard dist/gaussiank-*.tar.gz)) -C build/unpacked --strip-components 1
	@rm -rf build/unpacked/src build/unpacked/csrc build/unpacked/lab/gaussiank_lab
	cd build/unpacked && $(abspath $(WHEEL_VENV))/bin/python -m pytest -p tests.alone -p no:cacheprovider --ignore tests/lab $(WHEEL_TESTS)

gpu-interpret: $(STAMP)
	GAUSSIANK_INTERPRET=all $(PY) -m pytest -p no:cacheprovider --timeout 0 tests/ops/triton

cubin: $(STAMP)
	$(PY) scripts/cubins.py

# Each library is asked for by its whole path, so that Python starts with both. Leaks are Python's own.
SANITIZED = build/sanitize/_kernels.so
SANITIZE = -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all

$(SANITIZED): $(wildcard csrc/*)
	@mkdir -p $(@D)
	gcc -shared -fPIC -std=gnu11 -Wall -Wextra -Werror -ffp-contract=off -fno-math-errno -fvisibility=hidden $(SANITIZE) \
	  -o $@ csrc/*.c

sanitize: $(STAMP) $(SANITIZED)
	GAUSSIANK_NATIVE_LIBRARY=$(abspath $(SANITIZED)) ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  $(PY) -m pytest -q -s -p no:cacheprovider tests/ops/test_native.py tests/ops/test_scatter.py tests/ops/test_threshold.py \
	  tests/codec/indices tests/codec/values tests/codec/test_payload.py tests/codec/test_wire.py

# Needs gcc or clang with their sanitizers; nothing else here does.
fuzz:
	@rm -rf build/fuzz && mkdir -p build/fuzz
	@for file in csrc/codec_*.c tests/codec/fuzz/fuzz_codec.c; do \
	  $(CC) $(FUZZ_FLAGS) -fsanitize-coverage=trace-pc -c $$file -o build/fuzz/$$(basename $$file .c).o || exit 1; done
	@$(CC) -std=gnu11 -O2 -c tests/codec/fuzz/driver.c -o build/fuzz/driver.o
	@$(CC) $(FUZZ_FLAGS) build/fuzz/*.o -o build/fuzz/fuzz
	build/fuzz/fuzz $(FUZZ_SECONDS)

COUNT ?= 100
kills: $(STAMP)
	$(PY) scripts/kill_and_resume.py --count $(COUNT)
	$(PY) scripts/kill_local_steps.py --count $(COUNT)

clean:
	rm -rf $(VENV) build lab/build *.egg-info src/*.egg-info lab/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
