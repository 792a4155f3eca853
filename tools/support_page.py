"""Prints docs/support.md, what each engine does with each precision on each GPU, from the engines' own answers.
`python tools/support_page.py > docs/support.md`
"""

from __future__ import annotations

from harness.device import Device
from harness.engine import EngineSpec, support_of
from harness.plugins import discover
from harness.precision import PRECISIONS

SMS = {80: "A100", 89: "L40S, RTX 4090", 90: "H100, H200", 100: "B200", 103: "B300", 120: "RTX PRO 6000, RTX 5090"}
DEVICES = {
    "CPU": Device("cpu", "a CPU", 1, None, flags=("avx512f", "avx512_bf16")),
    **{f"SM {sm}": Device("cuda", f"a GPU of SM {sm}", 1, None, sm) for sm in SMS},
    "Trainium": Device("neuron", "trn2", 1, None),
}
VERSIONS = {"sglang": ("0.5.16", "0.5.23"), "trtllm": ("1.2.1", "1.4.0rc1")}  # whose answers differ
HEAD = """# What each engine does with each precision

`native`: tensor cores of that format. `weight_only`: stored so, multiplied in BF16. `emulated`: every value as that format has
it, products in BF16: for accuracy, never for speed. `-`: the engine cannot; a cell that asks for it is skipped with the reason.
A number leads to a reason below the table. `harness list precisions --engine E --sm N` says the same for the version that is
installed, `harness doctor` for this machine; the engine need not be there for either. This table is what the engines' sources
say; a record holds what was found in the loaded layers.

Made by `python tools/support_page.py > docs/support.md`.
"""


def main() -> None:
    print(HEAD)
    print("| SM | GPUs |\n|---|---|")
    print("\n".join(f"| {sm} | {names} |" for sm, names in SMS.items()))
    for engine in discover().engines.values():
        for version in VERSIONS.get(engine.name, (None,)):
            print("\n" + section(engine, version))


def section(engine: EngineSpec, version: str | None) -> str:
    """One engine's table and its numbered reasons, in Markdown."""
    reasons: dict[str, int] = {}
    lines = [f"## {engine.name} {version or ''}".rstrip(), "", engine.summary, ""]
    lines += [f"| precision | {' | '.join(DEVICES)} |", f"|---{'|---' * len(DEVICES)}|"]
    for precision in PRECISIONS:
        cells = []
        for device in DEVICES.values():
            support = support_of(engine, precision, device, version)
            # else each SM has a reason of its own, and each precision
            reason = (support.reason or "").replace(f"SM {device.sm}", "this SM", 1)
            reason = reason.replace(f"{precision} tensor cores", "tensor cores for it")
            reason = reason.replace(f"{precision} value", "value")
            number = reasons.setdefault(reason, len(reasons) + 1) if reason else None
            mode = "-" if support.mode == "unsupported" else support.mode
            cells.append(f"{mode} ({number})" if number else mode)
        lines.append(f"| `{precision}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items())]).rstrip()


if __name__ == "__main__":
    main()
