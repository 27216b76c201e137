"""What goes through the pipe to the training process comes out again, and a cut pipe is an end."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from citrate_node.training.wire import Frame, Groups, pack, read_frame, write_frame

names = st.text(st.characters(codec="utf-8"), max_size=12)
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
groups = st.dictionaries(names, st.dictionaries(names, arrays, max_size=3), max_size=3)
headers = st.dictionaries(names, st.one_of(st.integers(), st.text(st.characters(codec="utf-8")), st.none()))


@given(headers, groups)
@settings(max_examples=60, deadline=None)
def test_a_frame_comes_out_as_it_went_in(header: dict[str, object], tensors: Groups) -> None:
    stream = io.BytesIO()
    write_frame(stream, header, tensors)
    write_frame(stream, {"last": 1})
    stream.seek(0)
    frame = read_frame(stream)
    assert frame is not None
    assert frame.header == header
    assert frame.groups.keys() == tensors.keys()
    for group, entries in tensors.items():
        assert frame.groups[group].keys() == entries.keys()
        for name, array in entries.items():
            assert frame.groups[group][name].shape == array.shape
            assert frame.groups[group][name].tobytes() == array.tobytes()  # NaN and -0 too
    assert read_frame(stream) == Frame({"last": 1})
    assert read_frame(stream) is None


def test_a_frame_that_is_cut_anywhere_is_the_end() -> None:
    whole = pack(Frame({"op": "train"}, {"weights": {"a": np.ones(3, np.float32)}}))
    for length in range(len(whole)):
        assert read_frame(io.BytesIO(whole[:length])) is None


def test_bytes_that_are_no_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="not a frame"):
        read_frame(io.BytesIO(b"Loading weights: 100%|##########|"))
