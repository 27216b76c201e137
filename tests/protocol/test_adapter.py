"""The adapter file has one spelling, and safetensors reads it."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from small_adapters import BASE_MODEL_ID, small_adapter

from citrate_node.protocol.adapter import (
    AdapterConfig,
    AdapterLimits,
    AdapterWeights,
    decode_adapter,
    from_tensors,
    module_path,
)
from citrate_node.protocol.tensors import FormatError, Manifest

LIMITS = AdapterLimits(size_bytes_max=1 << 20)


def reason_of(data: bytes, limits: AdapterLimits = LIMITS) -> str:
    with pytest.raises(FormatError) as refused:
        decode_adapter(data, limits)
    return refused.value.reason


def edited(data: bytes, change: dict[str, str]) -> bytes:
    """The file with texts in its header replaced and the header's length set anew."""
    size = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + size].decode()
    for before, after in change.items():
        assert before in header
        header = header.replace(before, after)
    return struct.pack("<Q", len(header)) + header.encode() + data[8 + size :]


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 20))
def test_a_file_decodes_to_the_weights_it_was_made_from(seed: int, scale: float) -> None:
    adapter = small_adapter(seed, scale=scale)
    assert decode_adapter(adapter.encode(), LIMITS) == adapter


def test_safetensors_reads_the_file_and_its_metadata() -> None:
    adapter = small_adapter(3)
    data = adapter.encode()
    loaded = safetensors.numpy.load(data)
    assert sorted(loaded) == sorted(adapter.tensors())
    for name, tensor in adapter.tensors().items():
        assert np.array_equal(loaded[name], tensor)
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert header["__metadata__"] == {
        "alpha": "4",
        "base_model_id": BASE_MODEL_ID.hex(),
        "format": "pt",
        "rank": "2",
        "targets": "q_proj,v_proj",
    }


def test_the_file_does_not_depend_on_the_order_in_which_tensors_are_given() -> None:
    adapter = small_adapter(5)
    backwards = dict(reversed(adapter.tensors().items()))
    assert from_tensors(adapter.config, backwards).encode() == adapter.encode()


def test_float32_tensors_come_back_unchanged_once_they_are_on_the_grid() -> None:
    adapter = small_adapter(7, scale=30)
    again = from_tensors(adapter.config, adapter.tensors())
    assert again == adapter


def test_selecting_and_replacing_one_factor_leaves_the_other() -> None:
    adapter = small_adapter(1)
    only_b = adapter.manifest.subset("lora_B")
    doubled = adapter.with_values(only_b, adapter.select(only_b) * 2)
    assert np.array_equal(doubled.select(only_b), adapter.select(only_b) * 2)
    only_a = adapter.manifest.subset("lora_A")
    assert np.array_equal(doubled.select(only_a), adapter.select(only_a))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({'"rank":"2"': '"rank":"3"'}, "tensor_shape"),
        ({'"rank":"2"': '"rank":"02"'}, "header_malformed"),
        ({'"rank":"2"': '"rank":2'}, "header_malformed"),
        ({'"alpha":"4"': '"alpha":"0"'}, "header_malformed"),
        ({'"alpha":"4"': '"alpha": "4"'}, "header_not_canonical"),
        ({'"format":"pt"': '"format":"np"'}, "header_not_canonical"),
        ({'"format":"pt",': '"format":"pt","more":"",'}, "header_not_canonical"),
        ({'"F32"': '"F16"'}, "header_not_canonical"),
        ({"q_proj,v_proj": "q_proj"}, "targets"),
        ({"q_proj,v_proj": "v_proj,q_proj"}, "targets"),
        ({"q_proj,v_proj": "k_proj,q_proj,v_proj"}, "targets"),
        ({BASE_MODEL_ID.hex(): "00"}, "base_model_id"),
        ({BASE_MODEL_ID.hex(): "zz"}, "header_malformed"),
        ({"base_model.model.model": "base_model.model.../model"}, "tensor_name"),
        ({"layers.0.q_proj.lora_B": "layers.0.q_projx.lora_B"}, "factor_missing"),
        ({'"shape":[2,7]': '"shape":[2,7.0]'}, "tensor_shape"),
        ({'"shape":[2,7]': '"shape":[2,true]'}, "tensor_shape"),
        ({'"shape":[2,7]': '"shape":[2,99999999999]'}, "tensor_shape"),
        ({'"shape":[2,7]': '"shape":[2,700]'}, "header_not_canonical"),
        ({'{"__metadata__"': '{"__metadata":1,"__metadata__"'}, "header_malformed"),
        ({'{"__metadata__"': '["__metadata__"'}, "header_malformed"),
        ({"}}": "}} "}, "header_not_canonical"),
    ],
)
def test_a_header_with_one_thing_changed_is_refused_by_name(change: dict[str, str], reason: str) -> None:
    assert reason_of(edited(small_adapter().encode(), change)) == reason


