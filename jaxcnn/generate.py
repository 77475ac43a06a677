"""Writes text by a trained language model: python -m jaxcnn.generate --workdir DIR [--prompt TEXT] [--temperature 0.8]

What it writes goes on from the prompt, and appears as it is written. The same seed gives the same text. Exit codes: 0
written, 2 wrong command or workdir.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from absl import flags

from jaxcnn.command import HELP_FLAGS, check_step, flags_help, parse_flags, run_command, show_help
from jaxcnn.errors import UserError
from jaxcnn.terminal import complain, print_text

MOST_TOKENS = 10**6
MOST_AT_ONCE = 1024  # texts, or beams


def main(argv: list[str], start: float) -> int:
    """Loads, writes, prints as it goes; returns the exit code."""
    del start
    values = flags.FlagValues()
    _define_flags(values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    parse_flags(values, argv, takes_arguments=False)
    if not values.workdir:
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/text_generation")
    _check(values)

    from jaxcnn.results.finished import load, task_of
    from jaxcnn.tasks.language import vocabulary_of
    from jaxcnn.training.parallel import set_up

    if (task := task_of(values.workdir)) != "language":
        raise UserError(f"{values.workdir} holds a run of task={task}, which writes no text; name one of task=language")
    set_up(None, compilation_cache=True)
    run = load(values.workdir, values.step)
    vocabulary = vocabulary_of(run.saved["data"])
    prompt = vocabulary.encode(values.prompt)
    if unknown := int((prompt == vocabulary.unknown).sum()):
        complain(f"--prompt has {unknown} {vocabulary.level}s that the run has not learned; they are read as unknown")
    model = lambda tokens, carry: run.module.apply(run.variables, tokens, train=False, carry=carry)
    writer = _searched if values.beam is not None else _sampled
    writer(values, run.module, model, vocabulary, prompt if len(prompt) else [vocabulary.end])
    return 0


def _define_flags(values: flags.FlagValues) -> None:
    define = partial(flags.DEFINE_integer, flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("step", "best", "best, last, or the number of a step", flag_values=values)
    flags.DEFINE_string("prompt", "", "what the text begins with; none: the beginning of a text", flag_values=values)
    define("length", 500, "tokens to be written, unless the text ends before", lower_bound=1, upper_bound=MOST_TOKENS)
    flags.DEFINE_float(
        "temperature", 0.8, "below 1 likelier, above 1 less likely; 0: always the likeliest", 0, 100, flag_values=values
    )
    define("top_k", None, "draw of so many of the likeliest tokens", lower_bound=1)
    flags.DEFINE_float("top_p", None, "draw of the likeliest that make up this share", 1e-6, 1, flag_values=values)
    define("beam", None, "search for the likeliest text with so many beams, instead of drawing", 1, MOST_AT_ONCE)
    define("num", 1, "texts", 1, MOST_AT_ONCE)
    define("seed", 0, "of what is drawn", 0, 2**31 - 1)


def _check(values: flags.FlagValues) -> None:
    check_step(values.step)
    if values.beam is None:
        return
    for option in ("temperature", "top_k", "top_p", "seed"):
        if values[option].present:
            raise UserError(f"--{option} is for drawing, and --beam draws nothing; leave one of them out")
    if values.num > values.beam:
        raise UserError(f"--num={values.num}: --beam={values.beam} finds no more than {values.beam} texts")


def _sampled(values: flags.FlagValues, module: Any, model: Any, vocabulary: Any, prompt: Any) -> None:
    import jax
    import numpy as np

    from jaxcnn.tasks.language.generation import Sampling, sample

    pieces = sample(
        model,
        np.asarray(prompt, np.int32),
        begun=module.begin,
        key=jax.random.key(values.seed),
        sampling=Sampling(values.temperature, values.top_k, values.top_p),
        num=values.num,
        num_tokens=values.length,
        window=getattr(module, "length", None),
    )
    if values.num == 1:
        _stream(values.prompt, vocabulary, (piece[0] for piece in pieces))
    else:
        _print_all(values.prompt, vocabulary, np.concatenate([*pieces], axis=1))


def _searched(values: flags.FlagValues, module: Any, model: Any, vocabulary: Any, prompt: Any) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxcnn.tasks.language.generation import search

    window = getattr(module, "length", None)
    if window is not None and len(prompt) + values.length > window:
        raise UserError(
            f"--length={values.length} and a prompt of {len(prompt)} tokens are beyond the network's {window}, which a "
            f"search keeps within: set --length={max(1, window - len(prompt))}, or shorten the prompt"
        )
    call = jax.jit(partial(search, model=model, beams=values.beam, num_tokens=values.length))
    found = call(jnp.asarray(prompt, jnp.int32), module.begin(values.beam))
    is_one = np.isfinite(found.scores)  # there may be fewer texts than beams
    _print_all(values.prompt, vocabulary, np.asarray(found.tokens)[is_one][: values.num])


def _stream(prompt: str, vocabulary: Any, pieces: Iterable[Any]) -> None:
    """Prints a text as it comes. A letter whose bytes are not all there yet waits for them."""
    numbers, printed = vocabulary.encode(prompt).tolist(), len(vocabulary.decode(vocabulary.encode(prompt)))
    print_text(prompt)
    for piece in pieces:
        numbers += piece.tolist()
        text = vocabulary.decode(numbers)
        whole = len(text.rstrip("�")) if vocabulary.level == "byte" else len(text)
        print_text(text[printed:whole])
        printed = max(printed, whole)
    print_text(vocabulary.decode(numbers)[printed:] + "\n")


def _print_all(prompt: str, vocabulary: Any, texts: Any) -> None:
    for number, numbers in enumerate(texts, start=1):
        if len(texts) > 1:
            print_text(f"--- {number}\n")
        _stream(prompt, vocabulary, [numbers])


if __name__ == "__main__":
    run_command(main)
