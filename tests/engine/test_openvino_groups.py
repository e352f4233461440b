# ruff: noqa: ANN401 - the types of OpenVINO are there only where it is
"""A convolution of one channel that reads rows in groups gives what it gave before."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import load

backend_module = pytest.importorskip("engine.openvino")  # not openvino by itself, which would report it
openvino, ops = backend_module.openvino, backend_module.opset13
read_in_groups = backend_module._read_in_groups

pads = st.integers(0, 3)


def convolution(
    weight: NDArray[np.float32],
    *,
    rows: int,
    width: int,
    strides: list[int],
    begin: list[int],
    end: list[int],
    dilation: int = 1,
) -> Any:
    pixels = ops.parameter([2, weight.shape[1], rows, width], np.float32)
    layer = ops.convolution(pixels, ops.constant(weight), strides, begin, end, [dilation, dilation], name="stem")
    return openvino.Model([ops.relu(layer)], [pixels])


def answer(model: Any, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    exact = {openvino.properties.hint.inference_precision: openvino.Type.f32}
    found: NDArray[np.float32] = backend_module.CORE.compile_model(model, "CPU", exact)(pixels)[0]
    return found


def is_grouped(model: Any) -> bool:
    return any(layer.get_type_name() == "Transpose" for layer in model.get_ops())


@settings(deadline=None, max_examples=40)
@given(
    step=st.integers(1, 4),
    down=st.integers(1, 4),
    high=st.integers(1, 6),
    wide=st.integers(1, 8),
    begin=st.tuples(pads, pads),
    end=st.tuples(pads, pads),
    rows=st.integers(9, 20),
    width=st.integers(9, 20),
    seed=st.integers(0, 9),
)
def test_what_is_read_in_groups_is_the_same(
    step: int,
    down: int,
    high: int,
    wide: int,
    begin: tuple[int, int],
    end: tuple[int, int],
    rows: int,
    width: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((3, 1, high, wide)).astype(np.float32)
    pixels = rng.standard_normal((2, 1, rows, width)).astype(np.float32)
    model = convolution(weight, rows=rows, width=width, strides=[down, step], begin=list(begin), end=list(end))
    before = answer(model, pixels)
    read_in_groups(model)
    assert is_grouped(model) == (step > 1 and wide % step == 0 and (begin[1] + width + end[1]) % step == 0)
    np.testing.assert_allclose(answer(model, pixels), before, atol=1e-4)
    assert "stem" in {layer.get_friendly_name() for layer in model.get_ops() if layer.get_type_name() == "Convolution"}


@pytest.mark.parametrize(("channels", "dilation"), [(4, 1), (1, 2)])
def test_other_convolutions_are_left_alone(channels: int, dilation: int) -> None:
    weight = np.ones((2, channels, 4, 4), np.float32)
    model = convolution(weight, rows=16, width=16, strides=[4, 4], begin=[0, 0], end=[0, 0], dilation=dilation)
    read_in_groups(model)
    assert not is_grouped(model)


def network(*, linear: bool) -> Any:
    """Bytes, their root or what they are less the mean, a stem of one channel, and a layer that may round."""
    rng = np.random.default_rng(5)
    given = ops.parameter([1, 1, 32, 32], np.uint8)
    light = ops.convert(given, np.float32)
    light = ops.subtract(light, ops.constant(np.float32(127.3))) if linear else ops.sqrt(light)
    kernel = ops.constant(rng.standard_normal((3, 1, 8, 8)).astype(np.float32))
    stem = ops.convolution(light, kernel, [4, 4], [2, 2], [2, 2], [1, 1], name="stem")
    wide = ops.constant(rng.standard_normal((8, 3, 1, 1)).astype(np.float32))
    rounded = ops.convolution(ops.relu(stem), wide, [1, 1], [0, 0], [0, 0], [1, 1], name="rounded")
    return openvino.Model([stem, rounded], [given])


BYTES = np.random.default_rng(6).integers(0, 256, (1, 1, 32, 32), np.uint8)


@pytest.mark.parametrize(("linear", "padded"), [(True, "f32"), (False, "u8")])
def test_bytes_are_padded_where_a_zero_stays_one_on_its_way(padded: str, *, linear: bool) -> None:
    grouped = read_in_groups(network(linear=linear))
    assert is_grouped(grouped)
    pads = [layer for layer in grouped.get_ops() if layer.get_type_name() == "Pad"]
    assert [layer.input_value(0).get_element_type().get_type_name() for layer in pads] == [padded]
    np.testing.assert_allclose(answer(grouped, BYTES), answer(network(linear=linear), BYTES), atol=1e-3)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.skipif(not backend_module.OpenVinoBackend.rounds(), reason="this CPU does not compute in bfloat16")
def test_what_is_held_in_float32_is_not_rounded_where_it_is_padded(*, linear: bool) -> None:
    """A grey level rounded to 8 bits of mantissa would be the whole of a faint defect."""
    rounding = {openvino.properties.hint.inference_precision: openvino.Type.bf16}
    marked = backend_module._held_in_float32(read_in_groups(network(linear=linear)), but=frozenset({"rounded"}))
    compiled = backend_module.CORE.compile_model(backend_module.CORE.read_model(*marked), "CPU", rounding)
    np.testing.assert_allclose(compiled(BYTES)[0], answer(network(linear=linear), BYTES), atol=1e-3)


def held(model: Any, *, but: set[str]) -> set[str]:
    """Names of the layers that are held in float32."""
    xml, _ = backend_module._held_in_float32(model, but=frozenset(but))
    layers = ElementTree.fromstring(xml).iter("layer")  # noqa: S314 - OpenVINO has just written it
    return {layer.get("name", "") for layer in layers if layer.find("rt_info/attribute[@name='precise']") is not None}


def test_what_leads_to_a_convolution_rounds_where_that_may() -> None:
    """Held in float32 it would be written so, and read again: a fifth of the time of a glance."""
    model = read_in_groups(network(linear=True))
    ways = {"stem/Reshape", "stem/Transpose"}
    assert ways <= held(model, but={"rounded"})
    assert not ways & held(model, but={"stem", "rounded"})


def test_a_convolution_of_pictures_of_any_size_is_left_alone() -> None:
    pixels = ops.parameter([1, 1, -1, -1], np.float32)
    layer = ops.convolution(pixels, ops.constant(np.ones((2, 1, 4, 4), np.float32)), [4, 4], [0, 0], [0, 0], [1, 1])
    model = openvino.Model([layer], [pixels])
    read_in_groups(model)
    assert not is_grouped(model)


@pytest.mark.parametrize("wide", [True, False])
def test_a_bundle_is_read_in_groups_where_there_is_avx512(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, *, wide: bool
) -> None:
    read: list[Any] = []

    def spy(model: Any) -> Any:
        read.append(model)
        return read_in_groups(model)

    monkeypatch.setattr(backend_module, "openvino_vectors", lambda: ["avx512f"] if wide else ["avx2"])
    monkeypatch.setattr(backend_module, "_read_in_groups", spy)
    load(bundle, "openvino", precision="fp32", threads=1).close()
    assert bool(read) == wide
