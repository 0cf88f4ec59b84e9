"""Seeded synthesis of plausible 10 m scenes: Sentinel-2, Sentinel-1, elevation, land cover and NDVI, co-registered.

Everything is drawn from one integer seed with numpy and scipy: a terrain with rivers and lakes in its low places,
a land-cover map that follows the terrain (class values of the Esri 10 m land-cover map, as TerraMind uses), the
materials that cover each pixel, their reflectance in the twelve Sentinel-2 L2A bands under a sun, a haze and clouds,
and their radar backscatter with speckle. No measured data goes in. The scenes serve the demo raster, the tests and
the training of the demo model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, shift, zoom

Array = NDArray[np.float32]

S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
PIXEL_M = 10.0
# Slope (rise over run) that no more than a few per cent of a scene exceeds.
STEEPEST = 0.55

WATER, TREES, FLOODED, CROPS, BUILT, BARE, SNOW, CLOUDS, RANGE = 1, 2, 3, 4, 5, 6, 7, 8, 9
LULC_NAMES = {
    1: "water",
    2: "trees",
    3: "flooded vegetation",
    4: "crops",
    5: "built area",
    6: "bare ground",
    7: "snow/ice",
    8: "clouds",
    9: "rangeland",
}

# Surface reflectance of each material in the order of S2_BANDS.
MATERIALS: dict[str, tuple[float, ...]] = {
    "crop": (0.025, 0.035, 0.070, 0.038, 0.105, 0.32, 0.42, 0.45, 0.47, 0.47, 0.20, 0.10),
    "broadleaf": (0.018, 0.024, 0.046, 0.026, 0.070, 0.23, 0.30, 0.32, 0.34, 0.34, 0.15, 0.065),
    "conifer": (0.014, 0.019, 0.031, 0.020, 0.045, 0.13, 0.17, 0.185, 0.20, 0.20, 0.09, 0.04),
    "grass": (0.030, 0.042, 0.078, 0.056, 0.118, 0.25, 0.31, 0.33, 0.35, 0.35, 0.22, 0.12),
    "straw": (0.050, 0.068, 0.108, 0.140, 0.180, 0.21, 0.235, 0.26, 0.28, 0.28, 0.33, 0.22),
    "shrub": (0.036, 0.047, 0.074, 0.076, 0.115, 0.17, 0.20, 0.225, 0.245, 0.245, 0.24, 0.15),
    "loam": (0.055, 0.070, 0.098, 0.130, 0.155, 0.175, 0.19, 0.205, 0.225, 0.225, 0.29, 0.25),
    "red_soil": (0.040, 0.055, 0.085, 0.155, 0.195, 0.225, 0.245, 0.265, 0.285, 0.28, 0.36, 0.31),
    "sand": (0.120, 0.155, 0.220, 0.285, 0.315, 0.335, 0.35, 0.365, 0.38, 0.37, 0.46, 0.42),
    "rock": (0.095, 0.110, 0.132, 0.155, 0.167, 0.178, 0.187, 0.195, 0.205, 0.20, 0.24, 0.215),
    "clear_water": (0.028, 0.032, 0.027, 0.013, 0.010, 0.008, 0.007, 0.006, 0.005, 0.004, 0.003, 0.002),
    "turbid_water": (0.050, 0.066, 0.100, 0.098, 0.088, 0.050, 0.045, 0.035, 0.025, 0.02, 0.008, 0.005),
    "reeds": (0.020, 0.027, 0.045, 0.036, 0.070, 0.13, 0.155, 0.165, 0.17, 0.16, 0.08, 0.042),
    "roof": (0.150, 0.180, 0.205, 0.230, 0.240, 0.25, 0.26, 0.275, 0.285, 0.28, 0.31, 0.28),
    "tiles": (0.075, 0.090, 0.112, 0.175, 0.195, 0.21, 0.225, 0.24, 0.255, 0.25, 0.29, 0.26),
    "asphalt": (0.070, 0.080, 0.092, 0.102, 0.108, 0.113, 0.118, 0.123, 0.128, 0.125, 0.145, 0.135),
    "snow": (0.86, 0.88, 0.87, 0.85, 0.83, 0.81, 0.79, 0.77, 0.72, 0.65, 0.11, 0.08),
}
MATERIAL_INDEX = {name: index for index, name in enumerate(MATERIALS)}

CLOUD = np.array([0.66, 0.66, 0.66, 0.67, 0.69, 0.70, 0.71, 0.72, 0.72, 0.62, 0.52, 0.42], np.float32)
HAZE = np.array([0.050, 0.040, 0.026, 0.017, 0.014, 0.011, 0.009, 0.008, 0.007, 0.006, 0.003, 0.002], np.float32)
# Share of sky light: shadows stay bluish because more of the blue comes from the sky.
DIFFUSE = np.array([0.45, 0.40, 0.32, 0.26, 0.24, 0.22, 0.20, 0.18, 0.17, 0.17, 0.13, 0.11], np.float32)
# Ground sampling of the bands in pixels of 10 m; coarser bands come on the 10 m grid by nearest neighbour.
BAND_STEP = (6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 2, 2)


@dataclass(frozen=True)
class World:
    """What a seed decides about a scene before any pixel is drawn.

    Shares are fractions of the scene's land, heights metres, angles degrees (azimuth clockwise from north), sizes
    pixels of 10 m. ``green`` says how green grass and fields are, ``deciduous`` how leafy the woods.
    """

    green: float
    broadleaf: float
    tree_share: float
    crop_share: float
    bare_share: float
    base_m: float
    relief_m: float
    rivers: int
    river_px: float
    lake_share: float
    wetland_px: float
    turbidity: float
    towns: int
    town_px: float
    snow_share: float
    cloud_share: float
    cloud_shift_px: float
    sun_azimuth: float
    sun_zenith: float
    haze: float
    parcel_px: float
    bare_kind: str
    soil_kind: str
    look_azimuth: float
    wind_db: float
    moisture_db: float


def draw_world(seed: int, **fixed: Any) -> World:
    """Draw the scalars of a scene from its seed; keyword arguments replace the fields they name."""
    rng = np.random.default_rng([seed, 1])
    biome = rng.choice(["temperate", "mediterranean", "arid", "tropical", "mountain"], p=[0.32, 0.2, 0.14, 0.14, 0.2])
    low, high = {
        "temperate": (0.45, 0.95),
        "mediterranean": (0.2, 0.7),
        "arid": (0.05, 0.4),
        "tropical": (0.55, 1.0),
        "mountain": (0.3, 0.85),
    }[biome]
    relief = {"temperate": 90, "mediterranean": 220, "arid": 200, "tropical": 120, "mountain": 750}[biome]
    world = World(
        green=rng.uniform(low, high),
        broadleaf=rng.uniform(0.0, 1.0) if biome in ("temperate", "mountain") else rng.uniform(0.6, 1.0),
        tree_share=rng.uniform(0.1, 0.5) * (0.35 if biome == "arid" else 1.0),
        crop_share=rng.uniform(0.15, 0.6) * (0.35 if biome == "mountain" else 1.0),
        bare_share=rng.uniform(0.02, 0.12) + {"arid": 0.3, "mountain": 0.15, "mediterranean": 0.05}.get(biome, 0.0),
        base_m=float(rng.gamma(1.6, 260.0)) + (1200.0 if biome == "mountain" else 0.0),
        relief_m=relief * float(np.exp(rng.normal(0.0, 0.5))),
        rivers=int(rng.integers(0, 3)),
        river_px=rng.uniform(4.0, 18.0),
        lake_share=max(0.0, rng.uniform(-0.06, 0.14)),
        wetland_px=max(0.0, rng.uniform(-8.0, 26.0)),
        turbidity=rng.uniform(0.0, 1.0),
        towns=int(rng.integers(0, 5)),
        town_px=rng.uniform(28.0, 66.0),
        snow_share=rng.uniform(0.08, 0.4) if biome == "mountain" and rng.random() < 0.65 else 0.0,
        cloud_share=rng.uniform(0.03, 0.2) if rng.random() < 0.45 else 0.0,
        cloud_shift_px=rng.uniform(12.0, 40.0),
        sun_azimuth=rng.uniform(0.0, 360.0),
        sun_zenith=rng.uniform(22.0, 60.0),
        haze=float(rng.gamma(1.5, 0.35)),
        parcel_px=rng.uniform(16.0, 42.0),
        bare_kind=str(rng.choice(["rock", "sand", "loam", "red_soil"], p=[0.4, 0.25, 0.2, 0.15])),
        soil_kind=str(rng.choice(["loam", "red_soil", "sand"], p=[0.6, 0.25, 0.15])),
        look_azimuth=float(rng.choice([80.0, 280.0])),
        wind_db=rng.normal(0.0, 1.2),
        moisture_db=rng.normal(0.0, 0.6),
    )
    return replace(world, **fixed)


def fractal(
    rng: np.random.Generator, shape: tuple[int, int], beta: float, longest: float, shortest: float = 0
) -> Array:
    """Gaussian noise of unit variance with power ~ 1 / f**beta between two wavelengths in pixels, shape (H, W)."""
    spectrum = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    squared = np.fft.fftfreq(shape[0])[:, None] ** 2 + np.fft.rfftfreq(shape[1])[None, :] ** 2
    spectrum *= (squared + 1.0 / longest**2) ** (-beta / 4.0) * np.exp(-squared * shortest**2)
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=shape)
    return (field / field.std()).astype(np.float32)


def _unit(field: Array) -> Array:
    low, high = np.quantile(field, (0.01, 0.99))
    return np.clip((field - low) / max(high - low, 1e-6), 0.0, 1.0).astype(np.float32)


def _top_share(score: Array, share: float, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The given share of the pixels of ``among`` with the highest score."""
    if share <= 0.0 or not among.any():
        return np.zeros(score.shape, bool)
    return among & (score > np.quantile(score[among], max(0.0, 1.0 - share)))


