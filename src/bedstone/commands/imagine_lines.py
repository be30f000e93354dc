"""The command line of drawing: it parses and calls, and holds no logic."""


def imagine_(
    model: str,
    text: list[str],
    count: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    method: str | None = None,
    spacing: str | None = None,
    guidance: float | None = None,
    interval: str | None = None,
    rescale: float | None = None,
    negative: str | None = None,
    size: str | None = None,
    image: str | None = None,
    strength: float | None = None,
    mask: str | None = None,
    variations: str | None = None,
    between: str | None = None,
    story: str | None = None,
    style: str = "",
    out: str | None = None,
    enlarge: int = 1,
    strip: str | None = None,
    show_steps: bool = False,
    json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Draw pictures, sounds, videos or volumes: from words, a class, a picture, or noise alone.

    A single picture becomes one file; several become files in a folder and a sheet of them all.
    Each PNG says in its notes how it was made. Settings that aren't given are the model's own.

    Args:
        model: a folder or a hub id.
        text: what to draw: words, or classes by their names or numbers; one or more, or none for a
            model that is told nothing.
        count: how many of each; 4, of a series 1, between two 7.
        seed: of the first; the next has one more.
        steps: of the sampler; more are slower and better.
        method: a sampler, such as ddim, dpm_solver_2m, unipc, euler, heun, ddpm.
        spacing: of its times, such as trailing, linspace, karras.
        guidance: how far towards the words; 1 goes no farther than was learnt.
        interval: two times from 0 (clean) to 1 (noise) with guidance between them, as 0.1,0.8.
        rescale: a share by which guidance's glare is taken back.
        negative: what not to draw.
        size: another than was learnt, as 64x48 (height, width).
        image: a picture to begin from.
        strength: how much of the picture is drawn anew, 0 to 1; how far variations go.
        mask: a picture as large as the image: white is drawn anew, black stays.
        variations: a picture to draw the like of.
        between: words to end with, on the way from the first; or a seed, where no words are read.
        story: a file of prompts, one a line, drawn alike: from one seed.
        style: words added to each prompt; several prompts are then drawn alike, from one seed.
        out: a file, or a folder where it has no suffix; imagined.png or imagined/ where not given.
        enlarge: make pixels of files so many times as large.
        strip: a PNG of how the first pictures come out of noise, step by step.
        show_steps: the same, beside the result.
        json: print one JSON object a file.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
    """
    from bedstone.commands.imagine import ImagineOptions as Wanted
    from bedstone.commands.imagine import imagine

    wanted = Wanted(
        prompts=tuple(text),
        count=count,
        seed=seed,
        negative=negative,
        size=size,
        image=image,
        strength=strength,
        mask=mask,
        variations=variations,
        between=between,
        story=story,
        style=style,
    )
    sampling = {
        "steps": steps,
        "method": method,
        "spacing": spacing,
        "guidance": guidance,
        "interval": interval,
        "rescale": rescale,
    }
    imagine(
        model,
        wanted,
        sampling,
        out=out,
        enlarge=enlarge,
        strip=strip,
        show_steps=show_steps,
        as_json=json,
        precision=precision,
        device=device,
    )
