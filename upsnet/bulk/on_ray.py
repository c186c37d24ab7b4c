"""Blocks of photos on a Ray cluster: a Ray Data pipeline of their numbers, and actors that hold the model.

Ray gives the numbers out, waits for room, starts actors anew that died and gives their blocks out again, on another
node where one is lost. So it may run a block twice; a block is one file with a name of its own, and is there once.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from upsnet.bulk.block import BlockWorker, Outcome
from upsnet.bulk.command import Work, check_readable
from upsnet.bulk.photo_list import Block, Entry, PhotoList
from upsnet.bulk.plan import ModelFacts, Plan, describe_model, is_there
from upsnet.bulk.ray_cluster import Actors, Pool, absolute, absolute_place, connected, one_line, settled
from upsnet.bulk.report import summary_of
from upsnet.errors import InputError
from upsnet.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.data import Dataset

ATTEMPTS = 4  # at a block, whose actor died at each; the second and those after it try every photo before
IN_FLIGHT = 2  # tasks given to an actor, so that it never waits for one
# Tasks of the pipeline, each some blocks: Ray takes a while for each, and longer the more there are. With 20 for each
# actor, the last one ends at most a twentieth after the others.
TASKS, TASKS_EACH = 256, 20
FAILED = "died"  # an outcome's word for a block that is given up


class OnRay:
    """The runner of `upsnet predict --ray` (see upsnet/bulk/command.py).

    address: `auto` (the cluster that this machine is a node of), host:port of its head, or `local` (a cluster of this
    machine alone, which ends with the runner). source names files as the nodes find them. readers: threads that read,
    decode and encode in each actor; None: as many as it has CPUs.
    Raises InputError, one line, where there is no such cluster or no room in it, where a node cannot open the model or
    write the output, and at the end, when the rest is done, for blocks whose actors died again and again.
    """

    def __init__(self, address: str, actors: Actors, source: RuntimeOptions, readers: int | None = None) -> None:
        self._address, self._actors, self._readers = address, actors, readers
        self._source = absolute(source)
        self._connection = ExitStack()
        self._pool: Pool | None = None  # until there is a connection

    def describe(self, first: Sequence[Entry]) -> ModelFacts:
        """On a node, which has what the driver's machine may lack: the GPU, the model, the photos."""
        pool = self._connect()
        import ray

        task = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=1)(_described)
        try:
            found = ray.get(task.remote(self._source, first))
        except ray.exceptions.RayError as error:
            raise InputError(f"Ray: {one_line(error)}") from error
        if isinstance(found, dict):
            raise _raised(found)
        return found

    def run(
        self, photos: PhotoList, work: Work, plan: Plan, out: str, told: Callable[[int], object]
    ) -> Iterator[Outcome]:
        """As they end. One that another process wrote meanwhile is passed over."""
        numbers = work.numbers
        if not numbers:
            return
        pool = self._connect()
        import ray

        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        photos = replace(photos, place=absolute_place(photos.place))
        desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote(photos, work.begun)
        made_with = desk, self._source, self._readers or pool.cpus, plan, absolute_place(out)
        died: list[int] = []
        waiting = set(numbers)
        for answer in _answers(_pipeline(numbers, pool, made_with)):
            if answer["number"] not in waiting:  # its task was run again, for another block
                continue
            waiting.remove(answer["number"])
            if answer[FAILED]:
                died.append(answer["number"])
            elif answer["photos"]:
                yield Outcome(answer["number"], answer["photos"], answer["left_out"], answer["seconds"])
        if died:
            raise InputError(
                f"{out}: the actors of blocks {', '.join(map(str, sorted(died)))} died at each of {ATTEMPTS} attempts, "
                "as when memory runs out (fewer --actors help); the others are done"
            )

    def close(self) -> None:
        """Leaves the cluster; its actors end, and with `local` the cluster too."""
        self._connection.close()
        self._pool = None

    def _connect(self) -> Pool:
        """Comes before any `import ray`, which reads its settings from the environment."""
        if self._pool is None:
            self._connection.enter_context(connected(self._address))
            self._pool = settled(self._actors, self._source)
            self._source = self._source._replace(threads=self._source.threads or self._pool.cpus)
        return self._pool


