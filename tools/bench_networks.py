"""The tables and pictures of docs/results/schemes.md: four networks, every scheme, ranks free and aligned.

    python tools/bench_networks.py export      dense models and their low-rank versions, by trp-export, random weights
    python tools/bench_networks.py count       ARM instructions of each (trp-bench --device arm); also on a busy machine
    python tools/bench_networks.py time        latency ratios, one and two threads; needs a quiet machine
    python tools/bench_networks.py pictures    trp-bench --profile --plot for one version of each network
    python tools/bench_networks.py tables      docs/results/schemes/*.md from the results of the other steps

Each step continues where it was stopped, and stops by itself after --minutes. Results are in runs/bench_networks.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
from common import Listed, macs_ratio

ROOT = Path(__file__).parents[1]
WORK = ROOT / "runs" / "bench_networks"
DOCS = ROOT / "docs" / "results" / "schemes"
ASSETS = ROOT / "docs" / "assets"
SCHEMES = ("channel", "spatial", "spatial-t", "pointwise", "decouple", "auto")
RATIOS = (1.5, 2.0, 3.0)
ALIGNS = ("1", "auto")
THREADS = (1, 2)
BUDGET_S = 15.0
ARM = "cortex-a76"


@dataclass(frozen=True)
class Network:
    """A torchvision architecture, and the layers left alone: VGG-16's linear layers hold 0.8 % of its MACs."""

    name: str
    schemes: tuple[str, ...] = SCHEMES
    skip: tuple[str, ...] = ()


NETWORKS = {
    network.name: network
    for network in (
        Network("resnet18"),
        Network("mobilenet_v2", schemes=("auto",)),  # its dense convs are 1x1, for which all schemes are one
        Network("resnet50"),
        Network("vgg16", skip=("classifier*",)),
    )
}


@dataclass(frozen=True)
class Version:
    """One low-rank version of a network, or the dense one (scheme empty)."""

    network: Network
    scheme: str
    align: str
    ratio: float

    @property
    def stem(self) -> str:
        return f"{self.network.name}-{self.scheme}-{self.align}-{self.ratio:g}" if self.scheme else self.network.name

    @property
    def model(self) -> Path:
        return WORK / "models" / f"{self.stem}.onnx"

    @property
    def facts(self) -> Path:
        return WORK / "facts" / f"{self.stem}.json"


def dense(network: Network) -> Version:
    return Version(network, "", "", 1.0)


def versions(network: Network) -> Iterator[Version]:
    for scheme in network.schemes:
        for align in ALIGNS:
            for ratio in RATIOS:
                yield Version(network, scheme, align, ratio)


