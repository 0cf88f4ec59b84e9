# make demo: run the main job on the shipped sample, offline.   make test: pass the tests.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test test-lowest lint bench clean docs/tokens.png docs/embed.png docs/preview.png docs/water.png

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --editable ".[test]"
	touch $@

demo: .venv/installed
	.venv/bin/tmtool generate samples/demo_scene.tif --out LULC,NDVI,S1GRD --model demo --temperature 0 \
	  --output-dir out --overwrite

test: .venv/installed
	$(PY) -m pytest

# With the lowest versions that pyproject.toml admits, where `make test` has the highest: tests of what those may lack, or all
# of them (LOWEST=tests). It takes several GB and is not part of CI.
LOWEST ?= tests/test_compat.py tests/test_architecture.py tests/test_onednn.py tests/test_sampling.py tests/test_source.py \
  tests/test_formats.py tests/test_cli.py tests/test_demo.py
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest $(LOWEST)

.venv-lowest/installed: pyproject.toml tests/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --editable ".[test]" --constraint tests/lowest.txt
	touch $@

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

docs/preview.png: demo
	.venv/bin/tmtool preview out/demo_scene_LULC.tif --with samples/demo_scene.tif --size 420
	mv out/demo_scene_LULC.png $@

docs/water.png: .venv/installed
	.venv/bin/tmtool predict samples/demo_scene.tif --config samples/water.yaml --checkpoint samples/water.ckpt \
	  --output-dir out --overwrite
	$(PY) samples/render_demo.py out $@

# what of them, and how: make bench BENCH="--only a,b --model base"
BENCH ?= --quick --model demo
bench: .venv/installed
	$(PY) -m tests.bench $(BENCH)

clean:
	rm -rf .venv .venv-lowest out build *.egg-info
