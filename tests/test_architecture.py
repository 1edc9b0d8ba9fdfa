"""Rules 1-7 of the architecture hold, and each checker really finds what it looks for."""

import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import house_rules
import pytest

CHECKS = [(number, check) for number, checks in house_rules.RULES.items() for check in checks]

# rule, file, source, what the report must say
PLANTED = [
    (1, "encoders/planted.py", "import alignment", "which is above encoders"),
    (1, "alignment/planted.py", "def f():\n    from serving import schema", "which is above alignment"),
    (1, "encoders/planted.py", "from importlib import import_module\nimport_module('generation.bundle')", "is above"),
    (1, "encoders/planted.py", "from encoders import planted_too", "circle of imports"),
    (2, "serving/planted.py", "def f():\n    import mne", "whose home is encoders/"),
    (2, "generation/planted.py", "from transformers import CLIPModel", "whose home is alignment/"),
    (2, "generation/planted.py", "import torchvision.transforms", "whose home is alignment/"),
    (2, "alignment/planted.py", "from diffusers import DDIMScheduler", "whose home is generation/"),
    (2, "encoders/planted.py", "import ray.serve", "whose home is serving/"),
    (2, "serving/planted.py", "from torch import Tensor", "serving never imports torch"),
    (3, "encoders/planted.py", "def f(x):\n    return x.to('cuda:0')", "names a device"),
    (3, "generation/planted.py", "def f(x):\n    return x.cuda()", "decides a device"),
    (3, "generation/planted.py", "import torch\nx = torch.bfloat16", "decides a device or dtype"),
    (3, "generation/planted.py", "def f(x):\n    return x.half()", "decides a dtype"),
    (3, "alignment/planted.py", "import torch.distributed as dist", "imports torch.distributed"),
    (3, "alignment/planted.py", "from accelerate import Accelerator\nx = Accelerator()", "process group"),
    (3, "alignment/planted.py", "def f(loss):\n    loss.backward()", ".backward( outside"),
    (3, "alignment/planted.py", "def f(losses):\n    losses['a'].sum().backward()", ".backward( outside"),
    (4, "encoders/planted.py", "def f(kind):\n    if kind == 'meg':\n        return 1", "on modality 'meg'"),
    (4, "alignment/planted.py", "def f(kind):\n    return 1 if kind in ('mag', 'grad') else 2", "on modality 'mag'"),
    (
        4,
        "serving/planted.py",
        "def f(k):\n    match k:\n        case 'eeg':\n            return 1",
        "on modality 'eeg'",
    ),
    (5, "serving/epochs.py", "", "module name epochs stands twice"),
    (5, "tests/deeper/test_epochs.py", "", "tests are flat"),
    (5, "tests/test_planted.py", "", "no module is called planted"),
    (5, "deploy/planted.py", "", "deploy holds no Python"),
    (5, "encoders/planted.py", "from tests import conftest", "from tests/"),
    (5, "encoders/planted.py", "from house_rules import RULES", "from tests/"),
    (6, "encoders/utils.py", "", "name it after what it holds"),
    (6, "serving/common/planted.py", "", "name it after what it holds"),
    (6, "generation/image_helpers.py", "", "name it after what it holds"),
    (7, "encoders/planted.py", "import pickle", "imports pickle"),
    (7, "serving/planted.py", "def f():\n    from joblib import load", "imports joblib.load"),
    (7, "alignment/planted.py", "import torch\nx = torch.load('x', weights_only=True)", "calls torch.load("),
    (7, "alignment/planted.py", "from torch import load", "imports torch.load"),
    (7, "encoders/planted.py", "import numpy as np\nx = np.load('x', allow_pickle=True)", "allow_pickle"),
    (7, "alignment/planted.py", "def f(g, x):\n    return g(x, trust_remote_code=True)", "trust_remote_code"),
    (7, "alignment/planted.py", "import yaml\nx = yaml.load('', yaml.Loader)", "calls yaml.load("),
]

