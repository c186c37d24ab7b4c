"""Panoptic segmentation for applications: load a trained UPSNet in any runtime, and give it photos. No PyTorch.

    import upsnet

    with upsnet.load("runs/demo") as model:
        model.predict("street.jpg").overlay()

Importing this package loads nothing heavy: each name below comes with its module when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upsnet import lazy

__version__ = "0.2.0"
DISTRIBUTION = "upsnet-trt"  # the name to pip install

if TYPE_CHECKING:
    from upsnet.bulk.output import read_predictions as read_predictions
    from upsnet.categories import Categories as Categories
    from upsnet.categories import Category as Category
    from upsnet.client.async_client import AsyncClient as AsyncClient
    from upsnet.client.client import Client as Client
    from upsnet.command_line.main import main as main
    from upsnet.errors import InputError as InputError
    from upsnet.errors import ServerError as ServerError
    from upsnet.model import Model as Model
    from upsnet.model import load as load
    from upsnet.photos import read_photo as read_photo
    from upsnet.prediction import PanopticPrediction as PanopticPrediction
    from upsnet.prediction import PredictedSegment as PredictedSegment
    from upsnet.prediction import save_coco as save_coco
    from upsnet.runtimes.tls import Tls as Tls

_HOMES = {
    "AsyncClient": "upsnet.client.async_client",
    "Categories": "upsnet.categories",
    "Category": "upsnet.categories",
    "Client": "upsnet.client.client",
    "InputError": "upsnet.errors",
    "Model": "upsnet.model",
    "PanopticPrediction": "upsnet.prediction",
    "PredictedSegment": "upsnet.prediction",
    "ServerError": "upsnet.errors",
    "Tls": "upsnet.runtimes.tls",
    "load": "upsnet.model",
    "main": "upsnet.command_line.main",
    "read_photo": "upsnet.photos",
    "read_predictions": "upsnet.bulk.output",
    "save_coco": "upsnet.prediction",
}
__all__ = [*_HOMES, "__version__"]
__getattr__, __dir__ = lazy.names(__name__, _HOMES)
