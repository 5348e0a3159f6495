"""The commit of a result: found without running a program that a stranger's repository names."""

import subprocess
from pathlib import Path

import pytest

from kdray.tracking.origin import git_commit


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of one file, and no settings of the user or the machine."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "repository"
    git(tmp_path, "init", "--quiet", str(folder))
    (folder / "sweep.py").write_text("one\n")
    git(folder, "add", "sweep.py")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message", "one")
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def test_a_changed_file_is_marked_and_a_new_file_is_not(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert len(commit) == 40
    (repository / "results.csv").touch()
    assert git_commit(repository) == commit
    (repository / "sweep.py").write_text("two\n")
    assert git_commit(repository) == f"{commit}-dirty"


def test_a_folder_without_a_commit_has_none(repository: Path, tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    git(tmp_path, "init", "--quiet", "empty")
    assert git_commit(tmp_path / "empty") is None


@pytest.mark.parametrize("place", ["config", "included", "config.worktree"])
@pytest.mark.parametrize("setting", ["core.fsmonitor", "filter.own.clean", "filter.own.process"])
def test_no_program_of_the_repository_is_run(repository: Path, tmp_path: Path, setting: str, place: str) -> None:
    marker, hook = tmp_path / "was-run", tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch '{marker}'\ncat\n")
    hook.chmod(0o755)
    if place == "included":
        git(repository, "config", "include.path", "other")
    if place == "config.worktree":
        git(repository, "config", "core.repositoryformatversion", "1")
        git(repository, "config", "extensions.worktreeConfig", "true")
    file = repository / ".git" / {"included": "other"}.get(place, place)
    git(repository, "config", "--file", str(file), setting, str(hook))
    (repository / ".gitattributes").write_text("*.py filter=own\n")
    (repository / "sweep.py").write_text("two\n")
    commit = git_commit(repository)
    assert not marker.exists()
    assert commit is not None
    # The attack is real: Git itself runs the program.
    subprocess.run(["git", "-C", str(repository), "status"], capture_output=True, check=False, timeout=30)
    assert marker.exists()


@pytest.mark.parametrize(
    "remote",
    [
        {"remote.origin.url": "ext::sh -c touch% MARKER", "protocol.ext.allow": "always"},
        {"remote.origin.url": ".", "remote.origin.uploadpack": "touch 'MARKER'; git-upload-pack"},
        {"remote.origin.url": "ssh://a@b/c", "core.sshCommand": "touch 'MARKER'; false"},
    ],
    ids=["ext", "local", "ssh"],
)
def test_a_missing_object_is_not_fetched_by_a_program_of_the_repository(
    repository: Path, tmp_path: Path, remote: dict[str, str]
) -> None:
    """Git fetches an object that is missing in a partial clone, also when it only compares files."""
    marker = tmp_path / "was-run"
    settings = {
        "core.repositoryformatversion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
    }
    for name, value in {**settings, **remote}.items():
        git(repository, "config", name, value.replace("MARKER", str(marker)))
    commit, tree = git(repository, "rev-parse", "HEAD"), git(repository, "rev-parse", "HEAD^{tree}")
    (repository / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    assert git_commit(repository) == commit
    assert not marker.exists()
    # The attack is real: Git itself runs the program.
    subprocess.run(["git", "-C", str(repository), "status"], capture_output=True, check=False, timeout=30)
    assert marker.exists()


def test_names_that_are_no_text_hide_no_filter(repository: Path, tmp_path: Path) -> None:
    (repository / ".gitattributes").write_text("*.py filter=own\n")
    with (repository / ".git" / "config").open("ab") as file:
        file.write(b'[filter "own"]\n\tclean = touch \'' + bytes(tmp_path / "was-run") + b'\'\n[a "\xff"]\n\tb = c\n')
    (repository / "sweep.py").write_text("two\n")
    assert git_commit(repository) == git(repository, "rev-parse", "HEAD")
    assert not (tmp_path / "was-run").exists()


def test_filters_of_the_user_are_used(repository: Path, tmp_path: Path) -> None:
    git(repository, "config", "--file", str(tmp_path / "gitconfig"), "filter.own.clean", "sed s/two/one/")
    (repository / ".gitattributes").write_text("*.py filter=own\n")
    (repository / "sweep.py").write_text("two\n")
    assert git_commit(repository) == git(repository, "rev-parse", "HEAD")
