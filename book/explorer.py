"""Write book/static/explorer.html: drag the context of a network and see its answers change. From a recorded run.

Run it again when book/results/hidden_context_explorer.jsonl has changed: `.venv/bin/python book/explorer.py`.
The block needs nothing but itself: no network, no other file. Without JavaScript it shows six frames.
"""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import wmlib as wm
from wmlib.lab.runs import read_rows

ROOT = Path(__file__).resolve().parent
TEMPLATE = ROOT / "explorer.template.html"
START = 6  # the digit that is shown first


def sprite(images: np.ndarray) -> str:
    """Images of shape (digits, height, width) in [0, 1], side by side, as a PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(np.rint(np.concatenate([*images], axis=1) * 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def frames(upright: np.ndarray, count: int = 6) -> str:
    """What a reader without JavaScript sees: the first digit, fixed, at a few contexts."""
    turns, cells = upright.shape[1], []
    for i in range(count):
        p = upright[START, i * turns // count]
        likely = ", ".join(f"{digit}: {p[digit] / 10:.0f} %" for digit in np.argsort(-p)[:3] if p[digit] >= 10)
        disc = f'<span class="wmx-disc wmx-small" style="--k:{START}" role="img" aria-label="the same {START}"></span>'
        cells.append(f"<li>{disc}<span>told {i * 360 // count}°<br>{likely}</span></li>")
    return f'<ul class="wmx-frames">{"".join(cells)}</ul>'


def build(row: dict, images: np.ndarray) -> str:
    """The block of HTML, from a row of `hidden_context_explorer` and the images of its test digits."""
    curves = row["curves"]
    answers = {k: np.rint(1000 * np.array(curves[k])).astype(int) for k in ("upright", "turned")}
    plane = np.array(curves["ellipse"])
    plane = np.rint(80 * (plane - (plane.max(0) + plane.min(0)) / 2) / np.ptp(plane, axis=0).max() * 2).astype(int)
    data = {k: v.tolist() for k, v in answers.items()} | {"ellipse": plane.tolist(), "start": START}
    choices = "".join(
        f'<label><input type="radio" name="wmx-digit" value="{k}" aria-label="digit {k}"{" checked" * (k == START)}>'
        f'<span class="wmx-disc wmx-tiny" style="--k:{k}"></span></label>'
        for k in range(len(images))
    )
    bars = "".join(
        f'<li><span class="wmx-name">{k}</span><span class="wmx-track"><span class="wmx-bar"></span></span>'
        f'<span class="wmx-percent"></span></li>'
        for k in range(answers["upright"].shape[-1])
    )
    parts = {
        "SPRITE": sprite(images),
        "COUNT": str(len(images)),
        "LAST": str(answers["upright"].shape[1] - 1),
        "OUTLINE": " ".join(f"{x},{-y}" for x, y in plane.tolist()),
        "CHOICES": choices,
        "BARS": bars,
        "FRAMES": frames(answers["upright"]),
        "DATA": json.dumps(data, separators=(",", ":")),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace(f"@{name}@", value)
    return text


def recorded() -> str:
    """The block for the recorded run."""
    (row,) = [r for r in read_rows(ROOT / "results/hidden_context_explorer.jsonl") if r["preset"] == "cpu"][-1:]
    images = wm.load_dataset("mnist5k", "test").inputs[np.array(row["curves"]["rows"])]
    return build(row, images[:, 0])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "static/explorer.html"
    target.write_text(recorded(), encoding="utf-8")
