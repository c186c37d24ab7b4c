"""UPSNet (Xiong et al., CVPR 2019): from a batch of uint8 photos to panoptic maps and segment tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

import plugins_cuda
from training.config import BackboneConfig, HybridConfig, ModelConfig
from training.model import boxes as B
from training.model.backbone import HybridBackbone
from training.model.fpn import FPN
from training.model.heads import BOX_POOL, MASK_POOL, BoxHead, MaskHead, SemanticHead
from training.model.rpn import RPN

if TYPE_CHECKING:
    from training.model.timm_backbone import TimmBackbone

PYRAMID_LEVELS = 4  # the heads read P2..P5; P6 serves the RPN alone


class Detections(NamedTuple):
    """Padded detections in descending score; rows from counts[b] on are padding."""

    boxes: Tensor  # B x K x 4, network pixels
    scores: Tensor  # B x K
    labels: Tensor  # B x K, thing index
    counts: Tensor  # B, int32


class UPSNet(nn.Module):
    """The network. `forward` is inference and follows the exported graph's contract; training calls the parts."""

    def __init__(self, config: ModelConfig, num_stuff: int, num_things: int) -> None:
        super().__init__()
        self.config = config
        self.num_stuff, self.num_things = num_stuff, num_things
        channels = config.fpn.channels
        self.backbone = build_backbone(config.backbone, config.legacy)
        self.fpn = FPN(self.backbone.out_channels, config.fpn, config.legacy)
        self.rpn = RPN(channels, config.rpn, self.inclusive)
        self.box_head = BoxHead(channels, num_things, config.box_head)
        self.mask_head = MaskHead(channels, num_things, config.mask_head)
        self.semantic_head = SemanticHead(channels, num_stuff + num_things, config.semantic_head)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std), persistent=False)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    @property
    def inclusive(self) -> bool:
        """Whether all boxes have inclusive corners, the legacy convention (see `boxes`)."""
        return self.config.legacy

    @property
    def max_segments(self) -> int:
        return self.num_stuff + self.config.panoptic.max_detections

    def pyramid(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """[P2..P6] of uint8 images B x H x W x 3."""
        return self.fpn(self.backbone(self.normalize(images, sizes)), sizes)

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """What the backbone reads, B x 3 x H x W. Padding is zero there, whatever its bytes are."""
        height, width = images.shape[1:3]
        rows = torch.arange(height, device=images.device) < sizes[:, :1]
        columns = torch.arange(width, device=images.device) < sizes[:, 1:]
        inside = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(3)
        x = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std * inside
        return x.permute(0, 3, 1, 2)

    def roi_features(self, pyramid: list[Tensor], boxes: Tensor, output_size: int) -> Tensor:
        """RoIAlign over P2..P5 of boxes [B, R, 4] -> [B * R, C, output_size, output_size]."""
        levels, legacy = pyramid[:PYRAMID_LEVELS], self.config.legacy
        pooled = plugins_cuda.roi_align_fpn(levels, boxes, output_size, aligned=not legacy, inclusive=self.inclusive)
        return pooled.flatten(0, 1)

    def detect(self, pyramid: list[Tensor], sizes: Tensor) -> Detections:
        """Proposals -> box head -> best class of each -> class-agnostic NMS, as the panoptic branch wants them."""
        proposals, valid = self.rpn.propose(self.rpn(pyramid), sizes, self.config.rpn.test_top_n)
        logits, deltas = self.box_head(self.roi_features(pyramid, proposals, BOX_POOL))
        return self.select(proposals, valid, logits.softmax(dim=1), deltas, sizes)

    def select(
        self, proposals: Tensor, valid: Tensor, probabilities: Tensor, deltas: Tensor, sizes: Tensor
    ) -> Detections:
        """The detections among proposals [B, R, 4]; probabilities [B * R, 1 + T] and deltas [B * R, 1 + T, 4]."""
        batch, rows = proposals.shape[:2]
        scores, labels = probabilities[:, 1:].max(dim=1)
        channel = (labels + 1).reshape(-1, 1, 1).expand(-1, 1, 4)
        deltas = torch.gather(deltas, 1, channel).reshape(batch, rows, 4)
        scores = scores.reshape(batch, rows) * valid
        decoded = B.decode(deltas, proposals, B.BOX_WEIGHTS, self.inclusive)
        boxes = B.clip(decoded, sizes, self.inclusive)
        panoptic = self.config.panoptic
        kept, counts = plugins_cuda.nms(
            boxes,
            scores,
            panoptic.nms_threshold,
            panoptic.score_threshold,
            panoptic.max_detections,
            inclusive=self.inclusive,
        )
        return Detections(
            boxes=B.gather_rows(boxes, kept),
            scores=torch.gather(scores, 1, kept),
            labels=torch.gather(labels.reshape(batch, rows), 1, kept),
            counts=counts,
        )

    def forward(self, images: Tensor, sizes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images uint8 B x H x W x 3 (RGB, padded to multiples of 32), sizes int32 B x 2, scales float32 B.

        Returns panoptic uint8 B x H x W, segments float32 B x K x 7, segment_count int32 B: see design of the graph.
        """
        pyramid = self.pyramid(images, sizes)
        semantic = self.semantic_head(pyramid[:PYRAMID_LEVELS])
        found = self.detect(pyramid, sizes)
        masks = self.mask_head(self.roi_features(pyramid, found.boxes, MASK_POOL), found.labels.flatten())
        batch, rows = found.scores.shape
        return self.fuse(semantic, found, masks.reshape(batch, rows, *masks.shape[1:]), sizes, scales)

    def fuse(
        self, semantic: Tensor, found: Detections, masks: Tensor, sizes: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The panoptic head on semantic logits [B, S + T, h, w], detections and their mask logits [B, K, M, M]."""
        panoptic = self.config.panoptic
        return plugins_cuda.panoptic_fusion(
            semantic,
            found.boxes if self.inclusive else inclusive(found.boxes),
            found.labels,
            found.scores,
            masks,
            found.counts,
            sizes,
            scales,
            num_stuff=self.num_stuff,
            stuff_area_limit=panoptic.stuff_area_limit,
            mask_overlap_threshold=panoptic.mask_overlap,
        )


def build_backbone(config: BackboneConfig, legacy: bool) -> HybridBackbone | TimmBackbone:
    """The configured backbone with random weights: B x 3 x H x W -> [C2..C5], widths in `out_channels`."""
    if isinstance(config, HybridConfig):
        return HybridBackbone(config)
    from training.model.timm_backbone import TimmBackbone  # takes seconds, and most networks need no timm

    return TimmBackbone(config, legacy)


def load_pretrained_backbone(model: UPSNet) -> str:
    """Give a new network the pretrained weights that its configuration asks for; a line that says which, or "".

    InputError: they cannot be had, or are not those of the configured backbone.
    """
    return "" if isinstance(model.backbone, HybridBackbone) else model.backbone.load_pretrained()


def inclusive(boxes: Tensor) -> Tensor:
    """Corners as the panoptic head counts them: the last pixel that belongs to the box instead of the first outside."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - 1], dim=-1)
