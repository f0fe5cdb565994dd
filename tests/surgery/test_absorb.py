import copy

import numpy as np
import pytest
import torch

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RunError, UnsupportedModelError
from secateur.progress import Silent
from secateur.surgery.absorb import _ALPHAS, absorb_, runs
from tiny_families import build, token_ids

IDS = token_ids(batch=6, tokens=24)


def batches(ids=IDS, size=2):
    return TokenBatches(ids, size, "test")


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_equal_weights(model, before, but=()):
    for name, value in model.state_dict().items():
        if name not in but:
            assert torch.equal(value, before[name]), name


def stream(model, layers, skipped=(), taps=(), ids=IDS):
    """Outputs of `layers`, and (input, output) of the modules in `taps`, as float64 (tokens, channels)."""
    seen, decoder = [], Decoder(model)
    handles = [m.register_forward_hook(lambda _, a, out: seen.append((a[0], out))) for m in taps]
    with torch.no_grad(), decoder.bypass(skipped), decoder.capture(layers) as found:
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()

    def flat(x):
        return x.reshape(-1, x.shape[-1]).double().numpy()  # OPT gives its projection (tokens, channels) already

    return [flat(found.outputs[layer]) for layer in layers], [(flat(a), flat(b)) for a, b in seen]


def ridge(features, wanted, pull):
    """`min_D |features·D − wanted|² + pull·|D|²` by numpy's least squares on the stacked system."""
    size = features.shape[1]
    rows = np.vstack([features, np.sqrt(pull) * np.eye(size)])
    return np.linalg.lstsq(rows, np.vstack([wanted, np.zeros((size, wanted.shape[1]))]), rcond=None)[0]


def expected_of(model, dense, down, first, last, earlier, form, alpha):
    """The new weight and bias of `down` in float64, and the relative errors before and after."""
    (wanted,), _ = stream(dense, [last])
    (given,), ((a, m),) = stream(model, [first - 1], list(earlier), [down])
    root = 1 / np.sqrt(np.square(wanted).mean(1, keepdims=True))  # a token counts by 1 / mean(X²)
    features = root * (m if form == "map" else a)
    delta = ridge(features, root * (wanted - given), alpha * np.square(features).sum(0).mean())
    weight = down.weight.detach().double().numpy()  # (out, in); Conv1D (in, out)
    weight = weight if weight.shape == (delta.shape[1], a.shape[1]) else weight.T
    bias = None if getattr(down, "bias", None) is None else down.bias.detach().double().numpy()
    if form == "map":
        weight, bias = weight + delta.T @ weight, None if bias is None else bias + bias @ delta
    else:
        weight = weight + delta.T
    scale = np.square(root * wanted).sum()
    left = (root * (wanted - given), root * (wanted - given) - features @ delta)
    errors = [np.square(difference).sum() / scale for difference in left]
    return weight, bias, errors


def down_of(family, model, layer):
    return {
        "llama": lambda: model.model.layers[layer].mlp.down_proj,
        "gpt_neox": lambda: model.gpt_neox.layers[layer].mlp.dense_4h_to_h,
        "opt": lambda: model.model.decoder.layers[layer].fc2,
    }[family]()


