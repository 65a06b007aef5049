"""Run in vLLM's environment: a random GptOssForCausalLM with harmony's real vocabulary, into a folder.

    .venv-vllm/bin/python tests/vllm_served/tiny_gpt_oss.py DIR

26M parameters, nearly all of them embeddings. The vocabulary is the one that `oss-harmony` carries, laid
out as a tokenizer.json, as the real model's folder has it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from openai_harmony import HarmonyEncodingName, load_harmony_encoding
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 201_088
FIRST_SPECIAL = 199_998
NAMED = {
    199_998: "<|startoftext|>", 199_999: "<|endoftext|>", 200_002: "<|return|>", 200_003: "<|constrain|>",
    200_005: "<|channel|>", 200_006: "<|start|>", 200_007: "<|end|>", 200_008: "<|message|>",
    200_012: "<|call|>",
}  # fmt: skip
# How o200k splits text before its merges.
LETTER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{LETTER}*{SMALL}+{ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{LETTER}+{SMALL}*{ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def byte_alphabet() -> dict[int, str]:
    """Byte -> the character that byte-level BPE writes for it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(rest)}


def harmony_tokenizer() -> Tokenizer:
    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    ranks = {bytes(encoding._inner.decode_bytes([token])): token for token in range(FIRST_SPECIAL)}
    alphabet = byte_alphabet()

    def written(raw: bytes) -> str:
        return "".join(alphabet[byte] for byte in raw)

    merges = []
    for raw, rank in ranks.items():
        splits = [(raw[:at], raw[at:]) for at in range(1, len(raw))]
        known = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
        merges += [(rank, ranks[left], ranks[right], left, right) for left, right in known]
    merges.sort(key=lambda merge: merge[:3])
    tokenizer = Tokenizer(
        models.BPE(
            vocab={written(raw): rank for raw, rank in ranks.items()},
            merges=[(written(left), written(right)) for *_, left, right in merges],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [NAMED.get(token, f"<|reserved_{token}|>") for token in range(FIRST_SPECIAL, VOCABULARY)]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    for token, text in NAMED.items():
        assert tokenizer.token_to_id(text) == token
    return tokenizer


def save(directory: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=harmony_tokenizer(), eos_token="<|return|>", pad_token="<|endoftext|>"
    ).save_pretrained(directory)
    torch.manual_seed(11)
    model = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=128,
            layer_types=["sliding_attention", "full_attention"],
            max_position_embeddings=8192,
            initializer_range=0.2,
            eos_token_id=200_002,
            pad_token_id=199_999,
            tie_word_embeddings=False,
        )
    )
    model.to(torch.bfloat16).save_pretrained(directory)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
