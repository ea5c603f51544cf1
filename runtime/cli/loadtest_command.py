"""`rediprune loadtest`: what clients of a server see, by their number and by keep ratio."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RedipruneError
from .arguments import JsonOption, check_output_file, keep_ratios

Url = Annotated[str, typer.Argument(help="The server, such as http://127.0.0.1:8000.")]
Model = Annotated[str | None, typer.Option(help="The model to ask; default: the first that the server lists.")]
Keeps = Annotated[str, typer.Option(help="Keep ratios to compare, separated by commas.")]
Clients = Annotated[str, typer.Option(help="Numbers of clients to compare, separated by commas.")]
Requests = Annotated[int, typer.Option(help="Requests of every step; at least two are sent for each client.")]
TextShare = Annotated[float, typer.Option(help="Share of the requests without a picture, 0 to 1.")]
Pictures = Annotated[int, typer.Option(help="Different pictures; the server has their features after the first time.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Give every request a picture of its own: nothing is cached.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens of an answer.")]
Eos = Annotated[bool, typer.Option("--eos", help="Let answers end where the model ends them, not at --max-tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of pictures and questions.")]
ApiKey = Annotated[str | None, typer.Option(envvar="REDIPRUNE_API_KEY", help="Key of the server.")]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Write the figures to a JSON file as well.")]


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "loadtest",
        epilog="""Examples:\n
    rediprune loadtest http://127.0.0.1:8000\n
    rediprune loadtest http://127.0.0.1:8000 --clients 1,8,16 --keeps 1,0.15 --text-share 0 --json""",
    )(loadtest)


def loadtest(
    url: Url,
    model: Model = None,
    keeps: Keeps = "1,0.15",
    clients: Clients = "1,2,4,8,16,32",
    requests: Requests = 64,
    text_share: TextShare = 0.25,
    pictures: Pictures = 4,
    fresh: Fresh = False,
    max_tokens: MaxTokens = 32,
    eos: Eos = False,
    seed: Seed = 0,
    api_key: ApiKey = None,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a running server: requests and tokens a second, and the time to the first token.

    Clients send one request after another. All steps ask the same; the answer is a Markdown table on standard output. Exit
    code 1: requests failed.
    """
    import asyncio  # here, as all commands of the command line are imported when one of them starts

    try:
        from ..serving.loadtest.load_report import load_document, load_table
        from ..serving.loadtest.load_requests import LoadTest
        from ..serving.loadtest.load_run import first_model, run_load_test
    except ImportError as error:
        raise RedipruneError(f"loadtest needs {error.name}: pip install 'rediprune[serve]'") from error
    if out is not None:
        check_output_file(out, "--out")
    asked = {"keeps": keep_ratios(keeps, "--keeps"), "clients": _numbers(clients, "--clients"), "requests": requests}
    asked |= {"text_share": text_share, "pictures": pictures, "fresh": fresh, "max_tokens": max_tokens}
    test = LoadTest(model=model or "", whole=not eos, seed=seed, **asked)
    if model is None:
        test = LoadTest(model=first_model(url, api_key), whole=not eos, seed=seed, **asked)
    steps = asyncio.run(run_load_test(url, test, api_key, lambda line: typer.echo(line, err=True)))
    document = load_document(url, test, steps)
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(document) if as_json else load_table(test, steps))
    if any(step.failures for step in steps):
        raise typer.Exit(1)


def _numbers(text: str, option: str) -> list[int]:
    """Whole numbers from a command line, comma separated."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise RedipruneError(f"{option} takes numbers separated by commas, not '{text}'") from None
