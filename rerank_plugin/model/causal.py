"""Causal language models as rerankers: the last token's hidden state gives the score."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


class LastTokenClassifier(PreTrainedModel):
    """The forward pass of a sequence classifier that scores the last token of each pair.

    The stock one multiplies every token with the head, takes a pad token within a pair for its end
    and keeps keys and values, which no score needs.
    """

    score: nn.Module

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        boundaries: Any = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Return the logits of pairs, `[pairs, labels]`.

        Args:
            input_ids: A padded batch `[pairs, tokens]`; or a packed row `[1, tokens]`, for a model
                that `prepare_packing` has prepared.
            attention_mask: 1 for the tokens of a padded batch and 0 for padding, on either side;
                without it no pair has padding.
            position_ids: The positions of the tokens, as `input_ids`.
            boundaries: The boundaries of the pairs in a packed row.
            kwargs: Passed to the backbone.
        """
        kwargs.pop("labels", None)
        if boundaries is not None:
            kwargs["boundaries"] = boundaries
        outputs = self.base_model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs | {"use_cache": False, "return_dict": True},
        )
        hidden = last_tokens(outputs.last_hidden_state, attention_mask)
        return SequenceClassifierOutputWithPast(
            logits=self.score(hidden),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def last_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the hidden state of each pair's last token, `[pairs, hidden]`.

    Of a packed row one token a pair is left, `[pairs, 1, hidden]`, and there is no mask.
    """
    if attention_mask is None:
        return hidden[:, -1]
    tokens = torch.arange(hidden.shape[1], device=hidden.device)
    last = (tokens * attention_mask.to(hidden.device)).argmax(-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def pool_last_token(model: PreTrainedModel) -> None:
    """Make a model for sequence classification score last tokens, in place.

    The name of its class does not change, so that a saved model is a stock one.
    """
    if not isinstance(model, LastTokenClassifier):
        stock: Any = type(model)
        model.__class__ = last_token_class(stock)


@cache
def last_token_class(stock: Any) -> Any:
    """Return the class that scores last tokens, by the name of a stock one."""
    return type(stock.__name__, (LastTokenClassifier, stock), {"__module__": stock.__module__})
