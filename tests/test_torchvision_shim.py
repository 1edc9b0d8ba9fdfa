import subprocess
import sys
from pathlib import Path

IMPORTS = """
import torch
import torchvision
from torchvision import transforms
from transformers import CLIPModel
import open_clip
from alignment.torchvision_shim import prepare_torchvision
prepare_torchvision()
assert hasattr(torch.ops.torchvision, "nms")
print(transforms.Resize.__name__, CLIPModel.__name__, open_clip.create_model.__name__)
"""


def test_vision_libraries_import_as_they_are(project_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=project_root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["Resize", "CLIPModel", "create_model"], done.stderr


def test_accelerates_own_command_starts() -> None:
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "--num_processes" in done.stdout, done.stderr