def _winding_line(rng: np.random.Generator, shape: tuple[int, int], bend_px: float) -> Array:
    """Distance in pixels to a winding line that crosses the scene, shape (H, W)."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    angle = rng.uniform(0.0, np.pi)
    across = (columns - shape[1] / 2) * np.cos(angle) + (rows - shape[0] / 2) * np.sin(angle)
    across = across - rng.uniform(-0.35, 0.35) * min(shape) + bend_px * fractal(rng, shape, 4.5, 260.0, 20.0)
    gradient = np.hypot(*np.gradient(across))
    return (np.abs(across) / np.maximum(gradient, 0.35)).astype(np.float32)


def _terrain(rng: np.random.Generator, shape: tuple[int, int], world: World) -> tuple[Array, NDArray[np.bool_]]:
    """Elevation in metres and the mask of water, both (H, W): rivers run in valleys, lakes lie in basins."""
    ridges = 1.0 - np.abs(fractal(rng, shape, 4.6, 300.0, 12.0)) / 2.5
    hills = _unit(0.6 * ridges + 0.8 * fractal(rng, shape, 5.0, 600.0, 14.0))
    rise = np.ones(shape, np.float32)
    water = np.zeros(shape, bool)
    for _ in range(world.rivers):
        distance = _winding_line(rng, shape, 30.0)
        width = world.river_px * rng.uniform(0.5, 1.0) * (1.0 + 0.25 * fractal(rng, shape, 3.0, 80.0, 10.0))
        water |= distance < width / 2
        rise = np.minimum(rise, 1.0 - np.exp(-np.maximum(distance - width / 2, 0.0) / 70.0))
    basins = fractal(rng, shape, 4.0, 170.0, 9.0)
    if world.lake_share > 0.0:
        shore = np.quantile(basins, 1.0 - world.lake_share)
        water |= basins > shore
        rise = np.minimum(rise, 1.0 - np.exp(-distance_transform_edt(basins <= shore) / 70.0))
    shape_of_land = gaussian_filter(gaussian_filter(rise, 8.0) * (0.1 + 0.9 * hills), 2.0)
    steep = float(np.quantile(np.hypot(*np.gradient(shape_of_land, PIXEL_M)), 0.97))
    relief = min(world.relief_m, STEEPEST / max(steep, 1e-9))
    return (world.base_m + relief * shape_of_land).astype(np.float32), water


def _towns(rng: np.random.Generator, slope: Array, water: NDArray[np.bool_], world: World) -> NDArray[np.bool_]:
    """Mask of the built-up areas (H, W): ragged discs on flat, dry ground."""
    shape = slope.shape
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    ragged = fractal(rng, shape, 2.8, 60.0, 7.0)
    town = np.zeros(shape, bool)
    for _ in range(world.towns):
        candidates = rng.integers(0, shape, size=(60, 2))
        unfit = slope[candidates[:, 0], candidates[:, 1]] + 10.0 * water[candidates[:, 0], candidates[:, 1]]
        row, column = candidates[int(np.argmin(unfit))]
        radius = world.town_px * rng.uniform(0.6, 1.2)
        town |= np.hypot(rows - row, columns - column) + 0.28 * radius * ragged < radius
    return town


def _land_cover(
    rng: np.random.Generator, height: Array, slope: Array, water: NDArray[np.bool_], world: World
) -> NDArray[np.uint8]:
    """Land-cover classes 1 to 9 without clouds, shape (H, W), uint8."""
    shape = height.shape
    tilt = _unit(gaussian_filter(slope, 4.0))
    level = _unit(height)
    lulc = np.full(shape, RANGE, np.uint8)
    everywhere = np.ones(shape, bool)
    woods = fractal(rng, shape, 3.2, 170.0, 9.0) + 0.6 * tilt - 0.6 * np.maximum(level - 0.7, 0.0)
    farms = fractal(rng, shape, 3.6, 260.0, 12.0) - 2.2 * tilt - 0.8 * level
    stones = fractal(rng, shape, 3.2, 160.0, 9.0) + 1.2 * tilt + 1.0 * level
    lulc[_top_share(woods, world.tree_share, everywhere)] = TREES
    lulc[_top_share(farms, world.crop_share, everywhere)] = CROPS
    lulc[_top_share(stones, world.bare_share, lulc != CROPS)] = BARE
    peaks = level + 0.10 * fractal(rng, shape, 3.2, 120.0, 9.0)
    lulc[_top_share(peaks, world.snow_share, everywhere)] = SNOW
    lulc[_towns(rng, slope, water, world)] = BUILT
    if world.wetland_px > 0.0 and water.any():
        reach = world.wetland_px * (0.6 + 0.7 * fractal(rng, shape, 3.0, 110.0, 9.0))
        lulc[(distance_transform_edt(~water) < reach) & (lulc != BUILT) & (lulc != SNOW)] = FLOODED
    lulc[water] = WATER
    return lulc


def _parcels(rng: np.random.Generator, shape: tuple[int, int], size_px: float) -> tuple[NDArray[np.int64], Array]:
    """Number of the field each pixel belongs to, and its distance in pixels to the field's edge, both (H, W)."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    district = np.digitize(fractal(rng, shape, 3.6, 300.0, 12.0), (-0.6, 0.6))
    number = np.zeros(shape, np.int64)
    edge = np.zeros(shape, np.float32)
    for index in range(3):
        angle = rng.uniform(0.0, np.pi)
        long = columns * np.cos(angle) + rows * np.sin(angle) + 4096.0
        wide = rows * np.cos(angle) - columns * np.sin(angle) + 4096.0
        cuts = np.cumsum(size_px * rng.uniform(0.6, 1.5, int(9000 / size_px)))
        strip = np.searchsorted(cuts, wide)
        lengths = size_px * rng.uniform(0.9, 2.6, cuts.size + 1)
        starts = rng.uniform(0.0, 200.0, cuts.size + 1)
        along = (long + starts[strip]) / lengths[strip]
        cell = np.floor(along)
        bounds = np.concatenate([[0.0], cuts, [1e6]])
        to_side = np.minimum(wide - bounds[strip], bounds[strip + 1] - wide)
        to_end = np.minimum(along - cell, cell + 1.0 - along) * lengths[strip]
        here = district == index
        number[here] = (index * 1_000_003 + strip * 7919 + cell.astype(np.int64) * 104_729)[here]
        edge[here] = np.minimum(to_side, to_end)[here]
    return number, edge


