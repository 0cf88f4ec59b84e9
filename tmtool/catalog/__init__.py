"""STAC: an item beside the products of each scene, items of the models, and static catalogs of folders."""

from tmtool.catalog._documents import check_free, is_document
from tmtool.catalog._folder import Refreshed, item_collection, refresh
from tmtool.catalog._scene import write_item

__all__ = ["Refreshed", "check_free", "is_document", "item_collection", "refresh", "write_item"]
