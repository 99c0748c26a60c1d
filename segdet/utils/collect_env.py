"""What a bug report needs to know about the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import torch

import segdet
from segdet.ops import BINARY_DEVICES

_PACKAGES = ("torchvision", "numpy", "pillow", "pycocotools", "hotcoco")


def collect_env_info() -> str:
    """Versions and devices, one a line."""
    facts = {
        "segdet": segdet.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        **{name: _version(name) for name in _PACKAGES},
        "compiled ops": ", ".join(sorted(BINARY_DEVICES - {"meta"})) or "none",
        "cpu threads": str(torch.get_num_threads()),
    }
    for index in range(torch.cuda.device_count()):
        facts[f"gpu {index}"] = torch.cuda.get_device_name(index)
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {value}" for name, value in facts.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    print(collect_env_info())
