"""README.md and docs/ tell the truth: what they tell people to type, open or import exists. `make docs-check`"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.commands import OURS, ROOT, faults

README_LINES, PICTURE_BYTES = 150, 150_000
each_page = pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def complain(page: Path, findings: list[str]) -> None:
    if findings:
        pytest.fail("\n".join(f"{page.relative_to(ROOT)}: {finding}" for finding in findings), pytrace=False)


@each_page
def test_commands_exist(page: Path) -> None:
    lines = dict.fromkeys(pages.commands(pages.read(page)))
    complain(page, [f"`{line}`: {fault}" for line in lines for fault in faults(line)])


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    findings = []
    for link in pages.links(pages.read(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists():
            findings.append(f"the link to {link} leads nowhere")
        elif anchor and anchor not in pages.anchors(target):
            findings.append(f"the link to {link}: no such heading")
    complain(page, findings)


@each_page
def test_files_exist(page: Path) -> None:
    named = sorted(pages.files(pages.read(page)))
    complain(page, [f"names {path}, which does not exist" for path in named if not any(ROOT.glob(path.rstrip("/")))])


@each_page
def test_python_names_exist(page: Path) -> None:
    text = pages.read(page)
    examples = "\n".join(block.text for block in pages.blocks(text) if block.language == "python")
    wanted = pages.names(text) | set(imported(examples))
    complain(page, [f"names {name}, which does not exist" for name in sorted(wanted) if not resolves(name)])


def imported(source: str) -> Iterator[str]:
    """Names that an example imports from this project, or takes from it as `upsnet.load`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in OURS)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OURS:
            yield f"{node.value.id}.{node.attr}"


def resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_the_readme_is_short() -> None:
    lines = len((ROOT / "README.md").read_text().splitlines())
    assert lines <= README_LINES, "README.md is too long"


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs/overview.jpg").stat().st_size < PICTURE_BYTES


# The checker itself


@pytest.mark.parametrize(
    ("command", "finding"),
    [
        ("make nosuch", "the Makefile has no target nosuch"),
        ("make demo NOSUCH=1", "the Makefile has no variable NOSUCH"),
        ('make parity ARGS="--nosuch 1"', "python eval/parity.py has no option --nosuch"),
        ('make eval ARGS="--nosuch"', "upsnet eval has no option --nosuch"),
        (".venv/bin/upsnet nosuch", "no command upsnet nosuch"),
        ("upsnet data nosuch", "no command upsnet data nosuch"),
        ("upsnet data coco data/coco --nosuch", "upsnet data coco has no option --nosuch"),
        ("upsnet predict photo.jpg --out out [--nosuch x]", "upsnet predict has no option --nosuch"),
        ("upsnet --nosuch", "upsnet has no option --nosuch"),
        ("python eval/nosuch.py", "there is no eval/nosuch.py"),
        ("python eval/parity.py --nosuch", "python eval/parity.py has no option --nosuch"),
        ("python eval/bench.py", "eval/bench.py does nothing as a script"),
        ("make bench NAME=nosuch", "the Makefile has no target bench-nosuch"),
        ("python -m training.nosuch", "there is no module training.nosuch"),
        ("torchrun --nnodes 2 -m training.train --nosuch", "python -m training.train has no option --nosuch"),
        ("python -m plugins_cuda.benchmark --nosuch", "python -m plugins_cuda.benchmark has no option --nosuch"),
        ("pip install 'upsnet-trt[nosuch]'", "there is no extra nosuch"),
        ("upsnet predict 'photo.jpg", "not a shell line (No closing quotation)"),
    ],
)
def test_faults_of_commands(command: str, finding: str) -> None:
    assert faults(command) == [finding]


def test_overrides_are_settings() -> None:
    (finding,) = faults("upsnet train --config training/configs/shapes_best.yaml --set schedule.nosuch=1")
    assert "schedule.nosuch" in finding


@pytest.mark.parametrize(
    "command",
    [
        "make demo CONFIG=training/configs/shapes_long.yaml",
        'make bench-ops ARGS="--device cpu"',
        'make bench NAME=ops ARGS="--device cpu"',
        "UPSNET_SANITIZE=address make test ARGS='-k nms'",
        "upsnet COMMAND --help",
        "upsnet data",
        "python eval/parity.py --run runs/x  # a comment",
        "docker run --nosuch",
        "predict --nosuch",
    ],
)
def test_commands_that_exist_and_those_of_others(command: str) -> None:
    assert faults(command) == []


def test_a_page_taken_apart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page's `name`\n\nSee [that](other.md#a-part), not `[this](code)`; `upsnet.load(x)`.\n\n"
        f"| {pages.YESTERDAY} | 0.2 |\n|---|---|\n| `eval/old.py` | `eval/parity.py` |\n\n"
        "```sh\nmake \\\n  demo  # all of it\n```\n\n    make test\n\n```python\nfrom upsnet import x\n```\n"
    )
    text = pages.read(page)
    assert list(pages.commands(text))[:2] == ["make    demo  # all of it", "make test"]
    assert pages.links(text) == ["other.md#a-part"]
    assert pages.anchors(page) == {"a-pages-name"}
    assert pages.files(text) == {"eval/parity.py"}
    assert pages.names(text) == {"upsnet.load"}
    assert list(imported("from upsnet import x\nimport os\nupsnet.load(1).y")) == ["upsnet.x", "upsnet.load"]
