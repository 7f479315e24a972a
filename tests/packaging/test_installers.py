"""The files of the installers, without building them."""

import configparser
import plistlib
import re
import struct
import subprocess
import sys
import zlib
from email.utils import parseaddr
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bundling import icons, linux, macos, xwd
from bundling.project import ICON_SIZES, PACKAGING, ROOT, project, version
from support.clock import PATIENCE

MIME = "{http://www.freedesktop.org/standards/shared-mime-info}"
SCRIPTS = sorted(PACKAGING.rglob("*.sh"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    # A process of its own: pytest-qt's application must be the first of this one.
    code = "import sys; from pathlib import Path; from bundling import icons; icons.render(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=PACKAGING, check=True, timeout=PATIENCE)
    return folder


def desktop_entry() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign] - the keys' case counts
    parser.read(linux.LINUX / "loradesk.desktop", "utf-8")
    assert parser.sections() == ["Desktop Entry"]
    return parser["Desktop Entry"]


def test_desktop_entry() -> None:
    entry = desktop_entry()
    assert entry["Type"] == "Application"
    assert entry["Exec"].split() == ["loradesk", "%f"], "one path, unquoted: the desktop's field code"
    assert entry["Icon"] == "loradesk"
    assert entry["Terminal"] == "false"
    for key in ("Categories", "Keywords", "MimeType"):
        assert entry[key].endswith(";"), f"{key} is a list, and lists end with a semicolon"
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", key) for key in entry)


def test_types_are_declared_and_claimed() -> None:
    root = ElementTree.parse(linux.LINUX / "loradesk.xml").getroot()
    assert root.tag == f"{MIME}mime-info"
    patterns = {
        kind.attrib["type"]: {glob.attrib["pattern"] for glob in kind.iter(f"{MIME}glob")}
        for kind in root.iter(f"{MIME}mime-type")
    }
    assert "*.gguf" in patterns["application/x-gguf"]
    assert "*.json" not in set().union(*patterns.values()), "other JSON files are not ours"
    assert set(desktop_entry()["MimeType"].rstrip(";").split(";")) == set(patterns)


@pytest.mark.parametrize("size", ICON_SIZES)
def test_icon_of_each_size(drawn: Path, size: int) -> None:
    picture = (drawn / f"loradesk-{size}.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (size, size)


def test_icons_of_windows_and_macos(drawn: Path) -> None:
    data = (drawn / "loradesk.ico").read_bytes()
    assert struct.unpack("<HHH", data[:6]) == (0, 1, len(icons.ICO_SIZES))
    for entry in range(len(icons.ICO_SIZES)):
        length, offset = struct.unpack("<II", data[6 + 16 * entry + 8 : 6 + 16 * entry + 16])
        assert data[offset : offset + 4] == b"\x89PNG"
        assert offset + length <= len(data)
    data = (drawn / "loradesk.icns").read_bytes()
    assert data[:4] == b"icns"
    assert struct.unpack(">I", data[4:8]) == (len(data),)


def test_share_files_go_where_desktops_look(drawn: Path, tmp_path: Path) -> None:
    linux.share_files(tmp_path, {size: drawn / f"loradesk-{size}.png" for size in ICON_SIZES})
    assert (tmp_path / "applications" / "loradesk.desktop").is_file()
    assert (tmp_path / "mime" / "packages" / "loradesk.xml").is_file()
    assert (tmp_path / "icons" / "hicolor" / "scalable" / "apps" / "loradesk.svg").is_file()
    for size in ICON_SIZES:
        assert (tmp_path / "icons" / "hicolor" / f"{size}x{size}" / "apps" / "loradesk.png").is_file()


def test_control_file() -> None:
    text = linux.control(1234, "2.35")
    fields = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(" "))
    assert fields["Package"] == "loradesk"
    assert fields["Version"] == version()
    assert fields["Installed-Size"] == "1234"
    name, address = parseaddr(fields["Maintainer"])
    assert name == project()["authors"][0]["name"]
    assert address.endswith(".invalid"), "no domain of somebody else's"
    depends = fields["Depends"].split(", ")
    assert depends[0] == "libc6 (>= 2.35)"
    assert {"libxcb-cursor0", "libegl1", "libstdc++6", "libglib2.0-0"} <= set(depends)
    assert len(depends) == len(set(depends))
    assert not any("python" in name for name in depends)
    assert fields["Description"] == str(project()["description"]).split(":")[0]


def test_glibc_version_is_read_from_the_libraries(tmp_path: Path) -> None:
    (tmp_path / "old.so").write_bytes(b"\x7fELF..\0GLIBC_2.4\0")
    (tmp_path / "new.so").write_bytes(b"\x7fELF..\0GLIBC_2.34\0..\0GLIBC_2.9\0")
    (tmp_path / "text.txt").write_bytes(b"\0GLIBC_2.99\0")
    assert linux.glibc_version(tmp_path) == "2.34"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse(script: Path) -> None:
    first = script.read_text("utf-8").splitlines()[0]
    shell = "bash" if "bash" in first else "sh"
    subprocess.run([shell, "-n", str(script)], check=True, timeout=PATIENCE)


def install(*options: str, archive: Path, home: Path) -> str:
    done = subprocess.run(
        ["sh", str(archive / "install.sh"), *options],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return done.stdout


def test_install_script_puts_in_place_and_takes_away(drawn: Path, tmp_path: Path) -> None:
    archive, home = tmp_path / "an archive", tmp_path / "home"
    (archive / "loradesk").mkdir(parents=True)
    program = archive / "loradesk" / "loradesk"
    program.write_text("#!/bin/sh\necho it runs\n")
    program.chmod(0o755)
    linux.share_files(archive / "share", {size: drawn / f"loradesk-{size}.png" for size in ICON_SIZES})
    (archive / "install.sh").write_text((linux.LINUX / "install.sh").read_text("utf-8"))
    kept = home / ".local" / "share" / "Loradesk" / "conversation.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    prefix = home / ".local"
    options = ("--prefix", str(prefix))

    install(*options, archive=archive, home=home)
    link = prefix / "bin" / "loradesk"
    assert subprocess.run([str(link)], capture_output=True, text=True, check=True).stdout == "it runs\n"
    entry = (prefix / "share" / "applications" / "loradesk.desktop").read_text("utf-8")
    assert f'Exec="{link}" %f' in entry
    install(*options, archive=archive, home=home)  # over an installation
    install("--uninstall", *options, archive=archive, home=home)

    ours = [path for path in prefix.rglob("*") if path.name.startswith("loradesk") and not path.is_dir()]
    assert not ours
    assert not (prefix / "lib" / "loradesk").exists()
    assert kept.is_file()


def test_windows_and_macos_scripts_say_that_they_have_not_been_run() -> None:
    for file in ("windows/loradesk.iss", "macos/make_dmg.sh"):
        assert "NOT YET RUN" in (PACKAGING / file).read_text("utf-8")
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    assert "NOT YET RUN" in workflow
    assert "python packaging/build.py" in workflow
    for system in ("ubuntu", "windows", "macos"):
        assert f"system: {system}" in workflow
    assert "\t" not in workflow


def test_the_workflow_of_tests_says_that_it_has_not_been_run() -> None:
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    assert "NOT YET RUN" in workflow.split("name:")[0]
    assert "run: make test" in workflow
    assert "\t" not in workflow


def test_macos_opens_models_and_leaves_other_files_alone() -> None:
    info = plistlib.loads(plistlib.dumps(macos.INFO))
    declared = {
        kind["UTTypeIdentifier"]: kind["UTTypeTagSpecification"]["public.filename-extension"]
        for kind in info["UTImportedTypeDeclarations"]
    }
    assert declared == {macos.GGUF: ["gguf"]}
    ranks = {kind["LSItemContentTypes"][0]: kind["LSHandlerRank"] for kind in info["CFBundleDocumentTypes"]}
    assert ranks == {macos.GGUF: "Default", "public.json": "Alternate", "public.folder": "Alternate"}
    assert "macos.INFO" in (PACKAGING / "loradesk.spec").read_text("utf-8")


def test_windows_opens_files_with_the_program_that_is_installed() -> None:
    script = (PACKAGING / "windows" / "loradesk.iss").read_text("utf-8")
    registry = re.search(r"^\[Registry\]\n(.*?)^\[", script, re.MULTILINE | re.DOTALL)
    assert registry is not None
    rows = [line for line in registry[1].splitlines() if line.startswith("Root:")]
    for suffix, kind in ((".gguf", "Loradesk.gguf"), (".json", "Loradesk.ordering")):
        offered = [row for row in rows if f"Classes\\{suffix}\\" in row]
        assert len(offered) == 1, "offered in Open with, and no default is changed"
        assert f'OpenWithProgids"; ValueType: string; ValueName: "{kind}"' in offered[0]
        assert "uninsdeletevalue" in offered[0]
        (command,) = [row for row in rows if f"{kind}\\shell\\open\\command" in row]
        assert command.endswith('ValueData: """{app}\\loradesk.exe"" ""%1"""')
        assert any(f'Classes\\{kind}";' in row and "uninsdeletekey" in row for row in rows)


def test_no_machine_paths_and_no_registry_in_what_is_committed() -> None:
    files = [path for path in PACKAGING.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for file in [*files, *(ROOT / ".github").rglob("*.yml")]:
        text = file.read_text("utf-8")
        assert not re.search(r"/root/|/work/|/home/[a-z]|\.venv|pypi\.org|deb\.debian|download\.pytorch", text), file


def test_a_frame_buffer_becomes_a_picture() -> None:
    width, height, stride = 2, 1, 8
    words = [0] * xwd.HEADER_WORDS
    words[0], words[1], words[4], words[5], words[7], words[11], words[12] = 100, 7, width, height, 0, 32, stride
    dump = struct.pack(f">{xwd.HEADER_WORDS}I", *words) + bytes([1, 2, 3, 0, 4, 5, 6, 0])
    assert xwd.picture(dump) == (2, 1, bytes([3, 2, 1, 6, 5, 4]))
    picture = xwd.png(2, 1, bytes(6))
    at = picture.index(b"IDAT")
    (length,) = struct.unpack(">I", picture[at - 4 : at])
    assert zlib.decompress(picture[at + 4 : at + 4 + length]) == bytes(7)
    with pytest.raises(ValueError, match="XWD"):
        xwd.picture(bytes(200))
