"""The last words of a run: how many tests were skipped, and why. `-rs` also says where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of the summary of failures, hence after it
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    yield
    for line in by_reason(reason_of(report) for report in terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line)


def reason_of(report: pytest.CollectReport | pytest.TestReport) -> str:
    _, _, text = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, report.longreprtext)
    return str(text).removeprefix("Skipped: ")


def by_reason(reasons: Iterable[str]) -> list[str]:
    """The most frequent first; nothing where nothing was skipped."""
    counts = Counter(reasons).most_common()
    width = len(str(counts[0][1])) if counts else 0
    lines = [f"  {count:{width}} {reason}" for reason, count in counts]
    return [f"{sum(count for _, count in counts)} skipped:", *lines] if counts else []
