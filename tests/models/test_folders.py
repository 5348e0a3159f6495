"""A stranger's model folder decides nothing: no link, no code, no absurd number in it is followed.

And the odd folders that people have are each refused with a sentence that says what to do.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification

from kdray.data.splits import Splits
from kdray.errors import TeacherError
from kdray.models.folders import weights_fingerprint
from kdray.models.pretrained import Head, Pretrained, find_model, import_model
from kdray.storage.files import file_fingerprint
from kdray.storage.paths import StoragePaths
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import Teacher, obtain_source
from kdray.training.settings import Training

Change = Callable[[Path], None]


@pytest.fixture
def folder(teacher: Pretrained, tmp_path: Path) -> Path:
    """A copy of the teacher that a test may change."""
    return Path(shutil.copytree(teacher.folder, tmp_path / "model"))


def refusal(folder: Path) -> str:
    """The sentence with which this folder is refused, before anything is loaded."""
    with pytest.raises(TeacherError) as caught:
        find_model(str(folder), None, "teacher.model")
    message = str(caught.value)
    assert message.startswith(f"teacher.model {folder}: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def edit(folder: Path, name: str, **entries: Any) -> None:
    """Set entries of a JSON file."""
    file = folder / name
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | entries))


def shard(folder: Path, index: dict[str, Any] | None = None) -> None:
    """Divide the weights into two files with an index; entries of `index` replace those of the index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    written = {"metadata": {"total_size": 1}, "weight_map": weight_map} | (index or {})
    (folder / "model.safetensors.index.json").write_text(json.dumps(written))


# Links ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat_template.jinja", "vocab.txt", "model.safetensors", "notes.txt", "config.json"])
def test_a_link_that_leads_out_of_the_folder_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("password")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    assert f"{name} is a link that leads out of the folder, to {outside}." in refusal(folder)
    with pytest.raises(TeacherError, match="is a link that leads out of the folder"):
        Pretrained(folder, "").tokenizer()


def test_a_folder_of_templates_that_leads_out_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (folder / "additional_chat_templates").symlink_to(tmp_path / "templates")
    assert "additional_chat_templates is a link that leads out of the folder" in refusal(folder)
    (folder / "additional_chat_templates").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "a.jinja").symlink_to(tmp_path / "templates")
    assert "a.jinja is a link that leads out of the folder" in refusal(folder)


def test_a_link_to_nothing_or_itself_and_a_pipe_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "vocab.txt")
    assert "vocab.txt is no regular file" in refusal(folder)
    (folder / "vocab.txt").unlink()
    for target in ("nothing", "vocab.txt"):
        (folder / "vocab.txt").symlink_to(target)
        assert "vocab.txt is no regular file, or a link to nothing" in refusal(folder)
        (folder / "vocab.txt").unlink()


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_snapshot_in_the_cache_of_the_hub_is_read(is_shared: bool, folder: Path, tmp_path: Path) -> None:
    """Its files are links to blobs, which may be links to blobs that several models share."""
    repository = tmp_path / "cache" / "models--someone--bert"
    snapshot, blobs = repository / "snapshots" / "0a1b", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = tmp_path / "cache" / "blobs" / "ab" / str(number) if is_shared else blobs / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        if is_shared:
            (blobs / str(number)).symlink_to(f"../../blobs/ab/{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    found = find_model(str(snapshot), None, "teacher.model")
    assert Pretrained(found, "").model().num_labels == 2
    (tmp_path / "secret").write_text("password")
    (snapshot / "vocab.txt").symlink_to(tmp_path / "secret")
    assert "vocab.txt is a link that leads out of the folder" in refusal(snapshot)


def test_a_snapshot_whose_blobs_are_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--someone--bert" / "snapshots" / "0a1b"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_text("password")
    (tmp_path / "models--someone--bert" / "blobs").symlink_to(tmp_path / "home")
    (snapshot / "vocab.txt").symlink_to("../../blobs/secret")
    assert "vocab.txt is a link that leads out of the folder" in refusal(snapshot)


def test_a_file_that_may_not_be_read_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "config.json")  # root may read all files
    assert f"you may not read {folder / 'config.json'}. Change its permissions" in refusal(folder)


def test_links_within_the_folder_and_a_link_to_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors").symlink_to("weights.safetensors")
    (tmp_path / "current").symlink_to(folder)
    assert find_model(str(tmp_path / "current"), None, "teacher.model") == tmp_path / "current"


