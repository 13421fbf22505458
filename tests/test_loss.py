"""The summed loss equals a float64 sum written out by hand, and Hugging Face's own mean times the token count."""

import math

import pytest
import torch
from conftest import fake_batch, tiny_whisper

from data.labels import IGNORE_INDEX
from train.loss import TrainingObjective, chunked_nll, summed_nll


def _reference(logits, labels, smoothing):
    """Sum over positions of (1 - s) * -log p[label] + s * mean_v -log p[v], in Python floats."""
    total = 0.0
    for row, label in zip(logits.double().flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
        if label == IGNORE_INDEX:
            continue
        top = max(row)
        log_sum = top + math.log(sum(math.exp(x - top) for x in row))
        log_p = [x - log_sum for x in row]
        total -= (1 - smoothing) * log_p[label] + smoothing * sum(log_p) / len(log_p)
    return total


def _example():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 5, 7, generator=generator)
    labels = torch.randint(0, 7, (3, 5), generator=generator)
    labels[0, 3:] = IGNORE_INDEX
    labels[2, 0] = IGNORE_INDEX
    return logits, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equals_the_sum_written_out(smoothing):
    logits, labels = _example()
    found = summed_nll(logits, labels, label_smoothing=smoothing)
    assert found.dtype is torch.float32
    assert float(found) == pytest.approx(_reference(logits, labels, smoothing), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_summed_in_fp32(dtype):
    logits, labels = _example()
    logits = logits.to(dtype)
    assert float(summed_nll(logits, labels)) == pytest.approx(_reference(logits, labels, 0.0), rel=1e-6)


def test_a_sum_beyond_fp16_stays_finite():
    logits = torch.full((40, 100, 2), 0.0, dtype=torch.float16)
    logits[..., 0] = 60.0
    labels = torch.ones(40, 100, dtype=torch.long)
    assert float(summed_nll(logits, labels)) == pytest.approx(4000 * 60.0, rel=1e-6)  # FP16 ends at 65504


def test_nothing_but_masked_labels_is_zero_with_zero_gradient():
    """A mean would be NaN."""
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = summed_nll(logits, torch.full((2, 3), IGNORE_INDEX), label_smoothing=0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (6,)])
def test_shapes_that_disagree_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits \(2, 3, 4\) and labels .* disagree in \(B, T\)"):
        summed_nll(torch.randn(2, 3, 4), torch.zeros(shape, dtype=torch.long))


def test_objective_equals_hugging_faces_mean_times_tokens():
    whisper = tiny_whisper().eval()
    batch = fake_batch(3, num_frames=3000)
    with torch.no_grad():
        ours = TrainingObjective(whisper)(batch.input_features, batch.decoder_input_ids, batch.labels)
        theirs = whisper(
            input_features=batch.input_features, decoder_input_ids=batch.decoder_input_ids, labels=batch.labels
        ).loss
    num_tokens = int((batch.labels != IGNORE_INDEX).sum())
    assert num_tokens == batch.num_label_tokens < batch.labels.numel()
    assert float(ours) == pytest.approx(float(theirs) * num_tokens, rel=1e-6)


def test_objective_smooths_as_it_was_told():
    whisper = tiny_whisper().eval()
    batch = fake_batch(2)
    with torch.no_grad():
        outputs = whisper(input_features=batch.input_features, decoder_input_ids=batch.decoder_input_ids)
        found = TrainingObjective(whisper, label_smoothing=0.2)(
            batch.input_features, batch.decoder_input_ids, batch.labels
        )
    assert float(found) == pytest.approx(_reference(outputs.logits, batch.labels, 0.2), rel=1e-5)


@pytest.mark.parametrize("wrong", [-0.1, 1.0])
def test_smoothing_outside_its_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"trainer\.label_smoothing=.* must lie in 0 to 1"):
        TrainingObjective(tiny_whisper(), label_smoothing=wrong)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 1000])
def test_chunks_equal_the_plain_loss_and_its_gradients(chunk_tokens, smoothing):
    torch.manual_seed(0)
    rows, weight, labels = torch.randn(97, 16), torch.randn(500, 16), torch.randint(0, 500, (97,))
    results = []
    for chunked in (False, True):
        r, w = rows.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunked:
            loss = chunked_nll(r, w, labels, chunk_tokens=chunk_tokens, label_smoothing=smoothing)
        else:
            loss = summed_nll((r @ w.T)[None], labels[None], label_smoothing=smoothing)
        (3.0 * loss).backward()
        results.append((loss.detach(), r.grad, w.grad))
    for plain, found in zip(*results, strict=True):
        assert float((found - plain).norm() / plain.norm()) <= 1e-6


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_chunks_under_autocast_are_as_near_to_fp32_as_the_plain_loss(dtype, limit):
    torch.manual_seed(0)
    rows, weight, labels = torch.randn(64, 32), 0.3 * torch.randn(300, 32), torch.randint(0, 300, (64,))
    exact = rows.double().requires_grad_()
    reference = summed_nll_double(exact, weight.double(), labels)
    reference.backward()
    r, w = rows.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = chunked_nll(r, w, labels, chunk_tokens=10)
    loss.backward()
    assert loss.dtype is r.grad.dtype is w.grad.dtype is torch.float32
    assert float(loss) == pytest.approx(float(reference), rel=limit)
    assert float((r.grad.double() - exact.grad).norm() / exact.grad.norm()) <= limit


def summed_nll_double(rows, weight, labels):
    return torch.nn.functional.cross_entropy(rows @ weight.T, labels, reduction="sum")


@pytest.mark.parametrize("chunk_tokens", [0, 4])
def test_the_number_of_tokens_given_or_counted_changes_nothing(chunk_tokens):
    whisper = tiny_whisper().train()
    batch = fake_batch(3)
    objective = TrainingObjective(whisper, chunk_tokens=chunk_tokens)
    arguments = (batch.input_features, batch.decoder_input_ids, batch.labels)
    counted = objective(*arguments)
    assert torch.equal(counted, objective(*arguments, num_label_tokens=batch.num_label_tokens))
    assert float(counted) == pytest.approx(float(TrainingObjective(whisper)(*arguments)), rel=1e-6)
    with torch.no_grad():
        assert float(objective(*arguments)) == pytest.approx(float(counted), rel=1e-6)


def test_an_update_without_label_tokens_is_zero_with_a_graph():
    batch = fake_batch(2).blank()
    loss = TrainingObjective(tiny_whisper(), chunk_tokens=4)(
        batch.input_features, batch.decoder_input_ids, batch.labels, num_label_tokens=0
    )
    loss.backward()
    assert float(loss) == 0.0
