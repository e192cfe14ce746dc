# Everything one does with a checkout; `make help` lists it. A first `make run` needs python3 (3.11 or
# newer, with venv), git and make, and a second one finds all of it in place.
#
# Kept to GNU make 3.81 and POSIX sh, for that is what macOS has. All paths are relative and without
# blanks, so the checkout itself may lie wherever it likes.

PYTHON ?= python3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# --- the environment ------------------------------------------------------------------------------

manifests := pyproject.toml $(wildcard plugins/*/pyproject.toml examples/*/pyproject.toml)
packages := $(patsubst %/pyproject.toml,%,$(manifests:%=./%))
# What is in .venv. Other runtimes would take over as soon as they are installed, and other channels want to
# be set up: these are the user's to say.
installed := . ./plugins/pynchy-plugin-bubblewrap ./examples/pynchy-plugin-hello

# Without --python, uv would follow the shell's VIRTUAL_ENV.
install = .venv/bin/uv pip install --quiet --no-config --python .venv/bin/python

# A .venv knows by its absolute path where it is, and by its Python where its packages are. Of one that
# has been moved or copied, or whose Python has been replaced, no part can be trusted: it is made anew.
interpreter := $(if $(findstring command,$(origin PYTHON)),$(PYTHON),.venv/bin/python)
identity = pwd -P && "$(1)" -ISc 'import sys; print("Python %d.%d" % sys.version_info[:2])'
usable := $(shell [ -x .venv/bin/uv ] && [ -x .venv/bin/python ] && \
	[ "$$(cat .venv/.stamp-venv 2>&1)" = "$$($(call identity,$(interpreter)) 2>&1)" ] && echo yes)

.venv/.stamp-venv: $(if $(usable),,anew)
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "There is no '$(PYTHON)': install Python 3.11 or newer, or name one, as in 'make run PYTHON=python3.12'." >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Pynchy needs Python 3.11 or newer, and %s is %d.%d: name a newer one, as in \"make run PYTHON=python3.12\"." % ((sys.argv[1],) + sys.version_info[:2]))' "$(PYTHON)"
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments: on Debian and Ubuntu, run 'sudo apt-get install python3-venv' and try again." >&2; \
		exit 1; }
	@[ ! -e .venv ] || echo "Replacing .venv, which is unfinished, or was made for another place or Python ..."
	@rm -rf .venv
	@echo "Making .venv ..."
	@"$(PYTHON)" -m venv .venv
	@awk '/^[^ ]/ { mine = /^uv==/ } mine' requirements/host.lock >.venv/uv.txt
	@PIP_USER=0 .venv/bin/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --no-deps --only-binary :all: --requirement .venv/uv.txt
	@{ $(call identity,.venv/bin/python); } >$@

# Installed on top of what is there rather than synchronised, because plugins that a user has added to
# .venv are to stay.
.venv/.stamp-host: .venv/.stamp-venv requirements/host.lock $(manifests)
	@echo "Installing Pynchy and the $$(grep -c '^[^ #].*==' requirements/host.lock) packages of requirements/host.lock ..."
	@$(install) --require-hashes --requirement requirements/host.lock
	@$(install) --no-deps --no-build-isolation $(installed:%=--editable %)
	@touch $@

.venv/.stamp-dev: .venv/.stamp-host requirements/dev.lock
	@echo "Installing the $$(grep -c '^[^ #].*==' requirements/dev.lock) packages of requirements/dev.lock ..."
	@$(install) --require-hashes --requirement requirements/dev.lock
	@touch $@

# Each package is tested where nothing is installed but it, the core, and what it wants for its tests; what
# they do together, where all are.
tested := $(notdir $(filter-out .,$(packages)))
folder = $(patsubst %/pyproject.toml,./%,$(wildcard plugins/$(1)/pyproject.toml examples/$(1)/pyproject.toml))
beside_each_other := pynchy-plugin-bubblewrap pynchy-plugin-telegram pynchy-plugin-voice pynchy-plugin-whatsapp

define environment
	@echo "Making the environment of the tests of $(1) ..."
	@rm -rf $@ && .venv/bin/uv venv --quiet --no-config --python .venv/bin/python $@
	@.venv/bin/uv pip install --quiet --no-config --python $@/bin/python --constraints requirements/dev.lock \
		--requirement requirements/build.in pytest-xdist $(foreach name,$(2),--group $(call folder,$(name))/pyproject.toml:test)
	@.venv/bin/uv pip install --quiet --no-config --python $@/bin/python --constraints requirements/dev.lock \
		--no-build-isolation --editable . $(foreach name,$(2),--editable '$(call folder,$(name))[container]')
	@touch $@
