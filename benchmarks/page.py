"""Writes the results of the benchmarks as the tables and pictures of the docs, such as docs/speed.md. `make bench`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def machine_name(machine: dict[str, Any]) -> str:
    """The kind of vector unit and the processor's name, for headings."""
    return f"{machine['kind']}, {machine['processor'].replace('(R)', '').removesuffix(' Processor')}"


def speed_table(result: dict[str, Any]) -> str:
    """One table for all models."""
    machine = result["machine"]
    lines = [
        f"### {machine_name(machine)}",
        "",
        f"Measured on {result['date']}: {machine['processor']}, {machine['threads']} threads, which read "
        f"{machine['read_gb_s']:.0f} GB/s and reach {machine['f32_gflop_s']:.0f} GFLOP/s of float32 here; other "
        f"programs kept at most {result['other_load']:.1f} processors busy. Medians of {result['pairs']} turns; the "
        f"spread is the smallest and the largest ratio. Peer: llama.cpp (llama-cpp-python 0.3.36), built with "
        f"`{result['peer_build']}`.",
        "",
        "| model | task | teachllama | llama.cpp, flash attention off / on | ratio to the better | spread | it loses |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for name, found in result["models"].items():
        label = f"{name}, {found['file_nbytes'] / 1e6:,.0f} MB"
        for task, row in found["rows"].items():
            lines.append(
                f"| {label} | {task} | {row['ours']:,.0f} tok/s | {row['off']:,.0f} / {row['on']:,.0f} tok/s | "
                f"**{row['ratio']:.2f}** | {row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f} | "
                f"{loss(row['ratio'])} |"
            )
            label = ""
        load = found["load"]
        ratio = load["peer"] / load["ours"]
        lines.append(
            f"| | import and load | {load['ours']:.2f} s | {load['peer']:.2f} s | {ratio:.2f} | | {loss(ratio)} |"
        )
        for kind in ("resident", "private"):
            ours, peer = found[kind]["ours"], found[kind]["peer"]
            lines.append(
                f"| | {kind} memory | {ours / 1e6:,.0f} MB | {peer / 1e6:,.0f} MB | {peer / ours:.2f} | | "
                f"{loss(peer / ours)} |"
            )
    sums = ", ".join(f"{name} `{found['sha256'][:12]}`" for name, found in result["models"].items())
    return "\n".join(lines) + f"\n\nFiles, by the first digits of their sha256: {sums}.\n"


def loss(ratio: float) -> str:
    """The entry of the column that lists where teachllama is slower or larger."""
    return f"{100 * (1 - ratio):.0f} % behind" if ratio < 0.995 else ""


def bandwidth_table(result: dict[str, Any]) -> str:
    """How close decoding comes to reading every weight once per token at the machine's bandwidth."""
    limit = result["machine"]["read_gb_s"]
    lines = [
        "| model | bytes a token | read while decoding | of this machine's pace | llama.cpp |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in result["models"].items():
        row = next(row for task, row in found["rows"].items() if task.startswith("decode 128"))
        pace, theirs = (tps * found["file_nbytes"] / 1e9 for tps in (row["ours"], max(row["off"], row["on"])))
        lines.append(
            f"| {name} | {found['file_nbytes'] / 1e6:,.0f} MB | {pace:.1f} GB/s | {100 * pace / limit:.0f} % | "
            f"{100 * theirs / limit:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def arithmetic_table(result: dict[str, Any]) -> str:
    """How close a prefill of 512 tokens comes to the float32 operations per second of a C loop; "" if none ran."""
    lines = [
        f"{machine_name(result['machine'])}, {result['machine']['threads']} threads:",
        "",
        "| model | prefill 512 | a C loop, in turns | share | spread |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in result["models"].items():
        if not (c := found.get("beside_c")):
            continue
        shares = [100 * share for share in c["shares"]]
        lines.append(
            f"| {name} | {c['ours']:.0f} GFLOP/s | {c['c']:.0f} GFLOP/s | {statistics.median(shares):.0f} % | "
            f"{shares[0]:.0f} to {shares[-1]:.0f} % |"
        )
    return "\n".join(lines) + "\n" if len(lines) > 4 else ""


def second_table(result: dict[str, Any]) -> str:
    """The comparison with a second engine's llama-bench, if there was one."""
    lines = [
        f"{machine_name(result['machine'])}:",
        "",
        "| model | engine | task | teachllama | its flash attention off / on | ratio to the better | it loses |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for name, found in result["models"].items():
        for task, row in found.get("second", {"rows": {}})["rows"].items():
            lines.append(
                f"| {name} | {found['second']['command']} | {task} | {row['ours']:,.0f} tok/s | "
                f"{row['off']:,.0f} / {row['on']:,.0f} tok/s | **{row['ratio']:.2f}** | {loss(row['ratio'])} |"
            )
    return "\n".join(lines) + "\n" if len(lines) > 4 else ""


def fidelity_table(result: dict[str, Any]) -> str:
    """KL divergence and agreement of tokens, for each file and engine."""
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


def milliseconds(values: list[float]) -> str:
    """Percentiles in seconds, formatted for the tables as milliseconds."""
    return " / ".join(f"{1000 * value:,.0f}" for value in values)


def serve_tables(result: dict[str, Any]) -> str:
    """The load test: results, goals, and the four questions, each compared with llama.cpp."""
    machine, clients, arrived = result["machine"], result["clients"], result["arrivals"]
    asked = result["work"]["clients"]
    own, new, (n_texts, n_common) = (result["work"]["arrivals"][kind] for kind in ("own", "new", "shared"))
    settings = ", ".join(f"{how}: {pace:,.0f}" for how, pace in result["settings"].items())
    gain, ratio = (statistics.median(clients[kind]) for kind in ("gains", "ratios"))
    smallest, shared = result["long"]["ours"][0], result["shared"][0]["ours"]
    goals = [
        ("8 clients, times the tokens of one request at a time", "3 or more", gain, gain >= 3),
        ("8 clients, times llama.cpp's tokens", "1.3 or more", ratio, ratio >= 1.3),
        ("between tokens while 1,000 tokens arrive in pieces: 99th percentile, times the median without", "3 or less",
         smallest["ratio"], smallest["ratio"] <= 3),
        ("first token with 500 shared tokens, times sooner", "8 or more", shared["ratio"], shared["ratio"] >= 8),
    ]  # fmt: skip
    lines = [
        f"Measured on {result['date']}: {machine['processor']} ({machine['kind']}), {machine['threads']} threads; "
        f"other programs kept at most {result['other_load']:.1f} processors busy. {result['model']}, a cache of F16. "
        f"Peer: llama.cpp (llama-cpp-python 0.3.36), built with `{result['peer_build']}`, at the best of four settings "
        f"(`{result['best']}`; tokens a second with 8 clients: {settings}).",
        "",
        "| goal | wanted | measured | reached |",
        "|---|---|---:|---|",
        *(f"| {what} | {wanted} | {got:.2f} | {'yes' if yes else 'no'} |" for what, wanted, got, yes in goals),
        "",
        f"8 clients, each with one request at a time, {clients['eight'][0]['n_requests']} in all; short prompts "
        f"(median {asked['own'][0]} tokens) and answers of {asked['new'][0]} (median); the middle of "
        f"{len(clients['gains'])} turns (llama.cpp, one at a time: one turn). Of the requests, "
        f"{100 * clients['same_as_alone']:.0f} % begin with the same 8 tokens as one at a time, and "
        f"{100 * clients['same_as_peer']:.0f} % with llama.cpp's.",
        "",
        "| | tokens a second | first token, ms: 50th / 95th / 99th percentile | between tokens, ms |",
        "|---|---:|---:|---:|",
    ]
    for label, kind in (
        ("teachllama, one at a time", "one"), ("teachllama, 8 clients", "eight"),
        ("llama.cpp, one at a time", "peer_one"), ("llama.cpp, 8 clients", "peer"),
    ):  # fmt: skip
        row = sorted(clients[kind], key=lambda found: found["tokens_s"])[len(clients[kind]) // 2]
        lines.append(serve_row(label, row))
    lines += [
        "",
        f"{arrived['n_requests']} requests, Poisson arrivals, {arrived['rate']:.2f} a second (70 % of what the slower "
        f"of the two can serve), seed {result['seed']}. Every other one begins with one of {n_texts} texts of "
        f"{n_common} tokens; lengths are log-normal: {own[0]} tokens of its own (sigma {own[1]}, {own[2]} to {own[3]}) "
        f"and {new[0]} generated (sigma {new[1]}, {new[2]} to {new[3]}). Of {arrived['n_prompt']:,} prompt tokens, "
        f"{arrived['prefixes']['reused']:,} were reused, {arrived['peer']['reused']:,} in llama.cpp.",
        "",
        "| | tokens a second | first token, ms: 50th / 95th / 99th percentile | between tokens, ms |",
        "|---|---:|---:|---:|",
        serve_row("teachllama, prefixes", arrived["prefixes"]),
        serve_row("teachllama, no prefixes", arrived["none"]),
        serve_row("llama.cpp, slots keep what they hold", arrived["peer"]),
        "",
        "A prompt of 1,000 tokens arrives while 7 others generate. Between tokens of the others, in ms: the median "
        "before, and the 99th percentile until the prompt's first token.",
        "",
        "| rows of a step | teachllama: before, 99th | ratio | the prompt's first token | llama.cpp: before, 99th "
        "| ratio | the prompt's first token |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for pair in zip(result["long"]["ours"], result["long"]["peer"], strict=True):
        cells = [
            f"{1000 * row['median_s']:.0f}, {1000 * row['during_s'][2]:,.0f} | {row['ratio']:.1f} | "
            f"{row['first_s']:.2f} s"
            for row in pair
        ]
        whole = " (all at once)" if pair[0]["budget"] > 1000 else ""
        lines.append(f"| {pair[0]['budget']:,}{whole} | {' | '.join(cells)} |")
    lines += [
        "",
        "The first token of a prompt whose beginning is there already, as another had it; 12 tokens are its own.",
        "",
        "| shared tokens | teachllama: reused | with, without | times sooner | llama.cpp: reused | with, without "
        "| times sooner |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["shared"]:
        cells = [
            f"{found['reused']} | {milliseconds([found['with']])}, {milliseconds([found['without']])} ms | "
            f"{found['ratio']:.1f}"
            for found in (row["ours"], row["peer"])
        ]
        lines.append(f"| {row['ours']['n_common']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def serve_row(label: str, row: dict[str, Any]) -> str:
    """One row of a table: throughput and delays of one trace."""
    return f"| {label} | {row['tokens_s']:,.0f} | {milliseconds(row['first_s'])} | {milliseconds(row['between_s'])} |"


def picture(result: dict[str, Any], to: Path) -> None:
    """Draws ratios as bars with their spread, one group per model, and the line where both are equal."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    from teachllama.show.style import BLUE, GREEN, INK, ORANGE, PURPLE, RC, SKY, VERMILION

    colours = (BLUE, PURPLE, ORANGE, GREEN, SKY, VERMILION, INK)
    with matplotlib.rc_context(RC):
        models = list(result["models"].items())
        figure = Figure(figsize=(9, 0.9 + 1.75 * len(models)), layout="constrained")
        axes = figure.subplots()
        for m, (_, found) in enumerate(models):
            for t, (task, row) in enumerate(found["rows"].items()):
                y = m + (t - 3) * 0.125
                axes.barh(y, row["ratio"], 0.11, color=colours[t])
                low, high = row["ratio"] - row["ratios"][0], row["ratios"][-1] - row["ratio"]
                axes.errorbar(row["ratio"], y, xerr=[[low], [high]], color=INK, lw=1, capsize=2)
                text = axes.text(row["ratios"][-1] + 0.05, y, f"{row['ratio']:.2f}  {task}", va="center", fontsize=10)
                text.set_path_effects([withStroke(linewidth=3, foreground="white")])
        axes.axvline(1, color=INK, lw=1.2, ls=(0, (5, 2)))
        axes.set_yticks(range(len(models)), [name.replace(" (as published)", "") for name, _ in models])
        axes.invert_yaxis()
        largest = max(row["ratios"][-1] for _, found in models for row in found["rows"].values())
        axes.set_xlim(0, largest * 1.55)
        axes.set_xlabel("times llama.cpp's speed at its better setting (dashed: equal)")
        figure.savefig(to, dpi=120)


def main() -> None:
    """Reads the JSON files and writes the tables, and one picture per kind of processor."""
    measured = DOCS / "measured"
    kinds = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(measured.glob("speed-*.json"))}
    (measured / "speed.inc").write_text("\n".join(map(speed_table, kinds.values())), encoding="utf-8")
    tables = [f"{machine_name(r['machine'])}:\n\n{bandwidth_table(r)}" for r in kinds.values()]
    (measured / "bandwidth.inc").write_text("\n".join(tables), encoding="utf-8")
    arithmetic = [table for r in kinds.values() if (table := arithmetic_table(r))]
    (measured / "arithmetic.inc").write_text("\n".join(arithmetic), encoding="utf-8")
    if second := "\n".join(filter(None, map(second_table, kinds.values()))):
        (measured / "second.inc").write_text(second, encoding="utf-8")
    for name, result in kinds.items():
        picture(result, DOCS / "images" / f"{name}.png")
    fidelity = json.loads((measured / "fidelity.json").read_text(encoding="utf-8"))
    sampling = json.loads((measured / "sampling.json").read_text(encoding="utf-8"))
    (measured / "sampling.inc").write_text(sampling_table(sampling), encoding="utf-8")
    serve = json.loads((measured / "serve.json").read_text(encoding="utf-8"))
    (measured / "serve.inc").write_text(serve_tables(serve), encoding="utf-8")
    (measured / "fidelity.inc").write_text(fidelity_table(fidelity), encoding="utf-8")


if __name__ == "__main__":
    main()
