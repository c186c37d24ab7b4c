"""The table behind `upsnet pull`: published networks that `upsnet import` reads, whose they are, and their licences.

PQ is what their authors publish. Nothing here has been downloaded by this project's tests.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from upsnet.errors import InputError


class Licence(NamedTuple):
    name: str
    address: str
    terms: str  # in one sentence; what counts is the text at the address


CC_BY_SA = Licence(
    "CC BY-SA 3.0",
    "https://creativecommons.org/licenses/by-sa/3.0/",
    "you may use, change and pass on the weights, if you name their source, say what you changed, and pass on what you "
    "made of them under this licence alone",
)
NON_COMMERCIAL = Licence(
    "Uber Non-Commercial",
    "https://github.com/uber-research/UPSNet/blob/master/LICENSE",
    "the weights are for non-commercial use alone",
)


class Network(NamedTuple):
    """One published file of weights."""

    title: str
    pq: str  # as published, in percent, and on what
    source: str  # whose it is
    page: str  # that tells of it
    licence: Licence
    file: str  # its name there
    address: str | None  # None: by hand, from the page
    md5: str  # the first digits of the file's MD5; "": none is published
    megabytes: int | None  # about: four bytes for each number; None: not known
    config: str  # in training/configs
    categories: Literal["coco", "cityscapes"] = "coco"
    settings: tuple[str, ...] = ()  # of `upsnet import --set`


DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/COCO-PanopticSegmentation"


def _panoptic_fpn(title: str, pq: str, place: str, digits: str, megabytes: int, config: str) -> Network:
    """Of detectron2's zoo, whose page says that a file's name has the first digits of its MD5."""
    file = f"model_final_{digits}.pkl"
    return Network(
        title=f"Panoptic FPN {title}",
        pq=f"{pq}, COCO val2017",
        source="detectron2's model zoo",
        page="https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md",
        licence=CC_BY_SA,
        file=file,
        address=f"{DETECTRON2}/{place}/{file}",
        md5=digits,
        megabytes=megabytes,
        config=config,
    )


def _upsnet(title: str, pq: str, file: str, config: str, categories: Literal["coco", "cityscapes"] = "coco") -> Network:
    """Of UPSNet's authors."""
    return Network(
        title=f"UPSNet {title}",
        pq=pq,
        source="UPSNet's authors",
        page="https://github.com/uber-research/UPSNet#model-weights",
        licence=NON_COMMERCIAL,
        file=file,
        address=None,
        md5="",
        megabytes=None,
        config=config,
        categories=categories,
        settings=("model.conventions=upsnet",),
    )


NETWORKS = {
    "panoptic_fpn_r50_1x": _panoptic_fpn(
        "R50, 1x", "39.4", "panoptic_fpn_R_50_1x/139514544", "dbfeb4", 184, "panoptic_fpn_r50.yaml"
    ),
    "panoptic_fpn_r50_3x": _panoptic_fpn(
        "R50, 3x", "41.5", "panoptic_fpn_R_50_3x/139514569", "c10459", 184, "panoptic_fpn_r50.yaml"
    ),
    "panoptic_fpn_r101_3x": _panoptic_fpn(
        "R101, 3x", "43.0", "panoptic_fpn_R_101_3x/139514519", "cafdb1", 260, "panoptic_fpn_r101.yaml"
    ),
    "upsnet_r50_coco": _upsnet("R50", "42.5, COCO val2017", "upsnet_resnet_50_coco_90000.pth", "coco_r50.yaml"),
    "upsnet_r101_dcn_coco": _upsnet(
        "R101 DCN",
        "46.6, COCO test-dev",
        "upsnet_resnet_101_dcn_coco_270000.pth",
        "coco_r101_dcn_3x.yaml",
    ),
    "upsnet_r50_cityscapes": _upsnet(
        "R50",
        "59.3, Cityscapes val",
        "upsnet_resnet_50_cityscapes_12000.pth",
        "cityscapes_r50.yaml",
        "cityscapes",
    ),
    "upsnet_r101_cityscapes": _upsnet(
        "R101, from COCO",
        "61.8, Cityscapes val, many scales",
        "upsnet_resnet_101_cityscapes_w_coco_3000.pth",
        "cityscapes_r101.yaml",
        "cityscapes",
    ),
}


def find_network(name: str) -> Network:
    """InputError for a name that is not in the table."""
    if name not in NETWORKS:
        raise InputError(f"{name}: no network of that name; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]