endef

.venv/packages/together: .venv/.stamp-dev
	$(call environment,all together,$(beside_each_other))

.venv/packages/%: .venv/.stamp-dev
	$(call environment,$*,$*)

.PHONY: anew help run test soak check bench lock image agent-env clean test-core $(tested:%=test-%)

# --- what to do -----------------------------------------------------------------------------------

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "ARGS='...' is handed on by test, soak, bench, lock and image: make test ARGS='-k store -x'"
	@echo "PYTHON=... names the Python to make .venv with: make run PYTHON=python3.12"

run: .venv/.stamp-host ## set up what is missing, then open a chat
	@.venv/bin/python -m pynchy.cli.first_run

pytest = .venv/bin/python -m pytest

# Two at a time, for the tests wait for sandboxes more than they compute. With arguments, one after the other, and
# of the core alone; `make test-pynchy-plugin-hello` runs one package's.
test: .venv/.stamp-dev agent-env ## run the tests, of the core and of each package
	@$(if $(ARGS),$(pytest) $(ARGS),$(MAKE) --no-print-directory --keep-going \
		test-core $(tested:%=test-%) test-together)

test-core: .venv/.stamp-dev agent-env
	@$(pytest) -n 2 --dist loadfile -m "not alone" && $(pytest) -m alone

$(tested:%=test-%): test-%: .venv/packages/% agent-env
	@echo "The tests of $*:" && cd $(call folder,$*) && \
		PYTHONPATH=../../tests ../../.venv/packages/$*/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

test-together: .venv/packages/together agent-env
	@echo "The tests of the packages together:" && cd plugins/together && \
		PYTHONPATH=../../tests ../../.venv/packages/together/bin/python -m pytest $(ARGS)

soak: .venv/.stamp-dev agent-env ## kill and break things at random, for an hour or two
	@cd tests && PYTHONPATH=. ../.venv/bin/python -m soak $(ARGS)

# Pyright runs on the node that is pinned with it, and asks nobody whether there is a newer one.
check: .venv/.stamp-dev ## lint, check the formatting and the types
	@failed=0; \
	.venv/bin/ruff check . || failed=1; \
	.venv/bin/ruff format --check . || failed=1; \
	PYRIGHT_PYTHON_GLOBAL_NODE=0 PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright || failed=1; \
	exit $$failed

bench: .venv/.stamp-dev ## measure speed and memory
	@.venv/bin/python -m benchmarks $(ARGS)

agent-env: .venv/.stamp-host ## fill the environment of the sandboxed agent (Linux)
	@[ "$$(uname -s)" != Linux ] || \
		.venv/bin/python -m pynchy image build --if-missing --runtime bubblewrap || \
		echo "The sandboxed agent has no environment (see above), so the tests that need it cannot run." >&2

image: ## build the agent's image with Docker
	@container/build.sh $(ARGS)

# The agent's set comes first and binds the other two, since host and agent share code; the host's binds
# the developers'. The checkout's packages stand for what they depend on: they are installed from here,
# never fetched. The development group is read by hand, because uv reads none from a project that it
# does not manage.
compile = .venv/bin/uv pip compile --quiet --no-config --universal --generate-hashes --python-version 3.11 \
	--custom-compile-command "make lock" --no-emit-index-url --no-emit-find-links $(ARGS)
unnamed = $(patsubst %,--no-emit-package %,pynchy $(tested))
dev_group = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")

lock: .venv/.stamp-venv ## pin what the pyprojects ask for (ARGS=--upgrade: newest versions)
	@printf '%s\n' $(installed) >.venv/installed.in
	@printf '%s[container]\n' $(packages) >.venv/checkout.in
	@.venv/bin/python -c '$(dev_group)' >.venv/dev.in
	@echo "Resolving container/requirements/agent.lock ..."
	@$(compile) container/agent_runner/pyproject.toml --output-file container/requirements/agent.lock
	@echo "Resolving requirements/host.lock ..."
	@$(compile) $(unnamed) --constraints container/requirements/agent.lock \
		.venv/installed.in requirements/build.in --output-file requirements/host.lock
	@echo "Resolving requirements/dev.lock ..."
	@$(compile) $(unnamed) --constraints container/requirements/agent.lock --constraints requirements/host.lock \
		.venv/checkout.in requirements/build.in .venv/dev.in \
		$(foreach name,$(tested),--group $(call folder,$(name))/pyproject.toml:test) --output-file requirements/dev.lock

clean: ## remove .venv and every cache in the checkout
	@rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist
	@find . -name .git -prune -o -type d \( -name __pycache__ -o -name .pytest_cache \) -prune -exec rm -rf {} +
