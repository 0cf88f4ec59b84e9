"""When an image was taken, as text by ISO 8601 in UTC: a day, or a day and a time to the second."""

from collections.abc import Mapping
from datetime import UTC, datetime

TAGS = (
    "ACQUISITIONDATETIME",
    "ACQUISITION_DATETIME",
    "ACQUISITION_DATE",
    "DATE_ACQUIRED",
    "SENSING_TIME",
    "DATATAKE_1_DATATAKE_SENSING_START",
    "PRODUCT_START_TIME",
)
"""Tags that say it, in order of preference. TIFFTAG_DATETIME is not one: it is mostly when the file was written."""


def parsed(text: str) -> str | None:
    """Return a date, or a date with its time (without a zone in UTC), as this module has it; None for anything else."""
    text = text.strip()
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    if len(text) <= len("2024-06-01"):
        return found.date().isoformat()
    found = found.astimezone(UTC) if found.tzinfo else found
    return found.replace(tzinfo=None, microsecond=0).isoformat()


def acquired(tags: Mapping[str, str]) -> tuple[str | None, str]:
    """Return when a raster with these tags was taken, and which tag says it; None where none does."""
    upper = {key.upper(): value for key, value in tags.items()}
    for tag in TAGS:
        if tag in upper and (date := parsed(upper[tag])):
            return date, f"its tag {tag}"
    return None, "no tag says it"
