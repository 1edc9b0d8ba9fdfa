import subprocess
import sys
from pathlib import Path

IMPORTS = """
from alignment.torchvision_shim import ensure_torchvision_ops
ensure_torchvision_ops()
ensure_torchvision_ops()
import torch
from torchvision import transforms
from transformers import CLIPModel
import open_clip
assert hasattr(torch.ops.torchvision, "nms")
print(transforms.Resize.__name__, CLIPModel.__name__, open_clip.create_model.__name__)
"""


def test_vision_libraries_import_after_the_shim(project_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=project_root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["Resize", "CLIPModel", "create_model"], done.stderr
