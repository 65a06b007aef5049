import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from shared.errors import ConfigError, ModelError
from shared.training import Training
from trainer.models.cli import app
from trainer.models.inspect import describe, local_folder
from trainer.models.registry import BaseEntry, PathSource, load_registry, register, registry_path, remove

TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base that can chat, and one without a chat template."""
    root = tmp_path_factory.mktemp("bases")
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=96,
    )  # fmt: skip
    words = Tokenizer(WordLevel({"<unk>": 0, "user": 1, "assistant": 2, "</s>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    for name, template in (("mute", None), ("chats", TEMPLATE)):
        tokenizer.chat_template = template
        LlamaForCausalLM(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def entry(path="/x", **fields):
    return BaseEntry(source=PathSource(path=path), context_length=64, lora_targets=("q_proj",), **fields)


def test_a_base_describes_itself(folders):
    described = describe("b", PathSource(path=folders / "chats"))
    assert described.context_length == 96
    assert set(described.lora_targets) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_what_is_given_wins_and_is_checked(folders):
    source = PathSource(path=folders / "chats")
    assert describe("b", source, context_length=32, lora_targets=["q_proj"]).lora_targets == ("q_proj",)
    with pytest.raises(ModelError, match="no linear modules named qq_proj"):
        describe("b", source, lora_targets=["qq_proj"])


def test_a_base_that_cannot_chat_needs_a_template_and_every_reader_then_sees_it(folders, tmp_path):
    source = PathSource(path=folders / "mute")
    with pytest.raises(ModelError, match="--chat-template FILE"):
        describe("b", source)
    with pytest.raises(ModelError, match="cannot render"):
        describe("b", source, chat_template="{% for %}")
    described = describe("org/b", source, chat_template=TEMPLATE)
    folder = local_folder(described, "org/b", tmp_path)
    folder = local_folder(described, "org/b", tmp_path)
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
    assert (folder / "config.json").is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no folder"),
        (lambda folder: folder.mkdir(), "holds no weights"),
        (lambda folder: (folder.mkdir(), (folder / "a.safetensors").touch()), "no model config"),
    ],
)
def test_a_folder_that_is_no_base_is_refused(tmp_path, make, message):
    make(tmp_path / "b")
    with pytest.raises(ModelError, match=message):
        describe("b", PathSource(path=tmp_path / "b"))


def test_only_the_defaults_that_were_set_are_kept(tmp_path):
    file = tmp_path / "models.yaml"
    register(file, "b", entry(training=Training(batch_size=8)))
    assert load_registry(file).get("b").training.model_fields_set == {"batch_size"}


def test_an_unknown_id_names_the_command(tmp_path):
    register(tmp_path / "models.yaml", "known", entry())
    registry = load_registry(tmp_path / "models.yaml")
    with pytest.raises(ModelError, match=r"there are: known.*tether models add other --path DIR"):
        registry.get("other")
    with pytest.raises(ModelError, match=r"tether models add ID --path DIR"):
        registry.get("../../etc")
    with pytest.raises(ModelError, match="'other'"):
        remove(tmp_path / "models.yaml", "other")
    remove(tmp_path / "models.yaml", "known")
    assert load_registry(tmp_path / "models.yaml").models == {}


@pytest.mark.parametrize(
    "model_id", ["", "../x", "a/../b", "a/b/c", "ft:a", "a b", "-a", "a/", "ä", "x" * 129]
)
def test_odd_ids_are_refused(tmp_path, model_id):
    with pytest.raises(ModelError, match="cannot be a model's id"):
        register(tmp_path / "models.yaml", model_id, entry())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "not YAML"),
        ("models: {b: {context_length: 3}}", "models.b.source: Field required"),
        ("modles: {}", "modles: Extra inputs"),
    ],
)
def test_a_broken_registry_names_the_field(tmp_path, text, message):
    (tmp_path / "models.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_registry(tmp_path / "models.yaml")


def test_the_environment_can_name_the_file(tmp_path):
    assert registry_path(tmp_path, {}) == tmp_path / "models.yaml"
    assert registry_path(tmp_path, {"TETHER_MODELS": "/m.yaml"}).as_posix() == "/m.yaml"


def test_the_command_adds_lists_and_removes(folders, tmp_path):
    run = CliRunner()
    where = ["--state-dir", str(tmp_path)]
    added = run.invoke(app, ["add", "tiny", "--path", str(folders / "chats"), *where])
    assert added.exit_code == 0, added.output
    assert "context 96 tokens" in added.output
    assert "tiny" in run.invoke(app, ["list", *where]).output
    refused = run.invoke(app, ["add", "tiny", "--path", "x", "--hf", "a/b", *where])
    assert isinstance(refused.exception, ConfigError)
    assert run.invoke(app, ["remove", "tiny", *where]).exit_code == 0
    assert load_registry(tmp_path / "models.yaml").models == {}
