"""The committed results of benchmarks.aot as a Markdown table.

python -m benchmarks.aot_table
"""

import json
from collections import Counter
from pathlib import Path


HEADER = (
    "| result | chip | devices | GiB a device | TFLOP a device | gathered, MB | reduced, MB | of it"
    " bfloat16, MB | estimated cycles, M | compiled in s |"
)


def row(path: Path) -> str:
    """One result as a line of the table."""
    found = json.loads(path.read_text())
    size: Counter[str] = Counter()
    for collective in found["collectives"]:
        kind = "gathered" if collective["kind"] == "all-gather" else "reduced"
        size[kind] += collective["bytes"]
        if (kind, collective["dtype"]) == ("reduced", "bf16"):
            size["narrow"] += collective["bytes"]
    cycles = found.get("estimated_cycles")
    flops = found["flops_per_device"]
    cells = [
        f"[`{path.stem}`](../benchmarks/aot/{path.name})",
        found["device"],
        found["devices"],
        f"{found['peak_bytes_per_device'] / 2**30:.2f}",
        f"{flops / 1e12:.2f}" if flops and flops > 0 else "",
        *(f"{size[kind] / 1e6:.1f}" for kind in ("gathered", "reduced", "narrow")),
        f"{cycles['all'] / 1e6:.0f}" if cycles else "",
        f"{found['compile_seconds']:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Prints the table."""
    files = sorted(Path(__file__).parent.glob("aot/*.json"))
    print(HEADER, "| --- " * (HEADER.count("|") - 1) + "|", *map(row, files), sep="\n")


if __name__ == "__main__":
    main()
