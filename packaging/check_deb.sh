#!/bin/bash
# Install the built Debian package into a fresh Debian, run it there under Xvfb as an ordinary user, and remove it.
# The fresh Debian has no Python; what it has of Qt's needs comes from the package's dependencies alone.
#   packaging/check_deb.sh [PACKAGE.deb]     default: the one in dist/
# Needs root (chroot), debootstrap, Xvfb and python3. Leaves dist/check/: the report's files and the window's picture.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -1)
architecture=$(dpkg --print-architecture)
package=${1:-dist/loradesk_${version}_${architecture}.deb}
archive=dist/loradesk-${version}-linux-${architecture}.tar.gz
# shellcheck source=/dev/null
suite=${SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")} # this machine's, since the mirror is this machine's
components=main
if grep -q '^ID=ubuntu' /etc/os-release; then components=main,universe; fi
most_ms=${MOST_MS:-2500} # first paint of a start whose files are in the page cache
out=dist/check
user=tester

die() {
    echo "check_deb: $*" >&2
    exit 1
}
step() { echo "== $*"; }

[ "$(id -u)" = 0 ] || die "needs root, for chroot"
for tool in debootstrap Xvfb python3; do
    command -v "$tool" >/dev/null || die "$tool is not installed"
done
[ -f "$package" ] || die "there is no $package; run make package first"

# This machine's own mirror, in either format that apt reads.
mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p' | head -1)
[ -n "$mirror" ] || mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
    sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' | head -1)
[ -n "$mirror" ] || die "no package mirror in /etc/apt"

tree=$(mktemp -d "${TMPDIR:-/tmp}/loradesk-debian.XXXXXX")
chroot=$(command -v chroot)
screen=
clean() {
    [ -z "$screen" ] || kill "$screen" 2>/dev/null || true
    for place in dev/shm proc; do
        if mountpoint -q "$tree/$place"; then umount "$tree/$place"; fi
    done
    rm -f "$tree.log"
    # Never through a mount that would not go.
    grep -q " $tree/" /proc/mounts || rm -rf --one-file-system "$tree"
}
trap clean EXIT

base=build/debian-$suite-$architecture.tar
if [ ! -f "$base" ]; then
    step "a fresh Debian $suite"
    debootstrap --variant=minbase --components="$components" "$suite" "$tree" "$mirror" >"$tree.log" 2>&1 || {
        tail "$tree.log"
        die "debootstrap"
    }
    rm -f "$tree.log"
    mkdir -p build
    tar -C "$tree" -cf "$base.part" . && mv "$base.part" "$base"
else
    step "Debian $suite, fresh from $base"
    tar -C "$tree" -xpf "$base"
fi
chmod 755 "$tree" # mktemp's is the caller's alone, and the user inside must get in
rm -rf "$out"
mkdir -p "$out"

mount -t proc proc "$tree/proc"
mkdir -p "$tree/dev/shm"
mount -t tmpfs tmpfs "$tree/dev/shm"
cp /etc/resolv.conf "$tree/etc/resolv.conf"
# Settings of apt that this machine needs to reach its mirror.
cp -r /etc/apt/apt.conf.d/. "$tree/etc/apt/apt.conf.d/" 2>/dev/null || true
rm -f "$tree"/etc/apt/apt.conf.d/*{packagekit,appstream,debconf,dep11,autoremove}*
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d" # no daemons in the tree
chmod 755 "$tree/usr/sbin/policy-rc.d"

inside() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$chroot" "$tree" "$@"; }
as_user() {
    env -i PATH=/usr/bin:/bin HOME="/home/$user" LC_ALL=C.UTF-8 DISPLAY="${display:-}" XDG_RUNTIME_DIR="/home/$user/run" \
        "$chroot" --userspec="$user:$user" "$tree" "$@"
}

inside useradd --create-home "$user"
inside su "$user" -c 'mkdir -m 700 ~/run'
! inside sh -c 'command -v python3 || command -v python' || die "the tree has a Python"
find "$tree" -xdev -not -path "$tree/proc*" -printf '/%P\n' | sort >"$out/files-before.txt"

step "install with apt"
cp "$package" "$tree/tmp/loradesk.deb"
inside apt-get update -qq
inside apt-get install -qq -y --no-install-recommends /tmp/loradesk.deb desktop-file-utils shared-mime-info \
    hicolor-icon-theme >"$out/apt-install.txt" 2>&1 || { tail -20 "$out/apt-install.txt"; die "apt-get install"; }
rm "$tree/tmp/loradesk.deb"
! inside sh -c 'command -v python3' || die "a dependency brought a Python, so the check would prove less"
[ "$(inside dpkg-query -W -f '${Version}' loradesk)" = "$version" ] || die "the package's version is not $version"
[ "$(as_user loradesk --version)" = "loradesk $version" ] || die "loradesk --version is not $version"
inside desktop-file-validate /usr/share/applications/loradesk.desktop || die "the menu entry is not valid"
inside grep -q '^application/x-gguf=.*loradesk.desktop' /usr/share/applications/mimeinfo.cache || die ".gguf is not ours"
inside grep -q 'application/x-loradesk-ordering+json:' /usr/share/mime/globs2 || die "ordering files have no type"
[ -s "$tree/opt/loradesk/_internal/bitsandbytes/libbitsandbytes_cpu.so" ] || die "no library of bitsandbytes"
for size in 16 22 24 32 48 64 128 256 512; do
    [ -s "$tree/usr/share/icons/hicolor/${size}x${size}/apps/loradesk.png" ] || die "no icon of $size"
done
[ -s "$tree/opt/loradesk/_internal/licences/README.txt" ] || die "no licences"
echo "installed; $(inside dpkg-query -W | wc -l) packages in the tree"

step "libraries that neither the bundle nor the dependencies bring"
# The program puts its own folder on the loader's path, as here.
inside env LD_LIBRARY_PATH=/opt/loradesk/_internal find /opt/loradesk -type f \( -name '*.so*' -o -name loradesk \) -exec sh -c '
    for file; do ldd "$file" 2>/dev/null | sed -n "s|^[[:space:]]*\(.*\) => not found|\1  ${file##*/}|p"; done' sh {} + |
    sort -u >"$out/missing-libraries.txt"
