"""Dense packing: exact, of the size the formula says, and in the bytes the layout says."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.packing import pack_codes, packed_bytes, unpack_codes

BITS = range(1, 9)


def random_codes(bits: int, out_features: int, in_features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(bits * 1000 + in_features)
    return torch.randint(
        0, 1 << bits, (out_features, in_features), generator=generator, dtype=torch.uint8
    )


@pytest.mark.parametrize("bits", BITS)
def test_unpacking_gives_the_codes_back_for_every_number_of_inputs(bits: int) -> None:
    for in_features in range(1, 68):
        codes = random_codes(bits, 1 + in_features % 5, in_features)
        packed = pack_codes(codes, bits)
        assert packed.dtype == torch.uint8
        assert packed.shape == (packed_bytes(bits, *codes.shape),)
        assert torch.equal(unpack_codes(packed, bits, *codes.shape), codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("end", ["lowest", "highest"])
def test_extreme_codes_survive(bits: int, end: str) -> None:
    codes = torch.full((3, 19), 0 if end == "lowest" else (1 << bits) - 1, dtype=torch.uint8)
    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, 3, 19), codes)


@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_the_little_endian_word_of_eight_codes(bits: int) -> None:
    codes = random_codes(bits, 1, 8)
    word = sum(int(code) << (bits * position) for position, code in enumerate(codes[0]))
    assert bytes(pack_codes(codes, bits).tolist()) == word.to_bytes(bits, "little")


def test_rows_longer_than_a_working_chunk_are_packed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(3, 21, 40)
    whole = pack_codes(codes, 3)
    monkeypatch.setattr("blockwright.numerics.packing.CHUNK_WORDS", 12)
    assert torch.equal(pack_codes(codes, 3), whole)
    assert torch.equal(unpack_codes(whole, 3, 21, 40), codes)


def test_inputs_that_are_not_contiguous_are_packed_by_value() -> None:
    codes = random_codes(5, 16, 24)
    assert torch.equal(pack_codes(codes.t(), 5), pack_codes(codes.t().contiguous(), 5))


def test_a_wrong_number_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="17 bytes are not 2 x 8 codes of 4 bits"):
        unpack_codes(torch.zeros(17, dtype=torch.uint8), 4, 2, 8)
