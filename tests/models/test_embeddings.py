"""Embeddings are kept bit for bit, within their limit, and a broken file is only a miss."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `models` is not installed")

from stillreel.models.embeddings import EmbeddingCache, key_of, padded, real_tokens  # noqa: E402


def _rows(value: float, tokens: int = 4):
    return {"rows": torch.full((tokens, 8), value, dtype=torch.bfloat16)}


def test_what_was_stored_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {"rows": torch.randn(5, 8).bfloat16(), "other": torch.randn(2, 3).t()}
    EmbeddingCache(tmp_path / "new").store("key", tensors)
    found = EmbeddingCache(tmp_path / "new").load("key")
    assert found is not None
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert found["rows"].dtype == torch.bfloat16


def test_an_unknown_key_is_a_miss(tmp_path: Path) -> None:
    assert EmbeddingCache(tmp_path).load("key") is None
    assert EmbeddingCache(tmp_path / "none").load("key") is None


@pytest.mark.parametrize("keep", [0, 7, 60, -1], ids=["empty", "header", "half", "last-byte"])
def test_a_broken_file_is_a_miss_and_can_be_stored_again(tmp_path: Path, keep: int) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.store("key", _rows(1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    assert cache.load("key") is None
    cache.store("key", _rows(2))
    found = cache.load("key")
    assert found is not None
    assert torch.equal(found["rows"], _rows(2)["rows"])


def test_the_least_recently_used_go_when_the_limit_is_reached(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path).store("size", _rows(0))
    size = (tmp_path / "size.safetensors").stat().st_size
    (tmp_path / "size.safetensors").unlink()
    cache = EmbeddingCache(tmp_path, limit_bytes=2 * size)
    for age, key in ((200, "older"), (100, "newer")):
        cache.store(key, _rows(1))
        then = (tmp_path / f"{key}.safetensors").stat().st_mtime - age
        os.utime(tmp_path / f"{key}.safetensors", (then, then))
    assert cache.load("older") is not None  # so it is the recent one now
    cache.store("third", _rows(1))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["older", "third"]


def test_a_folder_that_takes_nothing_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = EmbeddingCache(tmp_path / "file")
    cache.store("key", _rows(1))
    assert cache.load("key") is None


def test_keys_differ_by_version_by_text_and_by_where_one_text_ends() -> None:
    keys = [key_of("1", "ab", "c"), key_of("1", "a", "bc"), key_of("2", "ab", "c"), key_of("1")]
    assert len(set(keys)) == len(keys)
    assert key_of("1", "ab", "c") == keys[0]
    assert {len(key) for key in keys} == {32}


@pytest.mark.parametrize("tokens", [0, 1, 5, 8])
def test_padding_is_dropped_and_put_back_on_the_left_as_zeros(tokens: int) -> None:
    mask = torch.zeros(1, 8, dtype=torch.long)
    mask[0, 8 - tokens :] = 1
    embeds = torch.randn(1, 8, 3)
    rows = real_tokens(embeds, mask)
    assert rows.shape == (tokens, 3)
    back, mask_back = padded(rows, 8)
    assert torch.equal(mask_back, mask)
    assert torch.equal(back, embeds * mask[..., None])
