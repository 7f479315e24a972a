"""The two installers of Linux: a Debian package and an archive with an install script."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from bundling.project import (
    BUILD,
    DIST,
    ICON_SIZES,
    NAME,
    PACKAGING,
    ROOT,
    architecture,
    bundle,
    debian_packages,
    project,
    source_date,
    version,
)

LINUX = PACKAGING / "linux"
# Libraries that the bundle uses of the system beside those of the window.
LIBRARIES = ("libstdc++6", "libgcc-s1", "zlib1g", "libfreetype6")
WAYLAND = ("libwayland-client0", "libwayland-cursor0", "libwayland-egl1")
# They keep the menu, the types and the icons current by triggers; every desktop has them.
RECOMMENDED = ("desktop-file-utils", "shared-mime-info", "hicolor-icon-theme", "ca-certificates")
# Debian wants an address after the name. The project has none, and nobody can own a name below .invalid (RFC 2606).
NO_REPLY = "noreply@loradesk.invalid"


def glibc_version(folder: Path) -> str:
    """The newest glibc that a file of the bundle asks for: the installation needs at least this one."""
    newest = (2, 17)
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink() and file.open("rb").read(4) == b"\x7fELF":
            for found in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", file.read_bytes()):
                newest = max(newest, (int(found[0]), int(found[1])))
    return f"{newest[0]}.{newest[1]}"


def share_files(tree: Path, icons: dict[int, Path]) -> None:
    """What the desktop reads, below a folder that stands for `/usr/share`."""
    places = {
        LINUX / "loradesk.desktop": "applications/loradesk.desktop",
        LINUX / "loradesk.xml": "mime/packages/loradesk.xml",
        icons[min(icons)].with_name(f"{NAME}.svg"): "icons/hicolor/scalable/apps/loradesk.svg",
    }
    places |= {icons[size]: f"icons/hicolor/{size}x{size}/apps/loradesk.png" for size in ICON_SIZES}
    for source, place in places.items():
        target = tree / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def control(installed_kb: int, glibc: str) -> str:
    """Debian's description of the package."""
    facts = project()
    depends = [f"libc6 (>= {glibc})", *LIBRARIES, *WAYLAND, *debian_packages()]
    return (
        f"Package: {NAME}\n"
        f"Version: {version()}\n"
        f"Architecture: {architecture()}\n"
        f"Maintainer: {facts['authors'][0]['name']} <{NO_REPLY}>\n"
        f"Installed-Size: {installed_kb}\n"
        f"Depends: {', '.join(depends)}\n"
        f"Recommends: {', '.join(RECOMMENDED)}\n"
        "Section: science\n"
        "Priority: optional\n"
        f"Description: {str(facts['description']).split(':')[0]}\n"
        " Load a base model, put LoRA adapters on channels, switch and weight them while\n"
        " you chat, watch per token how an X-LoRA model mixes its experts, and edit the\n"
        " ordering files that describe such models. Needs no Python and no network.\n"
    )


def build_deb(icons: dict[int, Path]) -> Path:
    """The Debian package: /opt/loradesk, a link on the PATH, and what the desktop reads. It has no scripts."""
    tree = BUILD / "deb"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "opt").mkdir(parents=True)
    _copy_tree(bundle(), tree / "opt" / NAME)
    binaries = tree / "usr" / "bin"
    binaries.mkdir(parents=True)
    (binaries / NAME).symlink_to(f"../../opt/{NAME}/{NAME}")
    share_files(tree / "usr" / "share", icons)
    documents = tree / "usr" / "share" / "doc" / NAME
    documents.mkdir(parents=True)
    shutil.copyfile(LINUX / "copyright", documents / "copyright")
    kb = sum(file.lstat().st_size for file in tree.rglob("*") if file.is_file()) // 1024
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(control(kb, glibc_version(bundle())), "utf-8")
    _settle(tree)
    target = DIST / f"{NAME}_{version()}_{architecture()}.deb"
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(source_date())}
    # zstd: unpacks many times faster than xz, and every system with this glibc has a dpkg that reads it
    command = ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z12", "--build", str(tree), str(target)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return target


def build_archive(icons: dict[int, Path]) -> Path:
    """The archive for other distributions: the bundle may lie anywhere; install.sh puts it in place."""
    top = f"{NAME}-{version()}-linux-{architecture()}"
    tree = BUILD / "archive" / top
    shutil.rmtree(tree.parent, ignore_errors=True)
    tree.mkdir(parents=True)
    _copy_tree(bundle(), tree / NAME)
    share_files(tree / "share", icons)
    shutil.copyfile(LINUX / "install.sh", tree / "install.sh")
    shutil.copyfile(ROOT / "LICENSE", tree / "LICENSE")
    (tree / "install.sh").chmod(0o755)
    _settle(tree)
    target = DIST / f"{top}.tar.gz"
    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, source_date()) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in [tree, *sorted(tree.rglob("*"))]:
            archive.add(path, str(path.relative_to(tree.parent)), recursive=False, filter=_anonymous)
    return target


def _copy_tree(source: Path, target: Path) -> None:
    """Hard links where the file system allows: the bundle is large, and the copies are only read."""
    try:
        shutil.copytree(source, target, symlinks=True, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)


def _settle(tree: Path) -> None:
    """The same rights and times whoever builds: readable by all, writable by the owner."""
    when = source_date()
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            executable = path.is_dir() or bool(path.stat().st_mode & 0o100)
            path.chmod(0o755 if executable else 0o644)
        os.utime(path, (when, when), follow_symlinks=False)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = source_date()
    return entry
