#!/usr/bin/env bash
# Builds the agent's image with Podman. `build.sh --help` lists the options.
#
# What the image is made of is Pynchy's own: PYNCHY_CONTAINER_DIR says where that is, and where it does not,
# the `python3` in PATH is asked, in which Pynchy then has to be installed.
#
# Kept to what bash 3.2 knows, for that is what macOS has.
set -euo pipefail

container=${PYNCHY_CONTAINER_DIR:-}
if [ -z "$container" ]; then
    container=$(python3 -c 'from pynchy.home import container_dir; print(container_dir())' 2>/dev/null) || {
        printf '%s\n' "build.sh: no Pynchy is installed for the 'python3' in PATH: activate its environment, or run 'pynchy image build'." >&2
        exit 1
    }
fi
if [ ! -f "$container/build-context.sh" ]; then
    printf '%s\n' "build.sh: '$container' holds no build-context.sh: set PYNCHY_CONTAINER_DIR to Pynchy's container directory, or unset it." >&2
    exit 1
fi

usage="Usage: build.sh [options]

Builds the image in which Pynchy's agent runs, with Podman."

. "$container/build-context.sh"
read_options "$@"

command -v podman >/dev/null ||
    die "Podman is not installed (no 'podman' in PATH): on Debian and Ubuntu run 'sudo apt-get install podman', on macOS 'brew install podman'."
podman info >/dev/null 2>&1 ||
    die "Podman does not work: 'podman info' says why, and on macOS 'podman machine start' may be all that is missing."

stage_context
# Podman's own format has no place for some of what a Dockerfile may say.
options=(--format docker --tag "$tag" --file "$context/Dockerfile")
[ -z "$network" ] || options+=(--network "$network")

podman build "${options[@]}" "${build_arguments[@]}" "$context" ||
    die "the image '$tag' was not built; Podman's last lines above say why."

bytes=$(podman image inspect --format '{{.Size}}' "$tag")
printf 'build.sh: built %s (%d MB).\n' "$tag" "$((bytes / 1000000))"