# GTK's theme plugin is loaded only on desktops that have GTK.
if grep -v libqgtk3.so "$out/missing-libraries.txt"; then die "these are missing"; fi
echo "none"

step "self-test, without a display"
as_user loradesk --self-test | tee "$out/self-test.txt"

step "a display"
number=90
while [ -e "/tmp/.X11-unix/X$number" ]; do number=$((number + 1)); done
frames=$(mktemp -d "$tree/tmp/frames.XXXXXX")
Xvfb ":$number" -screen 0 1440x900x24 -fbdir "$frames" -ac -nolisten tcp >"$out/xvfb.txt" 2>&1 &
screen=$!
display=:$number
# The socket lies outside the tree; the abstract one of the same name does not, but not every Xvfb has it.
for _ in $(seq 100); do
    [ -S "/tmp/.X11-unix/X$number" ] && break
    sleep 0.1
done
mkdir -p "$tree/tmp/.X11-unix"
ln -f "/tmp/.X11-unix/X$number" "$tree/tmp/.X11-unix/X$number" 2>/dev/null || true

step "start to first paint, files cached"
best=
for run in 1 2 3; do
    as_user timeout 60 loradesk --startup-trace --quit-after-paint >"$out/start-$run.txt" 2>&1 || die "start $run failed"
    ms=$(sed -n 's/^first paint *\([0-9]*\) ms$/\1/p' "$out/start-$run.txt")
    echo "run $run: $ms ms"
    if [ -z "$best" ] || [ "$ms" -lt "$best" ]; then best=$ms; fi
done
cat "$out/start-3.txt"
[ "$best" -le "$most_ms" ] || die "first paint takes $best ms, more than $most_ms"

step "the window, on the screen"
as_user timeout 120 loradesk --startup-trace >"$out/window.txt" 2>&1 &
window=$!
for _ in $(seq 600); do
    grep -q 'model loaded' "$out/window.txt" && break
    kill -0 "$window" 2>/dev/null || { cat "$out/window.txt"; die "the application ended"; }
    sleep 0.1
done
grep -q 'model loaded' "$out/window.txt" || die "no model was loaded"
sleep 2 # the last frame has come to rest
python3 packaging/bundling/xwd.py "$frames/Xvfb_screen0" "$out/window.png" || die "the screen is blank"