def _crop_cover(rng: np.random.Generator, number: NDArray[np.int64], world: World) -> tuple[Array, Array, Array]:
    """Per pixel the fields' leaf cover 0..1, their share of straw on bare parts and their lightness factor."""
    table = 4096
    pick = number % table
    grown = rng.random(table) < 0.15 + 0.75 * world.green
    cover = np.where(grown, rng.uniform(0.55, 1.0, table), rng.uniform(0.0, 0.3, table))
    straw = np.clip(rng.normal(0.9 - 0.9 * world.green, 0.35, table), 0.0, 1.0)
    light = np.exp(rng.normal(0.0, 0.12, table))
    return tuple(values[pick].astype(np.float32) for values in (cover, straw, light))


class _Cover:
    """Shares of the materials in each pixel, shape (materials, H, W), filled class by class."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shares = np.zeros((len(MATERIALS), *shape), np.float32)

    def put(self, where: NDArray[np.bool_], **materials: Array | float) -> None:
        """Set the pixels of ``where`` to the named shares (arrays of shape (H, W) or numbers)."""
        for name, share in materials.items():
            value = share[where] if isinstance(share, np.ndarray) else share
            self.shares[MATERIAL_INDEX[name]][where] += value


def _town_pattern(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Shares of street, roof and garden inside towns, each (H, W): blocks between crossing streets."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    angle, period = rng.uniform(0.0, np.pi / 2), rng.uniform(9.0, 15.0)
    long = columns * np.cos(angle) + rows * np.sin(angle)
    wide = rows * np.cos(angle) - columns * np.sin(angle)
    street = ((long % (1.6 * period) < 1.3) | (wide % period < 1.3)).astype(np.float32)
    block = np.floor(long / (1.6 * period)) * 131 + np.floor(wide / period) * 17
    dense = rng.uniform(0.35, 0.85, 512).astype(np.float32)[np.abs(block).astype(np.int64) % 512]
    houses = zoom(rng.random((shape[0] // 2 + 2, shape[1] // 2 + 2), dtype=np.float32), 2, order=0)
    roof = np.clip(dense + 0.6 * (houses[: shape[0], : shape[1]] - 0.5), 0.05, 1.0) * (1.0 - street)
    return street, roof, 1.0 - street - roof


def _cover(
    rng: np.random.Generator, lulc: NDArray[np.uint8], crops: tuple[Array, Array, Array], edge: Array, world: World
) -> Array:
    """Material shares (materials, H, W) of a scene without clouds."""
    shape = lulc.shape
    cover = _Cover(shape)
    patchy = fractal(rng, shape, 2.2, 90.0, 2.0)
    lush = np.clip(world.green + 0.16 * patchy, 0.0, 1.0).astype(np.float32)
    murky = np.clip(world.turbidity + 0.15 * fractal(rng, shape, 3.4, 150.0, 10.0), 0.0, 1.0).astype(np.float32)
    leafy = np.clip(world.broadleaf + 0.3 * fractal(rng, shape, 3.0, 120.0, 6.0), 0.0, 1.0).astype(np.float32)
    cover.put(lulc == WATER, clear_water=1.0 - murky, turbid_water=murky)
    bare_winter = 0.35 * leafy * (1.0 - world.green)
    cover.put(lulc == TREES, broadleaf=leafy - bare_winter, conifer=1.0 - leafy, shrub=bare_winter)
    wet = np.clip(0.3 + 0.12 * patchy, 0.0, 0.6).astype(np.float32)
    cover.put(lulc == FLOODED, reeds=0.75 - 0.5 * wet, clear_water=0.6 * wet, grass=0.25 - 0.1 * wet)
    leaf, straw, _ = crops
    hedge = np.clip(1.0 - edge / 0.9, 0.0, 1.0) * 0.5
    field = {world.soil_kind: (1 - leaf) * (1 - straw) * (1 - hedge)}
    cover.put(lulc == CROPS, crop=leaf * (1 - hedge), straw=(1 - leaf) * straw * (1 - hedge), shrub=hedge, **field)
    street, roof, garden = _town_pattern(rng, shape)
    red = np.clip(0.45 + 0.3 * fractal(rng, shape, 2.0, 40.0), 0.0, 1.0).astype(np.float32)
    cover.put(lulc == BUILT, asphalt=street, tiles=roof * red, roof=roof * (1 - red))
    cover.put(lulc == BUILT, grass=garden * (0.3 + 0.5 * lush), shrub=garden * (0.7 - 0.5 * lush))
    weeds = np.clip(0.10 + 0.08 * patchy, 0.0, 0.3).astype(np.float32)
    cover.put(lulc == BARE, shrub=weeds, **{world.bare_kind: 1.0 - weeds})
    melt = np.clip(0.08 + 0.10 * patchy, 0.0, 0.45).astype(np.float32)
    cover.put(lulc == SNOW, snow=1.0 - melt, rock=melt)
    scrub = np.clip(0.25 + 0.22 * fractal(rng, shape, 2.4, 50.0, 2.0), 0.0, 0.7).astype(np.float32)
    thin = 0.12 * (1.0 - lush)
    rest = 1.0 - scrub - thin
    cover.put(lulc == RANGE, grass=rest * lush, straw=rest * (1 - lush), shrub=scrub, **{world.soil_kind: thin})
    return cover.shares


def _roads(rng: np.random.Generator, shares: Array, lulc: NDArray[np.uint8], count: int) -> None:
    """Lay roads of one to two pixels into the material shares, in place; they are too thin for the land-cover map."""
    asphalt = MATERIAL_INDEX["asphalt"]
    for _ in range(count):
        distance = _winding_line(rng, lulc.shape, 14.0)
        share = np.clip(1.3 - distance, 0.0, 0.8) * (lulc != SNOW) * (lulc != WATER)
        shares *= 1.0 - share
        shares[asphalt] += share


def _spectra(rng: np.random.Generator) -> Array:
    """The materials' reflectance with this scene's own deviations, shape (materials, 12)."""
    base = np.array(list(MATERIALS.values()), np.float32)
    ramp = np.linspace(-1.0, 1.0, base.shape[1], dtype=np.float32)
    level, tilt = rng.normal(0.0, 0.12, (len(base), 1)), rng.normal(0.0, 0.06, (len(base), 1))
    factor = np.exp(level + tilt * ramp + rng.normal(0.0, 0.03, base.shape) + rng.normal(0.0, 0.02, (1, 12)))
    return np.clip(base * factor, 0.001, 1.1).astype(np.float32)


def _illumination(height: Array, world: World) -> Array:
    """Cosine of the sun's angle of incidence relative to flat ground, shape (H, W)."""
    down, right = np.gradient(height, PIXEL_M)
    zenith, azimuth = np.radians(world.sun_zenith), np.radians(world.sun_azimuth)
    # Rows run southward: a slope that falls toward the sun faces it.
    toward = -right * np.sin(azimuth) + down * np.cos(azimuth)
    cosine = (1.0 + toward * np.tan(zenith)) / np.sqrt(1.0 + down**2 + right**2)
    return np.clip(cosine, 0.05, 2.0).astype(np.float32)


