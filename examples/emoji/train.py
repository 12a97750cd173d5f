"""Train the fusion of examples/emoji; the encoders stay as they are.

    apt-get install espeak-ng
    make emoji

which fetches the encoders and the pictures and runs this file. Settings are chosen by cross-validation on the training
rows, and so were the layers that features come from and `TRUST`; the other rows are looked at when all is fixed. Writes
`emoji.safetensors`, `profile.npz` and `test.npz` beside itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import data
import numpy as np
import torch
from data import HERE
from model import CLASSES, PARTS, WIDTHS, Emoji
from safetensors.torch import save_file
from weights import load_encoders

TRAIN = 1300
FOLDS = 5
LEFT_OUT = {"image": 0.35, "text": 0.35, "speech": 0.5}
"""Chance that a modality is left out of a training example; one always stays."""
SHARES = {
    ("image", "text", "speech"): 0.6,
    ("image", "text"): 0.2,
    ("text", "speech"): 0.05,
    ("image",): 0.05,
    ("text",): 0.1,
    ("speech",): 0.02,
}
"""How much each subset counts in the votes."""
TRUST = {"image": 1.0, "text": 1.0, "speech": 0.3}
"""Variance that a modality's features are brought to: the votes of what has less of it are held smaller."""
INPUTS = {"image": ("pixels",), "text": ("input_ids", "attention_mask"), "speech": ("wave",)}


@dataclass(frozen=True, slots=True)
class Setting:
    """What cross-validation chooses.

    Attributes:
        strength: Of the votes: the inverse weight of their squares, as scikit-learn's C.
        epochs: Of the transformer; with 0 the votes stay alone.
    """

    strength: float
    epochs: int


STRENGTHS, EPOCHS = (3.0, 10.0, 30.0, 100.0), (0, 4, 12)
"""What it chooses from."""


def features(model: Emoji, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """What the frozen encoders say; kept in features.npz until the model changes."""
    kept = HERE / "features.npz"
    if not kept.exists() or kept.stat().st_mtime < (HERE / "model.py").stat().st_mtime:
        found = {}
        for name, inputs in INPUTS.items():
            began = time.perf_counter()
            parts = []
            with torch.no_grad():
                for start in range(0, len(arrays["labels"]), 32):
                    given = [torch.from_numpy(arrays[each][start : start + 32]) for each in inputs]
                    parts.append(model.encoders[name](*given))
            found[name] = torch.cat(parts).numpy()
            print(f"{name}: {found[name].shape}, {time.perf_counter() - began:.0f} s", flush=True)
        np.savez(kept, **found)
    with np.load(kept) as file:
        return {name: torch.from_numpy(file[name]) for name in WIDTHS}


def chosen(model: Emoji, seen: dict[str, torch.Tensor], labels: torch.Tensor) -> Setting:
    """The setting with most rows right, all modalities there, in folds that it was not fitted on."""
    begin = state(model)
    fold = torch.arange(len(labels)) % FOLDS  # rows are in random order
    right = {Setting(strength, epochs): 0.0 for strength in STRENGTHS for epochs in EPOCHS}
    for strength in STRENGTHS:
        for index in range(FOLDS):
            known, held = ({name: x[rows] for name, x in seen.items()} for rows in (fold != index, fold == index))
            model.load_state_dict(begin, strict=False)
            x = start(model, known, labels[fold != index], strength)
            voting = state(model)
            for epochs in EPOCHS:
                torch.manual_seed(index)
                model.load_state_dict(voting, strict=False)
                fit_transformer(model, x, labels[fold != index], epochs)
                share = accuracy(model, held, labels[fold == index], tuple(WIDTHS))
                right[Setting(strength, epochs)] += share / FOLDS
        for epochs in EPOCHS:
            print(f"{Setting(strength, epochs)}: {right[Setting(strength, epochs)]:.3f} in its folds", flush=True)
    model.load_state_dict(begin, strict=False)
    return max(right, key=lambda each: right[each])


def state(model: Emoji) -> dict[str, torch.Tensor]:
    """A copy of all that is trained."""
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("encoders")}


