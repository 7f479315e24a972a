"""What goes into the bundle and what stays out. The spec applies it, the tests check it; no PyInstaller here."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import PurePath

RESOURCES = "resources/loradesk_resources"
DATA_SUFFIXES = {".svg", ".qss", ".json", ".gguf", ".safetensors", ".md"}

APPLICATION_PACKAGES = ("loradesk_engine", "loradesk_desk", "loradesk_app", "loradesk_resources")

# Run by another Python, with `loradesk bench --peer-python`: a file that it can read.
SOURCE_MODULES = ("loradesk_engine.bench.worker",)

# Imported only where Triton is. It compiles at run time, with a C compiler and Python's headers, which an installation
# does not have: torch does the work of these modules there, in CUDA builds too.
TRITON_MODULES = "loradesk_engine.model.kernels."

# Distributions whose metadata the bundle carries: the version of each is asked for at run time.
METADATA = ("loradesk",)

# Never imported by the application, although something that it imports mentions them.
EXCLUDED_MODULES = (
    # tests and the tools of developers
    "pytest", "_pytest", "hypothesis", "mypy", "mypyc", "ruff", "pip", "wheel", "IPython", "matplotlib", "tkinter",
    "tensorboard", "doctest", "lib2to3", "pydoc_data", "distutils", "setuptools", "pkg_resources",
    # oracles of the tests, and the peers of `loradesk bench`
    "transformers", "peft", "gguf", "sentencepiece", "accelerate", "openai", "schemathesis", "llama_cpp", "mistralrs",
    # optional extras of numpy, pyqtgraph and huggingface_hub
    "scipy", "pandas", "numba", "cupy", "OpenGL", "PIL", "h5py", "gradio", "rich", "typer", "pygments", "colorcet",
    # Qt that we do not use
    "PySide6.QtQml", "PySide6.QtQuick", "PySide6.QtQuickWidgets",
    "PySide6.QtSql", "PySide6.QtTest", "PySide6.QtNetwork", "PySide6.QtPrintSupport", "PySide6.QtXml",
    "PySide6.QtDesigner", "PySide6.QtHelp", "PySide6.QtUiTools", "PySide6.QtConcurrent", "PySide6.QtPdf",
    "PySide6.QtWebEngineCore", "PyQt5", "PyQt6", "PySide2",
    "pyqtgraph.examples", "pyqtgraph.opengl", "pyqtgraph.jupyter", "pyqtgraph.canvas", "pyqtgraph.flowchart",
    "pyqtgraph.console",
    # torch: compilers, exporters and profilers; an eager model needs none of them. bitsandbytes' operators import
    # torch._dynamo, only to switch it off for themselves, and that imports the outside of torch._inductor
    "triton", "caffe2", "torch._inductor.codegen", "torch._inductor.compile_fx", "torch._inductor.compile_worker",
    "torch._inductor.fx_passes", "torch._inductor.graph", "torch._inductor.ir", "torch._inductor.kernel",
    "torch._inductor.lowering", "torch._inductor.scheduler", "torch._inductor.select_algorithm", "torch.onnx",
    "torch.utils.tensorboard", "torch.utils.benchmark", "torch.utils.bottleneck", "torch.utils.viz",
    "torch.testing._internal.opinfo",
    "torch.testing._internal.distributed", "torch.testing._internal.common_methods_invocations",
    "torch.distributed.elastic", "torch.distributed.pipelining", "networkx",
    "torch.distributed._shard.checkpoint", "torch.ao.pruning", "torch._vendor.quack", "functorch",
)  # fmt: skip

# Files by their path in the bundle.
EXCLUDED_FILES = (
    "*.a", "*.lib", "*.h", "*.hpp", "*.cuh", "*.cmake", "*.pyi", "*.pxd", "*.prl", "*.pc",
    "torch/include/*", "torch/share/*", "torch/test/*", "torch/bin/test_*", "torch/bin/protoc*",
    "torch/lib/libtorchbind_test*", "torch/lib/libjitbackend_test*", "torch/lib/libbackend_with_compiler*",
    "torch/lib/libaoti_custom_ops*",
    "*/tests/*", "*/test/*",
    "PySide6/Qt/qml/*", "PySide6/Qt/translations/*", "PySide6/Qt/resources/*",
    "*libQt6Qml*", "*libQt6Quick*", "*libQt6Pdf*", "*libQt6VirtualKeyboard*", "*libQt6Network*", "*libQt6Sql*",
    "*libQt6Egl*", "*/libqminimalegl*", "*/libqeglfs*",
    "pyqtgraph/examples/*",
)  # fmt: skip

# Of Qt's plugins only these; the rest bring libraries of their own.
QT_PLUGINS = {
    "platforms": ("qxcb", "qwayland", "qoffscreen", "qminimal", "qwindows", "qcocoa", "qdirect2d"),
    "imageformats": ("qsvg", "qico"),
    "iconengines": ("qsvgicon",),
    "styles": ("*",),
    "platformthemes": ("qxdgdesktopportal", "qgtk3"),
    "platforminputcontexts": ("composeplatforminputcontext", "ibusplatforminputcontext"),
    "xcbglintegrations": ("qxcb-glx-integration", "qxcb-egl-integration"),
    "wayland-shell-integration": ("xdg-shell", "wl-shell-plugin", "fullscreen-shell-v1"),
    "wayland-decoration-client": ("*",),
    "wayland-graphics-integration-client": ("*",),
    "accessiblebridge": ("*",),
}

# Debug symbols go from these; other libraries have none, or do not survive `strip` (OpenBLAS in numpy).
STRIPPED = (
    "torch/lib/libtorch_cpu.so", "torch/lib/libtorch_python.so", "torch/lib/libc10.so", "torch/lib/libtorch_cuda.so",
    "torch/bin/torch_shm_manager", "libpython3*.so*", "python3.*/lib-dynload/*.so", "numpy/**/*.so",
)  # fmt: skip


def is_wanted(path: str) -> bool:
    """Whether a file belongs into the bundle, by its path there."""
    path = PurePath(path).as_posix()
    if any(fnmatchcase(path, pattern) for pattern in EXCLUDED_FILES):
        return False
    folder, _, name = path.rpartition("/")
    parent, _, kind = folder.rpartition("/")
    if parent.startswith("PySide6") and parent.endswith("plugins"):
        stem = name.split(".")[0].removeprefix("lib")
        return any(fnmatchcase(stem, f"{wanted}*") for wanted in QT_PLUGINS.get(kind, ()))
    if folder == "bitsandbytes" and name.startswith("libbitsandbytes_"):  # one for each kind of processor
        kinds = ("cpu", "cuda") if has_cuda() else ("cpu",)
        return name.removeprefix("libbitsandbytes_").startswith(kinds)
    return True


def is_system_library(path: str) -> bool:
    """Whether a library in the bundle's root is one that the Debian packages, or any desktop, bring.

    A second copy of these beside the system's graphics drivers is what breaks bundles on newer systems.
    """
    name = PurePath(path).name
    return sys.platform.startswith("linux") and "/" not in path and name.startswith(SYSTEM_LIBRARIES)


SYSTEM_LIBRARIES = (
    "libX11", "libXau", "libXdmcp", "libxcb", "libxkbcommon", "libEGL", "libGL", "libdbus-1", "libfontconfig",
    "libfreetype", "libglib-2", "libgthread-2", "libstdc++", "libgcc_s", "libexpat", "libpng16", "libwayland",
    "libsystemd", "libcap.", "libgcrypt", "libgpg-error", "liblz4", "libbrotli", "libbsd", "libmd.", "libz.",
    "libdrm", "libgbm", "libpcre2", "libX", "libgtk-3", "libgdk", "libcairo", "libpango", "libatk", "libatspi",
    "libepoxy", "libfribidi", "libharfbuzz", "libgio", "libgobject", "libgmodule", "libmount", "libblkid",
    "libselinux", "libthai", "libdatrie", "libgraphite2", "libjpeg", "libpixman",
)  # fmt: skip


def has_cuda() -> bool:
    """Whether the torch that is built in can use CUDA."""
    import torch

    return torch.version.cuda is not None


def resource_files(root: str) -> list[tuple[str, str]]:
    """The shipped files, as (file, folder in the bundle): real files, for `importlib.resources`."""
    from pathlib import Path

    base = Path(root, RESOURCES)
    return [
        (str(file), str(PurePath("loradesk_resources") / file.parent.relative_to(base)))
        for file in sorted(base.rglob("*"))
        if file.is_file() and file.suffix in DATA_SUFFIXES
    ]


def kernel_libraries(root: str) -> list[tuple[str, str]]:
    """The engine's compiled kernels, as (file, folder in the bundle)."""
    from pathlib import Path

    folder = PurePath("loradesk_engine", "model", "native", "lib")
    return [
        (str(file), str(folder))
        for file in sorted(Path(root, "engine", folder).glob("loradesk-*"))
        if file.suffix in (".so", ".dylib", ".dll")
    ]
