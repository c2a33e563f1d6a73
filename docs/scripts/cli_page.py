"""The reference of the command line, as Markdown, from the real parser.

python docs/scripts/cli_page.py
"""

import re
from collections.abc import Iterator

from skipway.cli.app import app

HEAD = """# Command line

Every command and option, generated from the parser. `skipway COMMAND --help` prints the same text.

- Options that take a value accept `--name value` and `--name=value`.
- Exit codes are on a [page of their own](exit-codes.md), and so are [environment variables](environment-variables.md).
- `skipway --install-completion` installs completion for the current shell.
- Every option of `skipway train` is a keyword argument of `sw.train`, with `_` instead of `-`.
"""
ITEM = re.compile(r"^\* `(?P<names>[^`]+)`: (?P<text>.*)$", re.S)
NOTE = re.compile(r"\s*(?:\\\[|\*\[|\*\*\[)(default|choices|required):? ?(.*?)\]\**(?=\s*(?:\\\[|\*|$))", re.S)


def page() -> str:
    """Return the page."""
    markdown = app.generate_docs(output_format="markdown")
    parts = re.split(r"^#{2,3} skipway ", markdown, flags=re.M)[1:]
    return "\n".join([HEAD, *(_command(part) for part in parts if not part.startswith("--"))])


def _command(part: str) -> str:
    """Return the section of one command: usage, description, tables of options, examples."""
    name, _, body = part.partition("\n")
    groups = re.split(r"^\*\*([A-Z][\w ]+)\*\*:$", body, flags=re.M)
    lines = [f"## {name}", groups[0].strip(), ""]
    for heading, items in zip(groups[1::2], groups[2::2], strict=True):
        if heading != "Commands":
            lines += [f"**{heading}**", "", *_table(items), ""]
    if examples := _examples(name):
        lines += ["**Examples**", "", "```console", *examples, "```", ""]
    return "\n".join(lines)


def _table(items: str) -> Iterator[str]:
    yield "| option | description | default |"
    yield "| --- | --- | --- |"
    for item in re.split(r"\n(?=\* `)", items.strip()):
        match = ITEM.match(item)
        if match is None:
            raise ValueError(f"cannot read the parser's documentation: {item!r}")
        text = " ".join(match["text"].split())
        notes = dict(NOTE.findall(text))
        text = NOTE.sub("", text).strip()
        if choices := notes.get("choices"):
            text += " Choices: " + ", ".join(f"`{choice}`" for choice in choices.split(", ")) + "."
        default = "required" if "required" in notes else notes.get("default", "").replace("False", "off")
        names = ", ".join(f"`{name}`" for name in match["names"].split(", "))
        yield f"| {names} | {_escaped(text)} | {_escaped(default)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _examples(name: str) -> list[str]:
    """Return the example lines at the end of a command's help."""
    try:
        epilogue = app[name.split()[-1]].help_epilogue or ""
    except KeyError:
        return []
    return [line.strip() for line in epilogue.splitlines() if line.strip().startswith(f"skipway {name}")]


if __name__ == "__main__":
    print(page())
