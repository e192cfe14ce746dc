# What every build of the agent's image begins with, whatever program builds it: options, and the context.
#
# To be sourced. A script sets `container` (the directory of the Dockerfile) and `usage`, then calls `read_options
# "$@"`, and `stage_context` once it knows that its program answers. These leave behind:
#
#   tag, base, network     as they were asked for; the last two may be empty
#   context                a directory with everything that the Dockerfile copies, gone when the script ends
#   build_arguments        an array of `--build-arg NAME[=VALUE]`, for the Dockerfile's arguments
#
# Kept to what bash 3.2 knows, for that is what macOS has.

die() {
    printf 'build.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

options_help() {
    cat <<'HELP'
  --tag TAG         the image's name (default: $CONTAINER_IMAGE, or else pynchy-agent:latest)
  --base IMAGE      build on this image instead of the usual slim Python one; an image that is on this
                    machine already is used as it is, so a build on a local base pulls nothing
  --ca-bundle FILE  certificates (PEM) to trust in addition, during the build and in the image: for
                    networks whose proxy inspects TLS
  --network MODE    the network of the build's steps, in the program's own words
  --apt "PKGS"      Debian packages to add for the agent's use, e.g. --apt "git curl ripgrep"
  --lock FILE       install what this lock has beyond the agent's own: `pynchy image build` makes one of
                    what the installed plugins need
  --plugin-packages "JSON"
                    the list of what they asked for, which is noted on the image
  --help            this text

PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST and the usual *_PROXY variables are passed on to
the build if they are set. The image's history keeps the PIP_ ones: put no password into them.

For lines of your own, see "Your own packages" in Pynchy's container/Dockerfile.
HELP
}

read_options() {
    tag=${CONTAINER_IMAGE:-pynchy-agent:latest}
    base=
    network=
    ca_bundle=
    apt=
    plugins_lock=
    plugin_packages=
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h)
                printf '%s\n\n' "$usage"
                options_help
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

    # What can be known to fail is said before anything is built.
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
}

stage_context() {
    local lock=$container/requirements/agent.lock lock_sha256 name

    context=$(mktemp -d)
    trap 'rm -rf "$context"' EXIT
    cp "$container/Dockerfile" "$context/Dockerfile"
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

    build_arguments=(--build-arg "AGENT_LOCK_SHA256=${lock_sha256%% *}")
    [ -z "$base" ] || build_arguments+=(--build-arg "BASE_IMAGE=$base")
    [ -z "$apt" ] || build_arguments+=(--build-arg "EXTRA_APT=$apt")
    [ -z "$plugin_packages" ] || build_arguments+=(--build-arg "PLUGIN_PACKAGES=$plugin_packages")
    # By name alone: the value is taken from the environment, so it does not show in the process list.
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST \
        HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || build_arguments+=(--build-arg "$name")
    done
}
