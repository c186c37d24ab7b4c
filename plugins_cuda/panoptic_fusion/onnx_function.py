"""PanopticFusion in standard ONNX operators (opset 20), stage by stage as in `reference.py`.

Step 1 is FusionMaskTerms and FusionPrune, step 2 FusionLabels (FusionBestLogits is both; for the heuristic merge,
FusionFirstMasks), step 3 FusionMerge and FusionSegments.

A Scan over the images; inside it two Loops over the valid detections (never over padded rows) for what is sequential:
the pruning, and the running argmax over the instances. (ONNX Runtime refuses a Scan over nothing, so these are Loops.)
Every stage is a model-local function of its own, which the main body calls. TensorRT's parser cannot inline Loops:
there the plugin must be registered.
"""

# mypy: ignore-errors
# (onnxscript is its own language in Python's clothes: what a checker reads here is not what happens)
from __future__ import annotations

import onnx
from onnxscript import BOOL, FLOAT, INT32, INT64, UINT8, graph, script
from onnxscript import opset20 as op
from onnxscript.values import Opset

upsnet = Opset("upsnet", 1)


@script(upsnet, default_opset=op)
def FusionBoundedLogits(logits: FLOAT) -> FLOAT:
    """float32 within +-2^100, NaN at the lower end; any float type in."""
    logits = op.Cast(logits, to=1)
    lowest = -1267650600228229401496703205376.0
    return op.Where(op.IsNaN(logits), lowest, op.Clip(logits, lowest, 0.0 - lowest))


@script(upsnet, default_opset=op)
def FusionHatWeights(low: FLOAT, high: FLOAT, cells: FLOAT, length: INT64, limit: INT32) -> FLOAT:
    """[n, M, L]: weight of every mask cell in every pixel of a line; zero outside the integer box low..high (nothing
    where high < low) and from limit on."""
    pixel = op.Range(0.0, op.Cast(length, to=1), 1.0)
    first = op.Cast(op.Cast(low, to=6), to=1)
    size = op.Cast(op.Cast(high, to=6), to=1) - first + 1.0
    offset = pixel - first
    source = op.Min(op.Max((offset + 0.5) * cells / op.Max(size, 1.0) - 0.5, 0.0), cells - 1.0)
    inside = op.And(op.And(offset >= 0.0, offset < size), pixel < op.Cast(limit, to=1))
    nowhere = -2.0
    source = op.Unsqueeze(op.Where(inside, source, nowhere), [1])
    cell = op.Unsqueeze(op.Range(0.0, cells, 1.0), [1])
    return op.Relu(1.0 - op.Abs(source - cell))


@script(upsnet, default_opset=op)
def FusionMaskTerms(masks: FLOAT, boxes: FLOAT, height: INT64, width: INT64, size: INT32) -> FLOAT:
    """[n, H, W]: mask logits [n, M, M] resized to the integer boxes [n, 4], zero outside them and in the padding."""
    x1, y1, x2, y2 = op.Split(boxes, axis=1, num_outputs=4)
    valid_height, valid_width = op.Split(size, num_outputs=2)
    cells = op.Cast(op.Squeeze(op.Shape(masks, start=2)), to=1)
    rows = FusionHatWeights(y1, y2, cells, height, valid_height)
    columns = FusionHatWeights(x1, x2, cells, width, valid_width)
    return op.MatMul(op.Transpose(rows, perm=[0, 2, 1]), op.MatMul(masks, columns))


