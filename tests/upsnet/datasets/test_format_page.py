"""docs/format.md lists the doctor's findings, all of them and in its words."""

from __future__ import annotations

import re
from pathlib import Path

from upsnet.datasets.findings import KINDS


def test_the_page_lists_every_kind(project_root: Path) -> None:
    page = (project_root / "docs/format.md").read_text()
    errors, warnings = page.split("## Warnings")
    for part, level in ((errors.split("## Errors")[1], True), (warnings, False)):
        rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \|", part, re.M)
        assert rows == [(kind, meaning) for kind, (error, meaning) in KINDS.items() if error == level]
