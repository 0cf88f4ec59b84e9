"""Products as they are delivered, made small: Sentinel-2 in SAFE and EOPF, bands in files of their own."""

import json
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

from tmtool.modality import MODALITIES

CRS = "EPSG:32719"
CORNER = Affine(10, 0, 300_000, 0, -10, 6_300_040)
SIZES = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 20),
    **dict.fromkeys(("B01", "B09", "B10"), 60),
}
IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
SHAPE = (120, 180)


@dataclass
class Made:
    """A product, its bands as they are stored at their own pixel size, and its mask (L2A: SCL at 20 m; L1C: 3 bands at 60 m)."""

    path: Path
    bands: dict[str, np.ndarray]
    mask: np.ndarray
    extra: dict[str, str] = field(default_factory=dict)

    def stack(self, offset: float = 1000) -> np.ndarray:
        """Return what a reader should give: all bands at 10 m, nearest, without the offset, `(C, H, W)` float32."""
        return np.stack([grown(b, SIZES[name]) for name, b in self.bands.items()]).astype(np.float32) - offset


def grown(values: np.ndarray, size: int) -> np.ndarray:
    return values.repeat(size // 10, axis=-2).repeat(size // 10, axis=-1)


def pixels(names: Iterable[str], offset: float = 1000, shape: tuple[int, int] = SHAPE) -> dict[str, np.ndarray]:
    """Return DN of each band at its own size; a corner is empty in all of them."""
    rng = np.random.default_rng(7)
    found = {}
    for name in names:
        step = SIZES[name] // 10
        h, w = shape[0] // step, shape[1] // step
        found[name] = (rng.integers(200, 4000, (h, w)) + int(offset)).astype(np.uint16)
        found[name][: 60 // SIZES[name] or 1, : 60 // SIZES[name] or 1] = 0
    return found


def classes(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Return a scene classification at 20 m."""
    scl: np.ndarray = np.full((shape[0] // 2, shape[1] // 2), 4, np.uint8)
    for i, value in enumerate((3, 8, 9, 10, 11)):
        scl[10:20, 10 * i : 10 * i + 10] = value
    return scl


def write(path: Path, values: np.ndarray, size: float, driver: str = "JP2OpenJPEG", **profile: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values if values.ndim == 3 else values[None]
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
    place = {"crs": CRS, "transform": CORNER * Affine.scale(size / 10)} | profile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver=driver, count=len(values), height=values.shape[1], width=values.shape[2],
            dtype=values.dtype, **place, **lossless,
        ) as dst:  # fmt: skip
            dst.write(values)
    return path


_GENERAL = """<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{number}_User_Product xmlns:n1="https://psd-15.sentinel2.eo.esa.int/PSD/User_Product_Level-{number}.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>2024-02-03T14:37:29.024Z</PRODUCT_START_TIME>
      <PRODUCT_STOP_TIME>2024-02-03T14:37:29.024Z</PRODUCT_STOP_TIME>
      <PRODUCT_URI>{uri}</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-{number}</PROCESSING_LEVEL>
      <PRODUCT_TYPE>S2MSI{number}</PRODUCT_TYPE>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <GENERATION_TIME>2024-02-03T19:23:08.000000Z</GENERATION_TIME>
      <Datatake datatakeIdentifier="GS2B_20240203T143729_036103_N{baseline}">
        <SPACECRAFT_NAME>Sentinel-2B</SPACECRAFT_NAME>
        <DATATAKE_SENSING_START>2024-02-03T14:37:29.024Z</DATATAKE_SENSING_START>
      </Datatake>
      <Product_Organisation>
        <Granule_List>
          <Granule datastripIdentifier="S2B_OPER_MSI_L{number}_DS" granuleIdentifier="S2B_OPER_MSI_L{number}_TL" imageFormat="JPEG2000">
{images}
          </Granule>
        </Granule_List>
      </Product_Organisation>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
{quantification}
{offsets}
    </Product_Image_Characteristics>
  </n1:General_Info>
</n1:Level-{number}_User_Product>
"""


def safe(folder: Path, level: str = "L2A", baseline: str = "05.09", offset: int | None = -1000) -> Made:
    """Write a SAFE folder; without an offset as baselines before 04.00 have it."""
    modality = MODALITIES[f"S2{level}"]
    name = f"S2B_MSI{level}_20240203T143729_N{baseline.replace('.', '')}_R096_T19HCC_20240203T192308.SAFE"
    root = folder / name
    granule = Path("GRANULE", f"L{level[1:]}_T19HCC_A036103_20240203T144656")
    bands = pixels(modality.bands, -(offset or 0))
    images = []
    for band, values in bands.items():
        size = SIZES[band]
        place = (
            f"R{size}m/T19HCC_20240203T143729_{band}_{size}m" if level == "L2A" else f"T19HCC_20240203T143729_{band}"
        )
        images.append(str(granule / "IMG_DATA" / place))
        write(root / f"{images[-1]}.jp2", values, size)
    if level == "L2A":
        mask = classes()
        images.append(str(granule / "IMG_DATA/R20m/T19HCC_20240203T143729_SCL_20m"))
        write(root / f"{images[-1]}.jp2", mask, 20)
        images.append(str(granule / "IMG_DATA/R20m/T19HCC_20240203T143729_B02_20m"))  # which is coarser, and not taken
        write(root / f"{images[-1]}.jp2", np.full_like(mask, 77, np.uint16), 20)
    else:
        mask = np.zeros((3, SHAPE[0] // 6, SHAPE[1] // 6), np.uint8)
        mask[0, 5:8, 5:9], mask[1, 10:12, 3:6], mask[2, 15:17, 20:25] = 1, 1, 1
        write(root / granule / "QI_DATA/MSK_CLASSI_B00.jp2", mask, 60)
    start = "BOA" if level == "L2A" else "RADIO"
    each = "".join(f'<{start}_ADD_OFFSET band_id="{i}">{offset}</{start}_ADD_OFFSET>' for i in range(13))
    scale = (
        '<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>'
        if level == "L2A"
        else '<QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>'
    )
    (root / f"MTD_MSI{level}.xml").write_text(
        _GENERAL.format(
            number=level[1:],
            uri=name,
            baseline=baseline,
            images="\n".join(f"            <IMAGE_FILE>{image}</IMAGE_FILE>" for image in images),
            quantification=scale,
            offsets=""
            if offset is None
            else f"<{start}_ADD_OFFSET_VALUES_LIST>{each}</{start}_ADD_OFFSET_VALUES_LIST>",
        )
    )
    return Made(root, bands, mask)


def zipped(path: Path, *, top: bool = True) -> Path:
    """Zip a folder, in it or its files alone; return the zip."""
    name = path.with_name(path.name.replace(".SAFE", "") + ".zip")
    with zipfile.ZipFile(name, "w") as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(path.parent if top else path))
    return name


def eopf(folder: Path, level: str = "L2A", *, consolidated: bool = True, affine: bool = True) -> Made:
    """Write an EOPF product; without `affine` only coordinates say where it lies."""
    import zarr

    modality = MODALITIES[f"S2{level}"]
    path = folder / f"S2B_MSI{level}_20250203T143729_N0511_R096_T19HCC_20250203T192308.zarr"
    bands = pixels(modality.bands, 1000)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    about = {"datetime": "2025-02-03T14:37:29.024000Z", "platform": "sentinel-2b", "processing:version": "05.11"}
    about |= {"product:type": f"S02MSI{level}", "proj:epsg": 32719}
    root.attrs["stac_discovery"] = {"type": "Feature", "id": path.stem, "properties": about}
    root.attrs["other_metadata"] = {"horizontal_CRS_code": CRS}
    for size in (10, 20, 60):
        t, (h, w) = CORNER * Affine.scale(size / 10), (n * 10 // size for n in SHAPE)
        group = root.require_group(f"measurements/reflectance/r{size}m")
        for axis, values in (("x", t.c + size * (np.arange(w) + 0.5)), ("y", t.f - size * (np.arange(h) + 0.5))):
            made = group.create_array(axis, data=values.astype(np.int64))
            made.attrs["_ARRAY_DIMENSIONS"] = [axis]
        for band, values in bands.items():
            if SIZES[band] == size:
                array = group.create_array(band.lower(), data=values, chunks=(32, 32), fill_value=0)
                said = {"scale_factor": 1e-4, "add_offset": -0.1, "fill_value": 0}
                array.attrs.update({"_ARRAY_DIMENSIONS": ["y", "x"], "_eopf_attrs": said, **said, "proj:epsg": 32719})
                if affine:
                    array.attrs["proj:transform"] = [*t[:6], 0, 0, 1]
    if level == "L2A":  # B01 is in it at 20 m too, and not taken
        finer = root.create_array(
            f"{group.path.rpartition('/')[0]}/r20m/b01", data=np.full((SHAPE[0] // 2, SHAPE[1] // 2), 77, np.uint16)
        )
        finer.attrs.update({"_ARRAY_DIMENSIONS": ["y", "x"], **said})
    mask = classes() if level == "L2A" else np.zeros((SHAPE[0] // 6, SHAPE[1] // 6), np.uint8)
    if level == "L2A":
        place = "conditions/mask/l2a_classification/r20m/scl"
    else:
        mask[5:8, 5:9], mask[10:12, 3:6], mask[15:17, 20:25] = 1, 3, 4
        place = "conditions/mask/l1c_classification/r60m/b00"
    group, _, name = place.rpartition("/")
    array = root.require_group(group).create_array(name, data=mask, chunks=(32, 32))
    array.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    if level == "L1C":
        array.attrs.update({"flag_masks": [1, 2, 4], "flag_meanings": ["OPAQUE", "CIRRUS", "SNOW_ICE"]})
    if consolidated:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(str(path), zarr_format=2)
    return Made(path, bands, mask)


def item(folder: Path, collection: str = "sentinel-2-c1-l2a", **properties: object) -> tuple[dict, Made]:
    """Write the bands of an item as COGs, as Earth Search names them; return the item and its pixels."""
    names = (
        "coastal",
        "blue",
        "green",
        "red",
        "rededge1",
        "rededge2",
        "rededge3",
        "nir",
        "nir08",
        "nir09",
        "swir16",
        "swir22",
    )
    bands = pixels(MODALITIES["S2L2A"].bands)
    assets: dict[str, object] = {"thumbnail": {"href": "./thumbnail.jpg", "roles": ["thumbnail"]}}
    for name, (band, values) in zip(names, bands.items(), strict=True):
        write(folder / f"{band}.tif", values, SIZES[band], "GTiff", tiled=True, blockxsize=32, blockysize=32)
        raster = {"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}
        assets[name] = {
            "href": f"./{band}.tif",
            "roles": ["data"],
            "raster:bands": [raster],
            "eo:bands": [{"name": name}],
        }
        assets[f"{name}-jp2"] = {"href": f"./{band}.jp2"}
    mask = classes()
    write(folder / "SCL.tif", mask, 20, "GTiff")
    assets["scl"] = {"href": "./SCL.tif", "roles": ["data"]}
    about = {
        "datetime": "2024-02-03T14:47:02Z",
        "platform": "sentinel-2b",
        "s2:processing_baseline": "05.10",
    } | properties
    made = {
        "type": "Feature", "stac_version": "1.0.0", "id": "S2B_T19HCC_20240203", "collection": collection, "geometry": None,
        "properties": about, "assets": assets, "links": [],
    }  # fmt: skip
    (folder / "item.json").write_text(json.dumps(made))
    return made, Made(folder / "item.json", bands, mask)
