"""The options of `rediprune serve`."""

from pathlib import Path
from typing import Annotated

import typer

from .arguments import BACKEND_HELP

Bundle = Annotated[
    list[str], typer.Argument(help="Bundles, each a folder or NAME=FOLDER; a folder is served under its own name.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 takes requests from other machines.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="REDIPRUNE_API_KEY", help="Key that clients must send; it guards all but /health."),
]
Backend = Annotated[str, typer.Option(help=BACKEND_HELP)]
Threads = Annotated[int, typer.Option(help="Threads for each stage; 0 leaves their number to the backend.")]
Keep = Annotated[str | None, typer.Option(help="Ratio of visual tokens kept where a request does not say, or auto.")]
Alpha = Annotated[float | None, typer.Option(help="Weight of relevance where a request does not say.")]
Tau = Annotated[float | None, typer.Option(help="Candidate filter where a request does not say.")]
Frames = Annotated[int | None, typer.Option(help="Frames of a clip where a request does not say.")]
Positions = Annotated[
    str | None, typer.Option(help="Positions of kept tokens where a request does not say: compact or original.")
]
Scope = Annotated[str | None, typer.Option(help="Scope of a budget where a request does not say: frame or clip.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer that a request may ask for.")]
MaxItems = Annotated[int, typer.Option(min=0, help="Most pictures and clips in one request.")]
MaxFrames = Annotated[int, typer.Option(min=1, help="Most frames of one clip.")]
MaxBodyMb = Annotated[int, typer.Option(min=1, help="Largest request body, in MiB.")]
MaxPendingMb = Annotated[
    int,
    typer.Option(min=1, help="Bodies that are read and encoded at once, together, in MiB; one more is answered 429."),
]
MaxText = Annotated[int, typer.Option(min=1, help="Most characters in the messages of one request.")]
MaxMediaMb = Annotated[int, typer.Option(min=1, help="Largest picture or clip, encoded, in MiB.")]
MaxBatch = Annotated[int, typer.Option(min=1, help="Most requests decoded together.")]
CacheMemory = Annotated[str, typer.Option(help="Memory of each model's KV cache, such as 512MB or 4GB.")]
FeatureMemory = Annotated[str, typer.Option(help="Memory for features of pictures seen before.")]
Encoders = Annotated[
    int, typer.Option(min=0, help="Prompts encoded at the same time; 0 is one for every four cores, up to four.")
]
MaxWaiting = Annotated[int, typer.Option(min=1, help="Most requests that wait; one more is answered 429.")]
PrefillChunk = Annotated[
    int, typer.Option(min=1, help="Prompt tokens computed before the other answers get their next token.")
]
Timeout = Annotated[float, typer.Option(help="Seconds that a request may take.")]
AllowedMediaDomains = Annotated[
    list[str] | None,
    typer.Option(help="Host that http(s) media may come from, .example.org with all below; repeat."),
]
AllowedLocalMediaPath = Annotated[Path | None, typer.Option(help="Folder that file:// media may come from.")]
AllowPrivateMedia = Annotated[
    bool, typer.Option("--allow-private-media", help="Let allowed media hosts have private addresses.")
]
Decoder = Annotated[
    str | None,
    typer.Option(
        help="Decode elsewhere: the URL of a vLLM's API, such as http://127.0.0.1:8001/v1. It gets the kept tokens, and must "
        "serve the bundle's checkpoint with --enable-mm-embeds."
    ),
]
DecoderModel = Annotated[str | None, typer.Option(help="The model's name there; default: the only one that it lists.")]
DecoderApiKey = Annotated[
    str | None, typer.Option(envvar="REDIPRUNE_DECODER_API_KEY", help="The key that the decoder wants.")
]
DecoderTimeout = Annotated[
    float, typer.Option(help="Seconds until the decoder's first token; then the request fails with 503.")
]
Fallback = Annotated[
    bool,
    typer.Option("--fallback", help="Decode here what the decoder fails at; needs a bundle with a language stage."),
]
OnRay = Annotated[
    bool,
    typer.Option("--ray", help="Serve on Ray: replicas on this machine or on a cluster, requests routed by picture."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="With --ray: the cluster, auto for the one of this machine. The server stays there, and replaces the one that is "
        "there without losing a request. Default: start a Ray here."
    ),
]
Replicas = Annotated[int, typer.Option(min=1, help="With --ray: processes that answer.")]
MaxReplicas = Annotated[int, typer.Option(min=0, help="With --ray: as many under load; 0 is as many as --replicas.")]
ReplicaCpus = Annotated[float, typer.Option(min=0.1, help="With --ray: CPU cores of each, and its threads.")]
ReplicaGpus = Annotated[float, typer.Option(min=0, help="With --ray: GPUs of each.")]
ModelsPerReplica = Annotated[
    int, typer.Option(min=1, help="With --ray: bundles that each has loaded; the one asked longest ago is given up.")
]
Fronts = Annotated[int, typer.Option(min=1, help="With --ray: processes that take connections and route.")]
Split = Annotated[
    int,
    typer.Option(
        min=0, help="With --ray: so many processes that decode, apart from --replicas that encode; 0: together."
    ),
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        help="Name in the Host header that is answered; repeat. Default: loopback's names on loopback, else all."
    ),
]
LogFormat = Annotated[str, typer.Option(help="Form of the log: text or json.")]
