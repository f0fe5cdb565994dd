import math

import pytest
import torch

from secateur.data.tokens import TokenBatches
from secateur.errors import DataError
from secateur.evaluation import perplexity as module
from secateur.evaluation.perplexity import perplexity


def windows(sequences: int = 5, tokens: int = 16, batch_size: int = 2) -> TokenBatches:
    ids = torch.randint(128, (sequences, tokens), generator=torch.Generator().manual_seed(1))
    return TokenBatches(ids, batch_size, "made up")


def by_hand(model, ids) -> torch.Tensor:
    """Nats a window, in float64, one token after the other."""
    nll = torch.zeros(len(ids), dtype=torch.float64)
    model = model.double()
    with torch.no_grad():
        for row, sequence in enumerate(ids):
            logits = model(sequence[None]).logits[0]
            for position in range(len(sequence) - 1):
                nll[row] -= torch.log(torch.softmax(logits[position], 0)[sequence[position + 1]])
    return nll


def test_equals_a_float64_computation_by_hand(model):
    batches = windows()
    result = perplexity(model, batches)
    nll = by_hand(model, batches.input_ids)
    assert result.nll == pytest.approx(nll.sum().item() / (5 * 15), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.nll))
    assert result.stderr == pytest.approx((nll / 15).std().item() / math.sqrt(5), rel=1e-3)
    assert (result.num_tokens, result.window) == (75, 16)


def sliding(ids: list[int], window: int, stride: int) -> list[tuple[int, list[int], int]]:
    """(window, what the model may read, the token it is to predict), token by token: the definition."""
    pairs = []
    for start in range(0, len(ids) - window + 1, stride):
        new = range(1, window) if start == 0 else range(max(window - stride, 1), window)
        pairs += [(start // stride, ids[start : start + place], ids[start + place]) for place in new]
    return pairs


@pytest.mark.parametrize("stride", [1, 5, 8, 15, 16])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_with_a_stride_only_new_tokens_count_as_in_float64_by_hand(model, stride, batch_size):
    stream = torch.randint(128, (60,), generator=torch.Generator().manual_seed(2))
    batches = TokenBatches(stream.unfold(0, 16, stride), batch_size, "made up", overlap=16 - stride)
    result = perplexity(model, batches)
    model.double()
    nats: dict[int, list[float]] = {}
    for number, context, target in sliding(stream.tolist(), 16, stride):
        with torch.no_grad():
            logits = model(torch.tensor([context])).logits[0, -1]
        nats.setdefault(number, []).append(-torch.log_softmax(logits, 0)[target].item())
    total, count = sum(map(sum, nats.values())), sum(map(len, nats.values()))
    mean, windows_ = total / count, len(nats)
    influence = [sum(part) - mean * len(part) for part in nats.values()]
    variance = sum((part / count) ** 2 for part in influence) * windows_ / (windows_ - 1)
    assert result.nll == pytest.approx(mean, rel=1e-6)
    assert result.stderr == pytest.approx(math.sqrt(variance), rel=1e-4)
    assert (result.num_tokens, result.window, result.stride) == (count, 16, stride)
    # no token twice, and none left out between the first and the last; without overlap each window's first is
    assert count == (windows_ - 1) * min(stride, 15) + 15


@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_batch_size_does_not_matter(model, batch_size):
    assert perplexity(model, windows().rebatch(batch_size)).nll == pytest.approx(
        perplexity(model, windows()).nll, rel=1e-7
    )


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_chunks_do_not_matter(model, monkeypatch, rows):
    whole = perplexity(model, windows())
    monkeypatch.setattr(module, "_CHUNK_BYTES", rows * 4 * 128)
    assert perplexity(model, windows()) == whole


def test_uniform_logits_give_the_vocabulary_size(model):
    torch.nn.init.zeros_(model.lm_head.weight)
    result = perplexity(model, windows())
    assert result.perplexity == pytest.approx(128, rel=1e-6)
    assert result.stderr == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_are_upcast(model):
    exact = perplexity(model, windows()).nll
    assert perplexity(model.to(torch.bfloat16), windows()).nll == pytest.approx(exact, rel=1e-2)


def test_one_window_has_no_standard_error(model):
    assert math.isnan(perplexity(model, windows(sequences=1)).stderr)


def test_a_broken_model_has_infinite_perplexity_and_no_crash(model):
    torch.nn.init.constant_(model.model.norm.weight, 1e6)
    assert perplexity(model, windows()).perplexity == math.inf


def test_modes_are_given_back_also_on_error(model):
    model.train()
    model.model.layers[1].eval()
    before = [part.training for part in model.modules()]
    perplexity(model, windows())
    assert [part.training for part in model.modules()] == before
    with pytest.raises(IndexError):
        perplexity(model, TokenBatches(torch.full((1, 4), 999), 1, "beyond the vocabulary"))
    assert [part.training for part in model.modules()] == before
    assert torch.is_grad_enabled()


def test_windows_of_one_token_are_refused(model):
    with pytest.raises(DataError, match="choose 2 tokens or more"):
        perplexity(model, windows(tokens=1))


def test_progress_counts_windows(model):
    from contextlib import contextmanager

    seen = []

    class Listener:
        @contextmanager
        def track(self, description, total):
            seen.append((description, total))
            yield seen.append

        def note(self, message): ...

    perplexity(model, windows(), progress=Listener(), description="held-out text")
    assert seen == [("held-out text", 5), 2, 2, 1]
