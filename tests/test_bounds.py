"""Every dependency has bounds: the lower one is what `make test-lowest` installs, the upper one admits what is installed."""

import tomllib
from importlib.metadata import version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
OWN, *TESTS = EXTRAS["test"]
REQUIRED = [
    *map(Requirement, PROJECT["dependencies"]),
    *(r for name in sorted(OWN.extras) for r in EXTRAS[name]),
    *TESTS,
]
NOT_TESTED = {"ruff", "mypy", "types-psutil", "types-PyYAML", *(r.name for r in EXTRAS["docs"])}  # no test runs them


def bounds(requirement: Requirement) -> dict[str, Version]:
    """Return versions by operator."""
    found = {bound.operator: Version(bound.version) for bound in requirement.specifier}
    assert set(found) == {">=", "<"}, requirement
    return found


def test_the_lowest_versions_are_those_that_are_tried() -> None:
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    tried = {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins}
    lowest = {canonicalize_name(r.name): bounds(r)[">="] for r in REQUIRED if r.name not in NOT_TESTED}
    assert tried == lowest


def test_what_is_installed_lies_within_the_bounds() -> None:
    for requirement in REQUIRED:
        assert requirement.specifier.contains(version(requirement.name)), requirement
