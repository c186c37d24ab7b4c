"""What a run's figures warn of, in plain sentences. Each names its figures, so that nobody needs to believe it."""

from __future__ import annotations

from upsnet.figures import points
from upsnet.history.curves import column
from upsnet.history.run import Run

GAP = 0.1  # PQ of an image on training images above that on validation images
CERTAIN = 3  # standard errors: less may be chance
FALL = 0.01  # PQ under the best
STALL, RISE = 3, 0.005  # evaluations in which PQ has risen by less
WAITING = 0.2  # share of the time
RECENT = 5  # lines of metrics.jsonl


def advice(run: Run) -> list[str]:
    """Warnings, the most important first; none is a good sign, and no proof."""
    return [text for text in (_gap(run), _course(run), _waiting(run)) if text]


def _gap(run: Run) -> str:
    last = run.last
    if not last or not last.training or not last.validation:
        return ""
    gap = last.training.mean - last.validation.mean
    error = (last.training.error**2 + last.validation.error**2) ** 0.5
    if gap < max(GAP, CERTAIN * error):
        return ""
    return (
        f"Training and validation part: an image that the network is trained with has a PQ of "
        f"{points(last.training.mean)} (mean of {last.training.images}), one that it has never seen "
        f"{points(last.validation.mean)} (mean of {last.validation.images}). It learns the training images by heart: "
        "more images or stronger augmentation help, or fewer steps, more weight decay or a smaller network."
    )


def _course(run: Run) -> str:
    """Whether PQ falls or stalls."""
    course = column(run.scored, "pq")
    if len(course) < 2:
        return ""
    (best_step, best), (_, now) = max(course, key=lambda each: each[1]), course[-1]
    since = [value for step, value in course if step > best_step]
    if len(since) > 1 and all(best - value >= FALL for value in since[-2:]):
        return (
            f"PQ falls: it was {points(best)} at step {best_step:,}, and is {points(now)} now, {len(since)} evaluations"
            " later. best.safetensors keeps the best weights. If the losses rise too, lower schedule.lr; if they fall,"
            " the network learns the training images by heart."
        )
    before = max((value for _, value in course[:-STALL]), default=None)
    if before is None or max(value for _, value in course[-STALL:]) - before >= RISE:
        return ""
    lower = column(run.rows, "lr")
    cure = (
        "A lower learning rate often helps"
        if lower and lower[-1][1] > 0.1 * max(lr for _, lr in lower)
        else ("The learning rate is low already: this is what the schedule and the network give")
    )
    return f"PQ stalls: in the last {STALL} evaluations it has not risen over {points(before)} by half a point. {cure}."


def _waiting(run: Run) -> str:
    recent = column(run.rows, "data_share")[-RECENT:]
    share = sum(value for _, value in recent) / len(recent) if recent else 0.0
    if share < WAITING:
        return ""
    return (
        f"The network waits for data: {share:.0%} of the time of the last steps. Raise data.workers, or see where a "
        "core's time for an image goes: `python -m training.benchmark --loader`."
    )
