# Makes the environment of `make`: sh tools/make_venv.sh PYTHON VENV EXTRAS
# With a GPU the user's own torch is respected; without one only the CPU build of torch is taken.
set -eu
python=$1 venv=$2 extras=$3

if nvidia-smi -L >/dev/null 2>&1; then
    constraint=
    if "$python" -c 'import torch' 2>/dev/null; then site=--system-site-packages; else site=; fi
else
    constraint="-c constraints/cpu.txt" site=
fi

[ -x "$venv/bin/python" ] || "$python" -m venv $site "$venv"
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $constraint -e ".[$extras]"; then
    if [ -n "$constraint" ] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        echo "error: if pip found no torch 2.13.0+cpu for $("$venv/bin/python" -V): point pip at an index that has it" >&2
        echo "       (PIP_EXTRA_INDEX_URL; PyTorch's 'Get started' page names its CPU index), or use another PYTHON=" >&2
    fi
    exit 1
fi
