"""The log-mel spectrogram of a sound, as Whisper's feature extractor makes it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.encoding.spec import SoundSpec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.validation import check_count, check_flag

Floats = npt.NDArray[np.float32]

_LEAST = 1e-10  # power below which a band counts as silent
_RANGE = 8.0  # powers of ten below the loudest band, at which a spectrogram is cut off
_TOP = 8000.0  # Hz, the upper end of the highest band

# Slaney's mel scale: linear up to 1 kHz, which is 15 mel, then 27 mel for each factor of 6.4.
_BREAK_HZ, _BREAK_MEL = 1000.0, 15.0
_STEP = np.log(6.4) / 27.0


def read_sound(value: Any, spec: SoundSpec, sampling_rate: int, *, truncate: bool, where: str = "sound") -> Floats:
    """Check a sound and bring it to the encoder's length, with silence after it.

    Args:
        value: float [samples] from -1 to 1, or int16 [samples]; one channel.
        spec: How sounds become inputs.
        sampling_rate: Samples a second of `value`.
        truncate: Whether a longer sound is cut instead of refused.
        where: What messages call it.

    Returns:
        float32 [spec.samples].

    Raises:
        RequestError: another type, shape or rate, values that are not finite, or too long a sound.
    """
    rate = check_count("sampling_rate", sampling_rate)
    if rate != spec.sampling_rate:
        raise RequestError(f"sampling_rate: {rate}; sounds of {spec.sampling_rate} samples a second are needed")
    wanted = "float[samples] from -1 to 1, or int16[samples], of one channel"
    try:
        sound = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise RequestError(f"{where}: no array; {wanted} is needed") from error
    if sound.ndim != 1 or not sound.size or (sound.dtype.kind != "f" and sound.dtype != np.int16):
        raise RequestError(f"{where}: {sound.dtype}{list(sound.shape)}; {wanted} is needed")
    samples = sound / 32768 if sound.dtype == np.int16 else sound
    if not np.isfinite(samples).all():
        raise RequestError(f"{where}: has values that are not finite; is its file damaged?")
    if len(samples) > spec.samples and not check_flag("truncate", truncate):
        seconds, most = len(samples) / rate, spec.samples / rate
        raise RequestError(
            f"{where}: {seconds:.1f} s; at most {most:g} s are possible, and truncate=True cuts the rest"
        )
    whole = np.zeros(spec.samples, np.float32)
    kept = samples[: spec.samples]
    whole[: len(kept)] = kept
    return whole


def log_mel(samples: Floats, spec: SoundSpec) -> Floats:
    """Return the log-mel spectrogram of a sound, float32 [mels, samples / hop].

    Args:
        samples: float32 [spec.samples].
        spec: How sounds become inputs.

    Reference: WhisperFeatureExtractor of transformers; Radford et al., arXiv:2212.04356, section 2.2.
    """
    half = spec.window // 2
    padded = np.pad(samples.astype(np.float64), half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, spec.window)[:: spec.hop][: len(samples) // spec.hop]
    angle = 2 * np.pi * np.arange(spec.window) / spec.window
    hann = 0.5 - 0.5 * np.cos(angle)
    spectrum = np.fft.rfft(frames * hann, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    bands = mel_filters(spec.window // 2 + 1, spec.mels, spec.sampling_rate).T @ power.T
    logs = np.log10(np.maximum(bands, _LEAST))
    result: Floats = ((np.maximum(logs, logs.max() - _RANGE) + 4.0) / 4.0).astype(np.float32)
    return result


@lru_cache(maxsize=4)
def mel_filters(bins: int, mels: int, sampling_rate: int) -> npt.NDArray[np.float64]:
    """Return what each band takes of each bin of a spectrum: triangles of equal area, float64 [bins, mels].

    Reference: Slaney, "Auditory Toolbox", 1998; `mel_filter_bank(norm="slaney", mel_scale="slaney")` of transformers.
    """
    edges = _hertz(np.linspace(0.0, _mel(min(_TOP, sampling_rate / 2)), mels + 2))
    at = np.linspace(0, sampling_rate // 2, bins)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))


def _mel(hertz: float) -> float:
    linear = hertz * _BREAK_MEL / _BREAK_HZ
    return linear if hertz < _BREAK_HZ else _BREAK_MEL + float(np.log(hertz / _BREAK_HZ)) / _STEP


def _hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel < _BREAK_MEL, mel * _BREAK_HZ / _BREAK_MEL, _BREAK_HZ * np.exp(_STEP * (mel - _BREAK_MEL)))
