# `make demo` and `make test` each do all their own set-up, in .venv; nothing needs to be activated.
#
#   make demo         install, then fuse the shipped checkpoint and prove that nothing changed
#   make test         install, then the fast tests and the slow ones whose run time is bounded
#   make edge         install the runtimes of phones beside (a GB), and run the tests of what is exported to them
#   make test-slow    every test (those that need a GPU skip themselves where there is none)
#   make check        lint, types and `make test`: what CI runs
#   make lint         ruff's checks and format, nothing rewritten
#   make types        mypy, on the tree as the package installs
#   make lowest       install exactly the lowest versions of setup.cfg beside, and fuse, export and test with them
#   make paper        measure what of the paper's tables and figures this machine can, and write docs/paper.md (half an
#                     hour; `make paper KEEP=--keep` measures only what benchmarks/results/ does not hold)
#   make search-evidence   do what is left of the searches and trainings of docs/evidence.md, and write that page and
#                     docs/paper.md: TRAIN=cifar10-train.zip TEST=cifar10-test.zip; about 20 hours of a core in all,
#                     stopped, it goes on; without images it names what is left, and writes the pages
#   make zoo          fuse and prove what is left of a network of every convolutional family, and write docs/zoo.md (a
#                     few hours; stopped, it goes on; `make zoo LATENCY=--latency` times those that are done instead)
#   make gpu          on a machine with an NVIDIA GPU: build, load, run, compare and time all that needs one, in under
#                     nine minutes, and write the measured part of docs/gpu.md; without a GPU it says what is missing
#   make format       rewrite the code in the project's format
#   make clean        delete what the others made, but for the environment
#   make distclean    delete that, too
#   make help         this text

# The first interpreter that is new enough; `make demo PYTHON=/path/to/python3.12` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# `make demo CONSTRAINTS=` installs the newest versions setup.cfg allows instead of the tested ones.
CONSTRAINTS ?= constraints.txt

# Tests at a time; each computes on one thread.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
METADATA := setup.cfg pyproject.toml $(CONSTRAINTS)

# Somebody else's modules must not stand in for what is installed here.
unexport PYTHONPATH
unexport PYTHONHOME

.NOTPARALLEL:
.PHONY: demo test edge test-slow check lint types lowest paper search-evidence zoo gpu format clean distclean help

help:
	@sed '/^$$/,$$d; s/^# \{0,1\}//' Makefile

demo: $(BIN)/.installed
	$(BIN)/repconv demo

test: $(BIN)/.installed-dev
	$(BIN)/pytest -n $(JOBS) --maxprocesses 8 --dist worksteal -m "not slow and not gpu"
	$(BIN)/pytest -n $(JOBS) --maxprocesses 8 --dist worksteal -m "slow and not edge and not exhaustive and not gpu"

# In an environment of its own over .venv: packages come with these runtimes whose plugins would change pytest.
EDGE := build/edge
EDGE_TESTS = PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(EDGE)/bin/python -P -m pytest -p xdist -n $(JOBS) --maxprocesses 4 \
	--dist loadfile tests/export

edge: $(EDGE)/.installed
	$(EDGE_TESTS) -m "edge and not exhaustive"

$(EDGE)/.installed: $(BIN)/.installed-dev setup.cfg constraints.txt
	$(BIN)/python -m venv --clear $(EDGE)
	site() { "$$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
		echo "import site; site.addsitedir('$$(site $(VENV))')" >"$$(site $(EDGE))/over.pth"
	$(EDGE)/bin/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) \
		--editable ".[edge]"
	touch $@

test-slow: $(BIN)/.installed-dev $(EDGE)/.installed
	$(BIN)/pytest
	$(EDGE_TESTS) -m edge

check: lint types test

lint: $(BIN)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(BIN)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# From inside the tree that looks as the package installs, where the checkout's own folders cannot shadow it.
types: $(BIN)/.installed-dev
	$(BIN)/python tests/type_tree.py
	cd build/types && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" -p repconv

# What setup.cfg promises at its lower bounds; several GB of PyTorch and its libraries are fetched the first time.
LOWEST ?= build/lowest
LOWEST_TESTS := algebra cli/test_cli.py files models sources/test_files_as_they_are.py

lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/repconv fuse repconv/assets/irep_resnet_cifar10.pt -o $(LOWEST)/fused.onnx
	$(LOWEST)/bin/repconv export repconv/assets/irep_resnet_cifar10.pt --to onnx -o $(LOWEST)/exported.onnx
	$(LOWEST)/bin/pytest -m "not slow and not gpu and not newer" $(addprefix tests/,$(LOWEST_TESTS))

$(LOWEST)/.installed: setup.cfg constraints.txt tests/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) tests/lowest.py >$(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -r $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check --no-deps --editable .
	touch $@

# Figure 3 shows a plain network that train_cifar10.py --network resnet18 trained; training needs CIFAR-10.
paper: $(BIN)/.installed-dev
	$(BIN)/python benchmarks/paper/table1.py $(KEEP)
	$(BIN)/python benchmarks/paper/inference.py $(KEEP)
	$(BIN)/python benchmarks/paper/architectures.py
	$(BIN)/python benchmarks/paper/figure2.py
	$(BIN)/python benchmarks/paper/figure3.py
	$(BIN)/python benchmarks/paper/document.py

search-evidence: $(BIN)/.installed-dev
	$(BIN)/python benchmarks/studies/search/evidence/measure.py \
		$(if $(TRAIN)$(TEST),--jobs $(JOBS) --train "$(TRAIN)" --test "$(TEST)",--list)
	$(BIN)/python benchmarks/studies/search/evidence/page.py
	$(BIN)/python benchmarks/paper/document.py

zoo: $(BIN)/.installed-dev
	$(BIN)/python benchmarks/studies/zoo/zoo.py $(LATENCY)
	$(BIN)/python benchmarks/studies/zoo/page.py

# Its exit code is 3 where there is no GPU.
gpu: $(BIN)/.installed-dev
	$(BIN)/python benchmarks/studies/gpu/on_gpu.py

clean:
	rm -rf build dist repconv.egg-info repconv-demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find repconv search export benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

$(BIN)/.created:
	@test -n "$(PYTHON)" || { echo "repconv needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(BIN)/.installed: $(BIN)/.created $(METADATA)
	$(INSTALL) --editable .
	touch $@

$(BIN)/.installed-dev: $(BIN)/.created $(METADATA)
	$(INSTALL) --editable ".[dev]"
	touch $(BIN)/.installed $@
