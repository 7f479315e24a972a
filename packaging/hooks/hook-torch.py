"""torch without its headers, tests and every module that it has; the contributed hook collects all of them.

Replaces the hook of pyinstaller-hooks-contrib. The modules are those that importing torch and running the engine
reach, found by PyInstaller's own analysis.
"""

import sys
from pathlib import Path

from PyInstaller.utils.hooks import PY_DYLIB_PATTERNS, collect_dynamic_libs, get_package_paths

# Bytecode in the archive, except where torch reads its own source when it is imported (`torch.jit._overload`).
module_collection_mode = {"torch": "pyz", "torch.nn.functional": "pyz+py", "torch.functional": "pyz+py"}
warn_on_missing_hiddenimports = False
hiddenimports = ["torch._C", "torch._VF", "torch._dynamo.config"]
binaries = collect_dynamic_libs("torch", search_patterns=[*PY_DYLIB_PATTERNS, "*.so.*"])
if sys.platform.startswith("linux"):  # importing torch looks for it
    binaries.append((str(Path(get_package_paths("torch")[1]) / "bin" / "torch_shm_manager"), "torch/bin"))
# A link to libtorch in the bundle's root makes torch look for its other libraries there.
bindepend_symlink_suppression = ["**/torch/lib/*.so*"]
