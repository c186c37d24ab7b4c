"""UPSNet (Xiong et al., CVPR 2019): from a batch of uint8 photos to panoptic maps and segment tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import plugins_cuda
from training.conventions import NAMED, Conventions
from training.model import boxes as B
from training.model.backbone import HybridBackbone
from training.model.chains import ChainsHead
from training.model.fpn import FPN
from training.model.heads import BOX_POOL, MASK_POOL, MASK_SIZE, BoxHead, MaskHead, SemanticHead
from training.model.layout import is_channels_last
from training.model.rpn import RPN
from training.model_config import BackboneConfig, ModelConfig, SubnetConfig, TimmConfig

if TYPE_CHECKING:
    from training.model.timm_backbone import TimmBackbone

PYRAMID_LEVELS = 4  # the heads read P2..P5; P6 serves the RPN alone


class ScoredProposals(NamedTuple):
    """R proposals an image and what the box head says of them; class 0 is the background, then come the T things."""

    proposals: Tensor  # B x R x 4, network pixels
    valid: Tensor  # B x R: False in the padding
    probabilities: Tensor  # B * R x (1 + T)
    deltas: Tensor  # B * R x (1 + T) x 4
    sizes: Tensor  # B x 2, height and width of the images


class Detections(NamedTuple):
    """Padded detections in descending score; rows from counts[b] on are padding."""

    boxes: Tensor  # B x K x 4, network pixels
    scores: Tensor  # B x K
    labels: Tensor  # B x K, thing index
    counts: Tensor  # B, int32


class Suppression(NamedTuple):
    """Which of overlapping detections stay: NMS of all together or class by class, then the best."""

    score_threshold: float
    nms_threshold: float
    max_output: int
    by_class: bool


class UPSNet(nn.Module):
    """The network. `forward` is inference and follows the exported graph's contract; training calls the parts.

    Without things it has no RPN, no box and no mask head: the semantic head decides alone. Without stuff it has a stuff
    channel of its own, the `background`: what no segment covers, which the panoptic map shows as void.
    """

    def __init__(self, config: ModelConfig, num_stuff: int, num_things: int) -> None:
        super().__init__()
        self.config = config
        self.conventions = NAMED[config.conventions]
        self.background = num_stuff == 0
        self.num_stuff, self.num_things = max(1, num_stuff), num_things  # channels of the semantic head
        channels = config.fpn.channels
        self.backbone = build_backbone(config.backbone, self.conventions)
        self.fpn = FPN(self.backbone.out_channels, config.fpn, self.conventions)
        if num_things:
            self.rpn = RPN(channels, config.rpn, self.conventions)
            self.box_head = BoxHead(channels, num_things, config.box_head)
            self.mask_head = MaskHead(channels, num_things, config.mask_head)
        self.heuristic = config.panoptic.merge == "heuristic"
        self.semantic_head = build_semantic_head(config, self.semantic_channels)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std), persistent=False)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    @property
    def semantic_channels(self) -> int:
        """The stuff, then every thing class, or all things as one where the merge is heuristic."""
        return self.num_stuff + (min(1, self.num_things) if self.heuristic else self.num_things)

    def pyramid(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """[P2..P6] of uint8 images B x H x W x 3."""
        return self.fpn(self.backbone(self.normalize(images, sizes)), sizes)

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """What the backbone reads, B x 3 x H x W. Padding is zero there, whatever its bytes are.

        On a GPU it has the memory format of the weights: channels innermost, as the photos have them, would make every
        layer transpose its weights to that, step after step. A CPU's convolutions bring weights into a format of their
        own anyway.
        """
        height, width = images.shape[1:3]
        heights, widths = sizes.reshape(-1, 2, 1, 1).split(1, dim=1)
        rows = torch.arange(height, device=images.device, dtype=sizes.dtype).reshape(-1, 1) < heights
        columns = torch.arange(width, device=images.device, dtype=sizes.dtype) < widths
        mean, std = (each.reshape(-1, 1, 1) for each in (self.pixel_mean, self.pixel_std))
        x = (images.to(mean.dtype).permute(0, 3, 1, 2) - mean) / std * (rows & columns)
        return x if x.device.type == "cpu" else x.contiguous(memory_format=memory_format(self.backbone))

    def roi_features(self, pyramid: list[Tensor], boxes: Tensor, output_size: int) -> Tensor:
        """RoIAlign over P2..P5 of boxes [B, R, 4] -> [B * R, C, output_size, output_size]."""
        own = self.conventions
        pooled = plugins_cuda.roi_align_fpn(
            pyramid[:PYRAMID_LEVELS],
            boxes,
            output_size,
            own.samples,
            aligned=own.aligned,
            inclusive=own.inclusive,
            rounded_levels=own.rounded_levels,
        )
        return pooled.flatten(0, 1)

    def score_proposals(self, pyramid: list[Tensor], sizes: Tensor) -> ScoredProposals:
        """The proposals and what the box head says of them."""
        proposals, valid = self.rpn.propose(self.rpn(pyramid), sizes, self.config.rpn.test_top_n)
        logits, deltas = self.box_head(self.roi_features(pyramid, proposals, BOX_POOL))
        return ScoredProposals(proposals, valid, logits.softmax(dim=1), deltas, sizes)

    def select(self, scored: ScoredProposals) -> Detections:
        """The panoptic branch's detections: the best class of each proposal, then NMS."""
        batch, rows = scored.valid.shape
        scores, labels = scored.probabilities[:, 1:].max(dim=1)
        channel = (labels + 1).reshape(-1, 1, 1).expand(-1, 1, 4)
        deltas = torch.gather(scored.deltas, 1, channel).reshape(batch, rows, 4)
        scores = scores.reshape(batch, rows) * scored.valid
        decoded = self.conventions.decode(deltas, scored.proposals, B.BOX_WEIGHTS)
        boxes = self.conventions.clip(decoded, scored.sizes)
        return suppress(boxes, scores, labels.reshape(batch, rows), self.suppression, self.conventions)

    @property
    def suppression(self) -> Suppression:
        """Of the panoptic branch."""
        panoptic = self.config.panoptic
        threshold = below(panoptic.score_threshold) if self.heuristic else panoptic.score_threshold
        return Suppression(threshold, panoptic.nms_threshold, panoptic.max_detections, panoptic.by_class)

    def forward(self, images: Tensor, sizes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images uint8 B x H x W x 3 (RGB, padded to multiples of 32), sizes int32 B x 2 (height, width inside the
        padding), scales float32 B (network pixels for one original pixel).

        Returns panoptic uint8 B x H x W (0 is void, else 1 + row of segments), segments float32 B x K x 7 (category,
        score, area, x1, y1, x2, y2) and segment_count int32 B.
        """
        pyramid = self.pyramid(images, sizes)
        semantic = self.semantic_head(pyramid[:PYRAMID_LEVELS], sizes)
        found = self.select(self.score_proposals(pyramid, sizes)) if self.num_things else no_detections(sizes)
        return self.fuse(semantic, found, self.mask_logits(pyramid, found), sizes, scales)

    def mask_logits(self, pyramid: list[Tensor], found: Detections) -> Tensor:
        """[B, K, 28, 28] of detections; zeros without things."""
        batch, rows = found.scores.shape
        if not self.num_things:
            return found.scores.new_zeros(batch, rows, MASK_SIZE, MASK_SIZE)
        boxes, labels = (plugins_cuda.used_rows(each, found.counts) for each in (found.boxes, found.labels))
        masks = self.mask_head(self.roi_features(pyramid, boxes, MASK_POOL), labels.flatten())
        return plugins_cuda.all_rows(masks, found.boxes)

    def fuse(
        self,
        semantic: Tensor,
        found: Detections,
        masks: Tensor,
        sizes: Tensor,
        scales: Tensor,
        operator: Callable[..., tuple[Tensor, Tensor, Tensor]] = plugins_cuda.panoptic_fusion,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The panoptic head on semantic logits [B, semantic_channels, h, w], detections and their mask logits
        [B, K, M, M]. operator: another one with these arguments."""
        panoptic = self.config.panoptic
        fused = operator(
            semantic,
            self.fused_boxes(found),
            found.labels,
            found.scores,
            masks,
            found.counts,
            sizes,
            scales,
            num_stuff=self.num_stuff,
            stuff_area_limit=math.inf if self.background else panoptic.stuff_area_limit,  # inf: always void
            mask_overlap_threshold=panoptic.mask_overlap,
            heuristic=self.heuristic,
        )
        return without_background(*fused) if self.background else fused

    def fused_boxes(self, found: Detections) -> Tensor:
        """Boxes [B, K, 4] with the corners that the panoptic head takes: inclusive, or exclusive for the heuristic."""
        conventions = self.conventions
        return conventions.to_exclusive(found.boxes) if self.heuristic else conventions.to_inclusive(found.boxes)


def no_detections(sizes: Tensor) -> Detections:
    """What a network without things finds in images of these sizes: one row of padding, as no runtime is at ease with
    an empty tensor."""
    batch = sizes.shape[0]
    return Detections(
        boxes=sizes.new_zeros(batch, 1, 4, dtype=torch.float32),
        scores=sizes.new_zeros(batch, 1, dtype=torch.float32),
        labels=sizes.new_zeros(batch, 1, dtype=torch.int64),
        counts=sizes.new_zeros(batch, dtype=torch.int32),
    )


def without_background(panoptic: Tensor, segments: Tensor, segment_count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of a fusion whose stuff class 0 is the background, which is void by now: no row of the table is its,
    and things are counted from 0."""
    category, others = segments[:, :-1].split([1, 6], dim=2)
    return panoptic, torch.cat([(category - 1).clamp(min=0), others], dim=2), segment_count


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, rule: Suppression, conventions: Conventions) -> Detections:
    """The detections that stay of boxes [B, N, 4], scores and labels [B, N]."""
    score_threshold, nms_threshold, max_output, by_class = rule
    classes, inclusive = labels if by_class else None, conventions.inclusive
    kept, counts = plugins_cuda.nms(
        boxes, scores, nms_threshold, score_threshold, max_output, classes=classes, inclusive=inclusive
    )
    return Detections(B.gather_rows(boxes, kept), torch.gather(scores, 1, kept), torch.gather(labels, 1, kept), counts)


def memory_format(network: nn.Module) -> torch.memory_format:
    """channels_last where the first convolution's weights are so (`compute.channels_last`), else contiguous."""
    weight = next(parameter for parameter in network.parameters() if parameter.ndim == 4)
    return torch.channels_last if is_channels_last(weight) else torch.contiguous_format


def below(threshold: float) -> float:
    """The largest float32 that is less: to be over it is to be at least the threshold."""
    single = np.float32(threshold)
    return float(single if single < threshold else np.nextafter(single, np.float32(-np.inf)))


def build_semantic_head(config: ModelConfig, channels: int) -> SemanticHead | ChainsHead:
    """The configured semantic head with random weights: ([P2..P5], sizes) -> B x channels x H/4 x W/4."""
    head = config.semantic_head
    if isinstance(head, SubnetConfig):
        return SemanticHead(config.fpn.channels, channels, head)
    return ChainsHead(config.fpn.channels, channels, head)


def build_backbone(config: BackboneConfig, conventions: Conventions) -> HybridBackbone | TimmBackbone:
    """The configured backbone with random weights: B x 3 x H x W -> [C2..C5], widths in `out_channels`."""
    if not isinstance(config, TimmConfig):
        return HybridBackbone(config)
    from training.model.timm_backbone import TimmBackbone  # takes seconds, and most networks need no timm

    return TimmBackbone(config, conventions)


def load_pretrained_backbone(model: UPSNet) -> str:
    """Give a new network the pretrained weights that its configuration asks for; a line that says which, or "".

    InputError: they cannot be had, or are not those of the configured backbone.
    """
    return "" if isinstance(model.backbone, HybridBackbone) else model.backbone.load_pretrained()
