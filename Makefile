# `make verify` and `make test` need Python 3.11 or newer and nothing else; both make .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT := reports/out
LAST := build/last_report.json
EMBEDDED := build/checkpoint
CHECKPOINT ?= $(EMBEDDED)
# One process a core, files in their order: sorted by their number of tests, a long one would end alone.
WORKERS := --numprocesses auto --dist loadfile --no-loadscope-reorder
# cpu or gpu; auto is MLX's own choice.
DEVICE ?= auto
# Removed by each run, so nobody may point it at a folder of their own.
override MLX := build/mlx

.PHONY: setup verify test quick lint types docs record audit examples findings clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,docs]'
	@# Judged by the judge's own tests. Without what it asks for: another transformers than the witness.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt mlx-lm
	touch $@

setup: $(STAMP)

# From nothing to a verdict: write the embedded checkpoint, convert it, judge the conversion, write the report.
# A refused conversion does not end it: the suite then converts on the fly and says which part is to blame.
# What the run before it left in reports/out is what the page compares with.
verify: $(STAMP)
	@mkdir -p build; test ! -f $(OUT)/report.json || cp $(OUT)/report.json $(LAST)
	rm -rf $(EMBEDDED) $(MLX) $(OUT)
	test "$(CHECKPOINT)" != "$(EMBEDDED)" || $(BIN)/python -m reference.synthesize --size tiny --seed 0 $(EMBEDDED)
	@status=0; \
	$(BIN)/python convert/run.py --hf-path $(CHECKPOINT) --mlx-path $(MLX) --device $(DEVICE) || status=1; \
	given=$$(test -d $(MLX) && echo "--mlx-path $(MLX)"); \
	$(BIN)/python -m parity_tests.coverage -m "not meta and not robust" $(WORKERS) --device $(DEVICE) --checkpoint $(CHECKPOINT) $$given --report $(OUT) || status=1; \
	$(BIN)/python -m reports.build $(OUT)/report.json --last $(LAST) --ledger build/ledger.jsonl || status=1; \
	exit $$status

# What `make verify` leaves out: the tests of the suite itself, broken and hostile input.
test: lint types
	$(BIN)/python -m pytest --quiet -m "meta or robust" $(WORKERS)

# After each change: one case of every part, the rules of the house, the linter.
quick: lint
	$(BIN)/python -m pytest --quiet --quick parity_tests/test_parts.py tests/repository/test_house.py tests/repository/test_architecture.py tests/repository/test_prose.py -m "not meta or house" --numprocesses auto

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(STAMP)
	$(BIN)/mypy

# The site, from the same Markdown files: build/site/docs/index.html. A link that leads nowhere fails it.
docs: $(STAMP)
	$(BIN)/python -m sphinx -c docs --fail-on-warning --keep-going --quiet . build/site

# The whole catalogue of faults, some minutes; the score is kept, and each report shows it until the code changes.
record: $(STAMP)
	$(BIN)/python -m parity_tests.faults --json parity_tests/data/fault_score.json --signatures parity_tests/data/fault_signatures.json

# Another port: make audit PORT=mlx_audio_plus
audit: $(STAMP)
	$(BIN)/python -m parity_tests.audit $(PORT)

# Other people's ports before the judge, each in an environment of its own below build/; the first run needs the network.
# Two at once, of one thread each: their arrays are too small for more.
examples: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m mlx_parity run examples/ports/*.py --out $(OUT)/examples --declared --faults --as-shipped --jobs 2

# The page of all audits, from what `make audit` of mlx_audio_plus and `make examples` found last.
findings: $(STAMP)
	$(BIN)/python -m reports.findings $(OUT)/audit-mlx_audio_plus $(OUT)/examples/* --out docs/findings.md

clean:
	rm -rf $(VENV) build $(OUT)
