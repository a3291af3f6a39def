"""Draw book/static/opening.svg, the figure of the first page and of the README, from the recorded runs.

Run it again when book/results/rotated_images.jsonl has changed: `.venv/bin/python book/opening.py`.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from wmlib.lab import figures
from wmlib.lab.runs import read_rows

ROOT = Path(__file__).resolve().parent
METHODS = {
    "ellipse, no metric": "ellipse, no metric",
    "ellipse": "ellipse",
    "embed": "embedding",
    "film": "FiLM",
    "concat": "concatenation",
    "none": "no conditioning",
}


def draw(rows: list[dict], file: Path) -> None:
    """Left, one ellipse of weights as it learns; right, accuracy against the fraction of angles seen."""
    figures.use_style()
    rows = [row for row in rows if row["preset"] == "cpu"]
    fig, (weights, accuracy) = plt.subplots(1, 2, figsize=(8.4, 3.6), width_ratios=[1, 1.15], layout="constrained")
    fig.get_layout_engine().set(wspace=0.08)  # so that the label of the colours is not taken for an axis

    (run,) = [r for r in rows if (r["config"]["method"], r["config"]["fraction"], r["seed"]) == ("ellipse", 1.0, 0)]
    turn = np.linspace(0, 1, 181)
    basis = np.stack([np.ones_like(turn), np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)], axis=1)
    plane = np.array(run["curves"]["plane"])
    for i, points in enumerate(plane):
        weights.plot(*(basis @ points).T, color=plt.get_cmap("Greys")(0.25 + 0.65 * i / (len(plane) - 1)), lw=1.3)
    last = basis @ plane[-1]
    dots = weights.scatter(*last[:-1:9].T, c=turn[:-1:9] * 360, cmap="twilight", zorder=3, edgecolor="k", lw=0.4)
    fig.colorbar(dots, ax=weights, label="angle of the image (degrees)", ticks=range(0, 361, 90))
    weights.set(title="one network for every angle", xticks=[], yticks=[], aspect="equal")
    weights.set(xlabel="first principal direction", ylabel="second principal direction")

    seeds = sorted({row["seed"] for row in rows})
    fractions = sorted({row["config"]["fraction"] for row in rows})
    for method, label in METHODS.items():
        found = {
            (r["seed"], r["config"]["fraction"]): r["metrics"]["all"] for r in rows if r["config"]["method"] == method
        }
        whole = [seed for seed in seeds if all((seed, f) in found for f in fractions)]
        values = [[100 * found[seed, f] for f in fractions] for seed in whole]
        figures.accuracy_curve(accuracy, fractions, values, method=method, label=label)
    accuracy.set(xscale="log", xticks=fractions, xlabel="fraction of angles seen in training")
    accuracy.set_xticklabels([f"{f:g}" for f in fractions])
    accuracy.minorticks_off()
    accuracy.set(title="test accuracy over all angles (%)")
    accuracy.legend(fontsize=8)
    fig.savefig(file, metadata={"Date": None})
    plt.close(fig)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "static/opening.svg"
    draw(read_rows(ROOT / "results/rotated_images.jsonl"), target)