@script(upsnet, default_opset=op)
def FusionPrune(terms: FLOAT, classes: INT64, threshold: FLOAT) -> FLOAT:
    """float [n], 1 for accepted masks. The masks come class by class, in score order within a class: one map carries
    the union of the accepted masks, and is forgotten where the class changes."""
    masks = terms > 0.0
    count = op.Shape(classes)
    same = classes == op.Slice(op.Concat([-1], classes, axis=0), [0], count)

    @graph()
    def step(i: INT64, go: BOOL, union: BOOL[None, None]):
        mask = op.Gather(masks, i)
        before = op.And(union, op.Gather(same, i))
        area = op.ReduceSum(op.Cast(mask, to=1), keepdims=0)
        covered = op.ReduceSum(op.Cast(op.And(before, mask), to=1), keepdims=0)
        accept = covered / area <= threshold  # false for 0 / 0, an empty mask
        return op.Identity(go), op.Or(before, op.And(mask, accept)), op.Cast(accept, to=1)

    nothing = op.Expand(op.Cast(False, to=9), op.Shape(terms, start=1))
    _union, accepted = op.Loop(op.Squeeze(count), True, nothing, body=step)
    return accepted


@script(upsnet, default_opset=op)
def FusionLabels(
    stuff_logits: FLOAT, thing_logits: FLOAT, terms: FLOAT, places: INT64, boxes: FLOAT, classes: INT64
) -> tuple[INT32, INT32]:
    """int32 [H, W] twice: the argmax over [stuff | instances | unknown] and over all semantic channels.

    terms[places[k]], boxes[k], classes[k]: accepted instance k. Labels: 0..S-1 stuff, S+k instance k, S+K unknown.
    """
    stuff_label = op.ArgMax(stuff_logits, axis=0)
    thing_label = op.ArgMax(thing_logits, axis=0)
    best_stuff = op.Squeeze(op.GatherElements(stuff_logits, stuff_label, axis=0), [0])
    best_thing = op.Squeeze(op.GatherElements(thing_logits, thing_label, axis=0), [0])
    stuff_label = op.Squeeze(op.Cast(stuff_label, to=6), [0])
    num_stuff = op.Cast(op.Squeeze(op.Shape(stuff_logits, end=1)), to=6)
    thing_label = op.Squeeze(op.Cast(thing_label, to=6), [0]) + num_stuff
    semantic = op.Where(best_thing > best_stuff, thing_label, stuff_label)

    # Inside int(y1) .. round(y2), int(x1) .. round(x2): [K, H, 1] and [K, 1, W], 1 or 0.
    y = op.Range(0.0, op.Cast(op.Squeeze(op.Shape(terms, start=1, end=2)), to=1), 1.0)
    x = op.Range(0.0, op.Cast(op.Squeeze(op.Shape(terms, start=2)), to=1), 1.0)
    left, top, _r, _b = op.Split(op.Cast(op.Cast(boxes, to=6), to=1), axis=1, num_outputs=4)
    _l, _t, right, bottom = op.Split(op.Round(boxes), axis=1, num_outputs=4)
    in_rows = op.Unsqueeze(op.Cast(op.And(y >= top, y <= bottom), to=1), [2])
    in_columns = op.Unsqueeze(op.Cast(op.And(x >= left, x <= right), to=1), [1])

    @graph()
    def step(i: INT64, go: BOOL, best: FLOAT[None, None], label: INT32[None, None], highest: FLOAT[None, None]):
        inside = op.MatMul(op.Gather(in_rows, i), op.Gather(in_columns, i))
        segment_term = inside * op.Gather(thing_logits, op.Gather(classes, i))
        logit = segment_term + op.Gather(terms, op.Gather(places, i))
        label = op.Where(logit > best, op.Cast(i, to=6) + num_stuff, label)
        return op.Identity(go), op.Max(best, logit), label, op.Max(highest, segment_term)

    instances = op.Squeeze(op.Shape(places))
    lowest = op.Where(instances == 0, 0.0, -3.0e38)
    highest = op.Expand(lowest, op.Shape(best_stuff))
    best, label, highest = op.Loop(instances, True, best_stuff, stuff_label, highest, body=step)
    unknown = op.Cast(instances, to=6) + num_stuff
    return op.Where(best_thing - highest > best, unknown, label), semantic