step "opening files from the desktop, with the window open"
demo=/opt/loradesk/_internal/loradesk_resources/demo
cp "$tree$demo/base-q8_0.gguf" "$tree/home/$user/a model.gguf"
cp "$tree$demo/ordering/xlora.json" "$tree/home/$user/my-ordering.json"
# The command of the menu entry, with %f as a desktop fills it in; it ends once the window has taken the file.
command=$(sed -n 's/^Exec=\([^ ]*\) %f$/\1/p' "$tree/usr/share/applications/loradesk.desktop")
[ -n "$command" ] || die "the menu entry takes no file"
settings=$tree/home/$user/.config # the lists of models loaded and ordering files opened
for file in "a model.gguf" my-ordering.json; do
    as_user timeout 60 "$command" "/home/$user/$file" | grep 'its window takes over' || die "$file was not handed over"
    for _ in $(seq 300); do
        grep -qr "$file" "$settings" && break
        sleep 0.1
    done
    grep -qr "$file" "$settings" || die "$file was not opened"
done
sleep 2 # the last frame has come to rest
python3 packaging/bundling/xwd.py "$frames/Xvfb_screen0" "$out/opened.png" || die "the screen is blank"
echo "picture of the screen: $out/opened.png"

# `timeout` hands the signal on; the application closes its window and saves.
kill "$(pgrep -P "$window" timeout || echo "$window")"
wait "$window" || code=$?
[ "${code:-0}" = 0 ] || [ "${code:-0}" = 124 ] || [ "${code:-0}" = 143 ] || die "the application ended with code $code"
cat "$out/window.txt"
! grep -q Traceback "$out/window.txt" || die "a part of the window failed"
echo "picture of the screen: $out/window.png"
kill "$screen"
wait "$screen" 2>/dev/null || true
screen=
rm -rf "$frames" "$tree/tmp/.X11-unix"

step "remove"
inside apt-get purge -qq -y loradesk >"$out/apt-purge.txt" 2>&1 || { cat "$out/apt-purge.txt"; die "apt-get purge"; }
find "$tree" -xdev -not -path "$tree/proc*" -printf '/%P\n' | sort >"$out/files-after.txt"
inside sh -c 'cat /var/lib/dpkg/info/*.list' | sort -u >"$out/files-owned.txt"
# What is new, belongs to no package, and is neither the user's nor made by the tools of the system itself.
made='^/(home/|tmp/|run|dev|var/(cache|log)/|var/lib/(apt|dpkg|dbus|systemd|ucf)|etc/(ld\.so\.cache|machine-id)|etc/fonts'
made+='|usr/local/share/fonts|usr/share/mime|usr/share/applications/mimeinfo\.cache'
made+='|usr/share/icons/hicolor/(icon-theme|\.icon-theme)\.cache)'
# Packages own files by either name of the folders that are one since /usr was merged.
sed -E 's,^/(bin|sbin|lib|lib64)(/|$),/usr/\1\2,' "$out/files-owned.txt" | sort -u >"$out/owned.txt"
left=$(comm -13 "$out/files-before.txt" "$out/files-after.txt" | sed -E 's,^/(bin|sbin|lib|lib64)/,/usr/\1/,' | sort |
    comm -23 - "$out/owned.txt" | grep -vE "$made" || true)
rm "$out/owned.txt"
[ -z "$left" ] || die "left behind: $left"
if grep -i loradesk "$out/files-after.txt" | grep -vE "^/home/$user/"; then die "these are left behind"; fi
! inside grep -qr -i loradesk /usr/share/applications /usr/share/mime || die "the menu or the types still name it"
echo "left: the user's own"
grep -i loradesk "$out/files-after.txt" | sed 's/^/  /' || true

if [ -f "$archive" ]; then
    step "the archive, installed by the user, and removed"
    tar -C "$tree/tmp" -xzf "$archive"
    folder=/tmp/$(basename "$archive" .tar.gz)
    as_user sh "$folder/install.sh"
    rm -rf "${tree:?}$folder/loradesk" # the installation must not need it
    as_user "/home/$user/.local/bin/loradesk" --self-test --no-window
    as_user sh "$folder/install.sh" --uninstall
    [ -z "$(find "$tree/home/$user/.local/lib" "$tree/home/$user/.local/bin" -iname '*loradesk*')" ] || die "left behind"
fi
echo "check_deb: all is well. First paint $best ms; $(du -m "$package" | cut -f1) MB package."