# source of a module that must not do this while being imported, what the report must say
EFFECTS = [
    ("from pathlib import Path\nx = Path('/etc/hostname').read_text()", "opens /etc/hostname"),
    ("import mne\nx = mne.channels.make_standard_montage('biosemi64')", "biosemi64.txt"),
    ("import torch\ntorch.manual_seed(0)", "sets a seed"),
    ("import numpy\nnumpy.random.seed(0)", "sets a seed"),
    ("from torch import nn\nx = nn.Linear(1, 1)", "builds a model"),
    ("import logging\nlogging.basicConfig()", "configures logging"),
]


@pytest.mark.parametrize(("number", "check"), CHECKS, ids=[check.__name__ for _, check in CHECKS])
def test_rule_holds(number: int, check: Callable[[Path], list[str]], project_root: Path) -> None:
    assert check(project_root) == []


@pytest.fixture(scope="module")
def copied_source(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """The project's Python alone, plus one module that a planted one can close a circle with."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in (*house_rules.PACKAGES, "tests", "deploy"):
        skip = shutil.ignore_patterns("__pycache__", "demo_bundle", "static")
        shutil.copytree(project_root / folder, copy / folder, ignore=skip)
    (copy / "encoders" / "planted_too.py").write_text("from encoders import planted\n")
    return copy


@pytest.mark.parametrize(("number", "path", "source", "said"), PLANTED, ids=[f"rule {p[0]}: {p[3]}" for p in PLANTED])
def test_a_planted_violation_is_found(copied_source: Path, number: int, path: str, source: str, said: str) -> None:
    file = copied_source / path
    check = house_rules.RULES[number][0]
    new_folder = not file.parent.exists()
    file.parent.mkdir(exist_ok=True)
    file.write_text(source + "\n")
    try:
        found = check(copied_source)
    finally:
        file.unlink()
        if new_folder:
            file.parent.rmdir()
    named = Path(path).with_suffix("").parts[1:]
    lines = {line for line in found if said in line and any(part in line for part in named)}
    assert lines - set(reports_before(number, copied_source)), found


@cache
def reports_before(number: int, root: Path) -> tuple[str, ...]:
    """What the rule's checker says of the copy with nothing planted."""
    return tuple(house_rules.RULES[number][0](root))


def test_planted_effects_of_importing_are_found(tmp_path: Path) -> None:
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders" / "__init__.py").write_text("")
    for number, (source, _) in enumerate(EFFECTS):
        (tmp_path / "encoders" / f"planted_{number}.py").write_text(source + "\n")
    found = house_rules.import_effects(tmp_path)
    for number, (_, said) in enumerate(EFFECTS):
        assert [line for line in found if f"planted_{number}.py" in line and said in line], found
    assert not [line for line in found if "planted_" not in line]


def test_docstrings_annotations_and_the_homes_themselves_are_free(tmp_path: Path) -> None:
    (tmp_path / "alignment").mkdir()
    runtime = "import torch\ndef device():\n    return torch.device('cuda')\n"
    (tmp_path / "alignment" / "runtime.py").write_text(runtime)
    other = 'import torch\ndef f(device: torch.device):\n    """Works on cuda too."""\n    torch.Generator("cpu")\n'
    (tmp_path / "alignment" / "other.py").write_text(other)
    assert house_rules.rule_3_one_runtime_one_loop(tmp_path) == []


def test_every_imported_library_is_declared(project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    spell = re.compile(r"[-_.]+")
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["train"], *extras["augment"], *extras["c2pa"], *extras["lsl"]]
    declared = {spell.sub("-", re.split(r"[\[<>=!~; ]", line)[0]).lower() for line in lines}
    owners = packages_distributions()
    missing = set()
    for source in house_rules.sources(project_root):
        for _, target in house_rules.imports(source):
            top = target.split(".")[0]
            if top in sys.stdlib_module_names or top in house_rules.PACKAGES:
                continue
            if not declared & {spell.sub("-", name).lower() for name in owners.get(top, [])}:
                missing.add(f"{source.path} imports {top}")
    assert missing == set()
