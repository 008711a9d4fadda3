"""Rules of CONTRIBUTING.md that a linter does not know: sizes, imports that point one way, no hidden inputs.

Every rule is a function from source text to findings, so that each has an example it must refuse.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.time_limits import folder_timeout_s

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7
# A kernel's parameters are what is bound when it is launched: every tensor, every extent, every compile-time size. There is no
# other way to hand them over, so functions decorated with `triton.jit` may have more.
MAX_KERNEL_PARAMETERS = 24
# Paths that may break a rule. Empty, and meant to stay so.
EXCEPTIONS: frozenset[str] = frozenset()

PACKAGE = "nemodiff_trt"
# Folder -> name it is imported by.
MAPPED = {name: f"{PACKAGE}.{name}" for name in ("plugins", "passes", "build_engines", "runtime")}
# Subpackage -> siblings it may import at module level; "" is the core.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "": frozenset(),
    "plugins": frozenset(),
    "passes": frozenset({"plugins"}),
    "build_engines": frozenset({"plugins", "passes"}),
    "runtime": frozenset({"plugins"}),
}
# What the runtime must not import at any level: it opens what the compiler wrote.
NEVER_IMPORT = {"runtime": frozenset({"passes", "build_engines"})}
BACKENDS = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "transformers", "triton")
MAY_READ_ENVIRONMENT = "build_engines/__main__.py"
SOURCE_FOLDERS = (PACKAGE, *MAPPED, "tests", "benchmarks", "examples")


def source_files(*folders: str) -> list[str]:
    """Python files below `folders`, relative to the root."""
    found = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if path not in EXCEPTIONS)


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def long_file(source: str) -> list[str]:
    lines = source.count("\n")
    return [f"{lines} lines"] if lines > MAX_FILE_LINES else []


def large_functions(source: str) -> list[str]:
    """Functions with too many lines, docstring and decorators left out, or too many parameters."""
    findings = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        lines = (node.end_lineno or 0) - node.lineno + 1
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            lines -= (first.end_lineno or 0) - first.lineno + 1
        named = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        parameters = [name for name in named if name not in ("self", "cls")]
        if lines > MAX_FUNCTION_LINES:
            findings.append(f"{node.name}: {lines} lines")
        if len(parameters) > (MAX_KERNEL_PARAMETERS if is_kernel(node) else MAX_PARAMETERS):
            findings.append(f"{node.name}: {len(parameters)} parameters")
    return findings


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is compiled by Triton."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)


def subpackage_of(module: str) -> str:
    """The mapped subpackage of a module below nemodiff_trt, "" for the core."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAPPED else ""


