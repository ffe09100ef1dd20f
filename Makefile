# make figures            set up, then the whole workflow at scale mini (about two hours on two cores)
# make figures SCALE=smoke    the same, small, in a few minutes
# make test               set up, then the tests; what .ci/run and the public CI call
PYTHON ?= python3
VENV ?= .venv
SCALE ?= mini
CORES ?= all
BIN := $(VENV)/bin
SCALES = $(patsubst config/%.yaml,%,$(wildcard config/*.yaml))
PART := $(if $(filter-out mini,$(SCALE)),/$(SCALE))
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
BENCH ?=

.PHONY: help setup figures report check test lint format bench gallery schema clean
.DEFAULT_GOAL := help

help:
	@echo "make setup                  create $(VENV) with the tested versions"
	@echo "make figures [SCALE=smoke]  tables, figures and claims into figures/ (of another scale figures/NAME/)"
	@echo "make report [SCALE=...]     results/report.zip after a run"
	@echo "make gallery [SCALE=...]    copy the finished pictures to docs/gallery/ (of another scale docs/gallery/NAME/)"
	@echo "make test | lint | bench    tests (about ten minutes), checks of the source, speed comparisons (docs/benchmarks.md)"
	@echo "make check                  lint and test: all checks in one command"
	@echo "make format | schema        tidy the source; write the schema of the editors' settings anew"
	@echo "make clean                  deletes results/ and logs/: the next 'make figures' begins from nothing"

setup: $(STAMP)

NEW := import sys; sys.exit(sys.version_info < (3, 11))
FIT := import pip; $(NEW)

# The stamp is renewed when what is installed would change. Versions are those of constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -c '$(FIT)' 2>/dev/null || { \
	  $(PYTHON) -c '$(NEW)' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }; \
	  $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[workflow,test]"
	@touch $(STAMP)

figures: $(STAMP)
	@test -f config/$(SCALE).yaml || { echo "no scale $(SCALE); there are: $(SCALES)"; exit 1; }
	$(BIN)/snakemake --cores $(CORES) --configfile config/$(SCALE).yaml

report: $(STAMP)
	$(BIN)/snakemake --cores 1 --configfile config/$(SCALE).yaml --report results/report.zip

gallery: $(STAMP)
	$(BIN)/palimpsest gallery --figures figures$(PART) --results results --out docs/gallery$(PART)

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: lint test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/snakefmt Snakefile workflow

schema: $(STAMP)
	$(BIN)/palimpsest schema --write

# Every piece that has no result yet; BENCH='--only edit-mini-* --again' measures some anew, --list names them.
bench: $(STAMP)
	$(BIN)/python benchmarks/bench.py $(BENCH)

clean:
	rm -rf results logs .snakemake