@script(upsnet, default_opset=op)
def FusionBestLogits(
    quarter: FLOAT, masks: FLOAT, boxes: FLOAT, classes: INT64, size: INT32, threshold: FLOAT, stuff: INT64
) -> tuple[INT32, INT32, FLOAT]:
    """FusionLabels' two maps, and float [n], 1 for accepted detections. stuff: their number, [1]."""
    channels, low_height, low_width = op.Split(op.Shape(quarter), num_outputs=3)
    height = low_height * 4
    width = low_width * 4
    factors = [1.0, 1.0, 4.0, 4.0]
    stuff_logits = op.Resize(op.Unsqueeze(op.Slice(quarter, [0], stuff), [0]), None, factors, mode="linear")
    # Without things the last stuff channel stands in for them: it never beats the best stuff.
    first_thing = op.Min(stuff, channels - 1)
    thing_logits = op.Resize(
        op.Unsqueeze(op.Slice(quarter, first_thing, channels, [0]), [0]), None, factors, mode="linear"
    )
    stuff_logits = op.Squeeze(stuff_logits, [0])
    thing_logits = op.Squeeze(thing_logits, [0])

    # The detections by (class, score); accepted or not; then the accepted ones in score order.
    n = op.Shape(classes)
    rank = op.Range(0, op.Squeeze(n), 1)
    _key, order = op.TopK(classes * n + rank, n, axis=0, largest=0)
    terms = FusionMaskTerms(
        op.Gather(masks, order), op.Gather(boxes, order), op.Squeeze(height), op.Squeeze(width), size
    )
    accepted = FusionPrune(terms, op.Gather(classes, order), threshold)
    accepted = op.ScatterElements(op.ConstantOfShape(n), order, accepted)
    kept = op.Squeeze(op.NonZero(accepted), [0])
    places = op.Gather(op.ScatterElements(rank, order, rank), kept)
    labels, semantic = FusionLabels(
        stuff_logits, thing_logits, terms, places, op.Gather(boxes, kept), op.Gather(classes, kept)
    )
    return labels, semantic, accepted


@script(upsnet, default_opset=op)
def FusionPasteWeights(low: FLOAT, high: FLOAT, cells: FLOAT, length: INT64, limit: INT32) -> FLOAT:
    """[n, M, L]: weight of every mask cell in every pixel of a line, for float boxes low..high (exclusive; nothing
    where high <= low); cells beyond the M count 0, and so does everything from limit on."""
    pixel = op.Range(0.0, op.Cast(length, to=1), 1.0)
    size = high - low
    inside = op.And(size > 0.0, pixel < op.Cast(limit, to=1))
    place = (pixel + 0.5 - low) / op.Where(size > 0.0, size, 1.0) * cells - 0.5
    nowhere = -2.0
    place = op.Unsqueeze(op.Where(inside, place, nowhere), [1])
    cell = op.Unsqueeze(op.Range(0.0, cells, 1.0), [1])
    return op.Relu(1.0 - op.Abs(place - cell))


@script(upsnet, default_opset=op)
def FusionBestChannel(quarter: FLOAT) -> INT32:
    """int32 [4h, 4w]: the argmax over the channels of [C, h, w], ties to the lowest. Channel by channel: no tensor of C
    full maps."""

    @graph()
    def step(c: INT64, go: BOOL, best: FLOAT[None, None], label: INT32[None, None]):
        channel = op.Unsqueeze(op.Gather(quarter, c), [0, 1])
        logit = op.Squeeze(op.Resize(channel, None, [1.0, 1.0, 4.0, 4.0], mode="linear"), [0, 1])
        label = op.Where(logit > best, op.Cast(c, to=6), label)
        return op.Identity(go), op.Max(best, logit), label

    channels = op.Squeeze(op.Shape(quarter, end=1))
    shape = op.Shape(quarter, start=1) * 4
    lowest = op.Expand(-3.0e38, shape)
    _best, label = op.Loop(channels, True, lowest, op.Expand(op.Cast(0, to=6), shape), body=step)
    return label


