"""Pictures of products: what each kind looks like, the sheet that it is shown on, and the page of many."""

from tmtool.pictures._drawing import Components
from tmtool.pictures._page import check_page, write_page
from tmtool.pictures._sheet import Panel, Sheet
from tmtool.pictures.product import Look, Space, fitted, preview

__all__ = ["Components", "Look", "Panel", "Sheet", "Space", "check_page", "fitted", "preview", "write_page"]
