"""The files of a model folder: which kinds are read, where links may lead, and their fingerprint.

A folder comes from a stranger, so a link in it may name any file of this machine. If such a link were followed, the
file would be published with the student: in the cache, in an export and in a model registry.
"""

from collections.abc import Iterator
from pathlib import Path

from kdray.errors import TeacherError
from kdray.safe_text.escaping import printable
from kdray.storage.files import file_fingerprint

HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model")
"""Patterns of the files that most models and their tokenizers consist of."""
TEMPLATES = "additional_chat_templates"
"""The folder in a model folder in which transformers looks for further chat templates."""
OTHER_FILES = ("*.jinja", f"{TEMPLATES}/*.jinja", "*.codes", "*.tokenizer", "*.tiktoken", "tokenizer.model.v*")
"""Patterns of files that few models have: chat templates, and vocabularies with rarer names."""
FILES = (*HUB_FILES, *OTHER_FILES)
"""Patterns of the files that are downloaded, fingerprinted and copied; no others are."""


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that are read, in the order of their names."""
    # A set, because one file can match two patterns.
    return sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})


def weights_fingerprint(folder: Path) -> str:
    """A fingerprint of everything that decides a model's outputs: weights, configuration, tokenizer, chat templates."""
    return file_fingerprint(*model_files(folder))


def check_files(folder: Path, setting: str) -> None:
    """Raise TeacherError if a file of this folder is a link that leads out of it, or is no regular file.

    `setting` is the setting that names the folder, for the message.
    """
    places = (folder.resolve(), *_blob_folders(folder))
    for path in _entries(folder):
        if not path.is_file() and not path.is_dir():
            raise TeacherError(
                f"{setting} {folder}: {printable(path.name, 100)} is no regular file, or a link to nothing. Remove it."
            )
        target = path.resolve()
        if path.is_symlink() and not any(target.is_relative_to(place) for place in places):
            raise TeacherError(
                f"{setting} {folder}: {printable(path.name, 100)} is a link that leads out of the folder, to "
                f"{printable(path.readlink(), 200)}. Such a link is not followed, because the file behind it would be "
                "published with the student. Put the file itself in its place."
            )


def _entries(folder: Path) -> Iterator[Path]:
    """Everything in the folder that transformers may read. It never reads other folders in it."""
    for path in sorted(folder.iterdir()):
        if path.name == TEMPLATES:
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from sorted(path.iterdir())
        elif not path.is_dir():
            yield path


def _blob_folders(folder: Path) -> tuple[Path, ...]:
    """Where the files of a snapshot in the cache of the model hub lie; none for any other folder.

    CACHE/models--OWNER--NAME/snapshots/REVISION/config.json is a link to CACHE/models--OWNER--NAME/blobs/HASH, which
    may be a link to CACHE/blobs/XX/HASH.
    """
    repository = folder.resolve().parent.parent
    if folder.resolve().parent.name != "snapshots" or not repository.name.startswith("models--"):
        return ()
    # Not resolved: if `blobs` itself were a link, files could lie anywhere.
    return (repository / "blobs", repository.parent / "blobs")