class Desk:
    """On the driver's node: knows how often a block was begun, and reads its part of the list, which lies there."""

    def __init__(self, photos: PhotoList, begun: frozenset[int]) -> None:
        self._photos, self._begun = photos, begun
        self._attempts: Counter[int] = Counter()

    def begin(self, number: int) -> tuple[int, bool, Block]:
        """Which attempt this is, from 1; whether to be careful with the block; and the block."""
        self._attempts[number] += 1
        attempt = self._attempts[number]
        return attempt, attempt > 1 or number in self._begun, self._photos.block(number)


class Actor:
    """Holds the model and does blocks one by one. What goes wrong is part of the answer; Ray would wrap it."""

    def __init__(self, desk: ActorHandle, source: RuntimeOptions, readers: int, plan: Plan, out: str) -> None:
        self._desk, self._plan, self._out = desk, plan, out
        self._worker: BlockWorker | None = None
        self._failure: dict[str, Any] = {}
        try:
            self._worker = BlockWorker(source, plan, out, readers)
        except Exception as error:
            self._failure = _failure(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer = {"number": row["item"], "photos": 0, "left_out": 0, "seconds": 0.0, FAILED: False, **NO_FAILURE}
        try:
            return answer | (self._failure or self._do(row["item"]))
        except Exception as error:
            return answer | _failure(error)

    def _do(self, number: int) -> dict[str, Any]:
        import ray

        assert self._worker is not None
        begun: Any = ray.get(self._desk.begin.remote(number))
        attempt, careful, block = begun
        if is_there(self._plan, self._out, number):
            if attempt == 1:
                return {}
            left_out = summary_of(self._plan, self._out, number).left_out  # what was counted died before it was told
            return {"photos": block.photos, "left_out": len(left_out)}
        if attempt > ATTEMPTS:
            return {FAILED: True}
        return self._worker.run(block, careful)._asdict()


NO_FAILURE = {"refused": "", "trace": ""}


def _failure(error: Exception) -> dict[str, Any]:
    import ray

    if isinstance(error, InputError):
        return {"refused": f"node {ray.util.get_node_ip_address()}: {error}"}
    return {"trace": traceback.format_exc()}


def _raised(answer: dict[str, Any]) -> Exception:
    """The error that an answer tells of: one of the input is one line, one of ours has its traceback."""
    return InputError(answer["refused"]) if answer.get("refused") else RuntimeError(answer["trace"])


def _described(source: RuntimeOptions, first: Sequence[Entry]) -> ModelFacts | dict[str, Any]:
    try:
        check_readable(first)
        return describe_model(source)
    except Exception as error:
        return _failure(error)


def _pipeline(numbers: Sequence[int], pool: Pool, made_with: tuple[object, ...]) -> Dataset:
    import ray.data

    most = min(pool.number, len(numbers))
    strategy = ray.data.ActorPoolStrategy(
        min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=IN_FLIGHT
    )
    tasks = min(len(numbers), max(TASKS, TASKS_EACH * most))
    return ray.data.from_items(list(numbers), override_num_blocks=tasks).map(
        Actor,  # type: ignore[arg-type]  # Ray takes a class of functions
        fn_constructor_args=made_with,
        compute=strategy,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )


def _answers(pipeline: Dataset) -> Iterator[dict[str, Any]]:
    import ray

    try:
        tables: Iterable[Any] = pipeline.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
        for table in tables:
            for answer in table.to_pylist():
                if answer["refused"] or answer["trace"]:
                    raise _raised(answer)
                yield answer
    except ray.exceptions.RayError as error:
        raise InputError(f"Ray: {one_line(error)}") from error
