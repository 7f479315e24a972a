#!/bin/sh
# Install the Debian packages that are needed and missing, where that is permitted; otherwise say which they are.
#   packaging/system-packages.sh [PACKAGE...]     default: those of debian-packages.txt
set -u
command -v dpkg-query >/dev/null 2>&1 || exit 0 # not Debian: Qt's own error and the build say what is missing
[ $# -gt 0 ] || set -- $(sed 's/#.*//' "$(dirname "$0")/debian-packages.txt")
missing=
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "Nothing is missing."
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root=sudo
else
    as_root=impossible
fi
if [ "$as_root" != impossible ]; then
    echo "Installing with apt-get:$missing"
    $as_root apt-get update -qq &&
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null &&
        exit 0
fi
echo "These Debian packages are missing and could not be installed:$missing" >&2
echo "Install them with: sudo apt-get install$missing" >&2
exit 0 # the terminal parts work without them
