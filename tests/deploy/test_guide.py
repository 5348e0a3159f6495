"""docs/cluster.md: its commands are valid shell, their options exist in Ray, and the named files exist."""

import re

from ray.scripts.scripts import cli as ray_cli

from tests.deploy.cluster_files import ROOT, assert_is_shell, read_text


def shell_lines() -> list[str]:
    """The commands of docs/cluster.md: the indented lines that begin with the name of a program."""
    lines = read_text("docs/cluster.md").replace("\\\n", " ").splitlines()
    programs = ("ray ", "bash ", "python ", "kubectl ", "docker ", "kdray ", "export ", "gcloud ", "aws ", "helm ")
    return [line.strip() for line in lines if line.startswith("    ") and line.strip().startswith(programs)]


def test_the_guides_commands_are_valid_shell() -> None:
    assert len(shell_lines()) > 20
    for line in shell_lines():
        assert_is_shell(line)


def test_the_options_of_the_guides_ray_commands_exist() -> None:
    seen = set()
    for line in shell_lines():
        words = re.sub(r"'[^']*'|\"[^\"]*\"", "quoted", line).split(" -- ")[0].split()
        if words[0] != "ray":
            continue
        command = ray_cli.get_command(None, words[1])  # type: ignore[arg-type]
        assert command, line
        if hasattr(command, "commands"):
            command = command.commands[words[2]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.split("=")[0] for word in words if word.startswith("-")} <= known, line
        seen.add(words[1])
    assert {"up", "submit", "exec", "down", "attach", "job"} <= seen


def test_the_files_that_the_guide_names_exist() -> None:
    named = set(re.findall(r"(?:deploy|sweeps|docs)/[\w./-]*\w\.\w+", read_text("docs/cluster.md")))
    written_by_the_user = {"deploy/onprem.yaml"}
    assert {name for name in named - written_by_the_user if not (ROOT / name).exists()} == set()
