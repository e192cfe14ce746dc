#!/usr/bin/env bash
# Builds the agent's image with Docker. `build.sh --help` lists the options.
#
# Kept to what bash 3.2 knows, for that is what macOS has.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
lock=$here/requirements/agent.lock

usage() {
    cat <<'HELP'
Usage: build.sh [options]

Builds the image in which Pynchy's agent runs.

  --tag TAG         the image's name (default: $CONTAINER_IMAGE, or else pynchy-agent:latest)
  --base IMAGE      build on this image instead of the usual slim Python one; an image that is on this
                    machine already is used as it is, so a build on a local base pulls nothing
  --ca-bundle FILE  certificates (PEM) to trust in addition, during the build and in the image: for
                    networks whose proxy inspects TLS
  --network MODE    the network of the build's steps, as in `docker build --network` (default: default)
  --apt "PKGS"      Debian packages to add for the agent's use, e.g. --apt "git curl ripgrep"
  --lock FILE       install what this lock has beyond the agent's own: `pynchy image build` makes one of
                    what the installed plugins need
  --plugin-packages "JSON"
                    the list of what they asked for, which is noted on the image
  --help            this text

PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST and the usual *_PROXY variables are passed on to
the build if they are set. The image's history keeps the PIP_ ones: put no password into them.

For lines of your own, see "Your own packages" in the Dockerfile beside this script.
HELP
}

die() {
    printf 'build.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

# --- what is asked for ---------------------------------------------------------------------------

tag=${CONTAINER_IMAGE:-pynchy-agent:latest}
base=
ca_bundle=
network=default
apt=
plugins_lock=
plugin_packages=

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            usage
            exit 0
            ;;
        --tag | --base | --ca-bundle | --network | --apt | --lock | --plugin-packages)
            [ -n "${2:-}" ] || die "$1 needs a value; see build.sh --help." 2
            case $1 in
                --tag) tag=$2 ;;
                --base) base=$2 ;;
                --ca-bundle) ca_bundle=$2 ;;
                --network) network=$2 ;;
                --apt) apt=$2 ;;
                --lock) plugins_lock=$2 ;;
                --plugin-packages) plugin_packages=$2 ;;
            esac
            shift 2
            ;;
        *) die "unknown option '$1'; see build.sh --help." 2 ;;
    esac
done

# --- what can be known to fail is said before anything is built ----------------------------------

if [ -n "$ca_bundle" ]; then
    [ -f "$ca_bundle" ] || die "the CA bundle '$ca_bundle' does not exist."
    [ -r "$ca_bundle" ] || die "the CA bundle '$ca_bundle' cannot be read."
    grep -q -e '-----BEGIN CERTIFICATE-----' "$ca_bundle" ||
        die "the CA bundle '$ca_bundle' holds no PEM certificate."
fi

if [ -n "$plugins_lock" ]; then
    [ -f "$plugins_lock" ] || die "the lock '$plugins_lock' does not exist."
    [ -r "$plugins_lock" ] || die "the lock '$plugins_lock' cannot be read."
fi

command -v docker >/dev/null ||
    die "Docker is not installed (no 'docker' in PATH): get Docker Desktop, or on Debian and Ubuntu run 'sudo apt-get install docker.io'."

docker version --format '{{.Server.Version}}' >/dev/null 2>&1 ||
    die "Docker's engine does not answer: start Docker Desktop or run 'sudo systemctl start docker', and check with 'docker info' that you may use it."

# --- the context: the few files the Dockerfile copies, in a directory that goes away --------------

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT

cp "$here/Dockerfile" "$context/Dockerfile"
mkdir "$context/requirements"
cp "$lock" "$context/requirements/agent.lock"
if [ -n "$plugins_lock" ] && ! cmp -s "$plugins_lock" "$lock"; then
    cp "$plugins_lock" "$context/requirements/plugins.lock"
fi
if [ -n "$ca_bundle" ]; then
    cp "$ca_bundle" "$context/extra-ca.crt"
fi
# Modes reach the image as they are here, and neither umask nor the sources' own should decide them.
chmod -R u=rwX,go=rX "$context"

if command -v sha256sum >/dev/null; then
    lock_sha256=$(sha256sum <"$lock")
else
    lock_sha256=$(shasum -a 256 <"$lock") # macOS
fi
lock_sha256=${lock_sha256%% *}

arguments=(
    --tag "$tag"
    --network "$network"
    --build-arg "AGENT_LOCK_SHA256=$lock_sha256"
)
[ -z "$base" ] || arguments+=(--build-arg "BASE_IMAGE=$base")
[ -z "$apt" ] || arguments+=(--build-arg "EXTRA_APT=$apt")
[ -z "$plugin_packages" ] || arguments+=(--build-arg "PLUGIN_PACKAGES=$plugin_packages")
# By name alone: Docker takes the value from the environment, so it does not show in the process list.
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST \
    HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    [ -z "${!name:-}" ] || arguments+=(--build-arg "$name")
done

# BuildKit needs Docker's buildx plugin, which Debian's packages leave out.
if docker buildx version >/dev/null 2>&1; then
    export DOCKER_BUILDKIT=1
else
    export DOCKER_BUILDKIT=0
    arguments+=(--force-rm) # or a step that fails leaves its container behind
fi

# The context goes through a pipe, since a Docker from a snap package cannot see our /tmp.
COPYFILE_DISABLE=1 tar -C "$context" -cf - . | docker build "${arguments[@]}" - ||
    die "the image '$tag' was not built; Docker's last lines above say why."

bytes=$(docker image inspect --format '{{.Size}}' "$tag")
printf 'build.sh: built %s (%d MB).\n' "$tag" "$((bytes / 1000000))"
