"""What a base is, read from its folder: it must load, and it must be able to chat.

torch and transformers are imported when they are needed: the registry is read by processes that
load no model.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared.errors import ModelError
from shared.training import Training
from trainer.models.registry import BaseEntry, HfSource, PathSource, check_id

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
NOT_ADAPTED = frozenset({"lm_head", "embed_out", "gate", "router"})
"""Linear modules that adapters stay off: the head, and what routes between experts."""

WEIGHTS = ("*.safetensors", "*.bin")
NOT_NEEDED = ["*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "original/*", "metal/*"]
"""Files of a hub repository that `transformers` does not read."""


def describe(
    model_id: str,
    source: PathSource | HfSource,
    *,
    context_length: int | None = None,
    lora_targets: Iterable[str] | None = None,
    chat_template: str | None = None,
    training: Training | None = None,
) -> BaseEntry:
    """The registry's entry for a base; what is not given is read from its config.

    Raises ModelError where the folder does not load, has no weights or cannot chat.
    """
    check_id(model_id)
    folder, source = _fetch(source)
    config = _config(folder)
    _check_chat(folder, chat_template)
    modules = _linear_modules(config, folder)
    targets = tuple(lora_targets) if lora_targets is not None else tuple(sorted(modules - NOT_ADAPTED))
    if missing := sorted(set(targets) - modules):
        raise ModelError(
            f"{folder} has no linear modules named {', '.join(missing)}; it has {', '.join(sorted(modules))}"
        )
    if not targets:
        raise ModelError(f"no linear modules found in {folder}; name them with --lora-targets")
    given: dict[str, Any] = {} if training is None else {"training": training}
    if chat_template is not None:
        given["chat_template"] = chat_template
    return BaseEntry(
        source=source,
        context_length=context_length if context_length is not None else _context(config, folder),
        lora_targets=targets,
        created=int(time.time()),
        **given,
    )


def local_folder(entry: BaseEntry, model_id: str, overlays: Path) -> Path:
    """The base as a folder that `from_pretrained` takes, fetched if it is not in the cache.

    A chat template that was registered with the base is laid over it: a folder under `overlays` of links
    to the base's files with that template beside them, so that every reader sees the same base.
    """
    folder, _ = _fetch(entry.source)
    if entry.chat_template is None:
        return folder
    overlay = overlays / model_id.replace("/", "--")
    fresh = overlay.with_name(f".{overlay.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (fresh / file.name).symlink_to(file.resolve())
    (fresh / "chat_template.jinja").write_text(entry.chat_template, encoding="utf-8")
    shutil.rmtree(overlay, ignore_errors=True)
    fresh.rename(overlay)
    return overlay


def _fetch(source: PathSource | HfSource) -> tuple[Path, PathSource | HfSource]:
    match source:
        case PathSource(path=path):
            folder = path.expanduser().absolute()
            if not folder.is_dir():
                raise ModelError(
                    f"no folder {str(folder)!r}; give one that transformers' save_pretrained wrote"
                )
            return _with_weights(folder), PathSource(path=folder)
        case HfSource(repo=repo, revision=revision):
            return _fetch_hf(repo, revision)


def _fetch_hf(repo: str, revision: str) -> tuple[Path, HfSource]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, ignore_patterns=NOT_NEEDED))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repo}@{revision} is not in the cache and the hub was not reached (HF_HUB_OFFLINE, HF_HOME and"
            f" the network decide): {error}"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"{repo}@{revision} could not be fetched (a private one needs HF_TOKEN): {error}"
        ) from error
    # A snapshot's folder is named by its commit.
    return _with_weights(folder), HfSource(repo=repo, revision=folder.name)


def _with_weights(folder: Path) -> Path:
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        raise ModelError(f"{folder} holds no weights ({' or '.join(WEIGHTS)})")
    return folder


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model config could be loaded from {str(folder)!r}: {error}") from error


def _check_chat(folder: Path, chat_template: str | None) -> None:
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {str(folder)!r}: {error}") from error
    template = chat_template if chat_template is not None else tokenizer.chat_template
    if not template:
        raise ModelError(f"{folder} has no chat template: give one with --chat-template FILE")
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    try:
        tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except (TemplateError, ValueError, TypeError) as error:
        raise ModelError(f"the chat template of {folder} cannot render a plain chat: {error}") from error


def _context(config: Any, folder: Path) -> int:
    text = config.get_text_config()
    for key in CONTEXT_KEYS:
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value
    raise ModelError(f"the config of {folder} does not say how long its context is: give --context N")


def _linear_modules(config: Any, folder: Path) -> set[str]:
    """Last parts of the names of the model's linear modules; built without memory for its weights."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ModelError(f"{folder} is no causal language model: {str(error).splitlines()[0]}") from error
    return {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
