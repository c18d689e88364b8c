# Everything sets itself up: each target first makes or refreshes .venv. ARGS="..." goes to the command behind a target.

.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# The Python that .venv is made with: python3.11, which the pinned versions are tested with, or a newer python3.
RECENT = $(filter yes,$(shell $(1) -c 'import sys $(2); print("yes" * (sys.version_info >= (3, 11)))' 2>/dev/null))
PYTHON ?= $(firstword $(foreach python,python3.11 python3,$(if $(call RECENT,$(python)),$(python))))

# Of `gpu` and `paper`, which go on where an earlier call stopped.
BUDGET ?= 25m

PIN = $(shell sed -n 's/^$(1)==//p' requirements.txt)
PIP := $(RUN) -m pip --disable-pip-version-check

PYTEST := $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
NOTEBOOKS := --nbval-lax --nbval-current-env --nbval-cell-timeout=300
# Whether the engine still stands, without data, notebooks and the command line.
QUICK := gan_influence/game gan_influence/training gan_influence/readings \
  $(patsubst %,tests/test_%.py,retraining influence trajectory dynamics make rooms streams)

SITE := build/site
MATHJAX := 3.2.2

.PHONY: help demo test test-browser quick test-gpu gpu lint notebooks site paper clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(READY)  ## train a small GAN, find harmful instances, train without them: a minute or two, results in runs/demo
	@$(RUN) -m gan_influence demo $(ARGS)

test: $(READY)  ## run all tests: unit tests, doctests, the README's example, every notebook
	$(PYTEST) --doctest-modules $(NOTEBOOKS) notebooks tests gan_influence $(ARGS)

test-browser: $(SITE)/.ready  ## drive the site and every widget with headless Chromium (Debian: apt install chromium), screenshots in runs/browser
	GAN_INFLUENCE_BROWSER=all $(RUN) -m pytest tests/test_site.py tests/test_browser.py -rsP $(ARGS)

quick: $(READY)  ## run what tells within a minute or two whether the engine still stands
	$(PYTEST) -m "not gpu" --doctest-modules $(QUICK) $(ARGS)

test-gpu: $(READY)  ## run the tests that need a CUDA device; each is skipped, with the reason, where there is none
	$(RUN) -m pytest tests -m gpu -rs $(ARGS)

gpu:  ## for an hour with a GPU: its tests, what it costs there, recordings, with PYTHON=python3 as it is, in BUDGET=25m; tables in runs/gpu
	@$(PYTHON) benchmarks/gpu.py --budget $(BUDGET) $(ARGS)

lint: $(READY)  ## check style with ruff
	@$(RUN) -m ruff --version >/dev/null 2>&1 || $(PIP) install -q ruff==0.17.6
	$(RUN) -m ruff check .

notebooks: $(READY)  ## execute every notebook again, in its place, and clean what execution leaves behind
	$(RUN) -m gan_influence notebooks $(ARGS)

site: $(SITE)/.ready  ## build the site, from the outputs that the notebooks hold: open build/site/html/index.html
	$(RUN) site/sources.py $(SITE)/source
	$(RUN) -m sphinx -q -W --keep-going -j auto -c site $(SITE)/source $(SITE)/html

paper: $(READY)  ## make what is outstanding of the full-scale recordings, within BUDGET=25m; again to continue
	$(RUN) -m gan_influence paper --budget $(BUDGET) $(ARGS)

clean:  ## remove .venv, caches, and what the demo and the notebooks made; other folders in runs/ stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache runs/demo notebooks/runs notebooks/.ipynb_checkpoints
	find gan_influence tests notebooks benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last, so a set-up that was cut short is taken up again by the next call.
$(READY): requirements.txt pyproject.toml
	@$(if $(call RECENT,$(or $(PYTHON),false)),:,$(NO_PYTHON))
	@$(if $(call RECENT,$(RUN),; import pip),:,$(MAKE_VENV))
	@echo "Installing the versions of requirements.txt into $(VENV): once, a few minutes"
	@$(INSTALL_TORCH)
	@$(PIP) install -q -r requirements.txt
	@touch $@

# What the site and the browser's tests need besides; MathJax from its npm package, so that no page asks the network for it.
$(SITE)/.ready: $(READY) site/requirements.txt
	@command -v npm >/dev/null || { echo "The site takes MathJax from npm, which is not installed. On Debian or Ubuntu type: sudo apt-get install npm" >&2; exit 1; }
	@$(PIP) install -q -r site/requirements.txt
	@rm -rf $(SITE)/vendor && mkdir -p $(SITE)/vendor/mathjax
	@cd $(SITE) && npm pack --silent mathjax@$(MATHJAX) >/dev/null && tar xzf mathjax-$(MATHJAX).tgz -C vendor/mathjax --strip-components=2 package/es5
	@touch $@

define NO_PYTHON
python=$(or $(PYTHON),python3); \
echo "gan_influence needs Python 3.11 or newer, but $$python is $$($$python --version 2>/dev/null || echo not installed)." \
  "Install one, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1
endef

# Debian and Ubuntu ship `venv` without its heart, ensurepip, which is a package of its own.
define MAKE_VENV
set -e; rm -rf $(VENV); \
if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
  package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
  if [ "$$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi; \
  echo "Installing $$package"; \
  $$sudo apt-get install -y -qq $$package || { $$sudo apt-get update -qq && $$sudo apt-get install -y -qq $$package; } || \
  { echo "$(PYTHON) cannot make virtual environments yet. On Debian or Ubuntu type: sudo apt-get install $$package" >&2; exit 1; }; \
fi; \
echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV)
endef

# Without an NVIDIA driver, PyTorch's own index has a build of a tenth of the size. Where it cannot be reached, the default index will do.
define INSTALL_TORCH
if ! $(PIP) list --format freeze 2>/dev/null | grep -q '^torch==$(call PIN,torch)'; then \
  pins="torch==$(call PIN,torch) torchvision==$(call PIN,torchvision)"; \
  if [ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null || \
    ! $(PIP) install --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu $$pins 2>/dev/null; \
  then $(PIP) install $$pins; fi; \
fi
endef
