"""What the bundle holds and what it leaves out, without building it."""

import ast
import shutil
from pathlib import Path

import pytest
from bundling import contents, licences, report
from bundling.project import PACKAGING, ROOT, debian_packages, project, version

from loradesk_engine.model.native import forms, library
from loradesk_engine.model.native.sources import digest


def bundled_resources() -> set[str]:
    return {f"{folder}/{Path(file).name}" for file, folder in contents.resource_files(str(ROOT))}


def test_every_shipped_file_is_listed() -> None:
    root = ROOT / contents.RESOURCES
    shipped = {
        f"loradesk_resources/{file.relative_to(root).as_posix()}"
        for file in root.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix not in {".py", ".typed"}
    }
    assert bundled_resources() == shipped


@pytest.mark.parametrize(
    "file",
    [
        "demo/base/model.safetensors",
        "demo/base/tokenizer.json",
        "demo/base-q8_0.gguf",
        "demo/adapters/arithmetic/adapter_model.safetensors",
        "demo/xlora/xlora_classifier.safetensors",
        "demo/ordering/xlora.json",
        "icons/loradesk.svg",
        "style/app.qss",
        "presets/balanced.json",
        "ordering/x-lora-zephyr-7b-beta.json",
    ],
)
def test_a_file_that_the_application_needs_is_in_the_bundle(file: str) -> None:
    assert f"loradesk_resources/{file}" in bundled_resources()
    assert contents.is_wanted(f"loradesk_resources/{file}")


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler, so no kernels")
def test_the_compiled_kernels_are_in_the_bundle() -> None:
    libraries = contents.kernel_libraries(str(ROOT))
    assert {folder for _, folder in libraries} == {"loradesk_engine/model/native/lib"}
    files = {Path(file) for file, _ in libraries}
    assert "c" in forms.runnable()
    for form in forms.runnable():  # from the sources as they are: otherwise run `make` again
        assert forms.file_of(form) in files
        assert library.load(forms.file_of(form)).loradesk_sources().decode() == digest()
    if forms.file_of("c").stem == "loradesk-x86-64":  # those that other processors of this kind run, too
        assert {forms.file_of(form) for form in forms.X86} == files
    assert all(contents.is_wanted(f"{folder}/{Path(file).name}") for file, folder in libraries)


def imported_by_us() -> set[str]:
    names: set[str] = set()
    for part in ("engine", "app", "resources"):
        for file in (ROOT / part).glob("loradesk_*/**/*.py"):  # resources/training is not bundled
            module = ".".join(file.relative_to(ROOT / part).with_suffix("").parts)
            if module.startswith(contents.TRITON_MODULES) and file.name != "__init__.py":
                continue
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_nothing_that_we_import_is_excluded() -> None:
    excluded = set(contents.EXCLUDED_MODULES)
    hit = {
        name for name in imported_by_us() if any(name == module or name.startswith(f"{module}.") for module in excluded)
    }
    assert not hit


@pytest.mark.parametrize(
    "path",
    [
        "torch/lib/libtorch_cpu.so",
        "torch/bin/torch_shm_manager",
        "torch/nn/functional.py",
        "PySide6/Qt/plugins/platforms/libqxcb.so",
        "PySide6/Qt/plugins/platforms/libqoffscreen.so",
        "PySide6/Qt/plugins/imageformats/libqsvg.so",
        "PySide6/plugins/platforms/qwindows.dll",
        "loradesk-0.1.0.dist-info/METADATA",
    ],
)
def test_a_needed_file_stays(path: str) -> None:
    assert contents.is_wanted(path)


@pytest.mark.parametrize(
    "path",
    [
        "torch/include/ATen/ATen.h",
        "torch/lib/libtorchbind_test.so",
        "torch/bin/test_api",
        "torch/bin/protoc",
        "torch/share/cmake/Torch/TorchConfig.cmake",
        "numpy/_core/tests/data/x.npy",
        "PySide6/Qt/qml/QtQuick/libqtquick2plugin.so",
        "PySide6/Qt/translations/qtbase_de.qm",
        "PySide6/Qt/lib/libQt6Quick.so.6",
        "PySide6/Qt/plugins/sqldrivers/libqsqlite.so",
        "PySide6/Qt/plugins/platforms/libqeglfs.so",
        "libQt6Network.so.6",
    ],
)
def test_what_nobody_uses_goes(path: str) -> None:
    assert not contents.is_wanted(path)


