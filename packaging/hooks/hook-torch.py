"""torch without its headers, tests and every module that it has; the contributed hook collects all of them.

Replaces the hook of pyinstaller-hooks-contrib. The modules are those that importing torch and running the engine
reach, found by PyInstaller's own analysis.
"""

import sys
from pathlib import Path

from PyInstaller.utils.hooks import PY_DYLIB_PATTERNS, collect_dynamic_libs, collect_submodules, get_package_paths

FOLDER = Path(get_package_paths("torch")[1])
# What these modules do when they are imported reads their own source: it has to lie beside the bytecode.
READS_SOURCE = ("install_config_module(", "_overload", "jit.script", "getsource")


def reading_source() -> list[str]:
    """Names of the modules that hold one of those words."""
    names = []
    for file in sorted(FOLDER.rglob("*.py")):
        text = file.read_text("utf-8", "replace")
        if any(word in text for word in READS_SOURCE):
            parts = file.relative_to(FOLDER.parent).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


# A package's mode holds for what is below it too, so packages are left to their bytecode.
module_collection_mode = {"torch": "pyz"} | {
    name: "pyz+py" for name in reading_source() if not (FOLDER.parent / Path(*name.split("."))).is_dir()
}
warn_on_missing_hiddenimports = False
hiddenimports = ["torch._C", "torch._VF", "torch._dynamo.config"]
# torch._dynamo imports these by name; bitsandbytes' operators import it.
hiddenimports += collect_submodules("torch._dynamo.polyfills")
binaries = collect_dynamic_libs("torch", search_patterns=[*PY_DYLIB_PATTERNS, "*.so.*"])
if sys.platform.startswith("linux"):  # importing torch looks for it
    binaries.append((str(FOLDER / "bin" / "torch_shm_manager"), "torch/bin"))
# A link to libtorch in the bundle's root makes torch look for its other libraries there.
bindepend_symlink_suppression = ["**/torch/lib/*.so*"]
