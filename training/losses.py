"""Losses over multi-label targets with unknown entries. Knows nothing of the network.

Targets are 1 (present), 0 (absent) or -1 (unknown: takes part in nothing).
Shape suffixes: N patches, L labels, F label-feature width, H W map rows and columns, A active pairs.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Mean = Callable[[Tensor], Tensor]  # of a number, its mean over the devices that share a batch

MARGIN = 0.05  # an absent label with less probability than this is no loss at all, where negatives are focused


def known_bce(
    logit: Tensor,
    target: Tensor,
    *,
    positive_weight: float = 1.0,
    negative_focus: float = 0.0,
    device_mean: Mean | None = None,
) -> Tensor:
    """Binary cross-entropy averaged over the known entries; 0 with a gradient path where none is known.

    Args:
        logit: any shape.
        target: the same shape; 1, 0 or -1.
        positive_weight: weight of the entries that are 1.
        negative_focus: gamma- of the asymmetric loss (Ridnik et al., ICCV 2021, Eqs. 4-6): the loss of an entry that is
            0 becomes -p^gamma log(1 - p) with p = max(probability - 0.05, 0); 0 is plain cross-entropy.
        device_mean: given where these are one device's share of a batch. The shares know differently many entries,
            so that the mean of their means is not the mean of all; divided by the mean number of known entries
            instead, they average over the devices to what one device gives for the whole batch, gradients included.
    """
    logit, known = _float(logit), target >= 0
    weight = torch.ones_like(logit).masked_fill(target > 0, positive_weight) * known
    entry = functional.binary_cross_entropy_with_logits(logit, target.clamp_min(0).to(logit.dtype), reduction="none")
    if negative_focus:
        shifted = (torch.sigmoid(logit) - MARGIN).clamp_min(0)
        entry = torch.where(target > 0, entry, -(shifted**negative_focus) * torch.log1p(-shifted))
    total = weight.sum()
    return (entry * weight).sum() / (total if device_mean is None else device_mean(total)).clamp_min(1e-6)


def patch_bce(logit_NL: Tensor, target_NL: Tensor) -> Tensor:
    """Binary cross-entropy of each patch (N,), summed over its known labels."""
    logit_NL = _float(logit_NL)
    loss_NL = functional.binary_cross_entropy_with_logits(
        logit_NL, target_NL.clamp_min(0).to(logit_NL.dtype), reduction="none"
    )
    return (loss_NL * (target_NL >= 0)).sum(dim=1)


def supervised_contrast(feature_NLF: Tensor, target_NL: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Multi-label supervised contrastive loss on label features (Zhou et al. 2023, Eq. 2).

    Every active pair (patch i, label j) is an anchor; the other active features of label j are its positives, the
    active features of the other labels its negatives. An anchor without a positive counts 0, and the sum is always
    divided by the number of all anchors; no active pair at all gives 0 with a gradient path.
    """
    patch_A, label_A = torch.nonzero(target_NL == 1, as_tuple=True)
    active_AF = functional.normalize(_float(feature_NLF[patch_A, label_A]), dim=-1, eps=1e-6)
    if len(active_AF) < 2:
        return _float(feature_NLF).sum() * 0.0
    similarity_AA = active_AF @ active_AF.T / temperature
    itself_AA = torch.eye(len(active_AF), dtype=torch.bool, device=active_AF.device)
    log_sum_A = similarity_AA.masked_fill(itself_AA, float("-inf")).logsumexp(dim=1)
    positive_AA = (label_A[:, None] == label_A[None, :]) & ~itself_AA
    positives_A = positive_AA.sum(dim=1)
    log_probability_AA = (similarity_AA - log_sum_A[:, None]) * positive_AA
    term_A = -log_probability_AA.sum(dim=1) / positives_A.clamp_min(1)
    return term_A.mean()


def map_loss(
    map_NLHW: Tensor, target_NLHW: Tensor, *, positive_weight: float = 4.0, device_mean: Mean | None = None
) -> Tensor:
    """Cross-entropy of the labels' maps against where the defects are, per cell; unknown cells (-1) take no part.

    Not in the paper: it teaches a label's own map to find what is a thousandth of the patch. Where the map is finer
    than the target, the warmest cell in each of the target's counts.
    """
    if map_NLHW.shape[2:] != target_NLHW.shape[2:]:
        map_NLHW = functional.adaptive_max_pool2d(map_NLHW, target_NLHW.shape[2:])
    return known_bce(map_NLHW, target_NLHW, positive_weight=positive_weight, device_mean=device_mean)


def cooccurrence(target_NL: Tensor) -> Tensor:
    """Counts M (L, L) of label pairs that are both present, the diagonal counting the label itself."""
    present = (target_NL == 1).float()
    return present.T @ present


def _float(tensor: Tensor) -> Tensor:
    """In float32 at least: half precision loses sums, and double precision stays what it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