class Clock:
    """Tells when the given minutes are over."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def over(self) -> bool:
        if time.monotonic() < self.end:
            return False
        print("the minutes are over; run again to continue", flush=True)
        return True


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1))
    part.replace(path)


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def export(networks: Sequence[Network], clock: Clock) -> None:
    from trp_export import compress
    from trp_export.errors import TrpError
    from trp_export.options import Benchmark, Calibration, Options, Selection
    from trp_export.rules import Macs

    for network in networks:
        base = dense(network)
        if not base.model.is_file():
            export_dense(base)
        for version in versions(network):
            if clock.over():
                return
            if version.facts.is_file():
                continue
            align: int | Literal["auto"] = "auto" if version.align == "auto" else int(version.align)
            options = Options(
                rule=Macs(version.ratio),
                calibration=Calibration("none"),
                selection=Selection(scheme=version.scheme, skip=network.skip, align=align),
                benchmark=Benchmark(run=False),
                output=version.model,
            )
            try:
                report = compress(base.model, options)
            except TrpError as error:
                write(version.facts, {"refused": str(error)})
                print(f"{version.stem}: {error}", flush=True)
                continue
            assert report.after is not None
            write(version.facts, {"macs_before": report.before.macs, "macs_after": report.after.macs})
            print(f"{version.stem}: MACs / {macs_ratio(report):.2f}", flush=True)


def export_dense(version: Version) -> None:
    import torch
    import torchvision

    version.model.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = torchvision.models.get_model(version.network.name, weights=None).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(1, 3, 224, 224),), version.model, dynamo=True, external_data=False, verbose=False
        )


def count(networks: Sequence[Network], clock: Clock) -> None:
    from trp_export.bench import Settings, compare, to_json

    for network in networks:
        for version in (dense(network), *versions(network)):
            result = WORK / "counts" / f"{version.stem}.json"
            if result.is_file() or not version.model.is_file():
                continue
            if clock.over():
                return
            found = compare([version.model], device=f"arm:{ARM}", processes=1, settings=Settings(timeout_s=600))
            values = to_json(found, samples=False)
            write(result, values)
            counts = values["models"][0]["counts"]
            print(f"{version.stem}: {counts['instructions'] / 1e6:.0f} M, {values['seconds']:.0f} s", flush=True)


def measure(networks: Sequence[Network], clock: Clock) -> None:
    """Dense beside the three ratios of one scheme and alignment, in one go; one thread first."""
    from trp_export.bench import compare

    for threads in THREADS:
        for network in networks:
            for scheme in network.schemes:
                for align in ALIGNS:
                    if clock.over():
                        return
                    measure_group(network, threads, scheme, align, compare)


def measure_group(network: Network, threads: int, scheme: str, align: str, compare: Any) -> None:
    result = WORK / "times" / f"{network.name}-{scheme}-{align}-t{threads}.json"
    group = [Version(network, scheme, align, ratio) for ratio in RATIOS]
    group = [version for version in group if version.model.is_file()]
    if result.is_file() or not group:
        return
    from trp_export.bench import to_json

    models = [version.model for version in (dense(network), *group)]
    found = compare(models, threads=threads, budget_s=BUDGET_S)
    values = to_json(found, samples=False)
    write(result, values)
    ratios = [f"{model['ratio']['value']:.2f}x" for model in values["models"][1:]]
    print(f"{result.stem}: {' '.join(ratios)}, {values['seconds']:.0f} s; {'; '.join(values['noise'])}", flush=True)


def pictures(networks: Sequence[Network], clock: Clock) -> None:
    from trp_export.cli.bench import run

    ASSETS.mkdir(parents=True, exist_ok=True)
    for network in networks:
        picture = ASSETS / f"schemes-{network.name}.svg"
        version = Version(network, "auto", "auto", 2.0)
        if clock.over():
            return
        if not picture.is_file() and version.model.is_file():
            run([str(dense(network).model), str(version.model), "--profile", "--plot", str(picture)])


def tables(networks: Sequence[Network], clock: Clock) -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    for network in networks:
        rows = [row for version in versions(network) if (row := table_row(version))]
        if not rows or not (timed(network) or (WORK / "counts" / f"{network.name}.json").is_file()):
            continue
        picture = ASSETS / f"schemes-{network.name}.svg"
        text = [f"# {network.name}", "", *where(network), *TABLE_HEAD, *rows, ""]
        if picture.is_file():
            text += [f"![latency and layers](../../assets/{picture.name})", "", CAPTION, ""]
            dense_name, small = dense(network).model.name, Version(network, "auto", "auto", 2.0).model.name
            text += [f"    trp-bench {dense_name} {small} --profile --plot {network.name}.svg", ""]
        (DOCS / f"{network.name}.md").write_text("\n".join(text))
        print(DOCS / f"{network.name}.md")


CAPTION = (
    "Dense beside scheme auto, aligned, MACs / 2, in a run of its own at another hour than the table's, when the "
    "machine was faster or slower ([by how much](../schemes.md#how-runs-differ)):"
)
TABLE_HEAD = (
    "| scheme | ranks | MACs | 1 thread | quotient | 2 threads | quotient | ARM instructions | quotient |",
    "|---|---|---|---|---|---|---|---|---|",
)


def table_row(version: Version) -> str:
    """One version's line, a dash for what was not measured. Empty where there is no such version."""
    facts = read(version.facts)
    if not facts:
        return ""
    ranks = "free" if version.align == "1" else "aligned"
    if "refused" in facts:
        return f"| {version.scheme} | {ranks} | {version.ratio:g}x cannot be reached |" + " |" * 6
    macs = facts["macs_before"] / facts["macs_after"]
    cells = [cell for threads in THREADS for cell in time_cells(version, threads, macs)]
    cells += count_cells(version, macs)
    return f"| {version.scheme} | {ranks} | {macs:.2f}x | {' | '.join(cells)} |"