@pytest.mark.parametrize(("cuda", "wanted"), [(False, ["cpu"]), (True, ["cpu", "cuda128"])])
def test_only_libraries_of_bitsandbytes_that_torch_can_use(
    cuda: bool, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "has_cuda", lambda: cuda)
    kinds = ["cpu", "cuda128", "rocm72", "xpu2026"]
    for pattern in ("bitsandbytes/libbitsandbytes_{}.so", "bitsandbytes/libbitsandbytes_{}.dll"):
        assert [kind for kind in kinds if contents.is_wanted(pattern.format(kind))] == wanted


def test_libraries_of_the_system_are_not_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents.sys, "platform", "linux")
    assert contents.is_system_library("libstdc++.so.6")
    assert contents.is_system_library("libxcb-cursor.so.0")
    assert not contents.is_system_library("libssl.so.3")
    assert not contents.is_system_library("torch/lib/libgomp.so.1")


def test_the_spec_names_what_it_should() -> None:
    spec = (PACKAGING / "loradesk.spec").read_text("utf-8")
    compile(spec, "loradesk.spec", "exec")
    for words in (
        "contents.resource_files",
        "contents.EXCLUDED_MODULES",
        "contents.kernel_libraries",
        "contents.SOURCE_MODULES",
        "copy_metadata",
        "launcher.py",
        "pathex",
    ):
        assert words in spec
    packages = {
        path.parent.name
        for part in ("engine", "app", "resources")
        for path in (ROOT / part).glob("loradesk_*/__init__.py")
    }
    assert set(contents.APPLICATION_PACKAGES) == packages


def test_one_version() -> None:
    from importlib.metadata import version as installed

    assert version() == str(project()["version"]) == installed("loradesk")
    literal = f'"{version()}"'
    for file in [*PACKAGING.rglob("*.py"), PACKAGING / "loradesk.spec", *PACKAGING.rglob("*.sh")]:
        assert literal not in file.read_text("utf-8"), f"{file} repeats the version"


def test_the_system_packages_are_read_without_comments() -> None:
    names = debian_packages()
    assert "libxcb-cursor0" in names
    assert all(name and "#" not in name and " " not in name for name in names)
    assert "gcc" not in names  # compiles the kernels, and is no part of an installation


def test_largest_parts_and_manifest(tmp_path: Path) -> None:
    (tmp_path / "_internal" / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "_internal" / "torch" / "lib" / "libtorch_cpu.so").write_bytes(b"x" * 300)
    (tmp_path / "_internal" / "torch" / "version.py").write_bytes(b"y" * 20)
    (tmp_path / "loradesk").write_bytes(b"z" * 10)
    (tmp_path / "link").symlink_to("loradesk")
    files = report.sizes(tmp_path)
    assert report.largest(files)[0] == ("torch/lib/libtorch_cpu.so", 300)
    assert sum(files.values()) == 330
    text, kept = report.describe(tmp_path, 1)
    assert kept
    assert "budget 1 MB" in text
    assert not report.describe(tmp_path, 0)[1]
    lines = report.manifest(tmp_path).splitlines()
    assert len(lines) == 4
    assert "-> loradesk  link" in lines


def test_licences_of_what_we_depend_on_are_found() -> None:
    found = licences.bundled_distributions({"torch", "numpy", "PySide6", "pyqtgraph", "safetensors", "jinja2"})
    names = {distribution.name.lower() for distribution in found}
    assert {"torch", "numpy", "pyqtgraph", "safetensors", "jinja2"} <= names
    assert any(name.startswith("pyside6") for name in names)
    assert "loradesk" not in names
    assert all(text.is_file() for texts in licences.STANDARD.values() for text in texts)
