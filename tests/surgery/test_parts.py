import pytest
import torch
from safetensors.torch import save_file

from secateur.errors import UnsupportedModelError
from secateur.surgery.copying import CHUNK
from secateur.surgery.parts import parts_kept
from secateur.surgery.shards import read_header

KEPT = [0, 2, 3, 5]


def of_file(path, tensor):
    save_file({"table.weight": tensor}, path)
    return read_header(path)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((300, 12, 5), 1),
        ((6, 7), 0),
        ((70_000, 30), 1),
        ((6 * CHUNK // 4,), 0),
        ((12, CHUNK // 8 + 3), 0),
        ((3, 6 * 50_001), 1),
    ],
    ids=str,
)
def test_the_parts_equal_those_that_torch_selects_in_chunks_of_a_megabyte(tmp_path, dtype, shape, dim):
    values = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = of_file(tmp_path / "t.safetensors", values)
    [kept] = parts_kept(tensors, {"table.weight": dim}, 6, KEPT).values()
    size = shape[dim] // 6
    expected = values.index_select(dim, torch.tensor([layer * size + part for layer in KEPT for part in range(size)]))
    chunks = list(kept.chunks())
    assert (kept.shape, kept.dtype) == (tuple(expected.shape), tensors["table.weight"].dtype)
    assert b"".join(chunks) == expected.view(torch.uint8).numpy().tobytes()
    assert kept.num_bytes == sum(map(len, chunks))
    assert all(len(each) == CHUNK for each in chunks[:-1])


@pytest.mark.parametrize("shape", [(7,), (0, 6), (4, 5)], ids=str)
def test_what_has_no_equal_parts_is_refused(tmp_path, shape):
    tensors = of_file(tmp_path / "t.safetensors", torch.ones(shape))
    with pytest.raises(UnsupportedModelError, match=r"'table\.weight' holds a part for each layer"):
        parts_kept(tensors, {"table.weight": len(shape) - 1}, 6, KEPT)


def test_one_that_is_missing_is_refused():
    with pytest.raises(UnsupportedModelError, match="prune the loaded model"):
        parts_kept({}, {"table.weight": 0}, 6, KEPT)
