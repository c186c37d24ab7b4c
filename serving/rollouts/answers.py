"""What PHOTO_MODEL answers, as a result whose pixels can be compared."""

from __future__ import annotations

import json
import struct

import numpy as np

from serving.load_test.questions import Answer
from upsnet.contract import LABELS, PHOTO_SIZES, SEGMENTS_JSON
from upsnet.errors import InputError
from upsnet.result import PanopticResult, Segment


def result_of(answer: Answer) -> PanopticResult:
    """Of one photo. The categories are the data set's ids, not contiguous. InputError where it is no such answer."""
    try:
        height, width = np.frombuffer(answer[PHOTO_SIZES], np.int32).tolist()
        ids = np.frombuffer(answer[LABELS], np.uint8).reshape(height, width).astype(np.int32)
        (length,) = struct.unpack_from("<I", answer[SEGMENTS_JSON])
        segments = json.loads(answer[SEGMENTS_JSON][4 : 4 + length])
        return PanopticResult(
            ids,
            [
                Segment(each["id"], each["category_id"], each["score"], each["area"], tuple(each["box"]))
                for each in segments
            ],
        )
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise InputError(f"the server's answer is none to a photo: {error}") from None
