"""`bedstone serve`: models of every kind behind one port, with OpenAI's routes and every task's."""

import logging
import os
import sys

from bedstone.errors import BedstoneError
from bedstone.measured import threads_of
from bedstone.reading import read_text, to_path
from bedstone.serve.app import listen
from bedstone.serve.gate import entrance_of
from bedstone.serve.models import ServeSettings, named_sources
from bedstone.serve.replicas import Plan, Replicas, serve_here
from bedstone.tasks.moderation.policy import read_policy

MOST = 64  # replicas
KEYS_LIMIT = 1 << 20  # bytes of a file of keys
KEY = "BEDSTONE_API_KEY"  # of the environment


def serve(
    models: list[str],
    settings: ServeSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: str | None = None,
    allowed_host: list[str] = [],  # noqa: B006
    index: list[str] = [],  # noqa: B006
    policy: str | None = None,
    replicas: int = 1,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Serve models over HTTP: OpenAI's API, and every task.

    Decoders answer /v1/chat/completions and /v1/completions, encoders /v1/embeddings, models that
    draw /v1/images; /v1/tasks/TASK takes the arguments of bedstone.pipeline. Each model
    is opened and its golden outputs are computed before requests are taken; /ready says whether
    they were equal.

    Args:
        models: folders, names that `bedstone models` lists, or hub ids; NAME=MODEL gives one the
            name that requests use. An adapter's folder is a model too.
        host: the address to listen on; one that other machines reach needs keys.
        port: of it; 0 takes a free one.
        keys: a file of keys, one a line, as NAME:KEY; requests then need one of them. Without it
            the key in the environment variable BEDSTONE_API_KEY counts, if it is set.
        allowed_host: a name that the Host header may have, beside those of this machine; repeat it
            for more.
        index: a folder that `bedstone index` wrote, searched by /v1/search; NAME=FOLDER gives it
            the name that requests use; repeat it for more. Its model has to be served, too.
        policy: a YAML file, by which /v1/moderations judges what comes without a policy.
        replicas: processes that serve, each with all models and the limits below for itself; no
            response is then kept for previous_response_id.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone serve smollm2-135m-instruct --precision int8
        bedstone serve clip=runs/clip --index photos.index --policy policy.yaml
        bedstone serve chat=runs/chat embed=minilm --port 9000 --keys keys.txt --host 0.0.0.0

    Raises:
        BedstoneError: a model, an index or a policy can't be opened, there is no room for it, the
            address can't be listened on, or it is open to others and there are no keys.
    """
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("bedstone").setLevel(logging.INFO)
    body = int(settings.max_body * (1 << 20))
    requests = 2 * settings.max_queue + settings.max_num_seqs
    entrance = entrance_of(
        host, read_keys(keys), allowed_host,
        body=body, seconds=settings.body_seconds, requests=requests,
    )  # fmt: skip
    if not 0 <= port < 65536:
        raise BedstoneError(f"--port: {port} was given; expected 0 to 65535.")
    judged = None if policy is None else read_policy(policy)
    if not 1 <= replicas <= MOST:
        raise BedstoneError(f"--replicas: {replicas} was given; expected 1 to {MOST}.")
    listener = listen(host, port)  # that it is taken is known before models are opened
    plan = Plan(named_sources(models), settings, entrance, index, judged, precision, device)
    if replicas == 1:
        serve_here(plan, listener)
        return
    threads = threads_of(replicas)
    each = (
        f"{settings.memory:g} GiB of models (--memory)" if settings.memory else "no bound on models"
    )
    logging.getLogger("bedstone.serve").info(
        "%d replicas, each with its own models, %s, %g GiB of keys and values a model "
        "(--kv-memory), %g GiB of kept prompts (--prefix-memory), threads: %d",
        replicas, each, settings.kv_memory, settings.prefix_memory, threads,
    )  # fmt: skip
    Replicas(plan, listener, replicas, threads).run()


def read_keys(file: str | None) -> dict[str, str]:
    """Keys by the names of who has them; that of the environment where no file is given.

    Raises:
        BedstoneError: a line is no key, or two have the same name or key.
    """
    if file is None:
        return {"default": os.environ[KEY]} if os.environ.get(KEY) else {}
    path = to_path(file, "--keys")
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path, KEYS_LIMIT).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not (name and colon and key) or name in found or key in found.values():
            raise BedstoneError(
                f"{path}, line {number}: expected NAME:KEY, each name and each key once."
            )
        found[name] = key
    if not found:
        raise BedstoneError(f"{path}: holds no key. Give lines NAME:KEY.")
    return found
