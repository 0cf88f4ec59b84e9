"""The sheet around a picture: title, legend, scale bar and north."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tmtool.errors import OutputError
from tmtool.grid import BoolArray
from tmtool.pictures._drawing import Colours, Legend, rgb

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_INK, _PAPER, _EDGE = (32, 33, 36, 255), (255, 255, 255, 255), 12


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a picture written, which gets its name when it is complete. Raises `OutputError`."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}).") from error


@dataclass(frozen=True)
class Panel:
    """One picture: its colours, where there is data, and what its colours mean."""

    colours: Colours
    valid: BoolArray
    legend: Legend
    caption: str = ""

    def image(self) -> "Image":
        """Return it as an image that is transparent where there is no data."""
        from PIL import Image

        alpha = np.where(self.valid, 255, 0)[..., None]
        return Image.fromarray(np.concatenate([np.round(self.colours * 255), alpha], axis=-1).astype(np.uint8), "RGBA")


@dataclass(frozen=True)
class Sheet:
    """Panels of one size side by side under a title. `pixel_m` is the side of a panel's pixel; `north` says that it is up."""

    title: str
    panels: tuple[Panel, ...]
    pixel_m: float | None = None
    north: bool = False

    def save(self, path: Path) -> None:
        """Write the sheet as PNG, by an atomic rename. Raises `OutputError`."""
        image = self.image()
        write_whole(path, lambda part: image.save(part, "PNG"))

    def image(self) -> "Image":
        """Draw the sheet."""
        from PIL import Image, ImageDraw

        height, width = self.panels[0].valid.shape
        text = _font(width)
        line = round(1.6 * text.size)
        rows = max(_legend_rows(p.legend, width, text) for p in self.panels) + any(p.caption for p in self.panels)
        size = (
            len(self.panels) * (width + _EDGE) + _EDGE,
            line + height + rows * line + line + 2 * _EDGE,
        )
        sheet = Image.new("RGBA", size, _PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((_EDGE, _EDGE // 2), _cut(self.title, size[0] - 2 * _EDGE, text), _INK, text)
        for i, panel in enumerate(self.panels):
            left, top = _EDGE + i * (width + _EDGE), line + _EDGE
            sheet.paste(panel.image(), (left, top))
            below = top + height + _EDGE // 2
            if panel.caption:
                draw.text((left, below), _cut(panel.caption, width, text), _INK, text)
                below += line
            _draw_legend(draw, panel.legend, (left, below, width), text)
        self._draw_scale(draw, (_EDGE, size[1] - line), width, text)
        return sheet

    def _draw_scale(self, draw: "ImageDraw", at: tuple[int, int], width: int, font: "FreeTypeFont") -> None:
        left, top = at
        if self.pixel_m:
            metres = _round_length(width * self.pixel_m / 4)
            length = round(metres / self.pixel_m)
            middle = top + font.size // 2
            draw.line((left, middle, left + length, middle), _INK, 2)
            for x in (left, left + length):
                draw.line((x, middle - 4, x, middle + 4), _INK, 2)
            words = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
            draw.text((left + length + 8, top), words, _INK, font)
        if self.north:
            x, high = left + width - 10, font.size
            draw.polygon([(x, top), (x - 5, top + high), (x, top + 0.75 * high), (x + 5, top + high)], _INK)
            draw.text((x - 22, top), "N", _INK, font)


def _font(width: int) -> "FreeTypeFont":
    from PIL import ImageFont

    font: FreeTypeFont = ImageFont.load_default(max(13, min(18, width // 40)))  # type: ignore[assignment]
    return font


def _cut(text: str, width: int, font: "FreeTypeFont") -> str:
    """Return the text, shortened in its middle if it is too long."""
    length = font.getlength
    if length(text) <= width:
        return text
    for keep in range(len(text), 2, -1):
        short = f"{text[: keep // 2]}...{text[-(keep - keep // 2) :]}"
        if length(short) <= width:
            return short
    return text[:1]


def _round_length(metres: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not longer."""
    power = 10 ** math.floor(math.log10(max(metres, 1e-9)))
    return float(max(n for n in (1, 2, 5) if n * power <= metres) * power)


def _entries(legend: Legend, width: int, font: "FreeTypeFont") -> list[tuple[int, int, str, str]]:
    """Return column in px, row, name and colour of each entry."""
    placed, x, row = [], 0, 0
    for name, colour in legend.entries:
        wide = round(font.getlength(name) + 2 * font.size)
        if x and x + wide > width:
            x, row = 0, row + 1
        placed.append((x, row, name, colour))
        x += wide
    return placed


def _legend_rows(legend: Legend, width: int, font: "FreeTypeFont") -> int:
    entries = _entries(legend, width, font)
    return (entries[-1][1] + 1 if entries else 0) + bool(legend.text or legend.ramp)


def _draw_legend(draw: "ImageDraw", legend: Legend, at: tuple[int, int, int], font: "FreeTypeFont") -> None:
    left, top, width = at
    side = font.size
    line = round(1.6 * side)
    if legend.ramp:
        bar = min(120, max(20, width // 4))
        room = width - bar - 16 - font.getlength(legend.high)
        words = f"{_cut(legend.text, round(room - font.getlength(f': {legend.low}')), font)}: " if legend.text else ""
        words += legend.low
        draw.text((left, top), words, _INK, font)
        x = left + round(font.getlength(words)) + 8
        stops = np.stack([rgb(colour) for colour in legend.ramp])
        for i in range(bar):
            at_ = i / (bar - 1) * (len(stops) - 1)
            red, green, blue = (round(255 * np.interp(at_, range(len(stops)), stops[:, c])) for c in range(3))
            draw.line((x + i, top + 2, x + i, top + side), (red, green, blue, 255))
        draw.text((x + bar + 8, top), legend.high, _INK, font)
    elif legend.text:
        draw.text((left, top), _cut(legend.text, width, font), _INK, font)
    top += line * bool(legend.text or legend.ramp)
    for x, row, name, colour in _entries(legend, width, font):
        y = top + row * line
        draw.rectangle((left + x, y + 2, left + x + side, y + 2 + side), colour, _INK)
        draw.text((left + x + side + 5, y), name, _INK, font)
