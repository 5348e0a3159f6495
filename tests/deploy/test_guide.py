"""docs/cluster.md: its commands are commands, with options that Ray has, on files that are there."""

import re

from ray.scripts.scripts import cli as ray_cli

from tests.deploy.cluster_files import ROOT, assert_shell, text


def shell_lines() -> list[str]:
    """The commands of docs/cluster.md: its indented lines that begin with a program's name."""
    lines = text("docs/cluster.md").replace("\\\n", " ").splitlines()
    programs = ("ray ", "bash ", "python ", "kubectl ", "docker ", "kdray ", "export ", "gcloud ", "aws ", "helm ")
    return [line.strip() for line in lines if line.startswith("    ") and line.strip().startswith(programs)]


def test_the_guides_commands_are_shell():
    assert len(shell_lines()) > 20
    for line in shell_lines():
        assert_shell(line)


def test_the_guides_ray_commands_take_the_options_they_are_given():
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


def test_the_guide_names_files_that_are_there():
    named = set(re.findall(r"(?:deploy|sweeps|docs)/[\w./-]*\w\.\w+", text("docs/cluster.md")))
    written_elsewhere = {"deploy/onprem.yaml"}
    assert {name for name in named - written_elsewhere if not (ROOT / name).exists()} == set()
