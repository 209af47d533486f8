"""Writes what the benchmarks measured as the tables and the picture of docs/speed.md. `make bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def speed_table(result: dict[str, Any]) -> str:
    """One table for all models."""
    machine = result["machine"]
    lines = [
        f"Measured on {result['date']}: {machine['processor']}, {machine['threads']} threads, which read "
        f"{machine['read_gb_s']:.0f} GB/s and reach {machine['f32_gflop_s']:.0f} GFLOP/s of float32 here. Medians of "
        f"{result['pairs']} pairs; the spread is the smallest and the largest ratio. Peer: llama.cpp "
        f"(llama-cpp-python 0.3.36), built with `{result['peer_build']}`.",
        "",
        "| model | task | teachllama | llama.cpp | ratio | spread |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, found in result["models"].items():
        label = f"{name}, {found['file_nbytes'] / 1e6:,.0f} MB"
        for task, row in found["rows"].items():
            lines.append(
                f"| {label} | {task} | {row['ours']:,.0f} tok/s | {row['peer']:,.0f} tok/s | **{row['ratio']:.2f}** | "
                f"{row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f} |"
            )
            label = ""
        load = found["load"]
        lines.append(
            f"| | import and load | {load['ours']:.2f} s | {load['peer']:.2f} s | {load['peer'] / load['ours']:.2f} | |"
        )
        for kind in ("resident", "private"):
            if kind in found:  # measurements of release 0.1 have resident memory alone
                ours, peer = found[kind]["ours"], found[kind]["peer"]
                lines.append(f"| | {kind} memory | {ours / 1e6:,.0f} MB | {peer / 1e6:,.0f} MB | {peer / ours:.2f} | |")
    return "\n".join(lines) + "\n"


def bandwidth_table(result: dict[str, Any]) -> str:
    """How near decoding comes to reading every weight once a token at the machine's pace."""
    limit = result["machine"]["read_gb_s"]
    lines = ["| model | bytes a token | read while decoding | of this machine's pace |", "|---|---:|---:|---:|"]
    for name, found in result["models"].items():
        row = next(row for task, row in found["rows"].items() if task.startswith("decode 128"))
        pace = row["ours"] * found["file_nbytes"] / 1e9
        lines.append(
            f"| {name} | {found['file_nbytes'] / 1e6:,.0f} MB | {pace:.1f} GB/s | {100 * pace / limit:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def fidelity_table(result: dict[str, Any]) -> str:
    """KL divergence and agreement."""
    lines = [
        "| file | engine | KL divergence, mean | largest | same likeliest token | greedy tokens, of 48 |",
        "|---|---|---:|---:|---:|---|",
    ]
    for kind, found in result.items():
        for name, row in found.items():
            agree = ", ".join(map(str, row["greedy_agree"]))
            lines.append(
                f"| SmolLM2-135M {kind} | {name} | {row['kl_mean']:.1e} | {row['kl_max']:.1e} | "
                f"{100 * row['same_top']:.2f} % | {agree} |"
            )
    return "\n".join(lines) + "\n"


def sampling_table(result: dict[str, Any]) -> str:
    """Milliseconds per draw, for each row of logits and each setting."""
    lines = [
        f"Measured on {result['date']}: {result['processor']}. Milliseconds per draw, the smallest and the median of "
        f"{result['draws']}.",
        "",
        "| logits | settings | teachllama | llama.cpp |",
        "|---|---|---:|---:|",
    ]
    for name, found in result["rows"].items():
        label = name
        for settings, row in found.items():
            cells = [f"{row[who]['min']:.2f}, {row[who]['median']:.2f}" for who in ("ours", "peer")]
            lines.append(f"| {label} | {settings} | {cells[0]} | {cells[1]} |")
            label = ""
    return "\n".join(lines) + "\n"


def picture(result: dict[str, Any], to: Path) -> None:
    """Ratios as bars with their spread, a group for each model, and the line where both are equal."""
    import matplotlib
    from matplotlib.figure import Figure

    from teachllama.show.style import BLUE, GREEN, INK, ORANGE, PURPLE, RC

    with matplotlib.rc_context(RC):
        models = list(result["models"].items())
        figure = Figure(figsize=(9, 0.9 + 1.15 * len(models)), layout="constrained")
        axes = figure.subplots()
        for m, (_, found) in enumerate(models):
            for t, (task, row) in enumerate(found["rows"].items()):
                y = m + (t - 1.5) * 0.2
                axes.barh(y, row["ratio"], 0.18, color=(BLUE, PURPLE, ORANGE, GREEN)[t])
                low, high = row["ratio"] - row["ratios"][0], row["ratios"][-1] - row["ratio"]
                axes.errorbar(row["ratio"], y, xerr=[[low], [high]], color=INK, lw=1, capsize=2)
                axes.text(row["ratios"][-1] + 0.05, y, f"{row['ratio']:.2f}  {task}", va="center", fontsize=10)
        axes.axvline(1, color=INK, lw=1.2, ls=(0, (5, 2)))
        axes.set_yticks(range(len(models)), [name.replace(" (as published)", "") for name, _ in models])
        axes.invert_yaxis()
        largest = max(row["ratios"][-1] for _, found in models for row in found["rows"].values())
        axes.set_xlim(0, largest * 1.55)
        axes.set_xlabel("times llama.cpp's speed, same file, same run (dashed: equal)")
        figure.savefig(to, dpi=120)


def main() -> None:
    """Reads the JSON files and writes four tables and a picture."""
    measured = DOCS / "measured"
    speed = json.loads((measured / "speed.json").read_text(encoding="utf-8"))
    fidelity = json.loads((measured / "fidelity.json").read_text(encoding="utf-8"))
    sampling = json.loads((measured / "sampling.json").read_text(encoding="utf-8"))
    (measured / "sampling.inc").write_text(sampling_table(sampling), encoding="utf-8")
    (measured / "speed.inc").write_text(speed_table(speed), encoding="utf-8")
    (measured / "bandwidth.inc").write_text(bandwidth_table(speed), encoding="utf-8")
    (measured / "fidelity.inc").write_text(fidelity_table(fidelity), encoding="utf-8")
    picture(speed, DOCS / "images" / "speed.png")


if __name__ == "__main__":
    main()