@script(upsnet, default_opset=op)
def FusionFirstMasks(
    quarter: FLOAT, masks: FLOAT, boxes: FLOAT, size: INT32, threshold: FLOAT, num_stuff: INT32
) -> tuple[INT32, FLOAT]:
    """The heuristic merge: labels int32 [H, W] as FusionLabels has them, and float [n], 1 for accepted masks. One mask
    at a time: what the accepted ones cover is what their labels cover."""
    shape = op.Shape(quarter, start=1) * 4
    height, width = op.Split(shape, num_outputs=2)
    valid_height, valid_width = op.Split(size, num_outputs=2)
    x1, y1, x2, y2 = op.Split(boxes, axis=1, num_outputs=4)
    cells = op.Cast(op.Squeeze(op.Shape(masks, start=2)), to=1)
    rows = FusionPasteWeights(y1, y2, cells, op.Squeeze(height), valid_height)
    rows = op.Transpose(rows, perm=[0, 2, 1])
    columns = FusionPasteWeights(x1, x2, cells, op.Squeeze(width), valid_width)
    cell_columns = op.MatMul(op.Sigmoid(masks), columns)  # [n, M, W]
    none = op.Cast(-1, to=6)

    @graph()
    def step(i: INT64, go: BOOL, label: INT32[None, None], next_label: INT32):
        mask = op.MatMul(op.Gather(rows, i), op.Gather(cell_columns, i)) >= 0.5
        free = op.And(mask, label < 0)
        area = op.ReduceSum(op.Cast(mask, to=1), keepdims=0)
        covered = area - op.ReduceSum(op.Cast(free, to=1), keepdims=0)
        accept = covered / area <= threshold  # false for 0 / 0, an empty mask
        label = op.Where(op.And(free, accept), next_label, label)
        accepted = op.Cast(accept, to=1)
        return op.Identity(go), label, next_label + op.Cast(accept, to=6), accepted

    count = op.Squeeze(op.Shape(boxes, end=1))
    label, void, accepted = op.Loop(count, True, op.Expand(none, shape), num_stuff, body=step)
    semantic = FusionBestChannel(quarter)
    semantic = op.Where(semantic < num_stuff, semantic, void)
    return op.Where(label < 0, semantic, label), accepted


@script(upsnet, default_opset=op)
def FusionMerge(
    labels: INT32, semantic: INT32, num_stuff: INT32, num_labels: INT32, num_classes: INT32, area_limit: FLOAT
) -> tuple[INT32, FLOAT]:
    """The majority rule and the area limit: for every label, what it becomes, and its area then (0: void); both [S + K
    + 1]."""
    shape = op.Concat(op.Reshape(num_labels, [1]), op.Reshape(num_classes, [1]), axis=0)
    shape = op.Cast(shape, to=7)
    bins = op.ConstantOfShape(op.ReduceProd(shape, keepdims=1))
    ballot = op.Reshape(labels * num_classes + semantic, [-1])
    ones = op.Expand(1.0, op.Shape(ballot))
    votes = op.Reshape(op.ScatterElements(bins, ballot, ones, reduction="add"), shape)
    areas = op.ReduceSum(votes, [1], keepdims=0)
    majority = op.ArgMax(votes, axis=1)
    most = op.Squeeze(op.GatherElements(votes, majority, axis=1), [1])
    majority = op.Squeeze(op.Cast(majority, to=6), [1])

    label = op.Range(op.Cast(0, to=6), num_labels, op.Cast(1, to=6))
    is_stuff = label < num_stuff
    is_instance = op.And(op.Not(is_stuff), label < num_labels - 1)
    is_outvoted = op.And(op.And(areas > 0.0, most * 2.0 >= areas), majority < num_stuff)
    target = op.Where(op.And(is_instance, is_outvoted), majority, label)
    areas = op.ScatterElements(op.ConstantOfShape(op.Shape(areas)), target, areas, reduction="add")
    is_void = op.Or(op.And(is_stuff, areas < area_limit), label == num_labels - 1)
    return target, op.Where(is_void, 0.0, areas)


