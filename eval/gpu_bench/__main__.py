"""python -m eval.gpu_bench [--out FOLDER] [--minutes 10] [--networks ...] [--variants ...] [--precisions ...] [--list]
[--again] [--rehearse]

Each network, variant and precision is a process of its own with a time limit: one that fails or hangs costs its own
rows, which then say why. OUT/gpu_bench.json is written after every one; a second run goes on where the first ended, and
--again measures anew. --rehearse: on the CPU with a tiny network. Exit status: 0 when all that was asked for is
measured, or skipped as this machine lacks what it needs; 1 when something failed, had no time left, or nothing was
measured; 2 without a GPU and for a wrong argument; 128 and the signal's number when interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval.gpu_bench.cases import BATCHES, CEILINGS, MOST, NETWORKS, PRECISIONS, SHORT, TINY, Case, all_cases
from eval.gpu_bench.report import Row, print_report, with_ratios
from eval.gpu_bench.worker import SKIPPED, add_row
from plugins_cuda.benchmark.report import print_table
from plugins_cuda.gpu_check.__main__ import chosen, folder, positive
from plugins_cuda.gpu_check.process import Ended, Interrupted, interruptible, run_logged
from upsnet.files import write_json
from upsnet.machine import machine_facts, package_versions

MINUTES = 10.0
NO_TIME = "without time"
LEAST = 20.0  # seconds under which a case is not begun


class Bench:
    """One run: its folder, and the rows that are known."""

    def __init__(self, out: Path, scratch: Path, device: str, again: bool = False) -> None:
        self.out, self.scratch, self.device = out, scratch, device
        self.file = out / "rows.jsonl"
        if again:
            self.file.unlink(missing_ok=True)
        self.facts: dict[str, Any] = {**machine_facts(), "versions": package_versions(), "cuda": torch.version.cuda}
        self.gpu = "a CPU (rehearsed)"
        if device == "cuda":
            self.gpu = torch.cuda.get_device_name(0)
            self.facts["memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
        self.facts["gpu"] = self.gpu

    def rows(self) -> list[Row]:
        """The last one of each; half a line, of a machine that was taken back, is none."""
        found: dict[tuple[Any, ...], Row] = {}
        for line in self.file.read_text().splitlines() if self.file.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found[tuple(row.get(name) for name in ("network", "variant", "precision", "batch"))] = row
        return [row for row in found.values() if not self._superseded(row, found)]

    @staticmethod
    def _superseded(row: Row, found: dict[tuple[Any, ...], Row]) -> bool:
        """Of no batch, where a later run has a row for each."""
        own = [(row.get("network"), row["variant"], row.get("precision"), batch) for batch in BATCHES]
        return row["status"] != "done" and "batch" not in row and all(each in found for each in own)

    def is_done(self, case: Case) -> bool:
        done = self._measured(case)
        return bool(done) if case.variant == CEILINGS else done >= set(BATCHES)

    def _measured(self, case: Case) -> set[int | None]:
        """The batches that are done."""
        return {row.get("batch") for row in self.rows() if row["status"] == "done" and _of(row) == case}

    def run(self, case: Case, deadline: float) -> tuple[str, str]:
        """How it ended, and what to say of it. Its rows are in the file."""
        start = time.monotonic()
        deadline = min(deadline, start + MOST[case.variant])
        command = [sys.executable, "-m", "eval.gpu_bench.worker", *case, self.device, str(self.scratch), str(self.file)]
        log = self.scratch / "log.txt"
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "inductor")}
        ended = run_logged(command, log, deadline, environment)
        if ended.status == 0:
            return "done", f"done in {time.monotonic() - start:.0f} s"
        status = "skipped" if ended.status == SKIPPED else "failed"
        reason = ended.last if status == "skipped" else _fault(ended)
        measured = self._measured(case)
        lacking: list[dict[str, Any]] = (
            [{"batch": size} for size in BATCHES if size not in measured] if measured else [{}]
        )
        for which in lacking:
            add_row(self.file, {**case._asdict(), **which, "status": status, "reason": reason})
        only = "".join(f" for batch {which['batch']}" for which in lacking if which)
        return status, f"{status}{only}: {reason}"

    def save(self) -> None:
        write_json(self.out / "gpu_bench.json", {"version": 1, **self.facts, "rows": with_ratios(self.rows())})


def _of(row: Row) -> Case:
    return Case(row.get("network", ""), row["variant"], row.get("precision", ""))


def _fault(ended: Ended) -> str:
    """In a line: an exception's own words are mostly the last line of the output."""
    how = f"stopped after {ended.seconds:.0f} s" if ended.status is None else f"exit status {ended.status}"
    return f"{how}: {ended.last[:300]}"


