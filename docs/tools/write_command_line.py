"""Write docs/command-line.md from the commands' own signatures and help: what `--help` shows.

python docs/tools/write_command_line.py
"""

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from rediprune.runtime.cli.app import app
from typer.models import ArgumentInfo, CommandInfo

PAGE = Path(__file__).parents[1] / "command-line.md"
_NOTE = "<!-- Written by docs/tools/write_command_line.py from the commands' own help; do not edit. -->"
_METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def page() -> str:
    """The whole page, one section a command."""
    for entry in entry_points(group="rediprune.commands"):
        entry.load()(app)
    head = f"{_NOTE}\n\n# Command line\n\n{_line(app.info.help)}\n\n{_line(app.info.epilog)}\n"
    return "\n".join([head, *map(_section, app.registered_commands)])


def _section(command: CommandInfo) -> str:
    callback: Callable[..., Any] | None = command.callback
    assert callback is not None
    hints = get_type_hints(callback, include_extras=True)
    parameters = [
        (parameter, *get_args(hints[parameter.name]))
        for parameter in inspect.signature(callback).parameters.values()
        if get_args(hints[parameter.name])  # not the context
    ]
    arguments = [one for one in parameters if isinstance(one[2], ArgumentInfo)]
    usage = " ".join(["rediprune", str(command.name), *(_argument(*one[:2]) for one in arguments), "[OPTIONS]"])
    lines = [f"## {command.name}\n", f"{inspect.getdoc(callback)}\n", f"```text\n{usage}\n```\n"]
    lines += [f"- `{_argument(parameter, kind)}`: {_line(info.help)}" for parameter, kind, info in arguments]
    lines += [_option(*one) for one in parameters if one not in arguments]
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.strip().startswith("rediprune")]
    return "\n".join([*lines, "", "```console", *(f"$ {line}" for line in examples), "```", ""])


def _argument(parameter: inspect.Parameter, kind: Any) -> str:
    return parameter.name.upper() + ("…" if get_origin(kind) is list else "")


def _option(parameter: inspect.Parameter, kind: Any, info: Any) -> str:
    given = [info.default, *(info.param_decls or ())]  # in an Annotated option the first name is the first argument
    names = [name for name in given if isinstance(name, str) and name.startswith("-")]
    names = names or [f"--{parameter.name.replace('_', '-')}"]
    several = get_origin(kind) is UnionType and any(get_origin(one) is list for one in get_args(kind))
    several = several or get_origin(kind) is list
    value = next((_METAVARS[one] for one in _types(kind) if one in _METAVARS), "")
    notes = [_line(info.help)]
    if several and "epeat" not in notes[0]:
        notes.append("May be repeated.")
    if parameter.default is inspect.Parameter.empty:
        notes.append("Required.")
    elif value and parameter.default not in (None, ""):
        notes.append(f"Default: `{parameter.default}`.")
    elif not value and "/" in names[0]:
        notes.append(f"Default: `{names[0].split('/')[0 if parameter.default else 1]}`.")
    shown = ", ".join(names).replace("/", " / ")
    return f"- `{f'{shown} {value}'.strip()}`: {' '.join(notes)}"


def _types(kind: Any) -> list[Any]:
    """The plain types in an annotation: of `list[Path] | None` Path and None."""
    return [kind] if not get_args(kind) else [plain for one in get_args(kind) for plain in _types(one)]


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
