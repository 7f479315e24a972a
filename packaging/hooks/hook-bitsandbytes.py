"""bitsandbytes with the libraries that the bundled torch can use; the contributed hook collects those of every vendor.

Its Triton kernels, whose source that hook keeps, are for other vendors' processors; the bundle has no Triton.
"""

from pathlib import PurePath

from bundling import contents
from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = [
    (file, folder)
    for file, folder in collect_dynamic_libs("bitsandbytes")
    if contents.is_wanted(f"{folder}/{PurePath(file).name}")
]
