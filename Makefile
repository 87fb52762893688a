# `make verify` and `make test` need Python 3.11 or newer and nothing else; both make .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT := reports/out
CHECKPOINT ?= build/checkpoint
MLX ?= build/mlx

.PHONY: verify test lint clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

# From nothing to a verdict: write the embedded checkpoint, convert it, judge the conversion, write the report.
verify: $(STAMP)
	rm -rf $(MLX) $(OUT)
	test -e $(CHECKPOINT) || $(BIN)/python -m reference.synthesize --size tiny --seed 0 $(CHECKPOINT)
	$(BIN)/python convert/run.py --hf-path $(CHECKPOINT) --mlx-path $(MLX)
	status=0; $(BIN)/python -m pytest parity_tests --quiet -m "not meta" --checkpoint $(CHECKPOINT) --mlx-path $(MLX) --report $(OUT) || status=$$?; \
	  $(BIN)/python -m reports.build $(OUT)/report.json && exit $$status

test: lint
	$(BIN)/python -m pytest --quiet

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build $(OUT)
