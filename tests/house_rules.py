"""Rules 1-7 of the architecture as functions: each takes the project's root and returns what breaks the rule.

They read source, never objects, so a lazy import counts like any other. The one that runs code is ``import_effects``:
what a module does when it is imported can only be watched.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGES = ("encoders", "alignment", "generation", "serving")  # each may import from those before it
HOMES = {
    "mne": "encoders",
    "pywt": "encoders",
    "mne_bids": "encoders",
    "pyarrow": "encoders",
    "open_clip": "alignment",
    "transformers": "alignment",
    "accelerate": "alignment",
    "optuna": "alignment",
    "torchvision": "alignment",
    "diffusers": "generation",
    "ray": "serving",
    "fastapi": "serving",
}
RUNTIME, LOOP, MODALITY = "alignment/runtime.py", "alignment/fit.py", "encoders/modality.py"
MODALITY_NAMES = {"eeg", "meg", "mag", "grad"}
HALF_PRECISION = {"float16", "bfloat16", "half", "autocast", "GradScaler", "set_default_dtype", "set_default_device"}
PROCESS_GROUP = {"Accelerator", "PartialState", "init_process_group", "DistributedDataParallel"}
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    "torch.load",
    "torch.save",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pandas.read_pickle",
    "pd.read_pickle",
}
TESTS_OF_NO_MODULE = {
    "architecture", "cluster_changes", "deploy", "hot_swap", "page", "privacy", "private_service", "readme",
}  # fmt: skip


@cache
def nodes_of(text: str, path: str) -> tuple[ast.AST, ...]:
    """List every node of a file's syntax tree, parsed once per text."""
    return tuple(ast.walk(ast.parse(text, filename=path)))


@dataclass(frozen=True)
class Source:
    """One file's syntax; ``path`` is relative to the root, ``name`` is dotted (``encoders.epochs``)."""

    path: str
    name: str
    nodes: tuple[ast.AST, ...]

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


