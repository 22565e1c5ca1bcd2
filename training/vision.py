"""The only import of torchvision, which also works beside a CPU build of torch.

torchvision's wheels are CUDA builds. Beside a CPU build of torch, their operator library does not
load, and the import fails on the schemas of two operators that nothing here calls. With these
schemas declared first, the rest (models, downloads of data sets) works.
"""

import sys
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Return torchvision with `models` and `datasets` imported."""
    try:
        import torchvision
    except RuntimeError as exc:
        if "torchvision::nms" not in str(exc):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)
        _declared.append(library)  # the schemas go when the library object does
        import torchvision
    module: ModuleType = torchvision
    return module