@pytest.mark.parametrize("alpha", [0.01, 0.3])
@pytest.mark.parametrize("form", ["map", "projection"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_one_run_equals_numpy_least_squares_in_float64(family, form, alpha):
    model = build(family)
    if family == "opt":
        torch.nn.init.normal_(down_of(family, model, 1).bias, generator=torch.Generator().manual_seed(2))
    dense, before = copy.deepcopy(model), weights(model)
    down = down_of(family, model, 1)
    weight, bias, errors = expected_of(dense, dense, down_of(family, dense, 1), 2, 3, [], form, alpha)
    (report,) = absorb_(Decoder(model), [3, 2], batches(), form=form, alpha=alpha)
    np.testing.assert_allclose(down.weight.detach().numpy(), weight, rtol=1e-4, atol=2e-5)
    if bias is not None:
        np.testing.assert_allclose(down.bias.detach().numpy(), bias, rtol=1e-4, atol=2e-5)
    assert (report["layers"], report["into"]) == ([2, 3], 1)
    np.testing.assert_allclose([report["error_before"], report["error_after"]], errors, rtol=1e-4)
    changed = [name for name, value in model.named_parameters() if value is down.weight or value is down.bias]
    assert_equal_weights(model, before, but=changed)


@pytest.mark.parametrize("form", ["map", "projection"])
def test_gpt2_whose_weights_lie_transposed_equals_numpy_least_squares(form):
    model = build("gpt2")
    dense = copy.deepcopy(model)
    weight, bias, _ = expected_of(dense, dense, dense.transformer.h[2].mlp.c_proj, 3, 3, [], form, 0.1)
    absorb_(Decoder(model), [3], batches(), form=form, alpha=0.1)
    found = model.transformer.h[2].mlp.c_proj
    np.testing.assert_allclose(found.weight.detach().numpy().T, weight, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(found.bias.detach().numpy(), bias, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("form", ["map", "projection"])
def test_two_runs_equal_two_regressions_the_second_on_the_model_as_the_first_left_it(form):
    model = build("llama")
    dense, half = copy.deepcopy(model), copy.deepcopy(model)
    first, _, _ = expected_of(half, dense, half.model.layers[0].mlp.down_proj, 1, 1, [], form, 0.1)
    with torch.no_grad():
        half.model.layers[0].mlp.down_proj.weight.copy_(torch.from_numpy(first))
    second, _, errors = expected_of(half, dense, half.model.layers[3].mlp.down_proj, 4, 4, [1], form, 0.1)
    report = absorb_(Decoder(model), [1, 4], batches(), form=form, alpha=0.1)
    for layer, weight in ((0, first), (3, second)):
        found = model.model.layers[layer].mlp.down_proj.weight.detach().numpy()
        np.testing.assert_allclose(found, weight, rtol=1e-3, atol=1e-4)
    assert [run["into"] for run in report] == [0, 3]
    np.testing.assert_allclose([report[1]["error_before"], report[1]["error_after"]], errors, rtol=1e-3)


@pytest.mark.parametrize("form", ["map", "projection"])
def test_the_reported_error_equals_that_measured_on_the_changed_model(form):
    model = build("llama")
    dense = copy.deepcopy(model)
    (report,) = absorb_(Decoder(model), [2, 3], batches(), form=form, alpha=0.1)
    (wanted,), _ = stream(dense, [3])
    (given,), _ = stream(model, [1])
    measured = (np.square(wanted - given).mean(1) / np.square(wanted).mean(1)).mean()
    assert report["error_after"] == pytest.approx(measured, rel=1e-4)
    assert report["error_after"] < report["error_before"]


@pytest.mark.parametrize("form", ["map", "projection"])
def test_an_infinite_pull_changes_nothing(form):
    model = build("llama")
    before = weights(model)
    (report,) = absorb_(Decoder(model), [2], batches(), form=form, alpha=1e30)
    assert_equal_weights(model, before)
    assert report["error_after"] == pytest.approx(report["error_before"], rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1e-12])
@pytest.mark.parametrize("form", ["map", "projection"])
def test_an_effect_that_is_linear_in_the_features_is_absorbed_without_error(form, alpha):
    """Layer 2 adds `c` times what the down-projection of layer 1 gave: `W' = (1 + c)·W` does the same."""
    model = build("llama")
    given = []
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _, __, out: given.append(out))
    model.model.layers[2].forward = lambda hidden_states, **_: hidden_states + 0.7 * given[-1]
    before = model.model.layers[1].mlp.down_proj.weight.detach().clone()
    (report,) = absorb_(Decoder(model), [2], batches(), form=form, alpha=alpha)
    assert report["error_before"] > 1e-3
    assert abs(report["error_after"]) < 1e-8 * report["error_before"]
    torch.testing.assert_close(model.model.layers[1].mlp.down_proj.weight, 1.7 * before, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["map", "projection"])
def test_the_chosen_pull_equals_that_of_the_least_error_on_the_last_eighth(form):
    """The oracle fits by numpy on seven windows, measures on the eighth, and fits the winner on all eight."""
    model, ids = build("llama"), token_ids(batch=8, tokens=24)
    down = model.model.layers[1].mlp.down_proj
    (wanted,), _ = stream(model, [2], ids=ids)
    (given,), ((a, m),) = stream(model, [1], taps=[down], ids=ids)
    root = 1 / np.sqrt(np.square(wanted).mean(1, keepdims=True))
    features, target = root * (m if form == "map" else a), root * (wanted - given)
    fit, held_out = slice(0, 7 * 24), slice(7 * 24, None)

    def error(alpha):
        delta = ridge(features[fit], target[fit], alpha * np.square(features[fit]).sum(0).mean())
        return np.square(target[held_out] - features[held_out] @ delta).sum()

    best = min(_ALPHAS, key=error)
    delta = ridge(features, target, best * np.square(features).sum(0).mean())
    weight = down.weight.detach().double().numpy()
    expected = weight + delta.T @ weight if form == "map" else weight + delta.T
    (report,) = absorb_(Decoder(model), [2], batches(ids, size=1), form=form)
    assert report["alpha"] == best
    np.testing.assert_allclose(down.weight.detach().numpy(), expected, rtol=1e-3, atol=5e-5)


def test_a_layer_that_does_nothing_leaves_the_weights_byte_for_byte():
    model = build("llama")
    model.model.layers[2].forward = lambda hidden_states, **_: hidden_states
    before = weights(model)
    (report,) = absorb_(Decoder(model), [2], batches(), alpha=0.1)
    assert_equal_weights(model, before)
    assert report["error_before"] == report["error_after"] == 0


@pytest.mark.parametrize("form", ["map", "projection"])
def test_fewer_tokens_than_features_and_no_pull_equals_the_smallest_exact_change(form):
    model = build("llama")
    dense = copy.deepcopy(model)
    ids = IDS[:1, :8]
    (report,) = absorb_(Decoder(model), [2], batches(ids), form=form, alpha=0.0)
    assert abs(report["error_after"]) < 1e-6 * report["error_before"]
    change = model.model.layers[1].mlp.down_proj.weight - dense.model.layers[1].mlp.down_proj.weight
    assert change.isfinite().all()
    assert torch.linalg.matrix_rank(change) <= 8


def test_the_batch_size_does_not_matter_up_to_float64_rounding():
    found = []
    for size in (1, 6):
        model = build("llama")
        absorb_(Decoder(model), [2], batches(size=size), alpha=0.1)
        found.append(model.model.layers[1].mlp.down_proj.weight.detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropped", [[0], [0, 1, 2]])
def test_a_run_at_the_front_has_nowhere_to_go_and_changes_nothing(dropped):
    model = build("llama")
    before = weights(model)
    report = absorb_(Decoder(model), dropped, batches())
    assert report == [{"layers": [0, dropped[-1]], "into": None}]
    assert_equal_weights(model, before)


def test_after_a_run_at_the_front_the_next_run_equals_its_regression_by_numpy():
    model = build("llama")
    dense = copy.deepcopy(model)
    weight, _, _ = expected_of(dense, dense, dense.model.layers[2].mlp.down_proj, 3, 3, [0], "projection", 0.1)
    report = absorb_(Decoder(model), [0, 3], batches(), alpha=0.1)
    assert [run["into"] for run in report] == [None, 2]
    found = model.model.layers[2].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_allclose(found, weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2", "qwen2_moe"])
def test_a_family_without_a_plain_last_projection_is_refused_and_unchanged(family):
    model = build(family, **({"mlp_only_layers": [0]} if family == "qwen2_moe" else {}))
    before = weights(model)
    with pytest.raises(UnsupportedModelError, match=r"cannot absorb into layer [03]: ") as caught:
        absorb_(Decoder(model), [1, 4], batches())  # into layer 0, dense in the mixture of experts, and into layer 3
    assert "\n" not in str(caught.value)
    assert_equal_weights(model, before)


class FailsAt(Silent):
    """Progress that raises when the n-th batch is done."""

    def __init__(self, batch, error):
        self.left, self.error = batch, error

    def track(self, *args, **kwargs):
        outer = super().track(*args, **kwargs)

        class Tracked:
            def __enter__(inner):  # noqa: N805
                outer.__enter__()
                return self.advance

            def __exit__(inner, *exc):  # noqa: N805
                return outer.__exit__(*exc)

        return Tracked()

    def advance(self, *_):
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("batch", [1, 4, 6])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_interrupt_leaves_the_weights_and_hooks_as_they_were(family, batch, error):
    model = build(family)
    before = weights(model)
    with pytest.raises(error):
        absorb_(Decoder(model), [1, 4], batches(), progress=FailsAt(batch, error))
    assert_equal_weights(model, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_activations_that_are_not_finite_are_an_error_and_the_weights_stay():
    model = build("llama")
    with torch.no_grad():
        model.model.layers[4].mlp.down_proj.weight[0, 0] = torch.inf
    before = weights(model)
    with pytest.raises(RunError, match="not finite"):
        absorb_(Decoder(model), [1, 4], batches())
    assert_equal_weights(model, before)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [([], []), ([3], [(3, 3)]), ([5, 1, 2, 2, 0], [(0, 2), (5, 5)]), (range(4), [(0, 3)])],
)
def test_runs_equal_the_runs_by_hand(layers, expected):
    assert runs(layers) == expected
