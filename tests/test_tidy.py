"""Style as tests: what a reader is promised of the sources, and what the documents say of them."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "uringloop"
CORE = PACKAGE / "core"
README = ROOT / "README.md"
CI = ROOT / ".ci" / "run"

NOT_OURS = {"__pycache__", "build", "dist"}  # folders that tools make; those that begin with a dot are left out too
GENERATED = {"_core.c"}


def files(*suffixes: str, under: Path = ROOT) -> list[Path]:
    """Our own files with these suffixes."""
    found = (path for suffix in suffixes for path in under.rglob(f"*{suffix}") if path.name not in GENERATED)
    ours = (path for path in found if not any(_is_not_ours(part) for part in path.relative_to(ROOT).parts[:-1]))
    return sorted(ours)


def _is_not_ours(folder: str) -> bool:
    return folder.startswith(".") or folder in NOT_OURS or folder.endswith(".egg-info")


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


SOURCES = files(".py", ".c", ".h")
DOCUMENTS = files(".md")
MODULES = files(".py", under=PACKAGE)
WORKFLOWS = [CI, *sorted((ROOT / ".github").rglob("*.yml"))]


def test_there_are_files_to_look_at() -> None:
    assert len(SOURCES) > 50
    assert len(DOCUMENTS) >= 4
    assert len(MODULES) > 10


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------

# From the top. A module imports only from layers below its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("__init__",),
    ("policy", "fs", "files.opening"),
    ("files.text", "loop"),
    ("sockets",),
    ("files.binary", "splice"),
    ("files.descriptor",),
    ("files.requests",),
    ("transports.server", "transports.__init__"),
    ("transports.stream", "transports.pipe", "transports.tls", "transports.datagram", "transports.process"),
    ("transports.receiving",),
    ("transports.base", "operations"),
    ("selector", "probe", "stats", "scheduling"),
    ("reactor", "addresses", "environment", "compat"),
    ("core._core", "_version"),
)
# Python that is not part of what runs.
OUTSIDE = {"core.build", "core.__init__", "files.__init__", "owners"}

# The same of the C files. Of its own layer a file includes only its own family: stream.h, stream_parts.h.
C_LAYERS: tuple[tuple[str, ...], ...] = (
    ("report",),
    ("reactor",),
    ("stream", "listener", "datagram", "op"),
    ("engine",),
    ("files", "buffers", "table", "sendqueue", "wake", "restrictions", "sendfile", "names"),
    ("ring",),
    ("abi",),
)


def depth(name: str, layers: tuple[tuple[str, ...], ...]) -> int:
    for index, layer in enumerate(layers):
        if name in layer:
            return index
    pytest.fail(f"{name} has no layer: give it one, here and in docs/architecture.md")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that this one imports when it runs."""
    tree = ast.parse(path.read_text())
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (_module(alias.name) for alias in node.names if alias.name.split(".")[0] == "uringloop")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module and node.module.split(".")[0] == "uringloop":
                yield from (_module(f"{node.module}.{alias.name}") for alias in node.names)


def _module(dotted: str) -> str:
    """The module that holds this name, which may be the module itself."""
    parts = dotted.split(".")[1:]
    known = {module_name(path) for path in MODULES} | {"core._core"}
    while parts and ".".join(parts) not in known:
        if ".".join([*parts, "__init__"]) in known:
            return ".".join([*parts, "__init__"])
        parts.pop()
    return ".".join(parts) or "__init__"


@each([path for path in MODULES if module_name(path) not in OUTSIDE])
def test_module_imports_only_from_below(path: Path) -> None:
    own = depth(module_name(path), LAYERS)
    upward = [name for name in imports(path) if depth(name, LAYERS) <= own]
    assert upward == []


def test_modules_outside_the_layers_import_none_of_them() -> None:
    assert [path.name for path in MODULES if module_name(path) in OUTSIDE and list(imports(path))] == []


@each([path for path in files(".c", ".h", under=CORE) if path.name != "cdef.h"])  # which is cffi's to read
def test_c_file_includes_only_from_below(path: Path) -> None:
    own = c_depth(path.stem)
    for included in re.findall(r'^#include "(\w+)\.h"', path.read_text(), re.MULTILINE):
        assert c_depth(included) > own or family(included) == family(path.stem), f"{path.name} includes {included}.h"


def family(stem: str) -> str:
    return stem.split("_")[0]


