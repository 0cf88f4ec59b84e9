"""Batches on several lanes: results in order, errors in their turn, nothing waited for that nobody wants."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tmtool.errors import DeviceError
from tmtool.models.device import resolve
from tmtool.tiles._lanes import Lanes


def test_results_come_in_the_order_of_the_items() -> None:
    begun, gate = threading.Event(), threading.Event()

    def slow(item: int) -> tuple[str, int]:
        begun.set()
        gate.wait(10)
        return "slow", item

    def quick(item: int) -> tuple[str, int]:
        begun.wait(10)
        if item == 3:
            gate.set()
        return "quick", item

    with Lanes([slow, quick]) as lanes:
        for item in range(4):
            assert not lanes.full
            lanes.put(item)
        assert lanes.full
        made = [lanes.take() for _ in range(4)]
    assert [item for _, item in made] == [0, 1, 2, 3]
    assert {who for who, _ in made} == {"slow", "quick"}  # the quick one went on while the slow one waited


def test_an_error_is_raised_in_its_turn() -> None:
    def call(item: int) -> int:
        if item == 1:
            raise ValueError("the second")
        return item

    with Lanes([call]) as lanes:
        lanes.put(0)
        lanes.put(1)
        assert lanes.take() == 0
        with pytest.raises(ValueError, match="the second"):
            lanes.take()


def test_what_is_under_way_is_dropped_when_nobody_wants_it() -> None:
    begun, done = threading.Event(), []

    def long(item: int) -> int:
        begun.set()
        for _ in range(100_000):
            time.sleep(0.001)
        done.append(item)
        return item

    with Lanes([long]) as lanes:
        lanes.put(0)
        lanes.put(1)
        assert begun.wait(10)
    assert not done
    assert not [t for t in threading.enumerate() if t.name.startswith("lane-")]


def test_several_devices_make_the_same_pixels(tmtool: Any, make_raster: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (12, 500, 700)).astype(np.int16)
    values[:, 100:300, 50:400] = 0
    path = make_raster(values, nodata=0)
    made = []
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        out = tmp_path / name
        args = ("--out", "S1GRD,LULC", "--model", "demo", "--timesteps", "3", "--device", device, "-o", out, "--json")
        result = tmtool("generate", path, *args)
        assert result.exit_code == 0, result.stderr
        made.append([rasterio.open(out / f"scene_{m}.tif").read() for m in ("S1GRD", "LULC")])
    for one, two in zip(*made, strict=True):
        np.testing.assert_array_equal(one, two)


def test_devices_that_cannot_go_together() -> None:
    assert resolve("cpu,cpu").beside == ("cpu",)
    assert [c.device for c in resolve("cpu,cpu").each] == ["cpu", "cpu"]
    with pytest.raises(DeviceError, match="cuda:99"):
        resolve("cpu,cuda:99")


def test_kinds_of_devices_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmtool.models.device._device", lambda name: name)
    with pytest.raises(DeviceError, match="one kind only"):
        resolve("cpu,cuda:0", "fp32")
    with pytest.raises(DeviceError, match="twice"):
        resolve("cuda:0,cuda:0", "fp32")
