# make tables   the study's tables and figures, from nothing        make test   the tests
# make report   tables, figures, settings and DAG as one page of HTML
# make check    what CI runs besides the tests                      STUDY=…     another study of conf/study
STUDY ?= tiny
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: tables report test check clean

tables: $(INSTALLED)
	@$(BIN)/snakemake --cores all results/tables --config study=$(STUDY)
	@echo; cat results/tables/$(STUDY)/main.txt; echo; cat results/tables/$(STUDY)/claims.txt; echo
	@ls results/tables/$(STUDY)/*.csv results/tables/$(STUDY)/*.md results/tables/$(STUDY)/*.tex results/$(STUDY)/figures/*

report: tables
	@$(BIN)/snakemake --report results/tables/$(STUDY)/report.html --quiet --config study=$(STUDY)
	@ls results/tables/$(STUDY)/report.html

test: $(INSTALLED)
	@$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/snakemake -n --quiet
	$(BIN)/snakemake -n --quiet --config study=paper
	$(BIN)/snakemake --lint
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

clean:
	rm -rf $(VENV) .snakemake outputs multirun wandb
