"""`make package`: the application as a folder without a Python of the system, then this platform's installers.

    python packaging/build.py            all of it
    python packaging/build.py bundle     only the folder
    python packaging/build.py installer  only the installers, of the folder that is there

CUDA: the same, in an environment whose torch has CUDA.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bundling import contents, icons, licences, linux, report
from bundling.project import BUILD, DIST, NAME, PACKAGING, ROOT, bundle, internals, source_date, version


def build_bundle() -> None:
    """PyInstaller's folder, stripped, with the licences; prints its size and fails above the budget."""
    icons.render()
    DIST.mkdir(exist_ok=True)
    # Sets of strings come in one order, and times in archives are the source's: two builds agree.
    environment = os.environ | {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": str(source_date())}
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--clean", "--log-level", "WARN"]
    command += ["--distpath", str(DIST), "--workpath", str(BUILD / "pyinstaller"), str(PACKAGING / "loradesk.spec")]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    strip()
    bare = licences.collect(internals() / "licences")
    if bare:
        print("Without a licence text of their own, named in licences/README.txt:", ", ".join(bare))
    (DIST / f"{NAME}-{version()}.manifest").write_text(report.manifest(bundle()), "utf-8")
    text, kept = report.describe(bundle(), report.CUDA_BUDGET_MB if contents.has_cuda() else report.BUDGET_MB)
    print(text)
    if not kept:
        raise SystemExit("The bundle is larger than its budget (packaging/bundling/report.py).")


def strip() -> None:
    """Take the debug symbols from the libraries that have them."""
    if not sys.platform.startswith("linux"):
        return
    if shutil.which("strip") is None:
        print("`strip` is not installed: the libraries keep their debug symbols.", file=sys.stderr)
        return
    for pattern in contents.STRIPPED:
        for library in sorted(internals().glob(pattern)):
            if not library.is_symlink():
                subprocess.run(["strip", "--strip-unneeded", "--preserve-dates", str(library)], check=True)


def build_installers() -> list[Path]:
    """The installers of this platform."""
    pictures = icons.render()
    if sys.platform.startswith("linux"):
        made = [linux.build_archive(pictures)]
        if shutil.which("dpkg-deb"):
            made.append(linux.build_deb(pictures))
        return made
    if sys.platform == "win32":
        compiler = os.environ.get("ISCC", "iscc")
        subprocess.run([compiler, f"/DVersion={version()}", str(PACKAGING / "windows" / "loradesk.iss")], check=True)
        return sorted(DIST.glob("*.exe"))
    subprocess.run(["sh", str(PACKAGING / "macos" / "make_dmg.sh"), version()], check=True, cwd=ROOT)
    return sorted(DIST.glob("*.dmg"))


def main() -> None:
    """Build what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("all", "bundle", "installer"), default="all")
    part = parser.parse_args().part
    started = time.monotonic()
    if part != "installer":
        build_bundle()
    if part != "bundle":
        for made in build_installers():
            print(f"{made.relative_to(ROOT)}: {made.stat().st_size / report.MB:.0f} MB")
    print(f"Built version {version()} in {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
