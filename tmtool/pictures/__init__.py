"""Pictures of products: what each kind looks like, and the sheet that it is shown on."""

from tmtool.pictures._sheet import Sheet
from tmtool.pictures.product import Look, fitted, preview

__all__ = ["Look", "Sheet", "fitted", "preview"]
