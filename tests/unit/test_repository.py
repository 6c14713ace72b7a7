"""Promises about the repository as a whole, which no single module can keep."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from pytest_socket import SocketConnectBlockedError

from stillreel.job import JobStatus, Phase, Stage

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "diffusers", "transformers", "accelerate"}

DOWNLOAD_ADDRESS = re.compile(
    r"--(extra-)?index[-_]url|--find[-_]links|(\b|_)index[-_]url\s*[=:]"
    r"|https?://[^\s\"'<>]*(/simple\b|/whl\b|pythonhosted|registry\.npmjs)",
    re.IGNORECASE,
)
MACHINE_PATH = re.compile(r"(?<![\w.$}-])/(root|work|Users/\w+|home/\w+)/")


def ignored(path: Path, patterns: list[str]) -> bool:
    return any(fnmatch(part, pattern) for part in path.parts for pattern in patterns)


def files() -> Iterator[Path]:
    """The files of this repository: all that .gitignore does not name, relative to its root."""
    patterns = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    todo = [Path()]
    while todo:
        for found in (ROOT / todo.pop()).iterdir():
            path = found.relative_to(ROOT)
            if path.parts[0] == ".git" or ignored(path, patterns) or found.is_symlink():
                continue
            if found.is_dir():
                todo.append(path)
            else:
                yield path


def texts() -> Iterator[tuple[Path, str]]:
    for path in files():
        data = (ROOT / path).read_bytes()
        if b"\x00" not in data:
            yield path, data.decode(errors="replace")


def lines_matching(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def modules(directory: str) -> list[Path]:
    return [path for path in files() if path.parts[0] == directory and path.suffix == ".py"]


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_walk_sees_the_repository() -> None:
    assert {Path("pyproject.toml"), Path("stillreel/job.py"), Path("LICENSE")} <= set(files())


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("pip install --index-{} https://x.example torch", id="option"),
        pytest.param("extra_index_{} = https://x.example", id="setting"),
        pytest.param("torch @ https://download.example/{}/cu130", id="wheels"),
    ],
)
def test_a_download_address_would_be_noticed(line: str) -> None:
    assert DOWNLOAD_ADDRESS.search(line.format("whl" if "@" in line else "url"))


def test_no_file_says_where_packages_come_from() -> None:
    assert lines_matching(DOWNLOAD_ADDRESS) == []


@pytest.mark.parametrize("place", ["root", "work", "home/someone", "Users/someone"])
def test_a_path_of_a_machine_would_be_noticed(place: str) -> None:
    assert MACHINE_PATH.search(f'open("/{place}/photo.jpg")')
    assert not MACHINE_PATH.search(f"https://example.com/{place}/photo.jpg")


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    assert lines_matching(MACHINE_PATH) == []


def test_constraints_are_exact_and_sorted() -> None:
    assert [pin for pin in pins() if not re.fullmatch(r"[\w.-]+==[\w.+!]+", pin)] == []
    assert pins() == sorted(pins(), key=str.lower)


def test_constraints_pin_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(need for extra in extras for need in extra)]
    pinned = {normal(pin.partition("==")[0]) for pin in pins()}
    names = (re.match(r"[\w.-]+", need) for need in asked)
    assert [name[0] for name in names if name and normal(name[0]) not in pinned] == []


def test_every_decision_is_in_the_list_of_decisions() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    listed = (ROOT / "docs" / "adr" / "README.md").read_text()
    assert records
    assert [record.name for record in records if f"({record.name})" not in listed] == []


@pytest.mark.parametrize("words", [JobStatus, Stage, Phase])
def test_the_glossary_has_every_word_of_the_vocabulary(words: type[StrEnum]) -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    (line,) = [line for line in glossary.splitlines() if f"| **{words.__name__}** |" in line]
    assert re.findall(r"`(\w+)`", line.split("|")[2]) == [word.value for word in words]


def test_relative_links_in_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\(([^)#\s]+)")
    broken = [
        f"{path}: {target}"
        for path, text in texts()
        if path.suffix == ".md"
        for target in link.findall(text)
        if "://" not in target
        and not target.startswith("mailto:")
        and not (ROOT / path.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("package", ["flows", "tasks"])
def test_project_packages_are_empty_and_never_installed(package: str) -> None:
    # Prefect puts their directory first on the path; a name in __init__ would hide the module.
    assert (ROOT / package / "__init__.py").read_bytes() == b""
    assert package not in packages_distributions()


def test_no_flow_file_is_named_like_another_module() -> None:
    # Prefect also puts flows/ itself first on the path, so `flows/statistics.py` would be
    # everybody's `statistics`.
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) | {"tasks", "stillreel"}
    stems = {path.stem for path in modules("flows")} - {"__init__"}
    assert stems & taken == set()


def test_unit_tests_reach_this_machine_only() -> None:
    # pytest-socket warns before it raises, and here each warning is an error.
    with pytest.raises((SocketConnectBlockedError, UserWarning), match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_no_test_directory_is_named_like_a_package_of_ours() -> None:
    ours = {"flows", "tasks", "stillreel"}
    assert [path for path in modules("tests") if ours & set(path.parts)] == []


@pytest.mark.parametrize("directory", ["stillreel", "flows", "tasks"])
def test_heavy_packages_are_imported_inside_functions_only(directory: str) -> None:
    offenders = [
        f"{path}:{node.lineno}"
        for path in modules(directory)
        for node in ast.parse((ROOT / path).read_text()).body
        if imported(node) & HEAVY
    ]
    assert offenders == []


def imported(node: ast.stmt) -> set[str]:
    match node:
        case ast.Import(names=names):
            return {name.name.partition(".")[0] for name in names}
        case ast.ImportFrom(module=str(module), level=0):
            return {module.partition(".")[0]}
    return set()


@pytest.mark.parametrize(
    "module", ["job", "errors", "keys", "settings", "settings_docs", "models.base"]
)
def test_the_vocabulary_is_light(module: str) -> None:
    heavy = sorted(HEAVY | {"prefect", "av", "boto3", "fastapi", "httpx"})
    code = (
        f"import stillreel.{module}, sys; print([m for m in {heavy} if m in sys.modules], end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]"