def run_all(bench: Bench, wanted: Sequence[Case], minutes: float) -> Counter[str]:
    """For as long as there is time; what was measured before is left alone. How many cases are done, failed, skipped,
    and had no time."""
    end = time.monotonic() + 60 * minutes
    ends: Counter[str] = Counter()
    for case in [Case("", CEILINGS, ""), *wanted]:
        name = str(case) if case.network else "this machine's limits, and our kernels"
        if bench.is_done(case):
            print(f"{name}: measured before", flush=True)
            ends["done"] += 1
            continue
        if end - time.monotonic() < LEAST:
            print(f"{name}: no time is left; the same command goes on from here", flush=True)
            ends[NO_TIME] += 1
            continue
        print(f"{name} ...", flush=True)
        try:
            how, words = bench.run(case, end)
            print(f"{name}: {words}", flush=True)
            ends[how] += 1
        finally:
            bench.save()
    return ends


def main(arguments: Sequence[str] | None = None) -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m eval.gpu_bench")
    parser.add_argument("--out", type=folder, default="runs/gpu_bench", help="gpu_bench.json and rows.jsonl")
    parser.add_argument("--scratch", type=folder, help="models and logs on the way (default: a temporary folder)")
    parser.add_argument("--minutes", type=positive, default=MINUTES, help="what there is no time for is left out")

    def some(names: Iterable[str]) -> dict[str, Any]:
        """Of an option that takes some of these, comma-separated; without it, all."""
        return {"type": partial(chosen, list(names)), "default": list(names), "help": ", ".join(names)}

    parser.add_argument("--networks", **some(NETWORKS))
    parser.add_argument("--variants", **some(SHORT))
    parser.add_argument("--precisions", **some(PRECISIONS))
    parser.add_argument("--list", action="store_true", help="print what is measured, in its order")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on the CPU, with a tiny network")
    options = parser.parse_args(arguments)
    variants = {SHORT[name] for name in options.variants}
    wanted = [
        case
        for case in all_cases(options.rehearse)
        if case.variant in variants
        and case.precision in options.precisions
        and (case.network in options.networks or case.network in TINY)
    ]
    if options.list:
        rows = [(case.network, case.precision, case.variant, str(MOST[case.variant])) for case in wanted]
        print_table("Cases", ("network", "type", "variant", "most s"), rows)
        return 0
    if not options.rehearse and not torch.cuda.is_available():
        print("error: no NVIDIA GPU that PyTorch can use; --rehearse tries this bench without one", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        scratch = options.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu_bench")))
        try:
            for each in (options.out, scratch):
                each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"{each} cannot be a folder: {error.strerror}")
        bench = Bench(options.out, scratch, "cpu" if options.rehearse else "cuda", options.again)
        interrupted, ends = 0, Counter[str]()
        with interruptible():
            try:
                ends = run_all(bench, wanted, options.minutes)
            except Interrupted as signal_name:
                interrupted = 128 + signal.Signals[str(signal_name)]
            known = with_ratios(bench.rows())
            print_report(known, bench.gpu)
            if ends:
                print(", ".join(f"{count} {how}" for how, count in ends.items()), end="; ")
            print(f"written to {bench.out / 'gpu_bench.json'}", flush=True)
    measured = any(row["status"] == "done" and row["variant"] != CEILINGS for row in known)
    return interrupted or int(not measured or bool(ends["failed"] or ends[NO_TIME]))


if __name__ == "__main__":
    raise SystemExit(main())