def sources(root: Path, folders: tuple[str, ...] = PACKAGES) -> list[Source]:
    """Parse every Python file of ``folders``, sorted by path."""
    found = []
    for file in sorted(file for folder in folders for file in (root / folder).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        path = file.relative_to(root).as_posix()
        found.append(Source(path, name, nodes_of(file.read_text(encoding="utf-8"), path)))
    return found


def dotted(node: ast.AST) -> str:
    """Write ``a.b.c`` for a chain of attributes; calls and subscripts on the way are passed through."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call):
        return dotted(node.func)
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else node.attr
    return ""


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything imported, anywhere in the file; ``from a import b`` gives ``a.b``."""
    parts = source.name.split(".")
    here = parts if source.path.endswith("__init__.py") else parts[:-1]
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in {"import_module", "__import__"}:
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def docstrings(source: Source) -> set[int]:
    """Ids of the constants that are docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in source.nodes if isinstance(node, owners)]
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def rule_1_imports_point_down(root: Path) -> list[str]:
    """Report imports of a higher folder, and circles between modules."""
    found = sources(root)
    names = {source.name for source in found}
    graph: dict[str, set[str]] = {name: set() for name in names}
    broken = []
    for source in found:
        for line, target in imports(source):
            top = target.split(".")[0]
            if top in PACKAGES and PACKAGES.index(top) > PACKAGES.index(source.package):
                broken.append(f"{source.path}:{line} imports {target}, which is above {source.package}")
            while target and target not in names:
                target = target.rpartition(".")[0]
            if target and target != source.name:
                graph[source.name].add(target)
    return broken + [f"circle of imports: {' -> '.join(circle)}" for circle in circles(graph)]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Find one path from each node back to itself, each circle once."""
    seen: set[frozenset[str]] = set()
    found = []
    for start in sorted(graph):
        paths, visited = [[start]], set[str]()
        while paths:
            path = paths.pop()
            for target in sorted(graph[path[-1]]):
                if target == start:
                    if frozenset(path) not in seen:
                        seen.add(frozenset(path))
                        found.append([*path, start])
                    paths = []
                    break
                if target not in visited:
                    visited.add(target)
                    paths.append([*path, target])
    return found


def rule_2_heavy_libraries_at_home(root: Path) -> list[str]:
    """Report heavy libraries imported outside their folder, and torch in serving."""
    broken = []
    for source in sources(root):
        for line, target in imports(source):
            library = target.split(".")[0]
            if library in HOMES and HOMES[library] != source.package:
                broken.append(f"{source.path}:{line} imports {target}, whose home is {HOMES[library]}/")
            if library == "torch" and source.package == "serving":
                broken.append(f"{source.path}:{line} imports {target}; serving never imports torch")
    return broken


def rule_3_one_runtime_one_loop(root: Path) -> list[str]:
    """Report device, dtype and process group decisions outside the runtime, and backward passes outside the loop."""
    broken = []
    for source in sources(root, (*PACKAGES, "benchmarks")):
        for node in source.nodes:
            called = dotted(node.func) if isinstance(node, ast.Call) else ""
            if called.split(".")[-1] == "backward" and "." in called and source.path != LOOP:
                broken.append(f"{source.path}:{node.lineno} calls .backward( outside {LOOP}")
            if source.path == RUNTIME:
                continue
            half = isinstance(node, ast.Attribute) and node.attr in HALF_PRECISION and dotted(node).startswith("torch.")
            if half or (isinstance(node, ast.Attribute) and node.attr in {"cuda", "mps"}):
                broken.append(f"{source.path}:{node.lineno} decides a device or dtype: {dotted(node)}")
            if called.split(".")[-1] in PROCESS_GROUP or called == "torch.device":
                broken.append(f"{source.path}:{node.lineno} decides a device or process group: {called}(")
            if re.search(r"\.(half|bfloat16)$", called):
                broken.append(f"{source.path}:{node.lineno} decides a dtype: {called}(")
        if source.path == RUNTIME:
            continue
        broken += [f"{source.path}:{n} imports {t}" for n, t in imports(source) if t.startswith("torch.distributed")]
        prose = docstrings(source)
        for node in source.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                if re.search(r"\bcuda\b|^mps$|^(bf|fp)16$", node.value):
                    broken.append(f"{source.path}:{node.lineno} names a device or dtype: {node.value!r}")
    return broken


def rule_4_no_branch_on_modality(root: Path) -> list[str]:
    """Report comparisons with the name of a modality or channel kind outside the table."""
    broken = []
    for source in sources(root):
        if source.path == MODALITY:
            continue
        for node in source.nodes:
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                flat = [e for side in sides for e in (side.elts if hasattr(side, "elts") else [side])]
            elif isinstance(node, ast.MatchValue):
                flat = [node.value]
            elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in {"startswith", "endswith"}:
                flat = node.args
            else:
                continue
            named = [e.value for e in flat if isinstance(e, ast.Constant) and e.value in MODALITY_NAMES]
            broken += [f"{source.path}:{flat[0].lineno} branches on modality {name!r}" for name in named]
    return broken


def rule_5_flat_and_unique(root: Path) -> list[str]:
    """Report repeated module names, nested or misnamed tests, Python in deploy, imports from the tests."""
    broken, seen = [], dict[str, str]()
    found = sources(root)
    for source in found:
        stem = Path(source.path).stem
        if stem not in {"__init__", "__main__"}:
            if stem in seen:
                broken.append(f"module name {stem} stands twice: {seen[stem]} and {source.path}")
            seen[stem] = source.path
    rooms = {part for source in found for part in source.name.split(".")} | {"static"} | TESTS_OF_NO_MODULE
    for file in sorted((root / "tests").rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if file.parent != root / "tests":
            broken.append(f"{path}: tests are flat")
        if file.stem.startswith("test_") and file.stem.removeprefix("test_") not in rooms:
            broken.append(f"{path}: no module is called {file.stem.removeprefix('test_')}")
    scripts = sorted((root / "deploy").rglob("*.py"))
    broken += [f"{file.relative_to(root).as_posix()}: deploy holds no Python" for file in scripts]
    test_modules = {"tests", *(file.stem for file in (root / "tests").glob("*.py"))}
    for source in sources(root, (*PACKAGES, "benchmarks")):
        for line, target in imports(source):
            if target.split(".")[0] in test_modules:
                broken.append(f"{source.path}:{line} imports {target} from tests/")
    return broken


def rule_6_nouns(root: Path) -> list[str]:
    """Report files and folders with a name that says nothing."""
    paths = [path for folder in (*PACKAGES, "tests", "benchmarks") for path in (root / folder).rglob("*")]
    code = [path for path in paths if path.suffix == ".py" or path.is_dir()]
    vague = [path for path in code if VAGUE_NAMES & set(path.stem.lower().split("_"))]
    return [f"{path.relative_to(root).as_posix()}: name it after what it holds" for path in sorted(vague)]


def rule_7_no_code_in_data(root: Path) -> list[str]:
    """Report every way to run code that hides in a data or weights file."""
    broken = []
    for source in sources(root, (*PACKAGES, "benchmarks")):
        for line, target in imports(source):
            if PICKLERS & set(target.split(".")) or target in UNSAFE_CALLS:
                broken.append(f"{source.path}:{line} imports {target}; use safetensors, JSON or plain npz")
        for node in source.nodes:
            if not isinstance(node, ast.Call):
                continue
            called = dotted(node.func)
            if called in UNSAFE_CALLS or (called == "yaml.load" and "Safe" not in ast.dump(node)):
                broken.append(f"{source.path}:{node.lineno} calls {called}(")
            for keyword in node.keywords:
                fixed = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in {"trust_remote_code", "allow_pickle"} and fixed is not False:
                    broken.append(f"{source.path}:{node.lineno} {called}({keyword.arg}=...) is not False")
                if keyword.arg == "use_safetensors" and fixed is False:
                    broken.append(f"{source.path}:{node.lineno} {called}(use_safetensors=False)")
    return broken


# Runs in its own interpreter. An effect is ours when, going outwards from it, a frame of ours comes before the import
# machinery: a library that reads its own files while it is being imported is not our doing.
_WATCH = """
import importlib, json, logging, os, random, sys
root, names = sys.argv[1], sys.argv[2:]
sys.path.insert(0, root)
ours = tuple(os.path.join(root, p) + os.sep for p in ("encoders", "alignment", "generation", "serving"))
effects = []

def author():
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ours):
            return f"{os.path.relpath(name, root)}:{frame.f_lineno}"
        if name.startswith("<frozen "):
            return None
        frame = frame.f_back

def note(what):
    where = author()
    if where:
        effects.append(f"{where} {what} while being imported")

def watched(owner, attribute, what):
    plain = getattr(owner, attribute)
    def call(*args, **kwargs):
        note(what)
        return plain(*args, **kwargs)
    setattr(owner, attribute, call)

import numpy, torch
watched(random, "seed", "sets a seed")
watched(numpy.random, "seed", "sets a seed")
watched(torch, "manual_seed", "sets a seed")
watched(torch.nn.Module, "__init__", "builds a model")
watched(logging, "basicConfig", "configures logging")
watched(logging.Logger, "addHandler", "configures logging")

def audit(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.fsdecode(args[0])
        if path not in sys.path and not path.endswith((".py", ".pyc", ".so")) and ".dist-info" not in path:
            note(f"opens {path}")

sys.addaudithook(audit)
for name in names:
    importlib.import_module(name)
print(json.dumps(effects))
"""


def import_effects(root: Path, names: list[str] | None = None) -> list[str]:
    """Import ``names`` (all modules when None) in a new interpreter and report files read, models built, seeds set."""
    names = [source.name for source in sources(root)] if names is None else names
    command = [sys.executable, "-c", _WATCH, str(root), *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300, check=False)
    if done.returncode:
        return [f"import failed: {done.stderr[-2000:]}"]
    return list(json.loads(done.stdout.splitlines()[-1]))


RULES = {
    1: [rule_1_imports_point_down],
    2: [rule_2_heavy_libraries_at_home],
    3: [rule_3_one_runtime_one_loop],
    4: [rule_4_no_branch_on_modality],
    5: [rule_5_flat_and_unique],
    6: [rule_6_nouns, import_effects],
    7: [rule_7_no_code_in_data],
}
