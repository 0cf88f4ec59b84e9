"""Figures in words."""


def duration(seconds: float) -> str:
    """Return a time in words."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{2 if seconds < 1 else 1 if seconds / unit < 10 else 0}f} {name}"
    return f"{seconds / 86_400:.0f} d"


def size_text(count: int) -> str:
    """Return so many bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 1):.0f} MB"
