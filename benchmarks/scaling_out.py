"""Write the tables of docs/scaling-out.md, from shapes alone: nothing is measured here.

python benchmarks/scaling_out.py            # writes
python benchmarks/scaling_out.py --check    # fails if the page does not hold what the formulas say
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "scaling-out.md"
BYTES = 2  # of a number that moves: bfloat16
COEFF_BYTES = 4  # coefficients are float32
LORA_RANK = 8
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Shape:
    """Attention of one layer of a model, and how it is run: batch B, queries L, keys S, devices T."""

    model: str
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    batch: int
    queries: int
    keys: int
    devices: int

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return self.heads * self.head_size


PREFILL = [
    Shape("ViT-L/16, 64 images", 24, 16, 16, 64, 64, 197, 197, 8),
    Shape("Llama 3 8B", 32, 32, 8, 128, 1, 8192, 8192, 8),
    Shape("Llama 3 70B", 80, 64, 8, 128, 1, 8192, 8192, 8),
    Shape("Llama 3 70B", 80, 64, 8, 128, 1, 131072, 131072, 8),
]
DECODE = [
    Shape("Llama 3 8B, 32 sequences", 32, 32, 8, 128, 32, 1, 8192, 8),
    Shape("Llama 3 70B, 32 sequences", 80, 64, 8, 128, 32, 1, 8192, 8),
]
SERVED = [PREFILL[0], PREFILL[1], PREFILL[2]]


def others(s: Shape) -> float:
    """Part of a tensor that is on other devices."""
    return (s.devices - 1) / s.devices


# Numbers that a device receives in one layer, forward. A gather or reduce-scatter of a tensor receives the part of it
# that others have, an all-reduce twice that, a change of sharding (all-to-all) the part of its own share.


def tensor_parallel(s: Shape) -> float:
    """What tensor parallelism moves anyway: an all-reduce after attention and one after the MLP."""
    return others(s) * 4 * s.batch * s.queries * s.width


def values(s: Shape) -> float:
    """Values gathered, outputs reduce-scattered; in generation the cache of values is whole on every device."""
    new = s.keys if s.queries > 1 else 1
    return others(s) * s.batch * s.head_size * (s.kv_heads * new + s.heads * s.queries)


def maps(s: Shape) -> float:
    """Maps of all heads exchanged."""
    return others(s) * s.batch * s.heads * s.queries * s.keys


def queries(s: Shape) -> float:
    """Heads exchanged for queries and back; keys and values gathered."""
    changed = 2 * s.heads * s.queries / s.devices
    return others(s) * s.batch * s.head_size * (changed + 2 * s.kv_heads * s.keys)


def ring(s: Shape, passes: int) -> float:
    """Sequence parallelism: keys pass by so many times, values once."""
    return others(s) * (passes + 1) * s.batch * s.kv_heads * s.keys * s.head_size


def values_flops(s: Shape) -> float:
    """Attention FLOPs of a device under `values`, relative to plain attention with heads sharded."""
    return (s.head_size + s.heads + s.head_size * s.devices) / (2 * s.head_size)


def split_flops(s: Shape) -> float:
    """The same under `maps`, `queries` and sequence parallelism."""
    return (2 * s.head_size + s.heads) / (2 * s.head_size)


def local_flops(s: Shape) -> float:
    """The same with mixing only between heads of one device."""
    return (2 * s.head_size + s.heads / s.devices) / (2 * s.head_size)


def values_cache(s: Shape) -> float:
    """Cache that a device holds and reads under `values`, relative to plain attention with heads sharded."""
    return (1 + s.devices) / 2


def coeff_bytes(s: Shape) -> int:
    return s.layers * s.heads**2 * COEFF_BYTES


def lora_bytes(s: Shape) -> int:
    """LoRA on query and value."""
    return s.layers * LORA_RANK * (2 * s.width + s.width + s.kv_heads * s.head_size) * BYTES


def size(numbers: float) -> str:
    mib = numbers * BYTES / MIB
    return f"{mib:,.2f}" if mib < 10 else f"{mib:,.0f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def prefill_table() -> str:
    header = ["model", "L = S", "T", "tensor parallelism itself", "values", "maps", "queries", "within a device"]
    rows = []
    for s in PREFILL:
        cells = [s.model, f"{s.queries:,}", str(s.devices), size(tensor_parallel(s))]
        cells += [f"{size(values(s))} ({values_flops(s):.2f})", f"{size(maps(s))} ({split_flops(s):.2f})"]
        rows.append([*cells, f"{size(queries(s))} ({split_flops(s):.2f})", f"0 ({local_flops(s):.2f})"])
    return table(header, rows)


def decode_table() -> str:
    header = ["model", "S", "T", "tensor parallelism itself", "values (cache)", "maps", "queries"]
    rows = []
    for s in DECODE:
        cells = [s.model, f"{s.keys:,}", str(s.devices), size(tensor_parallel(s))]
        rows.append([*cells, f"{size(values(s))} ({values_cache(s):.1f})", size(maps(s)), size(queries(s))])
    return table(header, rows)


def sequence_table() -> str:
    header = ["model", "L = S", "T", "ring, plain attention", "ring, mixed", "keys and values gathered"]
    rows = [
        [s.model, f"{s.queries:,}", str(s.devices), size(ring(s, 1)), size(ring(s, 2)), size(ring(s, 1))]
        for s in PREFILL[1:]
    ]
    return table(header, rows)


def adapter_table() -> str:
    header = [
        "model",
        "coefficients",
        f"LoRA r = {LORA_RANK}",
        "in 10 GiB",
        "of LoRA",
        "read by a step of 64",
        "by LoRA",
    ]
    rows = []
    for s in SERVED:
        own, lora = coeff_bytes(s), lora_bytes(s)
        each = [f"{own / 1024:,.0f} KiB", f"{lora / 1024:,.0f} KiB"]
        fit = [f"{10 * GIB // own:,}", f"{10 * GIB // lora:,}"]
        rows.append(
            [s.model.partition(",")[0], *each, *fit, f"{64 * own / MIB:,.1f} MiB", f"{64 * lora / MIB:,.0f} MiB"]
        )
    return table(header, rows)


def main(argv: list[str] | None = None, page: Path = PAGE) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is not up to date")
    check = parser.parse_args(argv).check
    before = after = page.read_text(encoding="utf-8")
    blocks = {"prefill": prefill_table, "decode": decode_table, "sequence": sequence_table, "adapters": adapter_table}
    for block, make in blocks.items():
        start, end = f"<!-- {block}: made by benchmarks/scaling_out.py -->", f"<!-- end of {block} -->"
        head, _, rest = after.partition(start)
        if not rest or end not in rest:
            raise ValueError(f"{page} must hold {start!r} and {end!r}")
        after = f"{head}{start}\n{make()}\n{end}{rest.partition(end)[2]}"
    if check:
        print("up to date" if after == before else "not what the formulas say; run: python benchmarks/scaling_out.py")
    else:
        page.write_text(after, encoding="utf-8")
    return int(check and after != before)


if __name__ == "__main__":
    sys.exit(main())
