"""Distillation: a network learns from the labels and from the logits of a teacher, usually its float network.

With logits `g` of the network (the student) and `f` of the teacher for the same images, temperature T and weight w, the
loss is, for each image,

    cross_entropy(g, label) + w * T**2 * sum_k p_k * log(p_k / q_k)      p = softmax(f / T), q = softmax(g / T)

and the mean of this over the images (Hinton et al. 2015, section 2). The second term is the divergence of the student's
softened prediction from the teacher's. Its gradient with respect to `g_k` is `T * (q_k - p_k)`: the factor T**2 makes
up for the shrinking of gradients, so that the same weight suits every temperature. No gradient reaches the teacher.

Nothing here waits for the device or depends on values, so a training step with it can be captured as a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qil_deploy.errors import ConfigError, DataError

from .recipe_sections import DISTILLATION_TEMPERATURE, DISTILLATION_WEIGHT


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    weight: float = DISTILLATION_WEIGHT,
    temperature: float = DISTILLATION_TEMPERATURE,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy with the labels, plus `weight` times the divergence from the teacher; the mean over images.

    Args:
        logits: of the network that learns, floats [n, classes], or [n, classes, ...] with one prediction per position.
        teacher_logits: of the teacher for the same images, of the same shape.
        labels: int64 [n], or [n, ...].
        weight: of the divergence; 0: only the cross-entropy.
        temperature: of both softened predictions; above 0.
        smoothing: of the labels, in [0, 1].

    Returns:
        A scalar, float32 (float64 for logits of float64).

    Raises:
        ConfigError: a weight below 0, or a temperature that is not above 0.
        DataError: logits of other shapes.
    """
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"weight is {weight}; the divergence from a teacher has a finite weight of at least 0.")
    cross_entropy = F.cross_entropy(_at_least_float32(logits), labels, label_smoothing=smoothing)
    return cross_entropy + weight * divergence(logits, teacher_logits, temperature)


def divergence(logits: Tensor, teacher_logits: Tensor, temperature: float = DISTILLATION_TEMPERATURE) -> Tensor:
    """Return T**2 times the divergence of the student's softened predictions from the teacher's; the mean over images.

    Arguments, result and errors as for `distillation_loss`.
    """
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"temperature is {temperature}; predictions are softened with a finite one above 0.")
    if logits.shape != teacher_logits.shape or logits.ndim < 2:
        raise DataError(
            f"the network's logits have shape {list(logits.shape)} and the teacher's {list(teacher_logits.shape)}; "
            "both need [images, classes]: the same images, and as many classes."
        )
    log_q, log_p = (
        F.log_softmax(_at_least_float32(values) / temperature, 1) for values in (logits, teacher_logits.detach())
    )
    total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return temperature**2 * total / (logits.numel() // logits.shape[1])


def _at_least_float32(logits: Tensor) -> Tensor:
    """Convert half-precision logits to float32, for sums of exponentials."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
