import os
import subprocess
import sys

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.models.registry import load_registry

pytestmark = pytest.mark.integration
ADD = "from trainer.models.cli import app; app()"


@pytest.fixture
def folder(tmp_path):
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_hub_base_is_read_from_the_cache_offline_and_pinned_to_its_commit(folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hf/hub/models--org--name"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "snapshots" / commit).symlink_to(folder)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}

    def add(revision):
        command = [sys.executable, "-c", ADD, "add", "b", "--hf", "org/name",
                   "--revision", revision, "--state-dir", str(tmp_path)]  # fmt: skip
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert add("main").returncode == 0
    assert load_registry(tmp_path / "models.yaml").get("b").source.revision == commit
    absent = add("f" * 40)
    assert absent.returncode == 1
    assert "not in the cache" in absent.stderr