def test_values_that_no_canonical_file_holds_are_refused_by_name() -> None:
    data = small_adapter().encode()
    for value, reason in [
        (np.nan, "non_finite"),
        (np.inf, "non_finite"),
        (128.0, "too_large"),
        (-0.0, "off_grid"),
        (2.0**-25, "off_grid"),
        (0.1, "off_grid"),
    ]:
        assert reason_of(data[:-4] + np.float32(value).tobytes()) == reason


def test_files_beyond_the_limits_are_refused_before_they_are_read() -> None:
    data = small_adapter(rank=2).encode()
    assert reason_of(data, AdapterLimits(size_bytes_max=len(data) - 1)) == "file_too_large"
    assert reason_of(data, AdapterLimits(1 << 20, tensors_max=3)) == "too_many_tensors"
    assert reason_of(data, AdapterLimits(1 << 20, rank_max=1)) == "rank_too_large"
    assert reason_of(data, AdapterLimits(1 << 20, header_bytes_max=64)) == "header_too_large"
    assert reason_of(struct.pack("<Q", 2**63) + data[8:]) == "header_too_large"
    assert reason_of(struct.pack("<Q", 40_000) + b"[" * 40_000) == "header_malformed"


@given(st.data())
def test_a_file_with_any_byte_changed_is_refused_or_is_another_adapter(data: st.DataObject) -> None:
    original = small_adapter(2).encode()
    position = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255))
    mutated = original[:position] + bytes([byte]) + original[position + 1 :]
    try:
        adapter = decode_adapter(mutated, LIMITS)
    except FormatError:
        return
    assert adapter.encode() == mutated


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_adapter(data, LIMITS)


def test_a_cut_file_is_refused_at_every_length() -> None:
    data = small_adapter().encode()
    for length in range(len(data)):
        reason_of(data[:length])


def test_tensors_that_are_not_a_whole_adapter_are_refused_by_name() -> None:
    adapter = small_adapter()
    tensors = adapter.tensors()
    name = next(iter(tensors))
    with pytest.raises(FormatError, match="factor_missing"):
        from_tensors(adapter.config, {name: tensors[name]})
    with pytest.raises(FormatError, match="non_finite"):
        from_tensors(adapter.config, tensors | {name: tensors[name] * np.nan})
    with pytest.raises(FormatError, match="too_large"):
        from_tensors(adapter.config, tensors | {name: tensors[name] * 0 + 128})
    with pytest.raises(FormatError, match="tensor_shape"):
        from_tensors(adapter.config, tensors | {name: tensors[name][:1]})
    with pytest.raises(FormatError, match="values_shape"):
        AdapterWeights(adapter.config, adapter.manifest, adapter.values[1:].copy())
    with pytest.raises(FormatError, match="manifest_subset"):
        adapter.select(Manifest.from_shapes({"base_model.model.x.lora_B.weight": (1, 2)}))


def test_settings_that_make_no_sense_are_refused_by_name() -> None:
    with pytest.raises(FormatError, match="base_model_id"):
        AdapterConfig(b"short", 2, 4, ("q_proj",))
    with pytest.raises(FormatError, match="rank_or_alpha"):
        AdapterConfig(BASE_MODEL_ID, 0, 4, ("q_proj",))
    with pytest.raises(FormatError, match="targets"):
        AdapterConfig(BASE_MODEL_ID, 2, 4, ("v_proj", "q_proj"))
    with pytest.raises(FormatError, match="targets"):
        AdapterConfig(BASE_MODEL_ID, 2, 4, ("q,v",))
    assert module_path("base_model.model.model.layers.0.q_proj.lora_A.weight") == "model.layers.0.q_proj"
