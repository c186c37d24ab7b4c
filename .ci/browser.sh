#!/bin/sh
# browser.sh FOLDER: what the tests in a browser want, in FOLDER. chromium starts the Chromium that
# UPSNET_CHROMIUM names, else one on the PATH, else Debian's package, unpacked in FOLDER with what it needs that this
# system does not have; nothing is installed. axe.min.js is npm's axe-core.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
axe=4.14.1
failed=

fail() {
    echo "error: $1" >&2
    failed=yes
}

unpack_chromium() {
    archives=$folder/cache/archives
    rm -rf "$folder/chromium" "$folder/system" "$folder/cache"
    mkdir -p "$archives/partial" "$folder/lists/partial" "$folder/system"
    apt() {
        apt-get -qq -o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder/cache" -o Acquire::Languages=none \
            -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" "$@" >&2
    }
    apt update && apt --yes --no-install-recommends --download-only install chromium && [ -n "$(ls "$archives"/*.deb)" ] ||
        return 1
    for archive in "$archives"/*.deb; do
        dpkg-deb -x "$archive" "$folder/system" || return 1
    done
    rm -rf "$folder/cache" "$folder/lists"
    printf '<fontconfig><dir>%s</dir><cachedir>%s</cachedir></fontconfig>\n' "$folder/system/usr/share/fonts" \
        "$folder/system/fonts" >"$folder/system/fonts.conf"
    {
        printf '#!/bin/sh\nsystem="%s"\nlibraries="$system/usr/lib/x86_64-linux-gnu"\n' "$folder/system"
        echo 'export LD_LIBRARY_PATH="$system/usr/lib/chromium:$libraries:$libraries/pulseaudio:$system/lib/x86_64-linux-gnu"'
        echo '[ -f /etc/fonts/fonts.conf ] || export FONTCONFIG_FILE="$system/fonts.conf"'
        echo 'exec "$system/usr/lib/chromium/chromium" "$@"'
    } >"$folder/unpacked"
    chmod +x "$folder/unpacked"
    mv "$folder/unpacked" "$folder/chromium"
}

here=${UPSNET_CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
if [ -n "$here" ]; then
    [ -x "$here" ] || { echo "error: UPSNET_CHROMIUM=$here: no such program" >&2; exit 2; }
    rm -rf "$folder/chromium"
    ln -s "$here" "$folder/chromium"
elif [ ! -x "$folder/chromium" ]; then
    unpack_chromium || fail "no Chromium: none on the PATH, and apt-get cannot download Debian's package; name one in UPSNET_CHROMIUM"
fi
if [ ! -f "$folder/axe-core-$axe.tgz" ] || [ ! -f "$folder/axe.min.js" ]; then
    (cd "$folder" && npm pack --silent "axe-core@$axe" >&2 && tar -xzf "axe-core-$axe.tgz" --strip-components=1 package/axe.min.js) ||
        fail "no axe-core: npm cannot pack axe-core@$axe"
fi
[ -z "$failed" ] || exit 2
version=$("$folder/chromium" --version --no-sandbox 2>/dev/null) || { echo "error: $folder/chromium does not start" >&2; exit 2; }
echo "$folder: $version, axe-core $axe"
