# `make demo` and `make test` need Python >= 3.11, git and make; they set up environments of their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The OLDEST generator we support: generated code refuses runtimes older than its generator. The floors of grpcio and
# protobuf in pyproject.toml follow from it.
STUB_TOOLS := grpcio-tools==1.62.3 mypy-protobuf==3.6.0 'setuptools<81'
SOURCES := protos server client tests benchmarks
# A worker takes the tests that another one has left when it has done its own: neighbours, which share servers, stay
# together for as long as there are enough of them.
# One more than there are processors: tests wait for disks and servers, too.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); [ $$n -lt 4 ] && echo $$((n + 1)) || echo 4)
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo digits workers federated test quick versions integrations lint format types buf stubs image constraints benchmarks gpu peers rounds page robustness fuzz clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: .venv-demo/installed  ## see Adam fail and AMSGrad succeed, driven remotely (no torch)
	.venv-demo/bin/python client/synthetic.py

digits: $(VENV)/installed  ## the same network trained with a local and a remote optimizer, side by side
	$(BIN)/python client/train_digits.py

workers: $(VENV)/installed  ## the same network on 1, 2, 4 and 8 processes; one is killed, one joins late
	$(BIN)/python client/train_workers.py

federated: $(VENV)/installed  ## FedAMSGrad against FedAvg over fifty clients that have two digits each
	$(BIN)/python client/train_federated.py

test: $(VENV)/installed .venv-stubs/installed  ## all tests
	$(PYTEST) $(ARGUMENTS)

# What is quick and reaches every room, and the five test files that were changed most since the branch began. Neither
# kills nor fuzzes.
QUICK := tests/protos tests/client/encodings tests/client/training $(wildcard tests/client/test_*.py) tests/contract \
	tests/docker $(wildcard tests/server/test_*.py) $(addprefix tests/server/,cli encodings engine memory optimizers rpc runs \
	training store/test_conformance.py devices/test_update.py) tests/integration/test_bare_stub.py tests/integration/test_blocks.py
SLOW := tests/robustness/ tests/benchmarks/ tests/server/devices/test_cuda_simulator.py

quick: lint types  ## lint, types, the quick tests (under 90 s) and those that you changed most
	$(PYTEST) --quiet $(QUICK) $$($(BIN)/python -m tests.most_changed 5 $(SLOW))

# Those that need neither torch nor buf, and reach most of what a Python could do differently.
UNBOUND := --ignore tests/protos/test_buf.py tests/protos tests/client/encodings tests/client/training tests/client/transport \
	tests/client/test_errors.py tests/contract/test_architecture.py tests/contract/test_client_architecture.py \
	tests/server/test_config.py $(addprefix tests/server/,cli encodings engine memory optimizers rpc store/test_conformance.py) \
	tests/integration/test_bare_stub.py tests/integration/test_blocks.py

versions:  ## quick tests without torch on the other Pythons that are found here: VERSIONS
	.ci/versions "$(VERSIONS)" $(UNBOUND)

VERSIONS ?= 3.12 3.13 3.14

integrations: .venv-integrations/installed examples/node/node_modules  ## inside HuggingFace's Trainer, Lightning and Node.js
	GRADWIRE_INTEGRATIONS=1 .venv-integrations/bin/python -m pytest tests/client/torch/test_huggingface.py \
	  tests/client/torch/test_lightning.py tests/integration/test_node.py

robustness: $(VENV)/installed  ## a thousand servers killed under traffic; goes on where it was ended, needs a C compiler
	$(BIN)/python -m tests.robustness --docs

fuzz: $(VENV)/installed  ## a million messages that nobody planned for; the summary goes into docs/reliability.md
	$(BIN)/python -m tests.fuzz --docs $(ARGUMENTS)

lint: $(VENV)/installed  ## ruff
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: $(VENV)/installed  ## ruff, in place
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

types: $(VENV)/installed  ## mypy, strict
	$(BIN)/mypy $(SOURCES)

buf: $(VENV)/installed  ## lint of the contract, and the breaking check against the image
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against gradwire.v1.binpb

stubs: .venv-stubs/installed  ## generated code, after a change of a .proto
	PYTHON=../.venv-stubs/bin/python protos/generate.sh

image: $(VENV)/installed  ## what later contracts must not break; at a release, never to silence the check
	cd protos && ../$(BIN)/buf build -o gradwire.v1.binpb

# Peers have an environment of their own; link.py needs root and says so where it is not.
BENCHMARKS := kernels combining synthetic wire blocks encodings many_clients neighbours footprint durability metrics_cost watching_cost link

benchmarks: $(VENV)/installed  ## kernels, the experiment, the wire, many clients, neighbours, footprint, a link, with their floors
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(ARGUMENTS) || exit 1; done

# NO_INSTALL=1: with $(PYTHON) as it is, which has torch, numba-cuda and grpcio; what else is missing is left out by name.
gpu: $(if $(NO_INSTALL),,$(VENV)/installed)  ## what only a GPU can show, in six minutes: tests, kernels, wire; docs/gpu.md
	$(if $(NO_INSTALL),$(PYTHON),$(BIN)/python) benchmarks/gpu.py $(ARGUMENTS)

peers: .venv-peers/installed  ## against Ray, torch rpc, gloo, zmq, unary gRPC and local torch: docs/peers.md and its picture
	.venv-peers/bin/python benchmarks/peers.py --table docs/peers.md --picture docs/peers.png

rounds: .venv-peers/installed .venv-flower/installed  ## many workers, against gloo, a Ray actor and Flower: docs/workers.md
	.venv-peers/bin/python benchmarks/workers.py --docs $(ARGUMENTS)

page: $(VENV)/installed  ## the picture of the page in the README; needs Debian's chromium and chromium-driver
	$(BIN)/python benchmarks/page.py $(ARGUMENTS)

constraints: $(VENV)/installed  ## constraints.txt and requirements/*.txt; ARGUMENTS=--upgrade: with newer versions
	$(BIN)/pip install --quiet uv
	$(BIN)/python requirements/compile.py $(ARGUMENTS)

clean:  ## environments and caches
	rm -rf examples/node/node_modules .venv .venv-demo .venv-flower .venv-integrations .venv-peers .venv-stubs .venv-base .venv-3.* .mypy_cache .ruff_cache .pytest_cache .hypothesis out

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gradwire needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv-demo/installed: pyproject.toml requirements/demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gradwire needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --requirement requirements/demo.txt
	.venv-demo/bin/pip install --quiet --no-deps --editable .
	@touch $@

.venv-integrations/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-integrations
	.venv-integrations/bin/pip install --quiet --constraint constraints.txt --editable '.[integrations]' pytest pytest-timeout
	@touch $@

examples/node/node_modules: examples/node/package-lock.json
	npm ci --prefix examples/node
	@touch $@

.venv-peers/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --constraint constraints.txt --editable '.[peers]'
	@touch $@

# Without gradwire: nothing of ours runs in it.
.venv-flower/installed: requirements/flower.txt
	$(PYTHON) -m venv .venv-flower
	.venv-flower/bin/pip install --quiet --requirement requirements/flower.txt
	@touch $@

.venv-stubs/installed: Makefile
	$(PYTHON) -m venv .venv-stubs
	.venv-stubs/bin/pip install --quiet $(STUB_TOOLS)
	@touch $@
