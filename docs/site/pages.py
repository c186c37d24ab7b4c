"""Where the site's pages come from, and where their links lead: README.md and docs/ are written for the repository."""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE_DOCS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "plugins_cuda/BENCHMARKS.md": "benchmarks.md",
}
# A page each: what the package says of itself, then its modules.
API = ("upsnet", "upsnet.client", "upsnet.metrics", "upsnet.parity", "upsnet.datasets", "upsnet.runtimes")
FIRST = ("model", "prediction")  # what a reader of the page wants to see before the rest
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> None:
    """The repository's address stands in pyproject.toml."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        config.repo_url = tomllib.load(file)["project"]["urls"]["Homepage"]
    config.repo_name = config.site_name


def on_files(files: Files, config: MkDocsConfig) -> None:
    """The pages that lie outside docs/, and those of the API."""
    for source, uri in OUTSIDE_DOCS.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for package in API:
        files.append(File.generated(config, f"api/{package}.md", content=_api_page(package)))


def _api_page(package: str) -> str:
    folder = ROOT.joinpath(*package.split("."))
    found = folder.glob("*.py") if package == "upsnet" else folder.rglob("*.py")
    modules = [".".join(path.relative_to(folder).with_suffix("").parts) for path in found if path.name[0] != "_"]
    modules.sort(key=lambda name: (name not in FIRST, name))
    itself = f"::: {package}\n    options:\n      show_root_heading: false\n"
    return "\n\n".join([f"# {package}", itself, *(f"::: {package}.{module}" for module in modules)]) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository -> links between pages; to other files: their address there."""
    sources = {uri: source for source, uri in OUTSIDE_DOCS.items()}
    uris = OUTSIDE_DOCS | {f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri not in sources}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def lead(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if target in uris:
            return posixpath.relpath(uris[target], posixpath.dirname(page.file.src_uri) or ".")
        return f"{config.repo_url}/blob/main/{target}"

    return "".join(part if part.startswith("```") else LINK.sub(lead, part) for part in FENCE.split(markdown))