def _clouds(rng: np.random.Generator, shape: tuple[int, int], world: World) -> tuple[Array, Array]:
    """Opacity of the clouds and depth of their shadow on the ground, both (H, W) in 0..1."""
    if world.cloud_share <= 0.0:
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    field = fractal(rng, shape, 3.8, 170.0, 8.0)
    opacity = np.clip((field - np.quantile(field, 1.0 - world.cloud_share)) / 0.45 + 0.5, 0.0, 1.0)
    azimuth = np.radians(world.sun_azimuth)
    away = np.array([np.cos(azimuth), -np.sin(azimuth)]) * world.cloud_shift_px
    shadow = shift(opacity, away, order=1, mode="constant")
    return opacity.astype(np.float32), gaussian_filter(shadow, 1.0).astype(np.float32)


def _sampled(field: Array, step: int) -> Array:
    """The field (H, W) averaged over cells of ``step`` pixels and repeated on the original grid."""
    if step == 1:
        return field
    height, width = field.shape
    padded = np.pad(field, ((0, -height % step), (0, -width % step)), mode="edge")
    cells = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).mean((1, 3))
    return cells.repeat(step, 0).repeat(step, 1)[:height, :width]


def _reflectance(
    rng: np.random.Generator, shares: Array, texture: Array, light: Array, clouds: tuple[Array, Array], world: World
) -> Array:
    """Surface reflectance (12, H, W) as a sensor would see it: sun, sky, haze, clouds, blur and noise."""
    shape = shares.shape[1:]
    ground = np.tensordot(_spectra(rng), shares, axes=(0, 0)) * texture
    opacity, shadow = clouds
    sun = light * (1.0 - 0.85 * shadow)
    bumps = 1.0 + 0.07 * fractal(rng, shape, 2.4, 40.0, 1.0)
    out = np.empty_like(ground)
    for band in range(len(S2_BANDS)):
        seen = ground[band] * ((1.0 - DIFFUSE[band]) * sun + DIFFUSE[band]) + world.haze * HAZE[band]
        seen = seen * (1.0 - opacity) + CLOUD[band] * bumps * opacity
        seen += rng.normal(0.0, 0.0005, shape).astype(np.float32) * (0.5 + seen)
        out[band] = _sampled(gaussian_filter(seen, 0.45), BAND_STEP[band])
    return np.clip(out, 0.0001, 1.6)