def c_depth(stem: str) -> int:
    return depth(family(stem), C_LAYERS)


def test_only_one_module_touches_cffi() -> None:
    imports_cffi = re.compile(r"^\s*(import|from) .*\b(_core|cffi)\b", re.MULTILINE)
    touching = [module_name(path) for path in MODULES if imports_cffi.search(path.read_text())]
    assert touching == ["core.build", "reactor"]


@each(files(".c", ".h", under=CORE))
def test_core_knows_no_python(path: Path) -> None:
    text = path.read_text()
    assert "Python.h" not in text
    assert not re.search(r"\bPy[A-Z_]\w+", text)


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------

LINES_MAX = 500

# In pieces, so that this file does not say what it forbids.
BANNED = {
    r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b": "unfinished: do it, or leave it out",
    r"(?<![\w.])/(home|ro" r"ot|Users|wo" r"rk)/": "a path of somebody's machine",
    r"# type: ig" r"nore(?!\[)": "say which error is ignored",
    r"# no" r"qa(?!:)": "say which rule is not followed",
}


@each(SOURCES)
def test_file_is_short_enough_to_be_read_at_once(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX, "it is two files"


@each([*SOURCES, *DOCUMENTS, *WORKFLOWS, ROOT / "pyproject.toml"])
def test_file_says_nothing_that_is_banned(path: Path) -> None:
    text = path.read_text()
    found = {match[0]: reason for pattern, reason in BANNED.items() for match in re.finditer(pattern, text)}
    assert found == {}


@each(MODULES)
def test_public_names_have_a_docstring(path: Path) -> None:
    bare = []
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef) and "enum.Enum" in map(ast.unparse, node.bases):
            continue  # its members say what they are
        if "overload" in map(ast.unparse, node.decorator_list):
            continue  # the function itself has one
        if not ast.get_docstring(node):
            bare.append(node.name)
    assert bare == []


def test_nothing_that_is_generated_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout == ""


# ---------------------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------------------


@each(DOCUMENTS)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        if re.match(r"\w+:", target):
            continue  # of the web
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@each(DOCUMENTS)
def test_names_of_ours_exist(path: Path) -> None:
    """Functions and constants of the core, attributes of classes, and files, that a document speaks of."""
    sources = "\n".join(source.read_text() for source in SOURCES)
    names = set(re.findall(r"\b[uU][lL]_\w+", path.read_text()))
    assert {name for name in names if not re.search(rf"\b{name}\b", sources)} == set()
    of_classes = re.findall(r"`([A-Z]\w+)\.(\w+)`", path.read_text())
    absent = {f"{of}.{name}" for of, name in of_classes if not re.search(rf"\b{name}\b", CLASSES.get(of, ""))}
    assert absent - OF_OTHERS == set()
    known = {source.name for source in [*SOURCES, *DOCUMENTS]}
    named = set(re.findall(r"`(?:\w+/)*(\w+\.(?:py|[ch]))`", path.read_text()))
    assert named - known - OF_OTHERS == set()


OF_OTHERS = {"server.py", "Python.h"}
# The text of the module, by the classes in it.
CLASSES = {name: path.read_text() for path in MODULES for name in re.findall(r"^class (\w+)", path.read_text(), re.M)}


def readme_command(name: str) -> str:
    (command,) = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.+)\n```$", README.read_text(), re.MULTILINE)
    return str(command)


@pytest.mark.parametrize("name", ["serve", "test"])
def test_ci_runs_the_command_of_the_readme(name: str) -> None:
    script = CI.read_text()
    (function,) = re.findall(r"^readme_command\(\) \{\n.*?^\}$", script, re.MULTILINE | re.DOTALL)
    told = subprocess.run(
        ["bash", "-c", f"{function}\nreadme_command {name}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == readme_command(name)
    assert f"$(readme_command {name})" in script


def test_python_of_the_readme_is_python() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 3
    for block in blocks:
        compile(block, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_readme_warns_of_the_other_package_of_this_name() -> None:
    assert "the name `uringloop` belongs to another project" in README.read_text()
    for document in DOCUMENTS:
        assert not re.search(r"pip install uringloop", document.read_text())


def test_version_is_in_the_changelog() -> None:
    (version,) = re.findall(r'__version__ = "(.+)"', (PACKAGE / "_version.py").read_text())
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
