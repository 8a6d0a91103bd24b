"""Write the tables of README.md and of pages in docs, from the rows under docs/results.

python benchmarks/readme_table.py            # writes
python benchmarks/readme_table.py --check    # fails if a file does not hold what the rows say
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from coeff_tuning.bench.report import BUSY, machine
from coeff_tuning.bench.rows import Row, figure, read
from coeff_tuning.studies import rows as study_rows
from coeff_tuning.studies.fewshot import report as fewshot_report
from coeff_tuning.studies.hull import report as hull_report
from coeff_tuning.studies.learnt import report as learnt_report
from coeff_tuning.studies.scenes import report as scenes_report

ROOT = Path(__file__).parents[1]
RESULTS = Path("docs") / "results"
PASSES = ("forward", "forward+backward")


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is not up to date")
    check = parser.parse_args(argv).check
    stale = []
    for name, block, content in tables(root / RESULTS):
        path = root / name
        before = path.read_text(encoding="utf-8")
        after = replace_block(before, block, content)
        if after != before:
            stale.append(f"{name} ({block})")
            if not check:
                path.write_text(after, encoding="utf-8")
    if stale and check:
        print(f"not what the rows say: {', '.join(stale)}; run: python benchmarks/readme_table.py", file=sys.stderr)
    return int(bool(stale) and check)


def tables(results: Path) -> list[tuple[str, str, str]]:
    """File, marker and content of each table."""
    names = ("op-speed", "op-memory", "model-speed")
    speed, memory, models = (read(results / f"{name}.jsonl") for name in names)
    fewshot, tried = (study_rows.read(results / "fewshot" / f"{name}.jsonl", "fewshot") for name in ("rows", "search"))
    seen, searched = (study_rows.read(results / "scenes" / f"{name}.jsonl", "scenes") for name in ("rows", "search"))
    learnt = study_rows.read(results / "learnt" / "rows.jsonl", "learnt")
    return [
        ("README.md", "memory", memory_sentence(memory)),
        ("README.md", "op speed", op_table(speed)),
        ("docs/speed.md", "model speed", model_table(models)),
        ("docs/hull.md", "hull", hull_report.page(study_rows.read(results / "hull.jsonl", "hull"))),
        ("docs/fewshot.md", "fewshot", fewshot_report.page(fewshot, tried).rstrip()),
        ("docs/learnt.md", "learnt", learnt_report.page(learnt).rstrip()),
        ("docs/scenes.md", "scenes", scenes_report.page(seen, searched).rstrip()),
    ]


def replace_block(text: str, block: str, content: str) -> str:
    """Put content between `<!-- block -->` and `<!-- end of block -->`."""
    start, end = f"<!-- {block}: made by benchmarks/readme_table.py -->", f"<!-- end of {block} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the file must hold {start!r} and {end!r} once each")
    head, _, rest = text.partition(start)
    return f"{head}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def where(rows: list[Row]) -> str:
    """Machine and date of rows, which must be of one machine that had nothing else to do."""
    machines = sorted({machine(row) for row in rows})
    if len(machines) != 1:
        raise ValueError(f"the rows of a table must be of one machine; got {'; '.join(machines)}")
    busy = [row["command"] for row in rows if (row.get("cores_busy_elsewhere") or 0) > BUSY]
    if busy:
        raise ValueError(f"other processes kept the machine busy meanwhile; measure again: {busy[0]}")
    return f"{machines[0]}, {max(row['date'] for row in rows)[:10]}"


def op_table(rows: list[Row]) -> str:
    lines = [
        "| attention call | backend | time / SDPA, forward | with backward | peak memory | of SDPA |",
        "|---|---|---|---|---|---|",
    ]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        own = [row for row in rows if row["shape"] == shape and row["status"] == "ok"]
        chosen = {row["measured"]: row for row in own if row["is_default"]}
        rival = {row["measured"]: row for row in own if row["backend"] == "sdpa"}
        last = max(chosen, key=PASSES.index)
        ratios = [ratio(chosen[name]) if name in chosen else "" for name in PASSES]
        peaks = [f"{by[last]['peak_above_inputs_mib']:,.1f} MiB" for by in (chosen, rival)]
        cells = [call(chosen[last]), f"`{chosen[last]['backend']}`", *ratios, *peaks]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{where(rows)}. Rows: [op-speed.jsonl](docs/results/op-speed.jsonl)."])


def model_table(rows: list[Row]) -> str:
    lines = ["| model | figure | measured (20, 80 %) |", "|---|---|---|"]
    for row in rows:
        for entry in row["figures"]:
            spread = f" ({entry['q20']:.2f}, {entry['q80']:.2f})" if "q20" in entry else ""
            name = entry["what"] if row["variant"] == "coeff" else f"{row['variant']}: {entry['what']}"
            lines.append(f"| {row['about']} | {name} | {entry['value']:.2f}{spread} |")
    return "\n".join([*lines, "", f"{where(rows)}. Rows: [model-speed.jsonl](results/model-speed.jsonl)."])


def ratio(row: Row) -> str:
    entry = figure(row, "time / SDPA")
    assert entry is not None, row["backend"]
    return f"{entry['value']:.2f} ({entry['q20']:.2f}, {entry['q80']:.2f})"


def call(row: Row) -> str:
    sizes = [f"B={row['batch']}", f"H={row['heads']}", f"L={row['length']}"]
    sizes += [f"S={row['source']}"] if row["source"] != row["length"] else []
    sizes += [f"{row['kv_heads']} key/value heads"] if row["kv_heads"] != row["heads"] else []
    return ", ".join([*sizes, *(["causal"] if row["is_causal"] else [])])


def memory_sentence(rows: list[Row]) -> str:
    row = next(row for row in rows if row["is_default"] and row["measured"] == PASSES[1])
    gib = row["one_array_of_maps_mib"] / 1024
    size = f"{row['heads']} heads of {row['head_size']}, {row['dtype']}, CPU"
    return (
        f"Forward and backward at {row['length']:,} tokens ({size}) peak at {row['peak_above_inputs_mib']:,.0f} MiB\n"
        f"above the inputs, where one array of maps alone is {gib:.0f} GiB ([rows](docs/results/op-memory.jsonl))."
    )


if __name__ == "__main__":
    sys.exit(main())
