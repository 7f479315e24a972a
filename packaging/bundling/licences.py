"""Licences of everything in the bundle, collected into its folder `licences`."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

from bundling.project import BUILD, PACKAGING, ROOT, internals

LICENCE_NAMES = ("licen", "copying", "notice", "authors", "copyright")
OURS = "loradesk"
LGPL = [PACKAGING / "licences" / name for name in ("LGPL-3.0.txt", "GPL-3.0.txt")]  # the first builds on the second
STANDARD = {"LGPL": LGPL, "GNU Library or Lesser General Public License": LGPL, "Apache": [ROOT / "LICENSE"]}


def bundled_modules(work: Path = BUILD / "pyinstaller" / "loradesk") -> set[str]:
    """Top-level names of the modules and packages that the bundle holds."""
    names = set()
    for table in work.glob("PYZ-*.toc"):
        entries = ast.literal_eval(table.read_text("utf-8"))[1]
        names |= {entry[0].split(".")[0] for entry in entries}
    names |= {path.name.split(".")[0] for path in internals().iterdir()}
    return names


def bundled_distributions(modules: Iterable[str]) -> list[Distribution]:
    """The distributions that those modules are of, in order of name."""
    by_module = packages_distributions()
    names = {name for module in modules for name in by_module.get(module, ())}
    return sorted((distribution(name) for name in names - {OURS}), key=lambda found: found.name.lower())


def collect(folder: Path) -> list[str]:
    """Write the licences and a list of them; returns the names of parts without a licence text of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(ROOT / "LICENSE", folder / "loradesk.txt")
    bare, lines = [], ["What this installation is made of; each folder here holds the texts.", ""]
    python = Path(sysconfig.get_path("stdlib"), "LICENSE.txt")
    if python.is_file():
        _copy(python, folder / "Python" / "LICENSE.txt")
    lines.append(f"Python {sys.version.split()[0]}: PSF-2.0")
    for found in bundled_distributions(bundled_modules()):
        name = found.name.replace("/", "_")
        lines.append(f"{found.name} {found.version}: {_licence_of(found)}")
        if not _copy_texts(found, folder / name) and not _copy_standard(found, folder / name):
            bare.append(found.name)
    for package, libraries in sorted(_system_packages().items()):
        lines.append(f"{package} (of the build system: {', '.join(sorted(libraries))}): see its text")
        text = Path("/usr/share/doc", package, "copyright")
        if text.is_file():
            _copy(text, folder / "system" / f"{package}.txt")
        else:
            bare.append(package)
    lines += [
        "",
        "Qt and PySide6 are used under the LGPL 3: their libraries lie in the folder PySide6 as files of their own and",
        "may be replaced by others of the same interface. Their sources are at code.qt.io.",
    ]
    if bare:
        lines += ["", "Named by their metadata only, without a text: " + ", ".join(bare)]
    (folder / "README.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return bare


def _licence_of(found: Distribution) -> str:
    metadata = found.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith("License ::") and line != "License :: OSI Approved"
    ]
    text = str(metadata.get("License") or "").strip().splitlines()
    return ", ".join(classifiers) or (text[0] if text else "see its text")


def _copy_standard(found: Distribution, folder: Path) -> int:
    """The text of a licence that the distribution names without holding it."""
    named = _licence_of(found)
    texts = [text for name, texts in STANDARD.items() if name in named for text in texts]
    for text in texts:
        _copy(text, folder / text.name)
    return len(texts)


def _copy_texts(found: Distribution, folder: Path) -> int:
    count = 0
    for file in found.files or ():
        if ".dist-info" not in file.parts[0] and len(file.parts) > 2:
            continue
        if file.suffix not in {".py", ".pyc", ".so"} and file.name.lower().startswith(LICENCE_NAMES):
            inner = file.parts[2:] if "licenses" in file.parts[1:2] else file.parts[1:] or file.parts
            _copy(Path(str(found.locate_file(file))), folder.joinpath(*inner))
            count += 1
    return count


def _system_packages() -> dict[str, list[str]]:
    """Debian packages that libraries in the bundle's root come from."""
    if not sys.platform.startswith("linux") or shutil.which("dpkg") is None:
        return {}
    packages: dict[str, list[str]] = {}
    for library in sorted(internals().glob("lib*.so*")):
        if library.is_symlink() or library.name.startswith("libpython"):
            continue
        shown = subprocess.run(["dpkg", "-S", f"*/{library.name}"], capture_output=True, text=True, check=False).stdout
        owners = {line.split(":")[0] for line in shown.splitlines() if line.endswith(f"/{library.name}")}
        for owner in sorted(owners)[:1]:
            packages.setdefault(owner, []).append(library.name)
    return packages


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