def _texture(rng: np.random.Generator, lulc: NDArray[np.uint8], light: Array) -> Array:
    """Multiplicative fine texture (H, W): rough canopies, smooth water, each field with its own lightness."""
    depth = np.zeros(10, np.float32)
    depth[[WATER, TREES, FLOODED, CROPS, BUILT, BARE, SNOW, RANGE]] = 0.02, 0.16, 0.09, 0.05, 0.10, 0.09, 0.03, 0.08
    grain = fractal(rng, lulc.shape, 1.4, 30.0, 1.0)
    return np.exp(depth[lulc] * grain) * np.where(lulc == CROPS, light, 1.0)


def _backscatter(
    rng: np.random.Generator, lulc: NDArray[np.uint8], crops: tuple[Array, Array, Array], shares: Array, world: World
) -> Array:
    """Radar brightness VV and VH in dB without speckle and without terrain, shape (2, H, W)."""
    leaf = crops[0]
    lush = np.clip(shares[MATERIAL_INDEX["grass"]] + shares[MATERIAL_INDEX["shrub"]], 0.0, 1.0)
    house = shares[MATERIAL_INDEX["roof"]] + shares[MATERIAL_INDEX["tiles"]]
    by_class = np.full((2, 10), -15.0, np.float32)
    by_class[0, 1:] = -20.5, -9.0, -10.5, -15.5, -7.5, -13.0, -14.0, -15.0, -16.5
    by_class[1, 1:] = -27.5, -14.0, -17.0, -23.5, -13.5, -21.0, -21.5, -22.0, -24.0
    # Stony ground is rough at the radar's wavelength of 5.5 cm, sand is smooth and dry.
    by_class[:, BARE] += {"rock": 3.0, "sand": -4.0, "loam": 0.0, "red_soil": 0.5}[world.bare_kind]
    power = by_class[:, lulc]
    power += (lulc == CROPS) * np.stack([6.0 * leaf, 8.0 * leaf])
    power += (lulc == RANGE) * np.stack([4.5 * lush, 6.0 * lush])
    power += (lulc == BUILT) * np.stack([7.5 * house, 7.5 * house])
    power += np.isin(lulc, (CROPS, RANGE, BARE)) * world.moisture_db
    power += (lulc == WATER) * np.array([world.wind_db, 0.4 * world.wind_db], np.float32)[:, None, None]
    power += 0.45 * fractal(rng, lulc.shape, 2.4, 40.0, 2.0) * (lulc != WATER)
    return gaussian_filter(10.0 ** (power / 10.0), (0, 0.8, 0.8)).astype(np.float32)


