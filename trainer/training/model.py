"""Loading a base, and writing a model that `transformers` and vLLM load."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from shared.errors import ConfigError, ModelError
from shared.safety import FixedKl, Sft
from shared.training import Full, Lora, Training
from trainer.training.objective import (
    AdaptersOff,
    CachedStates,
    FrozenCopy,
    NoReference,
    Reference,
    SafeObjective,
    plain_head,
)
from trainer.training.run_spec import Base, RunSpec


def load_tokenizer(base: Base) -> Any:
    """Raises ModelError if the folder holds none, or one that cannot render a chat."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {str(base.path)!r}: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"the base {base.id!r} has no chat template; add it again with one:"
            f" tether models add {base.id} --chat-template FILE"
        )
    if tokenizer.pad_token_id is None:
        # Only ever at masked positions, so any token does.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def precision(training: Training) -> torch.dtype:
    if training.precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if training.precision == "bf16" else torch.float32


def build_objective(spec: RunSpec) -> SafeObjective:
    """The policy with its reference, as the method and the adapter ask."""
    dtype = precision(spec.training)
    options: dict[str, Any] = {"dtype": dtype}
    if isinstance(spec.training.adapter, Lora) and spec.training.adapter.load_in_4bit:
        options["quantization_config"] = _four_bits(dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(spec.base.path, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model could be loaded from {str(spec.base.path)!r}: {error}") from error
    reference = _reference(spec, model)
    match spec.training.adapter:
        case Full():
            policy = model
        case Lora() as lora:
            policy = _with_adapters(model, lora, spec.base)
    if spec.training.activation_checkpointing:
        # Re-entrant checkpoints would need an input that carries a gradient, which adapters have not.
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return SafeObjective(policy, reference, plain_head(policy))


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with doubly quantized constants (arXiv 2305.14314, section 3)."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "training.adapter.load_in_4bit needs bitsandbytes, which is not installed; install it with:"
            " pip install 'tether[trainer-4bit]', or leave load_in_4bit out"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _reference(spec: RunSpec, model: Any) -> Reference:
    """`model` has no adapters yet."""
    if not _needs_reference(spec):
        return NoReference()
    match spec.training.reference_kind:
        case "adapters_off":
            return AdaptersOff()
        case "frozen_copy":
            return FrozenCopy(copy.deepcopy(model).requires_grad_(False))
        case "cache":
            if isinstance(spec.training.adapter, Lora):
                return CachedStates(None)
            head = model.get_output_embeddings().weight
            return CachedStates(torch.nn.Parameter(head.detach().clone(), requires_grad=False))


def _needs_reference(spec: RunSpec) -> bool:
    match spec.safety.method:
        case Sft():
            return False
        case FixedKl(beta=beta):
            return beta > 0
        case _:
            return True


def _with_adapters(model: Any, lora: Lora, base: Base) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = lora.targets or base.lora_targets
    present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = sorted(set(targets) - present)
    if missing:
        raise ModelError(f"the base {base.id!r} has no modules named {', '.join(missing)} to put adapters on")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    model.name_or_path = str(base.path)
    return get_peft_model(model, config)


def save_model(
    policy: Any, tokenizer: Any, weights: Mapping[str, Tensor], directory: Path, card: dict[str, Any]
) -> None:
    """Writes safetensors with config and tokenizer; for LoRA a PEFT adapter.

    Args:
        weights: of the policy, whole and on the CPU, by the policy's own names.
        card: what made the model; kept beside it as `tether.json`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(directory, state_dict=dict(weights), safe_serialization=True)
    tokenizer.save_pretrained(directory)
    (directory / "tether.json").write_text(json.dumps(card, indent=2), encoding="utf-8")
