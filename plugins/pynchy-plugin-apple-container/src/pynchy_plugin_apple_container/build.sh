#!/usr/bin/env bash
# Builds the agent's image with Apple's container. `build.sh --help` lists the options.
#
# Kept to what bash 3.2 knows, for that is what macOS has.
set -euo pipefail

container=${PYNCHY_CONTAINER_DIR:-}
if [ -z "$container" ]; then
    container=$(python3 -c 'from pynchy.home import container_dir; print(container_dir())' 2>/dev/null) || {
        echo "build.sh: Pynchy is not installed for this 'python3': activate its environment, or set PYNCHY_CONTAINER_DIR." >&2
        exit 1
    }
fi
usage="Usage: build.sh [options]

Builds the image in which Pynchy's agent runs, with Apple's container. It has no --network."

. "$container/build-context.sh"
read_options "$@"

[ -z "$network" ] || die "Apple's container has no --network for builds: leave the option out." 2
command -v container >/dev/null ||
    die "Apple's container is not installed (no 'container' in PATH): get it from github.com/apple/container/releases."
container system status >/dev/null 2>&1 ||
    die "Apple's container does not run: start it with 'container system start'."

# Some versions ignore the default of an ARG that is named in a FROM.
[ -n "$base" ] || base=$(sed -n 's/^ARG BASE_IMAGE=//p' "$container/Dockerfile")

stage_context
# It looks for files below the context's real path, and on macOS a link leads to temporary directories.
directory=$(cd "$context" && pwd -P)

# It takes no value from the environment, as Docker does for an argument that is only named.
index=1
while [ "$index" -lt "${#build_arguments[@]}" ]; do
    name=${build_arguments[$index]}
    case $name in
        *=*) ;;
        *) build_arguments[$index]="$name=${!name}" ;;
    esac
    index=$((index + 2))
done

container build --platform linux/arm64 --progress plain --tag "$tag" --file "$directory/Dockerfile" \
    "${build_arguments[@]}" "$directory" ||
    die "the image '$tag' was not built; the last lines above say why."
printf 'build.sh: built %s.\n' "$tag"