def _radar(rng: np.random.Generator, brightness: Array, height: Array, world: World) -> dict[str, Array]:
    """S1GRD and S1RTC (2, H, W) in dB, with speckle and without (``*_truth``)."""
    down, right = np.gradient(height, PIXEL_M)
    azimuth = np.radians(world.look_azimuth)
    # Ground that faces the sensor returns more; the radiometric terrain correction takes most of that out.
    facing = np.clip(-right * -np.sin(azimuth) + down * -np.cos(azimuth), -0.5, 0.5)
    out = {}
    for name, gain, offset, looks in (("S1GRD", 9.0, 0.0, 4.4), ("S1RTC", 1.5, 0.8, 9.0)):
        truth = 10.0 * np.log10(brightness) + gain * facing + offset
        speckle = rng.gamma(looks, 1.0 / looks, truth.shape)
        out[f"{name}_truth"] = np.clip(truth, -40.0, 15.0).astype(np.float32)
        out[name] = np.clip(truth + 10.0 * np.log10(np.maximum(speckle, 1e-3)), -45.0, 20.0).astype(np.float32)
    return out


def ndvi(s2: NDArray[Any]) -> Array:
    """NDVI (1, H, W), float32 in -1..1, from S2L2A digital numbers (12, H, W)."""
    red, infrared = (s2[S2_BANDS.index(name)].astype(np.float32) for name in ("B04", "B08"))
    return ((infrared - red) / np.maximum(infrared + red, 1.0))[None]


