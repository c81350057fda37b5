"""The layout law: one floor per folder, imports run downwards only, the library needs torch alone."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
# From the lowest floor to the highest. A module imports from lower floors and from its own folder.
FLOORS = (
    ("_version", "_require", "_torch_compat", "kernels", "recipes", "pretrained"),
    ("backends",),
    ("ops",),
    ("functional", "nn"),
    ("models", "data"),
    ("ser_fast",),  # the package itself: its public names
    ("training", "tuning"),
    ("prediction",),
    ("reports",),
    ("experiments",),
    ("cli",),
    ("__main__",),
)


def sources() -> dict[str, str]:
    """Return the source of every module by its name."""
    found = {}
    for folder, package in ((ROOT / "ser_fast", "ser_fast"), (ROOT / "kernels", "ser_fast.kernels")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = file.read_text()
    return found


def imported(name: str, source: str, modules: dict[str, str]) -> Iterator[str]:
    """Yield the modules of ser_fast that the import statements of a module name, anywhere in its source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                is_package = any(other.startswith(f"{name}.") for other in modules)
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *filter(None, [base])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in modules or base in modules:
                    yield whole if whole in modules else base


def imports(name: str, source: str, modules: dict[str, str]) -> Iterator[str]:
    """Yield the modules of ser_fast that a module imports, and the packages above them, whose __init__ then runs.

    The module itself and the packages above it are not among these packages: their __init__ has begun by then.
    """
    for module in imported(name, source, modules):
        yield module
        parts = module.split(".")
        above = (".".join(parts[:end]) for end in range(1, len(parts)))
        yield from (package for package in above if not f"{name}.".startswith(f"{package}."))


def floor(module: str) -> tuple[int, str]:
    """Return a module's floor and folder."""
    folder = module.split(".")[1] if "." in module else module
    return next(number for number, names in enumerate(FLOORS) if folder in names), folder


def upward(modules: dict[str, str]) -> list[str]:
    """Return every import from a lower floor to a higher one, or between two folders of one floor."""
    found = []
    for name, source in modules.items():
        here, folder = floor(name)
        for target in imports(name, source, modules):
            there, other = floor(target)
            if folder != other and there >= here:
                found.append(f"{name} imports {target}")
    return found


def cycle(modules: dict[str, str]) -> list[str]:
    """Return the modules of an import cycle, [] if there is none."""
    edges = {name: set(imports(name, source, modules)) - {name} for name, source in modules.items()}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(edges[name]):
                if found := visit(target, [*path, name]):
                    return found
            done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in edges)), [])


def test_layout_imports_run_downwards():
    assert upward(sources()) == []


def test_layout_has_no_import_cycle():
    assert cycle(sources()) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ser_fast.ops.gru", "from ser_fast.nn.gru import GRU"),
        ("ser_fast.ops.gru", "from ser_fast import GRU"),
        ("ser_fast.backends.state", "def f():\n    from ser_fast.ops import gru"),
        ("ser_fast.data.dataset", "import ser_fast.training.trainer"),
        ("ser_fast.data.dataset", "from ser_fast.models.cgru import CGRU"),
        ("ser_fast.models.cgru", "from ser_fast.data import batches"),
        ("ser_fast.kernels.gru", "from ser_fast.ops import checks"),
        ("ser_fast.training.trainer", "from ..reports import terminal"),
    ],
)
def test_layout_turned_import_is_found(name, line):
    modules = sources()
    found = upward(modules | {name: f"{line}\n{modules[name]}"})
    assert name in modules and {fault.split(" imports ")[0] for fault in found} == {name}


@pytest.mark.parametrize(
    ("name", "line", "other"),
    [
        ("ser_fast.data.wav", "from ser_fast.data.audio import read_audio", "ser_fast.data.audio"),
        # manifest does not import audio, but the __init__ of its package does.
        ("ser_fast.data.audio", "from ser_fast.data.corpora.manifest import manifest", "ser_fast.data.corpora"),
        ("ser_fast.data.audio", "import ser_fast.data.corpora.manifest", "ser_fast.data.corpora"),
    ],
)
def test_layout_cycle_is_found(name, line, other):
    modules = sources()
    found = cycle(modules | {name: f"{modules[name]}\n{line}\n"})
    assert found[0] == found[-1] and {name, other} <= set(found)


def test_layout_every_folder_states_its_law():
    packages = {name for name in sources() if (ROOT / name.replace(".", "/") / "__init__.py").is_file()}
    assert len(packages) > 8
    for name in packages | {"ser_fast.kernels"}:
        assert ast.get_docstring(ast.parse(sources()[name])), f"{name} has no docstring"


def test_kernels_see_neither_torch_in_cpp_nor_ser_fast():
    for file in (ROOT / "kernels").glob("*.[hc]*"):
        assert not re.search(r'#include\s*[<"](torch|ATen|c10)/', file.read_text()), file.name
    for name, source in sources().items():
        if name.startswith("ser_fast.kernels"):
            outside = [
                node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level > 1
            ]
            assert not outside and not re.search(r"^\s*(from|import) ser_fast", source, re.M), name


def test_library_imports_without_the_extras():
    """In a process where no package of any extra can be imported; numpy is torch's own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {re.match(r"[\w.]+", line)[0] for lines in project["optional-dependencies"].values() for line in lines}
    renamed = {"scikit": "sklearn", "pyyaml": "yaml"}
    modules = [renamed.get(name, name) for name in extras - {"ser_fast", "numpy"}]
    script = f"""
import sys, warnings
for name in {sorted(modules)!r}:
    sys.modules[name] = None
warnings.simplefilter("error")
import torch, ser_fast
for model in (ser_fast.CGRU(3), ser_fast.BiGRUMHA(3), ser_fast.models.MODELS["functionals"](3)):
    assert model(torch.randn(2, 8000), torch.tensor([8000, 5000])).shape == (2, 3)
from ser_fast.backends import info
assert "torch" in info.text()
from ser_fast.tuning import cuda, worker
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "tests")
    assert result.returncode == 0, result.stderr