def imported_modules(node: ast.AST) -> list[str]:
    """Modules named by one import statement; `from a import b` may mean the module a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run on import: everything outside functions and `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        is_typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_typing_only:
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def wrong_imports(source: str, owner: str) -> list[str]:
    """Imports against the direction in a file of subpackage `owner`, relative ones, and folders by their bare name."""
    tree = ast.parse(source)
    findings = []
    for node in module_level(tree):
        for module in imported_modules(node):
            target = subpackage_of(module) if module.startswith(f"{PACKAGE}.") else ""
            if target not in {"", owner} | MAY_IMPORT[owner]:
                findings.append(f"{owner or PACKAGE} imports {module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            findings.append("relative import")
        for module in imported_modules(node):
            if module.split(".")[0] in MAPPED:
                findings.append(f"{module} by its bare name")
            if module.startswith(f"{PACKAGE}.") and subpackage_of(module) in NEVER_IMPORT.get(owner, ()):
                findings.append(f"{owner} imports {module}")
    return findings


def environment_reads(source: str) -> list[str]:
    """Uses of os.environ and os.getenv, however they were imported."""
    names = {"environ", "environb", "getenv", "getenvb"}
    findings = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in names
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ):
            findings.append(f"line {node.lineno}: os.{node.attr}")
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            findings.extend(f"line {node.lineno}: {alias.name}" for alias in node.names if alias.name in names)
    return findings


def changing_globals(source: str) -> list[str]:
    """`global` statements: no module state changes after import."""
    return [f"line {node.lineno}" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Global)]


@pytest.mark.parametrize("path", source_files(*SOURCE_FOLDERS))
def test_sizes(path: str) -> None:
    assert not long_file(read(path)) + large_functions(read(path))


@pytest.mark.parametrize("path", source_files(PACKAGE, *MAPPED))
def test_imports_point_one_way(path: str) -> None:
    folder = path.split("/", maxsplit=1)[0]
    assert not wrong_imports(read(path), folder if folder in MAPPED else "")


@pytest.mark.parametrize("path", source_files(PACKAGE, *MAPPED))
def test_no_hidden_inputs(path: str) -> None:
    reads = [] if path == MAY_READ_ENVIRONMENT else environment_reads(read(path))
    assert not reads + changing_globals(read(path))


def test_every_source_folder_has_files_to_check() -> None:
    assert len(source_files(PACKAGE)) > 10
    assert all(source_files(folder) for folder in MAPPED)


def test_every_package_folder_is_installed() -> None:
    project = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]
    folders = [ROOT / PACKAGE, *(ROOT / name for name in MAPPED)]
    on_disk = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for f in folders for path in f.rglob("__init__.py")}
    expected = {name if name.split(".")[0] == PACKAGE else f"{PACKAGE}.{name}" for name in on_disk}
    assert set(project["packages"]) == expected
    assert project["package-dir"] == {dotted: folder for folder, dotted in MAPPED.items()}


IMPORT_SCRIPT = """
import sys
import {module}
print(*(name for name in {backends!r} if name in sys.modules))
"""


def loaded_backends(module: str) -> list[str]:
    script = IMPORT_SCRIPT.format(module=module, backends=BACKENDS)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_importing_the_package_loads_no_backend() -> None:
    assert loaded_backends(PACKAGE) == []


def test_the_operators_load_neither_onnx_nor_triton() -> None:
    assert loaded_backends(f"{PACKAGE}.plugins, {PACKAGE}.plugins.kernels, {PACKAGE}.model") == ["torch"]


def test_reading_a_configuration_loads_no_backend() -> None:
    assert loaded_backends(f"{PACKAGE}.config, {PACKAGE}.errors, {PACKAGE}.tokenizer, {PACKAGE}.vocabulary") == []


class TestGuardsCanFail:
    def test_sizes(self) -> None:
        assert long_file("x = 1\n" * 401) == ["401 lines"]
        assert not long_file("x = 1\n" * 400)
        body = "    x = 1\n"
        assert large_functions("def f():\n" + body * 60) == ["f: 61 lines"]
        assert not large_functions('def f():\n    """One.\n\n    Two.\n    """\n' + body * 59)
        assert large_functions("def f(a, b, c, d, e, f, g, *, h): ...") == ["f: 8 parameters"]
        assert not large_functions("def f(self, a, b, c, d, e, f, g): ...")
        names = ", ".join(f"p{index}" for index in range(24))
        assert not large_functions(f"@triton.jit\ndef f({names}): ...")
        assert large_functions(f"@triton.jit\ndef f({names}, q): ...") == ["f: 25 parameters"]
        assert large_functions(f"@other.jit\ndef f({names}): ...") == ["f: 24 parameters"]
        assert large_functions("@triton.jit\ndef f():\n" + body * 60) == ["f: 61 lines"]

    @pytest.mark.parametrize(
        ("owner", "source"),
        [
            ("", "import nemodiff_trt.plugins"),
            ("", "from nemodiff_trt import runtime"),
            ("", "class A:\n    import nemodiff_trt.passes"),
            ("", "try:\n    from nemodiff_trt.build_engines.cli import main\nexcept ImportError:\n    pass"),
            ("plugins", "from nemodiff_trt.passes import base"),
            ("passes", "from nemodiff_trt.runtime.session import Session"),
            ("build_engines", "import nemodiff_trt.runtime.session"),
            ("runtime", "from nemodiff_trt.passes import base"),
            ("runtime", "def f():\n    from nemodiff_trt.build_engines import cli"),
            ("runtime", "from . import session"),
            ("runtime", "import plugins"),
        ],
    )
    def test_wrong_imports(self, owner: str, source: str) -> None:
        assert wrong_imports(source, owner)

    @pytest.mark.parametrize(
        ("owner", "source"),
        [
            ("", "def f():\n    import nemodiff_trt.plugins"),
            ("", "from nemodiff_trt.config import ModelConfig"),
            ("", "if TYPE_CHECKING:\n    from nemodiff_trt.runtime.session import Session"),
            ("plugins", "from nemodiff_trt.plugins.attention import attention"),
            ("build_engines", "from nemodiff_trt.passes import base\nfrom nemodiff_trt import plugins"),
            ("runtime", "from nemodiff_trt.plugins import OPS"),
        ],
    )
    def test_right_imports(self, owner: str, source: str) -> None:
        assert not wrong_imports(source, owner)

    @pytest.mark.parametrize("source", ["os.environ['A']", "import os\nx = os.getenv('A')", "from os import environ as e"])
    def test_environment_reads(self, source: str) -> None:
        assert environment_reads(source)

    def test_changing_globals(self) -> None:
        assert changing_globals("def f():\n    global x\n    x = 1")

    def test_folder_without_time_limit(self) -> None:
        assert folder_timeout_s("model/deeper") == folder_timeout_s("model")
        with pytest.raises(pytest.UsageError, match="time limit"):
            folder_timeout_s("new_folder")

    def test_loaded_backends(self) -> None:
        assert loaded_backends("onnx") == ["onnx"]