def synthesise(seed: int, height: int, width: int, **fixed: Any) -> dict[str, NDArray[Any]]:
    """Synthesise one scene.

    Args:
        seed: the scene's seed; the same seed and size give the same arrays.
        height: rows.
        width: columns.
        fixed: fields of ``World`` to set instead of drawing them.

    Returns:
        Co-registered arrays of 10 m pixels: ``S2L2A`` (12, H, W) int16 digital numbers (reflectance x 10 000),
        ``S1GRD`` and ``S1RTC`` (2, H, W) float32 VV and VH in dB with speckle, ``S1GRD_truth`` and ``S1RTC_truth``
        the same without it, ``DEM`` (1, H, W) float32 metres, ``LULC`` (1, H, W) uint8 classes 1 to 9,
        ``NDVI`` (1, H, W) float32.
    """
    world = draw_world(seed, **fixed)
    shape = (height, width)
    rng = np.random.default_rng([seed, 2])
    elevation, water = _terrain(rng, shape, world)
    slope = np.hypot(*np.gradient(elevation, PIXEL_M)).astype(np.float32)
    lulc = _land_cover(rng, elevation, slope, water, world)
    number, edge = _parcels(rng, shape, world.parcel_px)
    crops = _crop_cover(rng, number, world)
    shares = _cover(rng, lulc, crops, edge, world)
    _roads(rng, shares, lulc, int(rng.integers(0, 3)))
    light = _illumination(elevation, world)
    clouds = _clouds(rng, shape, world)
    reflectance = _reflectance(rng, shares, _texture(rng, lulc, crops[2]), light, clouds, world)
    s2 = np.round(reflectance * 10_000.0).astype(np.int16)
    radar = _radar(rng, _backscatter(rng, lulc, crops, shares, world), elevation, world)
    seen = np.where(clouds[0] > 0.5, np.uint8(CLOUDS), lulc)
    return {"S2L2A": s2, **radar, "DEM": elevation[None], "LULC": seen[None], "NDVI": ndvi(s2)}
