"""Models are found as folders of safetensors, copied into the cache, and identified by their content."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from kdray.errors import SpecError, TeacherError
from kdray.models.pretrained import (
    Head,
    Pretrained,
    cached_folder,
    find_model,
    import_model,
    save_model,
    weights_fingerprint,
)
from kdray.storage.paths import StoragePaths
from kdray.tasks.text_classification import TextClassification
from tests.models.tiny_bert import TINY


@pytest.fixture
def folder(teacher: Pretrained, tmp_path: Path) -> Path:
    """A copy of the teacher that a test may change."""
    return Path(shutil.copytree(teacher.folder, tmp_path / "model"))


def refusal_message(name: str | Path) -> str:
    with pytest.raises(TeacherError) as caught:
        find_model(str(name), None, "teacher.model")
    assert str(caught.value).startswith("teacher.model ")
    return str(caught.value)


def test_a_folder_is_found_and_loaded(folder: Path) -> None:
    assert find_model(str(folder), None, "teacher.model") == folder
    model = Pretrained(folder, "key").model()
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert Pretrained(folder, "key").layers == 4
    assert Pretrained(folder, "key").tokenizer()("good film")["input_ids"][0] != 0


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights in it; model.safetensors is missing" in refusal_message(folder)


def test_a_folder_with_pickled_weights_only_is_refused(folder: Path, teacher: Pretrained) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(teacher.model().state_dict(), folder / "pytorch_model.bin")
    message = refusal_message(folder)
    assert "only pickled weights (pytorch_model.bin)" in message
    assert "save_pretrained" in message


def test_pickled_weights_beside_safetensors_are_not_loaded(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"would raise if it were loaded")
    assert Pretrained(find_model(str(folder), None, "teacher.model"), "key").model().num_labels == 2


def test_a_folder_or_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    assert "no config.json in it" in refusal_message(tmp_path)
    for name in (tmp_path / "nowhere", "./nowhere", "~/nowhere", "a/b/c"):
        assert "no such folder" in refusal_message(name)
    (tmp_path / "file").touch()
    assert "no such folder" in refusal_message(tmp_path / "file")


@pytest.mark.parametrize("name", ["someone/nothing", "nothing", "not a name!"])
def test_a_model_that_the_hub_does_not_give_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal_message(name)
    assert f"teacher.model {name}: neither a local folder nor a model that the hub gave" in message
    assert "\n" not in message


def test_a_cached_folder_is_made_once_and_is_complete(tmp_path: Path) -> None:
    def fail_halfway(folder: Path) -> None:
        (folder / "a").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached_folder(tmp_path / "cache", fail_halfway)
    assert not list(tmp_path.iterdir())
    assert (cached_folder(tmp_path / "cache", lambda folder: (folder / "b").touch()) / "b").exists()
    assert cached_folder(tmp_path / "cache", fail_halfway) == tmp_path / "cache"


def test_the_fingerprint_covers_weights_configuration_and_tokenizer(folder: Path, teacher: Pretrained) -> None:
    original = weights_fingerprint(folder)
    assert original == weights_fingerprint(teacher.folder)
    (folder / "README.md").write_text("words")
    assert weights_fingerprint(folder) == original
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + b" ")
        assert weights_fingerprint(folder) != original
        (folder / name).write_bytes(content)


def test_a_tokenizer_without_a_padding_token_gets_that_of_the_config(
    folder: Path, task: TextClassification, tmp_path: Path
) -> None:
    model, tokenizer = Pretrained(folder, "").model(), Pretrained(folder, "").tokenizer()
    padding, tokenizer.pad_token = tokenizer.pad_token, None
    save_model(model, tokenizer, folder)
    imported = import_model(folder, task, Head(("negative", "positive")), StoragePaths(tmp_path / "storage"), 0)
    assert imported.tokenizer().pad_token == padding
    model.config.pad_token_id = None
    save_model(model, tokenizer, folder)
    with pytest.raises(TeacherError, match="has a padding token"):
        import_model(folder, task, Head(("negative", "positive")), StoragePaths(tmp_path / "storage"), 0)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (BertConfig(**TINY), 40),
        (RobertaConfig(**TINY, pad_token_id=0), 39),  # its first position is the one after the padding token's id
        (LlamaConfig(**TINY, pad_token_id=0), None),  # computes its positions, so it has no maximum
    ],
)
def test_a_model_with_too_few_positions_is_refused(
    config: PreTrainedConfig, longest: int | None, teacher: Pretrained, tmp_path: Path
) -> None:
    """The tokenizer does not know the maximum length, so a long text would end in an index error."""
    folder, tokenizer = tmp_path / "model", teacher.tokenizer()
    tokenizer.model_max_length = int(1e30)
    save_model(AutoModelForSequenceClassification.from_config(config), tokenizer, folder)

    def import_with(length: int) -> Pretrained:
        task, storage = TextClassification(max_length=length), StoragePaths(tmp_path / "storage")
        return import_model(folder, task, Head(("bad", "mixed", "good")), storage, 0)

    model = import_with(longest or 60).model()
    model(input_ids=torch.ones(1, longest or 60, dtype=torch.long))
    if longest:
        with pytest.raises(SpecError, match=f"task.max_length: got {longest + 1}; the model of .* at most {longest} "):
            import_with(longest + 1)
