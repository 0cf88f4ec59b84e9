"""Files of one band each: which band a name says, what is beside the bands, and which listed files are one scene."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from tmtool.dates import acquired
from tmtool.errors import InputError
from tmtool.source import deliveries
from tmtool.source.deliveries import bands
from tmtool.source.deliveries.bands import grouped, read

S2 = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
L8, L7 = "LC08_L2SP_233083_20200101_20200113_02_T1", "LE07_L2SP_233083_20020105_20200917_02_T1"
S30, L30 = "HLS.S30.T19HCC.2020001T143729.v2.0", "HLS.L30.T19HCC.2020001T143729.v2.0"
OPERA = "OPERA_L2_RTC-S1_T069-147174-IW2_20231001T001327Z_20231002T045340Z_S1A_30_v1.0"
HYP3 = "S1A_IW_20230101T014815_DVP_RTC30_G_g{}uned_1234"


def folder(where: Path, *names: str) -> Path:
    where.mkdir(parents=True, exist_ok=True)
    for name in names:
        (where / name).touch()
    return where


def found(pattern: Path) -> dict[str, str]:
    return {layer.name: Path(layer.path).name for layer in read(str(pattern)).layers}


@pytest.mark.parametrize(
    ("pattern", "field", "expected"),
    [
        ("T19HCC_20200101T143731_{}.jp2", [f"{b}_10m" for b in S2], dict(zip(S2, S2, strict=True))),
        ("T19HCC_20200101T143731_{}.jp2", [*S2, "TCI", "AOT", "WVP", "SCL"], dict(zip(S2, S2, strict=True))),
        ("{}.tif", ["B02", "B8A", "SCL", "thumbnail", "scene_B02"], {"B02": "B02", "B8A": "B8A"}),
        ("my_site.{}.tif", ["B4", "B8A", "B12", "QA60"], {"B04": "B4", "B8A": "B8A", "B12": "B12"}),
        ("site_{}.tif", ["B2", "B4", "B8A"], {"B02": "B2", "B04": "B4", "B8A": "B8A"}),
        (f"{S30}.{{}}.tif", ["B02", "B8A", "B09", "B10", "Fmask", "SZA"], {"B02": "B02", "B8A": "B8A", "B09": "B09"}),
        (
            f"{L30}.{{}}.tif",
            [*(f"B{i:02}" for i in (*range(1, 8), 9, 10, 11)), "Fmask"],
            {"B01": "B01", "B02": "B02", "B03": "B03", "B04": "B04", "B8A": "B05", "B11": "B06", "B12": "B07"},
        ),
        (
            f"{L8}_{{}}.TIF",
            [*(f"SR_B{i}" for i in range(1, 8)), "SR_QA_AEROSOL", "ST_B10", "QA_PIXEL", "QA_RADSAT"],
            {
                "B02": "SR_B2",
                "B04": "SR_B4",
                "B8A": "SR_B5",
                "B11": "SR_B6",
                "B12": "SR_B7",
                "B01": "SR_B1",
                "B03": "SR_B3",
            },
        ),
        (
            f"{L7}_SR_{{}}.TIF",
            ["B1", "B3", "B4", "B5", "B7"],
            {"B02": "B1", "B04": "B3", "B8A": "B4", "B11": "B5", "B12": "B7"},
        ),
        (f"{OPERA}_{{}}.tif", ["VH", "VV", "mask"], {"VV": "VV", "VH": "VH"}),
        (f"{HYP3.format('p')}_{{}}.tif", ["VV", "VH", "dem", "inc_map", "ls_map", "rgb"], {"VV": "VV", "VH": "VH"}),
        ("iw-{}.rtc.tiff", ["vh", "vv"], {"VV": "vv", "VH": "vh"}),
        ("{}.rtc.tiff", ["iw-vh", "iw-vv"], {"VV": "iw-vv", "VH": "iw-vh"}),
        ("{}.tif", ["Site.VV", "Site.VH", "Site.angle"], {"VV": "Site.VV", "VH": "Site.VH"}),
    ],
)
def test_names_say_bands(tmp_path: Path, pattern: str, field: list[str], expected: dict[str, str]) -> None:
    folder(tmp_path, *(pattern.format(name) for name in field))
    got = found(tmp_path / pattern.replace("{}", "{band}"))
    of_field = {band: next(n for n in field if n in (name, f"{name}_10m")) for band, name in expected.items()}
    assert got == {band: pattern.format(name) for band, name in of_field.items()}
    assert list(got) == sorted(got, key=bands._ORDER.index)


@pytest.mark.parametrize(
    ("names", "pattern", "modality", "scale", "nodata", "power", "date"),
    [
        (
            ["T19HCC_20200101T143731_B02.jp2"],
            "T19HCC_20200101T143731_{band}.jp2",
            None,
            (1, 0),
            None,
            False,
            "2020-01-01T14:37:31",
        ),
        ([f"{L8}_SR_B4.TIF"], f"{L8}_SR_{{band}}.TIF", None, (0.275, 2000), 0, False, "2020-01-01"),
        ([f"{L7}_SR_B3.TIF"], f"{L7}_SR_{{band}}.TIF", None, (0.275, 2000), 0, False, "2002-01-05"),
        ([f"{S30}.B04.tif"], f"{S30}.{{band}}.tif", None, (1, 0), None, False, "2020-01-01T14:37:29"),
        ([f"{L30}.B04.tif"], "{band}.tif", None, (1, 0), None, False, "2020-01-01T14:37:29"),
        (
            [f"{OPERA}_VV.tif", f"{OPERA}_VH.tif"],
            f"{OPERA}_{{band}}.tif",
            "S1RTC",
            (1, 0),
            None,
            True,
            "2023-10-01T00:13:27",
        ),
        (
            [f"{HYP3.format('p')}_{b}.tif" for b in ("VV", "VH")],
            f"{HYP3.format('p')}_{{band}}.tif",
            "S1RTC",
            (1, 0),
            None,
            True,
            "2023-01-01T01:48:15",
        ),
        (
            [f"{HYP3.format('d')}_{b}.tif" for b in ("VV", "VH")],
            f"{HYP3.format('d')}_{{band}}.tif",
            "S1RTC",
            (1, 0),
            None,
            False,
            "2023-01-01T01:48:15",
        ),
        (["iw-vv.rtc.tiff", "iw-vh.rtc.tiff"], "iw-{band}.rtc.tiff", "S1RTC", (1, 0), None, True, None),
        (["a_VV.tif", "a_VH.tif"], "a_{band}.tif", None, (1, 0), None, False, None),
        (["T19HCC_20209901T143731_B02.jp2"], "T19HCC_20209901T143731_{band}.jp2", None, (1, 0), None, False, None),
        (["HLS.S30.T19HCC.2020999T143729.v2.0.B04.tif"], "{band}.tif", None, (1, 0), None, False, None),
    ],
)
def test_names_say_what_values_mean(
    tmp_path: Path,
    names: list[str],
    pattern: str,
    modality: str | None,
    scale: tuple[float, float],
    nodata: float | None,
    power: bool,
    date: str | None,
) -> None:
    delivery = read(str(folder(tmp_path, *names) / pattern))
    assert (delivery.modality, delivery.nodata, delivery.power) == (modality, nodata, power)
    assert (delivery.gain, delivery.offset) == scale
    assert bool(delivery.scale_why) == names[0].startswith(("L", "HLS"))
    assert acquired(delivery.tags)[0] == date


def test_landsat_is_brought_to_dn(tmp_path: Path) -> None:
    delivery = read(str(folder(tmp_path, f"{L8}_SR_B4.TIF") / f"{L8}_SR_{{band}}.TIF"))
    stored = 18_639
    assert stored * delivery.gain - delivery.offset == pytest.approx((stored * 2.75e-05 - 0.2) * 10_000)


@pytest.mark.parametrize(
    ("names", "pattern", "words"),
    [
        ([], "a_{band}.tif", ["matches no file", "a_{band}.tif"]),
        (["a_mask.tif"], "a_{band}.tif", ["a_mask.tif", "B02", "Rename"]),
        ([f"{OPERA}_VV.tif"], f"{OPERA}_{{band}}.tif", ["VH is missing"]),
        (["iw-vh.rtc.tiff"], "iw-{band}.rtc.tiff", ["VV is missing"]),
        (
            [f"{HYP3.format('a')}_VV.tif", f"{HYP3.format('a')}_VH.tif"],
            f"{HYP3.format('a')}_{{band}}.tif",
            ["amplitude", "power"],
        ),
        (["a_B02.tif", "a_VV.tif", "a_VH.tif"], "a_{band}.tif", ["several scenes", "a_B02.tif", "a_VH.tif"]),
        (["a_B02.tif", "b_B03.tif"], "{band}.tif", ["several scenes", "b_B03.tif"]),
        ([f"{HYP3.format(u)}_{b}.tif" for u, b in (("p", "VV"), ("d", "VH"))], "{band}.tif", ["several scenes"]),
        (["a_B2.tif", "a_B02.tif"], "a_{band}.tif", ["B02 twice"]),
        (["LC08_L1TP_233083_20200101_20200113_02_T1_B4.TIF"], "{band}.TIF", ["Level-1", "L2SP"]),
        ([f"{L8}_ST_B10.TIF"], f"{L8}_ST_{{band}}.TIF", ["says which band"]),
    ],
)
def test_what_is_no_scene_is_refused(tmp_path: Path, names: list[str], pattern: str, words: list[str]) -> None:
    path = folder(tmp_path, *names) / pattern
    with pytest.raises(InputError) as error:
        read(str(path))
    assert all(word in str(error.value) for word in [*words, str(path)])


def test_the_finest_of_several_sizes_is_read(tmp_path: Path) -> None:
    stem = "T19HCC_20200101T143731"
    folder(tmp_path, *(f"{stem}_{name}.jp2" for name in ("B02_60m", "B02_10m", "B02_20m", "B05_20m", "B05_60m")))
    assert found(tmp_path / f"{stem}_{{band}}.jp2") == {"B02": f"{stem}_B02_10m.jp2", "B05": f"{stem}_B05_20m.jp2"}


def test_a_scene_whose_name_begins_as_anothers(tmp_path: Path) -> None:
    folder(tmp_path, "a_B02.tif", "a_B03.tif", "a_b_B02.tif", "a_b_B03.tif")
    assert found(tmp_path / "a_{band}.tif") == {"B02": "a_B02.tif", "B03": "a_B03.tif"}


def test_characters_of_globs_are_taken_as_they_are(tmp_path: Path) -> None:
    folder(tmp_path / "[1]*", "a_B02.tif", "a_B03.tif")
    assert len(found(tmp_path / "[1]*" / "a_{band}.tif")) == 2


def test_the_field_in_a_folder_too(tmp_path: Path) -> None:
    for band in ("B02", "B03"):
        folder(tmp_path / band, f"a_{band}.tif")
    assert list(found(tmp_path / "{band}" / "a_{band}.tif")) == ["B02", "B03"]


def test_claims() -> None:
    assert bands.claims("s2/T19_{band}.jp2")
    assert not bands.claims("s2/T19_B02.jp2")
    assert deliveries.is_delivery("s2/T19_{band}.jp2")


def test_a_file_of_that_name_is_a_file(tmp_path: Path) -> None:
    assert not bands.claims(str(folder(tmp_path, "a_{band}.tif") / "a_{band}.tif"))


def test_files_open(tmp_path: Path) -> None:
    for band in ("B04", "B8A"):
        with rasterio.open(
            tmp_path / f"{S30}.{band}.tif", "w", "GTiff", 4, 4, 1, dtype="int16", nodata=-9999, crs="EPSG:32719"
        ) as dst:
            dst.write(np.full((1, 4, 4), 7, "int16"))
    delivery = deliveries.delivery_of(str(tmp_path / f"{S30}.{{band}}.tif"))
    assert delivery is not None
    for layer in delivery.layers:
        with rasterio.open(layer.path) as src:
            assert (src.nodata, src.read(layer.band).max()) == (-9999, 7)


S2_STEM, OTHER = "f/T19HCC_20200101T143731", "f/T19HCC_20200106T143731"
ONE_SCENE: list[tuple[str, list[str], list[str]]] = [
    ("sentinel", [f"{S2_STEM}_{b}.jp2" for b in S2], [f"{S2_STEM}_{{band}}.jp2"]),
    (
        "sizes and sides",
        [f"{S2_STEM}_{b}.jp2" for b in ("AOT_10m", "B02_10m", "B02_20m", "B05_20m", "SCL_20m", "TCI_10m")],
        [f"{S2_STEM}_{{band}}.jp2"],
    ),
    ("a folder of its own", ["f/B02.tif", "f/B03.tif", "f/SCL.tif"], ["f/{band}.tif"]),
    ("here", ["B02.tif", "B03.tif"], ["{band}.tif"]),
    ("short names", ["f/a_B2.tif", "f/a_B4.tif", "f/a_B8A.tif"], ["f/a_{band}.tif"]),
    ("earth engine", ["f/a.B2.tif", "f/a.B3.tif", "f/a.QA60.tif"], ["f/a.{band}.tif"]),
    ("earth engine's radar", ["f/a.VH.tif", "f/a.VV.tif", "f/a.angle.tif"], ["f/a.{band}.tif"]),
    (
        "landsat",
        [f"f/{L8}_{n}.TIF" for n in ("QA_PIXEL", "SR_B4", "SR_B5", "SR_QA_AEROSOL", "ST_B10")],
        [f"f/{L8}_SR_{{band}}.TIF"],
    ),
    ("hls", [f"f/{L30}.{n}.tif" for n in ("B02", "B04", "B10", "B11", "Fmask", "VAA")], [f"f/{L30}.{{band}}.tif"]),
    ("opera", [f"f/{OPERA}_{n}.tif" for n in ("VH", "VV", "mask")], [f"f/{OPERA}_{{band}}.tif"]),
    (
        "hyp3",
        [f"f/{HYP3.format('d')}_{n}.tif" for n in ("VH", "VV", "dem", "ls_map")],
        [f"f/{HYP3.format('d')}_{{band}}.tif"],
    ),
    ("planetary computer", ["f/iw-vh.rtc.tiff", "f/iw-vv.rtc.tiff"], ["f/iw-{band}.rtc.tiff"]),
    (
        "two scenes",
        [f"{S2_STEM}_B02.jp2", f"{OTHER}_B02.jp2", f"{S2_STEM}_B03.jp2", f"{OTHER}_B03.jp2"],
        [f"{S2_STEM}_{{band}}.jp2", f"{OTHER}_{{band}}.jp2"],
    ),
    ("two folders", ["f/B02.tif", "f/B03.tif", "g/B02.tif", "g/B03.tif"], ["f/{band}.tif", "g/{band}.tif"]),
    (
        "others keep their place",
        ["f/0.tif", "f/B02.tif", "f/B03.tif", "f/z.tif"],
        ["f/0.tif", "f/{band}.tif", "f/z.tif"],
    ),
    (
        "rasters that are not the bands'",
        ["f/a_B02.tif", "f/a_B03.tif", "f/a_dem.tif"],
        ["f/a_{band}.tif", "f/a_dem.tif"],
    ),
]


@pytest.mark.parametrize(("paths", "expected"), [c[1:] for c in ONE_SCENE], ids=[c[0] for c in ONE_SCENE])
def test_bands_of_one_scene_are_listed_as_one(paths: list[str], expected: list[str]) -> None:
    assert grouped(paths) == expected


@pytest.mark.parametrize(
    "paths",
    [
        ["f/a.tif", "f/b.tif"],
        ["f/a_B02.tif", "f/b_B03.tif"],
        ["f/B02.tif", "g/B03.tif"],
        ["f/a_B02.tif", "f/a_B03.jp2"],
        ["f/a_B02.tif"],
        [f"{S2_STEM}_SCL_20m.jp2", f"{S2_STEM}_TCI_10m.jp2"],
        [f"f/{OPERA}_VV.tif", f"f/{OPERA}_mask.tif"],
        ["f/tile_A1.tif", "f/tile_A2.tif", "f/tile_B1.tif", "f/tile_B2.tif"],
        ["f/tile_B1.tif", "f/tile_B2.tif"],
        ["f/tile_B01.tif", "f/tile_B02.tif", "f/tile_C01.tif"],
        ["f/tile_B11.tif", "f/tile_B12.tif", "f/tile_B13.tif"],
        ["f/a_B02.tif", "f/a_VV.tif", "f/a_VH.tif"],
        ["f/LC08_L1TP_233083_20200101_20200113_02_T1_B4.TIF", "f/LC08_L1TP_233083_20200101_20200113_02_T1_B5.TIF"],
        [f"f/{L8}_ST_B10.TIF", f"f/{L8}_QA_PIXEL.TIF"],
        ["f/sub_LC08_2020.B4.tif", "f/sub_LC08_2020.B5.tif"],
        ["/vsis3/b/a_B02.tif", "/vsis3/b/a_B03.tif"],
        ["https://h/a_B02.tif", "https://h/a_B03.tif"],
        ["f/a_{band}.tif", "f/c.tif"],
        ["f/Santiago_S2L2A.tif", "f/Santiago_S1GRD.tif"],
    ],
)
def test_what_may_be_several_scenes_is_left_alone(paths: list[str]) -> None:
    assert grouped(paths) == paths


def test_what_is_grouped_is_read(tmp_path: Path) -> None:
    folder(
        tmp_path, *(Path(p).name for p in ONE_SCENE[1][1]), *(f"{L8}_{n}.TIF" for n in ("SR_B4", "SR_B5", "QA_PIXEL"))
    )
    patterns = grouped(sorted(map(str, tmp_path.iterdir())))
    assert [[layer.name for layer in read(p).layers] for p in patterns] == [["B04", "B8A"], ["B02", "B05"]]
