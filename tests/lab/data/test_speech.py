"""Small recordings in AN4-style manifests, and the stand-in for them."""

from __future__ import annotations

import math
import re
import struct
import wave
from pathlib import Path

import pytest
import torch
from tests.each import each

from gaussiank_lab.data import DATASETS, Wanted
from gaussiank_lab.data.speech import BINS, CHARACTERS, spectrogram


def write_wav(path: Path, seconds: float = 0.2, hertz: float = 1000.0, rate: int = 16_000, width: int = 2) -> None:
    samples = [round(20_000 * math.sin(2 * math.pi * hertz * i / rate)) for i in range(round(seconds * rate))]
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(b"".join(struct.pack("<h", s)[2 - width :] for s in samples))


def write(place: Path, absolute: bool = False) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 3), ("val", 1)):
        rows = []
        for i in range(n):
            write_wav(place / f"{part}{i}.wav", seconds=0.2 + 0.1 * i)
            (place / f"{part}{i}.txt").write_text(f"{'AB C'[: i + 2]}\n")
            start = f"{place}/" if absolute else ""
            rows.append(f"{start}{part}{i}.wav,{start}{part}{i}.txt")
        (place / f"an4_{part}_manifest.csv").write_text("\n".join(rows) + "\n")


@each(("folder", "absolute"), [("", False), ("an4", True)])
def test_utterances_are_read_and_padded(tmp_path: Path, folder: str, absolute: bool) -> None:
    write(tmp_path / folder, absolute)
    data = DATASETS["an4"].load(Wanted(tmp_path))
    assert (len(data.train), len(data.test), data.outputs) == (3, 1, 29)
    batch = data.train.batch(torch.tensor([0, 2]))
    spectrograms, frames = batch.inputs
    assert spectrograms.shape == (2, BINS, 41)
    assert frames.tolist() == [21, 41]  # 0.2 s and 0.4 s, every 10 ms
    assert spectrograms[0, :, 21:].abs().max() == 0
    spoken, lengths = batch.targets
    assert lengths.tolist() == [2, 4]
    assert ["".join(CHARACTERS[c] for c in row) for row in spoken.tolist()] == ["AB__", "AB C"]


def test_a_tone_is_loudest_in_its_bin() -> None:
    samples = torch.sin(2 * math.pi * 2000 * torch.arange(16_000) / 16_000)
    loudness = spectrogram(samples)
    assert loudness[:, 50].argmax() == 40  # 50 Hz a bin
    assert loudness.mean().item() == pytest.approx(0, abs=1e-4)
    assert loudness.std().item() == pytest.approx(1, abs=1e-4)


def test_a_damaged_recording_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    data = DATASETS["an4"].load(Wanted(tmp_path))
    path = tmp_path / "train1.wav"
    whole = path.read_bytes()
    for content, sentence in (
        (b"", "be a whole wav file, got an error ("),
        (b"RIFF no sound", "be a whole wav file, got an error ("),
        (whole[:-100], "hold 4800 samples, and one at least, got 4750"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path} must {sentence}")):
            data.train.batch(torch.tensor([1]))


@each(("rate", "width"), [(8_000, 2), (16_000, 1)])
def test_a_recording_of_another_kind_is_named(tmp_path: Path, rate: int, width: int) -> None:
    write(tmp_path)
    write_wav(tmp_path / "train1.wav", rate=rate, width=width)
    sentence = f"train1.wav must be of 16000 Hz, 16 bit, 1 channel, got {rate} Hz, {8 * width} bit, 1 channels. Convert"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        DATASETS["an4"].load(Wanted(tmp_path)).train.batch(torch.tensor([1]))


@each(("content", "got"), [(b"ROOM 12", "'1'"), (b" \n", "none")])
def test_a_transcript_of_other_signs_is_named(tmp_path: Path, content: bytes, got: str) -> None:
    write(tmp_path)
    (tmp_path / "train0.txt").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"train0.txt must hold letters, spaces and apostrophes, got {got}\. Write it"
    ):
        DATASETS["an4"].load(Wanted(tmp_path)).train.batch(torch.tensor([0]))


def test_a_manifest_that_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data_dir must hold an4, got .* without \*train_manifest\.csv\. Put an4"
    ):
        DATASETS["an4"].load(Wanted(tmp_path))
    write(tmp_path)
    manifest = tmp_path / "an4_train_manifest.csv"
    manifest.write_text("train0.wav,train0.txt\nnowhere.wav,train0.txt\n")
    with pytest.raises(
        FileNotFoundError, match=r"nowhere\.wav must exist, since line 2 of .*an4_train_manifest\.csv names"
    ):
        DATASETS["an4"].load(Wanted(tmp_path))
    manifest.write_text("train0.wav,train0.txt\ntrain1.wav\n")
    with pytest.raises(ValueError, match=r"must name a wav and a text file in line 2, got 'train1\.wav'\."):
        DATASETS["an4"].load(Wanted(tmp_path))
    manifest.write_text("\n")
    with pytest.raises(ValueError, match=r"an4_train_manifest\.csv must name utterances, got none\."):
        DATASETS["an4"].load(Wanted(tmp_path))


def test_the_stand_in_is_the_same_every_time_and_its_sounds_tell_characters_apart() -> None:
    first, again = DATASETS["synthetic-speech"].load(Wanted()), DATASETS["synthetic-speech"].load(Wanted())
    chosen = torch.tensor([3, 400])
    one, other = first.train.batch(chosen), again.train.batch(chosen)
    for tensor, twin in zip((*one.inputs, *one.targets), (*other.inputs, *other.targets), strict=True):
        assert torch.equal(tensor, twin)
    assert first.digest == again.digest
    spectrograms, frames = one.inputs
    spoken, lengths = one.targets
    assert frames.tolist() == [8 * length for length in lengths.tolist()]
    assert (spoken[0, : lengths[0]] > 0).all()
    means = spectrograms[0, :, : frames[0]].unflatten(1, (-1, 8)).mean(2)  # [bins, characters]
    different = spoken[0, 0] != spoken[0, 1]
    assert different
    assert torch.corrcoef(means.T)[0, 1].abs() < 0.5
