# make demo: run the main job on the shipped sample, offline.   make test: pass the tests.
PYTHON ?= python3
PY := .venv/bin/python

GALLERY := docs/gallery_scene.png docs/gallery_land.png docs/gallery_patches.png

.PHONY: demo test test-lowest lint wheel site bench clean docs/gallery_spread.png docs/tokens.png docs/embed.png docs/preview.png docs/page.png docs/water.png $(GALLERY) tmtool/pictures/page/ol.js

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

# dist/tmtool-*.whl, built of the checkout as it is, installed alone into a fresh environment and tried there.
wheel: .venv/installed
	rm -rf build dist
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build
	$(PY) -m pytest -n 0 tests/wheel.py

# README, docs/ and samples/ as a site: site/index.html. Needs no network.
site: .venv/installed
	rm -rf site
	$(PY) -m sphinx -q -W --keep-going -b html -c docs -d site/.doctrees . site
	rm -r site/.doctrees
	cp site/README.html site/index.html

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

docs/page.png: demo
	.venv/bin/tmtool preview out/demo_scene_LULC.tif out/demo_scene_NDVI.tif --with samples/demo_scene.tif --html out/page.html
	PYTHONPATH=. $(PY) samples/render_page.py out/page.html $@

# The part of OpenLayers that pages use, bundled from npm's packages; its licences are kept beside it.
OL := 10.11.0
ESBUILD := 0.28.2
tmtool/pictures/page/ol.js:
	folder=$$(mktemp -d) && cp tmtool/pictures/page/ol.entry.js $$folder && cd $$folder && npm install ol@$(OL) esbuild@$(ESBUILD) && \
	  npx esbuild ol.entry.js --bundle --minify --format=iife --global-name=ol --legal-comments=none --outfile=$(CURDIR)/$@ && \
	  for name in ol rbush quickselect; do echo "$$name, part of ol.js"; echo; cat node_modules/$$name/LICENSE*; echo; done \
	  > $(CURDIR)/tmtool/pictures/page/ol.LICENSE; rm -r $$folder

docs/water.png: .venv/installed
	.venv/bin/tmtool predict samples/demo_scene.tif --config samples/water.yaml --checkpoint samples/water.ckpt \
	  --probabilities --output-dir out --overwrite
	$(PY) samples/render_demo.py out $@

docs/gallery_spread.png: .venv/installed
	.venv/bin/tmtool generate samples/demo_scene.tif --out S1GRD,LULC --model demo --samples 4 --output-dir out/draws --overwrite
	$(PY) samples/render_demo.py out/draws $@

$(GALLERY): docs/demo.png docs/tokens.png docs/embed.png docs/water.png
	$(PY) samples/render_demo.py out $@

# what of them, and how: make bench BENCH="--only a,b --model base"
BENCH ?= --quick --model demo
bench: .venv/installed
	$(PY) -m tests.bench $(BENCH)

clean:
	rm -rf .venv .venv-lowest out build dist site *.egg-info
