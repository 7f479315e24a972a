#!/bin/sh
# Install the Debian packages that are needed and missing, where that is permitted; otherwise say which they are.
set -u
list="$(dirname "$0")/debian-packages.txt"
command -v dpkg-query >/dev/null 2>&1 || exit 0 # not Debian: Qt's own error and the build say what is missing
missing=
for package in $(sed 's/#.*//' "$list"); do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    sudo apt-get update -qq && sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "These Debian packages are missing and could not be installed:$missing" >&2
echo "Install them with: sudo apt-get install$missing" >&2
exit 0 # the terminal parts work without them
