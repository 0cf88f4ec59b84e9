"""A static catalog of a folder: links to the items of its scenes, to its subfolders', and to the models."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmtool.catalog import _models as models
from tmtool.catalog._documents import CATALOG, KIND, MODELS, check_free, kind_of, relative, write
from tmtool.catalog._products import Found, by_scene, products, state
from tmtool.catalog._scene import document, write_item
from tmtool.errors import InputError, OutputError, TmtoolError
from tmtool.tasks import formats, possible_stems


@dataclass(frozen=True)
class Refreshed:
    """A catalog, the items of scenes that it leads to, and what is wrong with products or items that it does not list."""

    path: Path
    items: tuple[Path, ...]
    wrong: tuple[TmtoolError, ...]


def refresh(root: Path, *, recursive: bool = False) -> Refreshed:
    """Make or refresh the catalog of a folder of products; with `recursive`, of its subfolders too.

    Writes `catalog.json`, an item a scene, and below `models/` those of the models, all with relative links; removes items whose
    products are gone. Raises `InputError` for a folder without products and catalog, `OutputError` where another file has a name.
    """
    if not root.is_dir():
        raise InputError(f"{root}: is no folder; give the one that products were written to.")
    known = kind_of(root / CATALOG) == "catalog"
    work = _Work(root, recursive)
    listed = work.folder(root, known=known)
    if not listed and not known and not work.wrong:
        hint = "" if recursive else " --recursive also searches its subfolders."
        raise InputError(f"{root}: holds no product of tmtool.{hint}")
    return Refreshed(root / CATALOG, tuple(work.items), tuple(work.wrong))


class _Work:
    """One refresh."""

    def __init__(self, root: Path, recursive: bool) -> None:
        self.root, self.recursive = root, recursive
        self.items: list[Path] = []
        self.wrong: list[TmtoolError] = []
        self.made: list[Found] = []

    def folder(self, folder: Path, *, known: bool) -> bool:
        """Write the catalog of a folder, if there is anything for it to list or it is `known`; return whether there is."""
        path = folder / CATALOG
        check_free(path, "catalog")
        items = self._scenes(folder)
        below = [child for child in self._subfolders(folder) if self.folder(child, known=False)]
        below += [self.root / MODELS] if folder == self.root and self._models() else []
        if items or below or known:
            write(path, _catalog(path, self.root, items, [child / CATALOG for child in below]), "catalog")
        else:
            path.unlink(missing_ok=True)
        return bool(items or below)

    def _subfolders(self, folder: Path) -> list[Path]:
        own = {self.root / MODELS}
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        found = [p for p in inside if not p.name.startswith(".") and p.suffix not in formats() and p not in own]
        return found if self.recursive else []

    def _scenes(self, folder: Path) -> list[Path]:
        """Write the items of a folder's scenes, and remove those whose products are gone.

        Scenes that other processes write to meanwhile are looked at again.
        """
        before = state(folder)
        found, wrong = products(folder)
        self.wrong += wrong
        self.made += found
        links = _up(folder, self.root)
        items: dict[Path, None] = {}
        for stem, some in by_scene(found):
            path = folder / f"{stem}.json"
            try:
                write(path, document(stem, some, folder, self.root, links), "scene")
            except OutputError as error:
                self.wrong.append(error)
                continue
            items[path] = None
        for stem in {stem for path, _ in state(folder) - before for stem in possible_stems(path.stem)}:
            if products(folder, stem)[0]:
                items[write_item(folder, stem, self.root, links)] = None
        for path in folder.glob("*.json"):
            if path not in items and kind_of(path) == "scene" and not products(folder, path.stem)[0]:
                path.unlink()
        self.items += items
        return sorted(items)

    def _models(self) -> bool:
        """Write the items and the catalog of the models that made the products; return whether there are any.

        A folder of scenes may have their folder's name: they are listed there too.
        """
        path = self.root / MODELS / CATALOG
        scenes = self._scenes(path.parent) if self.recursive and path.parent.is_dir() else []
        items = models.write_items(self.root, self.made)
        models.drop(self.root, items)
        if items or scenes:
            write(path, _catalog(path, self.root, [*items, *scenes], []), "catalog")
        elif kind_of(path) == "catalog":
            path.unlink()
            with contextlib.suppress(OSError):  # something else is in it
                path.parent.rmdir()
        return bool(items or scenes)


def _up(folder: Path, root: Path) -> dict[str, str]:
    """Return the links from an item in a folder to its catalog and the root."""
    return {"root": relative(root / CATALOG, folder), "parent": f"./{CATALOG}"}


def _catalog(path: Path, root: Path, items: Sequence[Path], catalogs: Sequence[Path]) -> dict[str, Any]:
    import pystac

    folder = path.parent
    name = folder.absolute().name or "products"
    about = "Models that made the products." if folder == root / MODELS else "Products of tmtool, an item a scene."
    catalog = pystac.Catalog(name, about, name, extra_fields={KIND: "catalog"})
    catalog.clear_links()
    links = [("root", root / CATALOG, pystac.MediaType.JSON)]
    links += [("parent", folder.parent / CATALOG, pystac.MediaType.JSON)] if folder != root else []
    links += [("child", child, pystac.MediaType.JSON) for child in catalogs]
    links += [("item", item, pystac.MediaType.GEOJSON) for item in items]
    for rel, target, media in links:
        titles = {"child": target.parent.name, "item": target.stem}
        catalog.add_link(pystac.Link(rel, relative(target, folder), media, titles.get(rel)))
    return catalog.to_dict(include_self_link=False, transform_hrefs=False)


def item_collection(made: Refreshed) -> dict[str, Any]:
    """Return the items of a catalog as one document with absolute links, as GDAL's STACIT takes them."""
    import pystac

    items = [pystac.Item.from_file(str(path.absolute())) for path in made.items]
    for item in items:
        item.make_asset_hrefs_absolute()
        for link in item.links:
            link.target = link.get_absolute_href() or link.target
    return pystac.ItemCollection(items, clone_items=False).to_dict(transform_hrefs=False)
