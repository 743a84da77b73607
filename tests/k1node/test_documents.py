"""The documents keep up with the code."""

import re
from pathlib import Path

from django.conf import settings

ROOT = Path(settings.BASE_DIR)


def test_every_dependency_has_its_reason() -> None:
    project = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[0]
    pinned = set(re.findall(r'^ {4}"([^"]+==[^"]+)",$', project, re.MULTILINE))
    named = set(re.findall(r"^\| `([^`]+==[^`]+)`", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE))

    assert len(pinned) > 10
    assert named == pinned


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
