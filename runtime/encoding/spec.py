"""What a bundle says of an encoder beside its graph: the dataclasses behind `encoder.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adaptc.runtime.bundle.strict_json import dumps, loads
from adaptc.runtime.errors import BundleError

Activation = Literal["softmax", "sigmoid", "none"]

_MOST_TOKENS = 1 << 20
_MOST_IDS = 1 << 28
_MOST_SAMPLES = 1 << 30


@dataclass(frozen=True, slots=True)
class TextSpec:
    """How texts become an encoder's inputs.

    Attributes:
        max_tokens: The most tokens of a text, special ones included.
        vocab_size: How many token ids there are.
        pad_token_id: What fills a row.
        prompts: What is written before a text, by name.
        default_prompt: The name of the one that is used where nobody names one; "" for none.
    """

    max_tokens: int
    vocab_size: int
    pad_token_id: int
    prompts: dict[str, str]
    default_prompt: str


@dataclass(frozen=True, slots=True)
class SoundSpec:
    """How sounds become an encoder's inputs: a log-mel spectrogram, as WhisperFeatureExtractor makes it.

    Attributes:
        sampling_rate: Samples a second.
        samples: How many samples each sound is brought to, with silence.
        window: Samples that one spectrum is of, under Hann's window.
        hop: Samples from one spectrum to the next.
        mels: Bands of a spectrum, up to 8 kHz, on Slaney's mel scale.
    """

    sampling_rate: int
    samples: int
    window: int
    hop: int
    mels: int


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """How an encoder is asked; one of `text` and `sound` is set.

    Attributes:
        text: Of an encoder of texts.
        sound: Of an encoder of sounds.
        labels: Names of its labels, in the order of its logits; empty for one that gives vectors or states.
        activation: What makes scores of logits.
    """

    text: TextSpec | None
    sound: SoundSpec | None
    labels: tuple[str, ...]
    activation: Activation

    def to_json(self) -> bytes:
        """The content of `encoder.json`."""
        return dumps(self).encode()

    @property
    def gives(self) -> str:
        """What it makes of its inputs, for messages; "vectors" of texts are what a server answers with."""
        if self.text is None:
            return "states of sounds"
        return "scores of labels" if self.labels else "vectors"


def read_encoder_spec(content: bytes, where: str) -> EncoderSpec:
    """Read `encoder.json`.

    Raises:
        BundleError: it is damaged, or has a size that cannot be.
    """
    try:
        spec = loads(EncoderSpec, content)
    except BundleError as error:
        raise BundleError(f"{where}: {error}; compile again") from error
    if (spec.text is None) == (spec.sound is None):
        raise BundleError(f"{where}: one of text and sound is needed; compile again")
    if (text := spec.text) is not None:
        sizes = [("text.max_tokens", text.max_tokens, _MOST_TOKENS), ("text.vocab_size", text.vocab_size, _MOST_IDS)]
        if not 0 <= text.pad_token_id < text.vocab_size or (text.default_prompt and not text.prompts):
            raise BundleError(f"{where}: text: another padding or default prompt than there is; compile again")
    else:
        assert spec.sound is not None
        sound = spec.sound
        named = (("samples", sound.samples), ("window", sound.window), ("hop", sound.hop), ("mels", sound.mels))
        sizes = [(f"sound.{name}", size, _MOST_SAMPLES) for name, size in named]
        sizes.append(("sound.sampling_rate", sound.sampling_rate, _MOST_SAMPLES))
    for name, size, most in sizes:
        if not 1 <= size <= most:
            raise BundleError(f"{where}: {name}: {size}; 1 to {most} is needed: compile again")
    return spec
