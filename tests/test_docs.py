"""The documents say what the code does."""

import json
import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from app.main import create_app
from app.settings import PREFIX, Settings, load
from app.simulator import behaviours, cards
from tests import fault_table
from tests.support import settings

ROOT = Path(__file__).parent.parent


def settings_table() -> str:
    """Return the settings as README.md has them."""

    def default(value: object) -> str:
        if value is PydanticUndefined:
            return "required"
        if isinstance(value, list):
            return ",".join(f"{each}" for each in value) or "empty"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return f"{value:g}"
        return (value.get_secret_value() if isinstance(value, SecretStr) else str(value)) or "empty"

    rows = [
        f"| `{PREFIX}{name.upper()}` | {field.description} | {default(field.default)} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| name | meaning | default |", "|---|---|---|", *rows])


def test_the_readme_lists_every_setting() -> None:
    """README's table is the settings themselves: name, meaning and default."""
    readme = (ROOT / "README.md").read_text()
    between = readme.split("<!-- settings: kept by tests/test_docs.py -->\n")[1].split("\n<!-- end")[0]
    assert between == settings_table()


def test_the_readme_is_finished() -> None:
    """No placeholder is left."""
    assert "@@" not in (ROOT / "README.md").read_text()


def test_every_fault_has_a_test() -> None:
    """No number of the catalogue is without a test, and no test without a promise."""
    found = fault_table.tests()
    assert {test.number for test in found} == set(fault_table.FAULTS)
    assert not [test.name for test in found if not test.promise.endswith(".")]


def test_the_fault_table_is_the_tests() -> None:
    """docs/faults.md has the tests that there are, with their promises, and each of them held when it was written."""
    written = fault_table.written()
    assert set(written) == {test.row for test in fault_table.tests()}, "./dev test --fault-table docs/faults.md"
    assert {result for result in written.values() if not result.startswith("skipped: ")} == {"holds"}


def test_the_openapi_document_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reference in it leads to a schema that is there, so that a client can be generated from it."""
    for name, value in settings("postgresql://127.0.0.1/kpayd", "https://pay.example.rw/", 8000, {}).items():
        monkeypatch.setenv(name, value)
    document = create_app(load(Settings)).api.openapi()
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    assert "#/components/schemas/Problem" in references
    for reference in references:
        assert reference.startswith("#/components/schemas/")
        assert reference.rsplit("/", 1)[1] in document["components"]["schemas"]


def test_the_simulators_tables_are_the_simulators() -> None:
    """docs/simulator.md lists every behaviour and every test card as the simulator itself does."""
    written = (ROOT / "docs" / "simulator.md").read_text()
    assert behaviours.markdown().strip() in written
    assert all(table.strip() in written for table in cards.markdown().split("\n\n"))


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_inside_the_repository_lead_somewhere(document: str) -> None:
    """Every relative link of a document names a file that is there."""
    path = ROOT / document
    targets = [part.split(")")[0] for part in path.read_text().split("](")[1:]]
    missing = [
        each for each in targets if "://" not in each and not each.startswith("#") and not (path.parent / each).exists()
    ]
    assert not missing