@script(upsnet, default_opset=op)
def FusionSegments(
    labels: INT32, target: INT32, areas: FLOAT, categories: FLOAT, scores: FLOAT, rows: INT64
) -> tuple[UINT8, FLOAT, INT32]:
    """The map uint8 [H, W], the table [rows, 7] and its used rows. categories, scores: those of every label but the
    last, void."""
    present = op.Cast(areas > 0.0, to=6)
    number = op.GatherElements(op.CumSum(present, 0) * present, target)
    shape = op.Shape(labels)
    segment = op.Reshape(op.GatherElements(number, op.Reshape(labels, [-1])), shape)

    # Which rows and columns of pixels every segment occupies: [1 + segments, H] and [1 + segments, W].
    used = op.ReduceSum(present, keepdims=1)
    height, width = op.Split(op.Cast(shape, to=6), num_outputs=2)
    y = op.Unsqueeze(op.Range(op.Cast(0, to=6), op.Squeeze(height), op.Cast(1, to=6)), [1])
    x = op.Range(op.Cast(0, to=6), op.Squeeze(width), op.Cast(1, to=6))
    ones = op.Expand(1.0, op.Shape(op.Reshape(labels, [-1])))
    lines = op.ConstantOfShape(op.Cast((used + 1) * height, to=7))
    lines = op.ScatterElements(lines, op.Reshape(segment * height + y, [-1]), ones, reduction="max")
    on_rows = op.Slice(op.Reshape(lines, op.Concat([-1], op.Cast(height, to=7), axis=0)), [1], [1000], [0])
    lines = op.ConstantOfShape(op.Cast((used + 1) * width, to=7))
    lines = op.ScatterElements(lines, op.Reshape(segment * width + x, [-1]), ones, reduction="max")
    on_columns = op.Slice(op.Reshape(lines, op.Concat([-1], op.Cast(width, to=7), axis=0)), [1], [1000], [0])

    chosen = op.Squeeze(op.NonZero(present), [0])
    table = op.Concat(
        op.Unsqueeze(op.Gather(categories, chosen), [1]),
        op.Unsqueeze(op.Gather(scores, chosen), [1]),
        op.Unsqueeze(op.Gather(areas, chosen), [1]),
        op.Cast(op.ArgMax(on_columns, axis=1), to=1),
        op.Cast(op.ArgMax(on_rows, axis=1), to=1),
        op.Cast(op.ArgMax(on_columns, axis=1, select_last_index=1) + 1, to=1),
        op.Cast(op.ArgMax(on_rows, axis=1, select_last_index=1) + 1, to=1),
        axis=1,
    )
    table = op.Pad(table, op.Concat([0, 0], rows - op.Shape(chosen), [0], axis=0))
    return op.Cast(segment, to=2), table, used


