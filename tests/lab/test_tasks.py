from __future__ import annotations

import math

import pytest
import torch
from tests.each import each

from gaussiank_lab.tasks import ImageClassification, LanguageModelling, SpeechRecognition, edit_distance


def test_images_are_judged_by_right_answers() -> None:
    task = ImageClassification()
    output = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = (torch.tensor([0, 0, 0]),)
    each = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1)), math.log(1 + math.exp(-3))]
    assert task.loss(output, labels).item() == pytest.approx(sum(each) / 3)
    first, rest = task.score(output[:1], (labels[0][:1],)), task.score(output[1:], (labels[0][1:],))
    assert task.evaluation(first + rest) == {"loss": pytest.approx(sum(each) / 3), "accuracy": pytest.approx(2 / 3)}


def test_language_is_judged_by_nats_a_token() -> None:
    task = LanguageModelling("word")
    output = torch.zeros(2, 3, 4)
    output[..., 1] = math.log(2)
    targets = (torch.ones(2, 3, dtype=torch.int64),)
    expected = math.log(5 / 2)
    assert task.metric.unit == "nats/word"
    assert not task.metric.higher_is_better
    assert task.loss(output, targets).item() == pytest.approx(expected)
    values = task.evaluation(task.score(output, targets))
    assert values == {"loss": pytest.approx(expected), "perplexity": pytest.approx(2.5)}


def test_perplexity_of_an_exploded_loss_is_infinite() -> None:
    sums = torch.tensor([1e4, 1.0, 1e4, 1.0], dtype=torch.float64)
    assert LanguageModelling("byte").evaluation(sums)["perplexity"] == math.inf


def test_speech_is_judged_by_edits() -> None:
    task = SpeechRecognition()
    heard = torch.tensor([[1, 1, 0, 1, 2, 0], [3, 3, 3, 0, 2, 2]])  # 1 1 2, and 3: its last two frames are padding
    log_probs = torch.full((6, 2, 4), -20.0)
    log_probs.scatter_(2, heard.T.unsqueeze(2), 0.0)
    output = torch.log_softmax(log_probs, 2), torch.tensor([6, 4])
    targets = torch.tensor([[1, 1, 2], [3, 2, 0]]), torch.tensor([3, 2])
    score = task.score(output, targets)
    assert score[1:].tolist() == [2, 1, 5]  # utterances; one edit; five characters
    assert task.evaluation(score)["error_rate"] == pytest.approx(0.2)


def test_ctc_loss_is_minus_the_log_of_all_alignments() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.5, 0.1], [0.3, 0.3, 0.4]])
    output = probs.log().unsqueeze(1), torch.tensor([3])
    # every way to write "1" in three frames: 1__, _1_, __1, 11_, _11, 111
    ways = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 1, 1)]
    total = sum(float(probs[0, a] * probs[1, b] * probs[2, c]) for a, b, c in ways)
    loss = SpeechRecognition().loss(output, (torch.tensor([[1]]), torch.tensor([1])))
    assert loss.item() == pytest.approx(-math.log(total), rel=1e-5)


@each(
    ("first", "second", "edits"),
    [([], [], 0), ([], [1, 2], 2), ([1, 2], [], 2), ([1, 2, 3], [1, 3], 1), ([1, 2, 3], [3, 2, 1], 2), ([1], [2], 1)],
)
def test_edit_distance(first: list[int], second: list[int], edits: int) -> None:
    assert edit_distance(first, second) == edits
