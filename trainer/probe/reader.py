"""A frozen model that reads prompts: text -> token ids -> features, by one forward without its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.errors import DataError, ModelError
from shared.wire import ChatMessage
from trainer.models.inspect import CONTEXT_KEYS
from trainer.probe.features import Pooling, prompt_features
from trainer.probe.identity import model_fingerprint, template_hash


@dataclass(frozen=True)
class PromptReader:
    body: Any
    """The transformer without its head, in eval mode."""
    tokenizer: Any
    context: int
    """Tokens."""
    fingerprint: str
    template_hash: str

    @property
    def layers(self) -> int:
        """How many hidden states a forward gives: the embeddings' and one a block."""
        return int(self.body.config.get_text_config().num_hidden_layers) + 1

    @property
    def hidden(self) -> int:
        return int(self.body.config.get_text_config().hidden_size)

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt as token ids, up to where the assistant begins to speak.

        Raises:
            DataError: it is empty, longer than the context, or nothing that the chat template renders.
        """
        if not messages or not any(message.content.strip() for message in messages):
            raise DataError("the prompt is empty: there is nothing to read")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            encoded = self.tokenizer.apply_chat_template(
                turns, tokenize=True, add_generation_prompt=True, return_dict=True
            )
        except (TemplateError, ValueError) as error:
            raise DataError(f"the base's chat template does not render this conversation: {error}") from error
        ids = list(encoded["input_ids"])
        if len(ids) > self.context:
            raise DataError(
                f"the prompt has {len(ids)} tokens, more than the model's context of {self.context}; it was"
                " not read, since what is cut off could be what matters: shorten it, or give it in parts"
            )
        return ids

    @torch.no_grad()
    def features(
        self, prompts: Sequence[Sequence[int]], pooling: Pooling, layers: Sequence[int] | None = None
    ) -> Tensor:
        """[B, L, H] of these encoded prompts, one forward."""
        states, attention_BT, last_B = self._forward(prompts)
        return prompt_features(states, attention_BT, last_B, pooling, layers=layers)

    @torch.no_grad()
    def features_of(self, prompts: Sequence[Sequence[int]], poolings: Sequence[Pooling]) -> Tensor:
        """[P, B, L, H]: several poolings of the same forward."""
        states, attention_BT, last_B = self._forward(prompts)
        return torch.stack([prompt_features(states, attention_BT, last_B, name) for name in poolings])

    def _forward(self, prompts: Sequence[Sequence[int]]) -> tuple[Any, Tensor, Tensor]:
        # Padded on the right: a causal model's earlier places never see it.
        last_B = torch.tensor([len(ids) - 1 for ids in prompts])
        ids_BT = torch.zeros(len(prompts), int(last_B.max()) + 1, dtype=torch.long)
        for row, ids in enumerate(prompts):
            ids_BT[row, : len(ids)] = torch.tensor(ids)
        attention_BT = (torch.arange(ids_BT.shape[1]) <= last_B[:, None]).long()
        device = self.body.device
        attention_BT = attention_BT.to(device)
        out = self.body(
            input_ids=ids_BT.to(device),
            attention_mask=attention_BT,
            output_hidden_states=True,
            use_cache=False,
        )
        return out.hidden_states, attention_BT, last_B.to(device)


def open_reader(folder: Path) -> PromptReader:
    """On a GPU in bf16 where there is one, else in float32.

    Raises:
        ModelError: the folder holds no causal model with a chat template and safetensors.
    """
    if not folder.is_dir():
        raise ModelError(f"no folder {str(folder)!r}; give one that transformers' save_pretrained wrote")
    fingerprint = model_fingerprint(folder)
    on_gpu = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.bfloat16 if on_gpu else torch.float32
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"no model can be loaded from {str(folder)!r}: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{folder} has no chat template, without which prompts cannot be rendered")
    body = model.base_model.eval()
    return PromptReader(
        body=body.to("cuda") if on_gpu else body,
        tokenizer=tokenizer,
        context=_context(model.config, folder),
        fingerprint=fingerprint,
        template_hash=template_hash(tokenizer),
    )


def _context(config: Any, folder: Path) -> int:
    text = config.get_text_config()
    for key in CONTEXT_KEYS:
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value
    raise ModelError(f"the config of {folder} does not say how long its context is")
