"""The models that tmtool can run: what each takes and gives, and where its code is. Nothing heavy is imported here."""

from tmtool.models._host import host_bytes
from tmtool.models.entry import EmbeddingOutput, ModelEntry, ModelSpec, Moments, TileModel
from tmtool.models.registry import MODELS, RANDOM, build, find, load_families, register
from tmtool.models.requests import Decoding, Embedding, Encoding, Generation, Request
from tmtool.settings import Sampling

load_families()

__all__ = [
    "MODELS",
    "RANDOM",
    "Decoding",
    "Embedding",
    "EmbeddingOutput",
    "Encoding",
    "Generation",
    "ModelEntry",
    "ModelSpec",
    "Moments",
    "Request",
    "Sampling",
    "TileModel",
    "build",
    "find",
    "host_bytes",
    "register",
]
