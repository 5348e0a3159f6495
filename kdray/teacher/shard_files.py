"""Files that the slots write together, each with a part of the rows, and the manifest of those that are complete.

A file is complete as soon as it has its name. A folder is complete when its manifest names all its files.

    manifest.json      the fingerprint of each file, by name
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import PreTrainedModel

from kdray.models.pretrained import Pretrained
from kdray.slots.job import Job, Pool, Worker
from kdray.storage.files import delete_abandoned, file_fingerprint, read_json, write_json
from kdray.storage.mirror import delete, fetch_files

MANIFEST = "manifest.json"


def missing_files(
    folder: Path, names: Iterable[str], on_note: Callable[[str], None], remedy: str = "it is written again"
) -> tuple[list[str], bool]:
    """The files to write, and whether the folder is not known to be complete. Damaged files are deleted, with a note.

    `names` are the files of the complete folder. `on_note` receives a sentence for each damaged file, which ends with
    the `remedy`. Temporary files of writers that were killed are deleted.
    """
    delete_abandoned(folder)
    names, known = list(names), _read_manifest(folder / MANIFEST)
    # Only the files of this folder: a name in the manifest decides which file is deleted.
    for name, digest in ((name, known[name]) for name in names if name in known):
        if (folder / name).exists() and file_fingerprint(folder / name) != digest:
            delete(folder / name)
            on_note(f"{folder / name}: damaged; {remedy}.")
    missing = [name for name in names if not (folder / name).exists()]
    return missing, bool(missing) or known.keys() != set(names)


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Record that these files make the complete folder."""
    fetch_files(folder)
    write_json(folder / MANIFEST, {name: file_fingerprint(folder / name) for name in names})


def run_jobs(pool: Pool, jobs: Mapping[str, Job]) -> Iterator[str]:
    """Run jobs (name -> job) on all slots, and yield the name of each, in their order, when it has ended."""

    def run(name: str) -> str:
        list(pool.run(jobs[name], name))
        return name

    # One thread for each slot, because iterating the reports of a job blocks until it ends.
    with ThreadPoolExecutor(pool.count) as threads:
        yield from threads.map(run, jobs)


def cached_model(teacher: Pretrained, worker: Worker) -> PreTrainedModel:
    """The teacher on the worker's device. It stays there for the next job."""
    model: PreTrainedModel = worker.cached(("model", teacher.key), lambda: teacher.model().to(worker.device))
    return model


def _read_manifest(manifest: Path) -> dict[str, str]:
    """The fingerprint of each checked file, by file name; empty if there is no manifest, or none that kdray writes."""
    known = read_json(manifest) if manifest.exists() else {}
    return known if isinstance(known, dict) else {}
