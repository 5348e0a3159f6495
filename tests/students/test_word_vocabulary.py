"""Sources with whole words: their tokenizer, and their embeddings from a file or of the pieces of another source."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdray.data.splits import Splits
from kdray.data.tokens import TokenSet, tokenise
from kdray.errors import DataError, SpecError
from kdray.models.pretrained import Pretrained, save_model
from kdray.storage.paths import StoragePaths
from kdray.students import word_vocabulary
from kdray.students.convolutional import ConvolutionalStudent
from kdray.students.recurrent import RecurrentStudent
from kdray.students.static import StaticStudent
from kdray.students.word_student import WordStudent
from kdray.students.word_vocabulary import OwnWords, WordPlan
from kdray.tasks.text_classification import TextClassification
from tests.students.test_cut_vocabulary import FAMILIES, SIZES
from tests.vocabulary.tiny_tokenizers import TEXTS

TASK = TextClassification(max_length=48)
STUDENTS = (RecurrentStudent, ConvolutionalStudent, StaticStudent)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def source_of(tmp_path: Path, splits: Splits) -> Callable[[str], Pretrained]:
    """A function that saves a tiny model of a family, with a tokenizer of pieces."""

    def save(family: str) -> Pretrained:
        config_class, make_tokenizer = FAMILIES[family]
        tokenizer = make_tokenizer([*splits.train["text"], *TEXTS], 320 if family == "roberta" else 90)
        torch.manual_seed(0)
        labels = dict(enumerate(splits.labels))
        config = config_class(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            id2label=labels,
            label2id={name: number for number, name in labels.items()},
            **{name: size for name, size in SIZES.items() if name != "num_labels"},
        )
        save_model(AutoModelForSequenceClassification.from_config(config), tokenizer, tmp_path / family)
        return Pretrained(tmp_path / family, family)

    return save


@pytest.fixture
def paths(tmp_path: Path) -> StoragePaths:
    return StoragePaths(tmp_path / "storage")


def make_plan(words: OwnWords, source: Pretrained, splits: Splits, paths: StoragePaths) -> tuple[WordPlan, TokenSet]:
    tokens = tokenise(splits, TASK, source.tokenizer(), paths)
    return words.plan(source, tokens, splits), tokens


def counts_of(splits: Splits) -> Counter[str]:
    return Counter(word for text in splits.train["text"] for word in text.split())


def write_vectors(folder: Path, words: list[str]) -> tuple[str, dict[str, np.ndarray]]:
    """Write vectors of three numbers for these words. Returns the path and the vectors."""
    draw = np.random.default_rng(1)
    vectors = {word: draw.normal(size=3).astype(np.float32) for word in words}
    lines = [f"{word} {' '.join(map(repr, map(float, vector)))}" for word, vector in vectors.items()]
    (folder / "glove.txt").write_text("\n".join(lines))
    return str(folder / "glove.txt"), vectors


@every_family
def test_a_word_has_the_mean_of_its_pieces(
    family: str, source_of: Callable[..., Pretrained], splits: Splits, paths: StoragePaths
) -> None:
    source = source_of(family)
    plan, _ = make_plan(OwnWords(minimum_count=1), source, splits, paths)
    derived = plan.derive(source, paths)
    table, own = (model.model().get_input_embeddings().weight for model in (source, derived))
    pieces, words = source.tokenizer(), derived.tokenizer()
    assert table.shape[1] == own.shape[1]
    assert len(words) == len(own) == len(counts_of(splits)) + len(pieces.all_special_ids)
    for word in counts_of(splits):
        # The first word of a text is a special case for RoBERTa.
        inside = pieces(f"a {word}", add_special_tokens=False)["input_ids"]
        behind = len(pieces("a", add_special_tokens=False)["input_ids"])
        expected = table[inside[behind:]].mean(dim=0)
        assert torch.allclose(own[words.convert_tokens_to_ids(word)], expected, atol=1e-6), word
    for token in pieces.all_special_tokens:
        old, new = (each.convert_tokens_to_ids(token) for each in (pieces, words))
        assert torch.allclose(own[new], table[old])


@every_family
def test_special_tokens_are_those_of_the_source(
    family: str, source_of: Callable[..., Pretrained], splits: Splits, paths: StoragePaths
) -> None:
    source = source_of(family)
    plan, _ = make_plan(OwnWords(1), source, splits, paths)
    pieces, words = source.tokenizer(), plan.derive(source, paths).tokenizer()
    assert words.special_tokens_map == pieces.special_tokens_map
    assert words.model_input_names == pieces.model_input_names
    assert words.model_max_length == pieces.model_max_length
    added = [
        [each.convert_ids_to_tokens(number) for number in each(*texts)["input_ids"] if number in each.all_special_ids]
        for each in (pieces, words)
        for texts in (("good film",), ("good", "film"))
    ]
    assert added[:2] == added[2:]
    assert plan.derive(source, paths).config().pad_token_id == words.pad_token_id


def test_only_frequent_words_are_known(
    source_of: Callable[..., Pretrained], splits: Splits, paths: StoragePaths
) -> None:
    source, counts = source_of("bert"), counts_of(splits)
    least = sorted(counts.values())[len(counts) // 2]
    plan, tokens = make_plan(OwnWords(least), source, splits, paths)
    words = plan.derive(source, paths).tokenizer()
    assert {*words.get_vocab()} - {*words.all_special_tokens} == {word for word in counts if counts[word] >= least}
    rare = next(word for word in counts if counts[word] < least)
    assert words.tokenize(f"{rare}") == ["[UNK]"]
    after = tokenise(splits, TASK, words, paths)
    share = sum(count for count in counts.values() if count < least) / counts.total()
    assert f"{share:.2%} of the words of the texts to train on are unknown." in plan.describe(tokens, after)


def test_a_limit_keeps_the_most_frequent_words(
    source_of: Callable[..., Pretrained], splits: Splits, paths: StoragePaths
) -> None:
    source = source_of("bert")
    plan, _ = make_plan(OwnWords(1, limit=9), source, splits, paths)
    words = plan.derive(source, paths).tokenizer()
    most = [word for word, _ in sorted(counts_of(splits).items(), key=lambda item: (-item[1], item[0]))[:4]]
    assert {*words.get_vocab()} - {*words.all_special_tokens} == {*most}


def test_vectors_of_a_file(
    source_of: Callable[..., Pretrained], splits: Splits, paths: StoragePaths, tmp_path: Path
) -> None:
    counts = counts_of(splits)
    covered = sorted(counts)[::2]
    file, vectors = write_vectors(tmp_path, [*covered, "unused"])
    source = source_of("bert")
    plan, tokens = make_plan(OwnWords(1, file=file), source, splits, paths)
    derived = plan.derive(source, paths)
    table, words = derived.model().get_input_embeddings().weight.detach(), derived.tokenizer()
    assert table.shape == (len(words), 3)
    for word in covered:
        assert np.array_equal(table[words.convert_tokens_to_ids(word)].numpy(), vectors[word])
    # The others are drawn, each another one, and about as large.
    others = table[words.convert_tokens_to_ids([word for word in counts if word not in covered])]
    assert len(others.unique(dim=0)) == len(others)
    assert 0.3 < others.std() < 3
    note = plan.describe(tokens, tokenise(splits, TASK, words, paths))
    share = sum(counts[word] for word in covered) / counts.total()
    assert f"vectors for {len(covered) / len(counts):.1%} of the vocabulary, which are {share:.1%} of the words" in note
    assert plan.files == {f"student.embeddings {file}": plan.vectors.key if plan.vectors else ""}


def test_capitals_and_apostrophes_find_their_vectors() -> None:
    assert word_vocabulary._spellings("Isn\u2019t") == ("Isn\u2019t", "Isn't", "isn\u2019t", "isn't")


def test_too_few_covered_words_are_refused(
    source_of: Callable[..., Pretrained], splits: Splits, paths: StoragePaths, tmp_path: Path
) -> None:
    file, _ = write_vectors(tmp_path, ["film", "unused"])
    with pytest.raises(DataError, match=r"glove\.txt: it has vectors for 4\.8% of the 21 words .* at least 10%"):
        make_plan(OwnWords(1, file=file), source_of("bert"), splits, paths)


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("embeddings", ["source", "drawn", "file"])
def test_students_of_each_family_read_words(
    student: type[WordStudent],
    embeddings: str,
    source_of: Callable[..., Pretrained],
    splits: Splits,
    paths: StoragePaths,
    tmp_path: Path,
) -> None:
    file, _ = write_vectors(tmp_path, sorted(counts_of(splits)))
    settings = student(tokenizer="words", embeddings=file if embeddings == "file" else embeddings)
    vocabulary = settings.own_vocabulary
    assert isinstance(vocabulary, OwnWords)
    source = source_of("bert")
    plan, _ = make_plan(vocabulary, source, splits, paths)
    derived = plan.derive(source, paths)
    settings.check(derived)
    built = settings.build(derived.model(), seed=0)
    width = 3 if embeddings == "file" else 16
    assert built.get_input_embeddings().weight.shape == (len(derived.tokenizer()), width)
    assert built.config.id2label == dict(enumerate(splits.labels))
    assert settings.architecture(derived)["embedding_width"] == width
    is_copied = torch.equal(built.get_input_embeddings().weight, derived.model().get_input_embeddings().weight)
    assert is_copied == (embeddings != "drawn")
    # The shape, which costs are measured of, reads the same words.
    assert settings.shape.own_vocabulary == vocabulary
    save_model(built, derived.tokenizer(), tmp_path / "student")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "student")("good film", return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs).logits, built(**inputs).logits)


def test_embeddings_wider_than_those_of_the_file_are_refused(
    source_of: Callable[..., Pretrained], splits: Splits, paths: StoragePaths, tmp_path: Path
) -> None:
    file, _ = write_vectors(tmp_path, sorted(counts_of(splits)))
    settings = RecurrentStudent(tokenizer="words", embeddings=file, embedding_width=8)
    source = source_of("bert")
    plan, _ = make_plan(OwnWords(2, file=file), source, splits, paths)
    with pytest.raises(SpecError, match=r"student\.embedding_width: got 8, but .* width of 3"):
        settings.check(plan.derive(source, paths))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"embeddings": "glove.txt"}, r"student\.embeddings: got 'glove\.txt', .* Set student\.tokenizer='words', too"),
        ({"embeddings": ""}, "at least 1 character"),
        ({"tokenizer": "letters"}, "'source' or 'words'"),
        ({"minimum_count": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        RecurrentStudent(**settings)


def test_the_least_count_makes_no_architecture_of_pieces() -> None:
    assert RecurrentStudent(minimum_count=5).shape == RecurrentStudent().shape
    assert RecurrentStudent(minimum_count=5, tokenizer="words").shape != RecurrentStudent(tokenizer="words").shape