@script(upsnet, default_opset=op)
def PanopticFusion(
    semantic: FLOAT,
    boxes: FLOAT,
    classes: INT64,
    scores: FLOAT,
    mask_logits: FLOAT,
    counts: INT32,
    sizes: INT32,
    scales: FLOAT,
    num_stuff: int,
    stuff_area_limit: float,
    mask_overlap_threshold: float,
    merge: str = "logits",
) -> tuple[UINT8, FLOAT, INT32]:
    heuristic = op.Constant(value_string=merge) == op.Constant(value_string="heuristic")
    stuff = op.Reshape(op.Constant(value_int=num_stuff), [1])
    stuff32 = op.Cast(op.Constant(value_int=num_stuff), to=6)
    area_limit = op.Constant(value_float=stuff_area_limit)
    overlap_threshold = op.Constant(value_float=mask_overlap_threshold)

    @graph()
    def image(
        quarter: FLOAT[None, None, None],
        box: FLOAT[None, 4],
        category: INT64[None],
        score: FLOAT[None],
        mask: FLOAT[None, None, None],
        count: INT32,
        size: INT32[2],
        scale: FLOAT,
    ):
        _channels, low_height, low_width = op.Split(op.Shape(quarter), num_outputs=3)
        height = low_height * 4
        width = low_width * 4
        n = op.Reshape(op.Cast(count, to=7), [1])  # the valid detections
        if heuristic:
            labels, accepted = FusionFirstMasks(
                quarter, op.Slice(mask, [0], n), op.Slice(box, [0], n), size, overlap_threshold, stuff32
            )
            # Nothing is voted: all pixels are for what is no stuff.
            semantic_labels = op.Expand(stuff32, op.Shape(labels))
            num_classes = stuff32 + 1
        else:
            labels, semantic_labels, accepted = FusionBestLogits(
                quarter,
                op.Slice(mask, [0], n),
                op.Slice(box, [0], n),
                op.Slice(category, [0], n),
                size,
                overlap_threshold,
                stuff,
            )
            num_classes = op.Cast(op.Squeeze(op.Shape(quarter, end=1)), to=6)
        kept = op.Squeeze(op.NonZero(accepted), [0])
        kept_category = op.Gather(category, kept)
        void = stuff32 + op.Cast(op.Squeeze(op.Shape(kept)), to=6)
        y = op.Unsqueeze(op.Range(op.Cast(0, to=6), op.Cast(op.Squeeze(height), to=6), op.Cast(1, to=6)), [1])
        x = op.Range(op.Cast(0, to=6), op.Cast(op.Squeeze(width), to=6), op.Cast(1, to=6))
        inside = op.And(y < op.Slice(size, [0], [1]), x < op.Slice(size, [1], [2]))
        labels = op.Where(inside, labels, void)

        target, areas = FusionMerge(labels, semantic_labels, stuff32, void + 1, num_classes, area_limit * scale * scale)
        categories = op.Concat(op.Range(0, op.Squeeze(stuff), 1), kept_category + stuff, axis=0)
        confidence = op.Concat(op.Expand(1.0, stuff), op.Gather(score, kept), axis=0)
        rows = stuff + op.Shape(category)
        panoptic, segments, used = FusionSegments(labels, target, areas, op.Cast(categories, to=1), confidence, rows)
        # ONNX Runtime's Scan wants outputs of a known rank.
        panoptic = op.Reshape(panoptic, op.Concat(height, width, axis=0))
        segments = op.Reshape(segments, op.Concat(rows, [7], axis=0))
        return panoptic, segments, op.Squeeze(op.Reshape(used, [1]))

    panoptic, segments, segment_count = op.Scan(
        FusionBoundedLogits(semantic),
        boxes,
        classes,
        scores,
        FusionBoundedLogits(mask_logits),
        counts,
        sizes,
        scales,
        body=image,
        num_scan_inputs=8,
    )
    return panoptic, segments, segment_count


def panoptic_fusion_functions() -> list[onnx.FunctionProto]:
    """The body of node upsnet::PanopticFusion, after the stages that it calls."""
    stages = [
        FusionBoundedLogits,
        FusionHatWeights,
        FusionMaskTerms,
        FusionPrune,
        FusionLabels,
        FusionBestLogits,
        FusionPasteWeights,
        FusionBestChannel,
        FusionFirstMasks,
        FusionMerge,
        FusionSegments,
    ]
    body = PanopticFusion.to_function_proto()
    body.opset_import.append(onnx.helper.make_opsetid("upsnet", 1))  # onnxscript overlooks calls inside a nested graph
    return [*(stage.to_function_proto() for stage in stages), body]
