"""What need not be looked at closely: windows that a small network finds clean.

Most windows of a line show nothing, and a network that only tells whether there is anything costs a fraction of the one
that tells what. A bundle may carry such a one, `glance.onnx`: it sees every window first, and the whole network those
of which it is not sure (`Glance.doubt_min`), and whatever is looked at again. What stands for a window that it clears
is the bundle's own answer to a clean one, a constant of that graph, so that features, maps and reasoning are there for
every window.

It is for CPUs, where a patch is a run of its own. A GPU computes batches of one size at a rate that leaves nothing to
spare, and there the whole network sees every window.
"""

from collections.abc import Sequence
from pathlib import Path

from engine.errors import BundleError
from engine.graphs import ANY, FeaturesGraph, Graph, check_form, open_session, rounding_layers
from engine.looks import NO_GLANCE
from engine.manifest import GLANCE_FILE, Manifest

DOUBT = "doubt"


def read_glance(bundle: Path, manifest: Manifest, features: FeaturesGraph) -> Graph | None:
    """The graph of a glance, read and checked; None where the bundle asks for none.

    Its outputs are `doubt` (n,), from 0 to 1, and those of the features graph for a clean window. It may see more than
    a patch: as many pixels beyond each edge, which are the patch's mirror image.

    Raises:
        BundleError: it must not be run, or the features graph takes no patch by itself.
    """
    if manifest.glance == NO_GLANCE:
        return None
    if features.rows > 1:
        raise BundleError("takes batches of one size alone, and a glance needs patches one by one", key=features.file)
    onnx = manifest.verified(bundle, GLANCE_FILE)
    session = open_session(onnx, key=GLANCE_FILE, threads=1, as_written=True)
    labels = len(manifest.labels)
    check_form(session.get_inputs(), {"pixels": ("tensor(uint8)", (1, 1, ANY, ANY))}, key=GLANCE_FILE)
    forms = {"label_features": (1, labels, ANY), "stage1": (1, labels), "activation": (1, labels, ANY, ANY)}
    wanted = {DOUBT: ("tensor(float)", (1,)), **{name: ("tensor(float)", forms[name]) for name in features.outputs}}
    check_form(session.get_outputs(), wanted, key=GLANCE_FILE)
    return Graph(
        file=GLANCE_FILE,
        onnx=onnx,
        rows=1,
        side=_side(session.get_inputs()[0].shape[2:], manifest.patch_px),
        outputs=(DOUBT, *features.outputs),
        rounding=rounding_layers(session),
    )


def _side(sizes: Sequence[int | str | None], patch_px: int) -> int:
    """Pixels of a side of what it sees: those of a patch, and as many beyond each edge."""
    side, *others = {size if isinstance(size, int) else patch_px for size in sizes}
    beyond, odd = divmod(side - patch_px, 2)
    if others or odd or not 0 <= beyond < patch_px:
        expected = f"a patch of {patch_px}, and as many beyond each edge, but fewer than that"
        raise BundleError(f"sees {sizes} pixels, expected {expected}", key=GLANCE_FILE)
    return side
