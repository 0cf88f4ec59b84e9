"""Modalities that are sequences of tokens, and what they say: a place, or a caption. No torch here.

A sequence begins with the sentinel `[S_1]`, which opens it, and ends with `[S_2]`; their ids are the ones that terratorch
takes for granted (`generate.py`: `s1_id`, `eos_id`).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tmtool.errors import UsageError, WeightsError
from tmtool.files.sayings import PLACE_BANDS, TEXT_BYTES, Place, place_values, text_values

PAD, EOS, START, END = 0, 3, 5, 6
_EXPECTED = {"[PAD]": PAD, "[EOS]": EOS, "[S_1]": START, "[S_2]": END}
_PLACE = re.compile(r"lat=(-?\d+(?:\.\d+)?) lon=(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class SequenceModality:
    """A modality of one sequence a tile. `length` is its tokens at most, the one that opens it included.

    `name` is the model's key as well. What is said takes `channels` numbers of `dtype`; see `tmtool.files.sayings`.
    """

    name: str
    length: int
    channels: int
    dtype: str


SEQUENCES: dict[str, SequenceModality] = {
    "coords": SequenceModality("coords", 4, len(PLACE_BANDS), "float64"),
    "caption": SequenceModality("caption", 256, 1 + TEXT_BYTES, "uint8"),
}


def check(outputs: Sequence[str], told: bool, offered: Sequence[str], model: str) -> None:
    """Raise `UsageError` for sequences that `model`, which makes those `offered`, cannot make.

    `told` says whether it takes the tiles' coordinates.
    """
    if told and "coords" in outputs:
        raise UsageError("coords is both --in and --out: the model would be given its own answer. Leave out one.")
    if absent := [m for m in outputs if m in SEQUENCES and m not in offered]:
        makes = f"apart from rasters it makes {', '.join(offered) or 'nothing'}"
        cure = "; --model v01-base makes captions" if absent[0] == "caption" else ""
        raise UsageError(f"--out: --model {model} cannot make {absent[0]}; {makes}{cure}.")


def told_places(names: Sequence[str]) -> tuple[list[str], bool]:
    """Return the rasters among what `--in` names, and whether coordinates are. Raises `UsageError` for captions."""
    if any(name.strip().lower().partition("=")[0] == "caption" for name in names):
        raise UsageError(
            "--in caption: text is no input. TerraTorch cannot generate from text alone (it raises NotImplementedError), and a "
            "raster carries none. Give a raster; --out caption makes texts."
        )
    if any(name.strip().lower().startswith("coords=") for name in names):
        raise UsageError("--in coords takes no file: a tile's location is taken from the raster itself.")
    rasters = [name for name in names if name.strip().lower() != "coords"]
    return rasters, len(rasters) < len(names)


class Vocabulary:
    """The words of a sequence modality, by id: a file of the `tokenizers` package."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.sentinels = frozenset(i for word, i in tokenizer.get_vocab().items() if word.startswith("[S_"))

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Read a vocabulary. Raises `WeightsError` if the file is not one, or numbers its words differently from the model."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise WeightsError(f"{path}: is not a vocabulary of the `tokenizers` package ({error}).") from error
        for word, expected in _EXPECTED.items():
            if (found := tokenizer.token_to_id(word)) != expected:
                raise WeightsError(
                    f"{path}: is not TerraMind's vocabulary: {word} has id {found}, expected {expected}. Fetch it again."
                )
        return cls(tokenizer)

    @classmethod
    def blank(cls) -> "Vocabulary":
        """Return the vocabulary that stands in where weights are random: the special tokens only."""
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.models import WordPiece

        words = ("[PAD]", "[UNK]", "[SOS]", "[EOS]", "[S_0]", "[S_1]", "[S_2]")
        tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.add_tokens([AddedToken(word, normalized=False, special=True) for word in words])
        return cls(tokenizer)

    def body(self, ids: Iterable[int]) -> list[int]:
        """Return the tokens that `[S_1]` opens, up to the next sentinel, of all that was drawn before `[S_2]`.

        What terratorch's `merge_sequences` makes of an empty input.
        """
        kept, inside = [], False
        for token in map(int, ids):
            if token == END:
                break
            if token in self.sentinels:
                inside = token == START
            elif inside:
                kept.append(token)
        return kept

    def said(self, name: str, ids: Iterable[int]) -> NDArray[Any]:
        """Return what drawn tokens of the sequence `name` say, in numbers, `(channels,)`."""
        return place_values(self.place(ids)) if name == "coords" else text_values(self.caption(ids))

    def place(self, ids: Iterable[int]) -> Place | None:
        """Return the (longitude, latitude) in degrees that drawn tokens say, or None if they say none."""
        said = _PLACE.fullmatch(self._decode(self.body(ids)[:2]))
        return (float(said[2]), float(said[1])) if said else None

    def caption(self, ids: Iterable[int]) -> str:
        """Return the text of drawn tokens, its sentences begun with capitals; it may be empty."""
        text = self._decode(self.body(ids)).replace(" [EOS]", "").removesuffix("[EOS]")
        return "".join(part.capitalize() for part in re.split("([.!?] *)", text))

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text
