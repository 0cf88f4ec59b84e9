# make demo: run the main job on the shipped sample, offline.   make test: pass the tests.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test lint bench clean docs/tokens.png docs/embed.png

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --editable ".[test]"
	touch $@

demo: .venv/installed
	.venv/bin/tmtool generate samples/demo_scene.tif --out LULC,NDVI,S1GRD --model demo --temperature 0 \
	  --output-dir out --overwrite

test: .venv/installed
	$(PY) -m pytest

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs/demo.png: demo
	$(PY) samples/render_demo.py out $@

docs/tokens.png: .venv/installed
	.venv/bin/tmtool tokenize samples/demo_scene.tif --model demo --output-dir out --overwrite
	.venv/bin/tmtool reconstruct samples/demo_scene.tif --model demo --output-dir out --overwrite
	$(PY) samples/render_demo.py out $@

docs/embed.png: .venv/installed
	.venv/bin/tmtool embed samples/demo_scene.tif --model demo --layer 1,-1 --output-dir out --overwrite
	$(PY) samples/render_demo.py out $@

# what of them, and how: make bench BENCH="--only a,b --model base"
BENCH ?= --quick --model demo
bench: .venv/installed
	$(PY) -m tests.bench $(BENCH)

clean:
	rm -rf .venv out build *.egg-info
