#!/bin/sh
# Install Loradesk from this archive: for you alone, or for everyone when run by root.
#   ./install.sh [--prefix DIR]    default: ~/.local, or /usr/local for root
#   ./install.sh --uninstall [--prefix DIR]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ "$(id -u)" = 0 ]; then prefix=/usr/local; else prefix=${HOME:?}/.local; fi
uninstall=
while [ $# -gt 0 ]; do
    case $1 in
    --prefix)
        prefix=${2:?--prefix needs a folder}
        shift
        ;;
    --uninstall) uninstall=1 ;;
    -h | --help)
        sed -n '2,4s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        echo "install.sh: unknown option $1" >&2
        exit 2
        ;;
    esac
    shift
done
case $prefix in
/*) ;;
*) prefix=$PWD/$prefix ;;
esac
share=$prefix/share

refresh() {
    # Desktops without these tools notice by themselves.
    if command -v update-desktop-database >/dev/null 2>&1; then update-desktop-database -q "$share/applications" || true; fi
    if command -v update-mime-database >/dev/null 2>&1; then update-mime-database "$share/mime" >/dev/null 2>&1 || true; fi
    if command -v gtk-update-icon-cache >/dev/null 2>&1; then gtk-update-icon-cache -qtf "$share/icons/hicolor" || true; fi
}

remove() {
    rm -rf "$prefix/lib/loradesk"
    rm -f "$prefix/bin/loradesk" "$share/applications/loradesk.desktop" "$share/mime/packages/loradesk.xml"
    rm -f "$share"/icons/hicolor/*/apps/loradesk.png "$share/icons/hicolor/scalable/apps/loradesk.svg"
}

if [ -n "$uninstall" ]; then
    remove
    refresh
    echo "Loradesk is removed from $prefix. Your settings and conversations are kept."
    exit 0
fi

remove # an older version may have files that this one has not
mkdir -p "$prefix/lib" "$prefix/bin" "$share"
cp -R "$here/loradesk" "$prefix/lib/loradesk"
ln -s "$prefix/lib/loradesk/loradesk" "$prefix/bin/loradesk"
cp -R "$here/share/." "$share/"
# The menu does not search the user's own PATH.
sed "s|^Exec=loradesk|Exec=\"$prefix/bin/loradesk\"|" "$here/share/applications/loradesk.desktop" \
    >"$share/applications/loradesk.desktop"
refresh
echo "Loradesk is installed in $prefix; start it with $prefix/bin/loradesk or from the menu."
case :${PATH}: in
*:"$prefix/bin":*) ;;
*) echo "$prefix/bin is not on your PATH." ;;
esac