def time_cells(version: Version, threads: int, macs: float) -> tuple[str, str]:
    values = read(WORK / "times" / f"{version.network.name}-{version.scheme}-{version.align}-t{threads}.json")
    models = values["models"] if values else []
    ratio = next((model["ratio"] for model in models if model["model"] == version.model.name), None)
    if ratio is None:
        return "-", "-"
    return f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]", f"{ratio['value'] / macs:.2f}"


def count_cells(version: Version, macs: float) -> tuple[str, str]:
    before, after = (read(WORK / "counts" / f"{one.stem}.json") for one in (dense(version.network), version))
    if not before or not after:
        return "-", "-"
    ratio = instructions(before) / instructions(after)
    return f"{ratio:.2f}x", f"{ratio / macs:.2f}"


def instructions(values: Any) -> int:
    return int(values["models"][0]["counts"]["instructions"])


def where(network: Network) -> list[str]:
    """What was measured where, from the results themselves."""
    lines = []
    skipped = f", leaving {', '.join(network.skip)} alone" if network.skip else ""
    lines += [f"torchvision's {network.name}, random weights, 1x3x224x224{skipped}; made by"]
    skip = "".join(f" --skip '{pattern}'" for pattern in network.skip)
    lines += [
        "",
        f"    trp-export {network.name}.onnx --macs RATIO --scheme SCHEME --align 1|auto{skip} --calib none --no-bench",
        "",
    ]
    for threads in THREADS:
        found = sorted((WORK / "times").glob(f"{network.name}-*-t{threads}.json"))
        if found:
            lines += [describe([read(path) for path in found], threads), ""]
    if not timed(network):
        lines += ["Latencies have not been measured yet.", ""]
    counted = read(WORK / "counts" / f"{network.name}.json")
    if counted:
        environment = counted["environment"]
        total = instructions(counted) / 1e6
        lines += [
            f"ARM instructions: {environment['cpu']}, {environment['system']}, onnxruntime "
            f"{environment['onnxruntime']}, one inference; the dense network takes {total:.0f} million. "
            f"`trp-bench MODEL --device arm:{ARM}`",
            "",
        ]
    return lines


def timed(network: Network) -> list[Path]:
    """The results of the step `time`."""
    return sorted((WORK / "times").glob(f"{network.name}-*-t?.json"))


def describe(results: list[Any], threads: int) -> str:
    environment = results[0]["environment"]
    summaries = [values["models"][0]["summary"] for values in results]
    middle = sorted(summary["p50_ms"] for summary in summaries)[len(summaries) // 2]
    fewest = min(summary["processes"] for summary in summaries)
    return (
        f"{threads} thread{'s' if threads > 1 else ''}: {environment['cpu']}, {environment['logical_cores']} cores, "
        f"{environment['system']}, "
        f"onnxruntime {environment['onnxruntime']}; 99 % intervals from at least {fewest} processes per model; "
        f"the dense network takes {middle:.4g} ms. `trp-bench DENSE VERSION --threads {threads} --budget {BUDGET_S:g}`"
    )


STEPS = {"export": export, "count": count, "time": measure, "pictures": pictures, "tables": tables}


@click.command()
@click.argument("step", type=click.Choice(list(STEPS)))
@click.option("--networks", "names", type=Listed(choices=NETWORKS), default=tuple(NETWORKS))
@click.option("--schemes", type=Listed(choices=SCHEMES), default=SCHEMES, help="For export, count and time.")
@click.option("--minutes", default=600.0)
def main(step: str, names: tuple[str, ...], schemes: tuple[str, ...], minutes: float) -> None:
    """One step of the tables and pictures of docs/results/schemes.md."""
    networks = [NETWORKS[name] for name in names]
    if step in ("export", "count", "time"):
        networks = [replace(net, schemes=tuple(s for s in net.schemes if s in schemes)) for net in networks]
    STEPS[step](networks, Clock(minutes))


if __name__ == "__main__":
    main()
