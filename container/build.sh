#!/usr/bin/env bash
# Builds the agent's image with Docker. `build.sh --help` lists the options.
#
# Kept to what bash 3.2 knows, for that is what macOS has.
set -euo pipefail

container=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
usage="Usage: build.sh [options]

Builds the image in which Pynchy's agent runs, with Docker."

. "$container/build-context.sh"
read_options "$@"

command -v docker >/dev/null ||
    die "Docker is not installed (no 'docker' in PATH): get Docker Desktop, or on Debian and Ubuntu run 'sudo apt-get install docker.io'."
docker version --format '{{.Server.Version}}' >/dev/null 2>&1 ||
    die "Docker's engine does not answer: start Docker Desktop or run 'sudo systemctl start docker', and check with 'docker info' that you may use it."

stage_context
options=(--tag "$tag" --network "${network:-default}")

# BuildKit needs Docker's buildx plugin, which Debian's packages leave out.
if docker buildx version >/dev/null 2>&1; then
    export DOCKER_BUILDKIT=1
else
    export DOCKER_BUILDKIT=0
    options+=(--force-rm) # or a step that fails leaves its container behind
fi

# The context goes through a pipe, since a Docker from a snap package cannot see our /tmp.
COPYFILE_DISABLE=1 tar -C "$context" -cf - . | docker build "${options[@]}" "${build_arguments[@]}" - ||
    die "the image '$tag' was not built; Docker's last lines above say why."

bytes=$(docker image inspect --format '{{.Size}}' "$tag")
printf 'build.sh: built %s (%d MB).\n' "$tag" "$((bytes / 1000000))"
