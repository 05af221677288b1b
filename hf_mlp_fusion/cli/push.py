"""`hf-mlp-fusion push`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from .options import BaseModel, FusedFolder, Json, License, LicenseNote

__all__ = ["push"]


def push(
    path: FusedFolder,
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="Repository on the Hub: name, or owner/name. It is made if need be.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to push to, made if need be.", show_default="main")
    ] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    license: License = None,
    license_note: LicenseNote = "",
    base_model: BaseModel = None,
    remote_code: Annotated[
        bool,
        typer.Option(
            "--remote-code/--no-remote-code",
            help="Add the stub, by which trust_remote_code=True replaces `import hf_mlp_fusion`.",
        ),
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and list the files, but push nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Push the fused FOLDER to the Hub in one commit: weights, config, tokenizer, receipt and card.

    The token is that of `hf auth login`, or HF_TOKEN. Pickles, training state, and any code but
    the stub are never pushed.
    """
    from ..hub import push_folder

    done = push_folder(
        path,
        repo,
        private=private,
        revision=revision,
        message=message,
        license=license,
        license_note=license_note,
        base_model=base_model,
        remote_code=remote_code,
        dry_run=dry_run,
    )
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    for name in done.uploaded:
        console.print(f"  {name}", markup=False)
    if done.left:
        console.print(f"Left out: {', '.join(done.left)}", markup=False)
    console.print("Nothing was pushed (--dry-run)." if done.url is None else f"Pushed: {done.url}", markup=False)
