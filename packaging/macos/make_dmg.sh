#!/bin/sh
# Sign dist/Loradesk.app and put it into a disk image. NOT YET RUN: checked with `sh -n` and by reading only.
#   packaging/macos/make_dmg.sh VERSION
# SIGN_IDENTITY: a Developer ID, for notarizing; without it the signature is ad hoc, which runs on this machine.
# NOTARY_PROFILE: a profile kept with `xcrun notarytool store-credentials`; without it nothing is sent.
set -eu
version=${1:?the version is missing}
cd "$(dirname "$0")/../.."
app=dist/Loradesk.app
image=dist/loradesk-$version-macos-$(uname -m).dmg
entitlements=packaging/macos/entitlements.plist
identity=${SIGN_IDENTITY:--}
[ -d "$app" ] || {
    echo "make_dmg: there is no $app; run packaging/build.py first" >&2
    exit 1
}

sign() {
    if [ "$identity" = - ]; then
        codesign --force --sign - --entitlements "$entitlements" "$@"
    else
        codesign --force --sign "$identity" --options runtime --timestamp --entitlements "$entitlements" "$@"
    fi
}
# From the inside out: a signature covers those below it.
find "$app/Contents" -type f \( -name '*.dylib' -o -name '*.so' \) | while read -r library; do sign "$library"; done
sign "$app"
codesign --verify --deep --strict "$app"

staging=build/dmg
rm -rf "$staging"
mkdir -p "$staging"
cp -R "$app" "$staging/"
ln -s /Applications "$staging/Applications"
rm -f "$image"
hdiutil create -volname "Loradesk $version" -srcfolder "$staging" -fs HFS+ -format UDZO "$image"
[ "$identity" = - ] || codesign --sign "$identity" --timestamp "$image"
if [ -n "${NOTARY_PROFILE:-}" ]; then
    xcrun notarytool submit "$image" --keychain-profile "$NOTARY_PROFILE" --wait
    xcrun stapler staple "$image"
fi
