# make demo   set up, then teacher, baseline, inherited and distilled student on the built-in data set, with a table and pictures
# make test   set up, then the tests            make test-slow   the longer ones
# make check  ruff, mypy, structure        make clean       forget the virtual environment of these requirements
# make fuzz   set up, then ten minutes for each reader of foreign files; SECONDS=60 READER=checkpoint for less

PYTHON ?= python3
HASH := $(shell cat requirements.txt requirements-dev.txt | sha256sum | cut -c1-12)
VENV ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/yolo-distill/venv-$(HASH)
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

# Of `make fuzz`, for each reader
SECONDS ?= 600
READER ?= all

.PHONY: demo test test-slow check fuzz env clean

env: $(READY)

$(READY):
	@echo "Setting up $(VENV) (torch is about 5 GB on the first time; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(READY)
	$(PY) compare.py --experiment experiments/demo.yaml --jobs 2

# Two processes of one thread each: threads of both on the same cores would wait for each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow"

test-slow: $(READY)
	$(PY) -m pytest -m slow

check: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest tests/unit/test_structure.py

# Where atheris cannot be installed, the fuzzer says so and takes its own loop.
fuzz: $(READY)
	-$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-fuzz.txt
	$(PY) -m fuzz $(READER) --seconds $(SECONDS)

clean:
	rm -rf $(VENV)
