"""When an image was taken."""

import pytest

from tmtool.dates import acquired, parsed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-06-01", "2024-06-01"),
        ("20240601", "2024-06-01"),
        ("2024-06-01T10:30", "2024-06-01T10:30:00"),
        ("2024-06-01T10:30:31.024Z", "2024-06-01T10:30:31"),
        ("2024-06-01 23:30:00-02:00", "2024-06-02T01:30:00"),
        ("1 June", None),
        ("2024-13-01", None),
        ("", None),
    ],
)
def test_text(text: str, expected: str | None) -> None:
    assert parsed(text) == expected


def test_tags() -> None:
    assert acquired({"sensing_time": "2024-06-01T10:30:00Z"}) == ("2024-06-01T10:30:00", "its tag SENSING_TIME")
    assert acquired({"TIFFTAG_DATETIME": "2024:06:01 10:30:00"})[0] is None
    assert acquired({"ACQUISITION_DATE": "last June", "DATE_ACQUIRED": "2024-06-01"})[0] == "2024-06-01"