def start(
    model: Emoji, seen: dict[str, torch.Tensor], labels: torch.Tensor, strength: float
) -> dict[str, torch.Tensor]:
    """Fit the votes, with a transformer that adds nothing; the scaled features."""
    for name, x in seen.items():
        model.mean[name].data = x.mean(0)
        # Each layer that features come from weighs the same, however wide it is.
        parts = torch.cat([torch.full((width,), len(PARTS[name]) * width) for width in PARTS[name]])
        model.scale[name].data = (TRUST[name] / parts) ** 0.5 / (x.std(0) + 1e-3)
    scaled = {name: model.scaled(name, each).detach() for name, each in seen.items()}
    fit_votes(model, scaled, labels, strength)
    torch.nn.init.zeros_(model.fusion.head.weight)
    torch.nn.init.zeros_(model.fusion.head.bias)
    return scaled


def fit_votes(model: Emoji, x: dict[str, torch.Tensor], labels: torch.Tensor, strength: float) -> None:
    """Linear votes for all subsets together: convex, so the start is as good as a linear probe."""
    weights = {name: torch.zeros(CLASSES, WIDTHS[name], requires_grad=True) for name in WIDTHS}
    there, absent = ({n: torch.zeros(CLASSES, requires_grad=True) for n in WIDTHS} for _ in range(2))
    flat = [*weights.values(), *there.values(), *absent.values()]
    optimizer = torch.optim.LBFGS(flat, max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        votes = {name: x[name] @ weights[name].T + there[name] for name in WIDTHS}
        total = sum((w**2).sum() for w in weights.values()) / (2 * strength * len(labels))
        for subset, share in SHARES.items():
            logits = sum(votes[n] if n in subset else absent[n].expand(len(labels), -1) for n in WIDTHS)
            total = total + share * torch.nn.functional.cross_entropy(logits, labels)
        total.backward()
        return total

    optimizer.step(loss)
    for name in WIDTHS:
        model.fusion.vote[name].weight.data = weights[name].detach()
        model.fusion.vote[name].bias.data = there[name].detach()
        # The shortest vector whose vote is what an absent modality's should be.
        model.missing[name].data = torch.linalg.pinv(weights[name].detach()) @ (absent[name] - there[name]).detach()


def fit_transformer(model: Emoji, x: dict[str, torch.Tensor], labels: torch.Tensor, epochs: int) -> None:
    """What the votes leave over; their weights stay."""
    if not epochs:
        return
    torch.set_num_threads(1)  # these matrices are too small for two
    fusion = model.fusion
    trained = [p for name, p in fusion.named_parameters() if not name.startswith("vote")]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.1)
    steps = epochs * (len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=steps)
    fusion.train()
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,))
        gone = {name: torch.rand(64) < share for name, share in LEFT_OUT.items()}
        every = torch.stack(list(gone.values())).all(0)
        given = {
            name: torch.where((gone[name] & ~every)[:, None], model.missing[name].detach(), x[name][rows])
            for name in WIDTHS
        }
        loss = torch.nn.functional.cross_entropy(fusion(given), labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def accuracy(model: Emoji, seen: dict[str, torch.Tensor], labels: torch.Tensor, subset: tuple[str, ...]) -> float:
    with torch.no_grad():
        given = {
            name: model.scaled(name, x) if name in subset else model.missing[name].expand(len(x), -1)
            for name, x in seen.items()
        }
        return float((model.fusion(given).argmax(1) == labels).float().mean())


def main() -> None:
    torch.manual_seed(0)
    arrays = data.read()
    model = Emoji().eval()
    load_encoders(model)
    seen, labels = features(model, arrays), torch.from_numpy(arrays["labels"])
    order = np.random.RandomState(0).permutation(len(labels))
    train, rest = order[:TRAIN], order[TRAIN:]
    began = time.perf_counter()
    known = {name: x[train] for name, x in seen.items()}
    setting = chosen(model, known, labels[train])
    torch.manual_seed(0)
    fit_transformer(model, start(model, known, labels[train], setting.strength), labels[train], setting.epochs)
    print(f"fusion: {setting}, {time.perf_counter() - began:.0f} s")
    for subset in (("image",), ("text",), ("speech",), ("image", "text"), ("text", "speech"), tuple(WIDTHS)):
        found = accuracy(model, {name: x[rest] for name, x in seen.items()}, labels[rest], subset)
        print(f"{'+'.join(subset):20} {found:.3f}")
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, HERE / "emoji.safetensors")
    half = len(rest) // 2
    for name, rows in (("profile", rest[:half]), ("test", rest[half:])):
        np.savez(HERE / f"{name}.npz", **{each: array[rows] for each, array in arrays.items()})


if __name__ == "__main__":
    main()
