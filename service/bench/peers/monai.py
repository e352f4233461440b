"""MONAI's SlidingWindowInferer with ONNX Runtime as its predictor, behind the same FastAPI application as the loop.

The inferer puts maps together. What a window says as a whole is therefore a map of one pixel to it: (n, C * d, 1, 1).
"""

import numpy as np
import torch
from fastapi import FastAPI
from monai.inferers import SlidingWindowInferer

from service.bench.peers.fastapi import application, serve
from service.bench.peers.model import Answer, Model
from service.bench.peers.setting import Setting


class Sliding:
    """A model that slides by MONAI's hand.

    Args:
        model: of the bundle.
        setting: its threads are PyTorch's too.
    """

    def __init__(self, model: Model, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        self._model = model
        manifest = model.manifest
        self._labels = len(manifest.labels)
        self._inferer = SlidingWindowInferer(
            roi_size=(manifest.patch_px, manifest.patch_px),
            sw_batch_size=setting.patches,
            overlap=manifest.overlap_px / manifest.patch_px,
        )

    def inspect(self, body: bytes) -> Answer:
        """See `Model.inspect`."""
        frame = self._model.frame(body)
        # what comes out has the type of what goes in
        image = torch.from_numpy(frame.astype(np.float32))[None, None]
        with torch.inference_mode():
            label_features, stage1, activation = (part[0] for part in self._inferer(image, self._predict))
        rows, columns = stage1.shape[1:]
        height, width = activation.shape[1] // rows, activation.shape[2] // columns
        return self._model.judge(
            frame,
            label_features.reshape(self._labels, -1, rows * columns).permute(2, 0, 1).numpy(),
            stage1.reshape(self._labels, rows * columns).T.numpy(),
            activation.reshape(self._labels, rows, height, columns, width)
            .permute(1, 3, 0, 2, 4)
            .reshape(rows * columns, self._labels, height, width)
            .numpy(),
        )

    def _predict(self, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps of patches (n, 1, P, P)."""
        found = self._model.features(patches.to(torch.uint8).numpy())
        label_features, stage1, activation = map(torch.from_numpy, found)
        return label_features.flatten(1)[..., None, None], stage1[..., None, None], activation


def create_app() -> FastAPI:
    """The loop, by MONAI."""
    return application(Sliding(Model.configured(), Setting()).inspect)


if __name__ == "__main__":
    serve("service.bench.peers.monai:create_app")