# The files that are read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tools.jinja", "bpe.codes"])
def test_files_of_rarer_kinds_are_in_the_fingerprint(name: str, folder: Path) -> None:
    prints = {weights_fingerprint(folder)}
    (folder / name).parent.mkdir(exist_ok=True)
    for text in ("{{ messages }}", "{{ messages[0] }}"):
        (folder / name).write_text(text)
        prints.add(weights_fingerprint(folder))
    assert len(prints) == 3


def test_the_fingerprint_of_a_folder_without_such_files_is_that_of_earlier_versions(folder: Path) -> None:
    """Otherwise no sweep of an earlier version could be continued."""
    (folder / "README.md").write_text("words")
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert weights_fingerprint(folder) == file_fingerprint(*(folder / name for name in names))


# Weights --------------------------------------------------------------------------------------------------------------


class RunsCode:
    """An object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.write_text, (self.file, "code ran")


def test_weights_in_shards_are_read(folder: Path) -> None:
    shard(folder)
    assert find_model(str(folder), None, "teacher.model") == folder
    assert Pretrained(folder, "").model().num_labels == 2


@pytest.mark.parametrize("name", ["evil.bin", "../model/evil.bin", "../secret.safetensors", "/etc/passwd", 7])
def test_an_index_may_name_safetensors_in_the_folder_only(name: Any, folder: Path, tmp_path: Path) -> None:
    shard(folder, {"weight_map": {"classifier.weight": name}})
    shutil.copy(folder / "model-00001-of-00002.safetensors", tmp_path / "secret.safetensors")
    torch.save(RunsCode(tmp_path / "ran"), folder / "evil.bin")
    assert f"names {name!r}, which is no safetensors file in that folder" in refusal(folder)
    with pytest.raises(TeacherError, match="which is no safetensors file in that folder"):
        Pretrained(folder, "").model()
    assert not (tmp_path / "ran").exists()


def lose_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def lose_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()


def write_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 437955512\n"
    (folder / "model.safetensors").write_text(pointer)


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def write_huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def make_trainer_output(folder: Path) -> None:
    files = list(folder.iterdir())
    for step in (500, 1000):
        (folder / f"checkpoint-{step}").mkdir()
        for file in files:
            shutil.copy(file, folder / f"checkpoint-{step}")
    for file in files:
        file.unlink()


def remove_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def drop_model_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))


def writer(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text) and None


def editor(name: str, **entries: Any) -> Change:
    return lambda folder: edit(folder, name, **entries)


DEEP = '{"a":' * 200_000 + "0" + "}" * 200_000
ODD: dict[str, tuple[Change, str]] = {
    "git-lfs": (write_pointer, "model.safetensors is a Git LFS pointer, not the weights. Run `git lfs pull`"),
    "truncated": (truncate, "is truncated or no safetensors file"),
    "huge-header": (write_huge_header, "is truncated or no safetensors file"),
    "empty-weights": (writer("model.safetensors", " "), "is truncated or no safetensors file"),
    "lost-shard": (lose_shard, "model-00002-of-00002.safetensors, but 1 of the 2 weight files are missing"),
    "lost-index": (lose_index, "so model-00001-of-00002.safetensors is not loaded. Copy the index, too"),
    "empty-index": (lambda folder: shard(folder, {"weight_map": {}}), "has no weight_map or no metadata"),
    "index-without-metadata": (lambda folder: shard(folder, {"metadata": None}), "has no weight_map or no metadata"),
    "config-no-json": (writer("config.json", "{'a': 1}"), "config.json is no JSON ("),
    "config-is-a-list": (writer("config.json", "[]"), "config.json holds a list, not a JSON object"),
    "config-of-bytes": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00") and None, "is no JSON ("),
    "tokenizer-no-json": (writer("tokenizer.json", "<html>404</html>"), "tokenizer.json is no JSON ("),
    "tokenizer-config-no-json": (writer("tokenizer_config.json", ""), "tokenizer_config.json is no JSON ("),
    "no-model-type": (drop_model_type, "config.json has no model_type"),
    "unknown-model-type": (editor("config.json", model_type="brt"), "model_type 'brt', which transformers"),
    "model-type-is-a-list": (editor("config.json", model_type=["bert"]), "model_type ['bert'], which transformers"),
    "own-code": (editor("config.json", auto_map={"AutoModel": "modeling.Model"}), "config.json has auto_map, so the"),
    "vision": (
        editor("config.json", model_type="vit", architectures=["ViTForImageClassification"]),
        "a vit model (ViTForImageClassification) is no classifier of texts",
    ),
    "seq2seq": (
        editor("config.json", model_type="bart"),
        "(BertForSequenceClassification) is not accepted, because it has an encoder",
    ),
    "layout": (editor("config.json", model_type="layoutlm"), "reads the places of the words"),
    "no-tokenizer": (remove_tokenizer, "no tokenizer in it: there is neither tokenizer.json nor another vocabulary"),
    "adapter": (writer("adapter_config.json", "{}"), "so this is a PEFT adapter, which changes another model. Merge"),
    "trainer-output": (make_trainer_output, "2 checkpoints of a Trainer. Give one of them: the last one is"),
    "deep-config": (writer("config.json", DEEP), "config.json is nested more than 100 levels deep"),
    "deep-tokenizer": (writer("tokenizer.json", DEEP), "tokenizer.json is nested more than 100 levels deep"),
    "deep-lists": (writer("config.json", '{"a":' + "[" * 101 + "]" * 101 + "}"), "nested more than 100 levels deep"),
    "nan": (writer("config.json", '{"hidden_size": NaN}'), "config.json is no JSON (NaN is no number)"),
    "huge-width": (editor("config.json", hidden_size=10**9), "hidden_size=1000000000; at most 100,000,000 is allowed"),
    "many-layers": (editor("config.json", num_hidden_layers=10**9), "num_hidden_layers=1000000000; at most 500 is"),
    "many-labels": (editor("config.json", num_labels=10**9), "num_labels=1000000000; at most 100,000 is allowed"),
    "many-blocks": (editor("config.json", block_sizes=[10**9]), "block_sizes=1000000000; at most 500 is allowed"),
    "wide-windows": (editor("config.json", attention_window=[8, 10**8]), "at most 20,000 is allowed"),
    "repeated-patterns": (editor("config.json", attention_types=[[["global"], 10**9]]), "at most 500 is allowed"),
    "nested-number": (editor("config.json", sub={"vocab_size": 1e12}), "vocab_size=1000000000000.0; at most"),
    "large-config": (writer("config.json", '{"a": "' + "a" * 10_000_001 + '"}'), "at most 10,000,000 are read"),
}
"""A change of a good folder -> a part of the sentence with which it is refused."""


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_folder_is_refused_with_a_sentence(odd: str, folder: Path) -> None:
    change, expected = ODD[odd]
    change(folder)
    message = refusal(folder)
    assert expected in message
    assert message.endswith(".")
    assert len(message) - len(str(folder)) < 600


def test_the_last_checkpoint_of_a_trainer_is_the_one_with_the_highest_number(folder: Path) -> None:
    make_trainer_output(folder)
    assert f"the last one is {folder / 'checkpoint-1000'};" in refusal(folder)
    assert find_model(str(folder / "checkpoint-1000"), None, "teacher.model")


def test_the_states_of_a_trainer_may_have_nan(folder: Path) -> None:
    (folder / "trainer_state.json").write_text('{"loss": NaN}')
    assert find_model(str(folder), None, "teacher.model") == folder


# Code and files elsewhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("config.json", {"attn_implementation": "stranger/kernel"}),
        ("config.json", {"_attn_implementation": "kernels-community/flash-attn2"}),
        ("config.json", {"_attn_implementation_internal": "flash_attention_2"}),
        ("config.json", {"attn_implementation": {"": "stranger/kernel"}}),
        ("config.json", {"text_config": {"attn_implementation": "stranger/kernel"}}),
        ("config.json", {"parts": [{"experts_implementation": "stranger/kernel"}]}),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("config.json", {"transformers_weights": "other.safetensors"}),
        ("config.json", {"fusion_config": {"a": True}}),
        ("config.json", {"tokenizer_class": "AutoModelForSequenceClassification"}),
        ("config.json", {"custom_pipelines": {"a": {"impl": "pipeline.Pipe"}}}),
        ("config.json", {"sub": {"auto_map": {"AutoModel": "someone/repo--modeling.Model"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization.Words", None]}}),
        ("tokenizer_config.json", {"auto_map": ["tokenization.Words", None]}),
        ("tokenizer_config.json", {"tokenizer_class": "AutoModel"}),
        ("tokenizer_config.json", {"tokenizer_class": "AutoTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": "../tokenization.BertTokenizer"}),
        ("tokenizer_config.json", {"gguf_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"tokenizer_class": "RagTokenizer"}),
        ("special_tokens_map.json", {"gguf_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0/../../secret.json"]}),
        ("tokenizer_config.json", {"sp_model_kwargs": {"model_file": "/etc/passwd"}}),
        ("tokenizer_config.json", {"sudachi_kwargs": {"sudachi_config_path": "/tmp/sudachi.json"}}),
        ("tokenizer_config.json", {"jumanpp_kwargs": {"a": "b"}}),
        ("tokenizer_config.json", {"vocab": "/etc/passwd"}),
        ("tokenizer_config.json", {"merges": "/etc/passwd"}),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}),
        ("special_tokens_map.json", {"vocab": "/etc/passwd"}),
    ],
)
def test_an_entry_that_makes_transformers_run_or_open_something_is_refused(
    file: str, entries: dict[str, Any], folder: Path
) -> None:
    edit(folder, file, **entries)
    message = refusal(folder)
    assert f"{file} has " in message
    assert "brings Python code of its own" in message or "run or open something outside of this folder" in message
    with pytest.raises(TeacherError, match=r"code of its own|run or open something outside"):
        Pretrained(folder, "").model()  # also a folder that was changed after it was found


def test_transformers_reads_a_private_file_as_the_vocabulary(folder: Path, tmp_path: Path) -> None:
    """The attack that `vocab` is refused for: the words would be saved with the student."""
    private = tmp_path / "private"
    private.write_text("[UNK]\n[PAD]\nhunter2\n")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[UNK]\n[PAD]\nfilm\n")
    entries = {"tokenizer_class": "BertTokenizer", "vocab": str(private)}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    assert "hunter2" in AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab()
    assert "run or open something outside of this folder" in refusal(folder)


def test_harmless_entries_of_published_models_are_accepted(folder: Path) -> None:
    edit(folder, "config.json", _attn_implementation_autoset=True, attn_implementation="sdpa", quantization_config=None)
    edit(folder, "config.json", model_max_length=int(1e30), rope_theta=10**9, task_specific_params={"a": {"b": 1}})
    edit(
        folder,
        "tokenizer_config.json",
        special_tokens_map_file="/root/.cache/x",
        sp_model_kwargs={"alpha": 0.1},
        init_inputs=[],
    )
    Pretrained(find_model(str(folder), None, "teacher.model"), "").model()


# What only loading shows ----------------------------------------------------------------------------------------------


def import_refusal(folder: Path, storage: Path, labels: tuple[str, ...] = ("negative", "positive")) -> str:
    """The sentence with which a folder is refused that looks right from outside."""
    assert find_model(str(folder), None, "teacher.model") == folder
    with pytest.raises(TeacherError) as caught:
        import_model(folder, TextClassification(max_length=16), Head(labels), StoragePaths(storage), 0)
    assert not any((storage / "cache").rglob("*.safetensors"))
    return str(caught.value)


def test_a_model_that_is_larger_than_its_weights_is_refused_before_memory_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise transformers draws the weights that do not fit, here for 121 GB."""
    monkeypatch.setattr(BertForSequenceClassification, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    edit(folder, "config.json", hidden_size=32_000, vocab_size=400_000)
    message = import_refusal(folder, tmp_path)
    assert "config.json describes a model of 30,226,272,258 weights, but the weight files have 36," in message
    with pytest.raises(TeacherError, match=r"config\.json describes a model of 30,226,272,258 weights"):
        Pretrained(folder, "").model()  # also a folder in the storage that somebody changed


def test_the_config_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    """Otherwise nearly all weights would be random, and nobody would know why the teacher is near chance."""
    edit(folder, "config.json", model_type="roberta")
    assert "weights that config.json describes are not in the weight files" in import_refusal(folder, tmp_path)


@pytest.mark.parametrize("entries", [{"hidden_size": "32"}, {"hidden_size": 33}, {"num_attention_heads": 0}])
def test_a_config_that_transformers_cannot_use_is_a_sentence(
    entries: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    edit(folder, "config.json", **entries)
    assert "transformers cannot load this model or its tokenizer (" in import_refusal(folder, tmp_path)


@pytest.mark.parametrize("entries", [{"id2label": ["bad", "good"]}, {"id2label": "bad"}, {"hidden_size": "32"}])
@pytest.mark.parametrize("training", [None, Training()])
def test_odd_labels_in_a_config_are_a_sentence(
    entries: dict[str, Any], training: Training | None, folder: Path, splits: Splits, tmp_path: Path
) -> None:
    edit(folder, "config.json", **entries)
    teacher = Teacher(model=str(folder), training=training)
    with pytest.raises(TeacherError, match="transformers cannot load this model or its tokenizer"):
        obtain_source(teacher, TextClassification(max_length=16), splits, StoragePaths(tmp_path), 0)


def test_a_vocabulary_without_words_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "its tokenizer knows no word, only 5 special tokens" in import_refusal(folder, tmp_path)
