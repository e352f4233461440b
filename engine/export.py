"""PyTorch modules to a bundle: two ONNX graphs, golden patches, manifest and card.

The bundle is made in a folder beside its place and moved there whole, after its graphs, run by ONNX Runtime, agreed
with the modules they came from.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engine.backend import load
from engine.manifest import FEATURES_FILES, MANIFEST_FILE, RELEASE_FILE, Manifest
from engine.parity import Difference, check_parity

OPSET = 18


def export(
    out: Path,
    *,
    features: nn.Module,
    reasoning: nn.Module,
    manifest: Manifest,
    golden_pixels: NDArray[np.uint8],
    parity_pixels: NDArray[np.uint8],
    card: str,
    finish: Callable[[Path], None] | None = None,
) -> Difference:
    """Write a verified bundle.

    Args:
        out: the bundle's folder; an existing bundle is replaced only when the new one is whole.
        features: `pixels` (N, 1, P, P) uint8 to label features (N, C, d), cosines (N, C), activation (N, C, h, w).
        reasoning: label features (K, C, d) and cosines (K, C) to probabilities (K, C).
        manifest: all of it but `files`, which is filled in here.
        golden_pixels: (G, 1, P, P) uint8, kept in the bundle for the self-test.
        parity_pixels: (K, 1, P, P) uint8 patches on which graphs and modules must agree; not kept.
        card: text of MODEL_CARD.md.
        finish: called with the folder of the whole, verified float32 bundle before it is moved to `out`: other
            precisions are added here. What it raises refuses the export.

    Returns:
        The largest and the mean difference of probability between graphs and modules.

    Raises:
        ValueError: `out` exists and is no bundle, or one that was released.
        ParityError: a difference of probabilities or maps over the manifest's fp32 tolerance, or a value that is not
            finite; nothing is written.
    """
    if out.exists() and not (out / MANIFEST_FILE).is_file():
        raise ValueError(f"{out} exists and is no bundle: it would be lost")
    if (out / RELEASE_FILE).exists():
        raise ValueError(f"{out} holds a bundle that was released: name another folder, or remove it")
    if out.is_symlink():
        raise ValueError(f"{out} is a link, which would become a folder: name the folder that it leads to")
    out.parent.mkdir(parents=True, exist_ok=True)
    features, reasoning = features.eval(), reasoning.eval()
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    old = draft.with_name(f"{draft.name}-old")
    try:
        _write_graphs(draft, features, reasoning, manifest)
        maps, probability = module_answer(features, reasoning, golden_pixels)
        np.savez_compressed(draft / "golden.npz", pixels=golden_pixels, probability=probability, activation=maps)
        (draft / "MODEL_CARD.md").write_text(card)
        manifest.sign(draft)
        backend = load(draft, runtime="onnxruntime")
        try:
            activation, expected = module_answer(features, reasoning, parity_pixels)
            limit = manifest.parity_tolerance["fp32"]
            difference = check_parity(
                backend, parity_pixels, expected, activation, tolerance=limit, map_tolerance=limit
            )
        finally:
            backend.close()
        if finish is not None:
            finish(draft)
        draft.chmod(0o755)
        if out.exists():
            out.rename(old)
        try:
            draft.rename(out)
        except BaseException:  # Ctrl-C between the two as well
            if old.exists() and not out.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return difference


def module_answer(
    features: nn.Module, reasoning: nn.Module, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Maps (K, C, h, w) and probabilities (K, C) by the modules, all K patches (K, 1, P, P) reasoned together."""
    with torch.inference_mode():
        parts = [features(torch.from_numpy(patch[None])) for patch in pixels]
        label_features, stage1, activation = (torch.cat(outputs) for outputs in zip(*parts, strict=True))
        probability: NDArray[np.float32] = reasoning(label_features, stage1).numpy()
    return activation.numpy(), probability


def write_features(path: Path, features: nn.Module, *, patch_px: int) -> None:
    """Write the features graph of a module, for any number of patches at a time."""
    pixels = torch.zeros((2, 1, patch_px, patch_px), dtype=torch.uint8)
    write_graph(
        path,
        features,
        (pixels,),
        names=(["pixels"], ["label_features", "stage1", "activation"]),
        dynamic={"pixels": {0: torch.export.Dim("n", min=1)}},
    )


def _write_graphs(folder: Path, features: nn.Module, reasoning: nn.Module, manifest: Manifest) -> None:
    write_features(folder / FEATURES_FILES["fp32"], features, patch_px=manifest.patch_px)
    with torch.inference_mode():
        pixels = torch.zeros((2, 1, manifest.patch_px, manifest.patch_px), dtype=torch.uint8)
        label_features, stage1, _ = features(pixels)
    k = torch.export.Dim("k", min=1)
    write_graph(
        folder / "reasoning.onnx",
        reasoning,
        (label_features.clone(), stage1.clone()),
        names=(["label_features", "stage1"], ["probability"]),
        dynamic={"label_features": {0: k}, "stage1": {0: k}},
    )


def write_graph(
    path: Path,
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    *,
    names: tuple[list[str], list[str]],
    dynamic: dict[str, dict[int, torch.export.Dim]] | None,
) -> None:
    """Write a graph of a module.

    Args:
        path: of the file.
        module: what is traced.
        inputs: of the shapes that the graph takes.
        names: of inputs and outputs.
        dynamic: by input the dimensions that may have another size; None: none.
    """
    with warnings.catch_warnings():
        # the exporter and what it imports deprecate their own functions from release to release
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            inputs,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    _read_bytes_by_the_cast_alone(program.model.graph)
    _forget_where_it_was_made(program.model.graph)
    program.save(str(path))


def _forget_where_it_was_made(graph: Any) -> None:  # noqa: ANN401 - the exporter's graph, published without types
    """Drop what the exporter notes of its source, by folder and line: a network gives the same bytes anywhere."""
    graph.metadata_props.clear()
    graph.doc_string = None
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*graph.inputs, *graph.initializers.values(), *(one for node in graph for one in node.outputs)):
        value.metadata_props.clear()
        value.doc_string = None


def _read_bytes_by_the_cast_alone(graph: Any) -> None:  # noqa: ANN401 - the exporter's graph, published without types
    """Let whatever asks for the uint8 input, such as its shape, ask its cast: TensorRT takes bytes nowhere else."""
    for value in graph.inputs:
        cast = next((node for node, _ in value.uses() if node.op_type == "Cast"), None)
        if cast is None:
            continue
        for node, index in list(value.uses()):
            if node is not cast:
                node.replace_input_with(index, cast.outputs[0])
    graph.sort()
